"""The network's evidence grid as a heatmap over the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from cxrlib.images.decode import Radiograph
    from cxrlib.runtime.prediction import Prediction

_FULL = 8.0  # evidence, in units of the logit, that gets the strongest colour
_STRIP = 64  # columns at once: a large image in float32, with three colours for each pixel, would take a gigabyte
_BORDER, _MOST_AT_BORDER = 0.1, 0.4  # part of a side that is border; part of the heat that may lie there
_FAINT = 0.25  # heat below this counts as little
# Nine stops of a perceptually uniform map from black over red to pale yellow (inferno, S. van der Walt, N. Smith, CC0)
_STOPS = np.array(
    [
        *((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)),
        *((227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)),
    ],
    np.float32,
)
_LEVELS = np.linspace(0, 1, len(_STOPS)), np.arange(256) / 255
_COLOURS = np.stack([np.interp(_LEVELS[1], _LEVELS[0], stop) for stop in _STOPS.T], axis=1).astype(
    np.float32
)  # (256, 3)


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prediction and where its evidence lies.

    Args:
        heatmap: ndarray of shape (H, W), float32 in [0, 1], at the image's own full size.
        image: The image.
        label: The class that the evidence is for.
        prediction: The prediction.
    """

    heatmap: np.ndarray
    image: Radiograph
    label: str
    prediction: Prediction

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show: no place has more evidence for the label than normal images have there."""
        return not self.heatmap.any()

    @property
    def border(self) -> float:
        """Part of the heat in the outer tenth of what the network saw, where there is hardly any lung, in [0, 1]."""
        left, top, right, bottom = _shown(self.image)
        heat = self.heatmap[top:bottom, left:right]
        rows, columns = (math.ceil(side * _BORDER) for side in heat.shape)
        total = float(heat.sum(dtype=np.float64))
        inside = float(heat[rows:-rows, columns:-columns].sum(dtype=np.float64))
        return 1 - inside / total if total > 0 else 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings in plain words: evidence that lies where there is no lung."""
        if self.heatmap.max() < _FAINT or self.border < _MOST_AT_BORDER:
            return ()
        return (
            f"{self.border:.0%} of the evidence for {self.label} lies at the border, where there is hardly any lung",
        )

    def overlay(self, *, alpha: float = 0.5) -> Image.Image:
        """Paint the heatmap over the image; where there is no evidence, the image is unchanged.

        Args:
            alpha: Opacity where the heatmap is 1, in [0, 1].

        Returns:
            An RGB image of the full size.

        Raises:
            ValueError: If `alpha` lies outside [0, 1].
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1]. Received: alpha={alpha!r}")
        height, width = self.heatmap.shape
        canvas = Image.new("RGB", (width, height))
        for left, grey in _grey(self.image, height, width):  # (H, w)
            heat = self.heatmap[:, left : left + _STRIP]
            opacity = (np.float32(alpha) * heat)[..., None]
            painted = grey[..., None] * (1 - opacity) + _COLOURS[(heat * 255).astype(np.uint8)] * opacity  # (H, w, 3)
            canvas.paste(Image.fromarray(painted.round().astype(np.uint8)), (left, 0))
        return canvas


def heatmap(evidence: np.ndarray, image: Radiograph) -> np.ndarray:
    """Turn an evidence grid into a heatmap.

    Evidence against the class counts as 0. The scale is absolute: an evidence of 8 is 1, and an image with little
    evidence gets a pale heatmap, not a stretched one. Only where some evidence exceeds 8 is the largest value 1.

    Args:
        evidence: ndarray of shape (h, w), float, in units of the logit.
        image: The image.

    Returns:
        ndarray of shape (H, W), the image's full size, float32 in [0, 1]; 0 in its empty bars.

    Example:
        >>> from cxrlib.images.decode import read
        >>> heatmap(np.full((7, 7), 2.0), read(np.zeros((2, 4), np.uint8))).max().item()
        0.25
    """
    positive = np.maximum(evidence, 0).astype(np.float32)
    scaled = positive / max(_FULL, float(positive.max(initial=0.0)))
    left, top, right, bottom = _shown(image)
    heat = np.zeros(image.size, np.float32)
    if scaled.any():
        for start, strip in _resized(scaled, bottom - top, right - left, Image.Resampling.BICUBIC):
            heat[top:bottom, left + start : left + start + strip.shape[1]] = np.clip(strip, 0, 1)
    return heat


def _resized(grid: np.ndarray, height: int, width: int, resample: Image.Resampling) -> Iterator[tuple[int, np.ndarray]]:
    """Resize (h, w) to (height, width), in strips of columns, each with its left edge.

    The values are the same as at once: Pillow resizes one axis at a time.
    """
    wide = Image.fromarray(grid).resize((width, grid.shape[0]), resample)
    for left in range(0, width, _STRIP):
        right = min(left + _STRIP, width)
        yield left, np.asarray(wide.crop((left, 0, right, wide.height)).resize((right - left, height), resample))


def _grey(image: Radiograph, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Grey levels of an image, float32 in [0, 255], at the given size, in strips of columns as above."""

    def levels(pixels: np.ndarray) -> np.ndarray:
        grey: np.ndarray = np.clip(pixels.astype(np.float32) * np.float32(255 / image.white), 0, 255)
        return grey

    if image.pixels.shape == (height, width):
        return ((left, levels(image.pixels[:, left : left + _STRIP])) for left in range(0, width, _STRIP))
    return _resized(levels(image.pixels), height, width, Image.Resampling.BILINEAR)


def _shown(image: Radiograph) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the network saw of an image, in its pixels."""
    return image.content or (0, 0, *image.size[::-1])
