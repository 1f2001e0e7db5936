"""Metrics against scikit-learn, intervals against simulation, reports against themselves read back."""

from __future__ import annotations

import csv
import json
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
from drawn_answers import TWO, many, report, two

from cxrlib.metrics.compute import Ranking, auroc, make_report
from cxrlib.metrics.curves import curves, net_benefit, reliability
from cxrlib.metrics.intervals import Estimate, difference, resamples, wilson
from cxrlib.metrics.report import METRICS, NAMES, WITH_REFUSALS, Report

sk = pytest.importorskip("sklearn.metrics")


def expected(y: np.ndarray, p: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """What scikit-learn makes of it, `nan` where it calls a metric undefined."""
    k = p.shape[1]
    average = "binary" if k == 2 else "macro"
    classes = [1] if k == 2 else [c for c in range(k) if (y == c).any()]
    both = [c for c in classes if 0 < (y == c).sum() < len(y)]
    tnr = [sk.recall_score(y != c, predicted != c, zero_division=np.nan) for c in ([1] if k == 2 else range(k))]
    npv = [sk.precision_score(y != c, predicted != c, zero_division=np.nan) for c in ([1] if k == 2 else range(k))]
    common = {"average": average, "zero_division": np.nan, "labels": None if k == 2 else list(range(k))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "auroc": float(np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in both])) if both else math.nan,
            "average_precision": float(np.mean([sk.average_precision_score(y == c, p[:, c]) for c in classes]))
            if (y > 0).any() or k > 2
            else math.nan,
            "accuracy": sk.accuracy_score(y, predicted),
            "precision": sk.precision_score(y, predicted, **common),
            "recall": sk.recall_score(y, predicted, **common),
            "specificity": float(np.nanmean(tnr)),
            "f1": sk.f1_score(y, predicted, **common),
            "npv": float(np.nanmean(npv)),
            "brier": sk.brier_score_loss(y, p[:, 1]) if k == 2 else float(((p - np.eye(k)[y]) ** 2).sum(1).mean()),
        }


def check(r: Report, y: np.ndarray, p: np.ndarray) -> None:
    predicted = (p[:, 1] >= r.threshold).astype(int) if r.threshold is not None else p.argmax(1)
    for name, value in expected(y, p, predicted).items():
        assert getattr(r, name).value == pytest.approx(value, abs=1e-12, nan_ok=True), name
    assert r.confusion_matrix.tolist() == sk.confusion_matrix(y, predicted, labels=range(len(r.labels))).tolist()


# --- agreement with scikit-learn


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("digits", [None, 1])
def test_two_labels_equal_scikit_learn(seed: int, digits: int | None) -> None:
    y, p = two(20 + 30 * seed, seed=seed, separation=0.5 + seed / 3, digits=digits)
    check(report(y, p, threshold=0.1 * (seed + 1)), y, p)


@pytest.mark.parametrize("seed", range(4))
def test_four_labels_equal_scikit_learn(seed: int) -> None:
    y, p = many(seed=seed)
    r = report(y, p, ("A", "B", "C", "D"))
    check(r, y, p)
    assert r.auroc.value == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    for c, label in enumerate(r.labels):
        assert r.by_label[label].recall.value == pytest.approx(sk.recall_score(y == c, p.argmax(1) == c))
        assert r.by_label[label].auroc.value == pytest.approx(sk.roc_auc_score(y == c, p[:, c]))


