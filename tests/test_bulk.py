"""Bulk prediction: the same answers as one process gives, one row a film whatever happens, and no film done twice."""

import contextlib
import errno
import json
import os
import re
import signal
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from cxrlib import Predictor, cli
from cxrlib import ray as bulk
from cxrlib.images import phantom
from cxrlib.predictor import UNREADABLE

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
    for tries in range(3):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=100 * 2**20,
            )
            break
        except Exception:  # a machine that is busy with other things does not start it within Ray's 30 s
            if tries == 2:
                raise
    yield ray
    ray.shutdown()
    os.environ["PYTHONPATH"] = path


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of films, and of what is none: some are refused, one is damaged, one has a name that is no Unicode."""
    folder = phantom.write(tmp_path_factory.mktemp("films"), n=30, size=64, seed=5)
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    content = min((folder / "NORMAL").iterdir()).read_bytes()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(content)
    Image.new("L", (64, 64)).save(folder / "blank.png")
    return folder


def table(folder) -> list[dict]:
    from pyarrow import parquet

    files = sorted(path for path in Path(folder).iterdir() if path.suffix == ".parquet")
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def expected(predictor: Predictor, films: list[str]) -> dict[str, dict]:
    """What one process answers, as rows."""
    rows = {}
    for film, answer in zip(films, predictor.stream(films, errors="return"), strict=True):
        name = film.encode("utf-8", "backslashreplace").decode()
        if isinstance(answer, ValueError):
            error = str(answer).encode("utf-8", "backslashreplace").decode()
            nothing = {f"probability_{label}": None for label in predictor.labels}
            row = {"label": None, "probability": None, "threshold": predictor.threshold, "accepted": False, **nothing}
            rows[name] = {"source": name, **row, "reasons": [f"{UNREADABLE}{error}"], "error": error}
            continue
        fields = answer.to_dict()
        probabilities = {f"probability_{label}": p for label, p in fields.pop("probabilities").items()}
        rows[name] = {**fields, "source": name, **probabilities, "error": None}
    return rows


def test_two_workers_answer_as_one_process(cluster, films, gated, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bulk, "_LEAST", 16)  # so that there is work for both
    predictor = Predictor(gated)
    done = bulk.predict(films, tmp_path / "out", predictor=predictor)
    found = table(tmp_path / "out")
    wanted = expected(predictor, bulk.find(films))
    assert len(found) == len(wanted) == done.films == 63
    assert {row["source"]: row for row in found} == wanted
    assert (done.refused, done.unreadable, done.before) == (
        sum(not r["accepted"] and not r["error"] for r in found),
        1,
        0,
    )
    assert done.refused >= 1
    assert done.answered == sum(row["label"] is not None for row in found)
    assert any(row["source"].endswith("caf\\udce9.png") for row in found)
    assert len(list((tmp_path / "out").iterdir())) >= 3
    assert capsys.readouterr().out == ""

    # again: nothing is done twice; with another film, that alone
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    phantom.save(tmp_path / "more.png", 99)
    more = bulk.predict([films, tmp_path / "more.png"], tmp_path / "out", predictor=predictor, workers=1)
    assert (more.films, more.before, more.unreadable) == (64, 63, 1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path in before} == before
    assert len(table(tmp_path / "out")) == 64

    # another threshold is another table
    with pytest.raises(
        FileExistsError,
        match="holds answers of another model, threshold or gate, or other tables: choose another folder",
    ):
        bulk.predict(films, tmp_path / "out", predictor=Predictor(gated, threshold=0.9))


def test_the_command_line_and_addresses(cluster, tiny, films, tmp_path, capsys, monkeypatch):
    names = sorted(path for path in films.rglob("*.png") if path.parent.name == "NORMAL")[:5]
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        for path in names:
            archive.write(path, f"deep/{path.name}")
        archive.writestr("deep/readme.txt", "no film")
        archive.writestr("deep/.hidden.png", "no film")
    zipped = f"zip://deep::file://{tmp_path / 'films.zip'}"
    manifest = tmp_path / "films.csv"
    lost = f"zip://deep/lost.png::file://{tmp_path / 'films.zip'}"
    manifest.write_text(f"path,age\n{os.path.relpath(names[0], tmp_path)},40\n{lost},50\n,\n")
    words = [
        "predict",
        zipped,
        str(manifest),
        names[1].as_uri(),
        str(tmp_path / "nowhere.png"),
        "--model",
        str(tiny),
        "--engine",
        "ray",
    ]
    assert cli.main([*words, "--output", str(tmp_path / "out"), "--workers", "2"]) == 1
    assert (
        capsys.readouterr().out
        == f"{tmp_path / 'out'}: 9 films, 7 answered, 0 refused, 2 unreadable; 0 were done before\n"
    )
    rows = {row["source"]: row for row in table(tmp_path / "out")}
    predictor = Predictor(tiny)
    for path in names:
        p, row = predictor(path), rows[f"zip://deep/{path.name}::file://{tmp_path / 'films.zip'}"]
        assert (row["probability"], row["label"], row["threshold"], row["reasons"]) == (
            p.probability,
            p.label,
            p.threshold,
            list(p.reasons),
        )
    assert rows[str(names[0])]["label"] == rows[f"zip://deep/{names[0].name}::file://{tmp_path / 'films.zip'}"]["label"]
    assert rows[lost]["error"] == f"{lost}: no such file"
    assert rows[str(tmp_path / "nowhere.png")]["reasons"] == [f"{UNREADABLE}{tmp_path / 'nowhere.png'}: no such file"]
    assert cli.main([*words, "--output", (tmp_path / "out").as_uri()]) == 1
    assert capsys.readouterr().out.endswith("9 were done before\n")
    with zipfile.ZipFile(tmp_path / "films.zip") as archive:
        broken = archive.namelist()[0]
    content = (tmp_path / "films.zip").read_bytes()
    (tmp_path / "films.zip").write_bytes(
        content.replace(b"IDAT", b"TADI", 1)
    )  # the archive notices: its films cannot be fetched
    words = [
        "predict",
        f"zip://{broken}::file://{tmp_path / 'films.zip'}",
        "--model",
        str(tiny),
        "--engine",
        "ray",
        "--output",
        str(tmp_path / "broken"),
    ]
    assert cli.main(words) == 1
    assert re.search(r"^cxrlib: zip://deep/.* cannot be fetched: .*CRC", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_worker_loses_and_doubles_nothing(cluster, tiny, tmp_path, monkeypatch):
    films, out, mark = phantom.write(tmp_path / "films", n=40, size=64, seed=5), tmp_path / "out", tmp_path / "killed"

    class Mortal(bulk._Worker):
        """Dies once, in the middle of a file, when another is done."""

        def _row(self, film, answer):
            if not mark.exists() and list(out.glob("*.parquet")):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._row(film, answer)

    monkeypatch.setattr(bulk, "_Worker", Mortal)
    (out / ".x.parquet.y.part").parent.mkdir()
    (out / ".x.parquet.y.part").touch()  # as a worker leaves that is killed while it writes
    predictor = Predictor(tiny)
    done = bulk.predict(films, out, predictor=predictor, workers=2)
    assert mark.exists()
    rows = table(out)
    assert done.films == len(rows) == 80
    assert {row["source"]: row for row in rows} == expected(predictor, bulk.find(films))
    assert all(name.endswith(".parquet") for name in os.listdir(out))


def test_a_stopped_run_goes_on(cluster, tiny, tmp_path, monkeypatch):
    films, out = phantom.write(tmp_path / "films", n=40, size=64, seed=5), tmp_path / "out"
    predictor, advance = Predictor(tiny), bulk.Progress.advance

    def stop(self, steps=1, **note):
        advance(self, steps, **note)
        if self.done:
            raise KeyboardInterrupt

    monkeypatch.setattr(bulk.Progress, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        bulk.predict(films, out, predictor=predictor, workers=1, progress=False)
    monkeypatch.setattr(bulk.Progress, "advance", advance)
    first = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    assert first
    done = bulk.predict(films, out, predictor=predictor, workers=2, progress=False)
    assert 0 < done.before <= 80
    assert first.items() <= {path.name: path.read_bytes() for path in out.glob("*.parquet")}.items()
    rows = table(out)
    assert {row["source"]: row for row in rows} == expected(predictor, bulk.find(films))
    assert len(rows) == 80


# --- without a cluster ---


def test_films_are_found_at_addresses(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name in ("b/2.PNG", "b/1.dcm", "b/notes.txt", "b/.trash/3.png", "b/deep/4.jpeg"):
        memory.pipe_file(f"/bucket/{name}", b"x")
    memory.pipe_file("/bucket/list.csv", "\ufefffile_name;age\nb/1.dcm;3\nmemory://bucket/b/2.PNG;4\n".encode())
    below = ["memory://bucket/b/1.dcm", "memory://bucket/b/2.PNG", "memory://bucket/b/deep/4.jpeg"]
    assert bulk.find("memory://bucket/b") == bulk.find("memory://bucket/b/") == below
    assert bulk.find("memory://bucket/list.csv") == below[:2]
    assert bulk.find(["memory://bucket/b/2.PNG", "memory://bucket/b", "http://example.org/5.png"]) == [
        below[1],
        below[0],
        below[2],
        "http://example.org/5.png",
    ]
    (tmp_path / "a.png").touch()
    assert bulk.find(f"{tmp_path}/a::b.png") == [f"{tmp_path}/a::b.png"]
    assert bulk.find(f"file://{tmp_path}/a%20b.png") == [f"{tmp_path}/a b.png"]
    assert bulk.find(tmp_path) == bulk.find(tmp_path.as_uri()) == [str(tmp_path / "a.png")]
    (tmp_path / "list.csv").write_text(f"path\na.png\n{tmp_path}/a.png\nb.png\n")
    assert bulk.find(tmp_path / "list.csv") == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_films_from_afar_are_fetched_ahead_and_in_order(monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    memory, names = fsspec.filesystem("memory"), [f"memory://far/{i}.png" for i in range(40)]
    for name in names:
        memory.pipe_file(name.removeprefix("memory:/"), name.encode())
    names.insert(20, "memory://far/lost.png")
    found = list(bulk._fetched(names))
    assert [source.name for source in found] == names
    with pytest.raises(ValueError, match="no such file"):
        found.pop(20).read(10)
    assert [source.read().decode() for source in found] == [name for name in names if "lost" not in name]

    waits, failures = [], iter([OSError("busy"), OSError("busy"), None])
    monkeypatch.setattr(bulk, "time", SimpleNamespace(sleep=waits.append))
    real = type(memory).open

    def shaky(self, path, *arguments, **options):
        if error := next(failures):
            raise error
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(type(memory), "open", shaky)
    assert bulk._source(names[0]).read() == names[0].encode()
    assert waits == [1.0, 2.0]
    failures = iter([OSError("busy")] * 9)
    with pytest.raises(OSError, match=r"^memory://far/0.png cannot be fetched: busy$"):
        bulk._source(names[0])
    failures = iter([PermissionError("expired")])
    with pytest.raises(OSError, match="cannot be fetched: expired"):
        bulk._source(names[0])


def test_a_disk_that_fails_stops_the_run_and_a_film_that_is_none_gets_a_row(tiny, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    predictor, folder = Predictor(tiny), bulk._Folder(str(tmp_path / "out"), b"ours")
    assert folder.rows() == {}
    worker = bulk._Worker(bulk._files(predictor), bulk._options(predictor), folder)
    phantom.save(tmp_path / "film.png", 1)
    (tmp_path / "damaged.png").write_bytes(b"no film")
    (tmp_path / "empty.png").touch()
    films = [
        str(tmp_path / name)
        for name in ("film.png", "damaged.png", "empty.png", "lost.png", "film.png/x.png", "x" * 300, ".", "a\0b")
    ]
    waits, failures = [], []
    monkeypatch.setattr(bulk, "time", SimpleNamespace(sleep=waits.append))

    def shaky(path, mode):
        if failures and path == films[0]:
            raise failures.pop()
        return open(path, mode)

    monkeypatch.setattr("cxrlib.images.sources.open", shaky, raising=False)
    for kind, times, expected_waits in ((errno.EIO, 4, [1.0, 2.0, 4.0]), (errno.EACCES, 1, [])):
        failures[:] = [OSError(kind, os.strerror(kind)) for _ in range(times)]
        said = f"{films[0]} cannot be fetched: it cannot be opened ({os.strerror(kind)})"
        assert worker({"films": [json.dumps(films[:1])]}) == {"films": [0], "error": [said]}
        assert waits == expected_waits
        waits.clear()
    assert folder.rows() == {}
    failures[:] = [OSError(errno.ESTALE, "Stale file handle")] * 2
    assert worker({"films": [json.dumps(films)]}) == {"films": [8], "error": [""]}
    assert waits == [1.0, 2.0]
    assert {row["source"]: row for row in table(tmp_path / "out")} == expected(predictor, films)
    assert list(folder.rows().values()) == [0, *[2] * 7]


def test_an_extra_that_workers_lack_stops_the_run(tiny, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "film.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    predictor, folder = Predictor(tiny), bulk._Folder(str(tmp_path / "out"), b"ours")
    worker = bulk._Worker(bulk._files(predictor), bulk._options(predictor), folder)
    [said] = worker({"films": [json.dumps([str(tmp_path / "film.dcm")])]})["error"]
    assert "film.dcm: " in said
    assert 'pip install "cxrlib[dicom]"' in said
    assert folder.rows() == {}


def test_a_server_that_fails_stops_the_run_and_a_film_that_it_has_not_gets_a_row(tmp_path, monkeypatch):
    phantom.save(tmp_path / "film.png", 1)
    content = (tmp_path / "film.png").read_bytes()
    waits, answers, over = [], [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            code = answers.pop() if answers else 200
            self.send_response(code)
            if self.path == "/cut.png":
                self.send_header("Content-Length", str(len(content) + 1))
            self.end_headers()
            with contextlib.suppress(OSError):  # nobody waits any longer
                for i in range(0, len(content), 1000):
                    self.wfile.write(content[i : i + 1000])
                    if self.path == "/slow.png" and over.wait(0.1):
                        return

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    film = f"http://127.0.0.1:{server.server_port}/film.png"
    monkeypatch.setattr(bulk, "time", SimpleNamespace(sleep=waits.append))
    try:
        answers[:] = [200, 503, 500]
        assert bulk._source(film).read() == content
        assert waits == [1.0, 2.0]
        for code in (404, 410):
            answers[:] = [code]
            with pytest.raises(ValueError, match=f"it cannot be downloaded .*{code}"):
                bulk._source(film).read()
        for code in (401, 403):
            answers[:] = [code]
            with pytest.raises(OSError, match=rf"{film} cannot be fetched: it cannot be downloaded .*{code}"):
                bulk._source(film)
        assert waits == [1.0, 2.0]
        with pytest.raises(OSError, match=r"cut\.png cannot be fetched: it cannot be downloaded \(IncompleteRead"):
            bulk._source(film.replace("film.png", "cut.png"))
        answers[:] = [503] * 4
        with pytest.raises(OSError, match=rf"{film} cannot be fetched: it cannot be downloaded .*503"):
            bulk._source(film)
        monkeypatch.setattr("cxrlib.images.sources.URL_TIMEOUT", 0.3)
        with pytest.raises(OSError, match=r"slow\.png cannot be fetched: the download took more than 0\.3 s"):
            bulk._source(film.replace("film.png", "slow.png"))
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
    assert waits == [1.0, 2.0, *[1.0, 2.0, 4.0] * 3]
    with pytest.raises(OSError, match=r"film\.png cannot be fetched: it cannot be downloaded .*refused"):
        bulk._source(film)


def test_films_here_are_read_little_ahead(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(bulk, "bytes_of", lambda film: read.append(film) or b"film")
    found = bulk._fetched([f"/{i}.png" for i in range(9)])
    assert next(found).name == "/0.png"
    assert len(read) <= 2
    assert len(list(found)) == 8


def test_work_is_divided_alike_in_every_run():
    films = [f"{i}.png" for i in range(10_000)]
    parts = bulk._divide(films, {})
    assert [film for part in parts for film in part] == films
    assert {len(part) for part in parts[:-1]} == {64}
    done = dict.fromkeys([*parts[3], *parts[7][:5]], 0)
    rest = bulk._divide(films, done)
    assert rest == [*parts[:3], *parts[4:7], parts[7][5:], *parts[8:]]
    assert max(map(len, bulk._divide([str(i) for i in range(300_000)], {}))) == 512


def test_mistakes_are_named(tiny, tmp_path, capsys, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    with pytest.raises(ValueError, match=f"there are no films in '{tmp_path}'"):
        bulk.find(tmp_path)
    with pytest.raises(ValueError, match="there are no films in an empty list"):
        bulk.find([])
    for address in (
        "ftp://me:secret@host/films",
        "https://host/film.png?token=secret",
        "zip://a.png::ftp://me:secret@host/films.zip",
    ):
        with pytest.raises(
            ValueError, match="an address must hold no password and no query, for it is written into the table"
        ) as caught:
            bulk.find(address)
        assert "secret" not in str(caught.value)
    (tmp_path / "damaged.zip").write_bytes(b"no archive")
    with pytest.raises(OSError, match=r"zip://a\.png::file://.*damaged\.zip cannot be reached: .*not a zip file"):
        bulk.find(f"zip://a.png::file://{tmp_path / 'damaged.zip'}")
    (tmp_path / "list.csv").write_bytes(b"path\ncaf\xe9.png\n")
    with pytest.raises(ValueError, match=r"list\.csv is no CSV manifest in UTF-8"):
        bulk.find(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("file,label\na.png,x\n")
    with pytest.raises(
        ValueError,
        match=r"list\.csv must begin with a line that names its columns, path among them\. Received: 'file,label'",
    ):
        bulk.find(tmp_path / "list.csv")
    with pytest.raises(FileNotFoundError):
        bulk.find(tmp_path / "nowhere.csv")
    folder = bulk._Folder(str(tmp_path / "out"), b"ours")
    assert folder.rows() == {}
    folder.write("a.parquet", b"PAR1 no more")
    with pytest.raises(ValueError, match=r"a\.parquet is damaged .*: remove it, and its films are done again"):
        folder.rows()
    os.unlink(tmp_path / "out" / "a.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "out" / "b.parquet")
    with pytest.raises(FileExistsError, match="holds answers of another model"):
        folder.rows()

    pytest.importorskip("ray", reason="needs the [ray] extra")
    with pytest.raises(ValueError, match=r"workers must be at least 1\. Received: workers=0"):
        bulk.predict(tmp_path, tmp_path / "out", workers=0)
    monkeypatch.setattr(bulk, "_run", lambda *arguments: [])
    monkeypatch.setattr(bulk, "_cluster", lambda ray: contextlib.nullcontext())
    with pytest.raises(
        RuntimeError, match=r"1 films have no row in .*, '.*a\.png' for one: is that the same folder for all workers\?"
    ):
        bulk.predict(tmp_path / "a.png", tmp_path / "empty", predictor=Predictor(tiny), progress=False)


def test_a_driver_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"s3:// addresses need a driver of fsspec: .*s3fs"):
        bulk.find("s3://bucket/films")


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["predict", "film.png", "--engine", "ray", "--output", str(tmp_path)]) == 1
    assert 'bulk prediction needs Ray: pip install "cxrlib[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--engine", "ray"], ["--engine", "ray", "--output", "x", "--json"], ["--output", "x"], ["--workers", "2"]],
)
def test_words_that_do_not_fit_together(words, capsys):
    assert cli.main(["predict", "film.png", *words]) == 2
    assert "--engine ray" in capsys.readouterr().err
