"""Films drawn again: bootstrap resamples of patients as weights of films, and what a ranking is worth under weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def clusters(patients: Sequence[str | None]) -> Ints:
    """Number the patients whose films are drawn together.

    Args:
        patients: The n films' patients; a film of an unknown one, `None`, is its own patient.

    Returns:
        ndarray of shape (n,), int64: each film's patient, from 0.

    Example:
        >>> clusters(["ann", "bob", "ann", None]).tolist()
        [1, 2, 1, 0]
    """
    return np.unique(
        [f"f{i}" if patient is None else f"p{patient}" for i, patient in enumerate(patients)], return_inverse=True
    )[1]


def resamples(patients: Ints, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """Draw patients with replacement, all films of each together.

    Args:
        patients: ndarray of shape (n,), int64: each film's patient, from 0.
        n_bootstrap: Number of resamples.
        seed: Of the draws.

    Yields:
        Blocks of resamples, (b, n) float64: how often each film is drawn.

    Example:
        >>> sum(len(block) for block in resamples(np.array([0, 0, 1]), 200, seed=0))
        200

    References:
        Field and Welsh 2007 (bootstrap of clusters), doi:10.1111/j.1467-9868.2007.00593.x.
    """
    rng = np.random.default_rng(seed)
    m, n = int(patients.max()) + 1, len(patients)
    size = max(1, 50_000 // n)  # 0.4 MB a block: what stays in the cache is several times faster
    for start in range(0, n_bootstrap, size):
        b = min(size, n_bootstrap - start)
        drawn = rng.integers(0, m, (b, m)) + m * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * m).reshape(b, m)[:, patients].astype(np.float64)


def rank(score: Floats) -> tuple[Ints, Ints]:
    """Sort films by their scores.

    Args:
        score: ndarray of shape (n,).

    Returns:
        The order of descending scores, (n,), and where each of the g runs of equal scores starts in it, (g,).

    Example:
        >>> [part.tolist() for part in rank(np.array([0.2, 0.9, 0.2]))]
        [[1, 0, 2], [0, 1]]
    """
    order = np.argsort(-score, kind="stable")
    return order, np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])


def cumulate(weights: Floats, positive: Bools, order: Ints, starts: Ints) -> tuple[Floats, Floats]:
    """Count true and false positives at every threshold, from the highest down.

    Args:
        weights: ndarray of shape (b, n): how often each film counts.
        positive: ndarray of shape (n,): which films are.
        order: As `rank` gives it.
        starts: As `rank` gives it.

    Returns:
        Both counts, (b, g) each.

    Example:
        >>> scores, positive = np.array([0.2, 0.9, 0.4]), np.array([False, True, True])
        >>> [counts.tolist() for counts in cumulate(np.ones((1, 3)), positive, *rank(scores))]
        [[[1.0, 2.0, 2.0]], [[0.0, 0.0, 1.0]]]
    """
    w = weights[:, order]
    both = [np.add.reduceat(w * side[order], starts, axis=1).cumsum(1) for side in (positive, ~positive)]
    return both[0], both[1]


def areas(weights: Floats, positive: Bools, order: Ints, starts: Ints) -> tuple[Floats, Floats]:
    """Measure the areas under the ROC curve and under the precision–recall steps.

    Args:
        weights: As for `cumulate`.
        positive: As for `cumulate`.
        order: As for `cumulate`.
        starts: As for `cumulate`.

    Returns:
        AUROC and average precision, (b,) each; `nan` where a class is missing.

    Example:
        >>> scores, positive = np.array([0.2, 0.9, 0.4]), np.array([False, True, True])
        >>> [area.tolist() for area in areas(np.ones((1, 3)), positive, *rank(scores))]
        [[1.0], [1.0]]
    """
    tp, fp = cumulate(weights, positive, order, starts)
    gained = np.diff(tp, axis=1, prepend=0)  # positives of each run of equal scores
    auroc = ratio((np.diff(fp, axis=1, prepend=0) * (tp - gained / 2)).sum(1), tp[:, -1] * fp[:, -1])
    return auroc, ratio((gained * tp / np.maximum(tp + fp, 1)).sum(1), tp[:, -1])


def ratio(a: Floats, b: Floats) -> Floats:
    """Divide, and give `nan` where there is nothing to divide by.

    Args:
        a: ndarray of any shape.
        b: ndarray of a shape that fits, not negative.

    Returns:
        ndarray of their common shape.

    Example:
        >>> ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist()
        [0.5, nan]
    """
    result: Floats = np.divide(a, b, out=np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), np.nan), where=b > 0)
    return result
