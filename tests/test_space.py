"""The demo: its pages and rules one by one, and the whole of it through its API."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import http.server
import io
import json
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hub_server
import numpy as np
import pytest
import tiny_network
from PIL import Image
from space_server import ROOT, Demo, ask, serving, write_files

gr = pytest.importorskip("gradio", reason="the demo needs gradio")
pytest.importorskip("pydicom", reason="the demo reads DICOM")

SPACE = ROOT / "space"
sys.path.insert(0, str(SPACE))
import backend as backend_module  # noqa: E402
import pages as pages_module  # noqa: E402
import prelude  # noqa: E402
from backend import Backend, Limits, Upload, UploadError, Uploads  # noqa: E402
from pages import Pages  # noqa: E402

from cxrlib import Explanation, Prediction, Predictor, cli, web  # noqa: E402
from cxrlib.images import decode as images  # noqa: E402
from cxrlib.images import phantom  # noqa: E402
from cxrlib.metrics.compute import make_report  # noqa: E402

POINTS = {
    name: {"threshold": t, "sensitivity": 0.9, "specificity": 0.8, "by_source": {}}
    for name, t in (("screening", 0.001), ("balanced", 0.999))
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two operating points far apart, and a gate that refuses what is blank."""
    content = tiny_network.files(gate=tiny_network.tolerant_gate(), operating_points=POINTS, default_point="screening")
    return tiny_network.write(tmp_path_factory.mktemp("model"), {**content, "examples/from_the_bundle.png": example()})


