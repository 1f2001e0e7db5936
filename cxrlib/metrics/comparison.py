"""Two models on the same films: is the difference more than chance?"""

from __future__ import annotations

import math

import numpy as np

from cxrlib.metrics.intervals import Estimate, Z
from cxrlib.metrics.report import Report
from cxrlib.metrics.resampling import Bools, Floats, Ints, clusters


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
        >>> from cxrlib.metrics.compute import make_report
        >>> def report(p):
        ...     return make_report([0, 0, 1, 1], [[1 - x, x] for x in p], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd")
        >>> compare(report([0.1, 0.2, 0.8, 0.9]), report([0.1, 0.8, 0.2, 0.9])).value
        0.25

    References:
        DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595. Obuchowski 1997 (clustered data), doi:10.2307/2533958.
    """
    others = {row.name: row for row in b.predictions}
    if (
        a.labels != b.labels
        or not a.predictions
        or {r.name: r.truth for r in a.predictions} != {r.name: r.truth for r in b.predictions}
    ):
        raise ValueError(
            f"both reports must hold the predictions of the same films with the same truths and labels. Received: {_short(a)} and {_short(b)}"
        )
    rows = [row for row in a.predictions if row.label is not None and others[row.name].label is not None]
    y = np.array([a.labels.index(row.truth) for row in rows], np.int64)
    if len(np.unique(y)) < 2:
        raise ValueError(
            f"a comparison needs films of at least two classes that neither model refused. Received: {len(rows)} films of {len(np.unique(y))} classes"
        )
    patients = clusters([row.patient for row in rows])
    total, influence = 0.0, np.zeros(len(rows))
    classes = [c for c in (range(len(a.labels)) if len(a.labels) > 2 else (1,)) if (y == c).any()]
    for c in classes:
        positive = y == c
        for sign, scored in ((1, rows), (-1, [others[row.name] for row in rows])):
            area, change = _delong(positive, np.array([row.probabilities[c] for row in scored]), patients)
            total += sign * area / len(classes)
            influence += sign * change / len(classes)
    half = Z * math.sqrt(float((np.bincount(patients, influence) ** 2).sum()))
    return Estimate(total, total - half, total + half)


def _delong(positive: Bools, score: Floats, patients: Ints) -> tuple[float, Floats]:
    """AUROC and each film's influence on it: the squares of their sums over patients add up to the variance, DeLong's when each film is its own patient's."""
    above, below = np.sort(score[positive]), np.sort(score[~positive])
    v = np.empty(
        len(score)
    )  # structural components: the part of the other class that each film is rightly ordered against
    v[positive] = (
        np.searchsorted(below, score[positive], "left") + np.searchsorted(below, score[positive], "right")
    ) / (2 * len(below))
    v[~positive] = 1 - (
        np.searchsorted(above, score[~positive], "left") + np.searchsorted(above, score[~positive], "right")
    ) / (2 * len(above))
    area = float(v[positive].mean())
    influence = v - area
    for side in (positive, ~positive):
        c = len(np.unique(patients[side]))
        influence[side] *= math.sqrt(c / (c - 1)) / side.sum() if c > 1 else 1 / side.sum()
    return area, influence


def _short(report: Report) -> str:
    return f"{len(report.predictions)} films of {', '.join(report.labels)}"
