"""How fast prediction is, against the alternatives: `python benchmarks/predict.py [PART…]`.

The parts are `imports`, `cold`, `one`, `folder` and `small`; all when none is named.
One run, the same images, rounds in shuffled order, medians of times and of the ratios in each round: only the ratios
mean something on another machine. The images are those of `data/native` in CXRLIB_SHARED. Prints JSON. Needs the extras
[train] and [onnx]; OpenVINO is measured where it is installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cxrlib import Predictor, bundle
from cxrlib.export import export
from cxrlib.images import sources
from cxrlib.images.decode import fit, read
from cxrlib.runtime.litert import usable_cores

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))
IMAGES = sources.find(SHARED / "data" / "native")
CORES = usable_cores()
SIZE = 224
# seconds of calls before a timed one: threads of the way before may spin for milliseconds, and cores have slept
STEADY = 0.05
KERAS_SCRIPT = """
import sys, keras
model = keras.models.load_model(sys.argv[1])
image = keras.utils.load_img(sys.argv[2], color_mode="grayscale", target_size=(224, 224), interpolation="bicubic")
image = keras.utils.img_to_array(image) / 255
print(model.predict(image[None], verbose=0))
"""


def clock(work: Callable[[], Any], steady: float = 0) -> Callable[[], float]:
    """Seconds that one call takes, after so many seconds of calls that are not measured."""

    def seconds() -> float:
        end = time.perf_counter() + steady
        while time.perf_counter() < end:
            work()
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return seconds


def timed(ways: dict[str, Callable[[], float]], rounds: int, warm: int = 1) -> dict[str, np.ndarray]:
    """Seconds of each way in each round, in another order each round, since what a way leaves in caches and threads
    burdens the next one."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways.items())
    random = np.random.default_rng(0)
    for turn in range(-warm, rounds):
        random.shuffle(order)
        for name, seconds in order:
            spent = seconds()
            if turn >= 0:
                times[name].append(spent)
    return {name: np.array(spent) for name, spent in times.items()}


def ratio(some: np.ndarray, others: np.ndarray) -> float:
    """The median of the rounds' ratios: the machine is slower in some rounds than in others."""
    return float(np.median(some / others))


def keras_model() -> Any:
    from cxrlib import build_model

    model = build_model(weights=None)
    bundle.load_weights(model, bundle.DEFAULT)
    return model


