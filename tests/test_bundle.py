"""The bundle: all of it or nothing, and every check says which one failed."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_network

from cxrlib import bundle
from cxrlib.config import BundleConfig, BundleError, OperatingPoint, from_dict
from cxrlib.metrics.compute import make_report

ROOT = str(Path(__file__).parents[1])


@pytest.fixture
def made(tmp_path):
    return tiny_network.write(tmp_path / "made", tiny_network.files())


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


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
    with pytest.raises(BundleError, match=r"is not complete: README\.md is missing or no file"):
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
        ({"schema": 99}, "has schema 99, this cxrlib reads schema 1: install a cxrlib that reads it"),
        ({"image_size": 64}, "does not fit config.json: another image size or number of labels"),
        ({"files": {}}, r"config.json lists no model.tflite"),
        ({"temperature": "hot"}, "is no config of a cxrlib bundle: config.temperature must be float"),
        ({"surprise": 1}, "unknown fields: surprise"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(made, fields, message):
    change(made, **fields)
    with pytest.raises(BundleError, match=message):
        bundle.load(made)


def test_what_is_no_bundle_is_said_to_be_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no bundle at"):
        bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"is no cxrlib bundle: it has no config\.json"):
        bundle.load(tmp_path)
    with pytest.raises(BundleError, match="bytes, more than"):
        bundle.read_config(b" " * (9 * 2**20))
    with pytest.raises(BundleError, match="is no config of a cxrlib bundle"):
        bundle.read_config(b"[" * 100_000)


def test_an_update_changes_what_it_is_told_and_no_more(made):
    before = bundle.load(made).config
    points = {"screening": OperatingPoint(0.2, 0.99, 0.8)}
    bundle.update(made, report=report(), temperature=2.0, operating_points=points, default_point="screening")
    after = bundle.load(made)
    assert after.config == dataclasses.replace(
        before, temperature=2.0, operating_points=points, default_point="screening", files=after.config.files
    )
    assert after.config.files["model.tflite"] == before.files["model.tflite"]
    assert after.report.auroc == report().auroc
    assert {"report.json", "README.md"} < set(after.config.files)
    assert "0.2" in (made / "README.md").read_text("utf-8")


def test_an_update_takes_along_what_is_not_the_bundles(made):
    (made / "run").mkdir()
    (made / "run" / "split.csv").write_text("path,label")
    (made / "notes.txt").write_text("mine")
    for _ in range(2):
        bundle.update(made, report=report())
        assert (made / "run" / "split.csv").read_text() == "path,label"
        assert (made / "notes.txt").read_text() == "mine"
        assert not {"run/split.csv", "notes.txt"} & set(bundle.load(made).config.files)


def test_another_report_leaves_the_history_where_it_is(made):
    bundle.update(made, report=report(), history={"loss": [0.5, 0.4]})
    drawn = (made / "figures" / "history.png").read_bytes()
    bundle.update(made, report=report())
    assert (made / "figures" / "history.png").read_bytes() == drawn
    assert "figures/history.png" in bundle.load(made).config.files
    bundle.update(made, report=report(), history={"loss": [0.5, 0.4, 0.1]})
    assert (made / "figures" / "history.png").read_bytes() != drawn


def test_no_film_and_no_patient_is_named_in_a_bundle(made):
    bundle.update(made, report=report())
    for path in made.rglob("*"):
        if path.is_file():
            assert b"secret-" not in path.read_bytes()
            assert b"patient-" not in path.read_bytes()
    assert not list(made.rglob("samples*"))


def test_an_interrupted_update_leaves_the_old_bundle(made, monkeypatch):
    before = (made / "config.json").read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "_replace", stop)
    with pytest.raises(KeyboardInterrupt):
        bundle.update(made, temperature=3.0)
    assert (made / "config.json").read_bytes() == before
    assert os.listdir(made.parent) == ["made"]
    bundle.load(made)


def test_saving_never_overwrites_what_is_no_bundle(tmp_path):
    pytest.importorskip("keras", reason="needs the [train] extra")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    config = from_dict(BundleConfig, json.loads(tiny_network.files()["config.json"]))
    with pytest.raises(
        FileExistsError, match="exists and is no cxrlib bundle: choose another folder, nothing was written"
    ):
        bundle.save(tmp_path / "thesis", None, config)
    with pytest.raises(ValueError, match=r"formats must be \('keras',\), \('h5',\) or both\. Received: formats="):
        bundle.save(tmp_path / "new", None, config, formats=("onnx",))
    assert sorted(os.listdir(tmp_path)) == ["thesis"]


def test_a_moved_bundle_is_the_same_bundle(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    assert bundle.load(tmp_path / "copy").config == bundle.load(made).config


# --- killed, and several at once ---

VICTIM = """
import os, sys
from cxrlib import bundle
steps = int(sys.argv[2])

def die(event, arguments):
    global steps
    if event == "os.rename" or event.startswith("shutil.") or (event == "open" and ".part" in str(arguments[0]) and arguments[2] & os.O_WRONLY):
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), 9)

sys.addaudithook(die)
true = bundle._exchange
if sys.argv[3] == "exchange":
    bundle._exchange = lambda a, b: (die("os.rename", ()), true(a, b), die("os.rename", ()))[1]
else:
    bundle._exchange = lambda a, b: False
bundle.update(sys.argv[1], temperature=2.0)
"""


@pytest.mark.skipif(os.name != "posix", reason="no kill -9 here")
@pytest.mark.parametrize("how", ["exchange", "rename"])
def test_a_killed_update_leaves_a_whole_bundle_and_the_next_one_clears_up(made, how):
    """At whatever step: only where the system cannot exchange folders is there a moment between two renames, which the next update repairs."""
    ends, found = [], set()
    for steps in range(20):
        ends.append(
            subprocess.run(
                [sys.executable, "-c", VICTIM, str(made), str(steps), how],
                env={**os.environ, "PYTHONPATH": ROOT},
                check=False,
            ).returncode
        )
        if made.exists():
            found.add(bundle.load(made).config.temperature)
        else:
            assert how == "rename"
        if ends[-1] == 0:
            break
        bundle.update(made, temperature=1.3)
        assert os.listdir(made.parent) == ["made"]
    assert ends[-1] == 0
    assert set(ends[:-1]) == {-signal.SIGKILL}
    assert len(ends) > 6
    assert found == {1.3, 2.0}


def test_two_updates_at_once_follow_each_other(made):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda note: bundle.update(made, notes=(*bundle.load(made).config.notes, note)), "abcd"))
    assert bundle.load(made).config.notes[-1] in "abcd"
    assert os.listdir(made.parent) == ["made"]


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(made, monkeypatch):
    read, raced = bundle._read, []

    def race(root, name, *limit):
        if name == bundle.CARD and not raced:
            raced.append(name)
            bundle.update(made, notes=("newer",))  # between the config and the card
        return read(root, name, *limit)

    monkeypatch.setattr(bundle, "_read", race)
    assert bundle.load(made).config.notes == ("newer",)
    assert raced


def test_an_update_of_nothing(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path / "nowhere" / "below"):
        with pytest.raises(FileNotFoundError, match="there is no bundle at"):
            bundle.update(folder, temperature=2.0)
    assert not os.listdir(tmp_path)
