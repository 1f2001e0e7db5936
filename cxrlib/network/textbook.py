"""The network of the usual notebook, and how it is trained: ImageNet's MobileNetV2 with a new head. A page of Keras."""

from __future__ import annotations

import keras
from keras import layers

from cxrlib.config import TextbookRecipe


def build(num_labels: int, recipe: TextbookRecipe, weights: str | None) -> keras.Model:
    """Build the network: MobileNetV2, frozen; global average pooling, a dense layer, dropout, probability.

    Args:
        num_labels: Number of classes.
        recipe: The recipe.
        weights: `"imagenet"`, the path of a weights file for MobileNetV2, or `None` for random weights.

    Returns:
        A model from (n, s, s, 1) float32 in [0, 1] to probabilities (n, 1), or (n, k) for three or more classes.

    References:
        Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018, arXiv:1801.04381.

    Example:
        >>> build(2, TextbookRecipe(image_size=64), None).output_shape
        (None, 1)
    """
    images = keras.Input((recipe.image_size, recipe.image_size, 1), name="image")  # (n, 224, 224, 1)
    x = layers.Rescaling(2.0, offset=-1.0, name="to_backbone")(images)  # MobileNetV2 was trained on pixels in [-1, 1]
    x = layers.Concatenate(name="to_rgb")([x, x, x])  # and in colour: (n, 224, 224, 3)

    backbone = keras.applications.MobileNetV2(input_tensor=x, include_top=False, weights=weights)
    backbone.trainable = False

    x = layers.GlobalAveragePooling2D(name="features")(backbone.output)  # (n, 7, 7, 1280) -> (n, 1280)
    init = keras.initializers.GlorotUniform(recipe.seed)
    x = layers.Dense(recipe.dense_units, activation="relu", kernel_initializer=init, name="dense")(x)
    x = layers.Dropout(recipe.dropout, seed=recipe.seed, name="dropout")(x)
    units, activation = (1, "sigmoid") if num_labels == 2 else (num_labels, "softmax")
    init = keras.initializers.GlorotUniform(recipe.seed + 1)
    x = layers.Dense(units, activation, kernel_initializer=init, dtype="float32", name="probability")(x)
    return keras.Model(images, x, name="cxrlib_textbook")


def compile(model: keras.Model, recipe: TextbookRecipe) -> None:
    """Prepare the network for training: Adam, cross-entropy; accuracy and AUROC are recorded.

    Args:
        model: The network, or the network behind its augmentation.
        recipe: The recipe.
    """
    two = model.output_shape[-1] == 1
    model.compile(
        optimizer=keras.optimizers.Adam(recipe.learning_rate),
        loss="binary_crossentropy" if two else "categorical_crossentropy",
        metrics=["accuracy", keras.metrics.AUC(multi_label=not two, name="auroc")],
    )
