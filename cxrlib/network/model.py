"""The network. Pure Keras 3: no backend is named outside the export."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrlib.config import DEFAULT_LABELS, TrainConfig, check_labels

try:
    import keras
    from keras import ops
except ImportError as error:
    raise ImportError(
        'building and training networks needs TensorFlow and Keras: pip install "cxrlib[train]"'
    ) from error

from cxrlib.network.layers import CONTRASTS, FindLungs, LevelBands, Reframe, Show, Standardise

# A standardised film has mean 0 and deviation 1. These carry it to the mean and deviation of ImageNet, in the scaling that a backbone was trained with.
_UNIT = (0.45, -0.05)  # pixels in [-1, 1]
_ZSCORE = (1.0, 0.0)  # (pixel - mean) / deviation
_BYTES = (57.0, 118.0)  # [0, 255], rescaled by the network itself


@dataclass(frozen=True)
class Look:
    """How a backbone looks at a film.

    Args:
        part: Side of what it sees, in parts of the film's side; at least 32 pixels.
        layers: The layers whose maps are pooled, from the first to the last; none for the last of the backbone.
    """

    part: float = 1.0
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backbone:
    """A network of `keras.applications`, and how films are fed to it.

    Args:
        application: Its name in `keras.applications`.
        scaling: Factor and offset that bring a standardised film to the pixel range it was trained with.
        fine_tune_from: The first layer that fine-tuning moves; what lies before it is generic.
        look: The look that fine-tuning moves. MobileNetV2 is cut where it ranks films of other hospitals best; the others were not measured.
        coarse: A second look at a smaller film, by a copy of the backbone that stays as ImageNet made it; `None` for none.
    """

    application: str
    scaling: tuple[float, float]
    fine_tune_from: str
    look: Look = Look()
    coarse: Look | None = None


# The part of a feature map that is pooled: from where to where, in parts of its height and of its width. On a frontal film the lungs lie there.
LUNGS = ((2 / 7, 6 / 7), (1 / 7, 6 / 7))

BACKBONES: dict[str, Backbone] = {
    "mobilenet_v2": Backbone(
        "MobileNetV2",
        _UNIT,
        "block_3_expand",
        Look(1 / 2, ("block_6_expand_relu", "block_12_expand_relu")),
        Look(2 / 7, ("block_10_expand_relu",)),
    ),
    "mobilenet_v3_large": Backbone("MobileNetV3Large", _BYTES, "expanded_conv_3_expand"),
    "efficientnet_v2_b0": Backbone("EfficientNetV2B0", _BYTES, "block3a_expand_conv"),
    "densenet121": Backbone("DenseNet121", _ZSCORE, "conv3_block1_0_bn"),
    "resnet50_v2": Backbone("ResNet50V2", _UNIT, "conv3_block1_preact_bn"),
}


def check_backbone(backbone: str) -> None:
    """Check the name of a backbone.

    Args:
        backbone: A name in `BACKBONES`.

    Raises:
        ValueError: If it is none.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}. Received: backbone={backbone!r}")


