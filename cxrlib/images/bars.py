"""Empty bars at the edges of an image, as padding or a narrow field of view leave them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

_EMPTY = 2.5 / 255  # of white: how far the grey of a bar may vary; air beside a patient varies more
_BARS, _PICTURE = 1 / 7, 0.25  # bars that take less of an image stay; so do those that leave less of it


def content(picture: np.ndarray | Image.Image, white: float, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Find what lies within empty bars.

    Args:
        picture: ndarray of shape (h, w), or a PIL image of mode "L".
        white: The value that means 1.0.
        size: Height and width at full size.

    Returns:
        Left, top, right and bottom in pixels of the full size; None where there are no bars, or they take less than a
        seventh of the image, or more than three quarters.

    Example:
        >>> padded = np.zeros((8, 16), np.uint8)
        >>> padded[:, 4:12] = np.arange(64).reshape(8, 8) * 4 + 3
        >>> content(padded, 255, (8, 16))
        (4, 0, 12, 8)
    """
    limit = white * _EMPTY
    width, height = picture.size if isinstance(picture, Image.Image) else picture.shape[::-1]

    levels: Any = picture.load() if isinstance(picture, Image.Image) else picture.T.data  # [i, j] of column i and row j

    def differ(points: list[tuple[int, int]]) -> bool:
        first = levels[points[0]]
        return any(abs(levels[point] - first) > limit for point in points[1:])

    # Bars worth cutting reach so far on one side at least; three points of a line tell most images without.
    x, y = int(width * _BARS / 4), int(height * _BARS / 4)
    across, down = ((side // 2, side // 4, 3 * side // 4) for side in (width, height))
    if all(differ([(i, j) for j in down]) for i in (x, width - 1 - x)) and all(
        differ([(i, j) for i in across]) for j in (y, height - 1 - y)
    ):
        return None

    def extremes(left: int, top: int, right: int, bottom: int) -> tuple[float, float]:
        if isinstance(picture, Image.Image):
            return picture.crop((left, top, right, bottom)).getextrema()  # type: ignore[return-value]  # of one band
        box = picture[top:bottom, left:right]
        return float(box.min()), float(box.max())

    left = _bar(lambda i, j: extremes(i, 0, j, height), width, limit)
    if left == width:  # blank
        return None
    right = width - _bar(lambda i, j: extremes(width - j, 0, width - i, height), width, limit)
    top = _bar(lambda i, j: extremes(0, i, width, j), height, limit)
    bottom = height - _bar(lambda i, j: extremes(0, height - j, width, height - i), height, limit)
    if (
        left >= right
        or top >= bottom
        or not _PICTURE <= (right - left) * (bottom - top) / (width * height) <= 1 - _BARS
    ):
        return None
    wide, high = size[1] / width, size[0] / height  # above 1 where it was decoded at a reduced scale
    return round(left * wide), round(top * high), round(right * wide), round(bottom * high)


def _bar(extremes: Callable[[int, int], tuple[float, float]], most: int, limit: float) -> int:
    """How many lines from the edge are, all together, of one grey, from the extremes of the lines i … j - 1."""
    lines, step, low, high, growing = 0, 1, math.inf, -math.inf, True
    while step and lines < most:
        end = min(lines + step, most)
        darkest, brightest = extremes(lines, end)
        darkest, brightest = min(low, darkest), max(high, brightest)
        if brightest - darkest <= limit:
            lines, low, high = end, darkest, brightest
        else:
            growing = False
        step = 2 * step if growing else step // 2
    return lines
