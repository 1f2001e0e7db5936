"""Figures from a report or a training history. They are objects: pyplot is left alone.

Scikit-learn's Display classes are not used: they draw no bands, intervals, rates or enlargements, so that all but a
single line of each curve would be drawn over, and their arguments change between versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxrlib.metrics.calibration import BINS
from cxrlib.metrics.curves import curves, net_benefit, reliability
from cxrlib.metrics.report import NAMES, Report, Summary, answered, counted
from cxrlib.reporting import samples
from cxrlib.reporting.style import BLUE, COLOURS, GREY, LINES, MARKERS, ORANGE, SKY, short, wrap
from cxrlib.reporting.style import figure as blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTITIES = {"loss": "Loss", "accuracy": "Accuracy", "auroc": "AUROC"}  # of a training history
_SIDES = (("", BLUE, "-", "o", "Training"), ("val_", ORANGE, "--", "s", "Validation"))


def save(
    report: Report,
    folder: str | Path,
    *,
    points: Mapping[str, float] | None = None,
    images: Mapping[str, NDArray[Any]] | None = None,
    heatmaps: Mapping[str, NDArray[Any]] | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Path]:
    """Draw every figure that the arguments allow, as PNG files.

    Args:
        report: A report with its predictions.
        folder: Where to; made when it does not exist.
        points: Thresholds by the name of their operating point; the report's own is added.
        images: Some images by name, each of shape (h, w), for the samples.
        heatmaps: Their heatmaps by name, each of its image's shape, in [0, 1].
        history: The training history by name, one value per epoch.

    Returns:
        The files by the name of their figure, in the order in which they are read.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the report lacks its predictions, or an image is not in it.

    Example:
        >>> import tempfile
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.2, 0.8]]
        >>> r = make_report([0, 1], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     list(save(r, folder))
        ['confusion_matrix', 'roc', 'precision_recall', 'reliability', 'decision_curve']
    """
    drawn: dict[str, Callable[[], Figure]] = {
        "confusion_matrix": lambda: confusion_matrix(report),
        "roc": lambda: roc(report, points),
        "precision_recall": lambda: precision_recall(report, points),
        "reliability": lambda: reliability_diagram(report),
        "decision_curve": lambda: decision_curve(report, points),
    }
    if report.parts:
        drawn["groups"] = lambda: groups(report)
    if images:
        drawn["samples"] = lambda: samples.draw(report, images, heatmaps)
    if history:
        drawn["history"] = lambda: training_history(history)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, draw in drawn.items():
        paths[name] = folder / f"{name}.png"
        draw().savefig(paths[name], dpi=160, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return paths


def confusion_matrix(report: Report) -> Figure:
    """Draw the number of images of each class by predicted label, and their share of the class.

    Args:
        report: A report.

    Returns:
        The figure.
    """
    matrix, k = report.confusion_matrix, len(report.labels)
    totals = matrix.sum(1, keepdims=True)
    rates = matrix / np.maximum(totals, 1)
    side = max(4.6, 2.2 + 1.25 * k)
    with blank(side + 0.6, side) as figure:
        axes = figure.add_subplot()
        axes.imshow(rates, cmap="Blues", vmin=0, vmax=1.15, aspect="equal")
        for (i, j), n in np.ndenumerate(matrix):
            rate = f"{rates[i, j]:.1%}".replace("%", " %") if totals[i, 0] else "no images"
            style: dict[str, Any] = {"color": "white" if rates[i, j] > 0.55 else "black", "fontsize": 14 - k / 2}
            axes.text(j, i, f"{n:,}\n{rate}", ha="center", va="center", **style)
        axes.set_xticks(range(k), [wrap(label, 13) for label in report.labels])
        counts = zip(report.labels, totals[:, 0], strict=True)
        axes.set_yticks(range(k), [f"{wrap(label, 13)}\n({n:,})" for label, n in counts])
        axes.set(xlabel="Predicted", ylabel="True (number of images)")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        without = report.n_refused + report.n_unreadable
        left_out = f", {without:,} without an answer not shown" if without else ""
        rule = "Most probable label" if report.threshold is None else f"Threshold {report.threshold:.3g}"
        title = f"{counted(report.n, 'image')}{left_out}\n{rule}; percentages are of each row"
        axes.set_title(title, fontsize=10)
    return figure


def roc(report: Report, points: Mapping[str, float] | None = None) -> Figure:
    """Draw the ROC curve with its 95 % band and the operating points; of each of three or more labels.

    Args:
        report: A report with its predictions.
        points: Thresholds by the name of their operating point; the report's own is added.

    Returns:
        The figure.
    """
    return _curves(report, points, precision=False)


def precision_recall(report: Report, points: Mapping[str, float] | None = None) -> Figure:
    """Draw the precision–recall curve with its 95 % band and the operating points; of each of three or more labels.

    Args:
        report: A report with its predictions.
        points: Thresholds by the name of their operating point; the report's own is added.

    Returns:
        The figure.
    """
    return _curves(report, points, precision=True)


def reliability_diagram(report: Report) -> Figure:
    """Draw how often the label was true at which probability, with 95 % intervals, above the number of images.

    Args:
        report: A report with its predictions.

    Returns:
        The figure.
    """
    b = reliability(report)
    what = report.labels[-1] if len(report.labels) == 2 else "the most probable label"
    ends = np.clip([b.observed - b.low, b.high - b.observed], 0, 1)
    few = b.count < 10
    dots: dict[str, Any] = {"fmt": "o", "color": BLUE, "capsize": 2.5, "elinewidth": 1, "markersize": 6}
    with blank(5.4, 6.9) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="Perfect calibration")
        for part, style in (
            (~few, {"markerfacecolor": BLUE, "label": "Observed, with 95 % interval"}),
            (few, {"markerfacecolor": "white", "alpha": 0.55, "label": "Observed in fewer than 10 images"}),
        ):
            if part.any():
                axes.errorbar(b.probability[part], b.observed[part], ends[:, part], **dots, **style)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03), ylabel="Share of images where it was true")
        below.bar(b.centre, b.count, width=0.9 / BINS, color=SKY, edgecolor=BLUE, linewidth=0.6)
        below.set(yscale="log", ylim=(0.8, 1.5 * np.max(b.count, initial=8)), ylabel="Images")  # two ticks at least
        below.yaxis.set_major_formatter("{x:,.0f}")
        below.yaxis.set_minor_formatter("")
        below.set_xlabel(wrap(f"Probability of {what}", 60))
        axes.set_title(f"Calibration: ECE {report.ece}\nBrier score {report.brier}", fontsize=10)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    return figure


def decision_curve(report: Report, points: Mapping[str, float] | None = None) -> Figure:
    """Draw the net benefit of acting on the model, on every image and on none, for each threshold probability.

    Args:
        report: A report with its predictions.
        points: Thresholds by the name of their operating point; the report's own is added.

    Returns:
        The figure.

    References:
        Vickers and Elkin 2006, doi:10.1177/0272989X06295361.
    """
    thresholds, model, everyone = net_benefit(report)
    what = report.labels[1] if len(report.labels) == 2 else f"anything but {report.labels[0]}"
    top = max(float(np.nanmax(everyone, initial=0)), 0.05)
    with blank(5.8, 5.4) as figure:
        axes = figure.add_subplot()
        axes.plot(thresholds, model, color=BLUE, label="Act on the model")
        axes.plot(thresholds, everyone, color=ORANGE, linestyle="--", label="Act on every image")
        axes.axhline(0, color=GREY, linestyle="-.", linewidth=1.2, label="Act on none")
        if len(report.labels) == 2:
            for i, (name, threshold) in enumerate(_thresholds(report, points).items()):
                style: dict[str, Any] = {"color": COLOURS[(i + 2) % 6], "label": f"{name} ({threshold:.2g})"}
                axes.axvline(threshold, linestyle=":", linewidth=1.4, **style)
        axes.set(xlim=(0, 1), ylim=(-max(0.15 * top, 0.05), 1.1 * top), ylabel="Net benefit")
        axes.set_xlabel(wrap(f"Threshold probability of {what}", 60))
        axes.set_title("Decision curve")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def groups(report: Report) -> Figure:
    """Draw AUROC, sensitivity and specificity with their 95 % intervals: overall, by label, source and subgroup.

    Args:
        report: A report.

    Returns:
        The figure.
    """
    rows: list[tuple[str, Summary]] = [("All images", report)]
    for title, parts in report.parts.items():
        rows += [(f"{title.removeprefix('Subgroup by ')}: {value}", part) for value, part in parts.items()]
    names = []
    for name, part in rows:
        positive = f", {part.confusion_matrix[1].sum():,} positive" if len(part.confusion_matrix) == 2 else ""
        names.append(f"{wrap(name, 30)}\n{counted(part.n, 'image')}{positive}")
    with blank(9, 1.3 + sum(0.12 + 0.17 * (1 + name.count("\n")) for name in names)) as figure:
        for axes, metric in zip(figure.subplots(1, 3, sharey=True), ("auroc", "recall", "specificity"), strict=True):
            estimates = [getattr(part, metric) for _, part in rows]
            value, low, high = (np.array([getattr(e, end) for e in estimates]) for end in ("value", "low", "high"))
            style: dict[str, Any] = {"fmt": "o", "color": BLUE, "markersize": 4.5, "capsize": 2.5, "elinewidth": 1.2}
            axes.axvline(value[0], color=GREY, linewidth=1, linestyle=":")
            axes.errorbar(
                value, range(len(rows)), xerr=np.nan_to_num([value - low, high - value]), clip_on=False, **style
            )
            for i in np.flatnonzero(np.isnan(value)):
                style = {"color": GREY, "fontsize": 9, "backgroundcolor": "white", "ha": "center", "va": "center"}
                axes.text(0.5, i, "undefined", transform=axes.get_yaxis_transform(), **style)
            axes.set_title(NAMES[metric][0].partition(" (")[0])
            axes.set_xlim(min(0.5, np.floor(np.nanmin(np.r_[low, value, 0.5]) * 10) / 10) - 0.01, 1.01)
            axes.set_yticks(range(len(rows)), names, fontsize=9)
            axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def training_history(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw loss, accuracy and AUROC over the epochs, of the training and of the validation images.

    Args:
        history: One value per epoch by name: `loss`, `accuracy`, `auroc`, and the same with `val_` before it. What is
            missing is left out; other names are not drawn.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or the lengths differ.

    Example:
        >>> len(training_history({"loss": [0.7, 0.5], "val_loss": [0.6, 0.5], "auroc": [0.8, 0.9]}).axes)
        2
    """
    shown = [name for name in _QUANTITIES if name in history or f"val_{name}" in history]
    epochs = {len(history[f"{side}{name}"]) for name in shown for side in ("", "val_") if f"{side}{name}" in history}
    if len(epochs) != 1 or not min(epochs):
        received = {name: len(values) for name, values in history.items()}
        wanted = f"one value per epoch of {', '.join(_QUANTITIES)} or the same with val_, equally many of each"
        raise ValueError(f"history must hold {wanted}. Received: {received}")
    n = min(epochs)
    with blank(max(3.6 * len(shown), 5), 3.2) as figure:
        for name, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False).flat, strict=True):
            for side, colour, line, marker, label in _SIDES:
                if values := history.get(f"{side}{name}"):
                    style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3.5}
                    axes.plot(range(1, n + 1), values, label=label, clip_on=False, **style)
            axes.set_title(_QUANTITIES[name])
            if name != "loss":
                axes.set_ylim(top=min(axes.get_ylim()[1], 1))
            axes.set(xlabel="Epoch", xlim=(0.5, n + 0.5))
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure


