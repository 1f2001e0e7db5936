"""A report -> figures, a model card, a page."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cxrlib.metrics.report import Report


def can_draw() -> bool:
    """Say whether figures can be drawn; warn if they cannot. To be called before long work whose end is a report.

    Returns:
        Whether matplotlib is installed.
    """
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        warnings.warn('figures are left out: they need matplotlib, pip install "cxrlib[train]"', stacklevel=1)
    return found


def save(
    report: Report,
    folder: str | Path,
    *,
    points: Mapping[str, float] | None = None,
    images: Mapping[str, NDArray[Any]] | None = None,
    heatmaps: Mapping[str, NDArray[Any]] | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Write `report.json`, `predictions.csv`, `figures/` and the self-contained `report.html`.

    Without matplotlib, figures are left out, with a warning.

    Args:
        report: A report with its predictions.
        folder: Where to; made when it does not exist.
        points: Thresholds by the name of their operating point, marked in the figures; the report's own is added.
        images: Some images by name, each of shape (h, w), shown as samples; `samples.pick` picks some.
        heatmaps: Heatmaps of these images by name, each of its image's shape, in [0, 1].
        history: The training history by name, one value per epoch.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.2, 0.8]]
        >>> r = make_report([0, 1], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(p.name for p in save(r, folder).iterdir())
        ['figures', 'predictions.csv', 'report.html', 'report.json']
    """
    from cxrlib.reporting import html, plots

    folder = Path(folder)
    figures: Mapping[str, Path] = {}
    drawable = can_draw()
    folder.mkdir(parents=True, exist_ok=True)
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}  # a path may not be UTF-8
    (folder / "report.json").write_text(report.to_json(), **text)
    rows = report.table()
    with (folder / "predictions.csv").open("w", newline="", **text) as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["name"])
        writer.writeheader()
        writer.writerows(rows)
    if drawable:
        figures = plots.save(
            report, folder / "figures", points=points, images=images, heatmaps=heatmaps, history=history
        )
    (folder / "report.html").write_text(html.render(report, figures), **text)
    return folder
