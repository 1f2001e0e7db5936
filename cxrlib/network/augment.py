"""Random but plausible changes of training images, made of Keras's preprocessing layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from cxrlib.config import Augmentation


def augmenter(config: Augmentation, *, seed: int = 0) -> keras.Sequential:
    """Build the layers that change training images; outside of training they pass images on as they are.

    Args:
        config: How much may be changed.
        seed: Seed of every draw.

    Returns:
        A model from (n, s, s, 1) float32 in [0, 1] to the same.

    References:
        Shorten and Khoshgoftaar, A survey on image data augmentation, 2019, doi:10.1186/s40537-019-0197-0. Stacked
        intensity and sharpness changes for unseen hospitals: Zhang et al., 2020, doi:10.1109/TMI.2020.2973595.

    Example:
        >>> images = np.full((2, 64, 64, 1), 0.5, "float32")
        >>> tuple(augmenter(Augmentation(), seed=1)(images, training=True).shape)
        (2, 64, 64, 1)
    """
    steps: list[Any] = []
    common: dict[str, Any] = {"data_format": "channels_last", "dtype": "float32"}
    fill: dict[str, Any] = {"fill_mode": "constant", **common}
    unit: dict[str, Any] = {"value_range": (0, 1), **common}
    zoom = (-config.zoom, config.zoom)

    def add(wanted: float, kind: Any, *arguments: Any, **options: Any) -> None:
        if wanted:
            steps.append(kind(*arguments, seed=seed + len(steps), **options))

    add(config.flip, layers.RandomFlip, "horizontal", **common)
    add(config.rotation, layers.RandomRotation, config.rotation / 360, **fill)
    add(config.zoom, layers.RandomZoom, zoom, zoom, **fill)
    add(config.shift, layers.RandomTranslation, config.shift, config.shift, **fill)
    add(config.gamma, RandomGamma, config.gamma, dtype="float32")
    add(config.blur, layers.RandomGaussianBlur, config.blur, 5, **unit)
    add(config.low_resolution, RandomResolution, config.low_resolution, dtype="float32")
    add(config.erase, layers.RandomErasing, config.erase, scale=(0.01, 0.1), **unit)
    return keras.Sequential(steps or [layers.Identity()], name="augmentation")


def reseed(model: keras.Model, seed: int, epoch: int) -> None:
    """Start every random layer from the seed and the epoch alone, so that a resumed run repeats an unbroken one.

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


class RandomGamma(layers.Layer):  # type: ignore[misc]
    """Raise intensities to a random power: another tone curve.

    Args:
        strength: Largest natural logarithm of the exponent.
        seed: Seed of the draws.
    """

    def __init__(self, strength: float, *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength, self.generator = strength, keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Change images of shape (n, s, s, 1) in [0, 1] while training."""
        if not training:
            return images
        power = keras.random.uniform(
            (ops.shape(images)[0], 1, 1, 1), -self.strength, self.strength, seed=self.generator
        )
        return ops.exp(ops.exp(power) * ops.log(ops.clip(images, 1e-4, 1.0)))  # several times faster than a power


class RandomResolution(layers.Layer):  # type: ignore[misc]
    """Reduce some images to a half or a quarter of their side and enlarge them again.

    Args:
        rate: Part of the images that is reduced.
        seed: Seed of the draws.
    """

    def __init__(self, rate: float, *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.generator = rate, keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Change images of shape (n, s, s, 1) while training; s is a multiple of 4."""
        if not training:
            return images
        size = images.shape[1]

        def reduced(factor: int) -> Any:
            small = ops.average_pool(images, factor, factor, data_format="channels_last")
            return ops.image.resize(small, (size, size), data_format="channels_last")

        draw = keras.random.uniform((ops.shape(images)[0], 1, 1, 1), seed=self.generator)
        coarse = ops.where(draw < self.rate / 2, reduced(4), reduced(2))
        return ops.where(draw < self.rate, coarse, images)
