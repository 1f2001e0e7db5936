"""Training in several processes, or on several devices, gives what one device gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="needs the [train] extra")
pytest.importorskip("jax", reason="needs JAX")

pytestmark = pytest.mark.slow

FIT = """
import json, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from cxrlib.network import devices
devices.join()
import small_backbone
small_backbone.install()
from conftest import small_recipe
from test_fit import sides
from cxrlib.network.fit import Side, fit
from cxrlib.network.model import build_model

read = 0
class Counted(Side):
    def batch(self, chosen):
        global read
        images = super().batch(chosen)
        read += len(images)
        return images

recipe = small_recipe(sys.argv[3])
train, validation = sides(26, 13)  # the last validation batch is half a one, of an odd number of images
train = Counted(train.images, train.index, train.dataset)
with devices.sharing():
    net = build_model(recipe=recipe, weights=None)
    history = fit(net, train, validation, recipe, Path(sys.argv[1]), progress=False)
weights = [float(np.abs(w).sum()) for w in net.get_weights()]
print(json.dumps({"rank": devices.rank(), "history": history, "weights": weights, "read": read}))
"""
TRAIN = """
import sys
sys.path.insert(0, sys.argv[2])
import functools, small_backbone
small_backbone.install()
from cxrlib.network import gate_fit
gate_fit.fit = functools.partial(gate_fit.fit, made=120)
from conftest import small_recipe
from cxrlib import train
print(train(sys.argv[3], output=sys.argv[1], recipe=small_recipe(), progress=False).bundle)
"""


@pytest.fixture(scope="module", autouse=True)
def _compiled(tmp_path_factory):
    """What XLA has compiled is kept for the next process: most of the time goes there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


def start(code: str, folder: Path, *words: str, devices: int = 1, **environment: str) -> subprocess.Popen:
    tests = Path(__file__).parent
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(tests.parent), **environment}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    command = [sys.executable, "-c", code, str(folder), str(tests), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return out


def two() -> list[dict[str, str]]:
    """The environments of two processes that train as one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    names = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": address, "KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}
    return [{**names, "KERAS_DISTRIBUTION_PROCESS_ID": str(rank)} for rank in range(2)]


@pytest.mark.parametrize("recipe", ["default", "textbook"])
def test_two_processes_and_two_devices_train_as_one(tmp_path, recipe):
    for name in ("one", "devices", "two"):
        (tmp_path / name).mkdir()
    runs = [
        start(FIT, tmp_path / "one", recipe),
        start(FIT, tmp_path / "devices", recipe, devices=2),
        *(start(FIT, tmp_path / "two", recipe, **names) for names in two()),
    ]
    one, both, first, second = (json.loads(output(run).splitlines()[-1]) for run in runs)
    assert [run["rank"] for run in (one, both, first, second)] == [0, 0, 0, 1]
    for other in (both, first, second):
        for name, values in one["history"].items():
            assert other["history"][name] == pytest.approx(values, abs=1e-3), name
        assert other["weights"] == pytest.approx(one["weights"], rel=1e-3)
    assert first["weights"] == second["weights"]
    assert first["read"] < one["read"]
    assert sorted(os.listdir(tmp_path / "two")) == sorted(os.listdir(tmp_path / "one"))


def test_the_first_of_two_processes_writes_the_bundle(tmp_path, phantoms):
    runs = [start(TRAIN, tmp_path / "run", str(phantoms), CXRLIB_CACHE=str(tmp_path / "cache"), **n) for n in two()]
    said = [[line for line in output(run).splitlines() if not line.startswith("[Gloo]")] for run in runs]
    assert said == [[str(tmp_path / "run")], []]
    assert {"config.json", "model.tflite", "model.keras", "report.json"} <= set(os.listdir(tmp_path / "run"))
    assert not (tmp_path / "run.partial").exists()


def test_several_processes_need_jax(monkeypatch):
    from cxrlib.network import devices

    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match=r"several processes needs KERAS_BACKEND=jax\. Received: KERAS_BACKEND=tensor"):
        devices.join()


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    code = FIT.replace("small_recipe(sys.argv[3])", "small_recipe(batch_size=9)")
    process = start(code, tmp_path, "default", devices=2)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "batch_size must be a multiple of the number of devices, 2. Received: 9" in errors
