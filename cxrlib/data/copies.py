"""Images that occur more than once in a data set, unchanged or altered."""

from __future__ import annotations

import itertools
import math
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from cxrlib.data.cache import Facts, Images
from cxrlib.data.split import connected

# Images are compared by what lies between two scales: every cell of a grid less its neighbourhood, divided by the
# contrast there, so that brightness, gamma, a marker or a border count for little. Among 31 million pairs of untouched
# images of three collections none correlates above 0.51 on the fine grid; their copies keep 0.62 and more.
_COARSE = (28, 7)  # cells along a side, cells along a neighbourhood's side; every image with every other
_FINE = (112, 9)  # only what the coarse grid finds
_ALIKE_COARSE = 0.7  # part of the way to 1 from the correlation that two images of this data set may well have
_ALIKE_FINE = 0.57
_SAMPLE = 256  # images that tell which correlation that is
_FEW = 32  # images among which copies may be so many that only the median is safe from them
_CLIP = 1.5  # a cell's largest deviation, in contrasts of its neighbourhood
_FLAT = 4.0  # grey levels of 255 that are added to the contrast: noise in flat regions stays small
_BLOCK = 2048  # images compared with as many others at a time: 16 MiB
MOST = 200_000  # images that are compared: the time grows with the square, to about half an hour


def exact(readable: Sequence[int], images: Images, facts: Sequence[Facts]) -> list[list[int]]:
    """Groups of images of one size that have the same pixels once they are fitted, in whatever files.

    Args:
        readable: Positions of the images to look at.
        images: All images.
        facts: What is known of them.
    """
    suspects: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for i in readable:
        suspects[facts[i].height, facts[i].width, zlib.crc32(images[i].data)].append(i)
    pairs = (pair for group in suspects.values() for pair in itertools.pairwise(group))
    links = [(a, b) for a, b in pairs if np.array_equal(images[a], images[b])]
    return [group for group in connected(len(images), links) if len(group) > 1]


def near(chosen: NDArray[np.int64], images: Images, progress: bool) -> list[tuple[int, int]]:
    """Pairs of altered copies: re-encoded, resized, mirrored, inverted or of another contrast.

    Args:
        chosen: ndarray of shape (m,), int64: positions of the images to compare; none are where m is above `MOST`.
        images: All images.
        progress: Whether to show progress on stderr.
    """
    if len(chosen) > MOST:
        return []
    coarse_enough = _enough(images, chosen, _COARSE, _ALIKE_COARSE)
    fine_enough = _enough(images, chosen, _FINE, _ALIKE_FINE)
    blocks = [chosen[i : i + _BLOCK] for i in range(0, len(chosen), _BLOCK)]
    suspects: set[tuple[int, int]] = set()
    coarse: list[NDArray[np.float16]] = []  # (m, 784): 1.5 KiB per image is all that stays in memory
    for block in tqdm(blocks, "comparing", disable=None if progress else True, leave=False):
        own = _describe(images, block, *_COARSE)
        both = np.concatenate([own, _mirrored(own)]).T  # (784, 2 m)
        coarse.append(own.astype(np.float16))
        for other, described in zip(blocks, coarse, strict=False):
            alike = np.abs(described.astype(np.float32) @ both) > coarse_enough  # (k, 2 m); a negative gives -1
            rows, columns = np.nonzero(alike)
            found = zip(other[rows].tolist(), block[columns % len(block)].tolist(), strict=True)
            suspects.update((a, b) for a, b in found if a < b)
    pairs = sorted(suspects)
    parts = (pairs[start : start + 512] for start in range(0, len(pairs), 512))
    return [pair for part in parts for pair in _verified(part, images, fine_enough)]


def _enough(images: Images, chosen: NDArray[np.int64], grid: tuple[int, int], alike: float) -> float:
    """The correlation of copies: part of the way to 1 from what one pair in ten of this data set exceeds.

    That is 0.11 on the fine grid where people differ, and far more for drawings or images of one test object.
    """
    if len(chosen) < 6:
        return alike
    sample = chosen[np.unique(np.linspace(0, len(chosen) - 1, _SAMPLE).astype(np.int64))]
    described = _describe(images, sample, *grid)
    pairs = (described @ described.T)[np.triu_indices(len(sample), 1)]
    usual = max(0.0, float(np.quantile(pairs, 0.5 if len(sample) < _FEW else 0.9)))
    return usual + alike * (1 - usual)


def _verified(pairs: list[tuple[int, int]], images: Images, enough: float) -> list[tuple[int, int]]:
    chosen, index = np.unique(np.array(pairs), return_inverse=True)
    described = _describe(images, chosen, *_FINE)  # (m, 12544)
    first, second = (described[column] for column in index.reshape(-1, 2).T)
    alike = np.maximum(np.abs((first * second).sum(axis=1)), np.abs((first * _mirrored(second)).sum(axis=1)))
    return [pair for pair, value in zip(pairs, alike.tolist(), strict=True) if value > enough]


def _mirrored(described: NDArray[np.float32]) -> NDArray[np.float32]:
    side = math.isqrt(described.shape[1])
    return described.reshape(-1, side, side)[:, :, ::-1].reshape(described.shape)


def _describe(images: Images, chosen: NDArray[np.int64], side: int, neighbourhood: int) -> NDArray[np.float32]:
    """Detail between two scales: (m, side * side) of mean 0 and norm 1, so that a product is a correlation."""
    described = np.empty((len(chosen), side * side), np.float32)
    for start in range(0, len(chosen), 256):
        grid = cells(images[chosen[start : start + 256]], side)  # (m, side, side)
        detail = grid - _smooth(grid, neighbourhood)
        contrast = np.sqrt(_smooth(detail * detail, neighbourhood)) + _FLAT
        flat = np.clip(detail / contrast, -_CLIP, _CLIP).reshape(len(grid), -1)
        flat -= flat.mean(axis=1, keepdims=True)
        described[start : start + 256] = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return described


def cells(images: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Means of the images' cells, (m, n, n), float32 in [0, 255].

    Args:
        images: ndarray of shape (m, s, s), uint8.
        n: Cells along a side.

    Example:
        >>> cells(np.array([[[0, 2], [4, 6]]], np.uint8), 1).tolist()
        [[[3.0]]]
    """
    if images.shape[1] % n:
        side = max(1, round(images.shape[1] / n)) * n
        resized = (Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images)
        images = np.stack([np.asarray(image) for image in resized])
    cell = images.shape[1] // n
    rows = images.reshape(len(images), n, cell, n * cell).sum(2, dtype=np.float32)  # down, then across: faster
    mean: NDArray[np.float32] = rows.reshape(len(images), n, n, cell) @ np.ones(cell, np.float32) / np.float32(cell**2)
    return mean


def _smooth(grid: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """Mean over a square window, the edge repeated; (m, h, w) as given."""
    for axis in (1, 2):
        margin = [(0, 0)] * 3
        margin[axis] = (window // 2 + 1, window // 2)
        total = np.pad(grid, margin, "edge").cumsum(axis=axis, dtype=np.float64)
        n = grid.shape[axis]
        sums = np.take(total, range(window, n + window), axis) - np.take(total, range(n), axis)
        grid = (sums / window).astype(np.float32)
    return grid
