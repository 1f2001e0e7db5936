"""What may go wrong around cxrlib: processes killed at the worst moment, names that are not text, no home, no disk, no
permission, libraries that are absent.

`benchmarks/faults.py` does the same at random moments, many times.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import small_recipe
from PIL import Image

from cxrlib import Predictor, bundle, cli, evaluate, train
from cxrlib.data import cache
from cxrlib.data import scan as data
from cxrlib.data.hf import cache_folder
from cxrlib.data.split import split
from cxrlib.images import phantom
from cxrlib.metrics.report import Report

ROOT = str(Path(__file__).parents[1])

# --- names that are not UTF-8 ---


def test_names_that_are_no_text_go_all_the_way(tmp_path: Path, tiny: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [train] extra")
    for i in range(8):
        place = os.fsencode(tmp_path) + b"/M\xfcnchen/" + (b"NORMAL", b"PNEUMONIA")[i % 2] + b"/K\xf6hler%d.png" % i
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            Image.fromarray(phantom.draw(i, size=64)).save(os.fsdecode(place))
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
    Path(os.fsdecode(place)).write_bytes(b"no image")  # its path stands in the reason, too
    images = data.scan(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcnchen"))
    assert images.sources[0] == "M\\xfcnchen"
    assert images.names[0] == "M\\xfcnchen/NORMAL/K\\xf6hler0.png"
    data.write_manifest(split(images, fraction=0.3).marked(images), tmp_path / "films.csv")
    assert "K\\udcf6hler0.png" in (tmp_path / "films.csv").read_text("utf-8")
    report = evaluate(Predictor(tiny, gate=False, threads=1), images, output=tmp_path / "report", progress=False)
    assert Report.from_json((tmp_path / "report" / "report.json").read_text("utf-8")).to_json() == report.to_json()
    assert report.n_unreadable == 1
    assert "K\\udcf6hler7.png" in (tmp_path / "report" / "report.html").read_text("utf-8")


# --- what is absent ---

CORE = """
import json, os, sys
from importlib.machinery import PathFinder

class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in sys.argv[2:] else super().find_spec(name, path, target)

sys.meta_path[:] = [Absent if finder is PathFinder else finder for finder in sys.meta_path]
from cxrlib import Predictor, cli, evaluate, train
from cxrlib.images import phantom
predictor = Predictor(sys.argv[1], gate=False, threads=1)
images = phantom.write("images", n=2, size=64)
said = {"label": predictor(phantom.draw(1)).label, "n": evaluate(predictor, images, progress=False).n}
calls = {
    "train": lambda: train("nowhere", output="run"),
    "dicom": lambda: predictor(bytes(128) + b"DICM" + bytes(50)),
    "report": lambda: evaluate(predictor, images, output="report", progress=False),
    "command": lambda: cli.main(["predict", str(images), "--model", sys.argv[1], "--json"]),
}
if "keras" not in sys.argv:
    del calls["train"], calls["report"]  # they take long where nothing is absent
for name, call in calls.items():
    try:
        said[name] = str(call())
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
said["written"] = sorted(os.listdir("report")) if "report" in calls else []
print(json.dumps(said))
"""
EXTRAS = {
    "train": ("tensorflow", "keras", "sklearn", "matplotlib", "jax"),
    "dicom": ("pydicom", "imagecodecs"),
    "demo": ("gradio",),
    "parquet": ("pyarrow",),
    "onnx": ("tf2onnx", "onnxruntime"),
}


@pytest.mark.parametrize("extra", [*EXTRAS, "all"])
def test_without_an_extra_the_rest_works_and_what_needs_it_names_it(extra: str, tmp_path: Path, tiny: Path) -> None:
    absent = EXTRAS[extra] if extra != "all" else [name for names in EXTRAS.values() for name in names]
    done = subprocess.run(
        [sys.executable, "-c", CORE, str(tiny), *absent],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["label"] in ("NORMAL", "PNEUMONIA")
    assert (said["n"], said["command"]) == (4, "0")
    if extra in ("train", "all"):
        assert (
            said["train"]
            == 'ImportError: training needs tensorflow, keras, sklearn, matplotlib: pip install "cxrlib[train]"'
        )
        assert "AUROC" in said["report"]
        assert said["written"] == ["predictions.csv", "report.html", "report.json"]
        assert 'figures are left out: they need matplotlib, pip install "cxrlib[train]"' in done.stderr
    if extra in ("dicom", "all"):
        assert said["dicom"] == 'ImportError: reading DICOM needs pydicom: pip install "cxrlib[dicom]"'


def test_each_library_of_a_training_is_missed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrlib import train

    for name in ("tensorflow", "sklearn", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=rf'training needs .*{name}.*: pip install "cxrlib\[train\]"'):
                train(tmp_path / "nowhere", output=tmp_path / "run")


def test_without_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", os.fspath)  # what it does where nobody knows a home
    for name in ("CXRLIB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        FileNotFoundError,
        match=r"there is no home folder for ~/\.cache/cxrlib: name a folder for the cache in CXRLIB_CACHE",
    ):
        cache_folder()
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(
    not hasattr(os, "setuid") or os.getuid() != 0, reason="needs root, to become somebody without a home"
)
def test_somebody_without_a_home_or_any_folder_can_predict(public: Path, tiny: Path) -> None:
    """A user that the system does not know, where nothing can be written: as in a hardened container."""
    bundle_folder, image = public / "bundle", public / "image.png"
    shutil.copytree(tiny, bundle_folder)
    bundle_folder.chmod(0o755)
    phantom.save(image, 1)
    code = """
