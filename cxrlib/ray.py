"""Films by the million: workers on one machine or many, through Ray Data; Parquet out, and a run that was stopped goes
on."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import logging
import os
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cxrlib import bundle
from cxrlib.config import DISCLAIMER
from cxrlib.images import decode as images
from cxrlib.images.sources import EXTENSIONS, MAX_BYTES, NOWHERE, ImageError, Source, bytes_of, local
from cxrlib.images.sources import find as find_in_folder
from cxrlib.predictor import Prediction, Predictor, unanswered
from cxrlib.progress import Progress

_FILE = (
    512  # films in a Parquet file, at most; no more than these are done again by each worker of a run that was stopped
)
_FILES = 256  # so many files before they grow to that: work for so many workers
_LEAST = 64  # films in a file, where there are as many: Ray needs some twentieths of a second for each file
_AHEAD = 16  # films that a worker fetches ahead
_AHEAD_HERE = 2  # of those on its own disks, which may be large and come fast
_WAITS = (1.0, 2.0, 4.0)  # seconds between attempts to fetch a film
_ANSWERED, _REFUSED, _UNREADABLE = range(3)


@dataclass(frozen=True)
class Summary:
    """What a run did and found.

    Args:
        films: How many films were asked for; each has one row.
        refused: How many of them the gate refused.
        unreadable: How many of them could not be read.
        before: How many of them an earlier run had done.

    Example:
        >>> Summary(films=10, refused=2, unreadable=1, before=0).answered
        7
    """

    films: int
    refused: int
    unreadable: int
    before: int

    @property
    def answered(self) -> int:
        """How many of them got a label."""
        return self.films - self.refused - self.unreadable


def predict(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    predictor: Predictor | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Predict films with a pool of workers, each with a `Predictor` of one thread, into Parquet files of one row a
    film.

    The columns are those of `Prediction.to_dict()`, with `probability_<label>` for each label, and `error`, which is
    null unless the film could not be read. A file appears whole or not at all, and films that have a row in `output`
    are not done again: a run that was stopped at any moment goes on when it is asked for again, be it with more films
    or other workers.

    Joins the Ray cluster that `RAY_ADDRESS` names or that runs on this machine, else starts one here for as long as it
    takes. The bundle travels to the workers. They need cxrlib, and the same access to films and output: where there are
    several machines, a local path must be that of a shared folder.

    Args:
        sources: Films, folders, and CSV manifests with a column `path`, as paths or as addresses that fsspec knows
            (`s3://…`, `gs://…`) and has a driver for.
        output: A folder for the Parquet files, as a path or such an address.
        predictor: Whose bundle, threshold and gate the workers use; `None` for those that come with cxrlib.
        workers: How many; `None` for one per core of the cluster.
        progress: Whether to show a line on stderr.

    Returns:
        Counts over the films that were asked for.

    Raises:
        ValueError: If there are no films, `workers` is below 1, or an address would write a secret into the table.
        FileExistsError: If `output` holds answers of another model, threshold or gate.
        OSError: If sources cannot be reached, films cannot be fetched though they are not missing, or `output` cannot
            be written. What is done stays.
        RuntimeError: If Ray does not start, or the workers' files do not arrive.
        ImportError: If Ray or fsspec's driver for an address is not installed.

    Example:
        >>> predict("s3://archive/chest", "s3://archive/answers", workers=64)  # doctest: +SKIP
        Summary(films=1000000, refused=20312, unreadable=17, before=0)
    """
    ray = _ray()
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1. Received: workers={workers!r}")
    predictor = predictor or Predictor(threads=1)
    films, folder = find(sources), _Folder(os.fspath(output), _identity(predictor))
    rows = folder.rows()
    parts = _divide(films, rows)
    left = sum(map(len, parts))
    if left:
        with _cluster(ray), Progress(len(films), "predict", shown=progress) as bar:
            bar.advance(len(films) - left)
            for n in _run(ray, parts, workers, (_files(predictor), _options(predictor), folder)):
                bar.advance(n)
        rows = folder.rows()
    if lost := [film for film in films if _text(film) not in rows]:
        raise RuntimeError(
            f"{len(lost)} films have no row in {folder.address}, {lost[0]!r} for one: "
            "is that the same folder for all workers?"
        )
    folder.tidy()
    counts = Counter(rows[_text(film)] for film in films)
    return Summary(len(films), counts[_REFUSED], counts[_UNREADABLE], len(films) - left)


