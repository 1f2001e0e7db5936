"""The temperature against a search for the least loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn_answers import many, two

from cxrlib.metrics.calibration import calibrate, check_targets, fit_temperature

sk = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(temperature: float) -> None:
    y, p = two(20_000)
    logits = np.log(p[:, 1] / p[:, 0])
    assert fit_temperature(logits * temperature, y) == pytest.approx(temperature, rel=0.05)


def test_temperature_has_the_least_loss() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    y, p = many(300)
    z = 2.5 * np.log(p)
    best = optimize.minimize_scalar(
        lambda t: sk.log_loss(y, np.exp(z / t) / np.exp(z / t).sum(1, keepdims=True)),
        bounds=(0.05, 20),
        method="bounded",
    )
    assert fit_temperature(z, y) == pytest.approx(best.x, rel=1e-3)


def test_an_image_of_weight_two_counts_as_two_images() -> None:
    y, p = many(60)
    z, weights = 2 * np.log(p), np.arange(60) % 3
    assert fit_temperature(z, y, weights) == pytest.approx(
        fit_temperature(np.repeat(z, weights, axis=0), np.repeat(y, weights))
    )


def test_temperature_of_one_logit_is_that_of_two() -> None:
    y, p = two(100)
    z = np.log(p)
    assert fit_temperature(z, y) == pytest.approx(fit_temperature(z[:, 1] - z[:, 0], y))


def test_temperature_ends_where_none_is_best() -> None:
    assert fit_temperature([-1.0, 1.0], [0, 1]) == pytest.approx(0.05)
    assert fit_temperature([1.0, -1.0], [0, 1]) == pytest.approx(20)
    assert fit_temperature([1e5, -1e5, 1e5], [1, 0, 0]) == pytest.approx(20)


def test_temperature_says_what_is_wrong() -> None:
    for logits, y in (
        ([0.0, 1.0], [0, 1, 1]),
        ([0.0, math.inf], [0, 1]),
        (np.zeros((2, 1)), [0, 1]),
        (np.zeros((2, 2, 2)), [0, 1]),
    ):
        with pytest.raises(
            ValueError,
            match=r"logits must be finite, of shape \(n,\) or \(n, k\), with n targets\. Received: logits of shape",
        ):
            fit_temperature(logits, y)
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match=r"weights must not be negative, one per image\. Received: shape"):
            fit_temperature([0.0, 1.0], [0, 1], weights)
    with pytest.raises(ValueError, match="a temperature needs images of at least two classes"):
        fit_temperature([0.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match=r"targets must hold integers in \[0, 1\]"):
        fit_temperature([0.0, 1.0], [0, 2])


def test_targets_are_indices_of_labels() -> None:
    assert check_targets([1], 2).tolist() == [1]
    for wrong in ([], [2], [-1], [0.5], [[0]]):
        with pytest.raises(ValueError, match=r"targets must hold integers in \[0, 1\], in one dimension"):
            check_targets(wrong, 2)


def test_calibrating_divides_logits_and_keeps_the_order() -> None:
    y, p = two(200)
    for temperature in (0.5, 1.0, 3.0):
        q = calibrate(p, temperature)
        np.testing.assert_allclose(np.log(q[:, 1] / q[:, 0]) * temperature, np.log(p[:, 1] / p[:, 0]))
        np.testing.assert_allclose(q.sum(1), 1)
    assert fit_temperature(np.log(calibrate(p, 2.0)), y) == pytest.approx(fit_temperature(np.log(p), y) / 2, rel=1e-6)
    assert np.isfinite(calibrate(np.array([[0.0, 1.0]]), 0.05)).all()
    assert np.allclose(
        calibrate(np.array([[0.4, 0.4, 0.2]]), 1e-3), [[0.5, 0.5, 0.0]]
    )  # the least that a bundle may have
