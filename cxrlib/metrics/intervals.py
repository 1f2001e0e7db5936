"""Estimates with 95 % intervals: Wilson's, and those of patients drawn again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `nan` stands for what the data leaves undefined.

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
            raise ValueError(
                f"an interval must hold its value. Received: value={self.value!r}, low={self.low!r}, high={self.high!r}"
            )

    def __str__(self) -> str:
        return f"{self.number} ({self.interval})" if self.interval else self.number

    @property
    def number(self) -> str:
        """The value in words: three decimals, or `undefined`."""
        return "undefined" if math.isnan(self.value) else f"{self.value:.3f}"

    @property
    def interval(self) -> str:
        """The interval in words; empty where the value is undefined."""
        if math.isnan(self.value):
            return ""
        return "no interval" if math.isnan(self.low) else f"{self.low:.3f}–{self.high:.3f}"


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


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
        return UNDEFINED
    rate, z2 = successes / total, Z * Z
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total * total))
    return Estimate(rate, min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate))


def on_logit_scale(value: float, error: float, *, top: float = 1.0) -> Estimate:
    """Estimate a value from its standard error, with an interval that is symmetric on the logit scale.

    Args:
        value: Inside (0, top).
        error: Its standard error; 0 leaves it without an interval.
        top: The largest value that there can be.

    Returns:
        The value with its interval.

    Example:
        >>> print(on_logit_scale(0.97, 0.01))
        0.970 (0.943–0.984)
    """
    if error < 1e-12:
        return Estimate(value, math.nan, math.nan)
    logit, half = math.log(value / (top - value)), Z * error * top / (value * (top - value))
    return Estimate(value, top / (1 + math.exp(min(half - logit, 700))), top / (1 + math.exp(max(-half - logit, -700))))


def difference(a: Estimate, b: Estimate, *, comparisons: int = 1) -> Estimate:
    """Estimate how much larger one value is than another of other patients.

    Args:
        a: One estimate.
        b: The other.
        comparisons: How many pairs this one was picked from: the interval holds 95 % for all of them (Bonferroni).

    Returns:
        `a` less `b`; an interval without 0 is a difference. Without an interval where one of them has none.

    Example:
        >>> print(difference(wilson(90, 100), wilson(70, 100)))
        0.200 (0.090–0.306)

    References:
        Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.
    """
    wider = NormalDist().inv_cdf(1 - 0.025 / comparisons) / Z
    value = a.value - b.value
    down, up = math.hypot(a.value - a.low, b.high - b.value), math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, value - wider * down, value + wider * up)


def clusters(patients: Sequence[str | None]) -> Ints:
    """Number the patients.

    Args:
        patients: The patient of each image; an image of an unknown patient, `None`, is its own patient's.

    Returns:
        ndarray of shape (n,), int64: the number of each image's patient, from 0.

    Example:
        >>> clusters(["ann", "bob", "ann", None]).tolist()
        [1, 2, 1, 0]
    """
    named = [f"f{i}" if patient is None else f"p{patient}" for i, patient in enumerate(patients)]
    return np.unique(named, return_inverse=True)[1]


def resamples(patients: Ints, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """Draw patients with replacement, all images of each together.

    Args:
        patients: ndarray of shape (n,), int64: the number of each image's patient, from 0.
        n_bootstrap: Number of resamples.
        seed: Of the draws.

    Yields:
        Blocks of resamples, (b, n) float64: how often each image is drawn.

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
