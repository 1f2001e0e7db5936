"""Thresholds that are to hold elsewhere: chosen on the validation films of all sources at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxrlib.config import OperatingPoint

SCREENING_SENSITIVITY = 0.98
_HALF = 50  # films of the rarer class of a source that counts half as far as one with any number of them


def choose(
    truth: ArrayLike, probability: ArrayLike, sources: Sequence[str], trust: Mapping[str, float] | None = None
) -> dict[str, OperatingPoint]:
    """Choose the `screening` and the `balanced` operating point.

    `screening` has the highest specificity at a sensitivity of at least 0.98, all films counting alike, and is the lowest threshold that has it.

    `balanced` maximises Youden's J, sensitivity + specificity - 1, in the mean of the sources, so that none is sacrificed to a larger one. A source counts as
    far as its labels are believed, and with m films of its rarer class by a part of m / (m + 50), so that a handful of films decides nothing; one without films
    of both classes not at all; where no source counts, all films are taken for one source's. J is that of distributions smoothed by kernels: the maximum of the
    counts themselves is often one of many nearly as high, and which one it is depends on a few films.

    Args:
        truth: ndarray of shape (n,), 1 for positive films and 0 for negative ones.
        probability: ndarray of shape (n,), calibrated probability of the positive class, in [0, 1].
        sources: The n films' sources.
        trust: By source, how far its labels are believed, not negative; all alike by default.

    Returns:
        Both points, with what they achieve on these films.

    Raises:
        ValueError: If shapes differ, a probability is none, one of the classes is absent, or `trust` is negative or lacks a source.

    References:
        Youden, Index for rating diagnostic tests, 1950, doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3. With kernels: Fluss, Faraggi and
        Reiser, Estimation of the Youden index and its associated cutoff point, 2005, doi:10.1002/bimj.200410135.

    Example:
        >>> points = choose([0, 0, 1, 1], [0.1, 0.3, 0.5, 0.9], ["home"] * 4)
        >>> round(points["screening"].threshold, 3), points["balanced"].specificity
        (0.4, 1.0)
    """
    y, p, where = _columns(truth, probability, sources)
    if not ((p >= 0) & (p <= 1)).all():  # nan is not, either
        raise ValueError(f"probability must lie in [0, 1]. Received: from {p.min():g} to {p.max():g}")
    if y.all() or not y.any():
        raise ValueError("operating points need films of both classes")
    names = np.unique(where).tolist()
    trusted = dict.fromkeys(names, 1.0) if trust is None else trust
    if not all(0 <= trusted.get(name, -1) < math.inf for name in names):
        raise ValueError(f"trust must be a number from 0 for each of {', '.join(names)}. Received: {dict(trusted)}")
    candidates = _between(p)
    enough = np.flatnonzero(_part_from(p[y], candidates) >= SCREENING_SENSITIVITY - 1e-9)
    alarms = _part_from(p[~y], candidates[enough])
    best = _best_logit(y, _logit(p), where, trusted)
    chosen = {
        "screening": int(enough[alarms == alarms[-1]][0]),
        "balanced": int(np.argmin(np.abs(_logit(candidates) - best))),
    }
    return {name: measure(y, p, sources, float(candidates[i])) for name, i in chosen.items()}


def measure(truth: ArrayLike, probability: ArrayLike, sources: Sequence[str], threshold: float) -> OperatingPoint:
    """Say what a threshold achieves on some films.

    Args:
        truth: As for `choose`.
        probability: As for `choose`.
        sources: As for `choose`.
        threshold: From which on a film is called positive.

    Returns:
        The operating point, with the figures of all films and of each source.

    Raises:
        ValueError: If shapes differ, or the threshold lies outside [0, 1].

    Example:
        >>> measure([0, 1], [0.2, 0.8], ["home"] * 2, 0.5).by_source
        {'home': (1.0, 1.0)}
    """
    y, p, where = _columns(truth, probability, sources)
    called = p >= threshold

    def rates(mask: NDArray[np.bool_]) -> tuple[float, float]:
        sick, healthy = called[mask & y], called[mask & ~y]
        return (float(sick.mean()) if sick.size else -1.0, float(1 - healthy.mean()) if healthy.size else -1.0)

    by_source = {str(s): rates(where == s) for s in np.unique(where)}
    return OperatingPoint(threshold, *rates(np.ones(len(y), bool)), by_source)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Say what answers are worth where another part of the films is positive than in the films that a point was measured on.

    Args:
        sensitivity: Part of the positive films called positive, in [0, 1].
        specificity: Part of the negative films called negative, in [0, 1].
        prevalence: Part of the films that are positive, in [0, 1].

    Returns:
        The positive and the negative predictive value: part of the positive answers, and of the negative answers, that are right; `nan` where there are none.

    Raises:
        ValueError: If a value is no part of a whole.

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
    rejections, false_alarms = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
    nothing = float("nan")
    return (
        hits / (hits + false_alarms) if hits + false_alarms else nothing,
        rejections / (rejections + misses) if rejections + misses else nothing,
    )


def _columns(
    truth: ArrayLike, probability: ArrayLike, sources: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.str_]]:
    y, p, where = np.asarray(truth, bool), np.asarray(probability, np.float64), np.asarray(sources, np.str_)
    if not y.shape == p.shape == where.shape or y.ndim != 1:
        raise ValueError(
            f"truth, probability and sources must have one entry per film. Received: shapes {y.shape}, {p.shape} and {where.shape}"
        )
    return y, p, where


def _between(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds halfway between neighbouring probabilities, ascending, and one at either end: (c,)."""
    values = np.unique(p)
    return np.concatenate([values[:1] / 2, (values[:-1] + values[1:]) / 2, [(values[-1] + 1) / 2]])


def _part_from(p: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part of the films at or above each threshold: (c,)."""
    part: NDArray[np.float64] = 1 - np.searchsorted(np.sort(p), thresholds, side="left") / len(p)
    return part


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def _best_logit(
    y: NDArray[np.bool_], logits: NDArray[np.float64], where: NDArray[np.str_], trust: Mapping[str, float]
) -> float:
    """The logit with the largest smoothed Youden index in the mean of the sources, weighted as `choose` says."""
    counted = {}
    for name in np.unique(where).tolist():
        mine = where == name
        rarer = min(int(y[mine].sum()), int((~y[mine]).sum()))
        if weight := trust[name] * rarer / (rarer + _HALF):
            counted[name] = weight, logits[mine & y], logits[mine & ~y]
    weighted = list(counted.values()) or [(1.0, logits[y], logits[~y])]
    places = np.linspace(logits.min(), logits.max(), 1001)
    gain = sum(
        (weight * (_below(healthy, places) - _below(sick, places)) for weight, sick, healthy in weighted),
        np.zeros(len(places)),
    )
    return float(places[gain > gain.max() - 1e-9].mean())  # the middle of where nothing lies between the classes


def _below(logits: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of the logits that lies below each place, smoothed by logistic kernels with Silverman's bandwidth."""
    quartiles = np.quantile(logits, [0.25, 0.75])
    deviation = 0.9 * min(logits.std(), float(np.ptp(quartiles)) / 1.34) * len(logits) ** -0.2
    scale = 2 * max(deviation * math.sqrt(3) / math.pi, 1e-3)
    return np.array([0.5 + 0.5 * np.tanh((place - logits) / scale).mean() for place in places])
