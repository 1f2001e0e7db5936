"""Figures from a report, a training history or films. The only importer of matplotlib: figures are objects, no global state of pyplot is touched."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxrlib.metrics.compute import BINS, Curves, Estimate, Report, Row, Summary, curves, net_benefit, reliability
from cxrlib.metrics.report import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, with a line style each for readers of grey prints.
BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4488",
    "#56B4E9",
    "#8C6D1F",
    "#5F6368",
)
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN)
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_MARKERS = ("o", "s", "D", "^", "v", "P")
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E5E8",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "lines.linewidth": 1.8,
}
_DPI = 160
_NAMES = {"auroc": "AUROC", "auc": "AUROC", "ece": "ECE"}  # of quantities, where capitals are not enough


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches, in the house's style."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "cxrlib[train]"') from error
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    del style["backend"]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr,call-arg]
        yield figure


def save(
    report: Report,
    folder: str | Path,
    *,
    points: Mapping[str, float] | None = None,
    films: Mapping[str, NDArray[Any]] | None = None,
    heatmaps: Mapping[str, NDArray[Any]] | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Path]:
    """Draw every figure that the arguments allow, as PNG files.

    Args:
        report: A report with its predictions.
        folder: Where to; made when it does not exist.
        points: Thresholds by the name of their operating point; the report's own is added.
        films: Some films by name, each of shape (h, w), for the grid of samples.
        heatmaps: Their heatmaps by name, each of its film's shape, in [0, 1].
        history: The training history by name, one value per epoch.

    Returns:
        The files by the name of their figure, in the order in which they are read.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the report lacks its predictions, or a film is not in it.

    Example:
        >>> import tempfile
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
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
    if len(report.by_source) > 1 or any(report.subgroups.values()) or report.by_label:
        drawn["groups"] = lambda: groups(report)
    if films:
        drawn["samples"] = lambda: samples(report, films, heatmaps)
    if history:
        drawn["history"] = lambda: training_history(history)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, draw in drawn.items():
        paths[name] = folder / f"{name}.png"
        draw().savefig(paths[name], dpi=_DPI, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return paths


def confusion_matrix(report: Report) -> Figure:
    """Draw how many films of each class were given each label, and which part of their class they are.

    Args:
        report: A report.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
        >>> [t.get_text() for t in confusion_matrix(r).axes[0].texts][:2]
        ['1\\n100.0 %', '0\\n0.0 %']
    """
    matrix, k = report.confusion_matrix, len(report.labels)
    totals = matrix.sum(1, keepdims=True)
    rates = matrix / np.maximum(totals, 1)
    side = max(4.6, 2.2 + 1.25 * k)
    with _figure(side + 0.6, side) as figure:
        axes = figure.add_subplot()
        axes.imshow(rates, cmap="Blues", vmin=0, vmax=1.15, aspect="equal")
        for i in range(k):
            for j in range(k):
                rate = f"{rates[i, j]:.1%}".replace("%", " %") if totals[i, 0] else "no films"
                colour = "white" if rates[i, j] > 0.55 else "black"
                axes.text(
                    j,
                    i,
                    f"{matrix[i, j]:,}\n{rate}",
                    ha="center",
                    va="center",
                    color=colour,
                    fontsize=13 if k == 2 else 10.5,
                )
        axes.set_xticks(range(k), [_wrap(label, 13) for label in report.labels])
        axes.set_yticks(
            range(k), [f"{_wrap(label, 13)}\n({n:,})" for label, n in zip(report.labels, totals[:, 0], strict=True)]
        )
        axes.set_xlabel("Predicted")
        axes.set_ylabel("True (number of films)")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        refused = f", {report.n_refused:,} refused and not shown" if report.n_refused else ""
        rule = "The most probable label" if report.threshold is None else f"Threshold {report.threshold:.3g}"
        axes.set_title(f"{counted(report.n, 'film')}{refused}\n{rule}; percentages are of each row", fontsize=10)
    return figure


def roc(report: Report, points: Mapping[str, float] | None = None) -> Figure:
    """Draw the ROC curve with its 95 % band and the operating points; with three or more labels, one curve for each against the others.

    Args:
        report: A report with its predictions.
        points: Thresholds by the name of their operating point; the report's own is added. With three or more labels, the argmax rule is marked.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the report lacks its predictions.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
        >>> roc(r).axes[0].get_ylabel()
        'Sensitivity'
    """
    with _figure(5.4, 5.4) as figure:
        axes, curved = _square(figure, report, "Receiver operating characteristic", "1 − specificity", "Sensitivity")
        drawn = (
            [axes, _corner(axes, 0.36, (-0.004, 0.2))]
            if min((c.auroc for _, c in curved), default=0) > 0.94
            else [axes]
        )
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="Chance")
        for i, (label, c) in enumerate(curved):
            name = f"{_short(label)}: AUROC {_interval(report.by_label.get(label, report).auroc)}"
            colour, line = _pick(_COLOURS, i), _pick(_LINES, i)
            for a in drawn:
                if a is axes or len(curved) == 1:
                    a.fill_between(c.grid, *c.roc_band, color=colour, alpha=0.16, linewidth=0)
                a.plot(np.r_[0, c.fpr], np.r_[0, c.tpr], color=colour, linestyle=line, label=name)
        _finish(figure, drawn, _operating_points(report, points))
    return figure


