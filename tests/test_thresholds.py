"""Thresholds: against a search through all of them."""

import numpy as np
import pytest

from cxrlib.config import OperatingPoint
from cxrlib.metrics import thresholds
from cxrlib.metrics.thresholds import COST, ENOUGH, SENSITIVITY, SPECIFICITY, choose, measure, predictive_values


def images(seed, n=300, sources=("large", "small")):
    rng = np.random.default_rng(seed)
    where = rng.choice(sources, n, p=[0.8, 0.2])
    y = rng.random(n) < 0.5
    p = 1 / (1 + np.exp(-(rng.normal(0, 1, n) + np.where(y, 1.2, -1.2) + np.where(where == "small", 0.8, 0))))
    return y.astype(int), np.round(p, 2), where  # rounded: with ties


def rates(y, p, threshold):
    """Sensitivity and specificity."""
    called = p >= threshold
    return called[y == 1].mean(), 1 - called[y == 0].mean()


GRID = np.linspace(0, 1, 1001)


@pytest.mark.parametrize("seed", range(8))
def test_screening_is_the_largest_threshold_with_its_sensitivity_in_the_worst_source(seed):
    y, p, where = images(seed, n=900)
    point = choose(y, p, where)["screening"]
    groups = [where == name for name in ("large", "small") if (y[where == name] == 1).sum() >= ENOUGH] + [where != ""]
    assert len(groups) == 3
    worst = [min(rates(y[g], p[g], t)[0] for g in groups) for t in GRID]
    assert min(rates(y[g], p[g], point.threshold)[0] for g in groups) >= SENSITIVITY
    largest = GRID[np.array(worst) >= SENSITIVITY].max()
    assert point.specificity == pytest.approx(rates(y, p, largest)[1])


@pytest.mark.parametrize("seed", range(8))
def test_specific_is_the_smallest_threshold_with_its_specificity_in_the_worst_source(seed):
    y, p, where = images(seed, n=900)
    point = choose(y, p, where)["specific"]
    groups = [where == "large", where == "small", where != ""]
    worst = np.array([min(rates(y[g], p[g], t)[1] for g in groups) for t in GRID])
    assert point.sensitivity == pytest.approx(rates(y, p, GRID[worst >= SPECIFICITY].min())[0])


def test_screening_takes_the_more_sensitive_of_equally_specific_thresholds():
    y, p = [0] * 100 + [1] * 100, [0.1] * 99 + [0.6] + [0.7, 0.8] + [0.9] * 98
    point = choose(y, p, ["one"] * 200)["screening"]
    assert point.threshold == pytest.approx(0.65)  # 0.85 would have a sensitivity of 0.98, and no false alarm less
    assert (point.sensitivity, point.specificity) == (1.0, 1.0)


def worst_error(y, p, threshold):
    sensitivity, specificity = rates(y, p, threshold)
    return max(COST * (1 - sensitivity), 1 - specificity)


@pytest.mark.parametrize("seed", range(8))
def test_balanced_nearly_has_the_smallest_worst_error(seed):
    y, p, _ = images(seed)
    chosen = worst_error(y, p, choose(y, p, ["one"] * len(y))["balanced"].threshold)
    assert chosen < min(worst_error(y, p, t) for t in GRID) + 0.05


def test_balanced_depends_less_on_the_sample_than_the_smallest_error_of_the_counts_does():
    drawn = [images(seed) for seed in range(100, 140)]
    best = [max(np.linspace(0.1, 0.9, 801), key=lambda t: -worst_error(y, p, t)) for y, p, _ in drawn]
    chosen = [choose(y, p, ["one"] * len(y))["balanced"].threshold for y, p, _ in drawn]
    assert np.std(chosen) < np.std(best)
    assert abs(np.mean(chosen) - np.mean(best)) < 0.03


def test_the_order_of_the_three_points():
    for seed in range(8):  # also where the classes are so far apart that each rule alone would turn them round
        rng = np.random.default_rng(seed)
        y = np.arange(400) % 2
        p = 1 / (1 + np.exp(-(rng.normal(0, 1, 400) + np.where(y, 2.5, -2.5))))
        points = choose(y, p, ["one"] * 400)
        assert points["screening"].threshold <= points["balanced"].threshold <= points["specific"].threshold
        assert points["screening"].sensitivity >= points["balanced"].sensitivity >= points["specific"].sensitivity


def test_classes_that_are_apart_are_separated():
    assert 0.2 < choose([0, 0, 0, 1], [0.1, 0.15, 0.2, 0.6], ["a"] * 4)["balanced"].threshold < 0.6
    assert choose([0] * 50 + [1] * 50, [0.0] * 50 + [1.0] * 50, ["a"] * 100)["balanced"].specificity == 1


def test_a_handful_of_images_does_not_decide_for_all():
    # At 0.5 the ninety images of one source are all right; of the other's four, three would be at 0.05.
    y, p, where = [0, 1] * 45 + [1, 1, 1, 0], [0.45, 0.55] * 45 + [0.1, 0.1, 0.1, 0.01], ["large"] * 90 + ["small"] * 4
    alone = choose(y[:90], p[:90], where[:90])["balanced"].threshold
    assert choose(y, p, where)["balanced"].threshold == pytest.approx(alone, abs=0.02)
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
    alone = [logit_of(choose(y[m], p[m], where[m])["balanced"]) for m in (where == "first", where == "second")]
    assert alone[0] == pytest.approx(-1, abs=0.15)
    assert alone[1] == pytest.approx(1, abs=0.3)
    both = choose(y, p, where)
    assert logit_of(both["balanced"]) == pytest.approx(0, abs=0.25)  # halfway, though ten of eleven images are one's
    assert min(rate for rate, _ in both["screening"].by_source.values()) >= SENSITIVITY
    assert min(rate for _, rate in both["specific"].by_source.values()) >= SPECIFICITY