def find(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """List films, each once.

    Args:
        sources: As for `predict`. In a local folder, films are what `sources.find` takes for them; at other addresses,
            files with one of `sources.EXTENSIONS`.

    Returns:
        Their addresses, in the order of the sources and sorted within a folder; local paths are absolute.

    Raises:
        ValueError: If there are none, a manifest has no column `path`, or an address would write a secret into the
            table.
        OSError: If a manifest does not exist, or an address cannot be reached.
        ImportError: If fsspec's driver for an address is not installed.

    Example:
        >>> find(["https://example.org/film.png", "https://example.org/film.png"])
        ['https://example.org/film.png']
    """
    places = [os.fspath(place) for place in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    films = dict.fromkeys(film for place in places for film in _below(place))
    if not films:
        raise ValueError(f"there are no films in {', '.join(map(repr, places)) or 'an empty list'}")
    return list(films)


def _below(place: str) -> Iterator[str]:
    """The films that a place stands for."""
    address = _plain(place)
    head, tail = _split(address)
    if head.lower().endswith(".csv"):
        yield from map(_plain, _manifest(address))
    elif _is_local(address):
        yield from map(str, find_in_folder(address)) if os.path.isdir(address) else [address]
    elif _is_web(address):
        yield address
    else:
        names = _names_below(address)
        if names is None:
            yield address
            return
        films = (
            name
            for name in names
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not any(map(_is_hidden, name.split("/")))
        )
        yield from (f"{head}{'' if head.endswith('/') else '/'}{name}{tail}" for name in sorted(films))


def _names_below(address: str) -> list[str] | None:
    """The names of all files below a folder that is not local, None for what is no folder."""
    system, path = _reach(address)
    try:
        return [name[len(path) :].lstrip("/") for name in system.find(path)] if system.isdir(path) else None
    except Exception as error:  # every driver has errors of its own
        raise OSError(f"{address} cannot be reached: {error}") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _manifest(address: str) -> Iterator[str]:
    system, path = _reach(address)
    try:
        with system.open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{address} is no CSV manifest in UTF-8 ({error})") from None
    header = text.partition("\n")[0].strip()
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    columns = {name.strip().casefold(): name for name in reader.fieldnames or ()}
    column = columns.get("path", columns.get("file_name", ""))
    if not column:
        raise ValueError(
            f"{address} must begin with a line that names its columns, path among them. Received: {header[:200]!r}"
        )
    head, tail = _split(address)
    folder = head[: max(head.rfind("/"), head.rfind(os.sep)) + 1]
    for row in reader:
        if film := (row[column] or "").strip():
            yield film if "://" in film or os.path.isabs(film) else f"{folder}{film}{tail}"


# --- addresses: absolute local paths, and others with a scheme ---


def _plain(place: str) -> str:
    """A place as it is written into the table."""
    if place.lower().startswith("file://"):
        return os.path.abspath(local(place))
    if _is_local(place):
        return os.path.abspath(place)
    parts = [urlsplit(part) for part in place.split("::")]
    if any(part.password is not None or (part.query and part.scheme in ("http", "https")) for part in parts):
        raise ValueError(
            f"an address must hold no password and no query, for it is written into the table. Received: one at {parts[0].scheme}://"
        )
    return place


def _is_local(address: str) -> bool:
    return "://" not in address


def _is_web(address: str) -> bool:
    """Whether the predictor downloads it."""
    return address.lower().startswith(("http://", "https://"))


def _split(address: str) -> tuple[str, str]:
    """An address without, and with nothing but, what its file system lies in: `zip://film.png` and `::s3://bucket/films.zip`."""
    if _is_local(address):
        return address, ""
    head, chain, rest = address.partition("::")
    return head, chain + rest


def _reach(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there."""
    import fsspec  # type: ignore[import-untyped,unused-ignore]

    if _is_local(address):
        return fsspec.filesystem("file"), address
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise ImportError(f"{address.partition('://')[0]}:// addresses need a driver of fsspec: {error}") from None
    except Exception as error:  # every driver has errors of its own, and opens archives here
        raise OSError(f"{address} cannot be reached: {error}") from error
    return system, path


# --- the output ---


class _Folder:
    """The Parquet files of one model's answers."""

    def __init__(self, output: str, identity: bytes) -> None:
        self.address, self.identity = _plain(output), identity
        self.system, self.path = _reach(self.address)

    def rows(self) -> dict[str, int]:
        """Films that have a row, and whether they were answered, refused or unreadable."""
        self.system.makedirs(self.path, exist_ok=True)
        self.system.invalidate_cache()
        files = [file for file in self.system.find(self.path, maxdepth=1) if file.endswith(".parquet")]
        with ThreadPoolExecutor(_AHEAD) as pool:
            return {film: state for part in pool.map(self._read, sorted(files)) for film, state in part}

    def _read(self, file: str) -> list[tuple[str, int]]:
        from pyarrow import ArrowInvalid, parquet  # type: ignore[import-untyped,import-not-found,unused-ignore]

        try:
            with self.system.open(file, "rb") as opened, parquet.ParquetFile(opened) as table:
                identity = (table.schema_arrow.metadata or {}).get(b"cxrlib")
                rows = table.read(["source", "accepted", "error"]).to_pydict() if identity == self.identity else {}
        except ArrowInvalid as error:
            raise ValueError(f"{file} is damaged ({error}): remove it, and its films are done again") from None
        if not rows:
            raise FileExistsError(
                f"{self.address} holds answers of another model, threshold or gate, or other tables: "
                "choose another folder"
            )
        states = (
            _UNREADABLE if error else _ANSWERED if accepted else _REFUSED
            for accepted, error in zip(rows["accepted"], rows["error"], strict=True)
        )
        return list(zip(rows["source"], states, strict=True))

    def has(self, name: str) -> bool:
        return bool(self.system.exists(f"{self.path}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        if not _is_local(self.address):
            self.system.pipe_file(f"{self.path}/{name}", content)  # object stores show an object when it is complete
            return
        part = Path(self.path, f".{name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, Path(self.path, name))
        finally:
            part.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what workers left that were killed while they wrote."""
        if _is_local(self.address):
            for part in Path(self.path).glob(".*.parquet.*.part"):
                part.unlink(missing_ok=True)


def _identity(predictor: Predictor) -> bytes:
    """What answers depend on besides the film."""
    config = predictor.config
    said = [config.files[bundle.RUNTIME], config.temperature, config.gate, _options(predictor), images.DECODER]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest().encode()


def _text(film: str) -> str:
    """A film's address as a table can hold it: the name of a file may be no Unicode."""
    return film.encode("utf-8", "backslashreplace").decode()


# --- the workers ---


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ImportError('bulk prediction needs Ray: pip install "cxrlib[ray]"') from None
    return ray


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """The cluster that there is, or one of this machine for a while."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, log.level
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells nobody that it was used
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise RuntimeError(f"Ray does not start: {error}") from error
    context.enable_progress_bars = context.print_on_execution_start = False
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before[:2]
        log.setLevel(before[2])
        if own:
            ray.shutdown()


def _options(predictor: Predictor) -> dict[str, Any]:
    return {"threshold": predictor.threshold, "gate": predictor._gate is not None}


def _files(predictor: Predictor) -> dict[str, bytes]:
    return {name: (predictor.folder / name).read_bytes() for name in (bundle.CONFIG, *predictor.config.files)}


def _divide(films: list[str], rows: Container[str]) -> list[list[str]]:
    """The films of each file, without those that have a row; the same ones in every run, so that a worker of a stopped
    run that is still at it does no harm."""
    size = min(_FILE, max(_LEAST, len(films) // _FILES))
    parts = ([film for film in films[i : i + size] if _text(film) not in rows] for i in range(0, len(films), size))
    return [part for part in parts if part]


def _run(ray: Any, parts: list[list[str]], workers: int | None, arguments: tuple[Any, ...]) -> Iterator[int]:
    """Have the files made; gives the number of films in each that is."""
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    workers = min(workers or cores, len(parts))
    tasks = [{"films": json.dumps(part)} for part in parts]
    pool = ray.data.ActorPoolStrategy(min_size=min(workers, cores), max_size=workers)
    given = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    done = given.map_batches(_Worker, fn_constructor_args=arguments, batch_size=1, compute=pool, num_cpus=1)
    for row in done.iter_rows():
        if row["error"]:
            raise OSError(row["error"])
        yield row["films"]


class _Worker:
    """One predictor of one thread, in a process of its own."""

    def __init__(self, files: Mapping[str, bytes], options: Mapping[str, Any], folder: _Folder) -> None:
        with tempfile.TemporaryDirectory(prefix="cxrlib-") as place:
            for name, content in files.items():
                Path(place, name).parent.mkdir(exist_ok=True)
                Path(place, name).write_bytes(content)
            self._predictor = Predictor(place, threads=1, **options)
        self._folder = folder

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Predict the films of one file and write it, unless a worker that died has done so; an error that ends the run
        is handed back in plain words."""
        [text] = batch["films"]
        films = json.loads(text)
        # a file that is made twice is made in one place
        name = f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"
        try:
            if not self._folder.has(name):
                answers = self._predictor.stream(_fetched(films), batch_size=2, errors="return")
                self._folder.write(
                    name,
                    _table(
                        [self._row(film, answer) for film, answer in zip(films, answers, strict=True)],
                        self._folder.identity,
                    ),
                )
        except OSError as error:
            return {"films": [0], "error": [_text(str(error))]}
        return {"films": [len(films)], "error": [""]}

    def _row(self, film: str, answer: Prediction | ImageError) -> dict[str, Any]:
        error = None
        if isinstance(answer, ImageError):
            if isinstance(answer.__cause__, ImportError):  # an extra that the workers lack is not the film's fault
                raise OSError(str(answer))
            error = _text(str(answer))
            answer = unanswered(film, error, self._predictor)
        fields = answer.to_dict()
        probabilities = {f"probability_{label}": p for label, p in fields.pop("probabilities").items()}
        return {
            "source": _text(film),
            **{name: fields[name] for name in ("label", "probability", "threshold", "accepted")},
            **probabilities,
            "reasons": fields["reasons"],
            "error": error,
        }


def _table(rows: list[dict[str, Any]], identity: bytes) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from pyarrow import parquet

    kinds = {
        "source": pa.string(),
        "label": pa.string(),
        "accepted": pa.bool_(),
        "reasons": pa.list_(pa.string()),
        "error": pa.string(),
    }
    schema = pa.schema(
        [(name, kinds.get(name, pa.float64())) for name in rows[0]], {"cxrlib": identity, "note": DISCLAIMER}
    )
    content = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), content, compression="zstd")
    return content.getvalue()


def _fetched(films: Iterable[str]) -> Iterator[Source]:
    """The content of films, fetched ahead, in order."""
    waiting: deque[Future[Source]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        try:
            for film in films:
                waiting.append(pool.submit(_source, film))
                while len(waiting) >= (_AHEAD_HERE if _is_local(film) else _AHEAD):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _source(film: str) -> Source:
    """The content of a film, or why it has none; OSError where it cannot be fetched and that is not the film's
    fault."""
    fetch = partial(_plainly, film) if _is_local(film) or _is_web(film) else partial(_through_driver, *_reach(film))
    for wait in (*_WAITS, None):
        try:
            return _Fetched(film, fetch())
        except ImageError as error:
            return _Fetched(film, b"", str(error))
        except Exception as error:  # every driver has errors of its own
            if wait is None or isinstance(error, PermissionError):
                raise OSError(f"{film} cannot be fetched: {error}") from error
            time.sleep(wait)
    raise RuntimeError(film)


def _plainly(film: str) -> bytes:
    """The bytes of a local film or one on the web; `ImageError` says that it has none, another error that they do not
    come."""
    try:
        return bytes_of(film)
    except ImageError as error:
        cause = error.__cause__
        code, number = getattr(cause, "code", None), getattr(cause, "errno", None)
        if (
            cause is None
            or isinstance(cause, ValueError)
            or code in (404, 410)
            or number in (*NOWHERE, errno.ENAMETOOLONG)
        ):
            raise
        denied = isinstance(cause, PermissionError) or code in (401, 403)
        raise (PermissionError if denied else OSError)(str(error)) from cause


def _through_driver(system: Any, path: str) -> bytes:
    try:
        with system.open(path, "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
            return content
    except (FileNotFoundError, IsADirectoryError, KeyError):  # KeyError: in an archive
        raise ImageError("no such file") from None


class _Fetched(io.BytesIO):
    """The content of a film, or word of why there is none."""

    def __init__(self, name: str, content: bytes, error: str = "") -> None:
        super().__init__(content)
        self.name, self._error = name, error

    def read(self, size: int | None = -1, /) -> bytes:
        if self._error:
            raise ImageError(self._error)
        return super().read()  # all of it whatever the size, which takes no copy
