"""The demo as its own process, for tests that visit it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds: a machine that trains something starts slowly


@dataclass(frozen=True)
class Demo:
    """A running demo: its address, its process, what it writes to the terminal, and the folder for temporary files."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    folder: Path

    def uploads(self) -> list[Path]:
        """What of visitors lies on disk now."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path, *command: str, **env: str) -> Iterator[Demo]:
    """Run a demo until the block ends; {port} in the command stands for its port."""
    port, log = free_port(), folder / "log.txt"
    (folder / "tmp").mkdir(parents=True)
    environment = {
        **os.environ,
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(ROOT),
        "GRADIO_SERVER_PORT": str(port),
        **env,
    }
    with log.open("wb") as out:
        words = [
            word.format(port=port) for word in command or (sys.executable, "-m", "cxrlib", "demo", "--port", "{port}")
        ]
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, cwd=folder)
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + PATIENCE
            while not _answers(f"{url}/healthz"):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the demo did not start:\n{log.read_text()}")
                time.sleep(0.1)
            yield Demo(url, process, log, folder / "tmp")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def write_files(folder: Path) -> Path:
    """What visitors send: an image as PNG and as DICOM, in other encodings, a cat, a broken file, and a zip."""
    import io
    import zipfile

    import numpy as np
    from drawn_dicom import dataset, saved
    from PIL import Image, ImageDraw

    from cxrlib.images import phantom

    folder.mkdir(parents=True, exist_ok=True)
    pixels = phantom.draw(3, size=256)[:200]  # wider than it is high
    image = Image.fromarray(pixels)
    image.save(folder / "image.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(folder / "deep.png")
    image.save(folder / "image.tiff")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    image.rotate(90, expand=True).save(folder / "turned.jpeg", exif=turned)
    Image.merge("RGB", [image, image.point(lambda v: v * 3 // 4), image.point(lambda v: v // 2)]).save(
        folder / "colour.png"
    )
    (folder / "broken.png").write_bytes((folder / "image.png").read_bytes()[:2000])
    cat = Image.new("RGB", (320, 260), (120, 160, 90))
    draw = ImageDraw.Draw(cat)
    draw.ellipse((100, 80, 230, 210), fill=(215, 140, 60))
    for ear in ((112, 110), (218, 110)):
        draw.polygon([(ear[0] - 15, ear[1]), (ear[0], 45), (ear[0] + 15, ear[1] - 15)], fill=(215, 140, 60))
    cat.save(folder / "cat.png")
    view = {
        "Modality": "DX",
        "ViewPosition": "PA",
        "BodyPartExamined": "CHEST",
        "PhotometricInterpretation": "MONOCHROME1",
        "PatientName": "Doe^Jane",
    }
    (folder / "image.dcm").write_bytes(saved(dataset(255 - np.asarray(pixels), **view)))
    (folder / "study").write_bytes((folder / "image.dcm").read_bytes())  # as devices name them
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("image.png", "broken.png", "cat.png"):
            archive.writestr(f"inner/{name}", (folder / name).read_bytes())
        archive.writestr("__MACOSX/inner/._image.png", b"x")
    (folder / "images.zip").write_bytes(packed.getvalue())
    return folder


def ask(url: str, path: Path, endpoint: str = "predict") -> dict[str, object]:
    """What one more visitor gets, through plain HTTP and in a session of their own: upload, question, answer."""
    import json

    import httpx

    with httpx.Client(base_url=f"{url}/gradio_api", timeout=PATIENCE) as client:
        sent = client.post("/upload", files={"files": (path.name, path.read_bytes())}).raise_for_status().json()
        image = {"path": sent[0], "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
        event = client.post(f"/call/v2/{endpoint}", json={"image": image}).raise_for_status().json()["event_id"]
        said = client.get(f"/call/{endpoint}/{event}").raise_for_status().text
    if "event: complete" not in said:
        raise RuntimeError(said)
    answer: dict[str, object] = json.loads(said.rpartition("data: ")[2])[0]
    return answer
