"""Every image is decoded once: one memory-mapped array for each data set, found again by what its files are."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from errno import EIO, ENOSPC
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from cxrlib.data.dataset import Dataset, positions
from cxrlib.images import decode as images
from cxrlib.images.sources import ImageError, bytes_of, name_of
from cxrlib.runtime.litert import usable_cores

_BATCH = 256  # images that threads decode before the next ones are handed out
_KEEP_DAYS = 30.0  # after which an array that nobody opened is removed
_LISTED = 100  # unreadable images that a message names
_DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError)  # a file is missing, cut or foreign


@dataclass(frozen=True)
class Facts:
    """What is known of an image besides its pixels.

    Args:
        digest: BLAKE2b of the file's bytes, 32 hexadecimal digits.
        height: In pixels, of the image at full size.
        width: In pixels, of the image at full size.
        white: The value that means 1.0: 255 for 8 bits, 65535 for 16.
        colour: 0 for a grey image; else the mean of max(R, G, B) - min(R, G, B), in [0, 1].
        view: The view position that the file declares; None where it declares none.
        notes: Remarks of the decoder.
        error: Why the image cannot be read; empty if it can.
    """

    digest: str
    height: int = 0
    width: int = 0
    white: float = 0.0
    colour: float = 0.0
    view: str | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


class Images:
    """Images of a data set, read from disk as they are asked for.

    Behaves as a read-only ndarray of shape (n, size, size), uint8, that is indexed along its first axis. Many threads
    may read at once.

    Args:
        array: ndarray of shape (m, size, size), uint8, memory-mapped.
        rows: ndarray of shape (n,), int64: where each image lies in it.

    Example:
        >>> images = Images(np.zeros((3, 8, 8), np.uint8), np.array([2, 1]))
        >>> images.shape, images[[1, 0, 1]].shape
        ((2, 8, 8), (3, 8, 8))
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, array: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        self._array, self._rows = array, rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of images, height, width."""
        return len(self._rows), *self._array.shape[1:]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, index: int | slice | ArrayLike) -> NDArray[np.uint8]:
        """Read images: a number gives a view of shape (size, size), anything else a copy (m, size, size)."""
        return np.asarray(self._array[self._rows[[] if isinstance(index, list) and not index else index]])  # type: ignore[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all images into memory."""
        if copy is False:
            raise ValueError("images lie on disk: they cannot become an array without a copy")
        return np.asarray(self[:], dtype)

    def take(self, index: ArrayLike) -> Images:
        """Choose images, in the given order, without reading them.

        Args:
            index: Positions of shape (m,), or a mask of shape (n,).
        """
        return Images(self._array, self._rows[positions(index, len(self))])


@dataclass(frozen=True, eq=False)
class Decoded:
    """What `decode` gives.

    Args:
        images: Pixels, (n, size, size) uint8, 255 times what `cxrlib.images.decode.fit` gives, rounded; zeros for an
            image that cannot be read.
        facts: What is known of each image; an `error` where it cannot be read.
    """

    images: Images
    facts: tuple[Facts, ...]

    def take(self, index: ArrayLike) -> Decoded:
        """Choose images, in the given order.

        Args:
            index: Positions of shape (m,), or a mask of shape (n,).
        """
        return Decoded(self.images.take(index), tuple(self.facts[i] for i in positions(index, len(self.facts))))

    def check(self, dataset: Dataset) -> None:
        """Raise if images cannot be read.

        Args:
            dataset: The data set that was decoded.

        Raises:
            ImageError: The message names them and says why.
        """
        bad = [f"{path}: {facts.error}" for path, facts in zip(dataset.paths, self.facts, strict=True) if facts.error]
        if bad:
            more = f"\n… and {len(bad) - _LISTED} more; cxrlib audit names all" if len(bad) > _LISTED else ""
            raise ImageError(f"{len(bad)} of {len(dataset)} images cannot be read:\n" + "\n".join(bad[:_LISTED]) + more)