# --- pieces ---


def _thresholds(report: Report, points: Mapping[str, float] | None) -> dict[str, float]:
    if report.threshold is None:
        return {}
    named = dict(points or {})
    return named if report.threshold in named.values() else {**named, "Threshold": report.threshold}


def _operating_points(
    report: Report, points: Mapping[str, float] | None, *, precision: bool = False
) -> list[tuple[str, float, float]]:
    """A caption and a place in the figure each: (1 - specificity, sensitivity), or (recall, precision)."""
    y, p, _ = answered(report)
    called = {
        f"{short(name, 20)} ({threshold:.3g})": (y == 1, p[:, 1] >= threshold)
        for name, threshold in _thresholds(report, points).items()
    }
    if report.threshold is None:
        called = {short(label, 20): (y == c, p.argmax(1) == c) for c, label in enumerate(report.labels)}
    placed = []
    for name, (positive, chosen) in called.items():
        if not positive.any() or positive.all() or (precision and not chosen.any()):
            continue
        recall, specificity = float(chosen[positive].mean()), float((~chosen)[~positive].mean())
        if precision:
            true = float(positive[chosen].mean())
            placed.append((f"{name}: recall {recall:.3f}, precision {true:.3f}", recall, true))
        else:
            placed.append((f"{name}: sens. {recall:.3f}, spec. {specificity:.3f}", 1 - specificity, recall))
    return placed


