"""Targets and probabilities in, a report out: every metric with its 95 % interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cxrlib.config import check_labels
from cxrlib.metrics import subgroups
from cxrlib.metrics.calibration import BINS, bins, check_targets, confidence
from cxrlib.metrics.intervals import Bools, Estimate, Floats, Ints, clusters, on_logit_scale, resamples, wilson
from cxrlib.metrics.report import NAMES, WITH_REFUSALS, Other, Report, Row, Summary, counted

_PROPORTIONS = {"accuracy", "precision", "recall", "specificity", "npv", *WITH_REFUSALS}


def auroc(positive: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Measure the area under the ROC curve.

    Args:
        positive: ndarray of shape (n,), bool: which images are positive.
        scores: ndarray of shape (n,).
        weights: ndarray of shape (n,), not negative: how much each image counts; all alike by default.

    Returns:
        The area; `nan` where a class is missing.

    Example:
        >>> auroc([False, True, True], [0.2, 0.9, 0.1])
        0.5
    """
    mine, s = np.asarray(positive, bool), np.asarray(scores, np.float64)
    w = np.ones(len(s)) if weights is None else np.asarray(weights, np.float64)
    return float(Ranking(mine, s).areas(w[None])[0][0])


def make_report(
    targets: ArrayLike,
    probabilities: ArrayLike,
    *,
    labels: Sequence[str],
    threshold: float | None,
    names: Sequence[str],
    patients: Sequence[str | None] | None = None,
    sources: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str | None]] | None = None,
    other: Sequence[str | None] | None = None,
    status: Sequence[str] | None = None,
    reasons: Sequence[str] | None = None,
    data: str = "",
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> Report:
    """Measure predictions against the truth.

    Where each image is its own patient, proportions have Wilson's interval. Everything else has the standard error of
    resamples, drawn by whole patients where they are known, on the logit scale: near 1, percentiles of resamples miss
    the truth far more often. What is exactly 0 or 1 is bounded as a proportion of the patients behind it. The
    calibration error, which noise can only raise, is lowered by the noise of the resamples before the interval claims
    that it is not 0.

    Args:
        targets: ndarray of shape (n,), integers: the index of each image's true label.
        probabilities: ndarray of shape (n, k), float in [0, 1], rows adding up to 1; rows of `nan` for images without
            an answer.
        labels: The k class names; the second is the positive class.
        threshold: Probability of the positive class from which on it is predicted, in [0, 1]. `None`, with three or
            more labels only, where the most probable label is.
        names: The n images' names, all different.
        patients: The patient of each image, `None` where unknown; equal names are one patient, whatever the source.
        sources: The collection of each image.
        groups: Columns of n values, such as age or view: each value is reported apart; see `cxrlib.metrics.subgroups`.
        other: For each image whose label the model does not have, that label; `None` for the rest. Its target does not
            count, and it is in no figure but `by_other`.
        status: `"ok"`, `"refused"` or `"unreadable"`; by default `"refused"` where there are no probabilities.
        reasons: Why images have no answer, in words.
        data: What the images are, in a few words, such as "validation patients".
        seed: Of the resampling.
        n_bootstrap: Number of resamples.

    Returns:
        The report.

    Raises:
        ValueError: If shapes, ranges or names do not fit together.

    Example:
        >>> p = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]]
        >>> r = make_report([0, 0, 1, 1], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd")
        >>> r.auroc.value, r.n
        (1.0, 4)

    References:
        Wilson 1927, doi:10.1080/01621459.1927.10502953. Field and Welsh 2007 (bootstrap of clusters),
        doi:10.1111/j.1467-9868.2007.00593.x. Guo et al. 2017 (calibration error), arXiv:1706.04599.
    """
    labels, n = check_labels(labels), np.size(targets)
    columns = {"names": names, "patients": patients, "sources": sources, "other": other, "status": status}
    columns |= {"reasons": reasons, **{f"groups[{name!r}]": column for name, column in (groups or {}).items()}}
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise ValueError(f"{name} must have one entry for each of the {n} images. Received: {len(column)} entries")
    names = [str(name) for name in names]
    if len(set(names)) != n:
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"names must all be different. Received: {twice!r} more than once")
    if (threshold is None and len(labels) == 2) or (threshold is not None and not 0 <= threshold <= 1):
        raise ValueError(f"threshold must lie in [0, 1]. Received: threshold={threshold!r}")
    if n_bootstrap < 100:
        raise ValueError(f"n_bootstrap must be at least 100. Received: n_bootstrap={n_bootstrap!r}")

    truths = [None] * n if other is None else [label or None for label in other]
    if wrong := sorted({label for label in truths if label in labels}):
        raise ValueError(f"other must name labels that the model does not have. Received: {', '.join(wrong)}")
    own = np.array([label is None for label in truths], bool)
    if not own.any():
        raise ValueError(f"targets must hold an image of {' or '.join(labels)}. Received: images of other labels only")
    y = check_targets(np.where(own, targets, 0), len(labels))
    p = _check_probabilities(probabilities, n, len(labels))
    without = np.isnan(p[:, 0])
    states = ["refused" if x else "ok" for x in without] if status is None else list(status)
    why = [""] * n if reasons is None else [str(reason or "") for reason in reasons]
    for i, state in enumerate(states):
        if state not in ("ok", "refused", "unreadable") or (state == "ok") == without[i]:
            raise ValueError(
                'status must be "ok" for images with probabilities, and "refused" or "unreadable" for the others. '
                f"Received: {state!r} for {names[i]}"
            )

    predicted = np.where(np.isnan(p), -1.0, p).argmax(1)
    if threshold is not None:
        rest = np.where(np.isnan(p), -1.0, p)
        rest[:, 1] = -2
        predicted = np.where(p[:, 1] >= threshold, 1, rest.argmax(1))
    people = [None] * n if patients is None else list(patients)
    known = any(x is not None for x in people)
    everything = _Images(
        labels, y, p, np.where(without, -1, predicted), np.array(states) == "unreadable", clusters(people), known
    )
    ours = everything.take(own)

    def summary(images: _Images) -> Summary:
        return _summarise(images, seed, n_bootstrap)

    whole = summary(ours)
    where = np.array([str(source) for source in sources] if sources is not None else [""] * n)
    by_source = {
        str(source): whole if (where[own] == source).all() else summary(everything.take(own & (where == source)))
        for source in (np.unique(where[own]) if sources is not None else ())
    }
    by_label = {label: summary(ours.against(c)) for c, label in enumerate(labels) if len(labels) > 2}
    cuts, remarks = subgroups.cut(groups or {}, own)
    parts = {
        column: {value: summary(everything.take(mask)) for value, mask in masks.items()}
        for column, masks in subgroups.masks(cuts, own).items()
    }
    by_other = {}
    for label in sorted({label for label in truths if label}):
        these = everything.take(np.array([truth == label for truth in truths])).against(1)
        part = summary(dataclasses.replace(these, y=np.zeros(len(these.y), np.int64)))
        e = part.specificity  # all of them are negative
        called = Estimate(1 - e.value, 1 - e.high, 1 - e.low)
        by_other[label] = Other(part.n, part.n_refused, part.n_unreadable, part.n_patients, called)

    remarks = [*whole.statements, *_unanswered(whole), *remarks, *subgroups.gaps(parts)]
    if len(by_source) > 1:
        remarks.append("The overall figures pool several sources: read them beside those of each source.")
    rows = (
        Row(
            name=names[i],
            truth=truths[i] or labels[y[i]],
            label=None if without[i] else labels[predicted[i]],
            probabilities=tuple(p[i].tolist()),
            status=states[i],
            reasons=why[i],
            patient=people[i],
            source=str(where[i]),
            groups={column: values[i] for column, values in cuts.items()},
        )
        for i in range(n)
    )
    kinds = f"{n_bootstrap} bootstrap resamples of {'patients' if known else 'images'}"
    return Report(
        **{**vars(whole), "statements": tuple(remarks)},
        labels=labels,
        threshold=None if threshold is None else float(threshold),
        predictions=tuple(rows),
        data=data,
        by_source=by_source,
        by_label=by_label,
        by_other=by_other,
        subgroups=parts,
        intervals=f"{kinds}; Wilson's for proportions where no patient has two images",
        seed=seed,
        n_bootstrap=n_bootstrap,
    )