def example() -> bytes:
    file = io.BytesIO()
    Image.fromarray(phantom.draw(5, size=128)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def backend(model: Path, tmp_path: Path) -> Backend:
    return Backend(model, None, tmp_path / "uploads")


@pytest.fixture(scope="module")
def demo(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    command = (sys.executable, "-m", "cxrlib", "demo", "--port", "{port}", "--model", str(model))
    with serving(tmp_path_factory.mktemp("demo") / "place", *command) as running:
        yield running
        log = running.log.read_text()
        assert [word for word in ("Traceback", "image.png", "broken", "Doe", "passwd") if word in log] == [], (
            "nothing of what visitors sent is logged"
        )
        assert running.uploads() == []


@pytest.fixture(scope="module")
def client(demo: Demo) -> Any:
    from gradio_client import Client

    return Client(demo.url, verbose=False)


def prediction(
    p: float = 0.7,
    *,
    labels: tuple[str, ...] = ("NORMAL", "PNEUMONIA"),
    threshold: float | None = 0.5,
    reasons: tuple[str, ...] = (),
) -> Prediction:
    """An answer; the second label has the probability `p`."""
    others = [(1 - p) / (len(labels) - 1)] * (len(labels) - 1)
    probabilities = dict(zip(labels, (others[0], p, *others[1:]), strict=True))
    found = Prediction(labels[1], p, probabilities, threshold, "ok", reasons, "image.png")
    return found if threshold is None else found.at(threshold)


def refusal(*reasons: str) -> Prediction:
    return Prediction.without_answer("image.png", "refused", reasons, ("NORMAL", "PNEUMONIA"), 0.5)


def explanation(found: Prediction, *, heat: float = 0.5) -> Explanation:
    image = images.read(phantom.draw(size=64))
    return Explanation(np.full(image.size, heat, np.float32), image, "PNEUMONIA", found)


# --- what a Space is ---


def test_the_metadata_is_what_spaces_expect() -> None:
    text = (SPACE / "README.md").read_text("utf-8")
    fields = dict(re.findall(r"^(\w+): (.+)$", text.partition("---\n")[2].partition("\n---\n")[0], re.MULTILINE))
    assert fields["sdk"] == "gradio"
    assert (SPACE / fields["app_file"]).is_file()
    assert len(fields["short_description"]) <= 60
    assert {fields["colorFrom"], fields["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
    assert fields["license"] == "apache-2.0"
    low, high = re.findall(r"^gradio>=([\d.]+),<(\d+)$", (SPACE / "requirements.txt").read_text("utf-8"), re.MULTILINE)[
        0
    ]
    version = [int(part) for part in fields["sdk_version"].split(".")]
    assert [int(part) for part in low.split(".")] <= version
    assert version[0] < int(high)


def test_the_requirements_are_those_of_cxrlib() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["demo"],
        *project["optional-dependencies"]["dicom"],
    ]
    listed = [line for line in (SPACE / "requirements.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert {re.split("[<>=]", line)[0] for line in listed} == {re.split("[<>=]", line)[0] for line in wanted} - {
        "cxrlib[dicom]"
    }
    assert {line for line in listed if not line.startswith("gradio")} <= set(wanted)


def test_the_demo_travels_in_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["force-include"] == {"space": "cxrlib/_space"}


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in SPACE.iterdir():
        if path.suffix in {".html", ".css", ".js"}:
            assert re.findall(r"https?://|@import|url\(", path.read_text("utf-8")) == [], path.name


def test_the_command_line_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == 'cxrlib: the demo needs gradio: pip install "cxrlib[demo]"\n'
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(web, "__file__", str(tmp_path / "cxrlib" / "web.py"))
    assert cli.main(["demo"]) == 1
    assert "the demo is missing from this installation of cxrlib: install it again" in capsys.readouterr().err


def test_an_installed_demo_is_found_before_a_stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(web, "__file__", str(tmp_path / "cxrlib" / "web.py"))
    for folder in ("space", "cxrlib/_space"):  # another package of the name "space" beside cxrlib
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "app.py").touch()
    assert web.space_folder() == tmp_path / "cxrlib" / "_space"


# --- the pages ---


@pytest.fixture
def pages(model: Path) -> Pages:
    return Pages(Predictor(model))


def test_the_verdict_is_there_for_every_operating_point(pages: Pages) -> None:
    html = pages.answer(explanation(prediction(0.7)))
    assert len(re.findall('data-point="screening" >', html)) == 1
    assert len(re.findall('data-point="balanced" hidden>', html)) == 1
    assert ">Possible pneumonia: have it read<" in html
    assert ">No sign of pneumonia<" in html
    said = "The model puts the probability of pneumonia at <strong>70%</strong>. That is "
    assert f"{said}well above the screening threshold of 0.1%." in html
    assert re.search(f"{said}well below the balanced threshold of (over )?99.9%.", html)
    assert f'data-side="1" hidden><h2 class="cx-word cx-strong">Pneumonia likely</h2><p>{said}above your thre' in html
    assert html.count('type="radio"') == 3
    assert html.count("checked") == 1


def test_the_answer_says_which_image_it_is_about(pages: Pages) -> None:
    found = explanation(prediction(0.7))
    assert "image.png · 64 × 64 pixels · view not stated" in pages.answer(found)
    seen = dataclasses.replace(found, image=dataclasses.replace(found.image, view="PA", size=(2500, 2048)))
    assert "image.png · 2,048 × 2,500 pixels · PA view" in pages.answer(seen)


def test_refusals_warnings_and_errors_say_why(pages: Pages) -> None:
    refused = pages.answer(explanation(refusal("it is almost blank"), heat=0))
    assert "Refused" in refused
    assert "<li>It is almost blank</li>" in refused
    assert "probability of" not in refused
    assert "<li>It is small</li>" in pages.answer(explanation(prediction(reasons=("it is small",))))
    assert "Not read" in pages.answer(error="image.png: it is damaged.")
    assert "image.png: it is damaged." in pages.answer(error="image.png: it is damaged.")
    assert "Nothing to show" in pages.viewer(unread=True)


def test_without_heat_there_is_no_heatmap(pages: Pages) -> None:
    html = pages.viewer(explanation(prediction(), heat=0))
    assert "No heatmap: nowhere does the evidence for pneumonia exceed that of normal images." in html
    assert "cx-heat" not in html
    assert "Heatmap" not in html
    html = pages.viewer(explanation(refusal("it is almost blank"), heat=0))
    assert "The image as it was read." in html
    assert "cx-heat" not in html
    assert "cx-heat" in pages.viewer(explanation(prediction()))


def test_the_layers_of_the_page_make_the_overlay() -> None:
    found = explanation(prediction())
    rows = np.linspace(0, 1, 64, dtype=np.float32)[:, None].repeat(64, axis=1)
    found = dataclasses.replace(found, heatmap=rows)
    heat = np.asarray(pages_module.colours(found), np.float64)
    alpha = heat[..., 3:] / 255 * 0.5  # the page's opacity at the start
    painted = found.image.pixels[..., None] * (1 - alpha) + heat[..., :3] * alpha
    assert np.abs(painted - np.asarray(found.overlay(), np.float64)).max() < 4


def test_whatever_comes_from_outside_is_escaped(pages: Pages) -> None:
    evil = '<img src=x onerror="alert(1)">'
    image = images.read(phantom.draw(size=64))
    found = explanation(dataclasses.replace(prediction(reasons=(evil,)), source=evil))
    html = [
        pages.answer(error=evil),
        pages.answer(found),
        pages.table([(evil, pages_module.thumbnail(image), found.prediction), (evil, "", evil)]),
        pages.examples([(evil, image, None)]),
    ]
    assert not [text for text in html if "<img src=x" in text]
    assert all("&lt;img src=x" in text for text in html)


def test_the_table_has_a_row_for_every_image(pages: Pages) -> None:
    rows = [("a", "", prediction(0.7)), ("b", "", refusal("it is almost blank")), ("c.png", "", "c.png: it is empty.")]
    html = pages.table(rows)
    assert html.count("<tr") == 4
    assert "<strong>3 images</strong>" in html
    assert re.findall('data-status="(.*?)"', html) == ["ok", "refused", "unreadable"]
    assert 'data-p="0.7" data-yes="PNEUMONIA" data-no="NORMAL"' in html
    assert "<td>It is empty.</td>" in html, "without the file's name"


def test_a_model_with_three_labels_and_no_operating_points(tmp_path: Path) -> None:
    class Bare:
        config = dataclasses.replace(
            Predictor(tiny_network.write(tmp_path, tiny_network.files())).config,
            labels=("A", "B", "C"),
            operating_points={},
            default_point=None,
            probe=(0, 0, 1),
        )
        report, folder = None, tmp_path / "nowhere"

    pages = Pages(Bare())  # type: ignore[arg-type]
    found = prediction(0.6, labels=("A", "B", "C"), threshold=None)
    html = pages.answer(explanation(found))
    assert "<th>B</th><td>60%</td>" in html
    assert "radio" not in html
    assert "threshold" not in html
    assert html.count("<tr>") == 3
    assert "Download as CSV" in pages.table([("a", "", found)])
    assert "This model was not measured" in pages.glance()
    assert pages.card() == "This model has no card."
    assert "<h1>" in pages.head()
    decided = pages.answer(explanation(prediction(0.6, labels=("A", "B", "C"))))
    assert "B likely" in decided
    assert "above the threshold of 50%" in decided


def test_four_figures_at_a_glance(pages: Pages) -> None:
    p = np.linspace(0, 1, 20)
    pages.report = make_report(
        (p > 0.4).astype(int),
        np.stack([1 - p, p], axis=1),
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names=[str(i) for i in range(20)],
        other=[*[None] * 18, "OTHER", "OTHER"],
        data="<here>",
    )
    html = pages.glance()
    assert html.count("<dt>") == 4
    assert "<dt>AUROC</dt><dd><strong>1.000</strong>" in html
    assert "Measured on 18 images (&lt;here&gt;), with 95% intervals." in html
    assert "Of 2 images labelled OTHER, a class that it does not have, it called 100% pneumonia." in html


def test_the_card_shows_figures_and_no_other_file(pages: Pages, tmp_path: Path) -> None:
    pages.folder = tmp_path
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "roc.png").write_bytes(b"\x89PNG")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "README.md").write_text(
        "---\nlicense: x\n---\n# Card\n![ROC](figures/roc.png)\n![no](figures/no.png)\n![x](figures/../secret.png)\n"
    )
    card = pages.card()
    assert card.startswith("# Card")
    assert "![ROC](data:image/png;base64,iVBORw==)" in card
    assert "![no]" not in card
    assert base64.b64encode(b"secret").decode() not in card


def test_numbers_of_the_card_stay_on_one_line(pages: Pages, tmp_path: Path) -> None:
    pages.folder = tmp_path
    (tmp_path / "README.md").write_text(
        "| Source | Images | AUROC |\n| --- | --- | --- |\n| a | 1,140 NORMAL | 0.994 (0.988–0.997) |\n\n2 of 3 | 4\n"
    )
    assert pages.card().endswith(
        '| a | 1,140 NORMAL | <span class="cx-number">0.994 (0.988–0.997)</span> |\n\n2 of 3 | 4\n'
    )


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (0.0, "0.0"),
        (0.0005, "under 0.1"),
        (0.042, "4.2"),
        (0.5, "50"),
        (0.934, "93.4"),
        (0.9996, "over 99.9"),
        (1.0, "100.0"),
    ],
)
def test_probabilities_in_words(p: float, said: str) -> None:
    assert pages_module._percent(p) == f"{said}%"