def _corner(axes: Axes, left: float, across: tuple[float, float]) -> Axes:
    """An enlargement of an upper corner of the unit square, on a white ground in the middle of it."""
    axes.fill_between([left - 0.14, left + 0.6], 0.02, 0.68, color="white", linewidth=0, zorder=2.5)
    ticks = np.round(np.linspace(*across, 3), 1)
    corner = axes.inset_axes((left, 0.12, 0.54, 0.54), xlim=across, ylim=(0.8, 1.004), xticks=ticks)
    corner.set_yticks([0.8, 0.85, 0.9, 0.95, 1.0])
    corner.tick_params(labelsize=9)
    corner.spines[:].set(visible=True, color=GREY)
    for connector in axes.indicate_inset_zoom(corner, edgecolor="black", alpha=0.6).connectors or ():
        connector.set_visible(False)
    return corner


def _curves(report: Report, points: Mapping[str, float] | None, *, precision: bool) -> Figure:
    """ROC or precision–recall curves: of the last label of two, or of each of more."""
    labels = report.labels[-1 if len(report.labels) == 2 else 0 :]
    curved = [(label, c) for label in labels if (c := curves(report, label)) is not None]
    marks = _operating_points(report, points, precision=precision)
    with blank(5.4, 5.4) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        if precision:
            axes.set(xlabel="Recall (sensitivity)", ylabel="Precision (positive predictive value)")
            axes.set_title("Precision and recall")
            enlarged = min((c.average_precision for _, c in curved), default=0) > 0.95
            drawn = [axes, _corner(axes, 0.2, (0.8, 1.004))] if enlarged else [axes]
        else:
            axes.set(xlabel="1 − specificity", ylabel="Sensitivity")
            axes.set_title("Receiver operating characteristic")
            enlarged = min((c.auroc for _, c in curved), default=0) > 0.94
            drawn = [axes, _corner(axes, 0.36, (-0.004, 0.2))] if enlarged else [axes]
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="Chance")
        if not curved:
            ground = {"facecolor": "white", "edgecolor": "none"}
            axes.text(0.5, 0.55, "Undefined: all images\nare of one class", ha="center", va="center", bbox=ground)
        for i, (label, c) in enumerate(curved):
            part, colour = report.by_label.get(label, report), COLOURS[i % 6]
            style: dict[str, Any] = {"color": colour, "linestyle": LINES[i % 6]}
            if precision:
                x, y, band = np.r_[0, c.tpr], np.r_[c.precision[0], c.precision], c.pr_band
                style |= {"label": f"{short(label)}: AP {part.average_precision}", "drawstyle": "steps-pre"}
                chance: dict[str, Any] = {"label": "Chance: the prevalence"} if label == curved[-1][0] else {}
                of_chance = colour if len(curved) > 1 else GREY
                axes.axhline(c.prevalence, color=of_chance, linewidth=1, linestyle=":", **chance)
            else:
                x, y, band = np.r_[0, c.fpr], np.r_[0, c.tpr], c.roc_band
                style["label"] = f"{short(label)}: AUROC {part.auroc}"
            for a in drawn:
                if a is axes or len(curved) == 1:
                    a.fill_between(c.grid, *band, color=colour, alpha=0.16, linewidth=0)
                a.plot(x, y, **style)
        dots: dict[str, Any] = {
            "linestyle": "",
            "markersize": 8,
            "markerfacecolor": "white",
            "markeredgecolor": "black",
        }
        for i, (name, x, y) in enumerate(marks):
            for a in drawn:
                if a.viewLim.contains(x, y):  # whole on the border, and none of a point outside
                    dots |= {"marker": MARKERS[i % 6], "label": name}
                    a.plot([x], [y], zorder=5, clip_on=False, markeredgewidth=1.4, **dots)
        handles, names = axes.get_legend_handles_labels()
        figure.set_figheight(5.4 + 0.21 * len(names))
        if names:
            figure.legend(handles, names, loc="outside lower center")
    return figure
