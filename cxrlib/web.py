"""The page that runs a bundle in the visitor's browser: plain files for any static host."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import server as http
from pathlib import Path
from typing import Any

from cxrlib import bundle
from cxrlib.config import DISCLAIMER, BundleError
from cxrlib.images import colormaps, phantom
from cxrlib.predictor import Predictor
from cxrlib.runtime import gate
from cxrlib.runtime.flatbuffer import has_fixed_shape

_KINDS = {".js": "text/javascript", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json"}


class PageHandler(http.SimpleHTTPRequestHandler):
    """Serves the files of a page, each as what it is, and writes no log."""

    extensions_map = {**http.SimpleHTTPRequestHandler.extensions_map, **_KINDS}  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        """Nothing: the console stays quiet."""


def space_folder() -> Path:
    """Find the demo and the page.

    Returns:
        Their folder: `cxrlib/_space` of an installed cxrlib, `space` of a checkout.

    Raises:
        FileNotFoundError: If this installation has none.
    """
    package = Path(__file__).parent
    for folder in (package / "_space", package.parent / "space"):
        if (folder / "app.py").is_file():
            return folder
    raise FileNotFoundError("the demo is missing from this installation of cxrlib: install it again")


def write_page(model: str | os.PathLike[str] | Predictor | None, output: str | os.PathLike[str]) -> Path:
    """Write a page that runs a bundle in the visitor's browser: an installable web app, to be served over HTTPS.

    It has the gate, the calibration, the operating points and the heatmap of `Predictor`, checks the bundle's hash and
    golden probe, works offline after the first visit, and connects to no other address.

    Args:
        model: As for `Predictor`, or one.
        output: The folder to write; it must not exist yet, or be empty.

    Returns:
        The folder.

    Raises:
        FileExistsError: If something is at this place.
        BundleError: If the bundle cannot be trusted, or its network takes any number of images at once.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     (write_page(None, Path(place) / "page") / "index.html").is_file()
        True
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    target = Path(output)
    bundle.check_free(target)
    network = (predictor.folder / bundle.RUNTIME).read_bytes()
    if not has_fixed_shape(network):
        raise BundleError(
            f"{predictor.folder}: its network takes any number of images at once, which browsers do not run: train it "
            "again with this version of cxrlib"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        page = Path(place) / "page"
        shutil.copytree(space_folder() / "device", page)
        for folder in ("model", "examples"):
            (page / folder).mkdir()
        (page / "model" / bundle.RUNTIME).write_bytes(network)
        shutil.copy(predictor.folder / bundle.CONFIG, page / "model" / bundle.CONFIG)
        (page / "model" / "tables.json").write_text(json.dumps(_tables()), "utf-8")
        for name, opacity in (("normal", False), ("opacity", True)):
            phantom.save(page / "examples" / f"{name}.png", seed=3, opacity=opacity)
        _fill(page)
        page.replace(target)
    return target


@contextmanager
def serving(model: str | os.PathLike[str] | None, *, port: int | None = None) -> Iterator[http.ThreadingHTTPServer]:
    """Write a page to a temporary folder and serve it on this machine.

    Args:
        model: As for `Predictor`.
        port: Where to listen; `None` for a free one.

    Yields:
        The server; its `server_port` is where it listens once `serve_forever` runs.

    Raises:
        OSError: If the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="cxrlib-page-") as place:
        page = write_page(model, Path(place) / "page")
        try:
            server = http.ThreadingHTTPServer(("127.0.0.1", port or 0), partial(PageHandler, directory=str(page)))
        except OSError as error:
            raise OSError(f"port {port} is taken: choose another with --port") from error
        with server:
            yield server


def _tables() -> dict[str, Any]:
    """What the page takes from Python instead of a second copy."""
    return {
        "colormaps": colormaps.tables(),
        "chest": colormaps.CHEST.tolist(),
        "views": sorted(gate.VIEWS),
        "laterals": sorted(gate.LATERALS),
        "modalities": sorted(gate.MODALITIES),
        "hints": gate.HINTS,
    }


def _fill(page: Path) -> None:
    """Put the disclaimer into the page, and the list of all its files into the service worker."""
    index, worker = page / "index.html", page / "sw.js"
    for file in (index, page / "README.md"):
        file.write_text(file.read_text("utf-8").replace("{{disclaimer}}", DISCLAIMER), "utf-8")
    text = index.read_text("utf-8")
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[0]
    files = {
        path.relative_to(page).as_posix(): "sha256-"
        + base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(page.rglob("*"))
        if path.is_file() and path != worker and path.suffix not in (".txt", ".md", "")
    }
    listed = json.dumps(files, indent=1)
    filled = {
        "files": listed,
        "version": f"cxrlib-{hashlib.sha256(listed.encode()).hexdigest()[:16]}",
        "policy": policy,
    }
    script = worker.read_text("utf-8")
    for name, value in filled.items():
        script = script.replace(f"{{{{{name}}}}}", value)
    worker.write_text(script, "utf-8")