@pytest.mark.parametrize(
    ("p", "threshold", "said"),
    [
        (0.5, 0.5, "just above"),
        (0.45, 0.5, "just below"),
        (0.7, 0.5, "above"),
        (0.99, 0.5, "well above"),
        (0.01, 0.5, "well below"),
    ],
)
def test_where_an_image_stands(p: float, threshold: float, said: str) -> None:
    assert pages_module._relation(p, threshold) == said


# --- the backend ---


def test_examples_come_from_the_phantom_the_bundle_or_a_folder(backend: Backend, model: Path, tmp_path: Path) -> None:
    drawn = [name for name, *_ in backend.examples[:-1]]
    assert len(drawn) == 6
    assert all(name.startswith("Drawing: ") for name in drawn)
    assert backend.examples[-1][0] == "from the bundle"
    assert backend.example(0).prediction.source == drawn[0]
    mine = tmp_path / "mine"
    mine.mkdir()
    for i in range(15):
        phantom.save(mine / f"image{i}.png", i, size=64)
    (mine / "image0.png").write_bytes(b"broken")  # is left out
    names = [name for name, *_ in Backend(model, mine, tmp_path / "other").examples]
    assert names == sorted(f"image{i}" for i in range(1, 15))[:12], "instead of drawings"
    with pytest.raises(NotADirectoryError, match="no such folder"):
        Backend(model, tmp_path / "nowhere", tmp_path / "third")