import os, sys
from cxrlib.cli import main
main(sys.argv[1:])  # loads what is loaded only when it is used: Python itself may lie where nobody else may read
os.environ.clear()
os.setuid(54321)
sys.exit(main(sys.argv[1:]))
"""
    words = [sys.executable, "-B", "-c", code, "predict", str(image), "--model", str(bundle_folder), "--json"]
    done = subprocess.run(words, cwd="/", env={"PYTHONPATH": ROOT}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == second


# --- clocks, disks, permissions ---


@pytest.mark.parametrize("jump", [-(10**9), 10**9])
def test_a_clock_that_jumps_spoils_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int) -> None:
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))
    images = data.scan(phantom.write(tmp_path / "images", n=3, seed=1, size=48))
    first = cache.decode(images, size=32, progress=False).images[:]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert (cache.decode(images, size=32, progress=False).images[:] == first).all()
    Image.new("L", (48, 48), 77).save(images.paths[0])
    again = cache.decode(images, size=32, progress=False).images[:]
    assert (again[0] == 77).all()
    assert (again[1:] == first[1:]).all()


def test_a_full_disk_leaves_no_half_bundle(tmp_path: Path, tiny: Path, small_files: Callable[[int], None]) -> None:
    config, network = bundle.load(tiny).config, (tiny / "model.tflite").read_bytes()
    (tmp_path / "bundles").mkdir()
    small_files(2000)
    with pytest.raises(OSError, match="too large"):
        bundle.save(tmp_path / "bundles" / "made", config, network)
    small_files(10**9)
    assert os.listdir(tmp_path / "bundles") == []
    made = bundle.save(tmp_path / "bundles" / "made", config, network)
    assert bundle.load(made).config.temperature == config.temperature


def test_a_full_disk_ends_a_batch_with_a_sentence(
    tmp_path: Path, tiny: Path, small_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    images = phantom.write(tmp_path / "images", n=2, size=64)
    small_files(300)
    code = cli.main(
        ["predict", str(images), "--model", str(tiny), "--no-gate", "--heatmaps", str(tmp_path / "maps"), "--json"]
    )
    small_files(10**9)
    assert code == 1
    assert "too large" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "maps").iterdir() if path.suffix == ".png"] == []


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="POSIX permissions")
def test_a_folder_that_may_only_be_read(public: Path, tiny: Path) -> None:
    made = public / "bundles" / "made"
    shutil.copytree(tiny, made)
    for path in (*made.rglob("*"), made, made.parent):
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = """
import os, sys
from pathlib import Path
from cxrlib import bundle, Predictor
from cxrlib.images import phantom
made = Path(sys.argv[1])
config, network = bundle.load(made).config, (made / "model.tflite").read_bytes()
bundle.save(sys.argv[2], config, network)
Predictor(sys.argv[2], threads=1)(phantom.draw(1))  # imports all: the environment may be closed to others
if os.getuid() == 0:
    os.setuid(54321)
print(Predictor(made, threads=1)(phantom.draw(1)).status)
try:
    bundle.save(made.with_name("more"), config, network)
except PermissionError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(made), str(public / "other")],
        cwd="/",
        env={"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=False,
    )
    for path in (made.parent, made):
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.splitlines()[0] in ("ok", "refused")
    assert "Permission denied" in done.stdout.splitlines()[1]
    assert os.listdir(made.parent) == ["made"]


# --- a training that is killed ---


@pytest.mark.usefixtures("small_backbone")
def test_a_training_killed_at_its_first_step_can_begin_anew(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))
    work, recipe = tmp_path / "run.partial", small_recipe(epochs=0)
    work.mkdir()
    for name in ("lock", "part-run.json"):  # before the record is whole there is none
        (work / name).write_text("")
    run = train(phantoms, output=tmp_path / "run", recipe=recipe, progress=False)
    assert bundle.load(run.bundle).config.recipe == recipe
    assert not work.exists()
