"""The example project that serves a model from the Hub: its own tests, and a push, a start and an answer over HTTP."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import tiny_network
from hub_server import HubServer, environment, serving
from PIL import Image

from cxrlib import Predictor, bundle
from cxrlib.images import phantom

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "downstream"
REPO = "alice/model"


@contextmanager
def service(hub: HubServer, home: Path, model: str) -> Iterator[str]:
    """Run the service as its users do, and give its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"PYTHONPATH": str(ROOT), "RADIOGRAPH_MODEL": model, "PORT": str(port)}
    env = {**os.environ, **environment(hub, home), **own}
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE / "radiograph_service.py")], env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        address = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            try:
                urlopen(f"{address}/model").close()
                break
            except URLError:
                time.sleep(0.05)
        else:
            raise RuntimeError(process.stderr.read() if process.stderr else "")
        yield address
    finally:
        process.terminate()
        process.wait()
        if process.stderr:
            process.stderr.close()


def image(seed: int = 1) -> bytes:
    data = io.BytesIO()
    Image.fromarray(phantom.draw(seed=seed)).save(data, "PNG")
    return data.getvalue()


def ask(address: str, data: bytes | None = None) -> dict[str, object]:
    with urlopen(Request(address, data=data)) as answer:
        found: dict[str, object] = json.load(answer)
    return found


def test_from_a_push_to_an_answer(tmp_path: Path) -> None:
    here = Predictor(tiny_network.write(tmp_path / "bundle", tiny_network.files()))
    with serving() as hub:
        commit = hub.plant(REPO, tiny_network.files())
        with service(hub, tmp_path / "home", f"hf://{REPO}@main") as address:
            assert ask(f"{address}/model") == {"model": REPO, "revision": commit}
            assert ask(f"{address}/predict", image()) == here(image()).to_dict()
            with pytest.raises(HTTPError) as refused:
                ask(f"{address}/predict", b"not an image")
            assert refused.value.code == 422
            refused.value.close()
    with service(hub, tmp_path / "home", f"hf://{REPO}@{commit}") as address:  # the Hub is gone, the cache is not
        assert ask(f"{address}/predict", image()) == here(image()).to_dict()


def test_an_altered_model_stops_the_start(tmp_path: Path) -> None:
    with serving() as hub:
        hub.plant(REPO, {**tiny_network.files(), "README.md": b"altered"})
        with (
            pytest.raises(RuntimeError, match=r"BundleError: README\.md of alice/model is not the file"),
            service(hub, tmp_path, f"hf://{REPO}"),
        ):
            pass


@pytest.mark.skipif(not bundle.DEFAULT.is_dir(), reason="this checkout has no bundled model")
def test_the_projects_own_tests() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=EXAMPLE,
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