def test_examples_of_a_model_on_the_hub(model: Path, tmp_path: Path) -> None:
    planted = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    with hub_server.serving() as server, hub_server.client_of(server, tmp_path / "home"):
        server.plant(
            "alice/model",
            {**planted, "examples/broken.png": b"x", "examples/notes.txt": b"x", "examples/deep/image.png": example()},
        )
        backend = Backend("hf://alice/model", None, tmp_path / "uploads")
        assert [name for name, *_ in backend.examples][6:] == ["from the bundle"]
        predictor = backend.predictor
    assert backend_module._published_examples(predictor, "hf://alice/model") == [], "the Hub is gone, the model is not"


def test_an_image_is_answered_and_another_operating_point_needs_no_other_pass(backend: Backend, files: Path) -> None:
    upload = Upload((files / "image.dcm").read_bytes(), "image.dcm")
    first, second = (backend.explain(upload, operating_point=name).prediction for name in ("screening", "balanced"))
    assert (first.label, second.label) == ("PNEUMONIA", "NORMAL")
    assert first.probability == second.probability
    assert first.source == "image.dcm"


def test_the_backend_answers_in_sentences(
    backend: Backend, files: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UploadError, match=r"^broken\.png: .+\.$"):
        backend.explain(Upload((files / "broken.png").read_bytes(), "broken.png"))
    with pytest.raises(UploadError, match="The operating point must be screening or balanced"):
        backend.explain(Upload(b"", "x"), operating_point="sharp")
    with pytest.raises(UploadError, match="The label must be NORMAL or PNEUMONIA"):
        backend.explain(Upload(b"", "x"), label="CAT")

    def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr(backend.predictor, "explain", fault)
    with pytest.raises(UploadError, match="The demo has a fault and gives no answer for this image"):
        backend.explain(Upload(b"", "x"))
    assert "RuntimeError" in caplog.text
    assert "Jane" not in caplog.text