def test_a_source_counts_by_its_patients():
    y, p, where = hospitals(n_second=2 * (ENOUGH + 10))
    alone = logit_of(choose(y[where == "first"], p[where == "first"], where[where == "first"])["balanced"])
    counted = logit_of(choose(y, p, where)["balanced"])
    patients = [f"p{i // 4}" for i in range(len(y))]  # 30 patients of the second hospital
    assert counted > alone + 0.5
    assert logit_of(choose(y, p, where, patients)["balanced"]) == pytest.approx(alone, abs=0.2)
    assert choose(y, p, where, [None] * len(y)) == choose(y, p, where)


def test_sources_of_one_class_each_count_for_that_class():
    y, p, _ = hospitals(apart=0.0)
    where = np.where(y, "first", "second")
    assert choose(y, p, where)["balanced"].threshold == choose(y, p, ["all"] * len(y))["balanced"].threshold


def test_one_of_three_classes_against_the_others():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 600)
    p = 1 / (1 + np.exp(-(rng.normal(0, 1, 600) + np.where(targets == 1, 1.5, -1.5))))
    point = choose(targets == 1, p, ["one"] * 600)["balanced"]
    assert min(point.sensitivity, point.specificity) > 0.88


def test_thresholds_lie_between_probabilities():
    y, p, where = images(1)
    for point in choose(y, p, where).values():
        assert point.threshold not in p
        assert 0 < point.threshold < 1


def test_a_point_says_what_it_achieves_overall_and_in_each_source():
    point = measure([0, 0, 1, 1, 1], [0.1, 0.6, 0.4, 0.7, 0.9], ["a", "a", "a", "a", "b"], 0.5)
    assert point == OperatingPoint(0.5, pytest.approx(2 / 3), 0.5, {"a": (0.5, 0.5), "b": (1.0, -1.0)})


def test_a_threshold_itself_is_positive():
    assert measure([0, 1], [0.4, 0.5], ["a", "a"], 0.5).sensitivity == 1


def test_images_that_all_look_alike_are_all_called():
    assert choose([0, 1], [0.0, 0.0], ["a", "a"])["screening"].sensitivity == 1
    assert choose([0, 1], [1.0, 1.0], ["a", "a"])["screening"].sensitivity == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0.1], ["a", "a"]), r"must have one entry per image\. Received: shapes \(2,\), \(1,\) and \(2,\)"),
        (([[0, 1]], [[0.1, 0.2]], [["a", "a"]]), "must have one entry per image"),
        (([1, 1], [0.1, 0.2], ["a", "a"]), "operating points need images of both classes"),
        (([0, 0], [0.1, 0.2], ["a", "a"]), "operating points need images of both classes"),
        (([0, 1], [0.1, 1.2], ["a", "a"]), r"probability must lie in \[0, 1\]\. Received: from 0\.1 to 1\.2"),
        (([0, 1], [0.1, np.nan], ["a", "a"]), r"probability must lie in \[0, 1\]"),
        (([0, 1], [0.1, 0.9], ["a", "a"], ["p"]), r"patients must have one entry per image\. Received: 1 for 2 images"),
    ],
)
def test_what_cannot_be_chosen_from_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose(*arguments)


def test_predictive_values_are_those_of_a_counted_population():
    # Of 10,000 images 200 are positive: 190 of them found, and 980 of the 9,800 others called.
    assert predictive_values(0.95, 0.9, 0.02) == pytest.approx((190 / (190 + 980), 8820 / (8820 + 10)))
    assert predictive_values(0.95, 0.9, 0.0) == (0.0, 1.0)
    assert predictive_values(0.95, 0.9, 1.0) == (1.0, 0.0)


def test_the_value_of_an_answer_that_is_never_given_is_undefined():
    ppv, npv = predictive_values(0.0, 1.0, 0.5)
    assert np.isnan(ppv)
    assert npv == 0.5
    assert np.isnan(predictive_values(1.0, 0.0, 0.5)[1])


@pytest.mark.parametrize("value", [1.1, -0.1])
@pytest.mark.parametrize("name", ["sensitivity", "specificity", "prevalence"])
def test_rates_lie_between_0_and_1(name, value):
    values = {"sensitivity": 0.9, "specificity": 0.9, "prevalence": 0.1, name: value}
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\]\. Received: {name}={value}"):
        predictive_values(**values)


def test_shares_are_smoothed_by_logistic_kernels_with_silvermans_bandwidth():
    stats = pytest.importorskip("scipy.stats")
    logits = np.random.default_rng(0).normal(1, 2, 80)
    spread = min(logits.std(), stats.iqr(logits) / 1.34)  # Silverman 1986, 3.31
    kernel = 0.9 * spread * len(logits) ** (-1 / 5)
    places = np.linspace(-6, 6, 7)
    of_each = stats.logistic.cdf(places[:, None], logits, kernel / stats.logistic.std())
    assert thresholds._below(logits, places) == pytest.approx(of_each.mean(1))
