"""Any source of a film -> its bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from queue import SimpleQueue

    from pydicom import Dataset

    Source: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Dataset
    )
else:
    Source: TypeAlias = Any

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})
MAX_BYTES = 256 * 2**20  # of a file or a download
URL_TIMEOUT = 20.0  # seconds for a whole download
_NO_FILMS = frozenset({"__MACOSX", "lost+found"})  # folders that systems make, the second for their eyes only
NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # where links may lead
_PATIENCE = 0.2  # seconds until a reader looks whether somebody still waits for it
_TOO_LARGE = f"it is larger than {MAX_BYTES // 2**20} MiB"


class _Reader(threading.local):
    """What a thread that reads films knows of those who wait for them."""

    gone = threading.Event()  # never set, unless `heed` gives the thread one of its own


_reader = _Reader()


class ImageError(ValueError):
    """A source that cannot be read as a film; the message names the source and says why.

    Example:
        >>> from cxrlib.images.decode import read
        >>> try:
        ...     read(b"")
        ... except ImageError as error:
        ...     print(error)
        bytes: it is empty
    """


def name_of(source: Source) -> str:
    """Name a source for messages and reports.

    Args:
        source: As for `images.read`.

    Returns:
        The path as given; a URL without credentials and query; the kind of source where it has no name.

    Example:
        >>> name_of("https://me:secret@example.org/film.png?token=1")
        'https://example.org/film.png'
    """
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if isinstance(text, bytes):
            text = os.fsdecode(text)
        scheme, _, rest = text.partition("://")
        if scheme.lower() in ("http", "https"):
            return f"{scheme}://{re.split('[?#]', rest)[0].rpartition('@')[2]}"
        return text
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "bytes"
    if isinstance(source, np.ndarray):
        return "array"
    if is_dataset(source):
        return "DICOM dataset"
    given = getattr(source, "filename", "") or getattr(source, "name", "")
    return given if isinstance(given, str) and given else "image" if isinstance(source, Image.Image) else "file object"


def find(folder: str | os.PathLike[str], *, strict: bool = True) -> list[Path]:
    """Find the films below a folder.

    Args:
        folder: Where to look, recursively and through links to folders; what is reached in several ways counts once, best by no link. Hidden files and
            folders, `__MACOSX`, `lost+found`, and links to a folder that they lie in are left out.
        strict: Whether a folder that cannot be listed is an error; otherwise its own path stands for its films.

    Returns:
        Sorted paths of files with one of `EXTENSIONS`, and of files with none, or with a number for one, that begin as DICOM files do or cannot be opened to
        see.

    Raises:
        NotADirectoryError: If there is no such folder.
        OSError: If `strict`, and it or a folder below cannot be listed, as a `PermissionError` where reading it is not allowed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as empty:
        ...     find(empty)
        []
    """
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"no such folder: {os.fspath(folder)}")

    def unlisted(error: OSError) -> None:
        if strict:
            raise type(error)(
                f"the folder {error.filename} cannot be listed ({error.strerror}): make it readable, or move it away"
            ) from error
        found.append(Path(error.filename))

    found: list[Path] = []
    seen: set[str] = set()
    places = [os.fspath(folder)]
    while places:  # the folder itself, then what its links lead to, then what theirs do
        links = []
        for place in places:
            for root, folders, files in os.walk(place, onerror=unlisted):
                real = os.path.realpath(root)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = [f for f in folders if not f.startswith(".") and f not in _NO_FILMS]
                linked = (path for f in folders if os.path.islink(path := os.path.join(root, f)))
                links += [path for path in linked if not real.startswith(os.path.join(os.path.realpath(path), ""))]
                paths = [Path(root, f) for f in files if not f.startswith(".")]
                found += [p for p in paths if p.suffix.lower() in EXTENSIONS or _begins_as_dicom(p)]
        places = sorted(links)
    return sorted(found)


def _begins_as_dicom(path: Path) -> bool:
    """Whether it does, or may do: what cannot be opened is for whoever reads the film to tell."""
    if path.suffix and not path.suffix[1:].isdigit():  # exports name files IM0001 or by their UID
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        return error.errno not in NOWHERE


def is_dataset(source: object) -> bool:
    """Tell whether something is a pydicom dataset; pydicom is not imported to find out.

    Args:
        source: Anything.

    Returns:
        Whether it is one.

    Example:
        >>> is_dataset("film.dcm")
        False
    """
    pydicom = sys.modules.get("pydicom")  # a dataset cannot exist before its library
    return pydicom is not None and isinstance(source, pydicom.Dataset)


# --- bytes ---


def bytes_of(source: Any) -> bytes:
    """Fetch the bytes of a film.

    Args:
        source: A path, a `file://` or `http(s)://` URL, the bytes of a file, or a binary file object (read from its start).

    Returns:
        The bytes, at least one.

    Raises:
        ImageError: If the source is missing, empty, larger than `MAX_BYTES`, no regular file, or not downloaded within `URL_TIMEOUT`; the message says why,
            and leaves it to the caller to name the source.
        OSError: If a file object cannot be read.
        ValueError: If a URL is malformed.

    Example:
        >>> bytes_of(memoryview(b"film"))
        b'film'
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if memoryview(source).nbytes > MAX_BYTES:
            raise ImageError(_TOO_LARGE)
        data = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        scheme = path.partition("://")[0].lower()
        data = _download(path) if scheme in ("http", "https") else _read_file(local(path) if scheme == "file" else path)
    else:
        if callable(getattr(source, "seekable", None)) and source.seekable():
            source.seek(0)
        data = _drain(source.read)
    if not data:
        raise ImageError("it is empty")
    return data


