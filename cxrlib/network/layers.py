"""The layers of the network that Keras does not have: what makes films of all hospitals alike. Pure Keras 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from cxrlib.network import lungs

# Standard deviation of each octave of spatial frequencies of a film with deviation 1, the finest first; 0 leaves it out
CONTRASTS = (0.0, 0.04, 0.17)
# Where the outer edges of the lungs lie on a usual film, in parts of its width
_USUAL_SIDES = (1 / 8, 7 / 8)
_BEYOND, _WITHIN = (
    1 / 16,
    0.3,
)  # how far what is shown of a film may reach beyond an edge of it, and how far it may stay within, in parts of its side
# How far below the film's upper edge the apices of the lungs lie, in parts of its height: usually, and at most
_USUAL_APEX, _LOWEST_APEX = 0.15, 0.3


@keras.saving.register_keras_serializable(package="cxrlib")
class Standardise(keras.layers.Layer):  # type: ignore[misc]
    """Bring each film by itself to mean 0 and deviation 1 over its central three quarters: brightness and contrast differ from machine to machine.

    Its tone curve stays: equalising the histogram takes out also how much of a lung is opaque.

    Example:
        >>> import numpy as np
        >>> ramp = np.linspace(0, 1, 64 * 64, dtype="float32").reshape(1, 64, 64, 1)
        >>> plain, pale = (np.asarray(Standardise()(film)) for film in (ramp, 0.3 + 0.5 * ramp))
        >>> bool(np.abs(plain - pale).max() < 0.02)
        True
    """

    def call(self, films: Any) -> Any:
        """Standardise films of shape (n, s, s, 1) in [0, 1]."""
        size = films.shape[1]
        seen = films[:, size // 8 : size - size // 8, size // 8 : size - size // 8]
        centred = films - ops.mean(seen, axis=(1, 2, 3), keepdims=True)
        return ops.clip(centred / (ops.std(seen, axis=(1, 2, 3), keepdims=True) + 1e-3), -3.0, 3.0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape unchanged."""
        return input_shape


