"""Any source of an image -> its bytes."""

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
    from pydicom import Dataset

    Source: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Dataset
    )
else:
    Source: TypeAlias = Any

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm", ".dicom"})
MAX_BYTES = 256 * 2**20  # of a file or a download
URL_TIMEOUT = 20.0  # seconds for a whole download
NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # errors of links that lead nowhere
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "lost+found"})
_POLL = 0.2  # seconds between two checks whether a download is still wanted
_TOO_LARGE = f"it is larger than {MAX_BYTES // 2**20} MiB"


class _Reader(threading.local):
    cancelled = threading.Event()  # never set, unless `heed` gives the thread one of its own


_reader = _Reader()


class ImageError(ValueError):
    """A source that cannot be read as an image; the message names the source and says why.

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
        >>> name_of("https://me:secret@example.org/image.png?token=1")
        'https://example.org/image.png'
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
    if is_dataset(source):
        return "DICOM dataset"
    if hasattr(source, "__array__"):
        return "array"
    given = getattr(source, "filename", "") or getattr(source, "name", "")
    return given if isinstance(given, str) and given else "image" if isinstance(source, Image.Image) else "file object"


def find(folder: str | os.PathLike[str], *, strict: bool = True) -> list[Path]:
    """Find the images below a folder.

    Args:
        folder: Where to look, recursively and through links to folders. A file that can be reached in several ways
            counts once, by the path with the fewest links. Hidden files (AppleDouble files such as `._a.jpg` among
            them), hidden folders, `__MACOSX`, `lost+found`, and links to an enclosing folder are left out.
        strict: Whether a folder that cannot be listed is an error; otherwise its path is returned in place of its
            images.

    Returns:
        Sorted paths of files with one of `EXTENSIONS`; of files without an extension, or with a number for one, those
        that begin as DICOM files do or cannot be opened.

    Raises:
        NotADirectoryError: If there is no such folder.
        OSError: If `strict`, and it or a folder below cannot be listed; where reading it is not allowed, a
            `PermissionError`.

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
    while places:  # the folder itself, then the targets of its links, then of theirs
        links = []
        for place in places:
            for root, folders, files in os.walk(place, onerror=unlisted):
                real = os.path.realpath(root)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = [f for f in folders if not f.startswith(".") and f not in _SYSTEM_FOLDERS]
                linked = (path for f in folders if os.path.islink(path := os.path.join(root, f)))
                links += [path for path in linked if not real.startswith(os.path.join(os.path.realpath(path), ""))]
                paths = [Path(root, f) for f in files if not f.startswith(".")]
                found += [p for p in paths if p.suffix.lower() in EXTENSIONS or _begins_as_dicom(p)]
        places = sorted(links)
    return sorted(found)


def _begins_as_dicom(path: Path) -> bool:
    """Whether a file is DICOM, or may be: one that cannot be opened is reported when it is read."""
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
        >>> is_dataset("image.dcm")
        False
    """
    pydicom = sys.modules.get("pydicom")  # a dataset cannot exist before its library
    return pydicom is not None and isinstance(source, pydicom.Dataset)


# --- bytes ---


def bytes_of(source: Any) -> bytes:
    """Fetch the bytes of an image.

    Args:
        source: A path, a `file://` or `http(s)://` URL, the bytes of a file, or a binary file object (read from its
            start).

    Returns:
        The bytes, at least one.

    Raises:
        ImageError: If the source is missing, empty, larger than `MAX_BYTES`, not a regular file, or not downloaded
            within `URL_TIMEOUT`. The message says why; the caller adds the name of the source.
        OSError: If a file object cannot be read.
        ValueError: If a URL is malformed.

    Example:
        >>> bytes_of(memoryview(b"image"))
        b'image'
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
        data = drain(source.read)
    if not data:
        raise ImageError("it is empty")
    return data


