"""Bulk prediction: the same answers as one process gives, one row an image whatever happens, and none done twice."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from cxrlib import Predictor, cli
from cxrlib import ray as bulk
from cxrlib.images import phantom

pytestmark = [
    pytest.mark.filterwarnings(rf"ignore::{kind}:ray\.")
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two workers on this machine."""
    ray = pytest.importorskip("ray", reason="needs the [ray] extra")
    pytest.importorskip("ray.data", reason="needs the [ray] extra")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), path])  # for the workers
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    for tries in range(3):
        try:
            ray.init(address="local", object_store_memory=100 * 2**20, **options)
            break
        except Exception:  # a machine that is busy with other things does not start it within Ray's 30 s
            if tries == 2:
                raise
    yield ray
    ray.shutdown()
    os.environ["PYTHONPATH"] = path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of images: one is refused, one is damaged, one has a name that is not Unicode."""
    folder = phantom.write(tmp_path_factory.mktemp("images"), n=30, size=64, seed=5)
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    content = min((folder / "NORMAL").iterdir()).read_bytes()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(content)
    Image.new("L", (64, 64)).save(folder / "blank.png")
    return folder


def table(folder: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return [row for file in sorted(folder.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]


def expected(predictor: Predictor, sources: list[str]) -> dict[str, dict[str, Any]]:
    """What one process answers, as rows."""
    answers = zip(sources, predictor.stream(sources, errors="return"), strict=True)
    named = ((source.encode("utf-8", "backslashreplace").decode(), answer) for source, answer in answers)
    return {name: {**answer.to_dict(flat=True), "source": name} for name, answer in named}


def test_two_workers_answer_as_one_process_and_a_stopped_run_goes_on(cluster, gated, images, tmp_path):
    predictor, out = Predictor(gated, threads=1), tmp_path / "out"
    sources = bulk.find(images)
    wanted = expected(predictor, sources)
    done = bulk.predict(images, out, predictor=predictor, workers=2, progress=False)
    rows = table(out)
    assert {row["source"]: row for row in rows} == wanted
    assert len(rows) == len(sources) == 63 == done.images
    assert done.unreadable == 1 == [row["status"] for row in rows].count("unreadable")
    assert done.refused == [row["status"] for row in rows].count("refused") >= 1
    assert (done.answered, done.before) == (63 - done.refused - 1, 0)

    again = bulk.predict(images, out, predictor=predictor, workers=1, progress=False)
    assert again == bulk.Summary(63, done.refused, 1, 63)
    first, *_ = sorted(out.glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:200])  # as a killed writer leaves it
    resumed = bulk.predict([images, images / "blank.png"], out, predictor=predictor, workers=2, progress=False)
    assert resumed.images == 63
    assert 0 < resumed.before < 63
    assert {row["source"]: row for row in table(out)} == wanted
    assert len(table(out)) == 63

    other = Predictor(gated, threshold=0.123)
    with pytest.raises(FileExistsError, match="holds answers of another model, threshold or gate"):
        bulk.predict(images, out, predictor=other, progress=False)


def test_the_command_line(cluster, tiny, images, tmp_path, capsys):
    names = sorted((images / "NORMAL").iterdir())[:3]
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,age\n{os.path.relpath(names[0], tmp_path)},40\n{names[1]},50\n")
    words = ["predict", str(manifest), names[2].as_uri(), str(tmp_path / "nowhere.png"), "--model", str(tiny)]
    words += ["--engine", "ray", "--output", str(tmp_path / "out"), "--workers", "2"]
    assert cli.main(words) == 1
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'out'}\n"
    assert "4 images: 3 answered" in told.err
    rows = {row["source"]: row for row in table(tmp_path / "out")}
    assert rows.keys() == {*map(str, names), str(tmp_path / "nowhere.png")}
    p = Predictor(tiny)(names[2])
    assert (rows[str(names[2])]["probability"], rows[str(names[2])]["label"]) == (p.probability, p.label)
    assert rows[str(tmp_path / "nowhere.png")]["reasons"] == f"{tmp_path / 'nowhere.png'}: no such file"
    assert cli.main(words) == 1
    assert "4 done before" in capsys.readouterr().err


def test_an_error_of_a_worker_stops_the_run_and_keeps_what_is_done(cluster, tiny, tmp_path, monkeypatch):
    sources = bulk.find(phantom.write(tmp_path / "images", n=2, size=32))
    with pytest.raises(OSError, match=r"memory-nowhere://a\.png cannot be reached"):
        bulk.predict([*sources, "memory-nowhere://a.png"], tmp_path / "out", predictor=Predictor(tiny), progress=False)


def test_images_are_found_at_addresses(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name in ("b.png", "a.dcm", "deep/c.JPG", "deep/.hidden.png", "__MACOSX/x.png", "readme.txt"):
        system.pipe_file(f"/archive/{name}", b"content")
    wanted = [f"memory:///archive/{name}" for name in ("a.dcm", "b.png", "deep/c.JPG")]
    assert bulk.find("memory://archive") == wanted
    assert bulk.find(["memory:///archive/b.png", "memory://archive"]) == [wanted[1], wanted[0], wanted[2]]
    system.pipe_file("/archive/list.csv", "Path;age\ndeep/c.JPG;4\nhttps://host/x.png;\n;\n".encode("utf-8-sig"))
    assert bulk.find("memory://archive/list.csv") == ["memory://archive/deep/c.JPG", "https://host/x.png"]
    (tmp_path / "b.png").write_bytes(b"")
    assert bulk.find([tmp_path / "b.png", (tmp_path / "b.png").as_uri()]) == [str(tmp_path / "b.png")]


class Drive:
    """A file system that answers as told."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def cat_file(self, path: str, end: int) -> object:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_fetching(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(bulk, "time", SimpleNamespace(sleep=waits.append))
    for answers, found, waited in (
        ([b"content"], b"content", 0),
        ([OSError("busy"), TimeoutError(), b"content"], b"content", 2),
        ([FileNotFoundError()], "s3://bucket/a.png", 0),
    ):
        waits.clear()
        drive = Drive(*answers)
        monkeypatch.setattr(bulk, "_reach", lambda address, drive=drive: (drive, "bucket/a.png"))
        assert bulk._source("s3://bucket/a.png") == found
        assert len(waits) == waited
    for error in (PermissionError("not yours"), *[OSError("busy")]):
        drive = Drive(*[error] * 4)
        monkeypatch.setattr(bulk, "_reach", lambda address, drive=drive: (drive, "bucket/a.png"))
        with pytest.raises(OSError, match=re.escape(f"s3://bucket/a.png cannot be fetched: {error}")):
            bulk._source("s3://bucket/a.png")
    assert bulk._source("https://host/a.png") == "https://host/a.png"