# --- one summary ---


@dataclass(frozen=True, eq=False)
class _Images:
    """Answers to n images: `predicted` is -1 where there is none."""

    labels: tuple[str, ...]
    y: Ints
    p: Floats  # (n, k)
    predicted: Ints
    unreadable: Bools
    persons: Ints
    known: bool  # whether any patient is

    def take(self, mask: Bools) -> _Images:
        columns = ("y", "p", "predicted", "unreadable", "persons")
        return dataclasses.replace(self, **{name: getattr(self, name)[mask] for name in columns})

    def against(self, c: int) -> _Images:
        """One label against the others."""
        return dataclasses.replace(
            self,
            labels=("the others", self.labels[c]),
            y=(self.y == c).astype(np.int64),
            p=np.stack([1 - self.p[:, c], self.p[:, c]], axis=1),
            predicted=np.where(self.predicted < 0, -1, self.predicted == c),
        )


def _summarise(images: _Images, seed: int, n_bootstrap: int) -> Summary:
    k, used, y = len(images.labels), images.predicted >= 0, images.y
    persons = np.unique(images.persons, return_inverse=True)[1]
    statements = [
        f"No image is labelled {label}: what needs one is undefined."
        for c, label in enumerate(images.labels)
        if not (y == c).any()
    ]
    sums = _sums(images)
    measure = _measurer(images, sums)
    value = {name: float(v[0]) for name, v in measure(np.ones((1, len(y)))).items()}
    del value["ece_noise"]
    blocks = [measure(weights) for weights in resamples(persons, n_bootstrap, seed)] if used.any() else []
    drawn = {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())}
    patients, answered = len(np.unique(persons)), len(np.unique(persons[used]))
    behind = _patients_behind(images, sums, persons)

    def estimate(name: str, v: float) -> Estimate:
        samples = drawn.get(name, np.empty(0))
        samples = samples[~np.isnan(samples)]
        top, count = 2.0 if name == "brier" and k > 2 else 1.0, patients if name in WITH_REFUSALS else answered
        if name in _PROPORTIONS and len(sums[name]) == 1 and patients == len(y):  # no patient has two images
            return wilson(*(float(part.sum()) for part in sums[name][0]))
        if math.isnan(v) or count < 2:
            return Estimate(v, math.nan, math.nan)
        if v in (0, top):  # as in every resample; only the calibration error can be 0 by luck, and then they move it
            bounds = [wilson(v / top * base, base) for base in behind[name] if base]
            low, high = np.mean([(bound.low * top, bound.high * top) for bound in bounds], axis=0).tolist()
            few, many = np.quantile([*samples, v], [0.025, 0.975]).tolist()
            return Estimate(v, min(low, few), max(high, many))
        if len(samples) < n_bootstrap / 2:
            return Estimate(v, math.nan, math.nan)
        if name == "ece":  # |estimate - truth| is at most the sum of the bins' errors; noise raises it as it raised v
            low = v - float(np.nanquantile(drawn["ece_noise"], 0.975))
            high = 2 * v - float(np.quantile(samples, 0.025))
            return Estimate(v, max(low, 0.0), max(min(high, 1.0), v))
        return on_logit_scale(v, float(samples.std()) * math.sqrt(count / (count - 1)), top=top)

    estimates = {name: estimate(name, value[name]) for name in NAMES}
    if missing := [NAMES[name][0] for name, e in estimates.items() if math.isnan(e.value)]:
        statements.append(f"Undefined on these images: {', '.join(missing)}.")
    if missing := [NAMES[name][0] for name, e in estimates.items() if math.isnan(e.low) and not math.isnan(e.value)]:
        statements.append(f"Without an interval, because too few patients are behind them: {', '.join(missing)}.")
    return Summary(
        n=len(y),
        n_refused=int((~used & ~images.unreadable).sum()),
        n_unreadable=int(images.unreadable.sum()),
        n_patients=patients if images.known else None,
        confusion_matrix=np.bincount(y[used] * k + images.predicted[used], minlength=k * k).reshape(k, k),
        statements=tuple(statements),
        **estimates,
    )