@keras.saving.register_keras_serializable(package="cxrlib")
class LevelBands(keras.layers.Layer):  # type: ignore[misc]
    """Give each band of spatial frequencies of each film the same contrast: what one machine sharpens and another one smooths becomes the same picture.

    A Laplacian pyramid, each of whose bands is scaled, within limits, to a fixed standard deviation over the central three quarters of the film.

    Args:
        contrasts: Standard deviation of each band, the finest first, of films with deviation 1; 0 leaves a band out. By default the finest is left out: at 224
            pixels it is what compression changes most, and hospitals that were not trained on hardly miss it.

    References:
        Burt and Adelson, The Laplacian pyramid as a compact image code, 1983, doi:10.1109/TCOM.1983.1095851. Radiographs are enhanced by the same means:
        Vuylsteke and Schoeters, Multiscale image contrast amplification, 1994, doi:10.1117/12.175090.

    Example:
        >>> import numpy as np
        >>> sharp = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype("float32")
        >>> soft = np.asarray(keras.ops.average_pool(sharp, 2, strides=1, padding="same"))
        >>> layer = LevelBands(contrasts=(0.5, 0.5, 0.5))
        >>> [round(float(np.asarray(film).std()), 1) for film in (sharp, soft, layer(sharp), layer(soft))]
        [1.0, 0.5, 0.7, 0.8]
    """

    def __init__(self, contrasts: Sequence[float] = CONTRASTS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contrasts = tuple(contrasts)

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), "contrasts": self.contrasts}

    def call(self, films: Any) -> Any:
        """Level films of shape (n, s, s, 1), with mean 0."""
        bands, rest = [], films
        for contrast in self.contrasts:
            size = rest.shape[1]
            small = ops.average_pool(rest, 2, strides=2, padding="same")
            band = 0.0
            if contrast:
                band = rest - ops.image.resize(small, (size, size), interpolation="bilinear")
                seen = band[:, size // 8 : size - size // 8, size // 8 : size - size // 8]
                deviation = ops.sqrt(ops.mean(ops.square(seen), axis=(1, 2, 3), keepdims=True))  # (n, 1, 1, 1)
                band = band * ops.clip(contrast / (deviation + 1e-6), 0.2, 5.0)
            bands.append((size, band))
            rest = small
        for size, band in reversed(bands):
            rest = ops.image.resize(rest, (size, size), interpolation="bilinear") + band
        return rest

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape unchanged."""
        return input_shape


@keras.saving.register_keras_serializable(package="cxrlib")
class FindLungs(keras.layers.Layer):  # type: ignore[misc]
    """Find where the lungs lie, as `cxrlib.network.lungs.find` does. Its weights are those of `cxrlib.lungs`, are saved with the model, and are never trained.

    Example:
        >>> import numpy as np
        >>> from cxrlib.images import phantom
        >>> film = phantom.draw(size=224).reshape(1, 224, 224, 1).astype("float32") / 255
        >>> left, right, midline, apex, dome, angle = np.asarray(FindLungs()(film))[0]
        >>> bool(left < midline < right and apex < dome < angle)
        True
    """

    def build(self, input_shape: Any) -> None:
        """Take over the weights."""
        self.arrays = []
        for i, array in enumerate(lungs.weights()):
            self.arrays.append(
                self.add_weight(array.shape, keras.initializers.Zeros(), trainable=False, name=f"array_{i}")
            )
            self.arrays[-1].assign(array)

    def call(self, films: Any) -> Any:
        """Give the edges (n, 6) of films (n, s, s, 1) in [0, 1]."""
        size, layout = films.shape[1], "channels_last"
        if size % lungs.SIDE:
            size = max(1, round(size / lungs.SIDE)) * lungs.SIDE
            films = ops.image.resize(films, (size, size), data_format=layout)
        cell = size // lungs.SIDE
        x = Standardise(dtype="float32")(ops.average_pool(films, cell, cell, data_format=layout) if cell > 1 else films)
        *convolutions, kernel, bias = self.arrays
        for i, stride in enumerate(lungs.STRIDES):
            x = ops.relu(ops.conv(x, convolutions[2 * i], stride, "same", data_format=layout) + convolutions[2 * i + 1])
        return ops.matmul(ops.reshape(x, (-1, kernel.shape[0])), kernel) + bias

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return (n, 6)."""
        return input_shape[0], len(lungs.EDGES)


@keras.saving.register_keras_serializable(package="cxrlib")
class Reframe(keras.layers.Layer):  # type: ignore[misc]
    """Take off pooled features what the height of the lungs' apices on the film does to them: hospitals frame their films otherwise.

    Features are moved along `slope`, a weight that gradients do not reach, by as much as the apices lie lower than usual; 0 at first.

    Example:
        >>> import numpy as np
        >>> layer = Reframe()
        >>> features, edges = np.ones((1, 2), "float32"), np.array([[0.1, 0.9, 0.5, 0.25, 0.7, 0.8]], "float32")
        >>> layer.build([(1, 2), (1, 6)])
        >>> layer.set_weights([np.array([0, 5], "float32")])
        >>> np.asarray(layer([features, edges])).round(2).tolist()
        [[1.0, 0.5]]
    """

    def build(self, input_shape: Any) -> None:
        """Make the slope, one value per feature."""
        self.slope = self.add_weight((input_shape[0][-1],), keras.initializers.Zeros(), trainable=False, name="slope")

    @staticmethod
    def lower(edges: Any) -> Any:
        """By which part of the film's height the apices lie lower than usual, (n, 1), from edges (n, 6)."""
        apex = lungs.EDGES.index("apex")
        return ops.clip(edges[:, apex : apex + 1], 0.0, _LOWEST_APEX) - _USUAL_APEX

    def call(self, inputs: Any) -> Any:
        """Move features (n, c), given edges (n, 6)."""
        features, edges = inputs
        return features - self.lower(edges) * self.slope

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the features' shape."""
        return input_shape[0]


@keras.saving.register_keras_serializable(package="cxrlib")
class Show(keras.layers.Layer):  # type: ignore[misc]
    """Show the inner part of each film, made smaller; the part follows the lungs, so that these are shown equally wide, however tightly a film is framed.

    Each pixel is the mean of nine points half a pixel apart, so that fine patterns, compression's above all, do not fold into coarse ones; of a film that is
    made no smaller, it is one point. Beyond the film its edge is repeated.

    Args:
        side: Height and width of what is shown, in pixels.
        margin: Part of the film's height and width, at each edge, that is not shown where the lungs lie as usual, in [0, 0.25].
        follow: How far the left and the right end of the part follow the outer edges of the lungs, in [0, 1]. Its height changes half as much as its width,
            about the middle: films are framed tightly on all sides at once, and where the diaphragm lies depends on the disease.

    Example:
        >>> import numpy as np
        >>> usual, wide = np.array([[0.125, 0.875, 0.5, 0.1, 0.7, 0.8], [0.025, 0.975, 0.5, 0.1, 0.7, 0.8]], "float32")
        >>> layer = Show(112, margin=0.0625, follow=1.0)
        >>> np.asarray(layer.window(np.stack([usual, wide])), float).round(4).tolist()
        [[0.0625, 0.0625, 0.9375, 0.9375], [-0.0375, 0.0125, 1.0375, 0.9875]]
        >>> tuple(layer([np.ones((2, 224, 224, 1), "float32"), np.stack([usual, wide])]).shape)
        (2, 112, 112, 1)
    """

    def __init__(self, side: int, margin: float = 0.0, follow: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.side, self.margin, self.follow = side, margin, follow

    def get_config(self) -> dict[str, Any]:
        """Return what rebuilds the layer."""
        return {**super().get_config(), "side": self.side, "margin": self.margin, "follow": self.follow}

    def window(self, edges: Any) -> Any:
        """Say which part of a film is shown, given edges (n, 6): left, top, right and bottom, (n, 4), in parts of its width and height."""
        ends = []
        for name, usual, end in zip(("left", "right"), _USUAL_SIDES, (self.margin, 1 - self.margin), strict=True):
            at = lungs.EDGES.index(name)
            ends.append(end + self.follow * (edges[:, at : at + 1] - usual))
        left, right = ends
        taller = (right - left - (1 - 2 * self.margin)) / 4  # half as much in all, above and below alike
        top, bottom = self.margin - taller, 1 - self.margin + taller
        near, far = (
            ops.clip(ops.concatenate(both, axis=1), -_BEYOND, _WITHIN)
            for both in ((left, top), (1 - right, 1 - bottom))
        )
        return ops.concatenate([near, 1 - far], axis=1)

    def call(self, inputs: Any) -> Any:
        """Show films (n, s, s, 1), given edges (n, 6): (n, side, side, 1)."""
        films, edges = inputs
        window, size = self.window(edges), films.shape[1]
        rows, columns = (self._means(window[:, i : i + 1], window[:, i + 2 : i + 3], size) for i in (1, 0))
        shown = ops.matmul(ops.matmul(rows, ops.reshape(films, (-1, size, size))), ops.transpose(columns, (0, 2, 1)))
        return ops.reshape(shown, (-1, self.side, self.side, 1))

    def _means(self, start: Any, end: Any, size: int) -> Any:
        """How much each of `size` pixels counts in each pixel that is shown, along one axis, between two ends (n, 1): (n, side, size)."""
        points = (
            (0.25, 0.75, 1.25) if self.side < size else (0.5,)
        )  # of each pixel, in pixels; the last is the next one's first
        at = np.add.outer(np.arange(self.side), points).ravel() / self.side  # in parts of what is shown
        where = size * (start + (end - start) * ops.convert_to_tensor(at[None], "float32")) - 0.5  # (n, side * points)
        where = ops.clip(where, ops.maximum(size * start, 0.0), ops.minimum(size * end, float(size)) - 1)
        near = ops.relu(1 - ops.abs(ops.reshape(where, (-1, where.shape[1], 1)) - ops.arange(size, dtype="float32")))
        return ops.mean(ops.reshape(near, (-1, self.side, len(points), size)), axis=2)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return (n, side, side, 1)."""
        return input_shape[0][0], self.side, self.side, 1
