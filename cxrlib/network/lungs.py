"""Where the lungs lie on a film, by a network of 59,000 parameters that needs nothing but NumPy."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EDGES = ("left", "right", "midline", "apex", "dome", "angle")
SIDE = 56  # pixels a side of what the network sees
STRIDES = (
    2,
    2,
    1,
    2,
    1,
)  # of its convolutions, each of 3 x 3 pixels and followed by a rectifier; one dense layer comes last
_WEIGHTS = Path(__file__).with_name("lungs.npz")  # benchmarks/lungs.py makes it


@cache
def weights() -> tuple[NDArray[np.float32], ...]:
    """Give the network's weights.

    Returns:
        Kernel and bias of each convolution, (3, 3, c_in, c) and (c,), then of the dense layer, (d, 6) and (6,): float32, read-only.

    Example:
        >>> weights()[0].shape
        (3, 3, 1, 16)
    """
    with np.load(_WEIGHTS, allow_pickle=False) as archive:
        arrays = tuple(archive[name] for name in archive.files)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def find(films: NDArray[np.float32]) -> NDArray[np.float32]:
    """Find where the lungs lie; `cxrlib.network.layers.FindLungs` computes the same inside a graph.

    The network was trained on 480 films whose lungs were measured by eye.

    Args:
        films: ndarray of shape (n, 56, 56), float32 in [0, 1].

    Returns:
        ndarray of shape (n, 6), float32: the edges named in `EDGES`, in parts of the film's width (the outermost edges of the lungs on the left and on the
        right of the picture, the midline) or height (the apices, the dome of the diaphragm on the left of the picture, the lower costophrenic angle). It is
        off by 0.01 to 0.03; where there are no lungs it means nothing.

    Example:
        >>> from cxrlib.images import phantom
        >>> film = phantom.draw(size=224).reshape(1, 56, 4, 56, 4).mean((2, 4), dtype=np.float32) / np.float32(255)
        >>> left, right, midline, apex, dome, angle = find(film)[0].tolist()
        >>> left < midline < right and apex < dome < angle
        True
    """
    *convolutions, kernel, bias = weights()
    margin = SIDE // 8
    seen = films[:, margin : SIDE - margin, margin : SIDE - margin]
    x = (films - seen.mean(axis=(1, 2), keepdims=True)) / (seen.std(axis=(1, 2), keepdims=True) + np.float32(1e-3))
    x = x.clip(-3, 3)[..., None]
    for i, stride in enumerate(STRIDES):
        x = _convolve(x, convolutions[2 * i], convolutions[2 * i + 1], stride)
    edges: NDArray[np.float32] = x.reshape(len(x), len(kernel)) @ kernel + bias
    return edges


def _convolve(
    x: NDArray[np.float32], kernel: NDArray[np.float32], bias: NDArray[np.float32], stride: int
) -> NDArray[np.float32]:
    """A convolution of maps (n, s, s, c) that keeps their size but for its stride, rectified."""
    before = 0 if stride == 2 else 1  # where an even number of pixels is halved, the frame is wanted on one side alone
    end = x.shape[1] - stride + 1
    x = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    windows = np.concatenate(
        [x[:, i : i + end : stride, j : j + end : stride] for i in range(3) for j in range(3)], axis=3
    )  # (n, h, w, 9 c)
    made: NDArray[np.float32] = np.maximum(windows @ kernel.reshape(-1, len(bias)) + bias, 0)
    return made
