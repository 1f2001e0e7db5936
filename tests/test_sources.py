"""Images from every kind of source, bit for bit alike; what cannot be fetched is a named error."""

from __future__ import annotations

import http.server
import io
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrlib.images import phantom
from cxrlib.images.decode import fit, read
from cxrlib.images.sources import ImageError, find, name_of

GREY = phantom.draw(1, size=320)[:, :300]  # (320, 300) uint8


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/image.png"):
                body = encode(GREY)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            elif self.path in ("/to-image", "/to-file"):
                self.send_response(302)
                self.send_header("Location", "/image.png" if self.path == "/to-image" else "file:///etc/hostname")
                self.end_headers()
            elif self.path in ("/slow", "/endless"):
                self.send_response(200)
                self.end_headers()
                try:
                    for _ in range(40):
                        self.wfile.write(bytes(2**16 if self.path == "/endless" else 1))
                        time.sleep(0.02 if self.path == "/slow" else 0)
                except OSError:
                    pass
            else:
                self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


# --- one image, every source ---


def test_every_kind_of_source_gives_the_same_bits(tmp_path: Path, server: str) -> None:
    path = tmp_path / "image with space.png"
    path.write_bytes(encode(GREY))
    data = path.read_bytes()
    with path.open("rb") as file, Image.open(path) as image:
        file.read(7)  # a file object is read from its start, wherever it stands
        sources = [
            path,
            str(path),
            path.as_uri(),
            f"file://localhost{path.as_uri()[7:]}",
            data,
            bytearray(data),
            memoryview(data),
            file,
            io.BytesIO(data),
        ]
        sources += [
            image,
            GREY,
            GREY[..., None],
            np.repeat(GREY[..., None], 3, 2),
            np.dstack([GREY] * 3 + [np.full_like(GREY, 255)]),
            np.asfortranarray(GREY),
        ]
        sources += [
            encode(GREY, "BMP"),
            encode(GREY, "TIFF"),
            encode(GREY, "TIFF", compression="tiff_lzw"),
            encode(Image.fromarray(GREY).convert("RGB")),
        ]
        sources += [
            encode(Image.fromarray(GREY).convert("RGBA"), "WEBP", lossless=True),
            f"{server}/image.png?token=1",
            f"{server}/to-image",
        ]
        for source in sources:
            image = read(source)
            assert (image.pixels == GREY).all()
            assert image.pixels.dtype == np.uint8
            assert image.white == 255
            assert image.size == GREY.shape
            assert image.colour == 0
            assert image.view is None
            assert image.notes == ()
            assert (fit(image) == fit(read(GREY))).all()


