"""Training in several processes, and on several devices, gives what one process gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="needs the [train] extra")
pytest.importorskip("jax", reason="needs JAX")

FIT = """
import json, sys
from pathlib import Path
import keras
import numpy as np
from cxrlib.network import fit as fitting, machines
from cxrlib.images import phantom
from cxrlib.data import split as sampling
from cxrlib.config import TrainConfig
from cxrlib.data.scan import Dataset
from cxrlib.network.layers import FindLungs, Reframe

machines.join()
folder, n = Path(sys.argv[1]), 28
sizes = {"image_size": 32, "batch_size": 8, "epochs": 2, "views": 2, "average": 2}
config = TrainConfig(**sizes, dropout=0.2, fine_tune_from="block", mixup=float(sys.argv[2]))
films = Dataset(tuple(map(str, range(n))), np.arange(n) % 2, ("NORMAL", "PNEUMONIA"), (None,) * n, ("home",) * n, (None,) * n)
pixels = np.stack([phantom.draw(i, opacity=bool(i % 2), size=32) for i in range(n)])
read = []
class Counted(sampling.Side):
    def batch(self, chosen):
        read.append(len(self.index[chosen]))
        return super().batch(chosen)
sides = [Counted(pixels, index, films.take(index)) for index in (np.arange(20), np.arange(20, n))]  # the last batch is half a one
with machines.sharing():
    film = keras.Input((32, 32, 1))
    initial = keras.initializers.GlorotUniform(seed=1)
    x = keras.layers.Conv2D(8, 8, strides=4, activation="relu", name="block", kernel_initializer=initial)(film)
    x = keras.layers.BatchNormalization(name="normal")(x)
    x = Reframe(name="reframe")([keras.layers.GlobalAveragePooling2D(name="pool")(x), FindLungs(name="edges")(film)])
    x = keras.layers.Dropout(0.2, seed=2, name="dropout")(x)
    net = keras.Model(film, keras.layers.Dense(1, activation="sigmoid", name="probability", kernel_initializer=initial)(x))
    lines = []
    history, _ = fitting.fit(net, net, *sides, config, folder, lines.append)
    weights = [float(np.abs(w).sum()) for w in net.get_weights()]
print(json.dumps({"processes": machines.count(), "loss": history["loss"], "head": lines[0], "weights": weights, "read": sum(read)}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where what XLA has compiled is kept for the next process: most of the time goes there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


def start(folder: Path, mixup: float = 0.0, devices: int = 1, **environment: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **environment,
    }
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return subprocess.Popen(
        [sys.executable, "-c", FIT, str(folder), str(mixup)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> dict:
    out, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def names(rank: int, port: int) -> dict[str, str]:
    return {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_two_processes_and_two_devices_train_as_one(tmp_path, mixup):
    port = free_port()
    runs = [
        start(tmp_path / "one", mixup),
        start(tmp_path / "devices", mixup, devices=2),
        *(start(tmp_path / "two", mixup, **names(rank, port)) for rank in range(2)),
    ]
    one, devices, first, second = map(result, runs)
    assert [run["processes"] for run in (one, devices, first, second)] == [1, 1, 2, 2]
    assert len(one["loss"]) == 2
    for other in (devices, first, second):
        assert other["loss"] == pytest.approx(one["loss"], abs=2e-5)
        assert other["weights"] == pytest.approx(one["weights"], rel=1e-3)
    assert first["weights"] == second["weights"]
    if not mixup:
        assert first["read"] < one["read"]
    assert sorted(os.listdir(tmp_path / "two")) == sorted(os.listdir(tmp_path / "one"))