def sent(backend: Backend, *files: Path | tuple[str, bytes]) -> list[dict[str, Any]]:
    """Uploads as Gradio describes them."""
    described = []
    for i, file in enumerate(files):
        name, data = (file.name, file.read_bytes()) if isinstance(file, Path) else file
        place = backend.uploads.folder / f"secret{i}" / "hash"
        place.mkdir(parents=True)
        (place / name).write_bytes(data)
        described.append({"path": str(place / name), "orig_name": name})
    return described


def test_one_bad_file_spoils_nothing(backend: Backend, files: Path) -> None:
    files = sent(
        backend,
        files / "broken.png",
        files / "image.png",
        files / "images.zip",
        ("notes.txt", b"no image"),
        files / "cat.png",
    )
    found = [
        (name, str(answer) if isinstance(answer, UploadError) else answer.prediction.status)
        for name, answer in backend.batch(files)
    ]
    assert [name for name, _ in found] == [
        "broken.png",
        "image.png",
        "image.png",
        "broken.png",
        "cat.png",
        "notes.txt",
        "cat.png",
    ]
    assert [answer for _, answer in found if answer in ("ok", "refused")] == ["ok", "ok", "refused", "refused"]
    assert list(backend.uploads.folder.rglob("*")) == []


def test_a_batch_has_an_end(backend: Backend, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "MAX_IMAGES", 2)
    found = list(backend.batch(sent(backend, files / "images.zip", files / "image.png")))
    assert [name for name, _ in found] == ["image.png", "broken.png", "cat.png"]
    assert "at most 2 images" in str(found[-1][1])
    assert list(backend.uploads.folder.rglob("*")) == [], "what was not read is removed, too"
    with pytest.raises(UploadError, match="The operating point"):
        list(backend.batch(sent(backend, files / "image.png"), operating_point="sharp"))
    assert list(backend.uploads.folder.rglob("*")) == []


def packed(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def test_archives_cannot_exceed_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "MAX_BYTES", 1000)
    monkeypatch.setattr(backend_module, "MAX_UNPACKED", 1500)

    def unzipped(data: bytes) -> list[tuple[str, str]]:
        return [
            (name, str(found) if isinstance(found, UploadError) else "read")
            for name, found in backend_module._unzip(Upload(data, "all.zip"))
        ]

    assert unzipped(
        packed(("a/b/image.png", b"x" * 900), ("a/", b""), (".hidden", b"x"), ("__MACOSX/image.png", b"x"))
    ) == [("image.png", "read")]
    assert unzipped(packed(("large.png", bytes(1200)))) == [("large.png", "large.png: it is larger than 64 MB.")]
    bomb = unzipped(packed(*[(f"{i}.png", bytes(900)) for i in range(5)]))
    assert [name for name, _ in bomb] == ["0.png", "1.png"]
    assert "unpacks to more than" in bomb[-1][1]
    whole = packed(("image.png", b"x" * 900))
    locked = bytearray(whole)
    locked[6] |= 1
    locked[whole.index(b"PK\1\2") + 8] |= 1
    for data in (whole[:-30], b"PK\3\4", bytes(locked)):
        assert unzipped(data) == [
            (
                "all.zip",
                "all.zip: the archive is damaged, encrypted or of an unknown kind; what follows in it was not read.",
            )
        ]