DEGENERATE: dict[str, tuple[list[int], list[float]]] = {
    "perfect": ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),
    "inverted": ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]),
    "every score the same": ([0, 1, 1, 0, 1], [0.3] * 5),
    "only positive images": ([1, 1, 1], [0.1, 0.6, 0.9]),
    "only negative images": ([0, 0, 0], [0.1, 0.6, 0.9]),
    "nothing called positive": ([0, 1, 1], [0.1, 0.2, 0.3]),
    "everything called positive": ([0, 1, 1], [0.7, 0.9, 0.8]),
    "one image": ([1], [1.0]),
    "certain": ([0, 1, 1, 0], [0.0, 1.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_images_equal_scikit_learn(case: str) -> None:
    y, s = (np.array(x) for x in DEGENERATE[case])
    p = np.stack([1 - s, s], axis=1)
    r = report(y, p)
    check(r, y, p)
    for name in METRICS:
        e = getattr(r, name)
        assert math.isnan(e.low) == math.isnan(e.high)
        assert not e.low < 0
        assert not e.high > 1
        if math.isnan(e.value):
            assert any(NAMES[name][0] in s for s in r.statements)


def test_absent_labels_are_left_out_of_the_means() -> None:
    y, p = many(60)
    y = np.where(y == 3, 0, y)
    r = report(y, p, ("A", "B", "C", "D"))
    check(r, y, p)
    assert r.statements[0] == "No image is labelled D: what needs one is undefined."


def test_one_class_says_what_is_undefined() -> None:
    r = report([1, 1, 1], [[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    assert r.statements[:2] == (
        "No image is labelled NORMAL: what needs one is undefined.",
        "Undefined on these images: AUROC, Specificity.",
    )
    assert r.recall.value == pytest.approx(2 / 3)
    assert str(r.auroc) == "undefined"


def test_calibration_error_is_that_of_its_definition() -> None:
    y, p = two(300, digits=2)
    whole = 0.0
    for b in range(15):
        inside = [i for i in range(300) if b / 15 <= p[i, 1] < (b + 1) / 15 or (b == 14 and p[i, 1] == 1)]
        if inside:
            whole += len(inside) / 300 * abs(np.mean([p[i, 1] for i in inside]) - np.mean([y[i] for i in inside]))
    assert report(y, p).ece.value == pytest.approx(whole)
    perfect = np.array([0, 1, 1])
    assert report(perfect, np.eye(2)[perfect]).ece.value == 0


# --- intervals


def test_wilson_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for successes, total in ((0, 10), (10, 10), (3, 7), (599, 624), (1, 1)):
        e = wilson(successes, total)
        interval = stats.binomtest(successes, total).proportion_ci(method="wilson")
        assert (e.low, e.high) == (pytest.approx(interval.low, abs=1e-9), pytest.approx(interval.high, abs=1e-9))
    assert math.isnan(wilson(0, 0).value)


@pytest.mark.parametrize("n", [100, 400])
def test_images_without_patients_have_wilsons_intervals(n: int) -> None:
    y, p = two(n)
    for patients in (None, [None] * n, [f"p{i}" for i in range(n)]):
        r = report(y, p, patients=patients)
        (tn, fp), (fn, tp) = r.confusion_matrix.tolist()
        assert r.recall == wilson(tp, tp + fn)
        assert r.specificity == wilson(tn, tn + fp)
        assert r.accuracy == wilson(tp + tn, n)
        assert r.precision == wilson(tp, tp + fp)
        assert r.npv == wilson(tn, tn + fn)


def test_weights_of_a_resample_count_as_images_drawn_again() -> None:
    y, p = two(60, digits=1)
    drawn = np.random.default_rng(1).integers(0, 60, 60)
    weights = np.bincount(drawn, minlength=60)[None].astype(float)
    weighted = Ranking(y == 1, p[:, 1]).areas(weights)
    again = Ranking(y[drawn] == 1, p[drawn, 1]).areas(np.ones((1, 60)))
    np.testing.assert_allclose(weighted, again)
    assert auroc(y == 1, p[:, 1], weights[0]) == pytest.approx(again[0][0])
    assert auroc(y == 1, p[:, 1], weights[0] / 100) == pytest.approx(again[0][0])
    assert auroc(y[drawn] == 1, p[drawn, 1]) == pytest.approx(sk.roc_auc_score(y[drawn], p[drawn, 1]))
    assert math.isnan(auroc([True, True], [0.1, 0.2]))


def test_copies_of_an_image_add_no_certainty() -> None:
    y, p = two(80)
    once = report(y, p, n_bootstrap=2000)
    thrice = report(
        np.repeat(y, 3), np.repeat(p, 3, axis=0), patients=[f"p{i // 3}" for i in range(240)], n_bootstrap=2000
    )
    assert thrice.n_patients == 80
    assert once.n_patients is None
    for name in ("auroc", "f1", "brier", "average_precision", "recall"):
        a, b = getattr(once, name), getattr(thrice, name)
        assert b.value == pytest.approx(a.value) or name == "average_precision"
        assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.15)
    naive = report(np.repeat(y, 3), np.repeat(p, 3, axis=0))
    assert naive.recall.high - naive.recall.low < 0.75 * (thrice.recall.high - thrice.recall.low)


def test_the_seed_decides() -> None:
    y, p = two(80)
    a, b, c = (report(y, p, seed=seed).to_json() for seed in (3, 3, 4))
    assert a == b != c


def test_blocks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = np.arange(50) // 2
    whole = np.concatenate(list(resamples(clusters, 40, 0)))
    assert whole.shape == (40, 50)
    assert (whole[:, ::2] == whole[:, 1::2]).all()
    assert (whole[:, ::2].sum(1) == 25).all()
    tall = resamples(np.arange(1_000_001) // 2, 2, 0)
    assert next(tall).shape[0] == 1


def coverage(
    draw: Any, truth: dict[str, float], names: tuple[str, ...], repeats: int, **options: Any
) -> dict[str, float]:
    held = dict.fromkeys(names, 0)
    for i in range(repeats):
        y, p, patients = draw(i)
        r = report(y, p, patients=patients, **options)
        for name in names:
            held[name] += getattr(r, name).low <= truth[name] <= getattr(r, name).high
    return {name: count / repeats for name, count in held.items()}


def clustered(patients: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Calibrated images of patients whose scores are correlated."""
    rng = np.random.default_rng(seed)
    y = np.repeat((rng.random(patients) < 0.6).astype(int), images)
    noise = 0.7 * np.repeat(rng.normal(size=patients), images) + math.sqrt(0.51) * rng.normal(size=patients * images)
    p = 1 / (1 + np.exp(-(3 * (noise + 3 * (y - 0.5)) + math.log(1.5))))
    return y, np.stack([1 - p, p], axis=1), [f"p{i // images}" for i in range(patients * images)]


@pytest.mark.parametrize("images", [1, 3])
def test_intervals_cover_the_truth(images: int) -> None:
    names = (
        "auroc",
        "average_precision",
        "accuracy",
        "precision",
        "recall",
        "specificity",
        "f1",
        "npv",
        "brier",
        "ece",
    )
    y, p, _ = clustered(60_000 // images, images, 999)
    whole = report(y, p, n_bootstrap=100)
    truth = {name: getattr(whole, name).value for name in names}
    held = coverage(lambda i: clustered(150, images, i), truth, names, 200, n_bootstrap=150)
    # 200 repeats of a 95 % interval lie within 0.905 to 0.98 nineteen times in twenty.
    assert all(share >= 0.88 for share in held.values()), held
    assert np.mean([held[name] for name in names if name != "ece"]) == pytest.approx(0.95, abs=0.02), held


def test_percentiles_would_cover_less_near_one() -> None:
    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return two(n, seed=seed, separation=4.2)

    y, p = draw(200_000, 999)
    truth = sk.roc_auc_score(y, p[:, 1])
    ours = percentiles = 0
    for seed in range(100):
        y, p = draw(300, seed)
        e = report(y, p, n_bootstrap=200).auroc
        ours += e.low <= truth <= e.high
        samples = [Ranking(y == 1, p[:, 1]).areas(weights)[0] for weights in resamples(np.arange(300), 200, 0)]
        low, high = np.nanquantile(np.concatenate(samples), [0.025, 0.975])
        percentiles += low <= truth <= high
    assert ours >= 90 > 85 >= percentiles


def test_intervals_near_one_are_lopsided_and_stay_inside() -> None:
    y, p = two(300, separation=4)
    r = report(y, p, n_bootstrap=400)
    assert 0 < r.auroc.low < r.auroc.value < r.auroc.high < 1
    assert r.auroc.value - r.auroc.low > r.auroc.high - r.auroc.value


def test_perfection_is_not_certain() -> None:
    y = np.array([0] * 20 + [1] * 30)
    r = report(y, np.eye(2)[y] * 0.8 + 0.1)
    assert (r.auroc.value, r.auroc.low) == (1, pytest.approx(wilson(20, 20).low))
    assert r.f1.low == r.auroc.low
    assert r.recall == wilson(30, 30)


def answers(y: Any, called: Any) -> np.ndarray:
    """Probabilities by which images are called as given, more confident where that is right."""
    k = max(2, np.max(y) + 1, np.max(called) + 1)
    sure = np.where(np.asarray(y) == called, 0.9, 0.8)[:, None]
    return np.where(np.arange(k) == np.asarray(called)[:, None], sure, (1 - sure) / (k - 1))


@pytest.mark.parametrize("right", [0, 1])
def test_certainty_rests_on_the_patients_that_a_metric_is_made_of(right: int) -> None:
    y, patients = np.repeat([0, 1], 400), np.arange(800) // 2
    called = np.zeros(800, int)
    called[-1 if right else 0] = 1
    r, turned = (
        report(y, p, patients=patients) for p, y in ((answers(y, called), y), (answers(1 - y, 1 - called), 1 - y))
    )
    assert r.precision == turned.npv == wilson(right, 1)
    of_class = (r.specificity, turned.recall) if right else (r.recall, turned.specificity)
    assert set(of_class) == {wilson(200 * right, 200)}
    pairs = report(
        np.repeat([0, 1], 6), answers(np.repeat([0, 1], 6), np.repeat([0, 1], 6)), patients=np.arange(12) // 2
    )
    assert pairs.recall == pairs.specificity == pairs.precision == pairs.npv == pairs.f1 == pairs.auroc == wilson(3, 3)
    assert pairs.accuracy == wilson(6, 6)


def test_refused_images_add_no_certainty() -> None:
    y = np.repeat([0, 1], 100)
    p = answers(y, y)
    p[5:-4] = np.nan
    r = report(y, p)
    assert r.auroc == r.average_precision == r.f1 == r.recall == wilson(4, 4)
    assert r.specificity == wilson(5, 5)
    by_patient = report(y, p, patients=np.arange(200) // 2)
    assert by_patient.auroc == by_patient.recall == by_patient.f1 == wilson(2, 2)
    assert by_patient.accuracy == wilson(5, 5)
    assert by_patient.accuracy_with_refusals_wrong.high < 0.2
    p[:] = np.nan
    nothing = report(y, p, patients=np.arange(200) // 2)
    assert nothing.sensitivity_with_refusals_missed == wilson(0, 50)
    assert nothing.accuracy_with_refusals_wrong == wilson(0, 100)


def test_refused_patients_do_not_make_one_patient_two() -> None:
    p = np.full((40, 2), np.nan)
    p[:2] = [[0.7, 0.3], [0.6, 0.4]]
    r = report(np.repeat([0, 1], 20), p, patients=np.arange(40) // 2)
    for name in ("accuracy", "specificity", "npv", "brier", "ece"):
        assert str(getattr(r, name)).endswith("(no interval)"), name
    assert r.accuracy_with_refusals_wrong.high < 1


def test_certainty_about_many_classes_is_the_mean_of_that_about_each() -> None:
    y = np.repeat([0, 1, 2], [40, 20, 4])
    r = report(y, answers(y, y), ("A", "B", "C"), patients=np.arange(64) // 2)
    assert r.recall.low == pytest.approx(np.mean([wilson(n, n).low for n in (20, 10, 2)]))
    assert r.specificity.low == pytest.approx(np.mean([wilson(n, n).low for n in (12, 22, 30)]))
    assert r.auroc.low == r.f1.low == pytest.approx(np.mean([wilson(n, n).low for n in (12, 10, 2)]))
    assert r.precision.high == r.auroc.high == 1
    wrong = report(y, np.eye(3)[(y + 1) % 3], ("A", "B", "C"), patients=np.arange(64) // 2)
    assert (wrong.brier.value, wrong.brier.low) == (2, pytest.approx(2 * wilson(32, 32).low))
    assert wrong.precision.high == pytest.approx(np.mean([wilson(0, n).high for n in (2, 20, 10)]))
    absent = report(y[:60], answers(y, y)[:60], ("A", "B", "C"), patients=np.arange(60) // 2)
    assert absent.recall.low == pytest.approx(np.mean([wilson(n, n).low for n in (20, 10)]))


def test_an_f1_of_0_may_be_twice_as_much_as_the_recall() -> None:
    y = np.repeat([0, 1], 200)
    f1 = report(y, answers(y, np.zeros(400, int)), patients=np.arange(400) // 2).f1
    sensitivity = wilson(0, 100).high  # if who is called so is so
    assert (f1.value, f1.low, f1.high) == (0, 0, pytest.approx(2 * sensitivity / (1 + sensitivity)))


def test_a_calibration_error_of_0_by_luck_is_not_certain() -> None:
    lucky = report(np.repeat([0, 1], 200), np.full((400, 2), 0.5), n_bootstrap=1000)
    assert (lucky.ece.value, lucky.ece.low) == (0, 0)
    assert lucky.ece.high > 1.96 * 0.5 / math.sqrt(400)
    y = np.repeat([0, 1], 200)
    assert report(y, np.eye(2)[y]).ece == wilson(0, 400)


@pytest.mark.parametrize("images", [1, 2])
def test_intervals_at_0_and_1_cover_the_truth(images: int) -> None:
    """One patient in twenty is called positive, nine times in ten rightly; half of the images are refused."""

    def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, Any]:
        rng = np.random.default_rng(seed)
        y = np.repeat([0, 1], 200)
        p = answers(y, rng.random(400) < np.where(y == 1, 0.09, 0.01))
        p[rng.permutation(400)[:200]] = np.nan
        return np.repeat(y, images), np.repeat(p, images, axis=0), np.arange(400 * images) // images

    truth = {"precision": 0.9, "recall": 0.09, "specificity": 0.99, "f1": 0.18 / 1.1, "npv": 0.99 / 1.9}
    held = coverage(drawn, truth, tuple(truth), 100)
    assert all(share >= 0.88 for share in held.values()), held


def test_a_single_patient_gives_no_interval() -> None:
    r = report([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], patients=["a", "a", "a"])
    assert str(r.recall) == "0.500 (no interval)"
    assert r.statements[-1].startswith("Without an interval, because too few patients are behind them: AUROC, ")


# --- refusals, sources, subgroups


def test_refused_images_are_counted_and_left_out() -> None:
    y, p = two(100)
    accepted = np.arange(100) >= 10
    q = np.where(accepted[:, None], p, np.nan)
    r = report(y, q, reasons=["" if a else "a hand" for a in accepted])
    check(r, y[accepted], p[accepted])
    bare = report(y[accepted], p[accepted])
    assert (r.n, r.n_refused, r.confusion_matrix.sum()) == (100, 10, 90)
    assert [getattr(r, n).value for n in METRICS] == [getattr(bare, n).value for n in METRICS]
    tp = int(r.confusion_matrix[1, 1])
    assert r.sensitivity_with_refusals_missed == wilson(tp, int(y.sum()))
    assert r.accuracy_with_refusals_wrong == wilson(int(np.trace(r.confusion_matrix)), 100)
    assert r.statements == (
        "Of 100 images, 10 refused. Images without an answer count in no metric but the two that say so.",
    )
    assert (r.predictions[0].label, r.predictions[0].reasons, r.predictions[10].reasons) == (None, "a hand", "")
    assert (r.predictions[0].status, r.predictions[10].status) == ("refused", "ok")
    assert math.isnan(r.predictions[0].probabilities[0])


def test_all_images_refused() -> None:
    r = report([0, 1, 1], np.full((3, 2), np.nan), patients=["a", "a", "b"])
    assert all(math.isnan(getattr(r, name).value) for name in METRICS)
    assert r.sensitivity_with_refusals_missed.value == 0 == r.confusion_matrix.sum()
    with pytest.raises(ValueError, match="the report lacks its predictions"):
        curves(Report.from_json(r.to_json(predictions=False)))
    assert curves(r) is None
    assert len(reliability(r).count) == 0
    assert np.isnan(net_benefit(r)[1]).all()


def test_sources_and_subgroups_are_reported_apart() -> None:
    y, p = two(90)
    sources = ["here" if i < 60 else "there" for i in range(90)]
    doses = [None if i == 0 else str(i % 40) for i in range(90)]
    views = ["AP" if i % 2 else "PA" for i in range(85)] + ["lateral"] * 5
    r = report(
        y,
        p,
        sources=sources,
        groups={"dose": doses, "view": views, "site": [f"site {i}" for i in range(90)], "empty": [None] * 90},
    )
    assert {name: part.n for name, part in r.by_source.items()} == {"here": 60, "there": 30}
    assert r.by_source["there"].auroc.value == pytest.approx(sk.roc_auc_score(y[60:], p[60:, 1]))
    assert list(r.subgroups["dose"]) == ["0 to below 7", "7 to below 17", "17 to below 28", "28 to 39"]
    assert sum(part.n for part in r.subgroups["dose"].values()) == 89
    assert {name: part.n for name, part in r.subgroups["view"].items()} == {"AP": 42, "PA": 43}
    assert list(r.subgroups) == ["dose", "view"]
    assert r.statements == (
        "The column site has 90 different values: not measured by subgroup.",
        "Subgroups of fewer than 10 images are not measured: dose = unknown, view = lateral.",
        "The overall figures pool several sources: read them beside those of each source.",
    )
    assert r.predictions[84].groups == {"dose": "0 to below 7", "view": "PA"}
    assert r.predictions[0].groups["dose"] == "unknown"
    assert not report(y, p).by_source
    single = report(y, p, sources=["one"] * 90, data="validation patients")
    assert single.by_source["one"].auroc == single.auroc
    assert not single.statements
    assert single.data == "validation patients"


def test_unreadable_images_are_counted_apart() -> None:
    y, p = two(40)
    p[:3] = np.nan
    r = report(
        y, p, status=["refused", "unreadable", "unreadable"] + ["ok"] * 37, reasons=["a hand", "cut", "", *[""] * 37]
    )
    assert (r.n, r.n_refused, r.n_unreadable, int(r.confusion_matrix.sum())) == (40, 1, 2, 37)
    assert r.statements[0].startswith("Of 40 images, 1 refused and 2 unreadable. ")
    assert [(row.status, row.reasons) for row in r.predictions[:3]] == [
        ("refused", "a hand"),
        ("unreadable", "cut"),
        ("unreadable", ""),
    ]


def test_images_of_other_labels_are_in_no_figure_but_their_own() -> None:
    y, p = two(100)
    other = [None] * 100 + ["TB"] * 6 + ["EFFUSION"] * 4
    q = np.array([[0.1, 0.9], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1], [0.9, 0.1], [np.nan] * 2] + [[0.8, 0.2]] * 4)
    options: dict[str, Any] = {"sources": ["a", "b"] * 55, "groups": {"sex": ["F", "M"] * 55}}
    r = report([*y, *[0] * 10], np.concatenate([p, q]), other=other, **options)
    bare = report(y, p, sources=["a", "b"] * 50, groups={"sex": ["F", "M"] * 50})
    assert r.n == 100
    for name in NAMES:
        assert getattr(r, name) == getattr(bare, name), name
    assert r.by_source["a"].n == bare.by_source["a"].n == 50
    assert r.subgroups["sex"]["F"].auroc == bare.subgroups["sex"]["F"].auroc
    tb = r.by_other["TB"]
    assert (tb.n, tb.n_refused, tb.n_unreadable, tb.n_patients) == (6, 1, 0, None)
    called = wilson(2, 5)
    assert (tb.called_positive.value, tb.called_positive.low) == (pytest.approx(0.4), pytest.approx(called.low))
    assert r.by_other["EFFUSION"].called_positive.value == 0
    assert [row.truth for row in r.predictions[98:101]] == [r.labels[y[98]], r.labels[y[99]], "TB"]
    assert len(r.table()) == 110
    assert curves(r).auroc == pytest.approx(bare.auroc.value)  # type: ignore[union-attr]
    assert Report.from_json(r.to_json()).by_other == r.by_other


def test_other_labels_keep_patients_together() -> None:
    p = np.array([[0.1, 0.9], [0.9, 0.1]] * 2 + [[0.2, 0.8], [0.2, 0.8], [0.9, 0.1], [0.9, 0.1]] * 5)
    other = [None] * 4 + ["TB"] * 20
    once = report([1, 0] * 2 + [0] * 20, p, other=other).by_other["TB"].called_positive
    paired = (
        report([1, 0] * 2 + [0] * 20, p, other=other, patients=[None] * 4 + [f"p{i // 2}" for i in range(20)])
        .by_other["TB"]
        .called_positive
    )
    assert once.value == paired.value == 0.5
    assert paired.high - paired.low > once.high - once.low


def test_other_labels_of_three_classes_are_called_the_second() -> None:
    y, p = many(60, 3)
    r = report([*y, 0, 0], [*p, [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], ("NORMAL", "B", "C"), other=[None] * 60 + ["TB"] * 2)
    assert r.by_other["TB"].called_positive.value == 0.5


def test_three_labels_with_a_threshold_for_the_second() -> None:
    p = [[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.6, 0.2, 0.2], [0.2, 0.1, 0.7], [0.1, 0.8, 0.1]]
    r = report([0, 1, 0, 2, 1], p, ("NORMAL", "PNEUMONIA", "OTHER"), threshold=0.25)
    assert [row.label for row in r.predictions] == ["PNEUMONIA", "PNEUMONIA", "NORMAL", "OTHER", "PNEUMONIA"]
    assert report([0, 1, 0, 2, 1], p, r.labels).predictions[1].label == "OTHER"


def test_age_sex_and_view_are_subgroups_by_default() -> None:
    y, p = two(60)
    groups = {
        "Patient Age": ["4", "017Y", "008M", "18", "61", "411"] * 10,
        "Gender": ["Female", "m", "F", "male", "", "M"] * 10,
        "ViewPosition": ["AP supine", "pa", "AP", "PA", "PA", "lateral"] * 10,
    }
    r = report(y, p, groups=groups)
    assert {name: part.n for name, part in r.subgroups["Patient Age"].items()} == {
        "children": 30,
        "adults": 20,
        "unknown": 10,
    }
    assert {name: part.n for name, part in r.subgroups["Gender"].items()} == {"F": 20, "M": 30, "unknown": 10}
    assert {name: part.n for name, part in r.subgroups["ViewPosition"].items()} == {"AP": 20, "PA": 30, "lateral": 10}
    adults = report(y, p, groups={"age": [str(20 + i) for i in range(60)]})
    assert len(adults.subgroups["age"]) == 4  # quartiles, where there are no children


def test_gaps_between_subgroups_are_named_where_they_are_larger_than_chance() -> None:
    y = np.tile([0, 1], 200)
    sex = np.repeat(["F", "M"], 200)
    right = np.random.default_rng(0).random(400) < np.where((sex == "M") & (y == 1), 0.6, 0.95)
    p = np.eye(2)[np.where(right, y, 1 - y)] * 0.8 + 0.1
    [gap] = [s for s in report(y, p, groups={"sex": sex.tolist()}).statements if "differs" in s and "Sens" in s]
    assert gap.startswith("Sensitivity (recall) differs by sex: 0.")
    assert " for M, " in gap
    assert not any("Specificity differs" in s for s in report(y, p, groups={"sex": sex.tolist()}).statements)
    named = 0
    for seed in range(40):
        y, p = two(200, seed=seed)
        statements = report(y, p, groups={"sex": ["F", "M"] * 100}).statements
        named += sum(s.startswith("Specificity differs") for s in statements)
    assert named <= 5  # one in twenty by chance


def test_the_difference_of_two_proportions_is_newcombes() -> None:
    e = difference(wilson(56, 70), wilson(48, 80))  # his table II, example a, method 10
    assert (e.value, e.low, e.high) == (
        pytest.approx(0.2),
        pytest.approx(0.0524, abs=1e-4),
        pytest.approx(0.3339, abs=1e-4),
    )
    of_three = difference(wilson(56, 70), wilson(48, 80), comparisons=3)
    assert of_three.low < e.low < e.high < of_three.high


# --- the report itself


def full() -> Report:
    y, p = two(60)
    p[:3] = np.nan
    return report(
        y,
        p,
        patients=[None if i == 5 else f"p{i // 2}" for i in range(60)],
        sources=["a", "b"] * 30,
        groups={"sex": ["F", "M", "M"] * 20},
        reasons=["not a radiograph, it seems"] + [None] * 59,
    )


@pytest.mark.parametrize(
    "make", [full, lambda: report(*many(40), ("A", "B", "C", "D")), lambda: report([1], [[0.2, 0.8]])]
)
def test_json_reads_back_the_same(make: Any) -> None:
    r = make()
    again = Report.from_json(r.to_json())
    assert again.to_json() == r.to_json()
    assert again.predictions[-1] == r.predictions[-1]
    assert again.labels == r.labels
    assert again.statements == r.statements
    assert again.confusion_matrix.dtype == np.int64
    assert (again.confusion_matrix == r.confusion_matrix).all()
    assert "NaN" not in r.to_json()
    assert json.loads(r.to_json(predictions=False))["predictions"] == []


def test_json_without_predictions_names_no_image_and_no_patient() -> None:
    text = full().to_json(predictions=False)
    assert "image1" not in text
    assert '"p1"' not in text
    with pytest.raises(ValueError, match="the report lacks its predictions, which curves need"):
        reliability(Report.from_json(text))


def test_print_is_a_table() -> None:
    y, p = two(60)
    p[0] = np.nan
    text = str(
        report(
            [*y, 0],
            [*p, [0.1, 0.9]],
            sources=["a", "b"] * 30 + ["b"],
            groups={"sex": ["F", "M"] * 30 + ["F"]},
            other=[None] * 60 + ["TB"],
            data="clinic (test)",
        )
    )
    blocks = text.split("\n\n")
    assert blocks[0] == (
        "clinic (test) · NORMAL versus PNEUMONIA · 60 images, 1 refused · PNEUMONIA from a probability of 0.5"
    )
    titles = ["", "", "Source", "Subgroup by sex", "Other labels", "- Of 60 images"]
    assert [re.match(title, block) is not None for title, block in zip(titles, blocks[1:], strict=True)] == [True] * 6
    for block in blocks[1:-1]:
        assert len({len(line) for line in block.splitlines()}) == 1  # aligned
    assert re.search(r"^AUROC +0\.\d{3} +0\.\d{3}–[01]\.\d{3}$", text, re.MULTILINE)
    assert re.search(r"^TB +1 +0 +1\.000 \(0\.207–1\.000\)$", text, re.MULTILINE)
    assert "refusals" in text
    assert "refusals" not in str(report(y[1:], p[1:]))
    assert "undefined" in str(report([1], [[0.2, 0.8]]))


def test_a_data_frame_of_the_predictions() -> None:
    pandas = pytest.importorskip("pandas")
    frame = full().to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(full().table()[0])
    assert len(frame) == 60


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 99},
        {"auroc": {"value": 1, "low": 0}},
        {"labels": ["one"]},
        {"surprise": 1},
        {"auroc": {"value": 0.5, "low": 0.6, "high": 0.7}},
    ],
)
def test_json_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    data = {**json.loads(full().to_json()), **change}
    with pytest.raises(ValueError, match="this is not a cxrlib report of schema 2: "):
        Report.from_json(json.dumps(data))
    for text in ("[]", "no json", "[" * 100_000):
        with pytest.raises(ValueError, match="this is not a cxrlib report of schema 2: "):
            Report.from_json(text)


def test_save_writes_every_file(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    r = full()
    assert r.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    folder = tmp_path / "new" / "folder"
    assert Report.from_json((folder / "report.json").read_text("utf-8")).to_json() == r.to_json()
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "name",
        "truth",
        "label",
        "probability_NORMAL",
        "probability_PNEUMONIA",
        "status",
        "reasons",
        "patient",
        "source",
        "sex",
    ]
    assert (rows[0]["label"], rows[0]["probability_NORMAL"], rows[0]["reasons"]) == (
        "",
        "",
        "not a radiograph, it seems",
    )
    assert len(rows) == 60
    assert float(rows[9]["probability_PNEUMONIA"]) == r.predictions[9].probabilities[1]
    assert rows[9]["patient"] == "p4"
    assert (
        (folder / "report.html").read_text("utf-8").count("data:image/png;base64,")
        == len(list((folder / "figures").glob("*.png")))
        == 6
    )


def test_threshold_is_inclusive() -> None:
    assert report([1, 0], [[0.3, 0.7], [0.31, 0.69]], threshold=0.7).confusion_matrix.tolist() == [[1, 0], [0, 1]]


def test_report_is_frozen() -> None:
    with pytest.raises(AttributeError):
        full().n = 3  # type: ignore[misc]
    assert set(METRICS + WITH_REFUSALS) <= set(Report.__dataclass_fields__)


def test_estimate_prints_and_checks_itself() -> None:
    assert [
        str(e) for e in (Estimate(0.5, 0.4, 0.625), Estimate(0.5, math.nan, math.nan), Estimate(*[math.nan] * 3))
    ] == [
        "0.500 (0.400–0.625)",
        "0.500 (no interval)",
        "undefined",
    ]
    with pytest.raises(
        ValueError, match=r"an interval must hold its value\. Received: value=0\.5, low=0\.6, high=0\.7"
    ):
        Estimate(0.5, 0.6, 0.7)


# --- messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"targets": [0, 2]},
            r"targets must hold integers in \[0, 1\], in one dimension\. Received: \[0 2\] of type int64",
        ),
        ({"targets": [0.0, 1.0]}, r"targets must hold .* of type float64"),
        ({"targets": []}, r"names must have one entry for each of the 0 images"),
        (
            {"probabilities": [[0.5, 0.5]]},
            r"one row per image and one column per label: shape \(2, 2\)\. Received: shape \(1, 2\)",
        ),
        (
            {"probabilities": [[0.5, 0.5], [0.9, 0.9]]},
            r"add up to 1 in each row, or be nan throughout the row\. Received: \[0\.9, 0\.9\] in row 1",
        ),
        ({"probabilities": [[0.5, 0.5], [-0.5, 1.5]]}, r"probabilities must lie in \[0, 1\] .* in row 1"),
        (
            {"probabilities": [[0.5, math.nan], [0.5, 0.5]]},
            r"probabilities must lie in \[0, 1\] .* Received: \[0\.5, nan\] in row 0",
        ),
        ({"labels": ["one"]}, "labels must be two or more different"),
        ({"threshold": None}, r"threshold must lie in \[0, 1\]\. Received: threshold=None"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\]\. Received: threshold=1\.5"),
        ({"names": ["a"]}, "names must have one entry for each of the 2 images. Received: 1 entries"),
        ({"names": ["a", "a"]}, "names must all be different. Received: 'a' more than once"),
        ({"patients": ["a"]}, "patients must have one entry for each of the 2 images"),
        ({"groups": {"age": ["1"]}}, r"groups\['age'\] must have one entry for each of the 2 images"),
        (
            {"status": ["refused", "ok"]},
            "status must be \"ok\" for images with probabilities, .* Received: 'refused' for a",
        ),
        ({"status": ["ok", "lost"]}, "Received: 'lost' for b"),
        ({"other": ["NORMAL", None]}, "other must name labels that the model does not have. Received: NORMAL"),
        ({"other": ["X", "X"]}, "targets must hold an image of NORMAL or PNEUMONIA"),
        ({"n_bootstrap": 10}, "n_bootstrap must be at least 100. Received: n_bootstrap=10"),
    ],
)
def test_messages(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "targets": [0, 1],
        "probabilities": [[0.9, 0.1], [0.2, 0.8]],
        "labels": TWO,
        "threshold": 0.5,
        "names": ["a", "b"],
    }
    options = {**good, **change}
    with pytest.raises(ValueError, match=message):
        make_report(options.pop("targets"), options.pop("probabilities"), **options)


def test_other_messages() -> None:
    with pytest.raises(ValueError, match=r"successes must lie in \[0, total\]\. Received: successes=3, total=2"):
        wilson(3, 2)
