"""A bundle's network in the formats of other runtimes, each compared with the bundle on images."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlib import bundle
from cxrlib.images import decode as images_
from cxrlib.images import phantom
from cxrlib.images.sources import Source
from cxrlib.predictor import Predictor, check_many
from cxrlib.runtime.litert import Runtime

if TYPE_CHECKING:
    import keras

_DRAWINGS = 16  # to compare on, where no images are given
_CALIBRATION = 300  # images that the ranges of int8 are taken from, at most
_BATCH = 7  # besides single images: no other size has it by chance

_Run = Callable[[np.ndarray], np.ndarray]  # (n, s, s, 1) float32 in [0, 1] -> probabilities (n, k)


@dataclass(frozen=True)
class Format:
    """A format that a network can be exported to.

    Args:
        suffix: How the file's name ends; empty for a folder.
        tolerance: Largest accepted difference of a probability from the bundle's.
        write: Writes the network (the served graph, a path, images (n, s, s, 1)) and returns how to run what it wrote.
        needs: Libraries besides TensorFlow that it takes, by import name.
    """

    suffix: str
    tolerance: float
    write: Callable[[Any, Path, np.ndarray], _Run]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and how it compares with the bundle.

    Args:
        path: The file, or for `"saved_model"` the folder.
        format: Its format.
        images: Number of images it was compared on.
        difference: Largest difference of any of their probabilities from the bundle's.
        changed: Number of images that get another label than from the bundle.

    Example:
        >>> print(Exported(Path("model.tflite"), "int8", 300, 0.034, 2))
        model.tflite: int8, compared on 300 images: probabilities differ by at most 0.034, labels of 2 images change
    """

    path: Path
    format: str
    images: int
    difference: float
    changed: int

    def __str__(self) -> str:
        n, changed = (f"{n} image{'s' if n != 1 else ''}" for n in (self.images, self.changed))
        labels = f"labels of {changed} change" if self.changed else "no label changes"
        agreement = f"probabilities differ by at most {self.difference:.2g}, {labels}"
        return f"{self.path}: {self.format}, compared on {n}: {agreement}"


def export(
    model: str | os.PathLike[str] | None, output: str | os.PathLike[str], *, format: str, images: Iterable[Source] = ()
) -> Exported:
    """Write a bundle's network in another format, and compare its answers with the bundle's.

    All formats take images as `cxrlib.images.decode.fit` makes them, (n, s, s, 1) float32 in [0, 1], in any number, and
    return `probabilities` (n, k), calibrated, `evidence` (n, h, w, k) and `embedding` (n, d). The gate and the
    operating points are not in the file.

    Args:
        model: A bundle's folder, `hf://user/repo[@revision]`, or `None` or `"default"` for the bundled model.
        output: The file to write, `.keras`, `.onnx` or `.tflite`, or for `"saved_model"` a folder that does not exist.
        format: One of `FORMATS`: `"keras"`, `"onnx"`, `"saved_model"`, or LiteRT as `"litert"` (float32), `"float16"`
            (weights of 16 bits, half the size) or `"int8"` (weights and activations of 8 bits, a quarter of the size).
        images: Images to compare on; `"int8"` takes its ranges from them, and needs some hundred of all sources. By
            default drawings.

    Returns:
        Where it is, and how it compares.

    Raises:
        TypeError: If `images` is a single image.
        ValueError: If the format is not known, the output has another suffix, or int8 gets no images.
        FileExistsError: If the folder of a SavedModel exists.
        ImageError: If an image cannot be read.
        RuntimeError: If the exported network differs too much from the bundle; nothing is written.
        ImportError: If TensorFlow, or for ONNX its converter, is not installed.

    Example:
        >>> export(None, "model.txt", format="onnx")
        Traceback (most recent call last):
        ValueError: output must end with '.onnx' for onnx. Received: 'model.txt'
    """
    target = Path(output)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}. Received: format={format!r}")
    form = FORMATS[format]
    if form.suffix and target.suffix != form.suffix:
        raise ValueError(f"output must end with {form.suffix!r} for {format}. Received: {str(target)!r}")
    if not form.suffix and target.exists():
        raise FileExistsError(f"{target} exists: choose another folder, nothing was written")
    check_many(images)
    sources = list(images)
    if format == "int8" and not sources:
        raise ValueError("int8 takes the ranges of its numbers from images: give some hundred, of all sources")
    _check_installed(form)
    predictor = Predictor(model, gate=False)
    size = predictor.config.image_size
    sources = sources or [phantom.draw(i, opacity=i % 2 == 1) for i in range(_DRAWINGS)]
    x = np.stack([images_.fit(images_.read(source, model_size=size), size) for source in sources])  # (n, s, s, 1)
    wanted = np.array([list(p.probabilities.values()) for p in predictor.predict(sources)])  # (n, k)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        made = Path(place) / (target.name if form.suffix else "saved_model")
        with _quiet():
            run = form.write(_served(predictor), made, x)
            found = np.concatenate([run(image[None]) for image in x])  # (n, k)
            batch = run(np.resize(x, (_BATCH, *x.shape[1:])))  # (7, k)
        errors = np.abs(found - wanted).max(), np.abs(batch - np.resize(wanted, batch.shape)).max()
        difference = float(np.max(errors))
        if not difference <= form.tolerance:
            raise RuntimeError(
                f"the {format} network differs from the bundle's probabilities by {difference:.2g} on {len(x)} images, "
                f"more than {form.tolerance:g}: nothing was written"
            )
        shutil.move(made, target) if made.is_dir() else made.replace(target)
    changed = int((_labels(found, predictor.threshold) != _labels(wanted, predictor.threshold)).sum())
    return Exported(target, format, len(x), difference, changed)