def test_only_uploads_are_read_and_each_once(backend: Backend, files: Path, tmp_path: Path) -> None:
    for path in (files / "image.png", backend.uploads.folder / ".." / "image.png", backend.uploads.folder / "file"):
        with pytest.raises(UploadError, match="only files that were uploaded here are read"):
            backend.take({"path": str(path), "orig_name": "image.png"})
    assert (files / "image.png").exists()
    [file] = sent(backend, files / "image.png")
    link = backend.uploads.folder / "secret" / "hash" / "link.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(files / "image.png")
    with pytest.raises(UploadError, match="only files"):
        backend.take({"path": str(link)})
    assert backend.take(file).read() == (files / "image.png").read_bytes()
    with pytest.raises(UploadError, match="an upload is read once"):
        backend.take(file)


def test_old_uploads_are_removed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads")
    (uploads.folder / "orphan").mkdir()
    (uploads.folder / "file").touch()
    uploads.sweep(60)
    assert len(list(uploads.folder.iterdir())) == 2
    uploads.sweep(0)
    assert list(uploads.folder.iterdir()) == []
    assert oct(uploads.folder.stat().st_mode & 0o777) == "0o700"
    uploads.close()
    assert not uploads.folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell which processes run")
def test_what_a_killed_demo_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prelude.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(prelude.tempfile, "tempdir", str(tmp_path))
    dead, alive, odd = (tmp_path / f"{prelude.PREFIX}{pid}-x" for pid in (2**22 + 1, 1, "none"))
    for folder in (dead, alive, odd):
        folder.mkdir()
    made = prelude.make_folder()
    assert set(tmp_path.iterdir()) == {alive, odd, made.parent / made.name}


def test_visitors_have_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(None, a_minute=60)
    assert [limits.admit("a", now=0.0) for _ in range(61)] == [True] * 60 + [False]
    assert limits.admit("b", now=0.0)
    assert limits.admit("a", now=1.1)
    assert not limits.admit("a", now=1.2)
    for i in range(10_100):
        limits.admit(str(i), now=2.0)
    assert len(limits.visitors) <= 10_000


def scope(path: str, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "client": ("1.2.3.4", 5),
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }


def test_requests_have_limits() -> None:
    limits = Limits(None, a_minute=1)

    def refused(path: str, **headers: str) -> int | None:
        answer = limits._refusal(scope(path, {k.replace("_", "-"): v for k, v in headers.items()}))
        return answer and answer.status_code

    assert refused("/gradio_api/upload") == 411
    assert refused("/gradio_api/upload", content_length=str(65 * 2**20)) == 413
    assert refused("/gradio_api/queue/join", content_length=str(2**21)) == 413
    assert refused("/gradio_api/upload", content_length=str(60 * 2**20)) is None
    assert refused("/gradio_api/upload", content_length="1") == 429
    assert refused("/gradio_api/mcp/", content_length=str(80 * 2**20), x_forwarded_for="5.6.7.8, 1.2.3.4") is None


# --- addresses that clients send ---


