"""Truth and probabilities in, a report out: every metric with its 95 % interval.

Whatever is made from a report, curves and comparisons, can be imported from here, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cxrlib.config import check_labels
from cxrlib.metrics.calibration import BINS, bins, check_truth, confidence, fit_temperature
from cxrlib.metrics.comparison import compare
from cxrlib.metrics.curves import Curves, Reliability, curves, net_benefit, reliability
from cxrlib.metrics.intervals import Estimate, on_logit_scale, wilson
from cxrlib.metrics.report import METRICS, WITH_REFUSALS, Report, Row, Summary
from cxrlib.metrics.resampling import Bools, Floats, Ints, areas, clusters, rank, ratio, resamples

__all__ = [
    "BINS",
    "METRICS",
    "SMALLEST_GROUP",
    "WITH_REFUSALS",
    "Curves",
    "Estimate",
    "Reliability",
    "Report",
    "Row",
    "Summary",
    "compare",
    "curves",
    "fit_temperature",
    "make_report",
    "net_benefit",
    "reliability",
    "wilson",
]

SMALLEST_GROUP = 10  # films: smaller subgroups are named, not measured


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
    whole patients where they are known, on the logit scale: near 1, percentiles of resamples miss the truth far more often. What is exactly 0 or 1, as it
    then is in every resample, is bounded as a proportion of those patients would be whose films it is made of. The calibration error, which noise can only
    raise, is lowered by all the noise that resamples show before the interval claims that it is not 0.

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
    columns: dict[str, Sequence[Any] | None] = {
        "names": names,
        "patients": patients,
        "sources": sources,
        "refused": refused,
    }
    for name, column in {**columns, **{f"groups[{c!r}]": v for c, v in (groups or {}).items()}}.items():
        if column is not None and len(column) != n:
            raise ValueError(f"{name} must have one entry for each of the {n} films. Received: {len(column)} entries")
    if len(set(names)) != n:
        raise ValueError(
            f"names must all be different. Received: {next(x for i, x in enumerate(names) if x in names[:i])!r} more than once"
        )
    if k == 2 and (threshold is None or not 0 <= threshold <= 1):
        raise ValueError(f"threshold must lie in [0, 1] when there are two labels. Received: threshold={threshold!r}")
    if k > 2 and threshold is not None:
        raise ValueError(
            f"threshold must be None with three or more labels: the most probable one is predicted. Received: threshold={threshold!r}"
        )
    if n_bootstrap < 100:
        raise ValueError(f"n_bootstrap must be at least 100. Received: n_bootstrap={n_bootstrap!r}")
    accepted = ~np.isnan(p[:, 0])
    reasons = [str(r or "") for r in refused] if refused is not None else [""] * n
    if bad := [names[i] for i in range(n) if reasons[i] and accepted[i]]:
        raise ValueError(f"refused gives a reason for films that have probabilities. Received: {', '.join(bad[:3])}")

    predicted = (
        (p[:, 1] >= threshold).astype(np.int64) if threshold is not None else np.where(np.isnan(p), -1.0, p).argmax(1)
    )
    people = list(patients) if patients is not None else [None] * n
    persons = clusters(people)
    known = any(x is not None for x in people)

    def summarise(
        mask: Bools, y: Ints = y, p: Floats = p, predicted: Ints = predicted, labels: tuple[str, ...] = labels
    ) -> dict[str, Any]:
        return _summarise(
            y[mask],
            p[mask],
            predicted[mask],
            accepted[mask],
            persons[mask],
            labels=labels,
            known=known,
            seed=seed,
            n_bootstrap=n_bootstrap,
        )

    everything = summarise(np.ones(n, bool))
    where = np.array([str(s) for s in sources]) if sources is not None else np.full(n, "")
    by_source = {
        str(s): Summary(**(everything if (where == s).all() else summarise(where == s)))
        for s in np.unique(where)
        if sources is not None
    }
    by_label = {}
    for c in range(k) if k > 2 else ():
        against = np.stack([1 - p[:, c], p[:, c]], axis=1)
        by_label[labels[c]] = Summary(
            **summarise(
                np.ones(n, bool),
                (y == c).astype(np.int64),
                against,
                (predicted == c).astype(np.int64),
                ("the others", labels[c]),
            )
        )
    cuts, left_out = _cut(
        {str(c): [None if x is None or x == "" else str(x) for x in v] for c, v in (groups or {}).items()}
    )
    subgroups = {
        column: {
            value: Summary(**summarise(mask))
            for value in sorted(set(values), key=_natural)
            if (mask := np.array(values) == value).sum() >= SMALLEST_GROUP
        }
        for column, values in cuts.items()
    }
    small = [
        f"{column} = {value}"
        for column, values in cuts.items()
        for value in sorted(set(values), key=_natural)
        if value not in subgroups[column]
    ]
    if not accepted.all():
        left_out.append(
            f"{(~accepted).sum():,} of {n:,} films were refused and count in no metric but the two that say so."
        )
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


def _summarise(
    y: Ints,
    p: Floats,
    predicted: Ints,
    accepted: Bools,
    persons: Ints,
    *,
    labels: tuple[str, ...],
    known: bool,
    seed: int,
    n_bootstrap: int,
) -> dict[str, Any]:
    """The fields of a Summary. y (n,), p (n, k), predicted (n,), accepted (n,), persons (n,): the number of the patient."""
    k = len(labels)
    persons = np.unique(persons, return_inverse=True)[1]
    statements = [
        f"No film is labelled {labels[c]}: what needs one is undefined." for c in range(k) if not (y == c).any()
    ]
    matrix = np.bincount(y[accepted] * k + predicted[accepted], minlength=k * k).reshape(k, k).astype(np.int64)
    measure = _measurer(y, p, np.where(accepted, predicted, -1))
    value = {name: float(v[0]) for name, v in measure(np.ones((1, len(y)))).items()}
    del value["ece_noise"]
    blocks = [measure(weights) for weights in resamples(persons, n_bootstrap, seed)] if accepted.any() else []
    patients, answered = len(np.unique(persons)), len(np.unique(persons[accepted]))
    plain = _proportions(matrix, y, accepted) if patients == len(y) else {}  # no patient has two films
    bases = _bases(y, predicted, accepted, persons, k)
    estimates: dict[str, Estimate] = {}
    for name, v in value.items():
        samples = np.concatenate([block[name] for block in blocks]) if blocks else np.empty(0)
        samples = samples[~np.isnan(samples)]
        top, counted = 2.0 if name == "brier" and k > 2 else 1.0, patients if name in WITH_REFUSALS else answered
        if name in plain:
            estimates[name] = wilson(*plain[name])
        elif math.isnan(v) or counted < 2:
            estimates[name] = Estimate(v, math.nan, math.nan)
        elif v in (
            0,
            top,
        ):  # every class's is, and so in resamples; only the calibration error can be 0 by luck, and then they move it
            bounds = [wilson(v / top * base, base) for base in bases[name] if base]
            low, high = np.mean([(bound.low * top, bound.high * top) for bound in bounds], axis=0).tolist()
            few, many = np.quantile([*samples, v], [0.025, 0.975]).tolist()
            estimates[name] = Estimate(v, min(low, few), max(high, many))
        elif len(samples) < n_bootstrap / 2:
            estimates[name] = Estimate(v, math.nan, math.nan)
        elif (
            name == "ece"
        ):  # |estimate - truth| is at most the sum of the bins' errors; noise raises the estimate as often again as it raised the resamples'
            noise = np.concatenate([block["ece_noise"] for block in blocks])
            estimates[name] = Estimate(
                v,
                max(v - float(np.nanquantile(noise, 0.975)), 0.0),
                max(min(2 * v - float(np.quantile(samples, 0.025)), 1.0), v),
            )
        else:
            estimates[name] = on_logit_scale(v, float(samples.std()) * math.sqrt(counted / (counted - 1)), top=top)
    if missing := [name for name, e in estimates.items() if math.isnan(e.value)]:
        statements.append(f"Undefined on these films: {', '.join(missing)}.")
    if missing := [name for name, e in estimates.items() if math.isnan(e.low) and not math.isnan(e.value)]:
        statements.append(
            f"Without an interval, because resampling leaves them undefined or does not move them: {', '.join(missing)}."
        )
    return {
        "n": len(y),
        "n_refused": int((~accepted).sum()),
        "n_patients": len(np.unique(persons)) if known else None,
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
    stated, outcome = confidence(t, q)
    error = (q[:, 1] - t) ** 2 if k == 2 else ((q - truths[used]) ** 2).sum(1)
    gaps = np.zeros((len(t), BINS))
    gaps[np.arange(len(t)), bins(stated)] = stated - outcome
    classes = range(k) if k > 2 else (1,)
    rankings = [(t == c, *rank(q[:, c])) for c in classes]

    def measure(weights: Floats) -> dict[str, Floats]:
        matrix = (weights @ cells).reshape(-1, k, k)
        w = weights[:, used]
        total = w.sum(1)
        tp = np.stack([matrix[:, c, c] for c in classes], axis=1)  # (b, classes)
        row, column = (np.stack([matrix.sum(axis)[:, c] for c in classes], axis=1) for axis in (2, 1))
        fn, fp = row - tp, column - tp
        tn = total[:, None] - tp - fn - fp
        binned = w @ gaps  # (b, bins)
        under = (
            np.array([areas(w, *ranking) for ranking in rankings])
            if len(t)
            else np.full((len(classes), 2, len(w)), np.nan)
        )
        right = np.trace(matrix, axis1=1, axis2=2)
        return {
            "auroc": _mean(under[:, 0].T),
            "average_precision": _mean(under[:, 1].T),
            "accuracy": ratio(right, total),
            "precision": _mean(ratio(tp, tp + fp)),
            "recall": _mean(ratio(tp, tp + fn)),
            "specificity": _mean(ratio(tn, tn + fp)),
            "f1": _mean(ratio(2 * tp, 2 * tp + fp + fn)),
            "npv": _mean(ratio(tn, tn + fn)),
            "brier": ratio(w @ error, total),
            "ece": ratio(np.abs(binned).sum(1), total),
            "ece_noise": np.abs(ratio(binned, total[:, None]) - gaps.sum(0) / max(len(t), 1)).sum(1),
            "sensitivity_with_refusals_missed": _mean(ratio(tp, (weights @ truths)[:, list(classes)])),
            "accuracy_with_refusals_wrong": ratio(right, weights.sum(1)),
        }

    return measure


def _proportions(matrix: Ints, y: Ints, accepted: Bools) -> dict[str, tuple[int, int]]:
    """Those metrics that are proportions of films, as (successes, trials)."""
    right, total = int(np.trace(matrix)), int(matrix.sum())
    pairs = {"accuracy": (right, total), "accuracy_with_refusals_wrong": (right, len(y))}
    if len(matrix) == 2:
        (tn, fp), (fn, tp) = matrix.tolist()
        pairs |= {
            "precision": (tp, tp + fp),
            "recall": (tp, tp + fn),
            "specificity": (tn, tn + fp),
            "npv": (tn, tn + fn),
        }
        pairs["sensitivity_with_refusals_missed"] = (tp, int((y == 1).sum()))
    return pairs


def _bases(y: Ints, predicted: Ints, accepted: Bools, persons: Ints, k: int) -> dict[str, list[float]]:
    """How many patients' films bound each metric where it is 0 or 1: of each class that it is the mean of, 0 where the class's is undefined."""

    def count(films: Bools) -> int:
        return len(np.unique(persons[films]))

    bases: dict[str, list[float]] = {name: [count(accepted)] for name in ("accuracy", "brier", "ece")}
    bases["accuracy_with_refusals_wrong"] = [count(persons >= 0)]
    for c in range(k) if k > 2 else (1,):
        true, called = accepted & (y == c), accepted & (predicted == c)
        false = accepted & ~true
        smallest = min(
            count(true), count(false) or count(true)
        )  # so many pairs without a film in common are all in order, or none is
        for name, base in (
            ("auroc", smallest),
            ("average_precision", smallest),
            ("precision", count(called)),
            ("recall", count(true)),
            ("specificity", count(false)),
            (
                "f1",
                smallest if (true & called).any() else count(true | called) / 2,
            ),  # F1 is 2 J / (1 + J), J the part of them that are both
            ("npv", count(accepted & ~called)),
            ("sensitivity_with_refusals_missed", count(y == c)),
        ):
            bases.setdefault(name, []).append(base)
    return bases


def _mean(values: Floats) -> Floats:
    """Mean over the classes (b, c) -> (b,), of those that are defined."""
    return ratio(np.nansum(values, axis=1), (~np.isnan(values)).sum(1).astype(np.float64))


def _check_arrays(truth: ArrayLike, probabilities: ArrayLike, k: int) -> tuple[Ints, Floats]:
    y, p = check_truth(truth, k), np.asarray(probabilities, np.float64)
    if p.shape != (len(y), k):
        raise ValueError(
            f"probabilities must have one row per film and one column per label: shape ({len(y)}, {k}). Received: shape {p.shape}"
        )
    missing = np.isnan(p)
    known = p[~missing.any(1)]
    if (
        (missing.any(1) != missing.all(1)).any()
        or (known < 0).any()
        or (known > 1).any()
        or (abs(known.sum(1) - 1) > 1e-3).any()
    ):
        bad = next(
            i
            for i, row in enumerate(p)
            if not np.isnan(row).all() and not (np.all((row >= 0) & (row <= 1)) and abs(row.sum() - 1) <= 1e-3)
        )
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
                numbers = np.array([math.nan if v is None else float(v) for v in values])
            except ValueError:
                statements.append(
                    f"The column {column} has {len(known)} different values and is not measured by subgroup."
                )
                continue
            edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
            place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(len(edges) - 2, 0))
            spans = [
                f"{a:g} to {'below ' if i < len(edges) - 2 else ''}{b:g}"
                for i, (a, b) in enumerate(itertools.pairwise(edges))
            ]
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