def precision_recall(report: Report, points: Mapping[str, float] | None = None) -> Figure:
    """Draw the precision–recall curve with its 95 % band and the operating points; with three or more labels, one for each against the others.

    Args:
        report: A report with its predictions.
        points: Thresholds by the name of their operating point; the report's own is added.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the report lacks its predictions.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
        >>> precision_recall(r).axes[0].get_xlabel()
        'Recall (sensitivity)'
    """
    with _figure(5.4, 5.4) as figure:
        axes, curved = _square(
            figure, report, "Precision and recall", "Recall (sensitivity)", "Precision (positive predictive value)"
        )
        drawn = (
            [axes, _corner(axes, 0.2, (0.8, 1.004))]
            if min((c.average_precision for _, c in curved), default=0) > 0.95
            else [axes]
        )
        for i, (label, c) in enumerate(curved):
            name = f"{_short(label)}: AP {_interval(report.by_label.get(label, report).average_precision)}"
            colour, line = _pick(_COLOURS, i), _pick(_LINES, i)
            recall, precision = np.r_[0, c.tpr], np.r_[c.precision[0], c.precision]
            for a in drawn:
                a.fill_between(c.grid, *c.pr_band, color=colour, alpha=0.16, linewidth=0)
                a.plot(recall, precision, color=colour, linestyle=line, drawstyle="steps-pre", label=name)
            chance = "Chance: the prevalence" if label == curved[-1][0] else ""
            axes.axhline(
                c.prevalence, color=colour if len(curved) > 1 else GREY, linewidth=1, linestyle=":", label=chance
            )
        _finish(figure, drawn, _operating_points(report, points, precision=True))
    return figure


def reliability_diagram(report: Report) -> Figure:
    """Draw how often the label was true against the probability it was given, with 95 % intervals, above the number of films.

    Args:
        report: A report with its predictions.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the report lacks its predictions.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
        >>> len(reliability_diagram(r).axes)
        2
    """
    b = reliability(report)
    what = report.labels[-1] if len(report.labels) == 2 else "the most probable label"
    with _figure(5.4, 6.9) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="Perfect calibration")
        ends = np.clip([b.observed - b.low, b.high - b.observed], 0, 1)
        for part, ground, label in (
            (b.count >= 10, BLUE, "Observed, with 95 % interval"),
            (b.count < 10, "white", "Observed in fewer than 10 films"),
        ):
            if part.any():
                style = {
                    "fmt": "o",
                    "color": BLUE,
                    "markerfacecolor": ground,
                    "capsize": 2.5,
                    "elinewidth": 1,
                    "markersize": 6,
                }
                axes.errorbar(
                    b.probability[part],
                    b.observed[part],
                    ends[:, part],
                    label=label,
                    alpha=1 if ground == BLUE else 0.55,
                    **style,
                )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03), ylabel="Part of films where it was true")
        below.bar(b.centre, b.count, width=0.9 / BINS, color=SKY, edgecolor=BLUE, linewidth=0.6)
        below.set(yscale="log", ylim=(0.8, 1.5 * np.max(b.count, initial=8)))  # up to 12 at least: two ticks, 1 and 10
        below.yaxis.set_major_formatter("{x:,.0f}")
        below.yaxis.set_minor_formatter("")
        below.set_ylabel("Films")
        below.set_xlabel(_wrap(f"Probability of {what}", 60))
        axes.set_title(f"Calibration: ECE {_interval(report.ece)}\nBrier score {_interval(report.brier)}", fontsize=10)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    return figure


