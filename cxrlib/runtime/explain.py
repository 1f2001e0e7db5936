"""Where the evidence lies: the network's evidence grid as a heatmap over the film."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cxrlib.images.decode import Film

if TYPE_CHECKING:
    from cxrlib.predictor import Prediction

_FULL = 8.0  # evidence that looks strong: half of the lungs full of it move the logit by 4, from sure health to doubt; what is weaker everywhere stays pale
_STRIP = 64  # columns worked on at once: whole large films in floating point, three colours of each pixel, would take a gigabyte
_BORDER, _TOLERATED, _FAINT = (
    0.1,
    0.4,
    0.25,
)  # part of a side that is border; part of the heat that may lie there; heat that says nothing
# Nine stops of a perceptually uniform map from black over red to pale yellow (inferno, by S. van der Walt and N. Smith, CC0)
_STOPS = np.array(
    [
        [0, 0, 4],
        [31, 12, 72],
        [85, 15, 109],
        [136, 34, 106],
        [186, 54, 85],
        [227, 89, 51],
        [249, 140, 10],
        [249, 201, 50],
        [252, 255, 164],
    ],
    np.float32,
)


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prediction and where its evidence lies.

    Args:
        heatmap: ndarray of shape (H, W), float32 in [0, 1], at the film's own full size.
        film: The film.
        label: The class that the evidence speaks for.
        prediction: The prediction.
    """

    heatmap: np.ndarray
    film: Film
    label: str
    prediction: Prediction

    @property
    def border(self) -> float:
        """The part of the heat that lies in the outer tenth of what the film shows, where hardly any lung is, in [0, 1]; 0 when there is no heat."""
        left, top, right, bottom = _shown(self.film)
        heat = self.heatmap[top:bottom, left:right]
        rows, columns = (math.ceil(side * _BORDER) for side in heat.shape)
        total = float(heat.sum(dtype=np.float64))
        inside = float(heat[rows:-rows, columns:-columns].sum(dtype=np.float64))
        return 1 - inside / total if total > 0 else 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to be careful about, in plain words: evidence that lies where no lung is."""
        if self.heatmap.max() < _FAINT or self.border < _TOLERATED:
            return ()
        return (
            f"{self.border:.0%} of the evidence for {self.label} lies at the border of the film, where hardly any lung is",
        )

    def overlay(self, *, alpha: float = 0.5) -> Image.Image:
        """Paint the heatmap over the film; where there is no evidence, the film stays as it is.

        Args:
            alpha: Opacity where the heatmap is 1, in [0, 1].

        Returns:
            An RGB image of the film's full size.

        Raises:
            ValueError: If `alpha` lies outside [0, 1].
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1]. Received: alpha={alpha!r}")
        height, width = self.heatmap.shape
        levels = np.arange(256) / 255
        colours = np.stack(
            [np.interp(levels, np.linspace(0, 1, len(_STOPS)), _STOPS[:, c]) for c in range(3)], axis=1
        ).astype(np.float32)  # (256, 3)
        canvas = Image.new("RGB", (width, height))
        for left, grey in _grey(self.film, height, width):  # (H, w)
            heat = self.heatmap[:, left : left + _STRIP]
            opacity = (np.float32(alpha) * heat)[..., None]
            painted = grey[..., None] * (1 - opacity) + colours[(heat * 255).astype(np.uint8)] * opacity  # (H, w, 3)
            canvas.paste(Image.fromarray(painted.round().astype(np.uint8)), (left, 0))
        return canvas


def heatmap(evidence: np.ndarray, film: Film) -> np.ndarray:
    """Turn an evidence grid into a heatmap.

    Evidence against the class counts as none. The scale is absolute up to an evidence of 8, by which lungs full of it would move the logit: a film with little
    evidence gets a pale heatmap, not one stretched to look alarming.

    Args:
        evidence: ndarray of shape (h, w), float, in units of the logit; of a `Predictor`, what goes beyond the usual evidence of healthy films.
        film: The film.

    Returns:
        ndarray of shape (H, W), the film's full size, float32 in [0, 1]; 0 in its empty bars.

    Example:
        >>> from cxrlib.images.decode import read
        >>> heatmap(np.full((7, 7), 2.0), read(np.zeros((2, 4), np.uint8))).max().item()
        0.25
    """
    positive = np.maximum(evidence, 0).astype(np.float32)
    scaled = positive / max(_FULL, float(positive.max(initial=0.0)))
    left, top, right, bottom = _shown(film)
    heat = np.zeros(film.size, np.float32)
    for start, strip in _stretched(scaled, bottom - top, right - left, Image.Resampling.BICUBIC):
        heat[top:bottom, left + start : left + start + strip.shape[1]] = np.clip(strip, 0, 1)
    return heat


def _stretched(
    grid: np.ndarray, height: int, width: int, resample: Image.Resampling
) -> Iterator[tuple[int, np.ndarray]]:
    """Resize (h, w) to (height, width), in strips of columns, each with where it begins: the same values as at once, for Pillow resizes one axis at a time."""
    wide = Image.fromarray(grid).resize((width, grid.shape[0]), resample)
    for left in range(0, width, _STRIP):
        right = min(left + _STRIP, width)
        yield left, np.asarray(wide.crop((left, 0, right, wide.height)).resize((right - left, height), resample))


def _grey(film: Film, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Grey levels of a film, float32 in [0, 255], at the given size, in strips of columns as above."""

    def levels(pixels: np.ndarray) -> np.ndarray:
        grey: np.ndarray = np.clip(pixels.astype(np.float32) * np.float32(255 / film.white), 0, 255)
        return grey

    if film.pixels.shape == (height, width):
        return ((left, levels(film.pixels[:, left : left + _STRIP])) for left in range(0, width, _STRIP))
    return _stretched(levels(film.pixels), height, width, Image.Resampling.BILINEAR)


def _shown(film: Film) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the network saw of a film, in its pixels."""
    return film.content or (0, 0, *film.size[::-1])
