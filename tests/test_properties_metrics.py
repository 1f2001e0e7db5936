"""What holds for any predictions: metrics, intervals, operating points, calibration, and reports read back."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from typing import Any

import numpy as np
import pytest

from cxrlib.metrics.calibration import calibrate, fit_temperature
from cxrlib.metrics.compute import make_report
from cxrlib.metrics.intervals import wilson
from cxrlib.metrics.report import METRICS, WITH_REFUSALS, Report
from cxrlib.metrics.thresholds import SENSITIVITY, SPECIFICITY, choose

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

bounded = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

PROBABILITY = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0, 1e-300]))
IMAGES = st.lists(
    st.tuples(st.integers(0, 1), PROBABILITY, st.booleans(), st.sampled_from([None, *"abcd"]), st.sampled_from("xy")),
    min_size=1,
    max_size=40,
)
Images = list[tuple[int, float, bool, str | None, str]]


def report(images: Images, **options: Any) -> Report:
    """A report; an image is refused where its third entry and its neighbour's say so, which is about one in four."""
    y, p, _, patients, sources = zip(*images, strict=True)
    rows = np.array([[1 - x, x] for x in p])
    rows[[i for i, image in enumerate(images) if image[2] and images[i - 1][2]]] = np.nan
    names = [f"image{i}" for i in range(len(images))]
    return make_report(
        y,
        rows,
        **{
            "labels": ("NORMAL", "PNEUMONIA"),
            "threshold": 0.5,
            "names": names,
            "patients": patients,
            "sources": sources,
            "n_bootstrap": 100,
            **options,
        },
    )


@bounded
@given(IMAGES)
def test_every_metric_lies_in_its_range_and_in_its_interval(images: Images) -> None:
    r = report(images)
    for part in (r, *r.by_source.values()):
        for name in (*METRICS, *WITH_REFUSALS):
            e = getattr(part, name)
            assert math.isnan(e.value) or 0 <= e.value <= 1, name
            assert math.isnan(e.low) == math.isnan(e.high)
            assert math.isnan(e.low) or 0 <= e.low <= e.value <= e.high <= 1, name
        assert part.confusion_matrix.sum() == part.n - part.n_refused
        assert (part.confusion_matrix >= 0).all()
    assert sum(part.n for part in r.by_source.values()) == r.n == len(images)


@bounded
@given(IMAGES, st.integers(0, 2**32))
def test_the_order_of_the_images_changes_no_value(images: Images, seed: int) -> None:
    r = report(images)
    order = np.random.default_rng(seed).permutation(len(images))
    p = np.array([row.probabilities for row in r.predictions])[order]
    shuffled = make_report(
        [images[i][0] for i in order],
        p,
        labels=r.labels,
        threshold=0.5,
        names=[f"image{i}" for i in order],
        patients=[images[i][3] for i in order],
        n_bootstrap=100,
    )
    for name in (*METRICS, *WITH_REFUSALS):
        assert getattr(shuffled, name).value == pytest.approx(getattr(r, name).value, abs=1e-12, nan_ok=True), name


@bounded
@given(IMAGES, st.integers(1, 40))
def test_refused_images_add_no_certainty_to_what_is_0_or_1(images: Images, refused: int) -> None:
    r = report(images)
    p = np.array([row.probabilities for row in r.predictions] + refused * [(math.nan, math.nan)])
    y, names = [image[0] for image in images] + refused * [1], [f"image{i}" for i in range(len(p))]
    patients = [image[3] for image in images] + refused * [None]
    more = make_report(y, p, labels=r.labels, threshold=0.5, names=names, patients=patients, n_bootstrap=100)
    for name in set(METRICS) - {"ece"}:
        before, after = getattr(r, name), getattr(more, name)
        if before.value in (0, 1):
            assert str(after) == str(before), name


@bounded
@given(IMAGES)
def test_auroc_is_the_part_of_the_pairs_that_are_in_order(images: Images) -> None:
    r = report(images)
    kept = [(row.truth, row.probabilities[1]) for row in r.predictions if row.label is not None]
    positive, negative = ([p for truth, p in kept if truth == label] for label in ("PNEUMONIA", "NORMAL"))
    pairs = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    assert r.auroc.value == pytest.approx(np.mean(pairs) if pairs else math.nan, abs=1e-9, nan_ok=True)