def _classes(images: _Images) -> Sequence[int]:
    """The classes that a metric is the mean over."""
    return range(len(images.labels)) if len(images.labels) > 2 else (1,)


def _sums(images: _Images) -> dict[str, list[tuple[Floats, Floats]]]:
    """Metrics that are one sum over images by another: the summands (n,) of both, for each class of the mean."""
    y, p, predicted, used = images.y, images.p, images.predicted, images.predicted >= 0
    error = (p[:, 1] - y) ** 2 if p.shape[1] == 2 else ((p - np.eye(p.shape[1])[y]) ** 2).sum(1)
    right, everyone = predicted == y, np.ones(len(y))
    sums: dict[str, list[tuple[Any, Any]]] = {
        "accuracy": [(right, used)],
        "accuracy_with_refusals_wrong": [(right, everyone)],
        "brier": [(np.where(used, error, 0), used)],
    }
    for c in _classes(images):
        true, called = used & (y == c), predicted == c
        hit, rejected = true & called, used & (y != c) & ~called
        for name, a, b in (
            ("precision", hit, called),
            ("recall", hit, true),
            ("specificity", rejected, used & (y != c)),
            ("npv", rejected, used & ~called),
            ("f1", 2.0 * hit, 1.0 * true + called),
            ("sensitivity_with_refusals_missed", hit, y == c),
        ):
            sums.setdefault(name, []).append((a, b))
    return {name: [(a.astype(float), b.astype(float)) for a, b in parts] for name, parts in sums.items()}