def build_model(
    labels: Sequence[str] = DEFAULT_LABELS,
    *,
    backbone: str = "mobilenet_v2",
    image_size: int = 224,
    weights: str | None = "imagenet",
    dropout: float = 0.3,
    margin: float = 0.0,
    follow: float = 0.0,
    detail: float = 1.0,
    seed: int = 0,
) -> keras.Model:
    """Build the classifier: per-film standardisation, the lower blocks of a backbone at one or two scales, pooling over the lungs, dropout, probability.

    Films go in as they are, in [0, 1]: whatever the backbone needs happens inside the graph. Standardising each film and levelling its bands of frequencies
    makes the network nearly blind to brightness, contrast and sharpness, which differ from hospital to hospital; borders, shoulders and letters do too, and are
    not pooled. The backbone is frozen, its batch normalisation merged into the convolutions (the same function; several of MobileNetV2's ImageNet
    channels have next to no variance, and training through their huge gain diverges).

    Args:
        labels: Two or more class names, the healthy class first.
        backbone: A name in `cxrlib.network.model.BACKBONES`.
        image_size: Height and width of a film, in pixels.
        weights: `"imagenet"`, the path of a Keras weights file for the backbone, or `None` for random weights.
        dropout: Part of the pooled features that is dropped while training, in [0, 1).
        margin: Part of a film's height and width, at each edge, that the backbone is not shown, in [0, 0.25]. It changes no weight's shape.
        follow: How far what the backbone is shown follows the outer edges of the lungs, in [0, 1], see `cxrlib.network.layers.Show`. Nor does this.
        detail: How much of its usual contrast the finest band of frequencies is given, in [0, 1]. Nor does this.
        seed: Of the random weights, the last layer's among them, and of the dropout, in [0, 2^31 - 1].

    Returns:
        A `keras.Model` from `(batch, image_size, image_size, 1)` float32 in [0, 1] to `(batch, 1)` probabilities of the second class (sigmoid), or to
        `(batch, k)` probabilities (softmax) for three or more labels.

    Raises:
        ValueError: If a label, the backbone, the size, the dropout, the margin, how far it follows, the detail or the seed is not valid.

    References:
        Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018, arXiv:1801.04381. That the lower layers are what serves in radiographs:
        Raghu et al., Transfusion: Understanding Transfer Learning for Medical Imaging, 2019, arXiv:1902.07208.

    Example:
        >>> build_model(weights=None, image_size=64).output_shape
        (None, 1)
    """
    labels = check_labels(labels)
    check_backbone(backbone)
    if not 32 <= image_size <= 2048:
        raise ValueError(f"image_size must lie in [32, 2048]. Received: image_size={image_size!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1). Received: dropout={dropout!r}")
    if not 0 <= margin <= 0.25:
        raise ValueError(f"margin must lie in [0, 0.25]. Received: margin={margin!r}")
    for name, part in (("follow", follow), ("detail", detail)):
        if not 0 <= part <= 1:
            raise ValueError(f"{name} must lie in [0, 1]. Received: {name}={part!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"seed must be an integer in [0, 2**31 - 1]. Received: seed={seed!r}")
    spec = BACKBONES[backbone]
    films = keras.Input((image_size, image_size, 1), name="film")  # (n, s, s, 1) in [0, 1]
    edges, side = FindLungs(name="edges", dtype="float32")(films), _side(spec.look, image_size)
    x = (
        Show(side, margin, follow, name="shown", dtype="float32")([films, edges])
        if margin or follow
        else _shrink(films, side, "")
    )
    x = Standardise(name="standardise", dtype="float32")(x)
    left_out, finest, *coarser = CONTRASTS
    contrasts = (left_out, detail * finest, *coarser)[round(math.log2(image_size / x.shape[1])) :]
    x = LevelBands(contrasts, name="level_bands", dtype="float32")(x)
    x = keras.layers.Rescaling(*spec.scaling, name="to_backbone")(x)
    x = keras.layers.Concatenate(name="to_rgb")([x, x, x])  # (n, s', s', 3)
    maps = _look(spec, spec.look, x, weights, "")
    if spec.coarse:
        maps += _look(spec, spec.coarse, _shrink(x, _side(spec.coarse, image_size), "coarse_"), weights, "coarse_")
    body = keras.Model(films, [*maps, edges])
    if weights is None:
        _draw_kernels(body, seed)
    body = _fold(body)
    body.trainable = False
    *maps, edges = body.outputs
    pooled = [_pool_lungs(x, i) for i, x in enumerate(maps)]
    x = keras.layers.Concatenate(name="features")(pooled) if len(pooled) > 1 else pooled[0]  # (n, c)
    x = Reframe(name="reframe", dtype="float32")([x, edges])
    x = keras.layers.Dropout(dropout, seed=seed, name="dropout")(x)
    units, activation = (1, "sigmoid") if len(labels) == 2 else (len(labels), "softmax")
    x = keras.layers.Dense(
        units,
        activation=activation,
        dtype="float32",
        kernel_initializer=keras.initializers.GlorotUniform(seed),
        name="probability",
    )(x)
    return keras.Model(body.inputs[0], x, name=f"cxrlib_{backbone}")


def build_served(labels: Sequence[str], recipe: TrainConfig) -> keras.Model:
    """Build the network that a recipe's bundle serves, with random weights: it is shown less of each film than the one that is trained.

    Args:
        labels: As for `build_model`.
        recipe: The recipe.

    Returns:
        As of `build_model`.

    Example:
        >>> build_served(["NORMAL", "PNEUMONIA"], TrainConfig(image_size=64)).get_layer("shown").margin
        0.05
    """
    shown = {"margin": recipe.margin, "follow": recipe.follow, "detail": recipe.detail}
    return build_model(
        labels,
        backbone=recipe.backbone,
        image_size=recipe.image_size,
        weights=None,
        dropout=recipe.dropout,
        seed=recipe.seed,
        **shown,
    )


def _side(look: Look, image_size: int) -> int:
    return max(32, round(look.part * image_size))  # Keras builds no smaller backbone


def _shrink(x: Any, side: int, prefix: str) -> Any:
    """Films (n, s, s, c) of another size, each pixel the mean of nine, so that fine patterns, compression's above all, do not fold into coarse ones."""
    if x.shape[1] == side:
        return x
    if x.shape[1] != 2 * side:
        x = keras.layers.Resizing(2 * side, 2 * side, data_format="channels_last", name=f"{prefix}double")(x)
    return keras.layers.AveragePooling2D(
        3, strides=2, padding="same", data_format="channels_last", name=f"{prefix}smaller"
    )(x)


def _look(spec: Backbone, look: Look, x: Any, weights: str | None, prefix: str) -> list[Any]:
    """The feature maps of a backbone for prepared films x (n, s, s, 3); its layers are named with the prefix."""
    build = getattr(keras.applications, spec.application)
    before = {id(layer) for layer in keras.Model(keras.utils.get_source_inputs(x), x).layers}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`input_shape` is undefined")  # ImageNet weights serve every size
        body = build(input_tensor=x, input_shape=x.shape[1:], include_top=False, weights=None)
        # by itself, since Keras counts all layers when it loads weights
        source = build(input_shape=x.shape[1:], include_top=False, weights=weights) if weights else body
    maps = [body.get_layer(name).output for name in look.layers] or [body.output]
    for layer in body.layers:
        if id(layer) not in before:
            if layer.weights and source is not body:
                layer.set_weights(source.get_layer(layer.name).get_weights())
            layer.name = prefix + layer.name
    return maps


def _draw_kernels(model: keras.Model, seed: int) -> None:
    """Draw every kernel again by its layer's own initializer, each from a seed of its own: `keras.applications` takes none."""
    seeds = np.random.default_rng(seed)
    for layer in model.layers:
        kind = getattr(layer, "depthwise_initializer", None) or getattr(layer, "kernel_initializer", None)
        if kind is not None:
            draw = kind.from_config({**kind.get_config(), "seed": int(seeds.integers(2**31))})
            layer.kernel.assign(draw(layer.kernel.shape, layer.kernel.dtype))


def _pool_lungs(x: Any, i: int) -> Any:
    """The means of a feature map (n, h, w, c) where the lungs lie: (n, c)."""
    margins = [
        (round(low * side), side - round(high * side)) for (low, high), side in zip(LUNGS, x.shape[1:3], strict=True)
    ]
    return keras.layers.GlobalAveragePooling2D(name=f"pool_{i}")(keras.layers.Cropping2D(margins, name=f"lungs_{i}")(x))


def hand_over(model: keras.Model, other: keras.Model) -> None:
    """Give another network of `build_model`, which shows the backbone another part of films, all weights of this one.

    Args:
        model: The network that has the weights.
        other: The network that gets them.

    Example:
        >>> whole, inner = (build_model(weights=None, image_size=64, margin=margin, seed=seed) for margin, seed in ((0, 0), (0.1, 1)))
        >>> hand_over(whole, inner)
        >>> all(np.array_equal(net.get_layer("Conv1").kernel, whole.get_layer("Conv1").kernel) for net in (whole, inner))
        True
    """
    for layer in model.layers:
        if layer.weights:
            other.get_layer(layer.name).set_weights(layer.get_weights())


def set_trainable(model: keras.Model, first_layer: str) -> None:
    """Freeze what lies before a layer and free the rest; batch normalisation that could not be merged, and the coarse look at the film, stay frozen.

    Args:
        model: A network of `build_model`.
        first_layer: Name of the first layer to train; `"dropout"` leaves only the head.

    Raises:
        ValueError: If there is no such layer.

    Example:
        >>> model = build_model(weights=None, image_size=64)
        >>> set_trainable(model, "dropout")
        >>> len(model.trainable_weights)
        2
    """
    names = [layer.name for layer in model.layers]
    if first_layer not in names:
        raise ValueError(f"the network has no layer to fine-tune from of that name. Received: {first_layer!r}")
    start = names.index(first_layer)
    for i, layer in enumerate(model.layers):
        layer.trainable = (
            i >= start
            and not isinstance(layer, keras.layers.BatchNormalization)
            and not layer.name.startswith("coarse_")
        )
    model.predict_function = None  # on several devices Keras compiles it for what was trainable then


def reseed(model: keras.Model, seed: int, epoch: int) -> None:
    """Start every random layer from the seed and the epoch alone, so that a resumed run draws what an unbroken one would have.

    Args:
        model: Any network, such as one behind its augmentation.
        seed: Seed of the run.
        epoch: Which epoch.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dropout(0.5)])
        >>> reseed(model, seed=7, epoch=2)
        >>> [ops.convert_to_numpy(state).tolist() for state in model.variables]
        [[7, 2]]
    """
    states = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    for i, state in enumerate(states):
        state.assign(np.array([seed + i, epoch], np.uint32))


def _fold(model: keras.Model) -> keras.Model:
    """Merge every batch normalisation that follows a convolution into it, and three equal channels into one; the network computes the same function, faster."""
    grey = _seeing_grey(model)
    norms: dict[str, Any] = {}  # convolution -> the normalisation after it
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            before = layer.input._keras_history.operation
            if (
                isinstance(before, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))
                and len(before._outbound_nodes) == 1
            ):
                norms[before.name] = layer
    merged = {norm.name for norm in norms.values()}

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in norms:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if grey and layer.name == "to_rgb":
            return args[0][0]
        return args[0] if layer.name in merged else layer(*args, **kwargs)

    twin = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in twin.layers:
        if not layer.weights:
            continue
        kernel, *bias = model.get_layer(layer.name).get_weights()
        if layer.name in grey:
            kernel = kernel.sum(axis=2, keepdims=True)
        if norm := norms.get(layer.name):
            mean, variance = (ops.convert_to_numpy(v) for v in (norm.moving_mean, norm.moving_variance))
            gain = (ops.convert_to_numpy(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)  # (c,)
            shift = ops.convert_to_numpy(norm.beta) if norm.center else 0.0
            per_output = (
                gain.reshape(kernel.shape[2:]) if isinstance(layer, keras.layers.DepthwiseConv2D) else gain
            )  # kernel (h, w, c, m) or (h, w, c_in, c)
            kernel, bias = kernel * per_output, [shift + gain * ((bias[0] if bias else 0.0) - mean)]
        layer.set_weights([kernel, *bias])
    return twin


def _seeing_grey(model: keras.Model) -> set[str]:
    """The first convolutions, if they see three equal channels; none, if something that treats channels differently comes before one of them."""
    found: set[str] = set()
    ahead = [layer for layer in model.layers if layer.name == "to_rgb"]
    while ahead:
        for node in ahead.pop()._outbound_nodes:
            layer = node.operation
            if isinstance(layer, keras.layers.Conv2D):
                found.add(layer.name)
            elif isinstance(layer, (keras.layers.Resizing, keras.layers.AveragePooling2D, keras.layers.ZeroPadding2D)):
                ahead.append(layer)
            else:
                return set()
    return found


def serving_graph(model: keras.Model) -> keras.Model:
    """Extend a network to what is served: probabilities per class, where the evidence lies, and features for the gate.

    Args:
        model: A network of `build_model`.

    Returns:
        A model with three outputs: `probabilities` (n, k); `evidence` (n, h, w, k), what each place says for each class, and 0 where nothing is pooled: its
        mean over the pooled places is the logit (class activation mapping, exact for this head where the sides of the pooled maps divide each other, and
        nearly where what is shown follows the lungs);
        `embedding` (n, d), the means of the last tensor at each of the deeper resolutions.

    References:
        Zhou et al., Learning deep features for discriminative localization, 2016, arXiv:1512.04150.

    Example:
        >>> sorted(serving_graph(build_model(weights=None, image_size=64)).output)
        ['embedding', 'evidence', 'probabilities']
    """
    kernel, bias = (
        ops.convert_to_numpy(weight) for weight in model.get_layer("probability").weights
    )  # (c, units), (units,)
    probabilities = model.output
    if len(bias) == 1:
        probabilities = ops.concatenate([1 - probabilities, probabilities], axis=1)
        kernel, bias = np.concatenate([-kernel, kernel], axis=1), np.concatenate([-bias, bias])
    seen = sorted(
        (layer for layer in model.layers if layer.name.startswith("lungs_")), key=lambda layer: layer.name
    )  # the map with most places first
    parts = np.split(kernel, np.cumsum([layer.output.shape[-1] for layer in seen])[:-1])
    reframe = model.get_layer("reframe")
    taken_off = reframe.lower(reframe.input[1]) * (ops.convert_to_numpy(reframe.slope) @ kernel)  # (n, k)
    evidence = (
        _at_every_place(seen[0].output, parts[0]) + bias - ops.reshape(taken_off, (-1, 1, 1, len(bias)))
    )  # (n, h, w, k)
    for layer, part in zip(seen[1:], parts[1:], strict=True):
        evidence = evidence + ops.image.resize(
            _at_every_place(layer.output, part),
            evidence.shape[1:3],
            interpolation="bilinear",
            data_format="channels_last",
        )
    evidence = ops.pad(evidence, ((0, 0), *seen[0].cropping, (0, 0)))
    for shown in (layer for layer in model.layers if isinstance(layer, Show)):
        evidence = _on_whole_film(evidence, shown.window(reframe.input[1]), shown.margin)
    deepest: dict[int, Any] = {}  # resolution -> the last tensor of that size
    for layer in model.layers:
        shape = (
            not layer.name.startswith(("coarse_", "lungs_"))
            and getattr(layer, "output", None) is not None
            and layer.output.shape
        )
        if (
            shape
            and len(shape) == 4
            and shape[1] <= model.input_shape[1] // 4
            and not isinstance(layer, keras.layers.ZeroPadding2D)
        ):
            deepest[shape[1]] = layer.output
    embedding = ops.concatenate([ops.mean(ops.cast(x, "float32"), axis=(1, 2)) for x in deepest.values()], axis=1)
    return keras.Model(model.input, {"probabilities": probabilities, "evidence": evidence, "embedding": embedding})


def _on_whole_film(evidence: Any, window: Any, margin: float) -> Any:
    """Evidence (n, h, w, k) on a part of films, given as (n, 4) in parts of their width and height, on all of them: 0 elsewhere."""
    side, k = evidence.shape[1], evidence.shape[3]
    whole = round(side / (1 - 2 * margin))  # as many places in all as make one as large as before
    centres, places = (
        ((np.arange(whole)[None] + 0.5) / whole).astype(np.float32),
        np.arange(side, dtype=np.float32),
    )  # arrays: constants of every export

    def along(start: Any, end: Any) -> Any:
        """How much each place of the part counts in each of the film: (n, whole, side)."""
        at = side * ops.subtract(centres, start) / (end - start) - 0.5
        return ops.relu(1 - ops.abs(ops.subtract(ops.reshape(at, (-1, whole, 1)), places)))

    left, top, right, bottom = (window[:, i : i + 1] for i in range(4))
    evidence = ops.matmul(along(top, bottom), ops.reshape(evidence, (-1, side, side * k)))  # (n, whole, side * k)
    evidence = ops.reshape(
        ops.transpose(ops.reshape(evidence, (-1, whole, side, k)), (0, 2, 1, 3)), (-1, side, whole * k)
    )
    return ops.transpose(ops.reshape(ops.matmul(along(left, right), evidence), (-1, whole, whole, k)), (0, 2, 1, 3))


def _at_every_place(features: Any, kernel: NDArray[Any]) -> Any:
    """A feature map (n, h, w, c) times a kernel (c, k)."""
    _, h, w, c = features.shape
    return ops.reshape(ops.matmul(ops.reshape(features, (-1, c)), kernel), (-1, h, w, kernel.shape[1]))


def export_litert(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write the served graph as a LiteRT flatbuffer, float32. The one place that needs TensorFlow itself.

    Args:
        model: A network of `build_model`.
        path: The `.tflite` file to write.

    Raises:
        RuntimeError: If another backend is in use and the conversion, done in a TensorFlow process of its own, fails.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "model.tflite"
        >>> export_litert(build_model(weights=None, image_size=32), path)
        >>> path.read_bytes()[4:8]
        b'TFL3'
    """
    if keras.backend.backend() == "tensorflow":
        serving_graph(_float32(model)).export(str(path), format="litert", verbose=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "model.keras"
        _float32(model).save(network)
        code = "import sys, keras; from cxrlib import model; model.export_litert(keras.models.load_model(sys.argv[1]), sys.argv[2])"
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, "-c", code, str(network), str(path)], env=environment, capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(
            f"the conversion to LiteRT needs TensorFlow (pip install tensorflow) and ended with status {done.returncode}: {done.stderr.strip()[-500:]}"
        )


def _float32(model: keras.Model) -> keras.Model:
    """The same network computing in float32, when it was trained in mixed precision."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model

    def clone(layer: Any) -> Any:
        return layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})

    twin = keras.models.clone_model(model, clone_function=clone)
    twin.set_weights(model.get_weights())
    return twin