@bounded
@given(IMAGES)
def test_calling_the_classes_the_other_way_round_turns_the_metrics_round(images: Images) -> None:
    images = [
        (y, (math.floor(1000 * p) + 0.5) / 1024, *rest) for y, p, *rest in images
    ]  # 1 - p is exact, and none is at the threshold
    r = report(images)
    p = np.array([row.probabilities for row in r.predictions])[:, ::-1]
    turned = make_report(
        [1 - y for y, *_ in images],
        p,
        labels=r.labels[::-1],
        threshold=0.5,
        names=[f"image{i}" for i in range(len(images))],
        n_bootstrap=100,
    )
    for here, there in (
        ("auroc", "auroc"),
        ("accuracy", "accuracy"),
        ("recall", "specificity"),
        ("precision", "npv"),
        ("brier", "brier"),
    ):
        assert getattr(turned, there).value == pytest.approx(getattr(r, here).value, abs=1e-9, nan_ok=True), here


@bounded
@given(IMAGES)
def test_a_report_is_read_back_the_same(images: Images) -> None:
    r = report(images)
    text = r.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert Report.from_json(text).to_json() == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
WHOLE = json.loads(
    report(
        [(0, 0.2, False, "a", "x"), (1, 0.7, False, None, "y"), (1, 0.9, False, "b", "y")],
        groups={"sex": ["F", "M", "F"]},
    ).to_json()
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@settings(bounded, max_examples=300)
@given(st.sampled_from(places(WHOLE)[1:]), JSON)
def test_a_report_with_another_value_anywhere_is_read_or_refused(place: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(WHOLE)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with contextlib.suppress(ValueError):
        Report.from_json(json.dumps(changed)).to_json()


@bounded
@given(st.one_of(st.text(max_size=100), JSON.map(json.dumps)))
def test_any_text_is_a_report_or_refused(text: str) -> None:
    with pytest.raises(ValueError, match="this is not a cxrlib report of schema 2"):
        Report.from_json(text)


# --- proportions, operating points, calibration ---


@settings(bounded, max_examples=300)
@given(st.integers(0, 5000), st.integers(1, 5000))
def test_wilson_holds_its_value_turns_round_and_narrows(successes: int, total: int) -> None:
    assume(successes <= total)
    e, turned, larger = wilson(successes, total), wilson(total - successes, total), wilson(10 * successes, 10 * total)
    assert 0 <= e.low <= e.value <= e.high <= 1
    assert turned.low == pytest.approx(1 - e.high, abs=1e-12)
    assert larger.high - larger.low < e.high - e.low


@settings(bounded, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), PROBABILITY, st.sampled_from("xyz")), min_size=2, max_size=50))
def test_operating_points_do_what_they_say(images: list[tuple[bool, float, str]]) -> None:
    y, p, sources = (list(column) for column in zip(*images, strict=True))
    assume(any(y) and not all(y))
    points = choose(y, p, sources)
    assert points["screening"].sensitivity >= SENSITIVITY - 1e-9
    assert points["specific"].specificity >= SPECIFICITY - 1e-9 or max(p) == 1
    assert points["screening"].threshold <= points["balanced"].threshold <= points["specific"].threshold
    for point in points.values():
        assert 0 <= point.threshold <= 1
        called = np.array(p) >= point.threshold
        assert point.sensitivity == pytest.approx(called[np.array(y)].mean())
        assert point.specificity == pytest.approx(1 - called[~np.array(y)].mean())


@settings(bounded, max_examples=200)
@given(st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=1, max_size=10), st.floats(0.05, 20))
def test_calibration_keeps_the_order_and_the_sum(logits: list[list[float]], temperature: float) -> None:
    z = np.array(logits)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    q = calibrate(p, temperature)
    assert np.allclose(q.sum(1), 1)
    assert np.allclose(calibrate(p, 1.0), p)
    for before, after in zip(p, q, strict=True):
        order = np.argsort(before)
        assert (np.diff(after[order]) >= -1e-12).all()


@settings(bounded, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-20, 20)), min_size=2, max_size=40))
def test_the_fitted_temperature_is_no_worse_than_none(images: list[tuple[int, float]]) -> None:
    y, z = (np.array(column) for column in zip(*images, strict=True))
    assume(0 < y.sum() < len(y))

    def loss(t: float) -> float:
        return float(np.logaddexp(0, np.where(y == 1, -z, z) / t).mean())

    t = fit_temperature(z, y)
    assert 0.05 - 1e-9 <= t <= 20 + 1e-9
    assert loss(t) <= loss(1.0) + 1e-9
