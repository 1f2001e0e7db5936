"""The bundle: all of it or nothing, and every check says which one failed."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_network

from cxrlib import bundle
from cxrlib.config import BundleConfig, BundleError, from_dict
from cxrlib.metrics.compute import make_report

ROOT = str(Path(__file__).parents[1])


@pytest.fixture
def made(tmp_path):
    return tiny_network.write(tmp_path / "made", tiny_network.files())


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def parts():
    """A config and a network that fit, as `save` takes them."""
    content = tiny_network.files()
    return from_dict(BundleConfig, json.loads(content["config.json"])), content["model.tflite"]


class Model:
    """As much of a Keras model as `save` uses."""

    def __init__(self, during=lambda: None):
        self.during = during

    def save(self, path):
        self.during()
        Path(path).write_bytes(b"keras")


def report():
    p = np.array([0.1, 0.4, 0.3, 0.8, 0.9, 0.7])
    return make_report(
        [0, 0, 1, 1, 1, 0],
        np.stack([1 - p, p], 1),
        labels=["NORMAL", "PNEUMONIA"],
        threshold=0.5,
        names=[f"secret-{i}.png" for i in range(6)],
        patients=[f"patient-{i}" for i in range(6)],
    )


def test_a_sound_bundle_loads_and_runs(made):
    loaded = bundle.load(made)
    assert loaded.report is None
    output = loaded.runtime.run(bundle.probe_image(tiny_network.SIZE)[None])
    assert output.probabilities[0].tolist() == pytest.approx(loaded.config.probe, abs=1e-6)


def test_the_probe_image_never_changes():
    pixels = np.round(bundle.probe_image(224) * 255).astype(np.uint8)
    assert (
        hashlib.sha256(pixels.tobytes()).hexdigest()
        == "900fec82703bc5cd1f622fe7913be886000ca0ec296e44a7282f0b41e3707b6b"
    )
    assert 0.1 < bundle.probe_image(224).std() < 0.4


def test_an_altered_file_is_named(made):
    data = bytearray((made / "model.tflite").read_bytes())
    data[-1] ^= 1
    (made / "model.tflite").write_bytes(data)
    with pytest.raises(
        BundleError, match=r"model\.tflite was altered or damaged: its SHA-256 is not the one that config\.json lists"
    ):
        bundle.load(made)


def test_a_missing_file_is_named(made):
    (made / "README.md").unlink()
    with pytest.raises(BundleError, match=r"is not complete: README\.md cannot be read \(no such file\)"):
        bundle.load(made)


def test_another_network_fails_the_golden_probe(made):
    other = tiny_network.pack(tiny_network.network(seed=1))
    (made / "model.tflite").write_bytes(other)
    files = json.loads((made / "config.json").read_text())["files"]
    change(made, files={**files, "model.tflite": hashlib.sha256(other).hexdigest()})
    with pytest.raises(
        BundleError, match=r"fails its golden probe: the probe image gives 0\.\d+, 0\.\d+, and must give 0\.\d+, 0\.\d+"
    ):
        bundle.load(made)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 99}, "has schema 99, this version reads schema 2: install a version that reads it"),
        ({"schema": 1}, "it was made by cxrlib 0.1, so train it again with this version, or install 0.1"),
        ({"image_size": 64}, "does not fit config.json: another image size or number of labels"),
        ({"files": {}}, r"config.json lists no model.tflite"),
        ({"temperature": "hot"}, "is not the config of a cxrlib bundle: config.temperature must be float"),
        ({"surprise": 1}, "unknown fields: surprise"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(made, fields, message):
    change(made, **fields)
    with pytest.raises(BundleError, match=message):
        bundle.load(made)


def test_what_is_not_a_bundle_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no bundle at"):
        bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"is not a cxrlib bundle: it has no config\.json"):
        bundle.load(tmp_path)
    with pytest.raises(BundleError, match="bytes, more than"):
        bundle.read_config(b" " * (9 * 2**20))
    with pytest.raises(BundleError, match="is not the config of a cxrlib bundle"):
        bundle.read_config(b"[" * 100_000)


def test_a_saved_bundle_is_whole_and_loads(tmp_path):
    config, network = parts()
    config = dataclasses.replace(config, probe=(0.5, 0.5), files={}, versions={})
    model, formats, history = Model(), ("keras", "h5"), {"loss": [0.5, 0.4]}
    made = bundle.save(
        tmp_path / "deep" / "made", config, network, model=model, formats=formats, report=report(), history=history
    )
    assert os.listdir(made.parent) == ["made"]
    loaded = bundle.load(made)
    kept = {"probe": loaded.config.probe, "files": loaded.config.files, "versions": loaded.config.versions}
    assert loaded.config == dataclasses.replace(config, **kept)
    assert loaded.config.probe == bundle.probe(loaded.runtime)
    assert {"python", "cxrlib", "numpy"} < set(loaded.config.versions)
    assert loaded.report.auroc == report().auroc
    listed = set(loaded.config.files)
    assert {"README.md", "figures/history.png", "model.h5", "model.keras", "model.tflite", "report.json"} < listed
    assert listed == {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()} - {"config.json"}
    assert "0.4" in (made / "README.md").read_text("utf-8")


def test_no_image_and_no_patient_is_named_in_a_bundle(tmp_path):
    made = bundle.save(tmp_path / "made", *parts(), report=report())
    for path in made.rglob("*"):
        if path.is_file():
            assert b"secret-" not in path.read_bytes()
            assert b"patient-" not in path.read_bytes()
    assert not list(made.rglob("samples*"))


def test_a_bundle_without_a_report_or_a_keras_model(tmp_path):
    (tmp_path / "made").mkdir()  # an empty folder may be there
    made = bundle.save(tmp_path / "made", *parts())
    assert sorted(os.listdir(made)) == ["README.md", "config.json", "model.tflite"]
    assert bundle.load(made).report is None


def test_saving_never_overwrites(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match=f"{name} exists: choose another folder, nothing was written"):
            bundle.save(tmp_path / name, *parts())
    with pytest.raises(ValueError, match=r"formats must be \('keras',\), \('h5',\) or both\. Received: formats="):
        bundle.save(tmp_path / "new", *parts(), formats=("onnx",))
    with pytest.raises(BundleError, match="not a LiteRT model"):
        bundle.save(tmp_path / "new", parts()[0], b"garbage")
    assert sorted(os.listdir(tmp_path)) == ["file", "thesis"]


def test_a_moved_bundle_is_the_same_bundle(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    assert bundle.load(tmp_path / "copy").config == bundle.load(made).config


def test_the_card_of_a_published_bundle_names_its_repository(tmp_path):
    made = bundle.save(tmp_path / "made", *parts(), report=report())
    content = bundle.for_hub(bundle.load(made), "user/repo")
    assert b"user/repo" in content["README.md"]
    assert content["model.tflite"] == made / "model.tflite"
    tiny_network.write(made, {name: data for name, data in content.items() if isinstance(data, bytes)})
    assert bundle.load(made).config.files["README.md"] == hashlib.sha256(content["README.md"]).hexdigest()


# --- killed, and several at once ---


def test_an_interrupted_save_leaves_nothing(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle.save(tmp_path / "made", *parts(), model=Model(stop))
    assert os.listdir(tmp_path) == []


def test_one_process_saves_at_a_time(tmp_path):
    writing, go_on = threading.Event(), threading.Event()

    def wait():
        writing.set()
        go_on.wait(20)

    first = threading.Thread(target=bundle.save, args=(tmp_path / "made", *parts()), kwargs={"model": Model(wait)})
    first.start()
    assert writing.wait(20)
    with pytest.raises(BlockingIOError, match=r"another process is writing .*made: choose another folder"):
        bundle.save(tmp_path / "made", *parts())
    go_on.set()
    first.join()
    assert os.listdir(tmp_path) == ["made"]
    bundle.load(tmp_path / "made")


VICTIM = """
import json, os, sys
from pathlib import Path
from cxrlib import bundle
from cxrlib.config import BundleConfig, from_dict
steps = int(sys.argv[3])
source = Path(sys.argv[1])
config = from_dict(BundleConfig, json.loads((source / "config.json").read_text()))

def die(event, arguments):
    global steps
    wrote = event == "open" and ".part" in str(arguments[0]) and arguments[2] & os.O_WRONLY
    if wrote or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), 9)

sys.addaudithook(die)
bundle.save(sys.argv[2], config, (source / "model.tflite").read_bytes())
"""


@pytest.mark.skipif(os.name != "posix", reason="no kill -9 here")
def test_a_save_killed_at_any_step_leaves_nothing_or_a_whole_bundle(made, tmp_path):
    target, ends, found = tmp_path / "out" / "new", [], set()
    target.parent.mkdir()
    for steps in range(20):
        command = [sys.executable, "-c", VICTIM, str(made), str(target), str(steps)]
        ends.append(subprocess.run(command, env={**os.environ, "PYTHONPATH": ROOT}, check=False).returncode)
        found.add(target.exists())
        if not target.exists():
            bundle.save(target, *parts())  # the next one clears up
            assert os.listdir(target.parent) == ["new"]
        assert bundle.load(target).config.temperature == 1.3
        shutil.rmtree(target)
        if ends[-1] == 0:
            break
    assert ends[-1] == 0
    assert set(ends[:-1]) == {-signal.SIGKILL}
    assert len(ends) > 6
    assert found == {True, False}