def decode(dataset: Dataset, *, size: int = 224, progress: bool = True) -> Decoded:
    """Decode the images of a data set into the cache, or find them there.

    An array is found again as long as paths, sizes and times of change of all files are the same. Two processes at once
    decode once, and one that is stopped leaves nothing that would be used. Arrays that nobody opened for 30 days go.

    Args:
        dataset: The images.
        size: Side in pixels that images are fitted to.
        progress: Whether to show progress on stderr.

    Returns:
        Pixels and facts, in the order of the data set.

    Raises:
        ValueError: If the size is not positive.
        OSError: If the cache folder, see `cache_folder`, cannot be written, or the disk is too small.

    Example:
        >>> lost = Dataset(("lost.png",), np.array([0]), ("NORMAL", "PNEUMONIA"), (None,), ("home",), (None,))
        >>> decode(lost, progress=False).facts[0].error
        'no such file'
    """
    if size < 1:
        raise ValueError(f"size must be positive. Received: size={size!r}")
    wanted = [os.path.abspath(path) for path in dataset.paths]
    paths = sorted(set(wanted))
    place = cache_folder() / "images" / _key(paths, size)
    row = {path: i for i, path in enumerate(paths)}
    load = functools.partial(_load, place, (len(paths), size, size), np.array([row[p] for p in wanted], np.int64))
    with contextlib.suppress(*_DAMAGED):
        return load()
    with _locked(place.parent, progress):
        with contextlib.suppress(*_DAMAGED):  # another process has written it meanwhile
            return load()
        _remove(place.parent, _KEEP_DAYS)
        _write(place, paths, size, progress)
        return load()