def heed(gone: threading.Event) -> None:
    """Let downloads of this thread end as soon as nobody waits for them.

    Args:
        gone: Set then.

    Example:
        >>> heed(threading.Event())
    """
    _reader.gone = gone


def local(url: str) -> str:
    """Turn a `file://` URL into a path.

    Args:
        url: The URL.

    Returns:
        The path.

    Raises:
        ImageError: If the URL names another machine.
        ValueError: If the URL is malformed.

    Example:
        >>> local("file:///films/a%20b.png")
        '/films/a b.png'
    """
    from urllib.request import url2pathname

    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(f"a file URL must name this machine, file:///folder/film.png. Received: host {parts.netloc!r}")
    return url2pathname(parts.path)


def _read_file(path: str) -> bytes:
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES:
            with open(path, "rb") as file:
                return file.read()
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"it cannot be opened ({getattr(error, 'strerror', error)})") from error
    if stat.S_ISDIR(found.st_mode):
        raise ImageError("it is a folder, not a film")
    raise ImageError(_TOO_LARGE if stat.S_ISREG(found.st_mode) else "it is no regular file")


def _drain(read: Callable[[int], bytes]) -> bytes:
    """All that `read` gives, up to MAX_BYTES."""
    chunks, length = [], 0
    while chunk := read(2**18):
        if not isinstance(chunk, bytes):
            raise ImageError(
                f"a file object must be opened in binary mode ('rb'). Received: one that reads {type(chunk).__name__}"
            )
        chunks.append(chunk)
        length += len(chunk)
        if length > MAX_BYTES:
            raise ImageError(_TOO_LARGE)
    return b"".join(chunks)


def _download(url: str) -> bytes:
    import socket
    from queue import SimpleQueue

    if "@" in urlsplit(url).netloc:
        raise ImageError("a URL must not hold a user name or password")
    outcome: SimpleQueue[bytes | BaseException] = SimpleQueue()
    lines: list[socket.socket] = []
    over = threading.Event()

    def work() -> None:
        try:
            outcome.put(_fetch(url, lines, over))
        except BaseException as error:  # noqa: BLE001 - raised below
            outcome.put(error)

    threading.Thread(
        target=work, name="cxrlib-download", daemon=True
    ).start()  # for the timeout of a socket begins anew with every byte
    try:
        found = _awaited(outcome)
    finally:  # also where Ctrl-C ends the waiting
        over.set()
        for line in lines:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(
                    line, socket.SHUT_RDWR
                )  # wakes the thread; a TLS socket's own method would change what it is reading from
    if isinstance(found, BaseException):
        raise found
    return found


def _awaited(outcome: SimpleQueue[bytes | BaseException]) -> bytes | BaseException:
    """What a queue brings, as long as there is time and somebody waits for it."""
    from queue import Empty

    end = time.monotonic() + URL_TIMEOUT
    while (left := end - time.monotonic()) > 0 and not _reader.gone.is_set():
        with contextlib.suppress(Empty):
            return outcome.get(timeout=min(left, _PATIENCE))
    raise ImageError(f"the download took more than {URL_TIMEOUT:g} s") from TimeoutError()


def _fetch(url: str, lines: list[Any], over: threading.Event) -> bytes:
    """What lies at an address. Sockets are added to `lines` as they are connected, and not used if it is over by then."""
    from http.client import HTTPException, IncompleteRead
    from urllib import error as errors
    from urllib import request

    def noted(connection: Any) -> Any:
        connect = connection.connect

        def connect_and_note() -> None:
            connect()
            lines.append(connection.sock)
            if over.is_set():
                raise TimeoutError("timed out")

        connection.connect = connect_and_note
        return connection

    def noting(do_open: Callable[..., Any]) -> Callable[..., Any]:
        return lambda connect, *query, **options: do_open(
            lambda *host, **more: noted(connect(*host, **more)), *query, **options
        )

    names = (
        "ProxyHandler",
        "UnknownHandler",
        "HTTPHandler",
        "HTTPSHandler",
        "HTTPDefaultErrorHandler",
        "HTTPRedirectHandler",
        "HTTPErrorProcessor",
    )
    handlers: list[Any] = [getattr(request, name)() for name in names]  # http and https only, also after a redirect
    opener = request.OpenerDirector()
    for handler in handlers:
        if isinstance(handler, request.AbstractHTTPHandler):
            handler.do_open = noting(handler.do_open)  # type: ignore[method-assign]
        opener.add_handler(handler)
    try:
        query = request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "cxrlib"})
        with opener.open(query, timeout=URL_TIMEOUT + 1) as answer:  # whoever waits for us gives up before
            data = _drain(answer.read1)
            if answer.length:  # that are still to come
                raise IncompleteRead(data, answer.length)
            return data
    except ImageError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, errors.HTTPError):
            error.close()
        raise ImageError(f"it cannot be downloaded ({error})") from error
