"""Truth and probabilities in, a report out: metrics with 95 % intervals, curves, calibration, the comparison of two models. NumPy only."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxrlib.config import SCHEMA, check_labels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

METRICS = ("auroc", "average_precision", "accuracy", "precision", "recall", "specificity", "f1", "npv", "brier", "ece")
WITH_REFUSALS = ("sensitivity_with_refusals_missed", "accuracy_with_refusals_wrong")
BINS = 15  # of the calibration error and the reliability diagram: equally wide, as in Guo et al. 2017
SMALLEST_GROUP = 10  # films: smaller subgroups are named, not measured
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `nan` stands for what the data leave undefined.

    Args:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.

    Raises:
        ValueError: If the interval does not hold the value.

    Example:
        >>> print(Estimate(0.9615, 0.9437, 0.9741))
        0.962 (0.944–0.974)
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.value or self.value > self.high:
            raise ValueError(f"an interval must hold its value. Received: value={self.value!r}, low={self.low!r}, high={self.high!r}")

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f} " + ("(no interval)" if math.isnan(self.low) else f"({self.low:.3f}–{self.high:.3f})")


_UNDEFINED = Estimate(_NAN, _NAN, _NAN)


@dataclass(frozen=True)
class Row:
    """What became of one film.

    Args:
        name: Its name, unique in the report.
        truth: Its true label.
        label: The predicted label; `None` when the film was refused.
        probabilities: One per label, in the report's order, in [0, 1]; `nan` when the film was refused.
        refused: Why it was refused, in words; empty when it was not, or when nobody said why.
        patient: Whose film it is; `None` when unknown.
        source: Which collection it comes from; empty when unknown.
        groups: The subgroup it belongs to, for every column of subgroups.

    Example:
        >>> Row("a.png", "NORMAL", "NORMAL", (0.9, 0.1)).refused
        ''
    """

    name: str
    truth: str
    label: str | None
    probabilities: tuple[float, ...]
    refused: str = ""
    patient: str | None = None
    source: str = ""
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary:
    """The metrics of some films: of all, of one source, of a subgroup, of one label against the others.

    With two labels, the second is the positive class of every metric. With more, `precision`, `recall`, `specificity`, `f1`, `npv`, `auroc` and
    `average_precision` are means over the labels, each against the others, and `ece` is that of the most probable label.

    Args:
        n: Number of films, refused ones included.
        n_refused: Number of films refused: in no metric but the two that say so.
        n_patients: Number of patients; `None` when they are unknown, and each film counts as its own patient.
        auroc: Area under the receiver operating characteristic curve.
        average_precision: Mean precision over the positive films, in the order of their scores.
        accuracy: Part of the films with the right label.
        precision: Part of the films called positive that are (positive predictive value).
        recall: Part of the positive films called positive (sensitivity).
        specificity: Part of the negative films called negative.
        f1: Harmonic mean of precision and recall.
        npv: Part of the films called negative that are (negative predictive value).
        brier: Mean squared error of the probability; with three or more labels, summed over them and in [0, 2].
        ece: Expected calibration error: mean distance of probability and observed frequency, in 15 equally wide bins.
        sensitivity_with_refusals_missed: The recall, had every refused film been called wrongly.
        accuracy_with_refusals_wrong: The accuracy, had every refused film been called wrongly.
        confusion_matrix: ndarray of shape (k, k), int64, number of films: rows are the truth, columns the prediction.
        statements: What is undefined, left out or fragile, and why, in plain sentences.

    Example:
        >>> y, p = [0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
        >>> r = make_report(y, p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abc", sources=["here", "here", "there"])
        >>> print(r.by_source["here"].recall)
        1.000 (0.207–1.000)
    """

    n: int
    n_refused: int
    n_patients: int | None
    auroc: Estimate
    average_precision: Estimate
    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    specificity: Estimate
    f1: Estimate
    npv: Estimate
    brier: Estimate
    ece: Estimate
    sensitivity_with_refusals_missed: Estimate
    accuracy_with_refusals_wrong: Estimate
    confusion_matrix: Ints
    statements: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Report(Summary):
    """The metrics of a model on a data set, overall and apart, with the prediction of every film. `make_report` makes it.

    Args:
        labels: The class names, in the order of the probabilities.
        threshold: Probability of the second label from which on it is predicted; `None` with three or more labels, where the most probable one is.
        predictions: One row per film.
        data: What the films are, in a few words; empty when nobody said.
        by_source: The same metrics for each source; empty when sources are unknown.
        by_label: With three or more labels, the metrics of each label against the others; empty with two.
        subgroups: The same metrics for each column and each of its values.
        intervals: Where the intervals come from, in words.
        seed: Of the resampling.
        n_bootstrap: Number of resamples.

    Example:
        >>> r = make_report([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b", "c"])
        >>> r.confusion_matrix.tolist(), round(r.recall.value, 2)
        ([[1, 0], [1, 1]], 0.5)
    """

    labels: tuple[str, ...]
    threshold: float | None
    predictions: tuple[Row, ...]
    data: str
    by_source: dict[str, Summary]
    by_label: dict[str, Summary]
    subgroups: dict[str, dict[str, Summary]]
    intervals: str
    seed: int
    n_bootstrap: int

    def to_json(self, *, predictions: bool = True) -> str:
        """Write the report as JSON; what is undefined becomes `null`.

        Args:
            predictions: Whether the rows of the films, which name files and patients, are written too.

        Returns:
            JSON text that `from_json` reads.

        Example:
            >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
            >>> Report.from_json(r.to_json()).auroc == r.auroc
            True
        """
        rows = self.predictions if predictions else ()
        return json.dumps({"schema": SCHEMA, **_plain(dataclasses.replace(self, predictions=rows))}, indent=1, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote.

        Args:
            text: JSON text.

        Returns:
            The report.

        Raises:
            ValueError: If the text is no report of this schema.

        Example:
            >>> Report.from_json("{}")
            Traceback (most recent call last):
            ValueError: this is no cxrlib report of schema 1: 'schema'
        """
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            data["labels"] = check_labels(data["labels"])
            data["predictions"] = tuple(Row(**{**row, "probabilities": tuple(_number(p) for p in row["probabilities"])}) for row in data["predictions"])
            for name in ("by_source", "by_label"):
                data[name] = {key: Summary(**_summary_fields(value)) for key, value in data[name].items()}
            data["subgroups"] = {c: {key: Summary(**_summary_fields(value)) for key, value in part.items()} for c, part in data["subgroups"].items()}
            return cls(**_summary_fields(data))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"this is no cxrlib report of schema {SCHEMA}: {error}") from error

    def save(
        self,
        folder: str | Path,
        *,
        points: Mapping[str, float] | None = None,
        films: Mapping[str, NDArray[Any]] | None = None,
        heatmaps: Mapping[str, NDArray[Any]] | None = None,
        history: Mapping[str, Sequence[float]] | None = None,
    ) -> Path:
        """Write `report.json`, `predictions.csv`, `figures/` and the self-contained `report.html`.

        Args:
            folder: Where to; made when it does not exist.
            points: Thresholds by the name of their operating point, marked in the figures; the report's own is added.
            films: Some films by name, each of shape (h, w), shown as samples; `plots.pick` says which are worth showing.
            heatmaps: Heatmaps of these films by name, each of its film's shape, in [0, 1].
            history: The training history by name, one value per epoch.

        Returns:
            The folder.

        Raises:
            ImportError: If matplotlib is missing.

        Example:
            >>> import tempfile
            >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     sorted(p.name for p in r.save(folder).iterdir())
            ['figures', 'predictions.csv', 'report.html', 'report.json']
        """
        from cxrlib import html_report, plots

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(self.to_json(), encoding="utf-8")
        _write_csv(self, folder / "predictions.csv")
        figures = plots.save(self, folder / "figures", points=points, films=films, heatmaps=heatmaps, history=history)
        (folder / "report.html").write_text(html_report.render(self, figures), encoding="utf-8")
        return folder


def make_report(
    truth: ArrayLike,
    probabilities: ArrayLike,
    *,
    labels: Sequence[str],
    threshold: float | None,
    names: Sequence[str],
    patients: Sequence[str | None] | None = None,
    sources: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str | None]] | None = None,
    refused: Sequence[str | None] | None = None,
    data: str = "",
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> Report:
    """Measure predictions against the truth.

    Intervals hold 95 %. Where each film is its own patient, proportions of films have Wilson's. Everything else has the standard error of resamples, drawn by
    whole patients where they are known, on the logit scale: near 1, percentiles of resamples miss the truth far more often. The calibration error, which
    noise can only raise, is lowered by all the noise that resamples show before the interval claims that it is not 0.

    Args:
        truth: ndarray of shape (n,), integers: the index of each film's true label.
        probabilities: ndarray of shape (n, k), float in [0, 1], rows adding up to 1; rows of `nan` for the films that the gate refused.
        labels: The k class names.
        threshold: With two labels, the probability of the second from which on it is predicted, in [0, 1]. With more, `None`: the most probable is.
        names: The n films' names, all different.
        patients: Whose films they are, `None` where unknown; the same name is the same patient in every source.
        sources: Which collections they come from.
        groups: Columns of n values, such as age or view: each value is reported apart. Columns of many numbers are cut at their quartiles.
        refused: Why films were refused, in words; empty or `None` for the others.
        data: What the films are, in a few words: "validation patients", "official test split".
        seed: Of the resampling.
        n_bootstrap: Number of resamples.

    Returns:
        The report.

    Raises:
        ValueError: If shapes, ranges or names do not fit together.

    Example:
        >>> r = make_report([0, 0, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd")
        >>> r.auroc.value, r.n
        (1.0, 4)

    References:
        Wilson 1927, doi:10.1080/01621459.1927.10502953. Field and Welsh 2007 (bootstrap of clusters), doi:10.1111/j.1467-9868.2007.00593.x.
        Guo et al. 2017 (calibration error), arXiv:1706.04599.
    """
    labels = check_labels(labels)
    y, p = _check_arrays(truth, probabilities, len(labels))
    n, k = p.shape
    names = [str(name) for name in names]
    columns: dict[str, Sequence[Any] | None] = {"names": names, "patients": patients, "sources": sources, "refused": refused}
    for name, column in {**columns, **{f"groups[{c!r}]": v for c, v in (groups or {}).items()}}.items():
        if column is not None and len(column) != n:
            raise ValueError(f"{name} must have one entry for each of the {n} films. Received: {len(column)} entries")
    if len(set(names)) != n:
        raise ValueError(f"names must all be different. Received: {next(x for i, x in enumerate(names) if x in names[:i])!r} more than once")
    if k == 2 and (threshold is None or not 0 <= threshold <= 1):
        raise ValueError(f"threshold must lie in [0, 1] when there are two labels. Received: threshold={threshold!r}")
    if k > 2 and threshold is not None:
        raise ValueError(f"threshold must be None with three or more labels: the most probable one is predicted. Received: threshold={threshold!r}")
    if n_bootstrap < 100:
        raise ValueError(f"n_bootstrap must be at least 100. Received: n_bootstrap={n_bootstrap!r}")
    accepted = ~np.isnan(p[:, 0])
    reasons = [str(r or "") for r in refused] if refused is not None else [""] * n
    if bad := [names[i] for i in range(n) if reasons[i] and accepted[i]]:
        raise ValueError(f"refused gives a reason for films that have probabilities. Received: {', '.join(bad[:3])}")

    predicted = (p[:, 1] >= threshold).astype(np.int64) if threshold is not None else np.where(np.isnan(p), -1.0, p).argmax(1)
    people = list(patients) if patients is not None else [None] * n
    clusters = np.unique([f"p{x}" if x is not None else f"f{i}" for i, x in enumerate(people)], return_inverse=True)[1]
    known = any(x is not None for x in people)

    def summarise(mask: Bools, y: Ints = y, p: Floats = p, predicted: Ints = predicted, labels: tuple[str, ...] = labels) -> dict[str, Any]:
        return _summarise(y[mask], p[mask], predicted[mask], accepted[mask], clusters[mask], labels=labels, known=known, seed=seed, n_bootstrap=n_bootstrap)

    everything = summarise(np.ones(n, bool))
    where = np.array([str(s) for s in sources]) if sources is not None else np.full(n, "")
    by_source = {str(s): Summary(**(everything if (where == s).all() else summarise(where == s))) for s in np.unique(where) if sources is not None}
    by_label = {}
    for c in range(k) if k > 2 else ():
        against = np.stack([1 - p[:, c], p[:, c]], axis=1)
        by_label[labels[c]] = Summary(
            **summarise(np.ones(n, bool), (y == c).astype(np.int64), against, (predicted == c).astype(np.int64), ("the others", labels[c]))
        )
    cuts, left_out = _cut({str(c): [None if x is None or x == "" else str(x) for x in v] for c, v in (groups or {}).items()})
    subgroups = {
        column: {
            value: Summary(**summarise(mask)) for value in sorted(set(values), key=_natural) if (mask := np.array(values) == value).sum() >= SMALLEST_GROUP
        }
        for column, values in cuts.items()
    }
    small = [f"{column} = {value}" for column, values in cuts.items() for value in sorted(set(values), key=_natural) if value not in subgroups[column]]
    if not accepted.all():
        left_out.append(f"{(~accepted).sum():,} of {n:,} films were refused and count in no metric but the two that say so.")
    if small:
        left_out.append(f"Subgroups of fewer than {SMALLEST_GROUP} films are not measured: {', '.join(small)}.")
    if len(by_source) > 1:
        left_out.append("The overall figures pool several sources: read them beside those of each source.")
    rows = tuple(
        Row(
            name=names[i],
            truth=labels[y[i]],
            label=labels[predicted[i]] if accepted[i] else None,
            probabilities=tuple(p[i].tolist()),
            refused=reasons[i],
            patient=people[i],
            source=str(where[i]),
            groups={column: values[i] for column, values in cuts.items()},
        )
        for i in range(n)
    )
    return Report(
        **{**everything, "statements": (*everything["statements"], *left_out)},
        labels=labels,
        threshold=None if threshold is None else float(threshold),
        predictions=rows,
        data=data,
        by_source=by_source,
        by_label=by_label,
        subgroups=subgroups,
        intervals=f"{n_bootstrap} bootstrap resamples of {'patients' if known else 'films'}; Wilson's for proportions where no patient has two films",
        seed=seed,
        n_bootstrap=n_bootstrap,
    )


def wilson(successes: float, total: float) -> Estimate:
    """Estimate a proportion with Wilson's 95 % interval, which holds where 0 or all of `total` succeed.

    Args:
        successes: Number of successes.
        total: Number of trials; 0 leaves the proportion undefined.

    Returns:
        The proportion with its interval.

    Raises:
        ValueError: If there are more successes than trials.

    Example:
        >>> print(wilson(599, 624))
        0.960 (0.942–0.973)

    References:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes must lie in [0, total]. Received: successes={successes!r}, total={total!r}")
    if total == 0:
        return _UNDEFINED
    rate, z2 = successes / total, _Z * _Z
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total * total))
    return Estimate(rate, min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate))


# --- calibration and comparison -------------------------------------------------------------------------------------------------------------------------


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """Find the temperature that makes probabilities honest: the divisor of the logits with the least negative log-likelihood.

    Args:
        logits: ndarray of shape (n,), the logit of the positive class, or (n, k), one per class before softmax.
        truth: ndarray of shape (n,), integers: the index of each film's true label.

    Returns:
        The temperature, in [0.05, 20]; above 1 the network was too sure of itself. Where no inner one is best (perfectly separated films, or a network that
        ranks worse than chance), the nearer end.

    Raises:
        ValueError: If shapes do not fit, a logit is not finite, or only one class is present.

    Example:
        >>> round(fit_temperature([-4.0, -4.0, -4.0, 4.0, 4.0, 4.0, -4.0, 4.0], [0, 0, 0, 1, 1, 1, 1, 0]), 3)
        3.641

    References:
        Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599.
    """
    z = np.asarray(logits, np.float64)
    z = np.stack([np.zeros_like(z), z], axis=1) if z.ndim == 1 else z  # (n, k): one logit against 0 is a softmax of two
    y = np.asarray(truth)
    if z.ndim != 2 or z.shape[1] < 2 or y.shape != z.shape[:1] or not np.isfinite(z).all():
        raise ValueError(
            f"logits must be finite, of shape (n,) or (n, k), with n labels. Received: logits of shape {np.shape(logits)}, truth of shape {y.shape}"
        )
    y = _check_truth(y, z.shape[1])
    if len(np.unique(y)) < 2:
        raise ValueError("a temperature needs films of at least two classes. Received: films of one class only")
    z = z - z.max(axis=1, keepdims=True)
    of_truth = np.take_along_axis(z, y[:, None], axis=1)[:, 0].mean()

    def slope(beta: float) -> float:  # of the mean negative log-likelihood, convex in beta = 1 / temperature
        e = np.exp(beta * z)
        return float(((e * z).sum(1) / e.sum(1)).mean() - of_truth)

    low, high = math.log(1 / 20), math.log(20)  # of beta
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def compare(a: Report, b: Report) -> Estimate:
    """Estimate how much larger the AUROC of one model is than that of another on the same films.

    Args:
        a: Report of the first model.
        b: Report of the second, on the same films in any order. Films that either model refused are left out.

    Returns:
        AUROC of `a` less AUROC of `b` with DeLong's 95 % interval, patients kept together where they are known; an interval without 0 is a difference.

    Raises:
        ValueError: If the films, their truths or the labels differ, or the common films are not of at least two classes.

    Example:
        >>> def report(p):
        ...     return make_report([0, 0, 1, 1], [[1 - x, x] for x in p], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd")
        >>> compare(report([0.1, 0.2, 0.8, 0.9]), report([0.1, 0.8, 0.2, 0.9])).value
        0.25

    References:
        DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595. Obuchowski 1997 (clustered data), doi:10.2307/2533958.
    """
    others = {row.name: row for row in b.predictions}
    if a.labels != b.labels or not a.predictions or {r.name: r.truth for r in a.predictions} != {r.name: r.truth for r in b.predictions}:
        raise ValueError(f"both reports must hold the predictions of the same films with the same truths and labels. Received: {_short(a)} and {_short(b)}")
    rows = [row for row in a.predictions if row.label is not None and others[row.name].label is not None]
    y = np.array([a.labels.index(row.truth) for row in rows], np.int64)
    if len(np.unique(y)) < 2:
        raise ValueError(
            f"a comparison needs films of at least two classes that neither model refused. Received: {len(rows)} films of {len(np.unique(y))} classes"
        )
    clusters = _clusters(rows)
    total, influence = 0.0, np.zeros(len(rows))
    classes = [c for c in (range(len(a.labels)) if len(a.labels) > 2 else (1,)) if (y == c).any()]
    for c in classes:
        positive = y == c
        for sign, scored in ((1, rows), (-1, [others[row.name] for row in rows])):
            area, change = _delong(positive, np.array([row.probabilities[c] for row in scored]), clusters)
            total += sign * area / len(classes)
            influence += sign * change / len(classes)
    half = _Z * math.sqrt(float((np.bincount(clusters, influence) ** 2).sum()))
    return Estimate(total, total - half, total + half)


def _delong(positive: Bools, score: Floats, clusters: Ints) -> tuple[float, Floats]:
    """AUROC and each film's influence on it: the squares of their sums over clusters add up to the variance, DeLong's when each film is its own cluster."""
    above, below = np.sort(score[positive]), np.sort(score[~positive])
    v = np.empty(len(score))  # structural components: the part of the other class that each film is rightly ordered against
    v[positive] = (np.searchsorted(below, score[positive], "left") + np.searchsorted(below, score[positive], "right")) / (2 * len(below))
    v[~positive] = 1 - (np.searchsorted(above, score[~positive], "left") + np.searchsorted(above, score[~positive], "right")) / (2 * len(above))
    area = float(v[positive].mean())
    influence = v - area
    for side in (positive, ~positive):
        c = len(np.unique(clusters[side]))
        influence[side] *= math.sqrt(c / (c - 1)) / side.sum() if c > 1 else 1 / side.sum()
    return area, influence


def _short(report: Report) -> str:
    return f"{len(report.predictions)} films of {', '.join(report.labels)}"


# --- operating points -----------------------------------------------------------------------------------------------------------------------------------


# --- curves ---------------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Curves:
    """ROC and precision–recall curves of one label against the others, with 95 % bands at 101 points; see `curves`.

    Args:
        thresholds: ndarray of shape (t,), descending: every score that occurs.
        fpr: ndarray of shape (t,), part of the negative films scored at or above each threshold.
        tpr: ndarray of shape (t,), part of the positive films scored at or above it: the recall.
        precision: ndarray of shape (t,), part of the films at or above it that are positive.
        grid: ndarray of shape (101,), from 0 to 1: false positive rates of the ROC band, recalls of the precision–recall band.
        roc_band: ndarray of shape (2, 101), lowest and highest sensitivity at each false positive rate.
        pr_band: ndarray of shape (2, 101), lowest and highest precision at each recall.
        auroc: Area under the ROC curve.
        average_precision: Area under the precision–recall steps.
        prevalence: Part of the films that are positive.

    Example:
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
        >>> curves(r).auroc
        1.0
    """

    thresholds: Floats
    fpr: Floats
    tpr: Floats
    precision: Floats
    grid: Floats
    roc_band: Floats
    pr_band: Floats
    auroc: float
    average_precision: float
    prevalence: float


def curves(report: Report, label: str | None = None, *, n_bootstrap: int = 300) -> Curves | None:
    """Draw up the curves of one label against the others.

    Args:
        report: A report with its predictions.
        label: Which label is positive; the last when not given.
        n_bootstrap: Number of resamples behind the bands.

    Returns:
        The curves; `None` where they are undefined, because every film is of one class.

    Raises:
        ValueError: If the report lacks its predictions or the label is unknown.

    Example:
        >>> r = make_report([0, 0, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.1, 0.9]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd")
        >>> curves(r).tpr.tolist()
        [0.5, 0.5, 1.0, 1.0]
    """
    y, p, clusters = _arrays(report)
    label = report.labels[-1] if label is None else label
    if label not in report.labels:
        raise ValueError(f"label must be one of {', '.join(report.labels)}. Received: label={label!r}")
    c = report.labels.index(label)
    positive, score = y == c, p[:, c]
    if positive.all() or not positive.any():
        return None
    order, starts = _ranking(score)
    tp, fp = _cumulate(np.ones((1, len(y))), positive, order, starts)
    grid = np.linspace(0, 1, 101)
    at_fpr, at_recall = [], []
    for weights in _resamples(clusters, n_bootstrap, report.seed):
        for t, f in zip(*_cumulate(weights, positive, order, starts), strict=True):  # (g,), (g,)
            if t[-1] and f[-1]:
                at_fpr.append(np.interp(grid, np.r_[0, f / f[-1]], np.r_[0, t / t[-1]]))
                first = np.minimum(np.searchsorted(t / t[-1], np.maximum(grid, 1e-9)), len(t) - 1)
                at_recall.append(t[first] / (t[first] + f[first]))
    auroc, average_precision = _areas(np.ones((1, len(y))), positive, order, starts)
    empty = np.full((2, 101), np.nan)
    return Curves(
        thresholds=score[order][starts],
        fpr=fp[0] / fp[0, -1],
        tpr=tp[0] / tp[0, -1],
        precision=tp[0] / (tp[0] + fp[0]),
        grid=grid,
        roc_band=np.quantile(at_fpr, [0.025, 0.975], axis=0) if at_fpr else empty,
        pr_band=np.quantile(at_recall, [0.025, 0.975], axis=0) if at_recall else empty,
        auroc=float(auroc[0]),
        average_precision=float(average_precision[0]),
        prevalence=float(positive.mean()),
    )


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often the label came true where its probability was so and so: the filled ones of 15 equally wide bins; see `reliability`.

    Args:
        centre: ndarray of shape (b,), centre of each filled bin.
        probability: ndarray of shape (b,), mean predicted probability in it.
        observed: ndarray of shape (b,), part of its films where the label was true.
        low: ndarray of shape (b,), lower ends of Wilson's 95 % intervals of `observed`.
        high: ndarray of shape (b,), upper ends.
        count: ndarray of shape (b,), int64, number of films in each filled bin.

    Example:
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
        >>> reliability(r).observed.tolist()
        [0.0, 1.0]
    """

    centre: Floats
    probability: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: Ints


def reliability(report: Report) -> Reliability:
    """Draw up the reliability diagram: of the second label when there are two, of the most probable label when there are more.

    Args:
        report: A report with its predictions.

    Returns:
        The filled bins.

    Raises:
        ValueError: If the report lacks its predictions.

    Example:
        >>> r = make_report([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abc")
        >>> reliability(r).count.tolist()
        [1, 2]

    References:
        Guo et al. 2017, arXiv:1706.04599.
    """
    y, p, _ = _arrays(report)
    confidence, outcome = _confidence(y, p)
    bins = _bins(confidence)
    filled = np.unique(bins)
    rates = [wilson(int(outcome[bins == b].sum()), int((bins == b).sum())) for b in filled]
    return Reliability(
        centre=(filled + 0.5) / BINS,
        probability=np.array([confidence[bins == b].mean() for b in filled]),
        observed=np.array([rate.value for rate in rates]),
        low=np.array([rate.low for rate in rates]),
        high=np.array([rate.high for rate in rates]),
        count=np.array([(bins == b).sum() for b in filled], np.int64),
    )


def net_benefit(report: Report) -> tuple[Floats, Floats, Floats]:
    """Draw up the decision curve of acting on every label but the first, the healthy one.

    Args:
        report: A report with its predictions.

    Returns:
        Three ndarrays of shape (99,): the threshold probabilities 0.01 to 0.99, the net benefit of acting on films at or above each, and that of acting on
        every film. Acting on none has 0. A net benefit of 0.1 is worth ten true positives in a hundred films and no false one.

    Raises:
        ValueError: If the report lacks its predictions.

    Example:
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
        >>> float(net_benefit(r)[1][49])
        0.5

    References:
        Vickers and Elkin 2006, doi:10.1177/0272989X06295361.
    """
    y, p, _ = _arrays(report)
    ill, score = y > 0, 1 - p[:, 0] if p.shape[1] > 2 else p[:, 1]
    thresholds = np.arange(1, 100) / 100
    odds = thresholds / (1 - thresholds)
    called = score[None, :] >= thresholds[:, None]  # (99, n)
    hits, alarms, all_hits, all_alarms = (
        _ratio(x.sum(-1).astype(np.float64), np.asarray(len(y), np.float64)) for x in (called & ill, called & ~ill, ill, ~ill)
    )
    return thresholds, hits - odds * alarms, all_hits - odds * all_alarms


# --- the arithmetic -------------------------------------------------------------------------------------------------------------------------------------


def _summarise(
    y: Ints, p: Floats, predicted: Ints, accepted: Bools, clusters: Ints, *, labels: tuple[str, ...], known: bool, seed: int, n_bootstrap: int
) -> dict[str, Any]:
    """The fields of a Summary. y (n,), p (n, k), predicted (n,), accepted (n,), clusters (n,): the number of the patient."""
    k = len(labels)
    clusters = np.unique(clusters, return_inverse=True)[1]
    statements = [f"No film is labelled {labels[c]}: what needs one is undefined." for c in range(k) if not (y == c).any()]
    matrix = np.bincount(y[accepted] * k + predicted[accepted], minlength=k * k).reshape(k, k).astype(np.int64)
    measure = _measurer(y, p, np.where(accepted, predicted, -1))
    value = {name: float(v[0]) for name, v in measure(np.ones((1, len(y)))).items()}
    del value["ece_noise"]
    blocks = [measure(weights) for weights in _resamples(clusters, n_bootstrap, seed)] if accepted.any() else []
    patients = len(np.unique(clusters))
    plain = _proportions(matrix, y, accepted) if patients == len(y) else {}  # no patient has two films
    smallest = min(len(np.unique(clusters[y == c])) for c in np.unique(y))  # patients in the smallest class
    estimates: dict[str, Estimate] = {}
    for name, v in value.items():
        samples = np.concatenate([block[name] for block in blocks]) if blocks else np.empty(0)
        samples = samples[~np.isnan(samples)]
        top = 2.0 if name == "brier" and k > 2 else 1.0
        if name in plain:
            estimates[name] = wilson(*plain[name])
        elif math.isnan(v) or patients < 2 or len(samples) < n_bootstrap / 2:
            estimates[name] = Estimate(v, _NAN, _NAN)
        elif v in (0, top):  # resamples of perfection are perfect: bounded as a proportion of the patients of the smallest class would be
            bound = wilson(v / top * smallest, smallest)
            estimates[name] = Estimate(v, bound.low * top, bound.high * top)
        elif name == "ece":  # |estimate - truth| is at most the sum of the bins' errors; noise raises the estimate as often again as it raised the resamples'
            noise = np.concatenate([block["ece_noise"] for block in blocks])
            estimates[name] = Estimate(v, max(v - float(np.nanquantile(noise, 0.975)), 0.0), max(min(2 * v - float(np.quantile(samples, 0.025)), 1.0), v))
        else:
            estimates[name] = _on_logit_scale(v, float(samples.std()) * math.sqrt(patients / (patients - 1)), top=top)
    if missing := [name for name, e in estimates.items() if math.isnan(e.value)]:
        statements.append(f"Undefined on these films: {', '.join(missing)}.")
    if missing := [name for name, e in estimates.items() if math.isnan(e.low) and not math.isnan(e.value)]:
        statements.append(f"Without an interval, because resampling leaves them undefined or does not move them: {', '.join(missing)}.")
    return {
        "n": len(y),
        "n_refused": int((~accepted).sum()),
        "n_patients": len(np.unique(clusters)) if known else None,
        "confusion_matrix": matrix,
        "statements": tuple(statements),
        **estimates,
    }


def _measurer(y: Ints, p: Floats, predicted: Ints) -> Callable[[Floats], dict[str, Floats]]:
    """A function from weights of films (b, n) to every metric (b,). Films are sorted once, here. `predicted` is -1 for refused films."""
    n, k = p.shape
    used = predicted >= 0
    everyone, truths = np.arange(n), np.eye(k)[y]  # (n,), (n, k)
    cells = np.zeros((n, k * k))  # which cell of the confusion matrix each film falls into
    cells[everyone[used], (y * k + predicted)[used]] = 1
    q, t = p[used], y[used]
    confidence, outcome = _confidence(t, q)
    error = (q[:, 1] - t) ** 2 if k == 2 else ((q - truths[used]) ** 2).sum(1)
    gaps = np.zeros((len(t), BINS))
    gaps[np.arange(len(t)), _bins(confidence)] = confidence - outcome
    classes = range(k) if k > 2 else (1,)
    rankings = [(t == c, *_ranking(q[:, c])) for c in classes]

    def measure(weights: Floats) -> dict[str, Floats]:
        matrix = (weights @ cells).reshape(-1, k, k)
        w = weights[:, used]
        total = w.sum(1)
        tp = np.stack([matrix[:, c, c] for c in classes], axis=1)  # (b, classes)
        row, column = (np.stack([matrix.sum(axis)[:, c] for c in classes], axis=1) for axis in (2, 1))
        fn, fp = row - tp, column - tp
        tn = total[:, None] - tp - fn - fp
        binned = w @ gaps  # (b, bins)
        areas = np.array([_areas(w, *ranking) for ranking in rankings]) if len(t) else np.full((len(classes), 2, len(w)), np.nan)
        right = np.trace(matrix, axis1=1, axis2=2)
        return {
            "auroc": _mean(areas[:, 0].T),
            "average_precision": _mean(areas[:, 1].T),
            "accuracy": _ratio(right, total),
            "precision": _mean(_ratio(tp, tp + fp)),
            "recall": _mean(_ratio(tp, tp + fn)),
            "specificity": _mean(_ratio(tn, tn + fp)),
            "f1": _mean(_ratio(2 * tp, 2 * tp + fp + fn)),
            "npv": _mean(_ratio(tn, tn + fn)),
            "brier": _ratio(w @ error, total),
            "ece": _ratio(np.abs(binned).sum(1), total),
            "ece_noise": np.abs(_ratio(binned, total[:, None]) - gaps.sum(0) / max(len(t), 1)).sum(1),
            "sensitivity_with_refusals_missed": _mean(_ratio(tp, (weights @ truths)[:, list(classes)])),
            "accuracy_with_refusals_wrong": _ratio(right, weights.sum(1)),
        }

    return measure


def _on_logit_scale(value: float, error: float, *, top: float) -> Estimate:
    """The interval of a value inside (0, top) with its standard error: symmetric on the logit scale, so lopsided near either end."""
    if error < 1e-12:
        return Estimate(value, _NAN, _NAN)
    logit, half = math.log(value / (top - value)), _Z * error * top / (value * (top - value))
    return Estimate(value, top / (1 + math.exp(min(half - logit, 700))), top / (1 + math.exp(max(-half - logit, -700))))


def _proportions(matrix: Ints, y: Ints, accepted: Bools) -> dict[str, tuple[int, int]]:
    """Those metrics that are proportions of films, as (successes, trials)."""
    right, total = int(np.trace(matrix)), int(matrix.sum())
    pairs = {"accuracy": (right, total), "accuracy_with_refusals_wrong": (right, len(y))}
    if len(matrix) == 2:
        (tn, fp), (fn, tp) = matrix.tolist()
        pairs |= {"precision": (tp, tp + fp), "recall": (tp, tp + fn), "specificity": (tn, tn + fp), "npv": (tn, tn + fn)}
        pairs["sensitivity_with_refusals_missed"] = (tp, int((y == 1).sum()))
    return pairs


def _resamples(clusters: Ints, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """How often each film is drawn when its patients are drawn with replacement, in blocks of shape (b, n)."""
    rng = np.random.default_rng(seed)
    m, n = int(clusters.max()) + 1, len(clusters)
    size = max(1, 50_000 // n)  # 0.4 MB a block: what stays in the cache is several times faster
    for start in range(0, n_bootstrap, size):
        b = min(size, n_bootstrap - start)
        drawn = rng.integers(0, m, (b, m)) + m * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * m).reshape(b, m)[:, clusters].astype(np.float64)


def _ranking(score: Floats) -> tuple[Ints, Ints]:
    """The films' order by descending score, and where each run of equal scores starts in it."""
    order = np.argsort(-score, kind="stable")
    return order, np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])


def _cumulate(weights: Floats, positive: Bools, order: Ints, starts: Ints) -> tuple[Floats, Floats]:
    """True and false positives at every threshold, descending: (b, g) each."""
    w = weights[:, order]
    both = [np.add.reduceat(w * side[order], starts, axis=1).cumsum(1) for side in (positive, ~positive)]
    return both[0], both[1]


def _areas(weights: Floats, positive: Bools, order: Ints, starts: Ints) -> tuple[Floats, Floats]:
    """AUROC and average precision under weights (b, n): two arrays (b,)."""
    tp, fp = _cumulate(weights, positive, order, starts)
    gained = np.diff(tp, axis=1, prepend=0)  # positives of each run of equal scores
    auroc = _ratio((np.diff(fp, axis=1, prepend=0) * (tp - gained / 2)).sum(1), tp[:, -1] * fp[:, -1])
    return auroc, _ratio((gained * tp / np.maximum(tp + fp, 1)).sum(1), tp[:, -1])


def _confidence(y: Ints, p: Floats) -> tuple[Floats, Bools]:
    """The probability whose honesty is judged, and whether it came true: of the second label of two, else of the most probable label."""
    return (p[:, 1], y == 1) if p.shape[1] == 2 else (p.max(1, initial=0), p.argmax(1) == y)


def _bins(confidence: Floats) -> Ints:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _ratio(a: Floats, b: Floats) -> Floats:
    result: Floats = np.divide(a, b, out=np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), np.nan), where=b > 0)
    return result


def _mean(values: Floats) -> Floats:
    """Mean over the classes (b, c) -> (b,), of those that are defined."""
    return _ratio(np.nansum(values, axis=1), (~np.isnan(values)).sum(1).astype(np.float64))


# --- checks and forms -----------------------------------------------------------------------------------------------------------------------------------


def _check_truth(truth: ArrayLike, k: int) -> Ints:
    y = np.asarray(truth)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or y.size == 0 or y.min() < 0 or y.max() >= k:
        raise ValueError(
            f"truth must hold at least one integer in [0, {k - 1}] in one dimension. Received: {np.array2string(y, threshold=8)} of type {y.dtype}"
        )
    return y.astype(np.int64)


def _check_arrays(truth: ArrayLike, probabilities: ArrayLike, k: int) -> tuple[Ints, Floats]:
    y, p = _check_truth(truth, k), np.asarray(probabilities, np.float64)
    if p.shape != (len(y), k):
        raise ValueError(f"probabilities must have one row per film and one column per label: shape ({len(y)}, {k}). Received: shape {p.shape}")
    missing = np.isnan(p)
    known = p[~missing.any(1)]
    if (missing.any(1) != missing.all(1)).any() or (known < 0).any() or (known > 1).any() or (abs(known.sum(1) - 1) > 1e-3).any():
        bad = next(i for i, row in enumerate(p) if not np.isnan(row).all() and not (np.all((row >= 0) & (row <= 1)) and abs(row.sum() - 1) <= 1e-3))
        raise ValueError(
            f"probabilities must lie in [0, 1] and add up to 1 in each row, or be nan throughout a refused film's. Received: {p[bad].tolist()} in row {bad}"
        )
    return y, p


def _cut(groups: Mapping[str, Sequence[str | None]]) -> tuple[dict[str, list[str]], list[str]]:
    """Columns of two to twelve values as they are, columns of more numbers by quartile; of more words not at all, with a statement."""
    cuts: dict[str, list[str]] = {}
    statements: list[str] = []
    for column, values in groups.items():
        known = sorted({v for v in values if v is not None})
        if len(known) > 12:
            try:
                numbers = np.array([_NAN if v is None else float(v) for v in values])
            except ValueError:
                statements.append(f"The column {column} has {len(known)} different values and is not measured by subgroup.")
                continue
            edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
            place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(len(edges) - 2, 0))
            spans = [f"{a:g} to {'below ' if i < len(edges) - 2 else ''}{b:g}" for i, (a, b) in enumerate(itertools.pairwise(edges))]
            cuts[column] = ["unknown" if math.isnan(x) else spans[i] for x, i in zip(numbers, place, strict=True)]
        elif len(set(values)) > 1:
            cuts[column] = ["unknown" if v is None else v for v in values]
    return cuts, statements


