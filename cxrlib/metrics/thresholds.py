"""Operating points: thresholds that must hold in the worst hospital, not on average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cxrlib.config import OperatingPoint
from cxrlib.metrics.intervals import Bools, Floats, clusters

SENSITIVITY = 0.97  # of `screening`, in the worst source
SPECIFICITY = 0.95  # of `specific`, in the worst source
COST = 2.0  # of a missed positive image, in false alarms, for `balanced`
ENOUGH = 50  # patients of a class that a source needs to count by itself


def choose(
    targets: ArrayLike,
    probability: ArrayLike,
    sources: Sequence[str],
    patients: Sequence[str | None] | None = None,
) -> dict[str, OperatingPoint]:
    """Choose the operating points `balanced`, `screening` and `specific`.

    `balanced` makes the larger of two errors as small as possible: twice the share of positive images missed in the
    source where most are missed, since that is the costly error, and the share of false alarms in the source where most
    are raised. `screening` is the largest
    threshold with a sensitivity of at least 0.97 in the worst source, and `specific` the smallest with a specificity of
    at least 0.95 in the worst source; the highest threshold there is where none has it.

    The worst is taken of all images together and of every source with at least 50 patients of the class. The shares of
    `balanced` are smoothed, so that a few images do not move it. Of thresholds with the same false alarms, `screening`
    takes the lowest; it is never above `balanced`, and `specific` never below.

    Args:
        targets: ndarray of shape (n,), 1 for positive images and 0 for all others. With three or more labels:
            `targets == positive`.
        probability: ndarray of shape (n,), calibrated probability of the positive class, in [0, 1].
        sources: The source of each image.
        patients: The patient of each image; `None` where unknown: such an image counts as one patient.

    Returns:
        The points, with what they achieve on these images.

    Raises:
        ValueError: If lengths differ, a probability is not in [0, 1], or a class is absent.

    References:
        Smoothing: Fluss, Faraggi and Reiser 2005, doi:10.1002/bimj.200410135 (there for Youden's index).

    Example:
        >>> points = choose([0, 0, 1, 1], [0.1, 0.3, 0.5, 0.9], ["home"] * 4)
        >>> [(name, round(point.threshold, 1)) for name, point in points.items()]
        [('balanced', 0.4), ('screening', 0.4), ('specific', 0.4)]
    """
    y, p, where = _columns(targets, probability, sources)
    if not ((p >= 0) & (p <= 1)).all():  # nan does not, either
        raise ValueError(f"probability must lie in [0, 1]. Received: from {p.min():g} to {p.max():g}")
    if y.all() or not y.any():
        raise ValueError("operating points need images of both classes")
    persons = clusters([None] * len(y) if patients is None else patients)
    if len(persons) != len(y):
        raise ValueError(f"patients must have one entry per image. Received: {len(persons)} for {len(y)} images")
    groups = [np.ones(len(y), bool), *(where == source for source in np.unique(where))]

    def of_groups(of_class: Bools) -> list[Floats]:
        """The probabilities of all images of a class, and of those of each source with enough patients."""
        parts = [group & of_class for group in groups]
        return [p[part] for i, part in enumerate(parts) if i == 0 or len(np.unique(persons[part])) >= ENOUGH]

    positive, negative = of_groups(y), of_groups(~y)
    places = np.linspace(_logit(p).min(), _logit(p).max(), 1001)
    missed = np.max([_below(_logit(part), places) for part in positive], axis=0)  # rises with the threshold
    alarms = 1 - np.min([_below(_logit(part), places) for part in negative], axis=0)  # falls
    worse = np.maximum(COST * missed, alarms)
    best = float(places[worse < worse.min() + 1e-9].mean())  # the middle of where it makes no difference

    values = np.unique(p)
    candidates = np.concatenate([values[:1] / 2, (values[:-1] + values[1:]) / 2, [(values[-1] + 1) / 2]])  # between
    sensitivity = np.min([_share_from(part, candidates) for part in positive], axis=0)  # falls
    specificity = 1 - np.max([_share_from(part, candidates) for part in negative], axis=0)  # rises
    called = _share_from(negative[0], candidates)
    sensitive = int(np.flatnonzero(sensitivity >= SENSITIVITY - 1e-9)[-1])
    balanced = int(np.argmin(np.abs(_logit(candidates) - best)))
    chosen = {
        "balanced": balanced,
        "screening": min(balanced, int(np.flatnonzero(called == called[sensitive])[0])),
        "specific": max(balanced, int([*np.flatnonzero(specificity >= SPECIFICITY - 1e-9), len(candidates) - 1][0])),
    }
    return {name: measure(y, p, sources, float(candidates[i])) for name, i in chosen.items()}


def measure(targets: ArrayLike, probability: ArrayLike, sources: Sequence[str], threshold: float) -> OperatingPoint:
    """Say what a threshold achieves on some images.

    Args:
        targets: As for `choose`.
        probability: As for `choose`.
        sources: As for `choose`.
        threshold: From which on an image is called positive.

    Returns:
        The operating point, with the figures of all images and of each source.

    Raises:
        ValueError: If lengths differ, or the threshold lies outside [0, 1].

    Example:
        >>> measure([0, 1], [0.2, 0.8], ["home"] * 2, 0.5).by_source
        {'home': (1.0, 1.0)}
    """
    y, p, where = _columns(targets, probability, sources)
    called = p >= threshold

    def rates(mask: Bools) -> tuple[float, float]:
        positive, negative = called[mask & y], called[mask & ~y]
        return (
            float(positive.mean()) if positive.size else -1.0,
            float(1 - negative.mean()) if negative.size else -1.0,
        )

    by_source = {str(source): rates(where == source) for source in np.unique(where)}
    return OperatingPoint(threshold, *rates(np.ones(len(y), bool)), by_source)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Give the predictive values at another prevalence than that of the images a point was measured on.

    Args:
        sensitivity: Share of the positive images called positive, in [0, 1].
        specificity: Share of the negative images called negative, in [0, 1].
        prevalence: Share of the images that are positive, in [0, 1].

    Returns:
        The positive and the negative predictive value: the share of positive answers, and of negative answers, that are
        right; `nan` where there are none.

    Raises:
        ValueError: If a value lies outside [0, 1].

    References:
        Altman and Bland, Diagnostic tests 2: predictive values, 1994, doi:10.1136/bmj.309.6947.102.

    Example:
        >>> [round(value, 3) for value in predictive_values(0.95, 0.9, 0.02)]
        [0.162, 0.999]
    """
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity), ("prevalence", prevalence)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1]. Received: {name}={value!r}")
    hits, misses = sensitivity * prevalence, (1 - sensitivity) * prevalence
    rejections, alarms = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
    ppv = hits / (hits + alarms) if hits + alarms else math.nan
    return ppv, rejections / (rejections + misses) if rejections + misses else math.nan


