"""Thresholds that hold in every source: chosen on validation films, each source counting the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxrlib.config import OperatingPoint

SCREENING_SENSITIVITY = 0.98


def choose(truth: ArrayLike, probability: ArrayLike, sources: Sequence[str]) -> dict[str, OperatingPoint]:
    """Choose the `screening` and the `balanced` operating point.

    Sensitivity and specificity are computed in each source and averaged, so that a large hospital does not decide for a small one. `screening` has the highest
    threshold, hence the highest specificity, at a mean sensitivity of at least 0.98; `balanced` maximises Youden's J, sensitivity + specificity - 1.

    Args:
        truth: ndarray of shape (n,), 1 for positive films and 0 for negative ones.
        probability: ndarray of shape (n,), calibrated probability of the positive class, in [0, 1].
        sources: The n films' sources.

    Returns:
        Both points, with what they achieve on these films.

    Raises:
        ValueError: If shapes differ, or one of the classes is absent.

    References:
        Youden, Index for rating diagnostic tests, 1950, doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3.

    Example:
        >>> points = choose([0, 0, 1, 1], [0.1, 0.3, 0.5, 0.9], ["home"] * 4)
        >>> round(points["screening"].threshold, 3), points["balanced"].specificity
        (0.4, 1.0)
    """
    y, p, where = np.asarray(truth, bool), np.asarray(probability, np.float64), np.asarray(sources)
    if not y.shape == p.shape == where.shape or y.ndim != 1:
        raise ValueError(f"truth, probability and sources must have one entry per film. Received: shapes {y.shape}, {p.shape} and {where.shape}")
    if y.all() or not y.any():
        raise ValueError("operating points need films of both classes")
    candidates = _between(p)
    sensitivity = np.mean([_part_from(p[y & (where == s)], candidates) for s in np.unique(where[y])], axis=0)  # (c,)
    specificity = np.mean([1 - _part_from(p[~y & (where == s)], candidates) for s in np.unique(where[~y])], axis=0)  # (c,)
    enough = np.flatnonzero(sensitivity >= SCREENING_SENSITIVITY)
    chosen = {"screening": int(enough[-1]), "balanced": int(np.argmax(sensitivity + specificity))}
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

    Example:
        >>> measure([0, 1], [0.2, 0.8], ["home"] * 2, 0.5).by_source
        {'home': (1.0, 1.0)}
    """
    y, called, where = np.asarray(truth, bool), np.asarray(probability) >= threshold, np.asarray(sources)

    def rates(mask: NDArray[np.bool_]) -> tuple[float, float]:
        sick, healthy = called[mask & y], called[mask & ~y]
        return (float(sick.mean()) if sick.size else -1.0, float(1 - healthy.mean()) if healthy.size else -1.0)

    by_source = {str(s): rates(where == s) for s in np.unique(where)}
    return OperatingPoint(threshold, *rates(np.ones(len(y), bool)), by_source)


def _between(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds halfway between neighbouring probabilities, ascending, and one at either end: (c,)."""
    values = np.unique(p)
    return np.concatenate([values[:1] / 2, (values[:-1] + values[1:]) / 2, [(values[-1] + 1) / 2]])


def _part_from(p: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part of the films at or above each threshold: (c,)."""
    part: NDArray[np.float64] = 1 - np.searchsorted(np.sort(p), thresholds, side="left") / len(p)
    return part