def _measurer(images: _Images, sums: dict[str, list[tuple[Floats, Floats]]]) -> Callable[[Floats], dict[str, Floats]]:
    """A function from weights of images (b, n) to every metric (b,). Images are sorted once, here."""
    used = images.predicted >= 0
    p, y = images.p[used], images.y[used]
    stated, outcome = confidence(y, p)
    gaps = np.zeros((len(y), BINS))
    gaps[np.arange(len(y)), bins(stated)] = stated - outcome
    rankings = [Ranking(y == c, p[:, c]) for c in _classes(images)]

    def measure(weights: Floats) -> dict[str, Floats]:
        metrics = {name: _mean([ratio(weights @ a, weights @ b) for a, b in parts]) for name, parts in sums.items()}
        w = weights[:, used]
        total, binned = w.sum(1), w @ gaps  # (b,), (b, bins)
        under = [ranking.areas(w) for ranking in rankings] if len(y) else [(np.full(len(w), np.nan),) * 2]
        return {
            **metrics,
            "auroc": _mean([area for area, _ in under]),
            "average_precision": _mean([area for _, area in under]),
            "ece": ratio(np.abs(binned).sum(1), total),
            "ece_noise": np.abs(ratio(binned, total[:, None]) - gaps.sum(0) / max(len(y), 1)).sum(1),
        }

    return measure


