"""Predictor: the same bits in, the same answer out, whatever they come in; a stated refusal or a named error for
everything else."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
from PIL import Image

from cxrlib import BundleError, ImageError, Prediction, Predictor
from cxrlib.images import phantom
from cxrlib.images.decode import fit, read

POINTS = {"screening": 0.3, "balanced": 0.6}


def picture(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form, **options)
    return data.getvalue()


def drawn(seed: int = 0, **options: Any) -> np.ndarray:
    return phantom.draw(seed, size=96, **options)


@pytest.fixture(scope="module")
def predictor(tiny: Path) -> Predictor:
    return Predictor(tiny, threads=2)


@pytest.fixture(scope="module")
def default() -> Predictor:
    """The model that comes with cxrlib, without its gate, which may think of a drawing as it likes."""
    return Predictor(threads=2, gate=False)


# --- the answer ---


def test_an_answer_says_everything(predictor: Predictor) -> None:
    p = predictor(drawn())
    assert 0 < p.probability < 1
    assert p.probabilities == {"NORMAL": pytest.approx(1 - p.probability), "PNEUMONIA": p.probability}
    assert p.threshold == predictor.threshold == 0.3
    assert p.label == predictor.labels[p.probability >= 0.3]
    assert p.status == "ok"
    assert p.source == "array"
    assert p.to_dict() == json.loads(json.dumps(p.to_dict()))
    assert set(p.to_dict()) == {field.name for field in dataclasses.fields(Prediction)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.label = None  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(p)) == p


def test_a_threshold_is_met_by_what_reaches_it(predictor: Predictor) -> None:
    p = predictor(drawn())
    assert [p.at(t).label for t in (0, p.probability, np.nextafter(p.probability, 2))] == [
        "PNEUMONIA",
        "PNEUMONIA",
        "NORMAL",
    ]
    assert p.at(0.9).probability == p.probability
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\]\. Received: threshold="):
            p.at(wrong)


def test_operating_points_have_names(tiny: Path) -> None:
    for name, threshold in POINTS.items():
        assert Predictor(tiny, operating_point=name).threshold == threshold
    assert Predictor(tiny, threshold=0.45)(drawn()).threshold == 0.45
    with pytest.raises(ValueError, match=r"operating_point must be one of screening, balanced\. Received: 'perfect'"):
        Predictor(tiny, operating_point="perfect")
    with pytest.raises(
        ValueError, match=r"give an operating point or a threshold, not both\. Received: 'balanced' and 0\.5"
    ):
        Predictor(tiny, operating_point="balanced", threshold=0.5)
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\]\. Received: threshold=1\.5"):
        Predictor(tiny, threshold=1.5)


def test_a_model_without_operating_points(tmp_path: Path) -> None:
    folder = tiny_network.write(tmp_path, tiny_network.files(operating_points={}, default_point=None))
    assert Predictor(folder).threshold == 0.5
    with pytest.raises(ValueError, match="must be one of none: this model has none"):
        Predictor(folder, operating_point="balanced")


def test_probabilities_are_calibrated(tiny: Path, tmp_path: Path) -> None:
    hot = tiny_network.write(tmp_path, tiny_network.files(temperature=2.6))

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    usual, doubled = (logit(Predictor(folder)(drawn()).probability) for folder in (tiny, hot))
    assert doubled == pytest.approx(usual / 2)


def test_where_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no bundle at"):
        Predictor(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"is not a cxrlib bundle: it has no config\.json"):
        Predictor(tmp_path)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        Predictor(tiny_network.write(tmp_path / "tiny", tiny_network.files()), threads=0)


# --- inputs ---


def sources(pixels: np.ndarray, folder: Path) -> dict[str, Any]:
    """The same pixels in every form that keeps their bits."""
    png = picture(pixels)
    path = folder / "image.png"
    path.write_bytes(png)
    deep = pixels.astype(np.uint16) * 257
    return {
        "path": str(path),
        "Path": path,
        "file URL": path.resolve().as_uri(),
        "bytes": png,
        "bytearray": bytearray(png),
        "memoryview": memoryview(png),
        "file": io.BytesIO(png),
        "PIL": Image.fromarray(pixels),
        "array": pixels,
        "array with a channel": pixels[..., None],
        "Fortran array": np.asfortranarray(pixels),
        "negative strides": pixels[::-1, ::-1].copy()[::-1, ::-1],
        "RGB array": np.repeat(pixels[..., None], 3, 2),
        "RGBA": picture(np.dstack([pixels, pixels, pixels, np.full_like(pixels, 255)])),
        "TIFF": picture(pixels, "TIFF"),
        "BMP": picture(pixels, "BMP"),
        "WebP": picture(np.repeat(pixels[..., None], 3, 2), "WEBP", lossless=True),
        "uint16": deep,
        "16-bit PNG": picture(deep),
        "float32": pixels.astype(np.float32) / np.float32(255),
    }


ROUNDED = ("uint16", "16-bit PNG", "float32")  # kept as they are, not rounded to 8 bits between the filter's two passes


def test_the_same_bits_give_the_same_answer(default: Predictor, tmp_path: Path) -> None:
    pixels = phantom.draw(3, opacity=True, size=300)[:, 20:280]
    answers = {kind: default(source) for kind, source in sources(pixels, tmp_path).items()}
    wanted = answers["array"].probabilities
    for kind, answer in answers.items():
        if kind in ROUNDED:
            assert answer.probability == pytest.approx(wanted["PNEUMONIA"], abs=0.1), kind
            seen = fit(read(sources(pixels, tmp_path)[kind])) - fit(read(pixels))
            assert np.abs(seen).max() < 1.5 / 255, kind
        else:
            assert answer.probabilities == wanted, kind
    assert answers["path"].source == str(tmp_path / "image.png")
    assert answers["bytes"].source == "bytes"


def test_the_same_bits_as_dicom(default: Predictor) -> None:
    pydicom = pytest.importorskip("pydicom")
    from drawn_dicom import dataset, saved

    pixels = phantom.draw(4, size=300)
    wanted = default(pixels).probabilities
    plain = dataset(pixels)
    assert default(plain).probabilities == wanted
    assert default(saved(plain)).probabilities == wanted
    inverted = dataset(255 - pixels, PhotometricInterpretation="MONOCHROME1")
    assert default(saved(inverted)).probabilities == wanted
    assert isinstance(inverted, pydicom.Dataset)
    guarded = Predictor()
    lateral = guarded(dataset(pixels, ViewPosition="LL"))
    assert lateral.status == "refused"
    assert lateral.reasons[0] == "its header says that it is a lateral or oblique view (LL)"
    scan = guarded(dataset(pixels, Modality="CT"))
    assert scan.reasons[0] == "its header says that it is not a plain radiograph (modality CT)"


def test_a_jpeg_from_anywhere(default: Predictor, shared: Path, tmp_path: Path) -> None:
    path = sorted((shared / "data" / "native").rglob("*.jpeg"))[0]
    data = path.read_bytes()
    with path.open("rb") as file:
        answers = [default(source) for source in (path, str(path), data, file, io.BytesIO(data))]
    assert len({a.probability for a in answers}) == 1


def test_a_url(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(picture(drawn()))

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            root = f"http://127.0.0.1:{server.server_port}"
            answer = predictor(f"{root}/image.png?token=secret")
            with pytest.raises(ImageError, match="it cannot be downloaded"):
                predictor(f"{root}/other.png")
        finally:
            server.shutdown()
            thread.join()
    assert answer.probability == predictor(drawn()).probability
    assert answer.source == f"{root}/image.png"


# --- garbage ---


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large, with little in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("image.png", picture(drawn()))
    return data.getvalue()


GARBAGE: dict[str, tuple[Any, str]] = {
    "empty": (b"", "bytes: it is empty"),
    "noise": (bytes(range(256)) * 9, "bytes: it is not a JPEG, PNG, TIFF, BMP, WebP, GIF or DICOM file"),
    "zip": (zipped(), "bytes: it is a zip archive, not a JPEG"),
    "a page": (b"<html>", "bytes: it is a web page or XML, not a JPEG"),
    "cut short": (picture(drawn())[:1500], "bytes: it is cut short"),
    "cut JPEG": (picture(drawn(), "JPEG")[:700], "bytes: it is (cut short|damaged)"),
    "bomb": (bomb(60_000, 60_000), r"it has 60000 x 60000 pixels, more than the 30,000,000 that are read"),
    "strip": (np.zeros((1, 100_000), np.uint8), "it is a strip of 1 x 100000 pixels, not a radiograph"),
    "thin PNG": (bomb(100_000, 1), "it is a strip of 1 x 100000 pixels, not a radiograph"),
    "nan": (np.full((300, 300), np.nan), "it holds NaN values"),
    "infinite": (np.full((300, 300), np.inf), r"floating-point pixels must lie in \[0, 1\]"),
    "0 to 255 as floats": (
        drawn().astype(float),
        r"must lie in \[0, 1\]; divide by the value that means white\. Received: from \d+ to 2\d\d",
    ),
    "int64": (
        drawn().astype(np.int64),
        r"an array must be uint8, uint16, or floating point in \[0, 1\]\. Received: dtype=int64",
    ),
    "bool": (drawn() > 9, "Received: dtype=bool"),
    "4-D": (drawn()[None, ..., None], r"an array must have the shape \(H, W\).* Received: shape=\(1, 96, 96, 1\)"),
    "no pixels": (np.zeros((0, 5), np.uint8), "it has no pixels"),
    "no file": ("nowhere/image.png", "nowhere/image.png: no such file"),
    "a folder": (str(Path(__file__).parent), "it is a folder, not an image"),
    "a text file object": (io.StringIO("text"), "must be opened in binary mode"),
    "a far file": ("file://elsewhere/image.png", "a file URL must name this machine"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_has_a_name(predictor: Predictor, kind: str) -> None:
    source, message = GARBAGE[kind]
    with pytest.raises(ImageError, match=message):
        predictor(source)


@pytest.mark.parametrize("source", [None, 3, {"pixels": 1}, [drawn()], object()])
def test_what_is_no_source_is_a_type_error(predictor: Predictor, source: Any) -> None:
    with pytest.raises(TypeError, match="a source must be a path, a URL, bytes"):
        predictor(source)


# --- many images ---


def test_many_images_come_back_in_order(predictor: Predictor, tmp_path: Path) -> None:
    mixed = [
        drawn(0),
        picture(drawn(1)),
        Image.fromarray(drawn(2)),
        io.BytesIO(picture(drawn(3))),
        phantom.save(tmp_path / "4.png", 4, size=96),
    ]
    wanted = [predictor(drawn(i)).probability for i in range(5)]
    assert [p.probability for p in predictor.predict(mixed)] == wanted
    assert [p.probability for p in predictor.predict((drawn(i) for i in range(5)), prefetch=2)] == wanted
    assert [p.probability for p in predictor.predict(np.stack([drawn(i) for i in range(5)]), prefetch=1)] == wanted
    assert predictor.predict([]) == []


def test_answers_do_not_wait_for_a_batch(predictor: Predictor) -> None:
    asked = []

    def endless() -> Any:
        i = 0
        while True:
            asked.append(i)
            yield drawn(i % 3)
            i += 1
            time.sleep(0.02)

    stream = predictor.stream(endless(), prefetch=64)
    assert [next(stream).status for _ in range(3)] == ["ok"] * 3
    assert len(asked) < 40
    stream.close()  # type: ignore[attr-defined]


def test_answers_to_slow_images_do_not_wait_for_others(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = predictor._answer
    begun: list[int] = []

    def slowly(source: np.ndarray, **options: Any) -> Any:
        begun.append(1)
        time.sleep(0.4)
        return answer(source, **options)

    monkeypatch.setattr(predictor, "_answer", slowly)
    stream = predictor.stream([drawn(0)] * 32, prefetch=16)
    assert next(stream).status == "ok"
    assert len(begun) < 8  # half of the images under way were not waited for
    stream.close()  # type: ignore[attr-defined]


def test_whoever_leaves_a_stream_does_not_wait_for_its_downloads(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected, lines, answer = threading.Event(), [], predictor._answer

    def after_the_download_has_begun(source: Any, **options: Any) -> Any:
        if not isinstance(source, str):
            connected.wait(10)
        return answer(source, **options)

    def accept() -> None:
        lines.append(silent.accept()[0])
        connected.set()

    monkeypatch.setattr(predictor, "_answer", after_the_download_has_begun)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(10)
        threading.Thread(target=accept, daemon=True).start()
        stream = predictor.stream([drawn(0), f"http://127.0.0.1:{silent.getsockname()[1]}/image.png"], prefetch=2)
        assert next(stream).status == "ok"
        assert connected.is_set()
        start = time.monotonic()
        stream.close()  # type: ignore[attr-defined]
        assert time.monotonic() - start < 5
        lines[0].close()


def test_one_bad_image_among_many(predictor: Predictor) -> None:
    mixed = [drawn(0), b"garbage", drawn(1)]
    first, bad, last = predictor.stream(mixed, errors="return")
    assert bad.status == "unreadable"
    assert bad.reasons[0].startswith("bytes: it is not a JPEG")
    assert math.isnan(bad.probability)
    assert predictor.predict(mixed, errors="return")[::2] == [first, last]
    assert (first, last) == (predictor(drawn(0)), predictor(drawn(1)))
    seen = []
    with pytest.raises(ImageError, match="bytes: it is not a JPEG"):
        seen.extend(predictor.stream(mixed))
    with pytest.raises(ImageError):
        predictor.predict(mixed)


def test_what_the_sources_raise_comes_after_the_answers(predictor: Predictor) -> None:
    def failing() -> Any:
        yield drawn(0)
        yield drawn(1)
        raise LookupError("the archive has gone")

    seen: list[Prediction] = []
    with pytest.raises(LookupError, match="the archive has gone"):
        seen.extend(predictor.stream(failing()))
    assert len(seen) == 2


def test_an_extra_that_is_missing_spoils_one_image_only(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom = bytes(128) + b"DICM" + bytes(100)
    bad, good = predictor.stream([dicom, drawn()], errors="return")
    assert bad.status == "unreadable"
    assert 'pip install "cxrlib[dicom]"' in bad.reasons[0]
    assert good.status == "ok"
    with pytest.raises(ImportError, match=r'pip install "cxrlib\[dicom\]"'):
        predictor(dicom)
    with pytest.raises(ImportError, match=r'pip install "cxrlib\[dicom\]"'):
        predictor.predict([dicom])


@pytest.mark.parametrize("one", ["image.png", b"bytes", Path("image.png"), io.BytesIO(b"bytes"), drawn(), 5])
def test_a_single_image_is_no_list(predictor: Predictor, one: Any) -> None:
    with pytest.raises(
        TypeError,
        match=r"sources must be a list or another iterable of images; "
        r"call the predictor itself for a single one\. Received: ",
    ):
        predictor.predict(one)


def test_options_of_a_stream(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"prefetch must be at least 1\. Received: prefetch=0"):
        predictor.predict([], prefetch=0)
    with pytest.raises(ValueError, match=r"errors must be 'raise' or 'return'\. Received: errors='ignore'"):
        predictor.stream([], errors="ignore")  # type: ignore[call-overload]


def test_progress(predictor: Predictor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    predictor.predict([drawn(i) for i in range(3)])
    assert capsys.readouterr().err == ""
    predictor.predict([drawn(i) for i in range(3)], progress=True)
    assert "3/3" in capsys.readouterr().err


# --- what was known before ---


def test_pretest_probability(predictor: Predictor) -> None:
    p = Prediction("PNEUMONIA", 0.8, {"NORMAL": 0.2, "PNEUMONIA": 0.8}, 0.5, "ok", (), "a.png")
    after = p.given(0.5)
    assert (after.likelihood_ratio, after.probability) == (pytest.approx(4), pytest.approx(0.8))
    assert p.given(0.1).probability == pytest.approx((4 / 9) / (1 + 4 / 9))
    assert str(p.given(0.1)) == "pre-test probability 10%, likelihood ratio 4.0, post-test probability 31%"
    three = Prediction("B", 0.5, {"A": 0.2, "B": 0.5, "C": 0.3}, None, "ok", (), "a.png")
    assert three.given(1 / 3).probability == pytest.approx(0.5)  # what was not known before changes nothing
    for sure, ratio in ((1.0, 99), (0.0, 1 / 99)):
        certain = Prediction("X", sure, {"NORMAL": 1 - sure, "PNEUMONIA": sure}, 0.5, "ok", (), "a.png")
        assert certain.given(0.5).likelihood_ratio == pytest.approx(ratio)
    for wrong in (0, 1, -0.2, 20, math.nan, True):
        with pytest.raises(ValueError, match="pretest must be a probability between 0 and 1"):
            p.given(wrong)
    unread = Prediction.unreadable("a.png", "no such file", ("NORMAL", "PNEUMONIA"), 0.5)
    with pytest.raises(ValueError, match="the image was unreadable"):
        unread.given(0.2)


def test_many_threads_get_bit_identical_answers(default: Predictor) -> None:
    images = [phantom.draw(i, size=224, opacity=i % 2 == 1) for i in range(4)]
    wanted = [default(pixels) for pixels in images]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: default(images[i % 4]), range(64)))
        batches = list(pool.map(lambda _: default.predict(images), range(4)))
    assert all(answer == wanted[i % 4] for i, answer in enumerate(answers))
    assert all(batch == wanted for batch in batches)
    explained = default.explain(images[1])
    assert explained.prediction == wanted[1]


def test_threads_change_nothing_but_the_last_digits() -> None:
    pixels = phantom.draw(1, size=224)
    one, two = (Predictor(threads=n, gate=False)(pixels).probability for n in (1, 2))
    assert one == pytest.approx(two, abs=1e-5)


# --- the gate ---


def test_a_refusal_is_an_answer(gated: Path) -> None:
    p = Predictor(gated)(np.zeros((200, 200), np.uint8))
    assert (p.label, p.status, p.reasons) == (None, "refused", ("it is almost blank",))
    assert math.isnan(p.probability)
    assert all(math.isnan(value) for value in p.probabilities.values())
    assert p.to_dict()["probability"] is None
    assert p.at(0.1).label is None
    json.dumps(p.to_dict(), allow_nan=False)


def test_without_a_gate_every_answer_says_so(gated: Path, tiny: Path) -> None:
    sentence = "the gate is off: nothing checked that this is a frontal chest radiograph"
    for p in (Predictor(gated, gate=False)(np.zeros((200, 200), np.uint8)), Predictor(tiny)(drawn())):
        assert p.status == "ok"
        assert p.label
        assert p.reasons == (sentence,)
    assert sentence not in Predictor(gated)(drawn()).reasons


@pytest.mark.parametrize(
    "change",
    [
        {"bias": "high"},
        {"rest": 0.0},
        {"reach": float("nan")},
        {"weights": {"shape": [300], "dtype": "float32", "data": "AAAA"}},
        {"extra": 1},
    ],
)
def test_a_gate_that_cannot_be_trusted(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tiny_network.write(tmp_path, tiny_network.files(gate={**tiny_network.tolerant_gate(), **change}))
    with pytest.raises(BundleError, match="cannot be trusted: "):
        Predictor(folder)
    assert Predictor(folder, gate=False)(drawn()).status == "ok"


def test_a_gate_of_another_network(tmp_path: Path) -> None:
    folder = tiny_network.write(tmp_path, tiny_network.files(gate=tiny_network.tolerant_gate(features=99)))
    with pytest.raises(
        BundleError, match=r"cannot be trusted: this gate was fitted for embeddings of length 99\. Received: 16"
    ):
        Predictor(folder)


def test_real_images_pass_and_their_probabilities_differ(shared: Path) -> None:
    predictor = Predictor()
    paths = [p for label in predictor.labels for p in sorted((shared / "data" / "native" / label).iterdir())[:4]]
    answers = predictor.predict(paths)
    assert all(p.status == "ok" for p in answers), [p.reasons for p in answers]
    chance = [p.probability for p in answers]
    assert max(chance[:4]) < min(chance[4:])


# --- three labels ---


def test_three_labels_with_a_threshold_for_the_second() -> None:
    p = Prediction("C", 0.5, {"A": 0.2, "B": 0.3, "C": 0.5}, None, "ok", (), "image")
    assert (p.at(0.25).label, p.at(0.25).probability) == ("B", 0.3)
    assert p.at(0.35).label == "C"


def test_three_labels_without_operating_points(tmp_path: Path) -> None:
    folder = tiny_network.write(tmp_path, tiny_network.files(labels=("A", "B", "C")))
    predictor = Predictor(folder)
    assert predictor.threshold is None
    p = predictor(drawn())
    assert p.label == max(p.probabilities, key=p.probabilities.__getitem__)
    assert Predictor(folder, threshold=0.0)(drawn()).label == "B"
    with pytest.raises(ValueError, match="none: this model has none"):
        Predictor(folder, operating_point="balanced")


def test_the_causes_of_pneumonia() -> None:
    predictor = Predictor("causes", gate=False)
    p = predictor(phantom.draw(1, size=224))
    assert predictor.labels == ("NORMAL", "BACTERIAL", "VIRAL") == tuple(p.probabilities)
    assert sum(p.probabilities.values()) == pytest.approx(1)
    assert p.label == max(p.probabilities, key=p.probabilities.__getitem__)
    assert repr(predictor).startswith("Predictor('causes', threshold=None")
    assert pickle.loads(pickle.dumps(predictor))(phantom.draw(1, size=224)) == p
    e = predictor.explain(phantom.draw(1, size=224), label="BACTERIAL")
    assert (e.label, e.heatmap.shape) == ("BACTERIAL", (224, 224))
    assert predictor.config.license == "cc-by-4.0"


def test_the_causes_of_real_images(shared: Path) -> None:
    predictor = Predictor("causes")
    folder = shared / "data" / "chest_xray" / "test"
    for kind, pattern in (("BACTERIAL", "*_bacteria_*"), ("VIRAL", "*_virus_*"), ("NORMAL", "*NORMAL2*")):
        answers = predictor.predict(sorted(folder.rglob(pattern))[::8])
        assert len(answers) >= 10
        assert np.mean([p.label == kind for p in answers]) > 0.6, kind


# --- what is loaded ---


def test_prediction_loads_no_tensorflow(tmp_path: Path) -> None:
    phantom.save(tmp_path / "image.png", 1, size=64)
    program = f"""
import sys
from cxrlib import Predictor
p = Predictor(threads=1)
p({str(tmp_path / "image.png")!r}); p.explain({str(tmp_path / "image.png")!r}).overlay()
heavy = "tensorflow", "keras", "sklearn", "matplotlib", "scipy", "pydicom", "huggingface_hub", "gradio"
print([m for m in heavy if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
