"""The network, by recipe; and what is served of it. Pure Keras 3: no backend is named outside the export."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrlib.config import DEFAULT_LABELS, Recipe, TextbookRecipe, check_labels, recipe_of

try:
    import keras
    from keras import layers, ops
except ImportError as error:
    raise ImportError(
        'building and training networks needs TensorFlow and Keras: pip install "cxrlib[train]"'
    ) from error

from cxrlib.network import default, textbook


def build_model(
    labels: Sequence[str] = DEFAULT_LABELS, *, recipe: str | Recipe = "default", weights: str | None = "imagenet"
) -> keras.Model:
    """Build a classifier.

    `"textbook"` is the network of the usual notebook: MobileNetV2 frozen, global average pooling, a dense layer,
    dropout, sigmoid. `"default"` standardises each image and levels its bands of frequencies first, and has its batch
    normalisation folded, so that it can be fine-tuned. All layers are Keras's own: a saved model loads without cxrlib.

    Args:
        labels: Two or more class names, the normal class first.
        recipe: `"default"`, `"textbook"`, or a recipe with settings of your own.
        weights: `"imagenet"`, the path of a weights file for the backbone, or `None` for random weights.

    Returns:
        A `keras.Model` from (batch, image_size, image_size, 1) float32 in [0, 1] to (batch, 1) probabilities of the
        second class (sigmoid), or to (batch, k) probabilities (softmax) for three or more labels.

    Raises:
        ValueError: If a label or the recipe is not valid.

    Example:
        >>> from cxrlib import DefaultRecipe
        >>> build_model(recipe=DefaultRecipe(image_size=64), weights=None).output_shape
        (None, 1)
    """
    labels, recipe = check_labels(labels), recipe_of(recipe)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`input_shape` is undefined")  # ImageNet's weights serve every size
        if isinstance(recipe, TextbookRecipe):
            model = textbook.build(len(labels), recipe, weights)
        else:
            model = default.build(len(labels), recipe, weights)
    if weights is None:
        _draw_kernels(model, recipe.seed)
    return model


def serving_graph(model: keras.Model) -> keras.Model:
    """Extend a network to what is served: probabilities per class, where the evidence lies, and features for the gate.

    Args:
        model: A network of `build_model`.

    Returns:
        A model with three outputs: `probabilities` (n, k); `evidence` (n, h, w, k), whose mean over all places is the
        logit of each class (class activation mapping; behind a hidden ReLU layer it is exact, too, since the active
        units make the head linear); `embedding` (n, d), the means of the last tensor at each of the deeper resolutions.

    References:
        Zhou et al., Learning deep features for discriminative localization, 2016, arXiv:1512.04150.

    Example:
        >>> from cxrlib import DefaultRecipe
        >>> sorted(serving_graph(build_model(recipe=DefaultRecipe(image_size=64), weights=None)).output)
        ['embedding', 'evidence', 'probabilities']
    """
    for layer in model.layers:  # a loaded network has names that operations added here must not be given again
        name, number = re.fullmatch(r"(.*?)(?:_(\d+))?", layer.name).groups()  # type: ignore[union-attr]
        while keras.backend.get_uid(name) <= int(number or 0):
            pass
    probabilities = model.output
    kernel, bias = (ops.convert_to_numpy(weight) for weight in model.get_layer("probability").weights)  # (c, units)
    if len(bias) == 1:
        probabilities = ops.concatenate([1 - probabilities, probabilities], axis=1)
        kernel, bias = np.concatenate([-kernel, kernel], axis=1), np.concatenate([-bias, bias])
    maps = ops.cast(model.get_layer("features").input, "float32")  # (n, h, w, c)
    _, h, w, c = maps.shape
    if any(layer.name == "dense" for layer in model.layers):
        hidden = model.get_layer("dense")
        inner, inner_bias = (ops.convert_to_numpy(weight) for weight in hidden.weights)  # (c, u), (u,)
        # (n, u): 1 where a unit is active, else 0, made of operations that the check of a served network allows
        active = ops.minimum(1e20 * ops.cast(hidden.output, "float32"), 1.0)
        outer = ops.expand_dims(active, 2) * kernel[None]  # (n, u, k)
        per_place = ops.matmul(ops.reshape(maps, (-1, h * w, c)), ops.matmul(inner[None], outer))  # (n, h * w, k)
        evidence = per_place + ops.matmul(inner_bias[None, None], outer) + bias
    else:
        evidence = ops.matmul(ops.reshape(maps, (-1, c)), kernel) + bias  # (n * h * w, k)
    evidence = ops.reshape(evidence, (-1, h, w, len(bias)))
    deepest: dict[int, Any] = {}  # resolution -> the last tensor of that size
    for layer in model.layers:
        shape = getattr(layer, "output", None) is not None and layer.output.shape
        if (
            shape
            and len(shape) == 4
            and shape[1] <= model.input_shape[1] // 4
            and shape[3] > 1
            and not isinstance(layer, layers.ZeroPadding2D)
        ):
            deepest[shape[1]] = layer.output
    means = [ops.mean(ops.cast(x, "float32"), axis=(1, 2)) for x in deepest.values()]
    outputs = {"probabilities": probabilities, "evidence": evidence, "embedding": ops.concatenate(means, axis=1)}
    return keras.Model(model.input, outputs)


def round_weights(model: keras.Model) -> None:
    """Round a network's weights to what 16 bits hold, so that its LiteRT file takes half the space and loses nothing.

    A network with batch normalisation stays as it is: LiteRT folds that into other weights, which would be rounded
    again.

    Args:
        model: A network of `build_model`, changed in place.

    Raises:
        ValueError: If a weight is too large, as after a training that diverged.

    Example:
        >>> from cxrlib import DefaultRecipe
        >>> net = build_model(recipe=DefaultRecipe(image_size=32), weights=None)
        >>> round_weights(net)
        >>> _fits_16_bits(net)
        True
    """
    if _has_batch_normalisation(model):
        return
    rounded = [weight.astype(np.float16).astype(np.float32) for weight in model.get_weights()]
    if not all(np.isfinite(weight).all() for weight in rounded):
        raise ValueError("the network's weights are not finite, or larger than 65,504: its training diverged")
    model.set_weights(rounded)


def assign(model: keras.Model, layers: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> bool:
    """Set a network's weights to those of its LiteRT file.

    Args:
        model: A network of `build_model` without batch normalisation, changed in place.
        layers: As `cxrlib.runtime.flatbuffer.layers_of` returns them.

    Returns:
        Whether every layer found its weights. Where there are two of one shape, the first in order is taken: compare
        answers afterwards.
    """
    kinds = {"Conv2D": "CONV_2D", "DepthwiseConv2D": "DEPTHWISE_CONV_2D", "Dense": "FULLY_CONNECTED"}
    left = list(layers)
    for layer in model.layers:
        if not layer.weights:
            continue
        kind = kinds.get(type(layer).__name__)
        shapes = [tuple(weight.shape) for weight in layer.weights]
        for i, (operation, kernel, bias) in enumerate(left):
            # (out, h, w, in) -> (h, w, in, out); depthwise (1, h, w, channels) -> (h, w, channels, 1)
            kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(1, 2, 3, 0)
            if operation == kind and [kernel.shape, bias.shape] == shapes:
                layer.set_weights([kernel, bias])
                del left[i]
                break
        else:
            return False
    return True


def _has_batch_normalisation(model: keras.Model) -> bool:
    return any(type(layer).__name__ == "BatchNormalization" for layer in model.layers)


def _fits_16_bits(model: keras.Model) -> bool:
    with np.errstate(over="ignore"):
        same = all(np.array_equal(weight, weight.astype(np.float16)) for weight in model.get_weights())
    return same and not _has_batch_normalisation(model)


def export_litert(model: keras.Model) -> bytes:
    """Convert the served graph to LiteRT, one image at a time. The one place that needs TensorFlow itself.

    It computes in float32. Weights that 16 bits hold exactly are stored in 16 bits.

    Args:
        model: A network of `build_model`.

    Returns:
        The bytes of the `.tflite` file.

    Raises:
        RuntimeError: If another backend is in use and the conversion, done in a TensorFlow process of its own, fails.

    Example:
        >>> from cxrlib import DefaultRecipe
        >>> export_litert(build_model(recipe=DefaultRecipe(image_size=32), weights=None))[4:8]
        b'TFL3'
    """
    with tempfile.TemporaryDirectory() as folder:
        path, network = Path(folder) / "model.tflite", Path(folder) / "model.keras"
        if keras.backend.backend() == "tensorflow":
            served = serving_graph(_float32(model))
            # a fixed shape, which LiteRT.js needs
            image = keras.InputSpec(shape=(1, *served.input_shape[1:]), dtype="float32", name="image")
            options: dict[str, Any] = {}
            if _fits_16_bits(model):
                import tensorflow as tf

                options = {
                    "optimizations": [tf.lite.Optimize.DEFAULT],
                    "target_spec": {"supported_types": [tf.float16]},
                }
            served.export(str(path), format="litert", verbose=False, input_signature=[image], **options)
            return path.read_bytes()
        _float32(model).save(network)
        code = (
            "import sys, keras; from pathlib import Path; from cxrlib.network.model import export_litert; "
            "Path(sys.argv[2]).write_bytes(export_litert(keras.models.load_model(sys.argv[1])))"
        )
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", code, str(network), str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                "the conversion to LiteRT needs TensorFlow (pip install tensorflow) and ended with status "
                f"{done.returncode}: {done.stderr.strip()[-500:]}"
            )
        return path.read_bytes()


def _float32(model: keras.Model) -> keras.Model:
    """The same network computing in float32, when it was trained in mixed precision."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model

    def clone(layer: Any) -> Any:
        return layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})

    twin = keras.models.clone_model(model, clone_function=clone)
    twin.set_weights(model.get_weights())
    return twin


def _draw_kernels(model: keras.Model, seed: int) -> None:
    """Draw every kernel again by its layer's initializer, from the seed, which `keras.applications` does not take."""
    seeds = np.random.default_rng(seed)
    for layer in model.layers:
        kind = getattr(layer, "depthwise_initializer", None) or getattr(layer, "kernel_initializer", None)
        if kind is not None:
            draw = kind.from_config({**kind.get_config(), "seed": int(seeds.integers(2**31))})
            layer.kernel.assign(draw(layer.kernel.shape, layer.kernel.dtype))
