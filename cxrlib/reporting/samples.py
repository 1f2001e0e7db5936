"""Images worth showing, and the figure that shows them with their answers and heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxrlib.metrics.report import Report, Row
from cxrlib.reporting.style import BLUE, ORANGE, figure, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pick(report: Report, *, count: int = 8) -> list[str]:
    """Pick images worth showing: half wrong, most confident first, half right, from the most to the least confident.

    Args:
        report: A report with its predictions.
        count: How many, at most.

    Returns:
        Names of images: give them with their pixels to `draw` or `cxrlib.reporting.save`.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]]
        >>> r = make_report([0, 1, 0, 0], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd")
        >>> pick(r, count=3)
        ['d', 'c', 'a']
    """
    rows = [row for row in report.predictions if row.label is not None and row.truth in report.labels]
    rows.sort(key=lambda row: (-max(row.probabilities), row.name))
    wrong = [row for row in rows if row.label != row.truth]
    right = [row for row in rows if row.label == row.truth]
    part = min(len(wrong), max(count - len(right), (count + 1) // 2))
    rest = min(len(right), count - part)
    spread = [right[round(i * (len(right) - 1) / max(rest - 1, 1))] for i in range(rest)]
    return [row.name for row in (*wrong[:part], *spread)]


def draw(
    report: Report, images: Mapping[str, NDArray[Any]], heatmaps: Mapping[str, NDArray[Any]] | None = None
) -> Figure:
    """Draw images with their answers, the wrong ones first, each beside itself with its heatmap.

    Args:
        report: A report with the predictions of these images.
        images: ndarrays of shape (h, w), any numeric type, by the image's name.
        heatmaps: ndarrays of shape (h, w), float in [0, 1], by the image's name; images without one are drawn alone.

    Returns:
        The figure.

    Raises:
        ValueError: If no image is given, one is not in the report or not grey, or its heatmap has another shape.
    """
    rows, heatmaps = {row.name: row for row in report.predictions}, heatmaps or {}
    if missing := [name for name in images if name not in rows]:
        raise ValueError(f"images must be in the report. Received: {missing[0]!r}")
    for name, image in images.items():
        if np.ndim(image) != 2 or np.shape(heatmaps.get(name, image)) != np.shape(image):
            shapes = f"{name!r} of {np.shape(image)}, heatmap of {np.shape(heatmaps.get(name, 0))}"
            raise ValueError(f"image and heatmap must share one shape (h, w). Received: {shapes}")
    if not images:
        raise ValueError("images must hold at least one image. Received: none")
    shown = sorted((rows[name] for name in images), key=lambda row: row.label == row.truth)  # the wrong ones first
    across, wide = min(len(shown), 4), 3.4 if heatmaps else 2.2  # inches
    lines = [shown[i : i + across] for i in range(0, len(shown), across)]
    pictures = {row.name: _picture(images[row.name], heatmaps.get(row.name)) for row in shown}
    ratios = {name: picture.shape[0] / picture.shape[1] for name, picture in pictures.items()}
    tall = [max(ratios[row.name] for row in line) * wide + 0.6 for line in lines]
    with figure(wide * across, sum(tall)) as made:
        grid = made.subplots(len(lines), across, squeeze=False, height_ratios=tall)
        for axes in grid.flat:
            axes.set_axis_off()
            axes.set_anchor("NW")
        for axes, row in zip(grid.flat, shown, strict=False):
            axes.imshow(pictures[row.name])
            colour = BLUE if row.label == row.truth else ORANGE
            axes.set_title(_caption(row, report, int(12 * wide)), fontsize=8.5, fontweight="normal", color=colour)
    return made


def _caption(row: Row, report: Report, width: int) -> str:
    if row.label is None:
        verdict, answer = row.status.upper(), row.reasons or "no reason given"
    else:
        verdict = "RIGHT" if row.label == row.truth else "WRONG"
        probability = row.probabilities[report.labels.index(row.label)]
        answer = f"predicted: {short(row.label, width - 18)} ({probability:.2f})"
    lines = (f"{verdict}, true: {row.truth}", answer, Path(row.name).name)
    return "\n".join(short(line, width) for line in lines)


def _picture(image: NDArray[Any], heatmap: NDArray[Any] | None) -> NDArray[np.float64]:
    """The image; where there is a heatmap, on its right the image with it: (h, w or 2.03 w, 3) in [0, 1]."""
    import matplotlib

    step = max(1, max(image.shape) // 600)  # no more pixels than are printed
    grey = np.asarray(image[::step, ::step], np.float64)
    grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-9)
    plain = np.repeat(grey[:, :, None], 3, axis=2)
    if heatmap is None:
        return plain
    heat = np.clip(np.asarray(heatmap[::step, ::step], np.float64), 0, 1)[:, :, None]
    under = plain + 0.6 * heat * (matplotlib.colormaps["inferno"](heat[:, :, 0])[:, :, :3] - plain)
    return np.concatenate([plain, np.ones((len(plain), max(1, plain.shape[1] // 30), 3)), under], axis=1)
