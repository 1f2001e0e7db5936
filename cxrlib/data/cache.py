"""Every film decoded once: an append-only store of fitted films, found again by content, shared by all runs.

A store is a folder per decoder version and size. Its pixels lie in shards, raw files of (rows, size, size) uint8 that never change once they have their
name; an SQLite index knows which file has which content (by path, size and time of change) and which content lies in which row. A shard is written, flushed
and renamed before the index speaks of it, so a process may be killed at any moment: what the index does not know is removed by the next writer. Writers take
turns by a lock that the system releases when a process ends; readers need none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import stat
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, final
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxrlib import cores
from cxrlib.data.hf import cache_folder
from cxrlib.data.scan import Dataset
from cxrlib.images import decode as images
from cxrlib.images.sources import MAX_BYTES, ImageError, name_of
from cxrlib.progress import Progress

T = TypeVar("T")
U = TypeVar("U")

_SCHEMA = 2  # of the index and the shards
_SHARD_BYTES = 64 * 2**20  # lost at most when a process is killed
_TASK = 8  # films that a thread decodes before it reports
_AHEAD_BYTES = 32 * 2**20  # decoded films that may wait to be written
_SHARDS = 32  # at most about this many for one call: each is an open file
_RACY = (
    2 * 10**9
)  # nanoseconds: a file changed this shortly before it was read may change again without showing another time
_LISTED = 100  # unreadable films that a message names
_TABLES = """
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, bytes INTEGER, changed INTEGER, digest TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS films (digest TEXT PRIMARY KEY, shard TEXT, row INTEGER, height INTEGER, width INTEGER, white REAL, colour REAL, view TEXT)
    WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Facts:
    """What is known of a film besides its fitted pixels.

    Args:
        digest: BLAKE2b of the file's bytes, 32 hexadecimal digits.
        height: In pixels, of the film at full size.
        width: In pixels, of the film at full size.
        white: The value that means 1.0: 255 for 8 bits, 65535 for 16.
        colour: 0 for a grey film, see `images.Film`.
        view: The declared view position, or `None`.
        error: Why the film cannot be read; empty if it can, and then the rest holds.

    Example:
        >>> Facts("", error="it is empty").error
        'it is empty'
    """

    digest: str
    height: int = 0
    width: int = 0
    white: float = 0.0
    colour: float = 0.0
    view: str | None = None
    error: str = ""