def interpreter(model: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """LiteRT as its manual shows it."""
    from ai_edge_litert.interpreter import Interpreter

    bare = Interpreter(model_content=model, num_threads=CORES)
    bare.allocate_tensors()
    image, outputs = bare.get_input_details()[0]["index"], bare.get_signature_runner().get_output_details()

    def run(x: np.ndarray) -> np.ndarray:
        bare.set_tensor(image, x)
        bare.invoke()
        return np.asarray(bare.get_tensor(outputs["probabilities"]["index"]))

    return run


def way_predictor(_: Path) -> Callable[[np.ndarray], Any]:
    """cxrlib from pixels to Prediction, its gate included; the others are the network alone."""
    return Predictor()


def way_runtime(_: Path) -> Callable[[np.ndarray], Any]:
    return Predictor()._bundle.runtime.run


def way_litert(_: Path) -> Callable[[np.ndarray], Any]:
    return interpreter((bundle.DEFAULT / bundle.RUNTIME).read_bytes())


def way_onnx(model: Path) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(["probabilities"], {name: image})


def way_openvino(model: Path) -> Callable[[np.ndarray], Any]:
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": CORES}
    return openvino.compile_model(openvino.convert_model(str(model)), "CPU", hints)


def way_keras(_: Path) -> Callable[[np.ndarray], Any]:
    model = keras_model()
    return lambda image: model.predict(image, verbose=0)


def serve(build: Callable[[Path], Callable[[np.ndarray], Any]], model: Path, asked: Connection) -> None:
    """Time one call whenever asked to."""
    fitted = [fit(read(path)) for path in IMAGES[:16]]  # (224, 224, 1)
    images = [
        np.round(image[..., 0] * 255).astype(np.uint8) if build is way_predictor else image[None] for image in fitted
    ]
    way, turn = build(model), itertools.cycle(images)
    seconds = clock(lambda: way(next(turn)), STEADY)
    while asked.recv():
        asked.send(seconds())


def one() -> dict[str, Any]:
    """One decoded image of 224 pixels after another. Each way has a process of its own, as where it is used: idle
    threads of some wait by spinning."""
    builders = {
        "cxrlib Predictor": way_predictor,
        "cxrlib Runtime": way_runtime,
        "LiteRT": way_litert,
        "ONNX Runtime": way_onnx,
        "OpenVINO": way_openvino,
        "Keras predict": way_keras,
    }
    if importlib.util.find_spec("openvino") is None:
        del builders["OpenVINO"]
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = export(None, Path(folder, "model.onnx"), format="onnx").path
        ways: dict[str, Callable[[], float]] = {}
        for name, build in builders.items():
            ask, asked = processes.Pipe()
            processes.Process(target=serve, args=(build, path, asked), daemon=True).start()
            asked.close()  # so that the end of a process that fails is noticed
            ways[name] = lambda ask=ask: (ask.send(True), ask.recv())[1]  # type: ignore[misc]
        found = timed(ways, rounds=120, warm=5)
    return {
        "milliseconds": {way: round(1000 * float(np.median(seconds)), 2) for way, seconds in found.items()},
        "Keras predict / cxrlib Predictor (25 or more)": ratio(found["Keras predict"], found["cxrlib Predictor"]),
        "cxrlib Predictor / LiteRT (1.25 or less)": ratio(found["cxrlib Predictor"], found["LiteRT"]),
        "cxrlib Runtime / LiteRT": ratio(found["cxrlib Runtime"], found["LiteRT"]),
    }


def folder() -> dict[str, Any]:
    """A folder of native images, against the usual loop, and against decoding and inference alone, one after the other,
    each on all cores."""
    import keras

    predictor, model = Predictor(), keras_model()
    images = [fit(read(path)) for path in IMAGES]
    batch = np.stack(images)

    def usual() -> None:
        for i in range(0, len(IMAGES), 32):
            loaded = [
                keras.utils.load_img(path, color_mode="grayscale", target_size=(SIZE, SIZE), interpolation="bicubic")
                for path in IMAGES[i : i + 32]
            ]
            model.predict(
                np.stack([keras.utils.img_to_array(image) for image in loaded]) / 255, batch_size=32, verbose=0
            )

    def decoding() -> None:
        with ThreadPoolExecutor(CORES) as pool:
            for _ in pool.map(lambda path: fit(read(path)), IMAGES):
                pass

    ways: dict[str, Callable[[], Any]] = {
        "cxrlib": lambda: predictor.predict(IMAGES),
        "load_img and Keras predict": usual,
        "decoding": decoding,
        "inference": lambda: predictor._bundle.runtime.run(batch),
    }
    found = timed({name: clock(work) for name, work in ways.items()}, rounds=11)
    return {
        "images": len(IMAGES),
        "images per second": {way: round(len(IMAGES) / float(np.median(seconds)), 1) for way, seconds in found.items()},
        "usual loop / cxrlib (3 or more)": ratio(found["load_img and Keras predict"], found["cxrlib"]),
        "decoding and inference alone / cxrlib (0.85 or more)": ratio(
            found["decoding"] + found["inference"], found["cxrlib"]
        ),
    }


def process(*words: str) -> tuple[float, float, float]:
    """Seconds on the clock and of processor time, and largest memory in MB, of a process."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def measured(commands: dict[str, tuple[str, ...]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Medians of `process` for each command, all of them in turn, after one for the disk's cache."""
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for turn in range(-1, rounds):
        for name, words in commands.items():
            run = process(*words)
            if turn >= 0:
                runs[name].append(run)
    return {name: tuple(statistics.median(values) for values in zip(*of, strict=True)) for name, of in runs.items()}


def cold() -> dict[str, Any]:
    """One image from a cold process, from start to end."""
    image = str(IMAGES[0])
    with tempfile.TemporaryDirectory() as place:
        file = str(Path(place) / "model.keras")
        # by another process: a child's memory counts from that of its parent
        code = "import predict, sys; predict.keras_model().save(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, file], cwd=Path(__file__).parent, check=True, capture_output=True)
        both = {
            "cxrlib predict": ("-m", "cxrlib", "predict", image),
            "Keras script": ("-c", KERAS_SCRIPT, file, image),
        }
        runs = measured(both, rounds=5)
    return {
        "seconds": {name: round(seconds, 2) for name, (seconds, _, _) in runs.items()},
        "MB (400 or less)": {name: round(memory) for name, (_, _, memory) in runs.items()},
        "cxrlib / Keras script (0.2 or less)": runs["cxrlib predict"][0] / runs["Keras script"][0],
        "the same of processor time": runs["cxrlib predict"][1] / runs["Keras script"][1],
    }


def imports() -> dict[str, Any]:
    """`import cxrlib` over bare Python."""
    runs = measured({"python": ("-c", "pass"), "import cxrlib": ("-c", "import cxrlib")}, rounds=15)
    more = [ours - bare for ours, bare in zip(runs["import cxrlib"], runs["python"], strict=True)]
    return {
        "seconds more (0.05 or less)": round(more[0], 3),
        "of processor time": round(more[1], 3),
        "MB more": round(more[2], 1),
    }


def small() -> dict[str, Any]:
    """LiteRT's smaller forms: size, time of one image, and how far they move probabilities. int8 takes its ranges from
    every other image, all are compared."""
    import keras
    import tensorflow as tf

    from cxrlib.export import _served

    images = [fit(read(path))[None] for path in IMAGES]
    net = _served(Predictor(gate=False))
    default = [tf.lite.Optimize.DEFAULT]
    forms: dict[str, dict[str, Any]] = {
        "float32": {},
        "float16": {"optimizations": default, "target_spec": {"supported_types": [tf.float16]}},
        "dynamic range": {"optimizations": default},
        "int8": {"optimizations": default, "representative_dataset": lambda: ([image] for image in images[::2])},
    }
    runs, sizes = {}, {}
    with tempfile.TemporaryDirectory() as place:
        for name, options in forms.items():
            path = Path(place, f"{name}.tflite")
            net.export(str(path), format="litert", verbose=False, **options)
            sizes[name], runs[name] = path.stat().st_size, interpreter(path.read_bytes())
    p = {name: np.array([run(image)[0, 1] for image in images]) for name, run in runs.items()}
    turn = itertools.cycle(images)
    found = timed(
        {name: clock(lambda run=run: run(next(turn)), STEADY) for name, run in runs.items()}, rounds=60, warm=5
    )  # type: ignore[misc]
    keras.backend.clear_session()
    return {
        name: {
            "MB": round(sizes[name] / 1e6, 2),
            "time, float32 = 1": ratio(found[name], found["float32"]),
            "largest change of a probability": float(np.abs(p[name] - p["float32"]).max()),
            "mean change": float(np.abs(p[name] - p["float32"]).mean()),
        }
        for name in forms
    }


def main(parts: list[str]) -> None:
    every = {"imports": imports, "cold": cold, "one": one, "folder": folder, "small": small}
    for part in parts or list(every):
        print(json.dumps({part: every[part]()}, indent=1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
