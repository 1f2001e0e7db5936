"""Thresholds: against a search through all of them."""

import numpy as np
import pytest

from cxrlib.config import OperatingPoint
from cxrlib.metrics.thresholds import choose, measure, predictive_values


def films(seed, n=300, sources=("large", "small")):
    rng = np.random.default_rng(seed)
    where = rng.choice(sources, n, p=[0.8, 0.2])
    y = rng.random(n) < 0.5
    p = 1 / (1 + np.exp(-(rng.normal(0, 1, n) + np.where(y, 1.2, -1.2) + np.where(where == "small", 0.8, 0))))
    return y.astype(int), np.round(p, 2), where  # rounded: with ties


def rates(y, p, threshold):
    """Sensitivity and specificity."""
    called = p >= threshold
    return called[y == 1].mean(), 1 - called[y == 0].mean()


@pytest.mark.parametrize("seed", range(8))
def test_screening_has_the_best_specificity_at_its_sensitivity(seed):
    y, p, where = films(seed)
    sensitivity, specificity = rates(y, p, choose(y, p, where)["screening"].threshold)
    assert sensitivity >= 0.98
    assert specificity == pytest.approx(
        max(c for s, c in (rates(y, p, t) for t in np.linspace(0, 1, 1001)) if s >= 0.98)
    )


def test_screening_takes_the_more_sensitive_of_equally_specific_thresholds():
    y, p = [0] * 100 + [1] * 100, [0.1] * 99 + [0.6] + [0.7, 0.8] + [0.9] * 98
    point = choose(y, p, ["one"] * 200)["screening"]
    assert point.threshold == pytest.approx(0.65)  # 0.85 would have a sensitivity of 0.98, and no alarm less
    assert (point.sensitivity, point.specificity) == (1.0, 1.0)


@pytest.mark.parametrize("seed", range(8))
def test_balanced_has_nearly_the_best_sum(seed):
    y, p, where = films(seed)
    chosen = sum(rates(y, p, choose(y, p, where)["balanced"].threshold))
    assert chosen > max(sum(rates(y, p, t)) for t in np.linspace(0, 1, 1001)) - 0.06


def test_balanced_depends_less_on_which_films_there_are_than_the_best_sum_does():
    drawn = [films(seed) for seed in range(100, 140)]
    best = [max(np.linspace(0.1, 0.9, 801), key=lambda t: sum(rates(y, p, t))) for y, p, _ in drawn]
    chosen = [choose(y, p, ["one"] * len(y))["balanced"].threshold for y, p, _ in drawn]
    assert np.std(chosen) < 0.75 * np.std(best)
    assert abs(np.mean(chosen) - np.mean(best)) < 0.03


def test_classes_that_are_apart_are_told_apart():
    assert 0.2 < choose([0, 0, 0, 1], [0.1, 0.15, 0.2, 0.6], ["a"] * 4)["balanced"].threshold < 0.6
    assert choose([0] * 50 + [1] * 50, [0.0] * 50 + [1.0] * 50, ["a"] * 100)["balanced"].specificity == 1


def test_a_handful_of_films_does_not_decide_for_all():
    # At 0.5 the ninety films of one source are all right; of the other's four, three would be at 0.05.
    y, p, where = [0, 1] * 45 + [1, 1, 1, 0], [0.45, 0.55] * 45 + [0.1, 0.1, 0.1, 0.01], ["large"] * 90 + ["small"] * 4
    assert choose(y, p, where)["balanced"].threshold == pytest.approx(0.5)
    assert choose(y, p, where)["balanced"].by_source["small"] == (0.0, 1.0)


def hospitals(n_first=3000, n_second=300, apart=1.0):
    """Two sources whose best thresholds are logits of `apart` below and above 0."""
    rng = np.random.default_rng(0)
    n = n_first + n_second
    y, where = np.arange(n) % 2, np.array(["first"] * n_first + ["second"] * n_second)
    logits = rng.normal(0, 1, n) + np.where(y, 2, -2) + np.where(where == "first", -apart, apart)
    return y, 1 / (1 + np.exp(-logits)), where


def logit_of(point):
    return np.log(point.threshold / (1 - point.threshold))


def test_a_small_hospital_is_not_sacrificed_to_a_large_one():
    y, p, where = hospitals()
    alone = [
        logit_of(choose(y[where == name], p[where == name], where[where == name])["balanced"])
        for name in ("first", "second")
    ]
    both = logit_of(choose(y, p, where)["balanced"])
    assert alone[0] == pytest.approx(-1, abs=0.15)
    assert alone[1] == pytest.approx(1, abs=0.3)
    assert both == pytest.approx(0, abs=0.25)  # halfway, though ten of eleven films are the first's