def heed(cancelled: threading.Event) -> None:
    """Let downloads of this thread end early.

    Args:
        cancelled: Set as soon as they are no longer wanted.

    Example:
        >>> heed(threading.Event())
    """
    _reader.cancelled = cancelled


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
        >>> local("file:///images/a%20b.png")
        '/images/a b.png'
    """
    from urllib.request import url2pathname

    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(
            f"a file URL must name this machine, file:///folder/image.png. Received: host {parts.netloc!r}"
        )
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
        raise ImageError("it is a folder, not an image")
    raise ImageError(_TOO_LARGE if stat.S_ISREG(found.st_mode) else "it is not a regular file")


def drain(read: Callable[[int], bytes]) -> bytes:
    """Read a stream to its end, at most `MAX_BYTES`.

    Args:
        read: Gives at most so many bytes, and none at the end: the `read` or `read1` of a binary file.

    Returns:
        The bytes.

    Raises:
        ImageError: If there are more, or if what it gives is not bytes.

    Example:
        >>> import io
        >>> drain(io.BytesIO(b"image").read)
        b'image'
    """
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
    from queue import Empty, SimpleQueue

    if "@" in urlsplit(url).netloc:
        raise ImageError("a URL must not hold a user name or password")
    outcome: SimpleQueue[bytes | BaseException] = SimpleQueue()
    sockets: list[socket.socket] = []
    over = threading.Event()

    def work() -> None:
        try:
            outcome.put(_fetch(url, sockets, over))
        except BaseException as error:  # noqa: BLE001 - raised below
            outcome.put(error)

    # a thread of its own, because the timeout of a socket begins anew with every byte
    threading.Thread(target=work, name="cxrlib-download", daemon=True).start()
    end, found = time.monotonic() + URL_TIMEOUT, None
    try:
        while found is None and (left := end - time.monotonic()) > 0 and not _reader.cancelled.is_set():
            with contextlib.suppress(Empty):
                found = outcome.get(timeout=min(left, _POLL))
    finally:  # also after Ctrl-C
        over.set()
        for line in sockets:
            with contextlib.suppress(OSError):  # wakes the thread; TLS sockets' own method would disturb its reading
                socket.socket.shutdown(line, socket.SHUT_RDWR)
    if found is None:
        raise ImageError(f"the download took more than {URL_TIMEOUT:g} s") from TimeoutError()
    if isinstance(found, BaseException):
        raise found
    return found


def _fetch(url: str, sockets: list[Any], over: threading.Event) -> bytes:
    """Download. Sockets are added to `sockets` as they are connected, and closed at once where it is over by then."""
    from http.client import HTTPException, IncompleteRead
    from urllib import error as errors
    from urllib import request

    def noted(connection: Any) -> Any:
        connect = connection.connect

        def connect_and_note() -> None:
            connect()
            sockets.append(connection.sock)
            if over.is_set():
                raise TimeoutError("timed out")

        connection.connect = connect_and_note
        return connection

    def noting(open_: Callable[..., Any]) -> Callable[..., Any]:
        return lambda connection, *query, **options: open_(
            lambda *host, **more: noted(connection(*host, **more)), *query, **options
        )

    opener = request.OpenerDirector()  # of http and https only, also after a redirect
    kinds = "Proxy Unknown HTTP HTTPS HTTPDefaultError HTTPRedirect"
    for handler in (*(getattr(request, f"{kind}Handler")() for kind in kinds.split()), request.HTTPErrorProcessor()):
        if isinstance(handler, request.AbstractHTTPHandler):
            handler.do_open = noting(handler.do_open)  # type: ignore[method-assign]
        opener.add_handler(handler)
    try:
        query = request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "cxrlib"})
        with opener.open(query, timeout=URL_TIMEOUT + 1) as answer:  # `_download` gives up before
            data = drain(answer.read1)
            if answer.length:  # bytes still to come
                raise IncompleteRead(data, answer.length)
            return data
    except ImageError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, errors.HTTPError):
            error.close()
        raise ImageError(f"it cannot be downloaded ({error})") from error
