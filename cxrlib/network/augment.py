"""What another hospital, machine or technician would have made of the same films. Pure Keras 3, on the device."""

from __future__ import annotations

import functools
import math
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from cxrlib.config import AugmentConfig

_TILES = 8  # along a side, within each of which local contrast is measured
_CUT = 0.15  # of a film's height: most films end there with the neck or above it


@keras.saving.register_keras_serializable(package="cxrlib")
class Augment(keras.layers.Layer):  # type: ignore[misc]
    """Random but plausible changes of films: what another hospital, machine or technician would have made of the same patient.

    `draw` draws the parameters, `apply` applies them, so that any augmentation can be replayed. Active only in training.

    Args:
        config: How far films may be changed.
        seed: Seed of every draw.

    References:
        Shorten and Khoshgoftaar, A survey on image data augmentation, 2019, doi:10.1186/s40537-019-0197-0. Random erasing: Zhong et al., 2017,
        arXiv:1708.04896. Stacked intensity and sharpness changes for unseen hospitals: Zhang et al., 2020, doi:10.1109/TMI.2020.2973595.

    Example:
        >>> films = np.full((2, 64, 64, 1), 0.5, "float32")
        >>> layer = Augment(AugmentConfig(), seed=1)
        >>> tuple(layer(films, training=True).shape)
        (2, 64, 64, 1)
    """

    def __init__(self, config: AugmentConfig | dict[str, Any], *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config if isinstance(config, AugmentConfig) else AugmentConfig(**config)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), "config": asdict(self.config), "seed": self.seed}

    def call(self, films: Any, training: bool | None = None) -> Any:
        """Change films of shape (n, s, s, 1) in [0, 1] while training; return them as they are otherwise."""
        return self.apply(films, self.draw(ops.shape(films)[0], films.shape[1])) if training else films

    def compress(self, films: Any) -> Any:
        """Compress films of shape (n, s, s, 1) in [0, 1] and change nothing else, each to a quality of its own; as they are where s is no multiple of 8."""
        if films.shape[1] % 8:
            return films
        return ops.clip(_compress(films, self._quality(ops.shape(films)[0])), 0.0, 1.0)

    def cut(self, films: Any) -> Any:
        """Cut up to 15 % off the top of films of shape (n, s, s, 1), each as much as its draw says, and change nothing else."""
        n, size = ops.shape(films)[0], films.shape[1]
        part = keras.random.uniform((n, 1), 0.0, _CUT, seed=self.generator)
        zero, one = ops.zeros_like(part), ops.ones_like(part)
        window = ops.concatenate([one, zero, zero, zero, 1 - part, part * (size - 1), zero, zero], axis=1)
        return ops.image.affine_transform(films, window, interpolation="bilinear", data_format="channels_last")

    def _quality(self, n: int) -> Any:
        """How strongly films are compressed, times the standard table: about quality 93 to 20."""
        return ops.exp(keras.random.uniform((n, 1, 1), -2.0, 1.0, seed=self.generator))

    def draw(self, n: int, size: int) -> dict[str, Any]:
        """Draw the parameters of `n` films of `size` pixels: tensors of shape (n, 1) for geometry, broadcastable to the films for the rest."""
        c = self.config

        def uniform(low: float, high: float, *shape: int) -> Any:
            return keras.random.uniform((n, *(shape or (1, 1, 1))), low, high, seed=self.generator)

        def happens(rate: float, *shape: int) -> Any:
            return ops.cast(uniform(0, 1, *shape) < rate, "float32")

        return {
            "angle": uniform(-c.rotation, c.rotation, 1) * (math.pi / 180),
            "zoom": 1 + uniform(-c.zoom, c.zoom, 1),
            "aspect": 1 + uniform(-c.aspect, c.aspect, 1),
            "shift": uniform(-c.shift, c.shift, 2),
            "mirror": 1 - 2 * happens(0.5 if c.flip else 0.0, 1),
            "field": uniform(-c.field, c.field, 1, 1, 3),
            "black": uniform(0, c.window),
            "white": 1 - uniform(0, c.window),
            "gamma": ops.exp(uniform(-c.gamma, c.gamma)),
            "softness": uniform(-c.sharpen, c.blur),
            "coarse": happens(c.coarse),
            "noise": keras.random.normal((1, size, size, 1), seed=self.generator)
            * uniform(-c.noise_std, c.noise_std),  # one field, scaled for each
            "jpeg": self._quality(n) * happens(c.jpeg, 1, 1),
            "strips": 2 * uniform(0, c.strip, 1, 1, 4) * happens(c.strip_rate, 1, 1, 4),
            "strip_level": uniform(0, 1) * happens(0.5),
            "marker_centre": uniform(-1, 1, 1, 1, 2),
            "marker_half": uniform(0.02, 0.1) * happens(c.marker_rate),
            "marker_level": uniform(0, 1),
            "local": ops.maximum(uniform(-c.local, c.local), 0.0),
        }

    def apply(self, films: Any, p: dict[str, Any]) -> Any:
        """Apply drawn parameters to films of shape (n, s, s, 1) in [0, 1]."""
        size = films.shape[1]
        x = ops.image.affine_transform(
            films, _affine(p, size), interpolation="bilinear", fill_mode="constant", data_format="channels_last"
        )
        # Exposure: a smooth field over the film, then a window, then gamma.
        axis = ops.linspace(-1.0, 1.0, size)
        gx, gy = ops.reshape(axis, (1, 1, size, 1)), ops.reshape(axis, (1, size, 1, 1))
        field = p["field"]
        x = x * (1 + field[..., 0:1] * gx + field[..., 1:2] * gy + field[..., 2:3] * (gx * gx + gy * gy - 2 / 3))
        x = ops.exp(
            p["gamma"] * ops.log(ops.clip((x - p["black"]) / (p["white"] - p["black"]), 1e-4, 1.0))
        )  # several times faster than a power
        x = _enhance(x, p["local"])
        # Sharpness, resolution, noise, compression.
        row = ops.convert_to_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        soft = ops.depthwise_conv(
            x, ops.reshape(row[:, None] * row[None, :], (5, 5, 1, 1)), padding="same", data_format="channels_last"
        )
        x = x + p["softness"] * (soft - x)
        half = ops.average_pool(x, 2, 2, data_format="channels_last")
        coarse = ops.image.resize(half, (size, size), interpolation="bilinear", data_format="channels_last")
        x = x + p["coarse"] * (coarse - x) + p["noise"]
        if size % 8 == 0:
            x = _compress(x, p["jpeg"])
        # Collimation borders and markers.
        s = p["strips"]
        inside = (gx >= s[..., 0:1] - 1) & (gx <= 1 - s[..., 1:2]) & (gy >= s[..., 2:3] - 1) & (gy <= 1 - s[..., 3:4])
        x = ops.where(inside, x, p["strip_level"])
        centre = p["marker_centre"]
        marker = (ops.abs(gx - centre[..., 0:1]) < p["marker_half"]) & (
            ops.abs(gy - centre[..., 1:2]) < p["marker_half"]
        )
        return ops.clip(ops.where(marker, p["marker_level"], x), 0.0, 1.0)


