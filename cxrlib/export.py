"""A bundle's network in the forms that other runtimes read, each checked against the bundle on films."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlib import bundle
from cxrlib.images import decode as images
from cxrlib.images import phantom
from cxrlib.images.sources import Source
from cxrlib.predictor import Predictor, check_many
from cxrlib.runtime.litert import Runtime

if TYPE_CHECKING:
    import keras

TOLERANCE = {
    "onnx": 1e-4,
    "saved_model": 1e-4,
    "litert": 1e-4,
    "int8": 0.1,
}  # by format: how far any probability may be off
_SUFFIX = {"onnx": ".onnx", "saved_model": "", "litert": ".tflite", "int8": ".tflite"}
_PHANTOMS = 16
_CALIBRATION = 300  # films that the ranges of int8 are read off, at most

_Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Exported:
    """What an export left.

    Args:
        path: The file, or for `"saved_model"` the folder.
        format: Its form.
        films: On how many films it was checked.
        difference: The farthest that any of their probabilities is from the bundle's.

    Example:
        >>> print(Exported(Path("model.onnx"), "onnx", 16, 2e-7))
        model.onnx: probabilities within 2.0e-07 of the bundle's on 16 films
    """

    path: Path
    format: str
    films: int
    difference: float

    def __str__(self) -> str:
        return f"{self.path}: probabilities within {self.difference:.1e} of the bundle's on {self.films} film{'s' if self.films != 1 else ''}"


def export(
    model: str | os.PathLike[str] | None, output: str | os.PathLike[str], *, format: str, films: Iterable[Source] = ()
) -> Exported:
    """Write a bundle's network in another form, and check that it answers as the bundle does.

    All forms take films as `images.fit` makes them, (n, s, s, 1) float32 in [0, 1], and give `probabilities` (n, k), calibrated, `evidence` (n, h, w, k) and
    `embedding` (n, d). The gate and the operating points stay behind: whoever runs the file has to see to them.

    Args:
        model: A bundle's folder, `hf://user/repo[@revision]`, or `None` or `"default"` for the model that comes with cxrlib; it must hold `model.keras`.
        output: The file to write, `.onnx` or `.tflite`, or for `"saved_model"` a folder that does not exist yet.
        format: `"onnx"`, `"saved_model"`, `"litert"`, or `"int8"`: LiteRT with weights and activations of 8 bits, a quarter of the size.
        films: What to check on; int8 takes its ranges from them, so they should be many and of all sources. None for drawn phantoms, which int8 refuses.

    Returns:
        Where it is, and how well it agrees.

    Raises:
        TypeError: If `films` is a single film.
        ValueError: If the format is not known, the output has another suffix, or int8 gets no films.
        FileExistsError: If a SavedModel's folder exists.
        ImageError: If a film cannot be read.
        RuntimeError: If the exported network does not answer as the bundle does; nothing is left.
        ImportError: If TensorFlow, or for ONNX its converter, is not installed.

    Example:
        >>> export(None, "model.txt", format="onnx")
        Traceback (most recent call last):
        ValueError: output must end with '.onnx' for onnx. Received: 'model.txt'
    """
    target = Path(output)
    if format not in TOLERANCE:
        raise ValueError(f"format must be one of {', '.join(TOLERANCE)}. Received: format={format!r}")
    if _SUFFIX[format] and target.suffix != _SUFFIX[format]:
        raise ValueError(f"output must end with {_SUFFIX[format]!r} for {format}. Received: {str(target)!r}")
    if format == "saved_model" and target.exists():
        raise FileExistsError(f"{target} exists: choose another folder, nothing was written")
    check_many(films)
    films = list(films)
    if format == "int8" and not films:
        raise ValueError(
            "int8 takes the ranges of its numbers from films: name some hundred of all sources. Received: films=()"
        )
    _check_installed(format)
    predictor = Predictor(model, gate=False)
    size = predictor.config.image_size
    sources = films or [phantom.draw(i, opacity=i % 2 == 1) for i in range(_PHANTOMS)]
    x = np.stack([images.fit(images.read(source, model_size=size), size) for source in sources])  # (n, s, s, 1)
    wanted = np.array([list(p.probabilities.values()) for p in predictor.predict(sources)])  # (n, k)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        made = Path(place) / (target.name if _SUFFIX[format] else "saved_model")
        with _quiet():
            run = _WRITERS[format](_calibrated(predictor), made, x)
            difference = float(np.abs(np.concatenate([run(film[None]) for film in x]) - wanted).max())
        if not difference <= TOLERANCE[format]:
            raise RuntimeError(
                f"the {format} network is {difference:.3f} off the bundle's probabilities on {len(x)} films, more than {TOLERANCE[format]:g}"
            )
        if made.is_dir():
            shutil.move(made, target)
        else:
            made.replace(target)
    return Exported(target, format, len(x), difference)


def _check_installed(format: str) -> None:
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise ImportError('exports need TensorFlow: pip install "cxrlib[train]"') from error
    import keras

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"exports need Keras on TensorFlow: set KERAS_BACKEND=tensorflow. Received: {keras.backend.backend()}"
        )
    if format == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import tf2onnx  # noqa: F401
        except ImportError as error:
            raise ImportError(
                'the export to ONNX needs tf2onnx, onnx and onnxruntime: pip install "cxrlib[onnx]"'
            ) from error


def _calibrated(predictor: Predictor) -> keras.Model:
    """The served graph with the temperature inside: dividing the last layer by it divides its logits."""
    from cxrlib.network.model import build_served, serving_graph

    config = predictor.config
    net = build_served(config.labels, replace(config.training, image_size=config.image_size))
    bundle.load_weights(net, predictor.folder)
    last = net.get_layer("probability")
    last.set_weights([w / config.temperature for w in last.get_weights()])
    return serving_graph(net)


def _onnx(net: keras.Model, path: Path, films: np.ndarray) -> _Run:
    import onnxruntime

    net(films[:1])  # the converter wants a network that has been called
    net.export(str(path), format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [film] = session.get_inputs()
    return lambda x: np.asarray(session.run(["probabilities"], {film.name: x})[0])


def _saved_model(net: keras.Model, path: Path, films: np.ndarray) -> _Run:
    import tensorflow as tf

    net.export(str(path), format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    return lambda x: np.asarray(
        serve(tf.constant(x))["probabilities"] if loaded else None
    )  # the function does not keep its model alive


def _litert(net: keras.Model, path: Path, films: np.ndarray, **options: Any) -> _Run:
    net.export(str(path), format="litert", verbose=False, **options)
    runtime = Runtime(path, trusted=True)
    return lambda x: runtime.run(x).probabilities


def _int8(net: keras.Model, path: Path, films: np.ndarray) -> _Run:
    import tensorflow as tf

    def samples() -> Iterator[list[np.ndarray]]:
        for i in np.linspace(0, len(films) - 1, min(len(films), _CALIBRATION)).astype(int):
            yield [films[i : i + 1]]

    return _litert(net, path, films, optimizations=[tf.lite.Optimize.DEFAULT], representative_dataset=samples)


_WRITERS: dict[str, Callable[[Any, Path, np.ndarray], _Run]] = {
    "onnx": _onnx,
    "saved_model": _saved_model,
    "litert": _litert,
    "int8": _int8,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters talk; what matters comes as an exception."""
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