def test_a_source_counts_as_far_as_its_labels_are_believed():
    y, p, where = hospitals()
    chosen = [
        logit_of(choose(y, p, where, {"first": trust, "second": 1.0})["balanced"]) for trust in (1.0, 0.5, 0.2, 0.0)
    ]
    assert chosen == sorted(chosen)
    second = where == "second"
    assert chosen[-1] == pytest.approx(logit_of(choose(y[second], p[second], where[second])["balanced"]), abs=0.05)
    screening = [choose(y, p, where, {"first": trust, "second": 1.0})["screening"] for trust in (1.0, 0.0)]
    assert screening[0] == screening[1]  # of all films, whoever believes them


@pytest.mark.parametrize("trust", [None, {"first": 0.0, "second": 0.0}])
def test_sources_of_one_class_each_are_taken_for_one(trust):
    y, p, _ = hospitals(apart=0.0)
    where = np.where(y, "first", "second")
    assert choose(y, p, where, trust)["balanced"].threshold == choose(y, p, ["all"] * len(y))["balanced"].threshold


@pytest.mark.parametrize(
    "trust", [{"first": 1.0}, {"first": 1.0, "second": -0.1}, {"first": 1.0, "second": float("nan")}]
)
def test_a_trust_that_cannot_be_is_refused(trust):
    with pytest.raises(
        ValueError, match=r"trust must be a number from 0 for each of first, second\. Received: \{'first': 1\.0"
    ):
        choose(*hospitals(), trust)


def test_thresholds_lie_between_probabilities():
    y, p, where = films(1)
    for point in choose(y, p, where).values():
        assert point.threshold not in p
        assert 0 < point.threshold < 1


def test_a_point_says_what_it_achieves_overall_and_in_each_source():
    point = measure([0, 0, 1, 1, 1], [0.1, 0.6, 0.4, 0.7, 0.9], ["a", "a", "a", "a", "b"], 0.5)
    assert point == OperatingPoint(0.5, pytest.approx(2 / 3), 0.5, {"a": (0.5, 0.5), "b": (1.0, -1.0)})


def test_a_threshold_itself_is_positive():
    assert measure([0, 1], [0.4, 0.5], ["a", "a"], 0.5).sensitivity == 1


def test_films_that_all_look_alike_are_all_called():
    assert choose([0, 1], [0.0, 0.0], ["a", "a"])["screening"].sensitivity == 1
    assert choose([0, 1], [1.0, 1.0], ["a", "a"])["screening"].sensitivity == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0.1], ["a", "a"]), r"must have one entry per film\. Received: shapes \(2,\), \(1,\) and \(2,\)"),
        (([[0, 1]], [[0.1, 0.2]], [["a", "a"]]), "must have one entry per film"),
        (([1, 1], [0.1, 0.2], ["a", "a"]), "operating points need films of both classes"),
        (([0, 0], [0.1, 0.2], ["a", "a"]), "operating points need films of both classes"),
        (([0, 1], [0.1, 1.2], ["a", "a"]), r"probability must lie in \[0, 1\]\. Received: from 0\.1 to 1\.2"),
        (([0, 1], [0.1, np.nan], ["a", "a"]), r"probability must lie in \[0, 1\]"),
    ],
)
def test_what_cannot_be_chosen_from_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose(*arguments)


def test_predictive_values_are_those_of_a_counted_population():
    # Of 10,000 films 200 are positive: 190 of them found, and 980 of the 9,800 others called.
    assert predictive_values(0.95, 0.9, 0.02) == pytest.approx((190 / (190 + 980), 8820 / (8820 + 10)))
    assert predictive_values(0.95, 0.9, 0.0) == (0.0, 1.0)
    assert predictive_values(0.95, 0.9, 1.0) == (1.0, 0.0)


def test_nobody_knows_what_an_answer_is_worth_that_is_never_given():
    ppv, npv = predictive_values(0.0, 1.0, 0.5)
    assert np.isnan(ppv)
    assert npv == 0.5
    assert np.isnan(predictive_values(1.0, 0.0, 0.5)[1])


@pytest.mark.parametrize("name", ["sensitivity", "specificity", "prevalence"])
def test_a_part_lies_between_nothing_and_all(name):
    values = {"sensitivity": 0.9, "specificity": 0.9, "prevalence": 0.1, name: 1.1}
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\]\. Received: {name}=1\.1"):
        predictive_values(**values)