def _columns(targets: ArrayLike, probability: ArrayLike, sources: Sequence[str]) -> tuple[Bools, Floats, np.ndarray]:
    y, p, where = np.asarray(targets, bool), np.asarray(probability, np.float64), np.asarray(sources, np.str_)
    if not y.shape == p.shape == where.shape or y.ndim != 1:
        shapes = f"shapes {y.shape}, {p.shape} and {where.shape}"
        raise ValueError(f"targets, probability and sources must have one entry per image. Received: {shapes}")
    return y, p, where


def _logit(p: Floats) -> Floats:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def _share_from(p: Floats, thresholds: Floats) -> Floats:
    """Share of the images at or above each threshold: (c,)."""
    share: Floats = 1 - np.searchsorted(np.sort(p), thresholds, side="left") / len(p)
    return share


def _below(logits: Floats, places: Floats) -> Floats:
    """Share of the images below each place, smoothed by logistic kernels with Silverman's bandwidth."""
    quartiles = np.quantile(logits, [0.25, 0.75])
    deviation = 0.9 * min(logits.std(), float(np.ptp(quartiles)) / 1.34) * len(logits) ** -0.2
    scale = 2 * max(deviation * math.sqrt(3) / math.pi, 1e-3)
    return np.array([0.5 + 0.5 * np.tanh((place - logits) / scale).mean() for place in places])
