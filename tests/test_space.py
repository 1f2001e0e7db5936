"""The demo: its pages and rules one by one, and the whole of it through its API."""

from __future__ import annotations

import asyncio
import base64
import csv
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
from space_server import ROOT, Demo, ask, serving, write_films

gr = pytest.importorskip("gradio", reason="the demo needs gradio")
pytest.importorskip("pydicom", reason="the demo reads DICOM")

SPACE = ROOT / "space"
sys.path.insert(0, str(SPACE))
import desk as desk_module  # noqa: E402
import pages as pages_module  # noqa: E402
import prelude  # noqa: E402
from desk import Desk, FilmError, Limits, Upload, Uploads  # noqa: E402
from pages import Pages  # noqa: E402

from cxrlib import Prediction, Predictor, cli
from cxrlib.images import decode as images  # noqa: E402
from cxrlib.images import phantom

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
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films"))


@pytest.fixture
def desk(model: Path, tmp_path: Path) -> Desk:
    return Desk(model, None, tmp_path / "uploads")


@pytest.fixture(scope="module")
def demo(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    command = (sys.executable, "-m", "cxrlib", "demo", "--port", "{port}", "--model", str(model))
    with serving(tmp_path_factory.mktemp("demo") / "place", *command) as running:
        yield running
        log = running.log.read_text()
        assert [word for word in ("Traceback", "film", "broken", "Doe", "passwd") if word in log] == [], (
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
    accepted: bool = True,
    reasons: tuple[str, ...] = (),
) -> Prediction:
    p = p if accepted else float("nan")
    chances = dict(
        zip(
            labels,
            (1 - p, p) if len(labels) == 2 else (p, *[(1 - p) / (len(labels) - 1)] * (len(labels) - 1)),
            strict=True,
        )
    )
    return Prediction(
        labels[1] if accepted else None, p, chances, 0.5 if len(labels) == 2 else None, accepted, reasons, "film"
    )


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


def test_all_files_of_the_demo_travel_in_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert settings["package-dir"]["cxrlib._space"] == "space"
    assert "cxrlib._space" in settings["packages"]
    data = {pattern.removeprefix("*") for pattern in settings["package-data"]["cxrlib._space"]}
    assert {path.suffix for path in SPACE.iterdir() if path.is_file()} <= data | {".py"}


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
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "cxrlib" / "cli.py"))
    assert cli.main(["demo"]) == 1
    assert "the demo is missing from this installation of cxrlib: install it anew" in capsys.readouterr().err


def test_an_installed_demo_is_found_before_a_stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "cxrlib" / "cli.py"))
    for folder in ("space", "cxrlib/_space"):  # another package of the name "space" beside cxrlib
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "app.py").touch()
    assert cli._space() == tmp_path / "cxrlib" / "_space"


# --- the pages ---


@pytest.fixture
def pages(model: Path) -> Pages:
    return Pages(Predictor(model))


def test_the_verdict_is_there_for_every_operating_point(pages: Pages) -> None:
    html = pages.answer(prediction(0.7))
    assert len(re.findall('data-point="screening" >', html)) == 1
    assert len(re.findall('data-point="balanced" hidden>', html)) == 1
    assert "well above the threshold of 0.1\u202f% (screening)" in html
    assert (
        "well below the threshold of over 99.9\u202f% (balanced)" in html
        or "well below the threshold of 99.9\u202f% (balanced)" in html
    )
    assert "<strong>70\u202f%</strong>" in html
    assert html.count('type="radio"') == 2
    assert html.count("checked") == 1


def test_refusals_warnings_and_errors_say_why(pages: Pages) -> None:
    refused = pages.answer(prediction(accepted=False, reasons=("it is almost blank",)))
    assert "Refused" in refused
    assert "<li>It is almost blank</li>" in refused
    assert "Calibrated" not in refused
    assert "<li>It is small</li>" in pages.answer(prediction(reasons=("it is small",)))
    assert "Not read" in pages.answer(error="film.png: it is damaged.")
    assert "film.png: it is damaged." in pages.answer(error="film.png: it is damaged.")
    assert "Nothing to show" in pages.viewer(unread=True)


