"""Random targets and probabilities, and reports of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cxrlib.metrics.compute import make_report
from cxrlib.metrics.report import Report

TWO = ("NORMAL", "PNEUMONIA")


def two(
    n: int = 200, *, seed: int = 0, separation: float = 2.0, digits: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and calibrated probabilities; with `digits`, rounded so that scores tie."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.6).astype(int)
    logit = separation * (rng.normal(size=n) + separation * (y - 0.5)) + math.log(0.6 / 0.4)
    p = 1 / (1 + np.exp(-logit))
    p = p if digits is None else np.round(p, digits)
    return y, np.stack([1 - p, p], axis=1)


def many(n: int = 200, k: int = 4, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    z = np.round(rng.normal(size=(n, k)) + 1.5 * np.eye(k)[y], 1)
    return y, np.exp(z) / np.exp(z).sum(1, keepdims=True)


def report(y: Any, p: Any, labels: tuple[str, ...] = TWO, **options: Any) -> Report:
    options = {
        "threshold": 0.5 if len(labels) == 2 else None,
        "names": [f"image{i}.png" for i in range(len(y))],
        "n_bootstrap": 100,
        **options,
    }
    return make_report(y, p, labels=labels, **options)
