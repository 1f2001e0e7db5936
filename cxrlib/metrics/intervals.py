"""A figure and how sure it is: 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `nan` stands for what the data leave undefined.

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
        if math.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f} " + ("(no interval)" if math.isnan(self.low) else f"({self.low:.3f}–{self.high:.3f})")


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


def on_logit_scale(value: float, error: float, *, top: float) -> Estimate:
    """Estimate a value from its standard error, with an interval that is symmetric on the logit scale, so lopsided near either end.

    Args:
        value: Inside (0, top).
        error: Its standard error; 0 leaves it without an interval.
        top: The largest value that there can be.

    Returns:
        The value with its interval.

    Example:
        >>> print(on_logit_scale(0.97, 0.01, top=1.0))
        0.970 (0.943–0.984)
    """
    if error < 1e-12:
        return Estimate(value, math.nan, math.nan)
    logit, half = math.log(value / (top - value)), Z * error * top / (value * (top - value))
    return Estimate(value, top / (1 + math.exp(min(half - logit, 700))), top / (1 + math.exp(max(-half - logit, -700))))