def test_whatever_comes_from_outside_is_escaped(pages: Pages) -> None:
    evil = '<img src=x onerror="alert(1)">'
    film = images.read(phantom.draw(size=64))
    row = (evil, pages_module.thumbnail(film), prediction(reasons=(evil,)))
    html = [
        pages.answer(error=evil),
        pages.answer(prediction(reasons=(evil,))),
        pages.table([row, (evil, "", evil)]),
        pages.examples([(evil, film, None)]),
    ]
    assert not [text for text in html if "<img src=x" in text]
    assert all("&lt;img src=x" in text for text in html)


def test_the_table_has_a_row_for_every_film_and_a_csv_at_every_point(pages: Pages) -> None:
    rows = [
        ("=cmd|' /C calc'!A0.png", "", prediction(0.7)),
        ("b", "", prediction(accepted=False, reasons=("it is almost blank",))),
        ("c", "", "c: it is empty."),
    ]
    html = pages.table(rows)
    assert html.count("<tr>") == 4
    assert "<strong>3 films</strong>, 1 refused, 1 not read" in html
    tables = [
        list(csv.DictReader(io.StringIO(base64.b64decode(data).decode("utf-8-sig"))))
        for data in re.findall(r"data:text/csv;charset=utf-8;base64,([^\"]+)", html)
    ]
    assert [table[0]["label"] for table in tables] == ["PNEUMONIA", "NORMAL"], (
        "at the first and at the second operating point"
    )
    assert tables[0][0]["source"].startswith("'="), "no spreadsheet takes a name for a formula"
    assert [row["accepted"] for row in tables[0]] == ["True", "False", ""]
    assert [row["probability"] for row in tables[0]] == ["0.7", "", ""]
    assert tables[0][2]["reasons"] == "c: it is empty."


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
    html = pages.answer(prediction(0.6, labels=("A", "B", "C")))
    assert '<th scope="row">A</th><td>60\u202f%</td>' in html
    assert "radio" not in html
    assert "threshold" not in html
    assert html.count("<tr>") == 3
    assert "Download as CSV" in pages.table([("a", "", prediction(0.6, labels=("A", "B", "C")))])
    assert "This model was not measured" in pages.glance()
    assert pages.card() == "This model has no card."
    assert "<h1>" in pages.head()


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
        "| Source | Films | AUROC |\n| --- | --- | --- |\n| a | 1,140 NORMAL | 0.994 (0.988–0.997) |\n\n2 of 3 | 4\n"
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
    assert pages_module._percent(p) == f"{said}\u202f%"


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
def test_where_a_film_stands(p: float, threshold: float, said: str) -> None:
    assert pages_module._relation(p, threshold) == said


# --- the desk ---


def test_examples_come_from_the_phantom_the_bundle_or_a_folder(desk: Desk, model: Path, tmp_path: Path) -> None:
    assert [name for name, *_ in desk.examples] == ["Drawn film", "With an opacity", "from the bundle"]
    mine = tmp_path / "mine"
    mine.mkdir()
    for i in range(8):
        phantom.save(mine / f"film{i}.png", i, size=64)
    (mine / "film0.png").write_bytes(b"broken")  # is left out
    assert [name for name, *_ in Desk(model, mine, tmp_path / "other").examples][2:] == [
        f"film{i}" for i in range(1, 7)
    ]
    with pytest.raises(NotADirectoryError, match="no such folder"):
        Desk(model, tmp_path / "nowhere", tmp_path / "third")


def test_examples_of_a_model_on_the_hub(model: Path, tmp_path: Path) -> None:
    planted = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    with hub_server.serving() as server, hub_server.client_of(server, tmp_path / "home"):
        server.plant(
            "alice/model",
            {**planted, "examples/broken.png": b"x", "examples/notes.txt": b"x", "examples/deep/film.png": example()},
        )
        desk = Desk("hf://alice/model", None, tmp_path / "uploads")
        assert [name for name, *_ in desk.examples][2:] == ["from the bundle"]
        predictor = desk.predictor
    assert desk_module._published_examples(predictor, "hf://alice/model") == [], "the Hub is gone, the model is not"