def _labels(p: np.ndarray, threshold: float | None) -> np.ndarray:
    """The label that each row (n, k) stands for, as a number; with a threshold whether it is the positive one."""
    return p.argmax(axis=1) if threshold is None else p[:, 1] >= threshold


def _check_installed(form: Format) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError('exports need TensorFlow: pip install "cxrlib[train]"')
    import keras

    if keras.backend.backend() != "tensorflow":
        backend = keras.backend.backend()
        raise RuntimeError(f"exports need Keras on TensorFlow: set KERAS_BACKEND=tensorflow. Received: {backend}")
    if missing := [name for name in form.needs if importlib.util.find_spec(name) is None]:
        raise ImportError(f'the export to ONNX needs {", ".join(missing)}: pip install "cxrlib[onnx]"')


def _served(predictor: Predictor) -> keras.Model:
    """The served graph with the temperature inside: dividing the last layer by it divides its logits."""
    from cxrlib.network.model import build_model, serving_graph

    config = predictor.config
    net = build_model(config.labels, recipe=config.recipe, weights=None)
    bundle.load_weights(net, predictor.folder)
    last = net.get_layer("probability")
    last.set_weights([w / config.temperature for w in last.get_weights()])
    return serving_graph(net)


def _onnx(net: keras.Model, path: Path, images: np.ndarray) -> _Run:
    import onnxruntime

    net(images[:1])  # the converter wants a network that has been called
    net.export(str(path), format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [image] = session.get_inputs()
    return lambda x: np.asarray(session.run(["probabilities"], {image.name: x})[0])


def _saved_model(net: keras.Model, path: Path, images: np.ndarray) -> _Run:
    import tensorflow as tf

    net.export(str(path), format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(str(path))  # kept by the function below: a signature does not keep its model alive
    return lambda x: np.asarray(loaded.signatures["serving_default"](tf.constant(x))["probabilities"])


def _keras(net: keras.Model, path: Path, images: np.ndarray) -> _Run:
    import keras

    net.save(path)
    loaded = keras.models.load_model(path)
    return lambda x: np.asarray(loaded.predict_on_batch(x)["probabilities"])


def _litert(net: keras.Model, path: Path, images: np.ndarray, **options: Any) -> _Run:
    net.export(str(path), format="litert", verbose=False, **options)
    runtime = Runtime(path, trusted=True)
    return lambda x: runtime.run(x).probabilities


def _float16(net: keras.Model, path: Path, images: np.ndarray) -> _Run:
    import tensorflow as tf

    spec = {"supported_types": [tf.float16]}
    return _litert(net, path, images, optimizations=[tf.lite.Optimize.DEFAULT], target_spec=spec)


def _int8(net: keras.Model, path: Path, images: np.ndarray) -> _Run:
    import tensorflow as tf

    chosen = np.linspace(0, len(images) - 1, min(len(images), _CALIBRATION)).astype(int)
    options = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    return _litert(net, path, images, representative_dataset=lambda: ([images[i : i + 1]] for i in chosen), **options)


FORMATS = {
    # onnxruntime sums a whole image, which the network standardises, in another order
    "onnx": Format(".onnx", 1e-3, _onnx, ("tf2onnx", "onnx", "onnxruntime")),
    "keras": Format(".keras", 1e-4, _keras),
    "saved_model": Format("", 1e-4, _saved_model),
    "litert": Format(".tflite", 1e-4, _litert),
    "float16": Format(".tflite", 0.02, _float16),
    "int8": Format(".tflite", 0.1, _int8),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters write much; what matters comes as an exception."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
