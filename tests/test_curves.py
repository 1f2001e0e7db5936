"""Curves against scikit-learn and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_answers import many, report, two

from cxrlib.metrics.curves import curves, net_benefit, reliability

sk = pytest.importorskip("sklearn.metrics")


def test_curves_equal_scikit_learn() -> None:
    y, p = two(150, digits=2)
    c = curves(report(y, p))
    assert c is not None
    fpr, tpr, _ = sk.roc_curve(y, p[:, 1], drop_intermediate=False)
    np.testing.assert_allclose([c.fpr, c.tpr], [fpr[1:], tpr[1:]])
    precision, recall, _ = sk.precision_recall_curve(y, p[:, 1])
    np.testing.assert_allclose([c.precision[::-1], c.tpr[::-1]], [precision[:-1], recall[:-1]])
    assert (c.auroc, c.average_precision) == (
        pytest.approx(sk.auc(fpr, tpr)),
        pytest.approx(sk.average_precision_score(y, p[:, 1])),
    )
    assert c.prevalence == y.mean()
    inside = np.interp(c.grid, fpr, tpr)
    assert (c.roc_band[0] <= inside + 1e-9).mean() > 0.95
    assert (inside <= c.roc_band[1] + 1e-9).mean() > 0.95
    assert (c.pr_band[0] <= c.pr_band[1]).all()
    assert c.pr_band.min() >= 0
    assert c.pr_band.max() <= 1


def test_curves_of_one_class_are_undefined() -> None:
    assert curves(report([1, 1], [[0.2, 0.8], [0.6, 0.4]])) is None


def test_reliability_equals_scikit_learn() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    y, p = two(400)
    b = reliability(report(y, p))
    observed, probability = calibration.calibration_curve(y, p[:, 1], n_bins=15)
    np.testing.assert_allclose([b.observed, b.probability], [observed, probability])
    assert b.count.sum() == 400
    assert (b.low <= b.observed).all()
    assert (b.observed <= b.high).all()
    assert ((b.centre - b.probability).__abs__() <= 0.5 / 15 + 1e-9).all()


def test_net_benefit_is_that_of_its_definition() -> None:
    y, p = two(100)
    thresholds, model, everyone = net_benefit(report(y, p))
    i = 29
    t = thresholds[i]
    called = p[:, 1] >= t
    assert model[i] == pytest.approx(((called & (y == 1)).sum() - (called & (y == 0)).sum() * t / (1 - t)) / 100)
    assert everyone[i] == pytest.approx(y.mean() - (1 - y.mean()) * t / (1 - t))


def test_net_benefit_of_several_labels_is_that_of_any_finding() -> None:
    y, p = many(100)
    both = net_benefit(report(y, p, ("NORMAL", "B", "C", "D")))
    merged = net_benefit(report((y > 0).astype(int), np.stack([p[:, 0], 1 - p[:, 0]], axis=1)))
    np.testing.assert_allclose(both, merged)


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(ValueError, match=r"label must be one of NORMAL, PNEUMONIA\. Received: label='COVID'"):
        curves(report(*two(20)), "COVID")
