"""The Space starts where only its requirements are installed, as published and from a checkout; a wheel brings it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
import tiny_network
from space_server import ROOT, ask, serving, write_files

from cxrlib import cli

pytest.importorskip("pydicom", reason="the demo reads DICOM")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # huggingface_hub's own, while it uploads
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with space/requirements.txt and nothing else."""
    place = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    fresh = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = subprocess.run(
        [fresh, "-m", "pip", "install", "--quiet", "-r", ROOT / "space" / "requirements.txt"],
        capture_output=True,
        text=True,
    )
    if any(word in done.stderr for word in ("NewConnectionError", "ProxyError", "ConnectTimeout")) and done.returncode:
        pytest.skip("the package index cannot be reached, so the requirements cannot be installed")
    assert done.returncode == 0, done.stderr
    return fresh


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[hub_server.HubServer, Path, Path]]:
    """A Hub on loopback, the folder that `cxrlib publish --space` made there, and the bundle."""
    place = tmp_path_factory.mktemp("published")
    bundle = tiny_network.write(place / "bundle", tiny_network.files(gate=tiny_network.tolerant_gate()))
    with (
        hub_server.serving() as server,
        hub_server.client_of(server, place / "home"),
        pytest.MonkeyPatch.context() as patch,
    ):
        server.add_user("hf_alice", "alice")
        patch.setenv("HF_TOKEN", "hf_alice")
        command = ["publish", str(bundle), "alice/model", "--space", "alice/demo", "--device", "alice/page"]
        assert cli.main(command) == 0
        assert "model/model.tflite" in server.files("alice/page", kind="space")
        yield server, tiny_network.write(place / "space", server.files("alice/demo", kind="space")), bundle


def test_the_published_space_starts_from_its_requirements_alone(
    python: Path, published: tuple[hub_server.HubServer, Path, Path], tmp_path: Path
) -> None:
    server, space, _ = published
    assert (space / "cxrlib" / "__init__.py").is_file()
    assert not (space / "cxrlib" / "default").exists()
    environment = {
        **hub_server.environment(server, tmp_path / "home"),
        "PYTHONPATH": "",
        "SPACE_ID": "alice/demo",
        "HF_TOKEN": "hf_alice",
    }
    files = write_files(tmp_path / "files")
    with serving(tmp_path / "place", str(python), str(space / "app.py"), **environment) as demo:
        for name in ("image.png", "image.dcm"):
            assert ask(demo.url, files / name)["status"] == "ok"
        assert ask(demo.url, files / "cat.png")["status"] == "refused"
        assert "Traceback" not in demo.log.read_text()
        asked = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "tensorflow" not in asked
    assert "cxrlib" not in asked, "its code lies beside app.py"


def test_a_checkout_serves_as_well(python: Path, tmp_path: Path) -> None:
    if not (ROOT / "cxrlib" / "default" / "config.json").is_file():
        pytest.skip("this checkout has no bundled model")
    with serving(tmp_path / "place", str(python), str(ROOT / "space" / "app.py"), PYTHONPATH="") as demo:
        assert ask(demo.url, write_files(tmp_path / "files") / "image.png")["source"] == "image.png"


@pytest.mark.parametrize("editable", [False, True])
def test_an_installed_cxrlib_has_the_demo(
    python: Path, published: tuple[hub_server.HubServer, Path, Path], tmp_path: Path, editable: bool
) -> None:
    source = tmp_path / "source"
    for folder in ("cxrlib", "space"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "default"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--force-reinstall",
        *(["--editable"] if editable else []),
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = python.with_name("cxrlib")
    try:
        with serving(
            tmp_path / "place", str(script), "demo", "--port", "{port}", "--model", str(published[2]), PYTHONPATH=""
        ) as demo:
            assert ask(demo.url, write_files(tmp_path / "files") / "image.png")["status"] == "ok"
    finally:
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "cxrlib"], check=True)