_COSINES = (
    np.cos(math.pi / 8 * np.arange(8)[:, None] * (np.arange(8)[None, :] + 0.5))
    * np.where(np.arange(8) == 0, math.sqrt(1 / 8), 0.5)[:, None]
)
_TRANSFORM = np.kron(_COSINES, _COSINES).T.astype(
    np.float32
)  # (64, 64), from the pixels of a block to its coefficients
# ITU-T T.81, table K.1: how coarsely JPEG rounds the 8 x 8 cosine coefficients of luminance at quality 50
_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def _enhance(x: Any, strength: Any) -> Any:
    """Local contrast of films (n, s, s, 1) in [0, 1] brought towards the same everywhere, and local brightness half as much; a strength of 0 changes nothing.

    Like adaptive histogram equalisation (Zuiderveld, 1994, doi:10.1016/B978-0-12-336156-1.50061-6), by means and deviations of tiles, between whose centres is
    interpolated.
    """
    size = x.shape[1]
    measure, spread = _tiles(size)
    films, strength = ops.reshape(x, (-1, size, size)), ops.reshape(strength, (-1, 1, 1))

    def along_both(matrix: NDArray[np.float32], values: Any) -> Any:
        return ops.matmul(ops.matmul(matrix, values), matrix.T)

    means = along_both(measure, films)  # (n, t, t)
    rest = films - along_both(spread, means)
    deviations = ops.sqrt(along_both(measure, rest * rest)) + 0.02
    usual_mean, usual_deviation = (ops.mean(values, axis=(1, 2), keepdims=True) for values in (means, deviations))
    gain = ops.clip((usual_deviation / deviations) ** strength, 0.4, 3.0)
    level = means + 0.5 * strength * (usual_mean - means)
    return ops.reshape(
        ops.clip(along_both(spread, level) + along_both(spread, gain) * rest, 0.0, 1.0), (-1, size, size, 1)
    )


@functools.cache
def _tiles(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What gives the mean of each tile along one axis (t, s), and what interpolates between the tiles' centres (s, t)."""
    pixels = np.arange(size)
    tile = pixels // max(1, size // _TILES)
    measure = np.equal(tile, np.arange(tile[-1] + 1)[:, None]).astype(np.float32)
    measure /= measure.sum(axis=1, keepdims=True)
    spread = np.stack([np.interp(pixels, measure @ pixels, one) for one in np.eye(len(measure))], axis=1)
    return measure, spread.astype(np.float32)


def _compress(x: Any, strength: Any) -> Any:
    """What JPEG loses of films (n, s, s, 1) in [0, 1]; a strength of 0 loses nothing."""
    size, side = x.shape[1], x.shape[1] // 8
    blocks = ops.reshape(ops.transpose(ops.reshape(x, (-1, side, 8, side, 8)), (0, 1, 3, 2, 4)), (-1, side * side, 64))
    step = ops.maximum((_TABLE.reshape(1, 1, 64) / 255).astype(np.float32) * strength, 1e-4)  # (n, 1, 64)
    rounded = ops.round(ops.matmul(blocks, _TRANSFORM) / step) * step
    films = ops.reshape(ops.matmul(rounded, _TRANSFORM.T), (-1, side, side, 8, 8))
    return ops.reshape(ops.transpose(films, (0, 1, 3, 2, 4)), (-1, size, size, 1))


def _affine(p: dict[str, Any], size: int) -> Any:
    """From an output pixel to the input pixel it comes from, about the centre: (n, 8)."""
    c = (size - 1) / 2
    cos, sin = ops.cos(p["angle"]), ops.sin(p["angle"])
    sx, sy = p["mirror"] / (p["zoom"] * p["aspect"]), p["aspect"] / p["zoom"]
    a0, a1, b0, b1 = cos * sx, -sin * sx, sin * sy, cos * sy
    shift = p["shift"] * size
    a2, b2 = c + shift[:, 0:1] - (a0 + a1) * c, c + shift[:, 1:2] - (b0 + b1) * c
    return ops.concatenate([a0, a1, a2, b0, b1, b2, ops.zeros_like(a0), ops.zeros_like(a0)], axis=1)
