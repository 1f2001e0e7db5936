"""Two models on the same images: is the difference more than chance?"""

from __future__ import annotations

import math

import numpy as np

from cxrlib.metrics.intervals import Bools, Estimate, Floats, Ints, Z, clusters
from cxrlib.metrics.report import Report, counted


def compare(a: Report, b: Report) -> Estimate:
    """Estimate how much larger the AUROC of one model is than that of another on the same images.

    Args:
        a: Report of the first model.
        b: Report of the second, on the same images in any order. Images that either did not answer are left out.

    Returns:
        AUROC of `a` less AUROC of `b` with DeLong's 95 % interval, patients kept together where they are known; an
        interval without 0 is a difference.

    Raises:
        ValueError: If the images, their labels or the models' labels differ, or the common images are of one class.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> def report(p):
        ...     probabilities = [[1 - x, x] for x in p]
        ...     return make_report([0, 0, 1, 1], probabilities, labels=("NO", "YES"), threshold=0.5, names="abcd")
        >>> compare(report([0.1, 0.2, 0.8, 0.9]), report([0.1, 0.8, 0.2, 0.9])).value
        0.25

    References:
        DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595. Obuchowski 1997 (clustered data),
        doi:10.2307/2533958.
    """
    truths = [{row.name: row.truth for row in report.predictions} for report in (a, b)]
    if a.labels != b.labels or not a.predictions or truths[0] != truths[1]:
        received = " and ".join(f"{counted(len(r.predictions), 'image')} of {', '.join(r.labels)}" for r in (a, b))
        raise ValueError(
            f"both reports must hold predictions of the same images with the same labels. Received: {received}"
        )
    others = {row.name: row for row in b.predictions}
    pairs = [(row, others[row.name]) for row in a.predictions if row.truth in a.labels]
    pairs = [(mine, other) for mine, other in pairs if mine.label is not None and other.label is not None]
    y = np.array([a.labels.index(mine.truth) for mine, _ in pairs], np.int64)
    if len(np.unique(y)) < 2:
        received = f"{counted(len(pairs), 'image')} of {len(np.unique(y))} classes"
        raise ValueError(
            f"a comparison needs images of at least two classes that both models answered. Received: {received}"
        )
    patients = clusters([mine.patient for mine, _ in pairs])
    total, influence = 0.0, np.zeros(len(pairs))
    classes = [c for c in (range(len(a.labels)) if len(a.labels) > 2 else (1,)) if (y == c).any()]
    for c in classes:
        for sign, side in ((1, 0), (-1, 1)):
            area, change = _delong(y == c, np.array([pair[side].probabilities[c] for pair in pairs]), patients)
            total += sign * area / len(classes)
            influence += sign * change / len(classes)
    half = Z * math.sqrt(float((np.bincount(patients, influence) ** 2).sum()))
    return Estimate(total, total - half, total + half)


def _delong(positive: Bools, score: Floats, patients: Ints) -> tuple[float, Floats]:
    """AUROC and each image's influence on it: the squares of their sums over patients add up to the variance."""
    above, below = np.sort(score[positive]), np.sort(score[~positive])

    def under(scores: Floats, of: Floats) -> Floats:
        """Share of the other class that lies below each score; ties count half."""
        return (np.searchsorted(of, scores, "left") + np.searchsorted(of, scores, "right")) / (2 * len(of))

    v = np.empty(len(score))  # structural components
    v[positive], v[~positive] = under(score[positive], below), 1 - under(score[~positive], above)
    area = float(v[positive].mean())
    influence = v - area
    for side in (positive, ~positive):
        c = len(np.unique(patients[side]))
        influence[side] *= math.sqrt(c / (c - 1)) / side.sum() if c > 1 else 1 / side.sum()
    return area, influence
