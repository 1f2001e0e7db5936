"""Calibration: temperature scaling, and the bins that the calibration error is measured in."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from cxrlib.metrics.intervals import Bools, Floats, Ints

BINS = 15  # of the calibration error and the reliability diagram: equally wide, as in Guo et al. 2017


def fit_temperature(logits: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Find the divisor of the logits that gives the least negative log-likelihood.

    Args:
        logits: ndarray of shape (n,), the logit of the positive class, or (n, k), one per class before softmax.
        targets: ndarray of shape (n,), integers: the index of each image's true label.
        weights: ndarray of shape (n,), not negative: how much each image counts; all alike by default.

    Returns:
        The temperature, in [0.05, 20]; above 1 the network was overconfident. The nearer end where no inner value is
        best: for classes that are perfectly separated, or a ranking worse than chance.

    Raises:
        ValueError: If shapes do not fit, a logit is not finite, a weight is negative, or only one class is present.

    Example:
        >>> round(fit_temperature([-4.0, -4.0, -4.0, 4.0, 4.0, 4.0, -4.0, 4.0], [0, 0, 0, 1, 1, 1, 1, 0]), 3)
        3.641

    References:
        Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599.
    """
    z = np.asarray(logits, np.float64)
    z = np.stack([np.zeros_like(z), z], axis=1) if z.ndim == 1 else z  # (n, k): one logit against 0 is a softmax of two
    if z.ndim != 2 or z.shape[1] < 2 or np.shape(targets) != z.shape[:1] or not np.isfinite(z).all():
        shapes = f"logits of shape {np.shape(logits)}, targets of shape {np.shape(targets)}"
        raise ValueError(f"logits must be finite, of shape (n,) or (n, k), with n targets. Received: {shapes}")
    y = check_targets(targets, z.shape[1])
    if len(np.unique(y)) < 2:
        raise ValueError("a temperature needs images of at least two classes. Received: images of one class")
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    if w.shape != y.shape or not (w >= 0).all() or not 0 < w.sum() < np.inf:
        received = f"shape {w.shape}, from {w.min(initial=0):g}"
        raise ValueError(f"weights must not be negative, one per image. Received: {received}")
    z = z - z.max(axis=1, keepdims=True)
    of_target = np.average(np.take_along_axis(z, y[:, None], axis=1)[:, 0], weights=w)

    def slope(beta: float) -> float:  # of the mean negative log-likelihood, convex in beta = 1 / temperature
        e = np.exp(beta * z)
        return float(np.average((e * z).sum(1) / e.sum(1), weights=w) - of_target)

    low, high = math.log(1 / 20), math.log(20)  # of beta
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def calibrate(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide logits by a temperature.

    Args:
        probabilities: ndarray of shape (n, k), raw, in [0, 1], rows adding up to 1.
        temperature: Positive; above 1 makes probabilities less extreme.

    Returns:
        ndarray of shape (n, k), float64.

    Example:
        >>> calibrate(np.array([[0.1, 0.9]]), 2.0).round(2).tolist()
        [[0.25, 0.75]]

    References:
        Guo et al. 2017, arXiv:1706.04599.
    """
    some = np.maximum(probabilities, 1e-12, dtype=np.float64)
    powers = (some / some.max(1, keepdims=True)) ** (1 / temperature)  # the largest is 1, whatever the temperature
    calibrated: np.ndarray = powers / powers.sum(1, keepdims=True)
    return calibrated


def confidence(targets: Ints, probabilities: Floats) -> tuple[Floats, Bools]:
    """Give the probability that calibration is measured of: the second label's of two, else the most probable label's.

    Args:
        targets: ndarray of shape (n,), int64: the index of each image's true label.
        probabilities: ndarray of shape (n, k), float64 in [0, 1].

    Returns:
        The probability, and whether that label was true, (n,) each.

    Example:
        >>> [part.tolist() for part in confidence(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]))]
        [[0.1, 0.8], [False, True]]
    """
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], targets == 1
    return probabilities.max(1, initial=0), probabilities.argmax(1) == targets


def bins(confidence: Floats) -> Ints:
    """Sort probabilities into bins.

    Args:
        confidence: ndarray of shape (n,), float64 in [0, 1].

    Returns:
        ndarray of shape (n,), int64 below `BINS`.

    Example:
        >>> bins(np.array([0.0, 0.5, 1.0])).tolist()
        [0, 7, 14]
    """
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def check_targets(targets: ArrayLike, k: int) -> Ints:
    """Check targets.

    Args:
        targets: ndarray of shape (n,), integers: the index of each image's true label.
        k: Number of labels.

    Returns:
        The same as int64.

    Raises:
        ValueError: If there are none, or one is not the index of a label.

    Example:
        >>> check_targets([0, 1], 2).tolist()
        [0, 1]
    """
    y = np.asarray(targets)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or y.size == 0 or y.min() < 0 or y.max() >= k:
        received = f"{np.array2string(y, threshold=8)} of type {y.dtype}"
        raise ValueError(f"targets must hold integers in [0, {k - 1}], in one dimension. Received: {received}")
    return y.astype(np.int64)
