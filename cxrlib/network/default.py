"""The network of the bundled model, and how it is trained: preprocessing in the graph, then fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from cxrlib.config import DefaultRecipe
from cxrlib.network.preprocessing import level_bands, standardise

_HEAD_EPOCHS, _HEAD_BATCH = 30, 64  # of the head on frozen features, which takes seconds
_FLOOR = 0.1  # of the peak, what the learning rate falls to

# Factors and offsets that bring a standardised image to the mean and deviation of ImageNet, as each backbone scales it.
_UNIT = (0.45, -0.05)  # pixels in [-1, 1]
_ZSCORE = (1.0, 0.0)  # (pixel - mean) / deviation
_BYTES = (57.0, 118.0)  # [0, 255], rescaled by the network itself


@dataclass(frozen=True)
class Backbone:
    """A network of `keras.applications`, and how images are fed to it.

    Args:
        application: Its name in `keras.applications`.
        scaling: Factor and offset that bring a standardised image to the pixel range it was trained with.
        fine_tune_from: The first layer that fine-tuning changes; the layers before it are generic.
    """

    application: str
    scaling: tuple[float, float]
    fine_tune_from: str


BACKBONES: dict[str, Backbone] = {  # the bundled model and all figures are MobileNetV2's
    "mobilenet_v2": Backbone("MobileNetV2", _UNIT, "block_3_expand"),
    "mobilenet_v3_large": Backbone("MobileNetV3Large", _BYTES, "expanded_conv_3_expand"),
    "efficientnet_v2_b0": Backbone("EfficientNetV2B0", _BYTES, "block3a_expand_conv"),
    "densenet121": Backbone("DenseNet121", _ZSCORE, "conv3_block1_0_bn"),
    "resnet50_v2": Backbone("ResNet50V2", _UNIT, "conv3_block1_preact_bn"),
}


def backbone_of(recipe: DefaultRecipe) -> Backbone:
    """Find the backbone of a recipe.

    Args:
        recipe: The recipe.

    Returns:
        The backbone.

    Raises:
        ValueError: If it is not known.

    Example:
        >>> backbone_of(DefaultRecipe()).application
        'MobileNetV2'
    """
    if recipe.backbone not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}. Received: backbone={recipe.backbone!r}")
    return BACKBONES[recipe.backbone]


def build(num_labels: int, recipe: DefaultRecipe, weights: str | None) -> keras.Model:
    """Build the network: standardised images with levelled bands, a backbone, pooling, probability.

    Args:
        num_labels: Number of classes.
        recipe: The recipe.
        weights: `"imagenet"`, the path of a weights file for the backbone, or `None` for random weights.

    Returns:
        A model from (n, s, s, 1) float32 in [0, 1] to probabilities (n, 1), or (n, k) for three or more classes.

    Raises:
        ValueError: If the backbone is not known.

    References:
        That the lower layers are what transfers to radiographs: Raghu et al., Transfusion: Understanding Transfer
        Learning for Medical Imaging, 2019, arXiv:1902.07208.

    Example:
        >>> build(3, DefaultRecipe(image_size=64), None).output_shape
        (None, 3)
    """
    spec, seed = backbone_of(recipe), recipe.seed
    images = keras.Input((recipe.image_size, recipe.image_size, 1), name="image")  # (n, 224, 224, 1)
    x = level_bands(standardise(images))
    factor, offset = (float(np.float16(value)) for value in spec.scaling)  # as all constants: what 16 bits hold
    x = layers.Rescaling(factor, offset, name="to_backbone", dtype="float32")(x)
    x = layers.Concatenate(name="to_rgb")([x, x, x])  # (n, 224, 224, 3)
    backbone = getattr(keras.applications, spec.application)(input_tensor=x, include_top=False, weights=weights)
    backbone = fold_batch_normalisation(backbone)
    x = layers.GlobalAveragePooling2D(name="features")(backbone.output)  # (n, 7, 7, 1280) -> (n, 1280)
    if recipe.dense_units:
        init = keras.initializers.HeNormal(seed)
        x = layers.Dense(recipe.dense_units, activation="relu", kernel_initializer=init, name="dense")(x)
    x = layers.Dropout(recipe.dropout, seed=seed, name="dropout")(x)
    units, activation = (1, "sigmoid") if num_labels == 2 else (num_labels, "softmax")
    init = keras.initializers.GlorotUniform(seed + 1)
    x = layers.Dense(units, activation, kernel_initializer=init, dtype="float32", name="probability")(x)
    return keras.Model(backbone.input, x, name=f"cxrlib_{recipe.backbone}")


def fold_batch_normalisation(model: keras.Model) -> keras.Model:
    """Merge every batch normalisation that follows a convolution into it: the same function, faster.

    Several of MobileNetV2's ImageNet channels have almost no variance; training through their huge gain diverges.

    Args:
        model: A functional model.

    Returns:
        Another model that computes the same.

    Example:
        >>> images = keras.Input((8, 8, 1))
        >>> x = layers.BatchNormalization()(layers.Conv2D(2, 3)(images))
        >>> len(fold_batch_normalisation(keras.Model(images, x)).layers)
        2
    """
    norms: dict[str, Any] = {}  # convolution -> the normalisation after it
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            before = layer.input._keras_history.operation
            if isinstance(before, (layers.Conv2D, layers.DepthwiseConv2D)) and len(before._outbound_nodes) == 1:
                norms[before.name] = layer
    merged = {norm.name for norm in norms.values()}

    def clone(layer: Any) -> Any:
        return layer.__class__.from_config(
            {**layer.get_config(), **({"use_bias": True} if layer.name in norms else {})}
        )

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in merged else layer(*args, **kwargs)

    twin = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in twin.layers:
        if not layer.weights:
            continue
        kernel, *bias = model.get_layer(layer.name).get_weights()
        if norm := norms.get(layer.name):
            mean, variance = (ops.convert_to_numpy(v) for v in (norm.moving_mean, norm.moving_variance))
            gain = (ops.convert_to_numpy(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)  # (c,)
            shift = ops.convert_to_numpy(norm.beta) if norm.center else 0.0
            # kernels are (h, w, c, m) where depthwise, else (h, w, c_in, c)
            per_output = gain.reshape(kernel.shape[2:]) if isinstance(layer, layers.DepthwiseConv2D) else gain
            kernel, bias = kernel * per_output, [shift + gain * ((bias[0] if bias else 0.0) - mean)]
        layer.set_weights([kernel, *bias])
    return twin


def fit_head(model: keras.Model, features: NDArray[np.float32], targets: NDArray[np.float32], weights: Any) -> None:
    """Train what lies behind the pooling on features that are computed once.

    Args:
        model: A network of `build`; its head is trained.
        features: ndarray of shape (n, c), float32: outputs of its layer `features`.
        targets: ndarray of shape (n, 1) or (n, k), float32.
        weights: ndarray of shape (n,): how much each image counts.
    """
    first = model.layers.index(model.get_layer("features")) + 1
    head = keras.Sequential([keras.Input(features.shape[1:]), *model.layers[first:]])
    loss = keras.losses.BinaryCrossentropy if targets.shape[1] == 1 else keras.losses.CategoricalCrossentropy
    head.compile(keras.optimizers.AdamW(1e-3, weight_decay=1e-2), loss())
    order = np.random.default_rng(0).permutation(len(features))
    data = (features[order], targets[order], np.asarray(weights, np.float32)[order])
    head.fit(*data[:2], sample_weight=data[2], epochs=_HEAD_EPOCHS, batch_size=_HEAD_BATCH, shuffle=False, verbose=0)


def set_trainable(model: keras.Model, first_layer: str) -> None:
    """Freeze the layers before one and free the rest, except batch normalisation that could not be folded.

    Args:
        model: A network of `build`.
        first_layer: Name of the first layer to train; `"features"` leaves only the head.

    Raises:
        ValueError: If there is no such layer.

    Example:
        >>> model = build(2, DefaultRecipe(image_size=64), None)
        >>> set_trainable(model, "features")
        >>> len(model.trainable_weights)
        2
    """
    names = [layer.name for layer in model.layers]
    if first_layer not in names:
        raise ValueError(f"first_layer must be a layer of the network. Received: first_layer={first_layer!r}")
    start = names.index(first_layer)
    for i, layer in enumerate(model.layers):
        layer.trainable = i >= start and not isinstance(layer, layers.BatchNormalization)


def compile(model: keras.Model, recipe: DefaultRecipe, steps: int) -> None:
    """Prepare the network for fine-tuning: AdamW with a moving average of the weights, a warm-up and a cosine.

    Args:
        model: The network behind its augmentation.
        recipe: The recipe.
        steps: Of the whole training.
    """
    rise = max(1, steps // 20)
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / 20,
        max(1, steps - rise),
        alpha=_FLOOR,
        warmup_target=recipe.learning_rate,
        warmup_steps=rise,
    )
    average: dict[str, Any] = {"use_ema": True, "ema_momentum": recipe.ema} if recipe.ema else {}
    two = model.output_shape[-1] == 1
    loss = keras.losses.BinaryCrossentropy if two else keras.losses.CategoricalCrossentropy
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, global_clipnorm=1.0, **average),
        loss(label_smoothing=recipe.label_smoothing),
        metrics=["accuracy", keras.metrics.AUC(multi_label=not two, name="auroc")],
    )