def test_a_film_is_answered_and_another_operating_point_needs_no_other_pass(desk: Desk, films: Path) -> None:
    upload = Upload((films / "film.dcm").read_bytes(), "film.dcm")
    first, second = (desk.explain(upload, operating_point=name).prediction for name in ("screening", "balanced"))
    assert (first.label, second.label) == ("PNEUMONIA", "NORMAL")
    assert first.probability == second.probability
    assert first.source == "film.dcm"


def test_the_desk_answers_in_sentences(
    desk: Desk, films: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FilmError, match=r"^broken\.png: .+\.$"):
        desk.explain(Upload((films / "broken.png").read_bytes(), "broken.png"))
    with pytest.raises(FilmError, match="The operating point must be screening or balanced"):
        desk.explain(Upload(b"", "x"), operating_point="sharp")
    with pytest.raises(FilmError, match="The label must be NORMAL or PNEUMONIA"):
        desk.explain(Upload(b"", "x"), label="CAT")

    def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr(desk.predictor, "explain", fault)
    with pytest.raises(FilmError, match="The demo has a fault and gives no answer for this film"):
        desk.explain(Upload(b"", "x"))
    assert "RuntimeError" in caplog.text
    assert "Jane" not in caplog.text


def sent(desk: Desk, *files: Path | tuple[str, bytes]) -> list[dict[str, Any]]:
    """Uploads as Gradio describes them."""
    described = []
    for i, file in enumerate(files):
        name, data = (file.name, file.read_bytes()) if isinstance(file, Path) else file
        place = desk.uploads.folder / f"secret{i}" / "hash"
        place.mkdir(parents=True)
        (place / name).write_bytes(data)
        described.append({"path": str(place / name), "orig_name": name})
    return described


def test_one_bad_file_spoils_nothing(desk: Desk, films: Path) -> None:
    files = sent(
        desk,
        films / "broken.png",
        films / "film.png",
        films / "films.zip",
        ("notes.txt", b"no film"),
        films / "cat.png",
    )
    found = [
        (name, str(answer) if isinstance(answer, FilmError) else answer.prediction.accepted)
        for name, answer in desk.batch(files)
    ]
    assert [name for name, _ in found] == [
        "broken.png",
        "film.png",
        "film.png",
        "broken.png",
        "cat.png",
        "notes.txt",
        "cat.png",
    ]
    assert [answer for _, answer in found if isinstance(answer, bool)] == [True, True, False, False]
    assert list(desk.uploads.folder.rglob("*")) == []