def digest_of(content: bytes) -> str:
    """BLAKE2b of a file's bytes, 32 hexadecimal digits.

    Args:
        content: The bytes.

    Example:
        >>> digest_of(b"")[:8]
        'cae66941'
    """
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint(dataset: Dataset, decoded: Decoded) -> str:
    """SHA-256 over every image's content and label, whatever the files are called and wherever they lie.

    Args:
        dataset: The images.
        decoded: What `decode` gave for them.

    Example:
        >>> data = Dataset(("a.png",), np.array([0]), ("NORMAL", "PNEUMONIA"), (None,), ("home",), (None,))
        >>> fingerprint(data, Decoded(Images(np.zeros((1, 8, 8), np.uint8), np.array([0])), (Facts("0" * 32),)))[:8]
        '01bbfb72'
    """
    pairs = zip(decoded.facts, dataset.targets.tolist(), strict=True)
    lines = sorted(f"{facts.digest}\t{dataset.labels[target]}" for facts, target in pairs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def clean(folder: str | os.PathLike[str] | None = None, *, days: float = 0.0) -> int:
    """Remove decoded images, and what stopped processes left; returns the bytes that were freed.

    Args:
        folder: As for `cache_folder`.
        days: Keep what was used during so many days.

    Example:
        >>> clean("/no/such/cache")
        0
    """
    place = cache_folder(folder) / "images"
    if not place.is_dir():
        return 0
    with _locked(place, progress=False):
        return _remove(place, days)


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder, which may not exist yet, of everything that cxrlib keeps and could make again.

    Args:
        folder: A folder of your choice; None for `$CXRLIB_CACHE`, else `cxrlib` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        FileNotFoundError: If it lies in the home folder, and there is none, as in some containers.

    Example:
        >>> cache_folder("/data/cache").name
        'cache'
    """
    chosen = folder or os.environ.get("CXRLIB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "cxrlib")
    place = os.path.expanduser(os.fspath(chosen))
    if place.startswith("~"):
        raise FileNotFoundError(f"there is no home folder for {place}: name a folder for the cache in CXRLIB_CACHE")
    return Path(os.path.abspath(place))


def _key(paths: list[str], size: int) -> str:
    """Name an array by its files, without opening them."""
    lines = [f"{images.DECODER} {size}"]
    for path in paths:
        try:
            found = os.stat(path)
            lines.append(f"{path}\t{found.st_size}\t{found.st_mtime_ns}\t{os.access(path, os.R_OK)}")
        except (OSError, ValueError):
            lines.append(path)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:32]


@contextlib.contextmanager
def _locked(folder: Path, progress: bool) -> Iterator[None]:
    """Wait until no other process writes; turn what goes wrong with the folder into a message that says what to do."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the images may be of patients
        lock = filelock.FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if progress:
                sys.stderr.write("waiting for another process that decodes images\n")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        reason = getattr(error, "strerror", None) or error
        text = f"the cache cannot be written ({reason}): free space there, or choose another folder with CXRLIB_CACHE"
        raise OSError(getattr(error, "errno", None) or EIO, text, str(folder)) from error


def _load(place: Path, shape: tuple[int, int, int], rows: NDArray[np.int64]) -> Decoded:
    columns = json.loads(place.with_suffix(".json").read_text("utf-8"))
    columns["notes"] = map(tuple, columns["notes"])
    facts = [Facts(*row) for row in zip(*(columns[field.name] for field in fields(Facts)), strict=True)]
    array = np.load(place.with_suffix(".npy"), mmap_mode="r")
    if array.shape != shape or array.dtype != np.uint8 or len(facts) != len(array):
        raise ValueError(f"{place} holds something else")
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(place.with_suffix(".json"))  # it was used today
    return Decoded(Images(np.asarray(array), rows), tuple(facts[row] for row in rows.tolist()))


def _write(place: Path, paths: list[str], size: int, progress: bool) -> None:
    """Decode images into `<place>.npy` and `<place>.json`, the latter when all else is there."""
    need, free = len(paths) * size**2, shutil.disk_usage(place.parent).free
    if need > free:
        raise OSError(ENOSPC, f"it needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    shape, facts = (len(paths), size, size), []
    part = place.with_suffix(".part")
    try:
        with (
            part.open("wb") as file,  # written in order, not through a memory map: a full disk is an error, not a crash
            ThreadPoolExecutor(usable_cores()) as pool,
            tqdm(None, "decoding", len(paths), unit="image", disable=None if progress else True, leave=False) as bar,
        ):
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, len(paths), _BATCH):
                for known, pixels in pool.map(lambda path: _read(path, size), paths[start : start + _BATCH]):
                    file.write(pixels.data)
                    facts.append(known)
                    bar.update()
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, place.with_suffix(".npy"))
        columns = {field.name: [getattr(known, field.name) for known in facts] for field in fields(Facts)}
        part.write_text(json.dumps(columns), "utf-8")
        os.replace(part, place.with_suffix(".json"))
    finally:
        part.unlink(missing_ok=True)


def _read(path: str, size: int) -> tuple[Facts, NDArray[np.uint8]]:
    digest = ""
    try:
        content = bytes_of(path)
        digest = digest_of(content)
        image = images.read(content, model_size=size)
    except ImageError as error:
        reason = str(error).removeprefix(f"{name_of(b'')}: ")
        return Facts(digest, error=reason), np.zeros((size, size), np.uint8)
    pixels = np.rint(images.fit(image, size)[..., 0] * 255).astype(np.uint8)  # (size, size)
    known = {name: getattr(image, name) for name in ("white", "colour", "view", "notes")}
    return Facts(digest, *image.size, **known), pixels


def _remove(folder: Path, days: float) -> int:
    """Remove arrays that are incomplete or were not used for some days; count the bytes."""
    freed, before = 0, time.time() - days * 86400
    for place in {file.with_suffix("") for file in folder.glob("*.*")}:
        files = [place.with_suffix(suffix) for suffix in (".json", ".npy", ".part")]
        complete = files[0].exists() and files[1].exists()
        if not complete or not days or files[0].stat().st_mtime < before:
            for file in filter(Path.exists, files):
                with contextlib.suppress(OSError):  # on Windows an open file stays
                    length = file.stat().st_size
                    file.unlink()
                    freed += length
    return freed
