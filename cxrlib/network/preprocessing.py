"""What makes images of all hospitals alike, inside the network and of Keras's own layers only."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

# Standard deviation of each octave of spatial frequencies of an image with deviation 1, the finest first; 0 drops it.
# The finest octave at 224 pixels is mostly compression and noise.
CONTRASTS = (0.0, 0.0400390625, 0.169921875)  # as all constants here: what 16 bits hold exactly
_MOST_GAIN = 5.0  # how much a faint octave is amplified at most
_CHANNELS = {"data_format": "channels_last"}


def standardise(x: Any) -> Any:
    """Bring each image by itself to mean 0 and standard deviation 1, and clip it to [-3, 3].

    Brightness and contrast differ from machine to machine. The tone curve stays: equalising the histogram would also
    remove how much of a lung is opaque.

    Args:
        x: Keras tensor of shape (n, s, s, 1), float32.

    Returns:
        Keras tensor of the same shape.

    Example:
        >>> import numpy as np
        >>> ramp = np.linspace(0, 1, 64 * 64, dtype="float32").reshape(1, 64, 64, 1)
        >>> plain, pale = (np.asarray(standardise(image)) for image in (ramp, 0.3 + 0.5 * ramp))
        >>> bool(np.abs(plain - pale).max() < 1e-3)
        True
    """
    x = _normalise(1e-6)(x)
    x = layers.Rescaling(1.0, offset=3.0, dtype="float32")(x)  # plain layers for a clip at both ends
    x = layers.ReLU(max_value=6.0, dtype="float32")(x)
    return layers.Rescaling(1.0, offset=-3.0, dtype="float32")(x)


def level_bands(x: Any, contrasts: tuple[float, ...] = CONTRASTS) -> Any:
    """Give each octave of spatial frequencies of each image the same contrast, however sharp a machine made it.

    A Laplacian pyramid, each of whose bands is scaled to a fixed standard deviation.

    Args:
        x: Keras tensor of shape (n, s, s, 1), standardised; s is a multiple of 2 to the power of the number of bands.
        contrasts: Standard deviation of each band, the finest first; 0 drops a band.

    Returns:
        Keras tensor of the same shape.

    References:
        Burt and Adelson, The Laplacian pyramid as a compact image code, 1983, doi:10.1109/TCOM.1983.1095851.
        Radiographs are enhanced in the same way: Vuylsteke and Schoeters, Multiscale image contrast amplification,
        1994, doi:10.1117/12.175090.

    Example:
        >>> import numpy as np
        >>> sharp = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype("float32")
        >>> [round(float(np.asarray(level_bands(gain * sharp, (0.5,))).std()), 2) for gain in (1, 3)]
        [0.63, 1.14]
    """
    contrast, *coarser = contrasts
    small = layers.AveragePooling2D(2, **_CHANNELS, dtype="float32")(x)
    levelled = _enlarge(level_bands(small, tuple(coarser)) if coarser else small)
    if not contrast:
        return levelled
    band = layers.Subtract(dtype="float32")([x, _enlarge(small)])
    band = _normalise((contrast / _MOST_GAIN) ** 2)(band)
    return layers.Add(dtype="float32")([levelled, layers.Rescaling(contrast, dtype="float32")(band)])


def _normalise(epsilon: float) -> Any:
    """A layer that brings each image to mean 0 and deviation 1. One group of all channels: unlike LayerNormalization
    over three axes, it is read back correctly from HDF5."""
    epsilon = float(np.float16(epsilon))
    return layers.GroupNormalization(groups=1, axis=-1, epsilon=epsilon, center=False, scale=False, dtype="float32")


def _enlarge(x: Any) -> Any:
    return layers.UpSampling2D(2, interpolation="bilinear", **_CHANNELS, dtype="float32")(x)