class Films:
    """Fitted films in the order of a data set, read from memory maps as they are asked for.

    Behaves as a read-only ndarray of shape (n, size, size), uint8, that is indexed along its first axis: by a number (a view), or by a slice, positions or
    a mask (a copy). Safe from many threads at once.

    Args:
        shards: ndarrays of shape (rows, size, size), uint8, memory-mapped.
        shard: ndarray of shape (n,), int64: in which of them each film lies; -1 for one that cannot be read.
        row: ndarray of shape (n,), int64: its row there.
        size: Side of the films in pixels.

    Example:
        >>> films = Films([np.zeros((3, 8, 8), np.uint8)], np.array([0, 0]), np.array([2, 1]), 8)
        >>> films.shape, films[[1, 0, 1]].shape
        ((2, 8, 8), (3, 8, 8))
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(
        self, shards: list[NDArray[np.uint8]], shard: NDArray[np.int64], row: NDArray[np.int64], size: int
    ) -> None:
        self._shards, self._shard, self._row, self._size = shards, shard, row, size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of films, height, width."""
        return len(self._row), self._size, self._size

    def __len__(self) -> int:
        """Count the films."""
        return len(self._row)

    def __getitem__(self, index: int | slice | ArrayLike) -> NDArray[np.uint8]:
        """Read films: a number gives (size, size), anything else (m, size, size)."""
        shard, row = self._shard[index], self._row[index]  # type: ignore[index]
        if np.any(shard < 0):
            raise ImageError("this film cannot be read: it has no pixels")
        if np.ndim(row) == 0:
            film: NDArray[np.uint8] = self._shards[int(shard)][int(row)]
            return film
        films = np.empty((len(row), self._size, self._size), np.uint8)
        for i, (k, r) in enumerate(zip(shard.tolist(), row.tolist(), strict=True)):
            films[i] = self._shards[k][r]
        return films

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all films into memory."""
        if copy is False:
            raise ValueError("films lie on disk in several pieces: they cannot become one array without a copy")
        return np.asarray(self[:], dtype)


@dataclass(frozen=True, eq=False)
class Decoded:
    """What `decode` found.

    Args:
        films: Pixels of every readable film; asking for another raises `ImageError`.
        facts: One entry per film; those of unreadable films hold an `error`.

    Example:
        >>> decoded = Decoded(Films([], np.array([-1]), np.array([-1]), 8), (Facts("", error="it is empty"),))
        >>> len(decoded.films), decoded.facts[0].error
        (1, 'it is empty')
    """

    films: Films
    facts: tuple[Facts, ...]

    def check(self, dataset: Dataset) -> None:
        """Raise if films cannot be read.

        Args:
            dataset: The films that were decoded.

        Raises:
            ImageError: The message names them and says why.
        """
        bad = [f"{path}: {facts.error}" for path, facts in zip(dataset.paths, self.facts, strict=True) if facts.error]
        if bad:
            more = f"\n… and {len(bad) - _LISTED} more; cxrlib audit names all" if len(bad) > _LISTED else ""
            raise ImageError(f"{len(bad)} of {len(dataset)} films cannot be read:\n" + "\n".join(bad[:_LISTED]) + more)


def open_cache(
    dataset: Dataset,
    *,
    size: int = 224,
    folder: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Films:
    """Decode the films that are not in the cache yet, and open all of them.

    Args:
        dataset: The films.
        size: Side in pixels that films are fitted to.
        folder: Where the cache lies; `None` for the environment variable `CXRLIB_CACHE`, else a folder of the user's cache.
        workers: Threads that decode; `None` for one per core.
        progress: Whether to show a line on stderr.

    Returns:
        The films, (n, size, size) uint8, in the order of the data set.

    Raises:
        ImageError: If films cannot be read; the message names all of them and says why.
        OSError: If the folder cannot be written, or the disk is too small.

    Example:
        >>> import tempfile
        >>> from cxrlib.data import scan as data
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     drawn = phantom.write(folder + "/films", n=2, size=64)
        ...     films = open_cache(data.scan(drawn), size=32, folder=folder + "/cache", progress=False)
        >>> films.shape, films[[0, 3]].dtype
        ((4, 32, 32), dtype('uint8'))
    """
    decoded = decode(dataset, size=size, folder=folder, workers=workers, progress=progress)
    decoded.check(dataset)
    return decoded.films


def decode(
    dataset: Dataset,
    *,
    size: int = 224,
    folder: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Decoded:
    """Do what `open_cache` does, but keep what is known of unreadable films instead of raising.

    Args:
        dataset: The films.
        size: As for `open_cache`.
        folder: As for `open_cache`.
        workers: As for `open_cache`.
        progress: As for `open_cache`.

    Returns:
        Pixels and facts.

    Raises:
        ValueError: If size or workers are not positive.
        OSError: If the folder cannot be written, or the disk is too small.

    Example:
        >>> import tempfile
        >>> lost = Dataset(("lost.png",), np.array([0]), ("NORMAL", "PNEUMONIA"), (None,), ("home",), (None,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     decode(lost, folder=folder, progress=False).facts[0].error
        'No such file or directory'
    """
    if size < 1 or (workers is not None and workers < 1):
        raise ValueError(f"size and workers must be positive. Received: size={size!r}, workers={workers!r}")
    paths = [os.path.abspath(path) for path in dataset.paths]
    store = _Store(cache_folder(folder) / f"films-{_SCHEMA}-{images.DECODER}-{size}", size)
    with store.plain_errors():
        try:
            return store.decode(paths, workers or cores.usable(), progress)
        except (sqlite3.DatabaseError, FileNotFoundError) as error:  # damaged, or cleaned while it was in use
            with store.locked(progress) as alone:  # nobody cleans it now
                if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                    store.forget(
                        alone
                    )  # a damaged index; a full disk or a folder that may not be written gain nothing by it
                return store.fill(paths, workers or cores.usable(), progress, alone)


def fingerprint(dataset: Dataset, decoded: Decoded) -> str:
    """Hash what a data set holds, whatever its files are called and wherever they lie.

    Args:
        dataset: The films.
        decoded: What `decode` gave for them.

    Returns:
        SHA-256 over every film's content and label, 64 hexadecimal digits.

    Example:
        >>> films = Dataset(("a.png",), np.array([0]), ("NORMAL", "PNEUMONIA"), (None,), ("home",), (None,))
        >>> fingerprint(films, Decoded(Films([], np.array([-1]), np.array([-1]), 8), (Facts("0" * 32),)))[:8]
        '01bbfb72'
    """
    lines = sorted(
        f"{facts.digest}\t{dataset.labels[target]}"
        for facts, target in zip(decoded.facts, dataset.targets.tolist(), strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def clean(folder: str | os.PathLike[str] | None = None) -> int:
    """Remove every decoded film. Waits for a process that is writing; one that reads keeps what it has opened.

    Args:
        folder: As for `open_cache`.

    Returns:
        Bytes that were freed.

    Example:
        >>> clean("/no/such/cache")
        0
    """
    freed = 0
    for place in cache_folder(folder).glob("films-*-*-*"):  # of every size and decoder
        store = _Store(place)
        with store.locked(False):
            freed += store.forget(True)
    return freed


def _ordered(pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T], ahead: int) -> Iterator[U]:
    """`pool.map` that never holds more than `ahead` results."""
    waiting: deque[Future[U]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True)
class _Read:
    path: str
    bytes: int
    changed: int  # time of the last change in nanoseconds; -1 where it is too fresh to go by
    facts: Facts
    pixels: NDArray[np.uint8] | None  # (size, size), where the content is new


_Found: TypeAlias = "tuple[Facts, str, int]"  # facts, shard, row


class _Store:
    """The films of one decoder version and size."""

    def __init__(self, place: Path, size: int = 0) -> None:
        self.place, self.size = place, size
        try:
            self.place.mkdir(mode=0o700, parents=True, exist_ok=True)  # these may be patients
        except OSError as error:
            raise OSError(
                error.errno,
                f"the cache folder cannot be made ({error.strerror}); choose another with folder= or CXRLIB_CACHE",
                str(place),
            ) from None

    def decode(self, paths: list[str], workers: int, progress: bool) -> Decoded:
        try:
            found = self._look_up(paths)
        except sqlite3.OperationalError:  # no index yet, or one that is being removed: under the lock it will be seen
            found = {}
        if len(found) == len(set(paths)):
            return self._open(paths, found, {})
        with self.locked(progress) as alone:
            return self.fill(paths, workers, progress, alone)

    def fill(self, paths: list[str], workers: int, progress: bool, alone: bool) -> Decoded:
        """Decode under the lock."""
        with self._index(write=True):
            pass  # there is one now
        found = self._look_up(paths)  # another process may have been at it
        errors = self._add(
            [path for path in dict.fromkeys(paths) if path not in found], found, workers, progress, alone
        )
        return self._open(paths, found, errors)

    @contextlib.contextmanager
    def plain_errors(self) -> Iterator[None]:
        """Say what to do where the folder may not be written, or where its index fails."""
        try:
            yield
        except (OSError, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.DatabaseError):
                code, reason = errno.EIO if os.access(self.place, os.W_OK) else errno.EACCES, str(error)
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                code, reason = error.errno, str(error.strerror)
            else:
                raise
            raise OSError(
                code,
                f"the cache cannot be written ({reason}); choose another with folder= or CXRLIB_CACHE",
                str(self.place),
            ) from error

    @contextlib.contextmanager
    def locked(self, progress: bool) -> Iterator[bool]:
        """Wait until no other process writes. Gives `False` where the system has no such locks: two writers then decode the same films twice, no more."""
        with (self.place / "lock").open("a") as file:
            try:
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if progress:
                        sys.stderr.write("waiting for another process that fills the cache\n")
                    fcntl.flock(file, fcntl.LOCK_EX)
            except (ImportError, OSError):
                yield False
            else:
                yield True

    def forget(self, alone: bool) -> int:
        """Remove everything but the lock; count the bytes."""
        freed = 0
        for file in [*self.place.glob("index.*"), *(self.place.glob("*.shard*") if alone else ())]:
            with contextlib.suppress(OSError):  # on Windows an open file stays
                length = file.stat().st_size
                file.unlink()
                freed += length
        return freed

    @contextlib.contextmanager
    def _index(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """The index; to be written under the lock only, for whoever does so while it is removed spoils the journal of the next."""
        path = quote(os.fsencode((self.place / "index.sqlite3").as_posix()), safe="/:")
        address = (
            f"file://{path}" if path.startswith("/") else f"file:///{path}"
        )  # a Windows drive; SQLite refuses the host that as_uri() gives a share
        connection = sqlite3.connect(f"{address}?mode={'rwc' if write else 'ro'}", timeout=60.0, uri=True)
        try:
            if write:
                connection.executescript(_TABLES)
            with connection:  # one transaction
                yield connection
        finally:
            connection.close()

    def _lengths(self) -> dict[str, int]:
        """Rows that lie in each shard."""
        return {file.name: file.stat().st_size // self.size**2 for file in self.place.glob("*.shard")}

    def _look_up(self, paths: Iterable[str]) -> dict[str, _Found]:
        digests: dict[str, str] = {}
        with self._index() as index:
            for path in paths:
                row = index.execute(
                    "SELECT bytes, changed, digest FROM files WHERE path = ?", (os.fsencode(path),)
                ).fetchone()
                with contextlib.suppress(OSError):
                    if row is not None and row[:2] == _state(os.stat(path)):
                        digests[path] = row[2]
        return self._find(digests)

    def _find(self, digests: Mapping[str, str]) -> dict[str, _Found]:
        """Where the films of known content lie; none that a damaged shard has lost."""
        with self._index() as index:
            select = "SELECT shard, row, height, width, white, colour, view FROM films WHERE digest = ?"
            rows = {path: index.execute(select, (digest,)).fetchone() for path, digest in digests.items()}
        lengths = self._lengths()  # asked last: a shard is there before the index speaks of it
        return {
            path: (Facts(digests[path], *row[2:]), row[0], row[1])
            for path, row in rows.items()
            if row and row[1] < lengths.get(row[0], 0)
        }

    def _add(
        self, todo: list[str], found: dict[str, _Found], workers: int, progress: bool, alone: bool
    ) -> dict[str, Facts]:
        """Decode what is new and put it into `found`; return those that cannot be read."""
        need, free = len(todo) * self.size**2, shutil.disk_usage(self.place).free
        if need > free:
            text = f"the cache needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; choose another folder with folder= or CXRLIB_CACHE"
            raise OSError(errno.ENOSPC, text, str(self.place))
        with self._index() as index:
            rows = index.execute("SELECT digest, shard, row FROM films").fetchall()
        lengths, used = self._lengths(), {shard for _, shard, _ in rows}
        known = {digest for digest, shard, row in rows if row < lengths.get(shard, 0)}
        for file in self.place.glob("*.shard*") if alone else ():
            if file.name not in used:  # a killed process left it behind
                file.unlink()
        errors: dict[str, Facts] = {}
        digests: dict[str, str] = {}
        most = max(_SHARD_BYTES // self.size**2, -(-len(todo) // _SHARDS), 1)  # rows of a shard
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(Progress(len(todo), "decoding", shown=progress))
            pool = ThreadPoolExecutor(workers)
            stack.callback(pool.shutdown, cancel_futures=True)
            shard = stack.enter_context(_Shard(self))  # whatever stops this, decoded films are kept
            tasks = [todo[i : i + _TASK] for i in range(0, len(todo), _TASK)]
            ahead = max(2 * workers, _AHEAD_BYTES // (_TASK * self.size**2))  # decoders go on while a shard is flushed
            for reads in _ordered(pool, lambda paths: [self._read(path, known) for path in paths], tasks, ahead):
                for read in reads:
                    if read.facts.error:
                        errors[read.path] = read.facts
                        continue
                    digests[read.path] = read.facts.digest
                    shard.append(read)
                    known.add(read.facts.digest)  # its next copy need not be decoded
                    if len(shard.films) >= most:
                        shard.commit()
                bar.advance(len(reads))
        added = self._find(digests)
        if len(added) < len(digests):
            raise FileNotFoundError(f"{self.place} was cleaned while it was filled")
        found |= added
        return errors

    def _read(self, path: str, known: set[str]) -> _Read:
        try:
            info = os.stat(path)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            with open(path, "rb") as file:
                content = file.read(min(info.st_size, MAX_BYTES) + 1)  # `sources` refuses what is longer
        except OSError as error:
            return _Read(path, 0, -1, Facts("", error=error.strerror or str(error)), None)
        length, changed = _state(info)
        if time.time_ns() - changed < _RACY:
            changed = -1
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        if digest in known:
            return _Read(path, length, changed, Facts(digest), None)
        try:
            film = images.read(content, model_size=self.size)
        except ImageError as error:
            return _Read(
                path, length, changed, Facts(digest, error=str(error).removeprefix(f"{name_of(content)}: ")), None
            )
        facts = Facts(digest, *film.size, film.white, film.colour, film.view)
        fitted = images.fit(film, self.size)[..., 0]  # (size, size) in [0, 1]
        fitted *= 255
        return _Read(path, length, changed, facts, np.rint(fitted, out=fitted).astype(np.uint8))

    def _open(self, paths: list[str], found: dict[str, _Found], errors: dict[str, Facts]) -> Decoded:
        lengths = self._lengths()
        names = sorted({shard for _, shard, _ in found.values()})
        if not lengths.keys() >= set(names):
            raise FileNotFoundError(f"{self.place} was cleaned while it was opened")
        position = {name: i for i, name in enumerate(names)}
        shape = self.size, self.size
        shards = [
            np.asarray(np.memmap(self.place / name, np.uint8, "r", shape=(lengths[name], *shape))) for name in names
        ]  # plain arrays index faster
        where = np.array(
            [(position[found[path][1]], found[path][2]) if path in found else (-1, -1) for path in paths], np.int64
        ).reshape(-1, 2)
        return Decoded(
            Films(shards, where[:, 0], where[:, 1], self.size),
            tuple(found[path][0] if path in found else errors[path] for path in paths),
        )


@final
class _Shard:
    """Films on their way to disk: written as they come, and known to the index once they are safe."""

    def __init__(self, store: _Store) -> None:
        self._store = store
        self._file: BinaryIO | None = None
        self._name = ""
        self.films: dict[str, Facts] = {}  # by digest, in the order of the rows
        self._reads: list[tuple[bytes, int, int, str]] = []

    def append(self, read: _Read) -> None:
        if read.changed >= 0:
            self._reads.append((os.fsencode(read.path), read.bytes, read.changed, read.facts.digest))
        if read.pixels is None or read.facts.digest in self.films:
            return
        if self._file is None:
            self._name = f"{uuid.uuid4().hex}.shard"
            self._file = (self._store.place / f"{self._name}.part").open("wb")
        self._file.write(read.pixels.data)
        self.films[read.facts.digest] = read.facts

    def commit(self) -> None:
        if not self._reads and not self.films:
            return
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._file.name, self._store.place / self._name)
            self._file = None  # it is done, even if the index fails now
        with self._store._index(write=True) as index:
            index.executemany(
                "INSERT OR REPLACE INTO films VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (d, self._name, i, f.height, f.width, f.white, f.colour, f.view)
                    for i, (d, f) in enumerate(self.films.items())
                ],
            )
            index.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", self._reads)
        self.films, self._reads = {}, []

    def __enter__(self) -> _Shard:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
        except OSError:
            if self._file is not None:  # a full disk gets back what little it gave
                with contextlib.suppress(OSError):
                    self._file.close()
                os.unlink(self._file.name)
            raise


def _state(info: os.stat_result) -> tuple[int, int]:
    return info.st_size, info.st_mtime_ns
