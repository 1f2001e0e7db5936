"""The comparison of two models against DeLong's own formulas, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn_answers import many, report, two

from cxrlib.metrics.comparison import compare
from cxrlib.metrics.intervals import Estimate
from cxrlib.metrics.report import Report


def slow_delong(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Difference of the AUROCs and its variance, as DeLong et al. write them: every pair compared."""

    def kernel(s: np.ndarray) -> np.ndarray:
        x, z = s[y == 1][:, None], s[y == 0][None]
        return (x > z) + 0.5 * (x == z)

    ka, kb = kernel(a), kernel(b)
    s10, s01 = np.cov([ka.mean(1), kb.mean(1)]), np.cov([ka.mean(0), kb.mean(0)])
    s = s10 / (y == 1).sum() + s01 / (y == 0).sum()
    return ka.mean() - kb.mean(), s[0, 0] + s[1, 1] - 2 * s[0, 1]


@pytest.mark.parametrize("digits", [None, 1])
def test_compare_is_delongs(digits: int | None) -> None:
    y, p = two(120, seed=1, digits=digits)
    q = two(120, seed=1, separation=1.2)[1][::-1] * 0.3 + p * 0.7
    e = compare(report(y, p), report(y, q))
    difference, variance = slow_delong(y, p[:, 1], q[:, 1])
    assert e.value == pytest.approx(difference)
    assert e.high - e.value == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-5)


def test_compare_finds_images_by_name_and_leaves_out_refused_ones() -> None:
    y, p = two(60)
    q = two(60, seed=5)[1]
    names = [f"{i}.png" for i in range(60)]
    back = slice(None, None, -1)
    a, b = report(y, p, names=names), report(y[back], q[back], names=names[back])
    assert compare(a, b).value == pytest.approx(a.auroc.value - b.auroc.value)
    assert compare(a, a) == Estimate(0, 0, 0)
    q[:10] = np.nan
    fewer = compare(a, report(y, q, names=names))
    assert fewer.value == pytest.approx(compare(report(y[10:], p[10:]), report(y[10:], q[10:])).value)


def test_compare_leaves_out_images_of_other_labels() -> None:
    y, p = two(60)
    q = two(60, seed=5)[1]
    other = [None] * 60 + ["TB"]
    more = [report([*y, 0], [*scores, [0.1, 0.9]], other=other) for scores in (p, q)]
    assert compare(*more) == compare(report(y, p), report(y, q))


def test_compare_keeps_patients_together() -> None:
    y, p = two(60)
    q = two(60, seed=5)[1]
    once = compare(report(y, p), report(y, q))
    y3, p3, q3 = np.repeat(y, 3), np.repeat(p, 3, axis=0), np.repeat(q, 3, axis=0)
    patients = [f"p{i // 3}" for i in range(180)]
    thrice = compare(report(y3, p3, patients=patients), report(y3, q3, patients=patients))
    assert (thrice.value, thrice.high) == (pytest.approx(once.value), pytest.approx(once.high))


def test_compare_of_several_labels_compares_the_means() -> None:
    y, p = many(100)
    q = many(100, seed=7)[1]
    a, b = report(y, p, ("A", "B", "C", "D")), report(y, q, ("A", "B", "C", "D"))
    e = compare(a, b)
    assert e.value == pytest.approx(a.auroc.value - b.auroc.value)
    assert e.low < e.value < e.high


def test_compare_covers_no_difference() -> None:
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = np.arange(80) % 2
        common = rng.normal(size=80) + y
        a, b = (1 / (1 + np.exp(-(common + rng.normal(size=80)))) for _ in range(2))
        e = compare(*(report(y, np.stack([1 - s, s], axis=1)) for s in (a, b)))
        held += e.low <= 0 <= e.high
    assert held >= 88


def test_compare_says_what_does_not_fit() -> None:
    y, p = two(20)
    a = report(y, p)
    for b in (
        report(1 - y, p),
        report(y, p, labels=("A", "B")),
        report(y[:9], p[:9]),
        Report.from_json(a.to_json(predictions=False)),
    ):
        with pytest.raises(
            ValueError,
            match=r"predictions of the same images with the same labels\. Received: 20 images of NORMAL, PNEUMONIA and",
        ):
            compare(a, b)
    one = report([1, 1], [[0.2, 0.8], [0.3, 0.7]])
    with pytest.raises(
        ValueError, match=r"images of at least two classes that both models answered\. Received: 2 images of 1 classes"
    ):
        compare(one, one)