def decision_curve(report: Report, points: Mapping[str, float] | None = None) -> Figure:
    """Draw the net benefit of acting on the model, on every film and on none, for each threshold probability.

    Args:
        report: A report with its predictions.
        points: Thresholds by the name of their operating point; the report's own is added.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the report lacks its predictions.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
        >>> decision_curve(r).axes[0].get_ylabel()
        'Net benefit'

    References:
        Vickers and Elkin 2006, doi:10.1177/0272989X06295361.
    """
    thresholds, model, everyone = net_benefit(report)
    what = report.labels[1] if len(report.labels) == 2 else f"anything but {report.labels[0]}"
    top = max(float(np.nanmax(everyone, initial=0)), 0.05)
    with _figure(5.8, 5.4) as figure:
        axes = figure.add_subplot()
        axes.plot(thresholds, model, color=BLUE, label="Act on the model")
        axes.plot(thresholds, everyone, color=ORANGE, linestyle="--", label="Act on every film")
        axes.axhline(0, color=GREY, linestyle="-.", linewidth=1.2, label="Act on none")
        for i, (name, threshold) in enumerate(_thresholds(report, points).items()):
            axes.axvline(
                threshold, color=_pick(_COLOURS, i + 2), linestyle=":", linewidth=1.4, label=f"{name} ({threshold:.2g})"
            )
        axes.set(xlim=(0, 1), ylim=(-max(0.15 * top, 0.05), 1.1 * top), ylabel="Net benefit")
        axes.set_xlabel(_wrap(f"Threshold probability of {what}", 60))
        axes.set_title("Decision curve")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def groups(report: Report) -> Figure:
    """Draw AUROC, sensitivity and specificity with their 95 % intervals: overall, and for each label, source and subgroup.

    Args:
        report: A report.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.2, 0.8]] * 2
        >>> r = make_report([0, 1] * 2, p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd", sources=["here", "here", "there", "there"])
        >>> [axes.get_title("left") for axes in groups(r).axes]
        ['AUROC', 'Sensitivity', 'Specificity']
    """
    rows: list[tuple[str, Summary]] = [("All films", report)]
    for column, parts in {"Label": report.by_label, "Source": report.by_source, **report.subgroups}.items():
        rows += [(f"{column}: {value}", part) for value, part in parts.items()]
    names = []
    for name, part in rows:
        positive = f", {part.confusion_matrix[1].sum():,} positive" if len(part.confusion_matrix) == 2 else ""
        names.append(f"{_wrap(name, 30)}\n{counted(part.n, 'film')}{positive}")
    with _figure(9, 1.3 + sum(0.12 + 0.17 * (1 + name.count("\n")) for name in names)) as figure:
        for axes, (field, title) in zip(
            figure.subplots(1, 3, sharey=True),
            (("auroc", "AUROC"), ("recall", "Sensitivity"), ("specificity", "Specificity")),
            strict=True,
        ):
            estimates: list[Estimate] = [getattr(part, field) for _, part in rows]
            value = np.array([e.value for e in estimates])
            low, high = (np.array([getattr(e, end) for e in estimates]) for end in ("low", "high"))
            ends = np.nan_to_num([value - low, high - value])
            axes.axvline(value[0], color=GREY, linewidth=1, linestyle=":")
            axes.errorbar(
                value,
                range(len(rows)),
                xerr=ends,
                fmt="o",
                color=BLUE,
                markersize=4.5,
                capsize=2.5,
                elinewidth=1.2,
                clip_on=False,
            )
            for i in np.flatnonzero(np.isnan(value)):
                axes.text(
                    0.5,
                    i,
                    "undefined",
                    transform=axes.get_yaxis_transform(),
                    ha="center",
                    va="center",
                    color=GREY,
                    fontsize=9,
                    backgroundcolor="white",
                )
            axes.set_title(title)
            axes.set_xlim(min(0.5, np.floor(np.nanmin(np.r_[low, value, 0.5]) * 10) / 10) - 0.01, 1.01)
            axes.set_yticks(range(len(rows)), names, fontsize=9)
            axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def training_history(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how each quantity went over the epochs of a training, on the training films and on the validation films.

    Args:
        history: One value per epoch by name. A name and the same with `val_` before it share a panel; `auroc <source>` has one of its own, unless `auroc`
            is the mean of that one source. A line is drawn where the value of `phase` changes. `seconds` are not drawn.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If there is nothing to draw, or the lengths differ.

    Example:
        >>> len(training_history({"loss": [0.7, 0.5], "val_loss": [0.6, 0.5], "auroc": [0.8, 0.9]}).axes)
        2
    """
    given = dict.fromkeys(name.removeprefix("val_") for name in history if name not in ("phase", "seconds"))
    quantities = [name.partition(" ")[0] for name in given]  # "auroc chest_xray" is that of the source chest_xray
    names = [
        n for n, q in zip(given, quantities, strict=True) if n == q or q not in given or quantities.count(q) > 2
    ]  # the mean of one source is that source
    epochs = {len(values) for values in history.values()}
    if not names or len(epochs) != 1 or not min(epochs):
        raise ValueError(
            f"history must hold one value per epoch, equally many by each name. Received: { {n: len(v) for n, v in history.items()} }"
        )
    n = min(epochs)
    phase = list(history.get("phase", [0] * n))
    down = math.ceil(len(names) / 3)
    across = math.ceil(len(names) / down)
    with _figure(max(3.4 * across, 5), 0.6 + 2.6 * down) as figure:
        grid = figure.subplots(down, across, squeeze=False).flat
        for name, axes in zip(
            names, grid, strict=False
        ):  # names first: the other way round an empty panel is taken before it is seen that none is left
            for key, colour, line, marker, label in (
                (name, BLUE, "-", "o", "Training"),
                (f"val_{name}", ORANGE, "--", "s", "Validation"),
            ):
                if key in history:
                    axes.plot(
                        range(1, n + 1),
                        history[key],
                        color=colour,
                        linestyle=line,
                        marker=marker,
                        markersize=3.5,
                        label=label,
                        clip_on=False,
                    )
            for i in range(1, n):
                if phase[i] != phase[i - 1]:
                    axes.axvline(i + 0.5, color=GREY, linestyle=":", linewidth=1.4, label="Next phase")
            quantity, _, source = name.partition(" ")
            shown = _NAMES.get(quantity, quantity.replace("_", " ").capitalize())
            source = source or ("mean of sources" if quantities.count(quantity) > 2 else "")
            axes.set_title(_wrap(f"{shown}: {source}" if source else shown, 26))
            if shown == "AUROC":
                axes.set_ylim(top=min(axes.get_ylim()[1], 1))
            axes.set(xlabel="Epoch", xlim=(0.5, n + 0.5))
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        for axes in list(grid):
            axes.remove()
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure


def pick(report: Report, *, count: int = 8) -> list[str]:
    """Pick films worth showing: half wrong, the surest errors first, half right, spread from the surest to the least sure.

    Args:
        report: A report with its predictions.
        count: How many, at most.

    Returns:
        Names of films: feed them with their pixels to `samples` or `Report.save`.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]]
        >>> pick(make_report([0, 1, 0, 0], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd"), count=3)
        ['d', 'c', 'a']
    """
    told = [row for row in report.predictions if row.label is not None]
    told.sort(key=lambda row: (-max(row.probabilities), row.name))
    wrong = [row for row in told if row.label != row.truth]
    right = [row for row in told if row.label == row.truth]
    part = min(len(wrong), max(count - len(right), (count + 1) // 2))
    rest = min(len(right), count - part)
    spread = [right[round(i * (len(right) - 1) / max(rest - 1, 1))] for i in range(rest)]
    return [row.name for row in (*wrong[:part], *spread)]


def samples(
    report: Report, films: Mapping[str, NDArray[Any]], heatmaps: Mapping[str, NDArray[Any]] | None = None
) -> Figure:
    """Draw films with what was said of them, the wrong ones first, each beside itself under its heatmap.

    Args:
        report: A report with the predictions of these films.
        films: ndarrays of shape (h, w), any numeric type, by the film's name.
        heatmaps: ndarrays of shape (h, w), float in [0, 1], by the film's name; films without one are drawn alone.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If no film is given, one is not in the report, is no single grey image, or its heatmap has another shape.

    Example:
        >>> import numpy as np
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
        >>> samples(r, {"a": np.eye(8)}).axes[0].get_title("left").splitlines()[0]
        'RIGHT, true: NORMAL'
    """
    rows = {row.name: row for row in report.predictions}
    heatmaps = heatmaps or {}
    if not films:
        raise ValueError("films must hold at least one film. Received: none")
    for name, film in films.items():
        if name not in rows:
            raise ValueError(f"films must be in the report. Received: {name!r}")
        if np.ndim(film) != 2 or (name in heatmaps and np.shape(heatmaps[name]) != np.shape(film)):
            raise ValueError(
                f"film and heatmap must share one shape (h, w). Received: {name!r} of {np.shape(film)}, heatmap of {np.shape(heatmaps.get(name, 0))}"
            )
    shown = sorted(
        (rows[name] for name in films), key=lambda row: row.label == row.truth
    )  # stable: the wrong ones first
    across = min(len(shown), 4)
    lines = [shown[i : i + across] for i in range(0, len(shown), across)]
    wide = 3.4 if heatmaps else 2.2  # inches
    pictures = {row.name: _picture(films[row.name], heatmaps.get(row.name)) for row in shown}
    tall = [
        max(pictures[row.name].shape[0] / pictures[row.name].shape[1] for row in line) * wide + 0.6 for line in lines
    ]
    with _figure(wide * across, sum(tall)) as figure:
        grid = figure.subplots(len(lines), across, squeeze=False, height_ratios=tall)
        for axes in grid.flat:
            axes.set_axis_off()
            axes.set_anchor("NW")
        for axes, row in zip(grid.flat, shown, strict=False):
            axes.imshow(pictures[row.name])
            axes.set_title(
                _caption(row, report, int(12 * wide)),
                fontsize=8.5,
                fontweight="normal",
                color=BLUE if row.label == row.truth else ORANGE,
            )
    return figure


# --- pieces ---------------------------------------------------------------------------------------------------------------------------------------------


def _caption(row: Row, report: Report, width: int) -> str:
    if row.label is None:
        verdict, said = "REFUSED", row.refused or "no reason given"
    else:
        verdict = "RIGHT" if row.label == row.truth else "WRONG"
        said = f"said: {_short(row.label, width - 13)} ({row.probabilities[report.labels.index(row.label)]:.2f})"
    return (
        f"{_short(f'{verdict}, true: {row.truth}', width)}\n{_short(said, width)}\n{_short(Path(row.name).name, width)}"
    )


def _picture(film: NDArray[Any], heatmap: NDArray[Any] | None) -> NDArray[np.float64]:
    """The film, and to the right of it, where there is a heatmap, the film under it: (h, w or 2.03 w, 3) in [0, 1]."""
    import matplotlib

    step = max(1, max(film.shape) // 600)  # no more pixels than are printed
    grey = np.asarray(film[::step, ::step], np.float64)
    grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-9)
    plain = np.repeat(grey[:, :, None], 3, axis=2)
    if heatmap is None:
        return plain
    heat = np.clip(np.asarray(heatmap[::step, ::step], np.float64), 0, 1)[:, :, None]
    under = plain + 0.6 * heat * (matplotlib.colormaps["inferno"](heat[:, :, 0])[:, :, :3] - plain)
    return np.concatenate([plain, np.ones((len(plain), max(1, plain.shape[1] // 30), 3)), under], axis=1)


def _pick(values: Sequence[Any], i: int) -> Any:
    return values[i % len(values)]


def _short(text: str, width: int = 34) -> str:
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-(width - width // 2) :]}"


def _wrap(text: str, width: int) -> str:
    """Lines of at most `width` characters, broken after spaces, hyphens, slashes and underscores where there are some."""
    lines = [""]
    for word in re.findall(rf"[^\s_/-]{{1,{width}}}[\s_/-]*|[\s_/-]+", text):
        if lines[-1] and len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def _interval(e: Estimate) -> str:
    return str(e).replace("undefined", "–")


def _thresholds(report: Report, points: Mapping[str, float] | None) -> dict[str, float]:
    if report.threshold is None:
        return {}
    named = dict(points or {})
    return named if report.threshold in named.values() else {**named, "Threshold": report.threshold}


def _operating_points(
    report: Report, points: Mapping[str, float] | None, *, precision: bool = False
) -> list[tuple[str, float, float]]:
    """A caption and a place in the figure each: (1 - specificity, sensitivity), or (recall, precision)."""
    told = [row for row in report.predictions if row.label is not None]
    y = np.array([report.labels.index(row.truth) for row in told], np.int64)
    called: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    for name, threshold in _thresholds(report, points).items():
        called[f"{_short(name, 20)} ({threshold:.3g})"] = (
            y == 1,
            np.array([row.probabilities[1] >= threshold for row in told], bool),
        )
    if report.threshold is None:
        for c, label in enumerate(report.labels):
            called[_short(label, 20)] = (y == c, np.array([row.label == label for row in told], bool))
    placed = []
    for name, (positive, said) in called.items():
        if not positive.any() or positive.all() or (precision and not said.any()):
            continue
        recall, specificity = float(said[positive].mean()), float((~said)[~positive].mean())
        if precision:
            true = float(positive[said].mean())
            placed.append((f"{name}: recall {recall:.3f}, precision {true:.3f}", recall, true))
        else:
            placed.append((f"{name}: sens. {recall:.3f}, spec. {specificity:.3f}", 1 - specificity, recall))
    return placed


def _corner(axes: Axes, left: float, across: tuple[float, float]) -> Axes:
    """An enlargement of an upper corner of the unit square, on a white ground in the middle of it."""
    axes.fill_between([left - 0.14, left + 0.6], 0.02, 0.68, color="white", linewidth=0, zorder=2.5)
    corner = axes.inset_axes(
        (left, 0.12, 0.54, 0.54), xlim=across, ylim=(0.8, 1.004), xticks=np.round(np.linspace(*across, 3), 1)
    )
    corner.set_yticks([0.8, 0.85, 0.9, 0.95, 1.0])
    corner.tick_params(labelsize=9)
    corner.spines[:].set(visible=True, color=GREY)
    for connector in axes.indicate_inset_zoom(corner, edgecolor="black", alpha=0.6).connectors or ():
        connector.set_visible(False)
    return corner


def _square(figure: Figure, report: Report, title: str, x: str, y: str) -> tuple[Axes, list[tuple[str, Curves]]]:
    """Axes for the unit square, and the curves that are defined by their label: of the last of two, of each of more."""
    axes = figure.add_subplot()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    axes.set_title(title)
    curved = [
        (label, c)
        for label in report.labels[-1 if len(report.labels) == 2 else 0 :]
        if (c := curves(report, label)) is not None
    ]
    if not curved:
        axes.text(
            0.5,
            0.55,
            "Undefined: all films\nare of one class",
            ha="center",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none"},
        )
    return axes, curved


def _finish(figure: Figure, drawn: Sequence[Axes], marks: Sequence[tuple[str, float, float]]) -> None:
    """Mark the operating points, each where it is in view, and make room for the legend."""
    style: dict[str, Any] = {
        "linestyle": "",
        "markersize": 8,
        "markerfacecolor": "white",
        "markeredgecolor": "black",
        "markeredgewidth": 1.4,
    }
    for i, (name, x, y) in enumerate(marks):
        for axes in drawn:
            if axes.viewLim.contains(x, y):  # whole on the border, and none of a point outside
                axes.plot([x], [y], marker=_pick(_MARKERS, i), label=name, zorder=5, clip_on=False, **style)
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.set_figheight(5.4 + 0.21 * len(labels))
    if labels:
        figure.legend(handles, labels, loc="outside lower center")