@pytest.fixture
def website(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A website on this machine, which for once counts as public."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/slow":
                time.sleep(1)
            if self.path.partition("?")[0] in ("/moved", "/around"):
                self.send_response(302)
                self.send_header("location", "/image.png" if self.path.startswith("/moved") else "/around")
                self.end_headers()
                return
            self.send_response(404 if self.path == "/missing" else 200)
            self.end_headers()
            self.wfile.write(bytes(2000 if self.path == "/large.png" else 10))

        def log_message(self, *_: Any) -> None:
            pass

    async def public(host: str) -> str:
        return host

    monkeypatch.setattr(backend_module, "async_validate_url", public)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_addresses_are_fetched_within_limits(website: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "MAX_BYTES", 1000)
    paths = [
        asyncio.run(backend_module.fetch(f"{website}{page}", str(tmp_path)))
        for page in ("/image.png", "/moved?token=1")
    ]
    assert [Path(path).name for path in paths] == ["image.png", "moved"]
    assert Path(paths[0]).parents[1] != Path(paths[1]).parents[1]
    for page, said in (
        ("/large.png", r"large\.png: it is larger"),
        ("/missing", "missing: nothing can be fetched from there"),
    ):
        with pytest.raises(gr.Error, match=said):
            asyncio.run(backend_module.fetch(f"{website}{page}", str(tmp_path)))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    assert Path(asyncio.run(backend_module.fetch(f"{website}/..%00/..", str(tmp_path)))).name == "_"
    monkeypatch.setattr(backend_module, "FETCH", 0.1)
    with pytest.raises(gr.Error, match="slow: nothing can be fetched from there"):
        asyncio.run(backend_module.fetch(f"{website}/slow", str(tmp_path)))
    monkeypatch.setattr(backend_module, "FETCH", 30)
    with pytest.raises(gr.Error, match="around: there are too many redirects"):
        asyncio.run(backend_module.fetch(f"{website}/around", str(tmp_path)))


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/image.png",
        "http://localhost/image.png",
        "http://[::1]/image.png",
        "http:///image.png",
        "ftp://127.0.0.1/image.png",
    ],
)
def test_addresses_within_the_house_are_not_fetched(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(_: str) -> list[str]:
        return []

    monkeypatch.setattr("safehttpx.async_resolve_hostname_google", nobody)  # it would ask the network
    with pytest.raises(gr.Error, match="nothing can be fetched from there"):
        asyncio.run(backend_module.fetch(address, str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


# --- the whole of it, through its API ---


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def image(path: Path) -> Any:
    from gradio_client import handle_file

    return handle_file(path)


KINDS = ["image.png", "deep.png", "image.tiff", "turned.jpeg", "image.dcm", "study", "colour.png"]


@pytest.mark.parametrize("name", KINDS)
def test_the_same_bytes_get_the_same_answer_as_in_the_library(client: Any, files: Path, model: Path, name: str) -> None:
    said = client.predict(image(files / name), api_name="/predict")
    assert said == {**Predictor(model)(files / name).to_dict(), "source": name}
    assert said["label"] == "PNEUMONIA"
    assert (
        client.predict(image=image(files / name), operating_point="balanced", api_name="/predict")["label"] == "NORMAL"
    )


def test_a_cat_is_refused_with_reasons(client: Any, files: Path) -> None:
    said = client.predict(image(files / "cat.png"), api_name="/predict")
    assert (said["label"], said["probability"], said["status"]) == (None, None, "refused")
    assert said["reasons"]
    shown = client.predict(image(files / "cat.png"), api_name="/explain")
    assert (shown["heatmap"], shown["overlay"]) == (None, None)


def test_errors_are_sentences(client: Any, files: Path) -> None:
    from gradio_client.exceptions import AppError

    for arguments, said in (
        ((files / "broken.png",), r"^broken\.png: it is cut short"),
        ((files / "image.png", "sharp"), "^The operating point must be screening or balanced"),
    ):
        with pytest.raises(AppError, match=said) as error:
            client.predict(image(arguments[0]), *arguments[1:], api_name="/predict")
        assert "Traceback" not in str(error.value)


def test_explain_brings_two_pictures_of_the_images_shape(client: Any, files: Path) -> None:
    said = client.predict(image(files / "image.png"), "NORMAL", api_name="/explain")
    assert said["evidence_for"] == "NORMAL"
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(said[name].partition(",")[2]))) for name in ("heatmap", "overlay")
    ]
    assert [picture.size for picture in pictures] == [(256, 200)] * 2
    assert [picture.mode for picture in pictures] == ["L", "RGB"]
    assert np.asarray(pictures[0]).std() > 0


def test_batch_answers_every_image(client: Any, files: Path) -> None:
    said = client.predict(
        [image(files / name) for name in ("image.png", "broken.png", "images.zip")], api_name="/batch"
    )
    assert [row["source"] for row in said] == ["image.png", "broken.png", "image.png", "broken.png", "cat.png"]
    assert [row["status"] for row in said] == ["ok", "unreadable", "ok", "unreadable", "refused"]
    assert "cut short" in said[1]["reasons"][0]