def _natural(value: str) -> tuple[bool, float, str]:
    """Numbers in their order, then words, `unknown` last."""
    try:
        return False, float(value.split(" ")[0]), value
    except ValueError:
        return value == "unknown", math.inf, value


def _clusters(rows: Sequence[Row]) -> Ints:
    keys = [f"p{row.patient}" if row.patient is not None else f"f{i}" for i, row in enumerate(rows)]
    return np.unique(keys, return_inverse=True)[1]


def _arrays(report: Report) -> tuple[Ints, Floats, Ints]:
    """Truth (n,), probabilities (n, k) and clusters (n,) of the films that were not refused."""
    if not report.predictions:
        raise ValueError("the report lacks its predictions, which curves are drawn from: make it anew, or read a report.json that holds them")
    rows = [row for row in report.predictions if row.label is not None]
    y = np.array([report.labels.index(row.truth) for row in rows], np.int64)
    return y, np.array([row.probabilities for row in rows], np.float64).reshape(len(rows), len(report.labels)), _clusters(rows)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | None) -> float:
    return _NAN if value is None else float(value)


def _summary_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    estimates = {name: Estimate(**{key: _number(x) for key, x in data[name].items()}) for name in (*METRICS, *WITH_REFUSALS)}
    return {**data, **estimates, "confusion_matrix": np.array(data["confusion_matrix"], np.int64), "statements": tuple(data["statements"])}


def _write_csv(report: Report, path: Path) -> None:
    """One line per film: name, truth, label, a probability per label, why refused, patient, source, and the subgroups."""
    columns = sorted({column for row in report.predictions for column in row.groups})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "truth", "label", *(f"probability_{label}" for label in report.labels), "refused", "patient", "source", *columns])
        for row in report.predictions:
            numbers = ["" if math.isnan(p) else repr(p) for p in row.probabilities]
            groups = [row.groups.get(column, "") for column in columns]
            writer.writerow([row.name, row.truth, row.label or "", *numbers, row.refused, row.patient or "", row.source, *groups])