def test_a_batch_has_an_end(desk: Desk, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_FILMS", 2)
    found = list(desk.batch(sent(desk, films / "films.zip", films / "film.png")))
    assert [name for name, _ in found] == ["film.png", "broken.png", "cat.png"]
    assert "at most 2 films" in str(found[-1][1])
    assert list(desk.uploads.folder.rglob("*")) == [], "what was not read is removed, too"
    with pytest.raises(FilmError, match="The operating point"):
        list(desk.batch(sent(desk, films / "film.png"), operating_point="sharp"))
    assert list(desk.uploads.folder.rglob("*")) == []


def packed(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def test_archives_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_BYTES", 1000)
    monkeypatch.setattr(desk_module, "MAX_UNPACKED", 1500)

    def unzipped(data: bytes) -> list[tuple[str, str]]:
        return [
            (name, str(found) if isinstance(found, FilmError) else "read")
            for name, found in desk_module._unzip(Upload(data, "all.zip"))
        ]

    assert unzipped(
        packed(("a/b/film.png", b"x" * 900), ("a/", b""), (".hidden", b"x"), ("__MACOSX/film.png", b"x"))
    ) == [("film.png", "read")]
    assert unzipped(packed(("large.png", bytes(1200)))) == [("large.png", "large.png: the file is larger than 64 MB.")]
    bomb = unzipped(packed(*[(f"{i}.png", bytes(900)) for i in range(5)]))
    assert [name for name, _ in bomb] == ["0.png", "1.png"]
    assert "unpacks to more than" in bomb[-1][1]
    whole = packed(("film.png", b"x" * 900))
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


def test_only_uploads_are_read_and_each_once(desk: Desk, films: Path, tmp_path: Path) -> None:
    for path in (films / "film.png", desk.uploads.folder / ".." / "film.png", desk.uploads.folder / "file"):
        with pytest.raises(FilmError, match="only files that were uploaded here are read"):
            desk.take({"path": str(path), "orig_name": "film.png"})
    assert (films / "film.png").exists()
    [file] = sent(desk, films / "film.png")
    link = desk.uploads.folder / "secret" / "hash" / "link.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(films / "film.png")
    with pytest.raises(FilmError, match="only files"):
        desk.take({"path": str(link)})
    assert desk.take(file).read() == (films / "film.png").read_bytes()
    with pytest.raises(FilmError, match="an upload is read once"):
        desk.take(file)


def test_what_nobody_asks_about_is_removed(tmp_path: Path) -> None:
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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells nobody who lives")
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
                self.send_header("location", "/film.png" if self.path.startswith("/moved") else "/around")
                self.end_headers()
                return
            self.send_response(404 if self.path == "/missing" else 200)
            self.end_headers()
            self.wfile.write(bytes(2000 if self.path == "/large.png" else 10))

        def log_message(self, *_: Any) -> None:
            pass

    async def public(host: str) -> str:
        return host

    monkeypatch.setattr(desk_module, "async_validate_url", public)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_addresses_are_fetched_within_limits(website: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_BYTES", 1000)
    paths = [
        asyncio.run(desk_module.fetch(f"{website}{page}", str(tmp_path))) for page in ("/film.png", "/moved?token=1")
    ]
    assert [Path(path).name for path in paths] == ["film.png", "moved"]
    assert Path(paths[0]).parents[1] != Path(paths[1]).parents[1]
    for page, said in (
        ("/large.png", r"large\.png: the file is larger"),
        ("/missing", "missing: nothing can be fetched from there"),
    ):
        with pytest.raises(gr.Error, match=said):
            asyncio.run(desk_module.fetch(f"{website}{page}", str(tmp_path)))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    assert Path(asyncio.run(desk_module.fetch(f"{website}/..%00/..", str(tmp_path)))).name == "_"
    monkeypatch.setattr(desk_module, "FETCH", 0.1)
    with pytest.raises(gr.Error, match="slow: nothing can be fetched from there"):
        asyncio.run(desk_module.fetch(f"{website}/slow", str(tmp_path)))
    monkeypatch.setattr(desk_module, "FETCH", 30)
    with pytest.raises(gr.Error, match="around: it is moved too often"):
        asyncio.run(desk_module.fetch(f"{website}/around", str(tmp_path)))


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/film.png",
        "http://localhost/film.png",
        "http://[::1]/film.png",
        "http:///film.png",
        "ftp://127.0.0.1/film.png",
    ],
)
def test_addresses_within_the_house_are_not_fetched(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(_: str) -> list[str]:
        return []

    monkeypatch.setattr("safehttpx.async_resolve_hostname_google", nobody)  # it would ask the network
    with pytest.raises(gr.Error, match="nothing can be fetched from there"):
        asyncio.run(desk_module.fetch(address, str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


# --- the whole of it, through its API ---


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def film(path: Path) -> Any:
    from gradio_client import handle_file

    return handle_file(path)


@pytest.mark.parametrize("name", ["film.png", "film.dcm", "study", "colour.png"])
def test_predict_gives_the_fields_of_a_prediction(client: Any, films: Path, model: Path, name: str) -> None:
    said = client.predict(film(films / name), api_name="/predict")
    assert said == {**Predictor(model)(films / name).to_dict(), "source": name}
    assert said["accepted"]
    assert said["label"] == "PNEUMONIA"
    assert client.predict(film=film(films / name), operating_point="balanced", api_name="/predict")["label"] == "NORMAL"


def test_a_cat_is_refused_with_reasons(client: Any, films: Path) -> None:
    said = client.predict(film(films / "cat.png"), api_name="/predict")
    assert (said["label"], said["probability"], said["accepted"]) == (None, None, False)
    assert said["reasons"]
    shown = client.predict(film(films / "cat.png"), api_name="/explain")
    assert (shown["heatmap"], shown["overlay"]) == (None, None)


def test_errors_are_sentences(client: Any, films: Path) -> None:
    from gradio_client.exceptions import AppError

    for arguments, said in (
        ((films / "broken.png",), r"^broken\.png: it is damaged or not complete"),
        ((films / "film.png", "sharp"), "^The operating point must be screening or balanced"),
    ):
        with pytest.raises(AppError, match=said) as error:
            client.predict(film(arguments[0]), *arguments[1:], api_name="/predict")
        assert "Traceback" not in str(error.value)


def test_explain_brings_two_pictures_of_the_films_shape(client: Any, films: Path) -> None:
    said = client.predict(film(films / "film.png"), "NORMAL", api_name="/explain")
    assert said["evidence_for"] == "NORMAL"
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(said[name].partition(",")[2]))) for name in ("heatmap", "overlay")
    ]
    assert [picture.size for picture in pictures] == [(256, 200)] * 2
    assert [picture.mode for picture in pictures] == ["L", "RGB"]
    assert np.asarray(pictures[0]).std() > 0


def test_batch_answers_every_film(client: Any, films: Path) -> None:
    said = client.predict([film(films / name) for name in ("film.png", "broken.png", "films.zip")], api_name="/batch")
    assert [row["source"] for row in said] == ["film.png", "broken.png", "film.png", "broken.png", "cat.png"]
    assert [sorted(row) == ["error", "source"] for row in said] == [False, True, False, True, False]
    assert "damaged" in said[1]["error"]


def test_only_three_endpoints_are_public(demo: Demo) -> None:
    code, text = get(f"{demo.url}/gradio_api/info")
    endpoints = json.loads(text)["named_endpoints"]
    assert (code, set(endpoints)) == (200, {"/predict", "/explain", "/batch"})
    assert all(endpoint["description"] for endpoint in endpoints.values())
    assert [p["parameter_name"] for p in endpoints["/explain"]["parameters"]] == ["film", "label", "operating_point"]


def test_health_and_what_the_demo_does_not_have(demo: Demo) -> None:
    assert json.loads(get(f"{demo.url}/healthz")[1])["status"] == "ok"
    assert get(f"{demo.url}/gradio_api/deep_link")[0] == 404
    request = urllib.request.Request(f"{demo.url}/gradio_api/process_recording", b"video", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        urllib.request.urlopen(request, timeout=30)
    error.value.close()
    assert get(f"{demo.url}/gradio_api/file=/etc/passwd")[0] == 403


def test_files_of_the_server_and_addresses_within_are_not_read(demo: Demo, films: Path) -> None:
    """By hand, for the client itself would refuse."""
    for path in ("/etc/passwd", str(demo.log), f"{demo.url}/healthz"):
        file = {"path": path, "orig_name": "film.png", "meta": {"_type": "gradio.FileData"}}
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
def test_fifty_visitors_at_once_get_all_their_answers(demo: Demo, films: Path) -> None:
    """A minute of this is in benchmarks/space.py."""

    def visit(i: int) -> Any:
        return ask(demo.url, films / ("film.dcm" if i % 3 else "film.png"))

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(visit, range(100)))  # what is loaded once
        before = demo.memory() if sys.platform == "linux" else 0
        answers = list(pool.map(visit, range(200)))
        after = demo.memory() if sys.platform == "linux" else 0
    assert [answer["label"] for answer in answers] == ["PNEUMONIA"] * 200
    assert {str(answer["source"]) for answer in answers} == {"film.dcm", "film.png"}
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