def test_only_three_endpoints_are_public(demo: Demo) -> None:
    code, text = get(f"{demo.url}/gradio_api/info")
    endpoints = json.loads(text)["named_endpoints"]
    assert (code, set(endpoints)) == (200, {"/predict", "/explain", "/batch"})
    assert all(endpoint["description"] for endpoint in endpoints.values())
    assert [p["parameter_name"] for p in endpoints["/explain"]["parameters"]] == [
        "image",
        "label",
        "operating_point",
        "model",
    ]


def test_health_and_what_the_demo_does_not_have(demo: Demo) -> None:
    assert json.loads(get(f"{demo.url}/healthz")[1])["status"] == "ok"
    assert get(f"{demo.url}/gradio_api/deep_link")[0] == 404
    request = urllib.request.Request(f"{demo.url}/gradio_api/process_recording", b"video", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        urllib.request.urlopen(request, timeout=30)
    error.value.close()
    assert get(f"{demo.url}/gradio_api/file=/etc/passwd")[0] == 403


def test_files_of_the_server_and_addresses_within_are_not_read(demo: Demo, files: Path) -> None:
    """By hand, for the client itself would refuse."""
    for path in ("/etc/passwd", str(demo.log), f"{demo.url}/healthz"):
        file = {"path": path, "orig_name": "image.png", "meta": {"_type": "gradio.FileData"}}
        request = urllib.request.Request(
            f"{demo.url}/gradio_api/call/predict",
            json.dumps({"data": [file, None]}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            event = json.load(answer)["event_id"]
        said = get(f"{demo.url}/gradio_api/call/predict/{event}")[1]
        assert "event: error" in said
        assert "root" not in said
    assert demo.log.exists()


@pytest.mark.slow
def test_fifty_visitors_at_once_get_all_their_answers(demo: Demo, files: Path) -> None:
    """A minute of this is in benchmarks/space.py."""

    def visit(i: int) -> Any:
        return ask(demo.url, files / ("image.dcm" if i % 3 else "image.png"))

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(visit, range(100)))  # what is loaded once
        before = demo.memory() if sys.platform == "linux" else 0
        answers = list(pool.map(visit, range(200)))
        after = demo.memory() if sys.platform == "linux" else 0
    assert [answer["label"] for answer in answers] == ["PNEUMONIA"] * 200
    assert {str(answer["source"]) for answer in answers} == {"image.dcm", "image.png"}
    assert after - before < 64 * 2**20
    assert demo.uploads() == []


def test_a_taken_port_is_named(demo: Demo, model: Path, tmp_path: Path) -> None:
    port = demo.url.rpartition(":")[2]
    with (
        pytest.raises(RuntimeError, match=f"cxrlib: port {port} is taken: choose another with --port"),
        serving(tmp_path / "second", sys.executable, "-m", "cxrlib", "demo", "--port", port, "--model", str(model)),
    ):
        pass


def test_a_stopped_demo_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with serving(
        tmp_path / "place", sys.executable, "-m", "cxrlib", "demo", "--port", "{port}", "--model", str(model)
    ) as demo:
        until = time.monotonic() + 30
        while "is ready at" not in demo.log.read_text() and time.monotonic() < until:
            time.sleep(0.1)
        assert f"is ready at {demo.url}" in demo.log.read_text()
        assert len(list(demo.folder.iterdir())) == 1
        request = urllib.request.Request(
            f"{demo.url}/gradio_api/upload", b"no form", {"content-type": "multipart/form-data; boundary=x"}
        )
        with pytest.raises(urllib.error.HTTPError, match="400") as error:
            urllib.request.urlopen(request, timeout=30)
        with error.value as answer:
            assert answer.read() == b"The upload is not complete."
        demo.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while demo.process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        assert demo.process.returncode == 0
        assert list(demo.folder.iterdir()) == []
