"""A wheel, built and installed where nothing else is, does what the README's first command says."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cxrlib

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*words: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*words], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode and any(word in done.stderr for word in ("NewConnectionError", "ProxyError", "ConnectTimeout")):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    [made] = folder.glob("*.whl")
    return made


def test_what_a_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {"cxrlib/py.typed", "cxrlib/default/config.json", "cxrlib/default/model.tflite"} <= names
    assert {"cxrlib/_space/app.py", "cxrlib/_space/requirements.txt", "cxrlib/reporting/card.md"} <= names
    assert {"cxrlib/causes/model.tflite", "cxrlib/_space/device/index.html"} <= names
    assert wheel.stat().st_size < 15e6
    allowed = ("cxrlib/", f"cxrlib-{cxrlib.__version__}.dist-info/")
    assert [name for name in names if not name.startswith(allowed) or "__pycache__" in name] == []


def test_the_first_command_of_the_readme_in_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    place = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(place / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    run(place / "cxrlib", "phantom", "image.png", "--opacity", cwd=tmp_path)
    assert "pneumonia" in run(place / "cxrlib", "predict", "image.png", cwd=tmp_path).lower()
    assert "image.png" in run(place / "cxrlib", "predict", "image.png", "--model", "causes", cwd=tmp_path)
    run(place / "cxrlib", "export", "default", "--format", "web", "--output", "page", cwd=tmp_path)
    assert (tmp_path / "page" / "model" / "model.tflite").is_file()
    found = run(place / "python", "-m", "pip", "list", cwd=tmp_path).lower()
    assert not any(name in found for name in ("tensorflow", "keras", "scikit-learn", "matplotlib", "gradio"))
    code = "import cxrlib, pathlib; print(pathlib.Path(cxrlib.__file__).is_relative_to(r'%s'))" % (tmp_path / "venv")
    assert run(place / "python", "-c", code, cwd=tmp_path).strip() == "True"
