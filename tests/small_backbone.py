"""A backbone of three convolutions in the place of MobileNetV2, for tests that need a network and not a good one."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def build(input_tensor: Any, include_top: bool, weights: str | None) -> keras.Model:
    """A network with the arguments and two layer names of `keras.applications.MobileNetV2`; its weights never vary."""
    assert not include_top
    x = input_tensor
    for i, (name, channels, stride) in enumerate((("Conv1", 8, 4), ("block_3_expand", 16, 2), ("Conv_1", 24, 2))):
        init = keras.initializers.HeNormal(seed=i)
        x = layers.Conv2D(channels, 3, stride, "same", use_bias=False, kernel_initializer=init, name=name)(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        x = layers.ReLU(6.0, name=f"{name}_relu")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


def install() -> None:
    """Put it in its place for the rest of the process."""
    keras.applications.MobileNetV2 = build