def _patients_behind(images: _Images, sums: Mapping[str, Any], persons: Ints) -> dict[str, list[float]]:
    """How many patients bound each metric where it is 0 or 1, for each class that it is the mean of."""

    def count(mask: Bools) -> int:
        return len(np.unique(persons[mask]))

    behind: dict[str, list[float]] = {name: [count(b > 0) for _, b in parts] for name, parts in sums.items()}
    behind |= {"ece": behind["accuracy"], "auroc": [], "average_precision": []}
    for i, (hit, true) in enumerate(sums["recall"]):
        false = sums["specificity"][i][1]
        pairs = min(count(true > 0), count(false > 0) or count(true > 0))  # that have no image in common
        behind["auroc"].append(pairs)
        behind["average_precision"].append(pairs)
        behind["f1"][i] = pairs if hit.any() else behind["f1"][i] / 2  # F1 is 2 J / (1 + J), J their Jaccard index
    return behind


# --- arrays ---


class Ranking:
    """Images sorted by their scores, once, for any number of resamples.

    Args:
        positive: ndarray of shape (n,), bool: which images are positive.
        scores: ndarray of shape (n,).
    """

    def __init__(self, positive: Bools, scores: Floats) -> None:
        self._order = np.argsort(-scores, kind="stable")
        self._sides = positive[self._order], ~positive[self._order]
        self._starts = np.flatnonzero(np.r_[True, np.diff(scores[self._order]) != 0])  # of the g runs of equal scores

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Count true and false positives at every threshold, from the highest down.

        Args:
            weights: ndarray of shape (b, n): how often each image counts.

        Returns:
            Both counts, (b, g) each.
        """
        w = weights[:, self._order]
        tp, fp = (np.add.reduceat(w * side, self._starts, axis=1).cumsum(1) for side in self._sides)
        return tp, fp

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Measure the areas under the ROC curve and under the precision–recall steps.

        Args:
            weights: As for `counts`.

        Returns:
            AUROC and average precision, (b,) each; `nan` where a class is missing.
        """
        tp, fp = self.counts(weights)
        gained = np.diff(tp, axis=1, prepend=0)  # positives of each run of equal scores
        auroc = ratio((np.diff(fp, axis=1, prepend=0) * (tp - gained / 2)).sum(1), tp[:, -1] * fp[:, -1])
        return auroc, ratio((gained * tp / np.maximum(tp + fp, 1e-300)).sum(1), tp[:, -1])


def ratio(a: Floats, b: Floats) -> Floats:
    """Divide, and give `nan` where there is nothing to divide by.

    Args:
        a: ndarray of any shape.
        b: ndarray of a shape that fits, not negative.

    Returns:
        ndarray of their common shape.
    """
    result: Floats = np.divide(a, b, out=np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), np.nan), where=b > 0)
    return result


def _mean(values: Sequence[Floats]) -> Floats:
    """Mean over the classes, of those that are defined: (b,)."""
    stacked = np.stack(values)
    return ratio(np.nansum(stacked, axis=0), (~np.isnan(stacked)).sum(0).astype(np.float64))


def _unanswered(whole: Summary) -> list[str]:
    numbers = ((whole.n_refused, "refused"), (whole.n_unreadable, "unreadable"))
    what = " and ".join(f"{n:,} {name}" for n, name in numbers if n)
    rule = "without an answer count in no metric but the two that say so"
    return [f"Of {counted(whole.n, 'image')}, {what}. Images {rule}."] if what else []


def _check_probabilities(probabilities: ArrayLike, n: int, k: int) -> Floats:
    p = np.asarray(probabilities, np.float64)
    if p.shape != (n, k):
        wanted = f"one row per image and one column per label: shape ({n}, {k})"
        raise ValueError(f"probabilities must have {wanted}. Received: shape {p.shape}")
    for i in np.flatnonzero(~np.isnan(p).all(1)):
        if not (np.all((p[i] >= 0) & (p[i] <= 1)) and abs(p[i].sum() - 1) <= 1e-3):
            rule = "lie in [0, 1] and add up to 1 in each row, or be nan throughout the row"
            raise ValueError(f"probabilities must {rule}. Received: {p[i].tolist()} in row {i}")
    return p