def test_mistakes_are_named(tiny, tmp_path):
    with pytest.raises(ValueError, match=f"there are no images in '{tmp_path}'"):
        bulk.find(tmp_path)
    with pytest.raises(ValueError, match="there are no images in an empty list"):
        bulk.find([])
    for address in (
        "ftp://me:secret@host/images",
        "https://host/image.png?token=secret",
        "zip://a.png::ftp://me:secret@host/images.zip",
    ):
        with pytest.raises(ValueError, match="an address must not hold a password or a query") as caught:
            bulk.find(address)
        assert "secret" not in str(caught.value)
    (tmp_path / "list.csv").write_bytes(b"path\ncaf\xe9.png\n")
    with pytest.raises(ValueError, match=r"list\.csv is not a CSV manifest in UTF-8"):
        bulk.find(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("file,label\na.png,x\n")
    with pytest.raises(ValueError, match=r"list\.csv must have a column path\. Received: file, label"):
        bulk.find(tmp_path / "list.csv")
    with pytest.raises(FileNotFoundError):
        bulk.find(tmp_path / "nowhere.csv")
    pytest.importorskip("ray", reason="needs the [ray] extra")
    with pytest.raises(ValueError, match=r"workers must be at least 1\. Received: workers=0"):
        bulk.predict(tmp_path, tmp_path / "out", workers=0)
    phantom.write(tmp_path / "images", n=1, size=32)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "other.parquet").write_bytes(b"")
    with pytest.raises(FileExistsError, match="holds other tables"):
        bulk.predict(tmp_path / "images", tmp_path / "taken", predictor=Predictor(tiny))
    assert os.listdir(tmp_path / "taken") == ["other.parquet"]


def test_a_driver_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"s3:// addresses need a driver of fsspec: .*s3fs"):
        bulk.find("s3://bucket/images")


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["predict", "image.png", "--engine", "ray", "--output", str(tmp_path)]) == 1
    assert 'bulk prediction needs Ray: pip install "cxrlib[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--engine", "ray"], ["--engine", "ray", "--output", "x", "--json"], ["--output", "x"], ["--workers", "2"]],
)
def test_words_that_do_not_fit_together(words, capsys):
    assert cli.main(["predict", "image.png", *words]) == 2
    assert "--engine ray" in capsys.readouterr().err