# --- what cannot be fetched ---


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/image.png", "/no/such/image.png: no such file"),
        ("", ": no such file"),
        ("a\0b", "a\0b: it cannot be opened (embedded null byte)"),
        ("x" * 5000, "x: it cannot be opened (File name too long)"),
        (os.path.dirname(__file__), "tests: it is a folder, not an image"),
        (os.devnull, "/dev/null: it is not a regular file"),
        (
            "file://elsewhere/image.png",
            "a file URL must name this machine, file:///folder/image.png. Received: host 'elsewhere'",
        ),
        (b"", "bytes: it is empty"),
        (io.BytesIO(), "file object: it is empty"),
        (io.StringIO("text"), "a file object must be opened in binary mode ('rb'). Received: one that reads str"),
    ],
)
def test_what_cannot_be_fetched_is_named(source: object, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        read(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrlib.images.sources.MAX_BYTES", 1000)
    path = tmp_path / "image.png"
    path.write_bytes(encode(GREY))
    for source in (
        path,
        path.read_bytes(),
        memoryview(path.read_bytes()),
        io.BytesIO(path.read_bytes()),
        path.open("rb", buffering=0),
    ):
        with pytest.raises(ImageError, match="it is larger than 256 MiB"):
            read(source)
        if hasattr(source, "close"):
            source.close()


def test_a_file_object_that_fails_or_cannot_seek() -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError("the line is dead")

    with pytest.raises(ImageError, match="the line is dead"):
        read(Broken())
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as out:
        out.write(encode(GREY[:50, :50]))
    with os.fdopen(reader, "rb") as pipe:
        assert (read(pipe).pixels == GREY[:50, :50]).all()


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"PK\3\4 a zip in disguise")
    with pytest.raises(ImageError, match=r"image\.png: it is a zip archive"):
        read(path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ImageError, match="it is not a regular file"):
        read(fifo)


# --- URLs ---


def test_url_errors(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ImageError, match=r"^http://127\.0\.0\.1:\d+/none: it cannot be downloaded \(HTTP Error 404: Not Found\)$"
    ):
        read(f"{server}/none")
    with pytest.raises(ImageError, match="it cannot be downloaded"):
        read(f"{server}/to-file")
    with pytest.raises(ImageError, match=r"it cannot be downloaded .*refused"):
        read("http://127.0.0.1:1/image.png")
    with pytest.raises(ImageError, match=r"no host given|URL"):
        read("http:///image.png")
    with pytest.raises(
        ImageError, match=r"^http://127\.0\.0\.1/image\.png: a URL must not hold a user name or password$"
    ):
        read("http://me:secret@127.0.0.1/image.png?token=secret")
    with pytest.raises(ImageError, match="404"):
        read(f"{server}/übung image.png")
    with pytest.raises(ImageError, match="IPv6"):
        read("http://[bad/image.png")
    monkeypatch.setattr("cxrlib.images.sources.MAX_BYTES", 2**20)
    with pytest.raises(ImageError, match="it is larger than 256 MiB"):
        read(f"{server}/endless")
    monkeypatch.setattr("cxrlib.images.sources.URL_TIMEOUT", 0.2)
    with pytest.raises(ImageError, match=r"the download took more than 0\.2 s"):
        read(f"{server}/slow")


@pytest.fixture
def slow_server() -> Iterator[socket.socket]:
    """Sends the head that the path names, then a byte now and then, for as long as somebody listens."""
    heads = {
        b"silence": b"",
        b"header": b"HTTP/1.1 200 OK\r\nX-Name: ",
        b"chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"body": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
        b"away": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: /away?%d\r\n\r\n",
    }

    def answer(line: socket.socket, number: int) -> None:
        with line, suppress(OSError):
            kind = line.recv(4096).split()[1][1:].partition(b"?")[0]
            if kind == b"away":
                time.sleep(0.08)
                line.sendall(heads[kind] % number)
                return
            line.sendall(heads[kind])
            line.settimeout(0.02)
            for _ in range(500):
                with suppress(TimeoutError):
                    if not line.recv(1):
                        break
                if kind != b"silence":
                    line.sendall(b"1")

    def serve() -> None:
        with suppress(OSError):
            for number in range(100):
                threading.Thread(target=answer, args=(web.accept()[0], number), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as web:
        thread = threading.Thread(target=serve)
        thread.start()
        yield web
        web.shutdown(socket.SHUT_RDWR)
        thread.join()


def downloads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "cxrlib-download"]


@pytest.mark.parametrize("kind", ["silence", "header", "chunk", "body", "away"])
def test_a_download_ends_in_time_whatever_the_server_does(
    kind: str, slow_server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrlib.images.sources.URL_TIMEOUT", 0.3)
    with pytest.raises(ImageError, match=r"the download took more than 0\.3 s"):
        read(f"http://127.0.0.1:{slow_server.getsockname()[1]}/{kind}")
    for thread in downloads():
        thread.join(5)
    assert not downloads()  # the server would go on for longer


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals of POSIX")
def test_ctrl_c_ends_a_download(slow_server: socket.socket) -> None:
    threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        read(f"http://127.0.0.1:{slow_server.getsockname()[1]}/header")
    for thread in downloads():
        thread.join(5)
    assert not downloads()


def test_a_download_that_connects_when_nobody_waits_any_more(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup, looked_up, asked = socket.getaddrinfo, threading.Event(), []
    monkeypatch.setattr("cxrlib.images.sources.URL_TIMEOUT", 0.1)
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: looked_up.wait(5) and lookup(*a, **k))
    monkeypatch.setattr("cxrlib.images.sources.drain", asked.append)
    with pytest.raises(ImageError, match=r"the download took more than 0\.1 s"):
        read(f"{server}/image.png")
    looked_up.set()
    for thread in downloads():
        thread.join(5)
    assert not downloads()
    assert not asked


# --- names and folders ---


def test_name_of(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode(GREY))
    assert name_of("a/b.png") == "a/b.png"
    assert name_of(Path("a/b.png")) == "a/b.png"
    assert name_of("HTTPS://me:secret@host:8/a%20b.png?token=x#y") == "HTTPS://host:8/a%20b.png"
    assert name_of("file:///a/b.png") == "file:///a/b.png"
    assert name_of(b"..") == name_of(bytearray()) == "bytes"
    assert name_of(GREY) == "array"
    assert name_of(io.BytesIO()) == "file object"
    assert name_of(Image.fromarray(GREY)) == "image"
    with path.open("rb") as file, Image.open(path) as image:
        assert name_of(file) == str(path) == name_of(image)
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as unnamed:
        assert name_of(unnamed) == "file object"


def test_find(tmp_path: Path) -> None:
    dicom = bytes(128) + b"DICM"
    wanted = ["NORMAL/b.JPEG", "NORMAL/deep/er/c.png", "a.jpg", "d.dcm", "scan/1.2.840.7", "scan/IM0001"]
    for name in [*wanted, ".hidden.png", "._a.jpg", "__MACOSX/a.jpg", ".cache/a.png", "notes.txt", "README", "empty"]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(dicom if name.startswith("scan/") else b"something else" * (name != "empty"))
    os.mkfifo(tmp_path / "fifo")
    assert [path.relative_to(tmp_path).as_posix() for path in find(tmp_path)] == sorted(wanted)
    assert find(str(tmp_path)) == find(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"no such folder: .*none"):
        find(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match=r"no such folder: .*a\.jpg"):
        find(tmp_path / "a.jpg")


def test_find_loses_no_folder_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "locked/b.png", "linked/locked/b.png", "lost+found/c.png", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    list_folder, locked = os.scandir, ["lost+found", ".hidden"]

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name in locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    wanted = ["a.png", "linked/locked/b.png", "locked/b.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in find(tmp_path)] == wanted
    locked.append("locked")
    with pytest.raises(
        PermissionError,
        match=r"^the folder .*locked cannot be listed \(Permission denied\): make it readable, or move it away$",
    ):
        find(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in find(tmp_path, strict=False)] == [
        "a.png",
        "linked/locked",
        "locked",
    ]
    with pytest.raises(PermissionError, match=r"^the folder .*locked cannot be listed"):
        find(tmp_path / "locked")
    assert find(tmp_path / "locked", strict=False) == [tmp_path / "locked"]
    (tmp_path / "linked/locked/b.png").unlink()
    (tmp_path / "way").symlink_to(tmp_path / "linked/locked")
    locked[:] = ["way"]
    with pytest.raises(PermissionError, match=r"^the folder .*way cannot be listed"):
        find(tmp_path)


def test_find_keeps_what_may_be_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IM0001", "IM0002", "1.2.3", "notes.txt"):
        (tmp_path / name).write_bytes(bytes(200))
    for name, target in (("loop", "loop"), ("lost", "none"), ("wrong", "IM0001/x")):
        (tmp_path / name).symlink_to(tmp_path / target)

    def locked(path: Path, mode: str) -> io.BufferedReader:
        if path.name in ("IM0002", "1.2.3"):
            raise PermissionError(13, "Permission denied", str(path))
        return path.open("rb")

    monkeypatch.setattr("cxrlib.images.sources.open", locked, raising=False)
    assert [path.name for path in find(tmp_path)] == ["1.2.3", "IM0002"]


def test_find_follows_links_and_meets_every_folder_once(tmp_path: Path) -> None:
    for name in ("images/b/1.png", "pool/p/2.png", "pool/q/3.png", "pool/.hidden/4.png", "beside/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {
        "images/a": "images/b",  # has a path without links
        "images/z": "pool/p",  # lies in pool, which comes first
        "images/c": "pool",
        "images/d": "pool",
        "images/b/self": "images/b",
        "images/b/up": "",  # must not bring what lies beside
        "pool/q/back": "images",
        "pool/q/on": "beside",
        "images/lost": "nowhere",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    wanted = ["b/1.png", "c/p/2.png", "c/q/3.png", "c/q/on/5.png"]
    assert [path.relative_to(tmp_path / "images").as_posix() for path in find(tmp_path / "images")] == wanted
    (tmp_path / "door").symlink_to(tmp_path / "images")
    assert [path.relative_to(tmp_path / "door").as_posix() for path in find(tmp_path / "door")] == wanted
