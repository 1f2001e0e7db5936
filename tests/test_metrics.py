"""Metrics against scikit-learn, intervals against simulation, reports against themselves read back."""

from __future__ import annotations

import csv
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest

from cxrlib import metrics
from cxrlib.metrics import METRICS, WITH_REFUSALS, Estimate, Report, compare, curves, fit_temperature, make_report, net_benefit, reliability, wilson

sk = pytest.importorskip("sklearn.metrics")
TWO = ("NORMAL", "PNEUMONIA")


def two(n: int = 200, *, seed: int = 0, separation: float = 2.0, digits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Truth and calibrated probabilities; with `digits`, rounded so that scores tie."""
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
    options = {"threshold": 0.5 if len(labels) == 2 else None, "names": [f"film{i}.png" for i in range(len(y))], "n_bootstrap": 100, **options}
    return make_report(y, p, labels=labels, **options)


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
            "average_precision": float(np.mean([sk.average_precision_score(y == c, p[:, c]) for c in classes])) if (y > 0).any() or k > 2 else math.nan,
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
    "only positive films": ([1, 1, 1], [0.1, 0.6, 0.9]),
    "only negative films": ([0, 0, 0], [0.1, 0.6, 0.9]),
    "nothing called positive": ([0, 1, 1], [0.1, 0.2, 0.3]),
    "everything called positive": ([0, 1, 1], [0.7, 0.9, 0.8]),
    "one film": ([1], [1.0]),
    "certain": ([0, 1, 1, 0], [0.0, 1.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_films_equal_scikit_learn(case: str) -> None:
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
            assert any(name in s for s in r.statements)


def test_absent_labels_are_left_out_of_the_means() -> None:
    y, p = many(60)
    y = np.where(y == 3, 0, y)
    r = report(y, p, ("A", "B", "C", "D"))
    check(r, y, p)
    assert r.statements[0] == "No film is labelled D: what needs one is undefined."


def test_one_class_says_what_is_undefined() -> None:
    r = report([1, 1, 1], [[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    assert r.statements[:2] == ("No film is labelled NORMAL: what needs one is undefined.", "Undefined on these films: auroc, specificity.")
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


def test_curves_equal_scikit_learn() -> None:
    y, p = two(150, digits=2)
    c = curves(report(y, p))
    assert c is not None
    fpr, tpr, thresholds = sk.roc_curve(y, p[:, 1], drop_intermediate=False)
    np.testing.assert_allclose([c.fpr, c.tpr, c.thresholds], [fpr[1:], tpr[1:], thresholds[1:]])
    precision, recall, _ = sk.precision_recall_curve(y, p[:, 1])
    np.testing.assert_allclose([c.precision[::-1], c.tpr[::-1]], [precision[:-1], recall[:-1]])
    assert (c.auroc, c.average_precision) == (pytest.approx(sk.auc(fpr, tpr)), pytest.approx(sk.average_precision_score(y, p[:, 1])))
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


# --- intervals


def test_wilson_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for successes, total in ((0, 10), (10, 10), (3, 7), (599, 624), (1, 1)):
        e = wilson(successes, total)
        interval = stats.binomtest(successes, total).proportion_ci(method="wilson")
        assert (e.low, e.high) == (pytest.approx(interval.low, abs=1e-9), pytest.approx(interval.high, abs=1e-9))
    assert math.isnan(wilson(0, 0).value)


def test_films_without_patients_have_wilsons_intervals() -> None:
    y, p = two(100)
    for patients in (None, [None] * 100, [f"p{i}" for i in range(100)]):
        r = report(y, p, patients=patients)
        (tn, fp), (fn, tp) = r.confusion_matrix.tolist()
        assert r.recall == wilson(tp, tp + fn)
        assert r.specificity == wilson(tn, tn + fp)
        assert r.accuracy == wilson(tp + tn, 100)
        assert r.precision == wilson(tp, tp + fp)
        assert r.npv == wilson(tn, tn + fn)


def test_weights_of_a_resample_count_as_films_drawn_again() -> None:
    y, p = two(60, digits=1)
    predicted = (p[:, 1] >= 0.5).astype(int)
    drawn = np.random.default_rng(1).integers(0, 60, 60)
    weighted = metrics._measurer(y, p, predicted)(np.bincount(drawn, minlength=60)[None].astype(float))
    again = metrics._measurer(y[drawn], p[drawn], predicted[drawn])(np.ones((1, 60)))
    for name in METRICS:
        assert weighted[name][0] == pytest.approx(again[name][0]), name


def test_copies_of_a_film_add_no_certainty() -> None:
    y, p = two(80)
    once = report(y, p, n_bootstrap=2000)
    thrice = report(np.repeat(y, 3), np.repeat(p, 3, axis=0), patients=[f"p{i // 3}" for i in range(240)], n_bootstrap=2000)
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
    whole = np.concatenate(list(metrics._resamples(clusters, 40, 0)))
    assert whole.shape == (40, 50)
    assert (whole[:, ::2] == whole[:, 1::2]).all()
    assert (whole[:, ::2].sum(1) == 25).all()
    tall = metrics._resamples(np.arange(1_000_001) // 2, 2, 0)
    assert next(tall).shape[0] == 1


def coverage(draw: Any, truth: dict[str, float], names: tuple[str, ...], repeats: int, **options: Any) -> dict[str, float]:
    held = dict.fromkeys(names, 0)
    for i in range(repeats):
        y, p, patients = draw(i)
        r = report(y, p, patients=patients, **options)
        for name in names:
            held[name] += getattr(r, name).low <= truth[name] <= getattr(r, name).high
    return {name: count / repeats for name, count in held.items()}


def clustered(patients: int, films: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Calibrated films of patients whose scores go together."""
    rng = np.random.default_rng(seed)
    y = np.repeat((rng.random(patients) < 0.6).astype(int), films)
    noise = 0.7 * np.repeat(rng.normal(size=patients), films) + math.sqrt(0.51) * rng.normal(size=patients * films)
    p = 1 / (1 + np.exp(-(3 * (noise + 3 * (y - 0.5)) + math.log(1.5))))
    return y, np.stack([1 - p, p], axis=1), [f"p{i // films}" for i in range(patients * films)]


@pytest.mark.parametrize("films", [1, 3])
def test_intervals_cover_the_truth(films: int) -> None:
    names = ("auroc", "average_precision", "accuracy", "precision", "recall", "specificity", "f1", "npv", "brier", "ece")
    y, p, _ = clustered(60_000, films, 999)
    truth = {name: float(v[0]) for name, v in metrics._measurer(y, p, (p[:, 1] >= 0.5).astype(int))(np.ones((1, len(y)))).items()}
    held = coverage(lambda i: clustered(150, films, i), truth, names, 200, n_bootstrap=150)
    # 200 repeats of a 95 % interval lie within 0.905 to 0.98 nineteen times in twenty; what is conservative may hold more often.
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
        samples = [block["auroc"] for block in map(metrics._measurer(y, p, (p[:, 1] >= 0.5).astype(int)), metrics._resamples(np.arange(300), 200, 0))]
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


def test_a_single_patient_gives_no_interval() -> None:
    r = report([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], patients=["a", "a", "a"])
    assert str(r.recall) == "0.500 (no interval)"
    assert r.statements[-1].startswith("Without an interval, because resampling leaves them undefined or does not move them: auroc, ")


# --- comparison


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


def test_compare_finds_films_by_name_and_leaves_out_refused_ones() -> None:
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
    for b in (report(1 - y, p), report(y, p, labels=("A", "B")), report(y[:9], p[:9]), Report.from_json(a.to_json(predictions=False))):
        with pytest.raises(ValueError, match=r"both reports must hold the predictions of the same films .* Received: 20 films of NORMAL, PNEUMONIA and"):
            compare(a, b)
    one = report([1, 1], [[0.2, 0.8], [0.3, 0.7]])
    with pytest.raises(ValueError, match=r"films of at least two classes that neither model refused\. Received: 2 films of 1 classes"):
        compare(one, one)


# --- temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(temperature: float) -> None:
    y, p = two(20_000)
    logits = np.log(p[:, 1] / p[:, 0])
    assert fit_temperature(logits * temperature, y) == pytest.approx(temperature, rel=0.05)


def test_temperature_has_the_least_loss() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    y, p = many(300)
    z = 2.5 * np.log(p)
    best = optimize.minimize_scalar(lambda t: sk.log_loss(y, np.exp(z / t) / np.exp(z / t).sum(1, keepdims=True)), bounds=(0.05, 20), method="bounded")
    assert fit_temperature(z, y) == pytest.approx(best.x, rel=1e-3)


def test_temperature_of_one_logit_is_that_of_two() -> None:
    y, p = two(100)
    z = np.log(p)
    assert fit_temperature(z, y) == pytest.approx(fit_temperature(z[:, 1] - z[:, 0], y))


def test_temperature_ends_where_none_is_best() -> None:
    assert fit_temperature([-1.0, 1.0], [0, 1]) == pytest.approx(0.05)
    assert fit_temperature([1.0, -1.0], [0, 1]) == pytest.approx(20)
    assert fit_temperature([1e5, -1e5, 1e5], [1, 0, 0]) == pytest.approx(20)


def test_temperature_says_what_is_wrong() -> None:
    for logits, y in (([0.0, 1.0], [0, 1, 1]), ([0.0, math.inf], [0, 1]), (np.zeros((2, 1)), [0, 1]), (np.zeros((2, 2, 2)), [0, 1])):
        with pytest.raises(ValueError, match=r"logits must be finite, of shape \(n,\) or \(n, k\), with n labels\. Received: logits of shape"):
            fit_temperature(logits, y)
    with pytest.raises(ValueError, match="a temperature needs films of at least two classes"):
        fit_temperature([0.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match=r"truth must hold at least one integer in \[0, 1\]"):
        fit_temperature([0.0, 1.0], [0, 2])


# --- refusals, sources, subgroups


def test_refused_films_are_counted_and_left_out() -> None:
    y, p = two(100)
    accepted = np.arange(100) >= 10
    q = np.where(accepted[:, None], p, np.nan)
    r = report(y, q, refused=["" if a else "a hand" for a in accepted])
    check(r, y[accepted], p[accepted])
    bare = report(y[accepted], p[accepted])
    assert (r.n, r.n_refused, r.confusion_matrix.sum()) == (100, 10, 90)
    assert [getattr(r, n).value for n in METRICS] == [getattr(bare, n).value for n in METRICS]
    tp = int(r.confusion_matrix[1, 1])
    assert r.sensitivity_with_refusals_missed == wilson(tp, int(y.sum()))
    assert r.accuracy_with_refusals_wrong == wilson(int(np.trace(r.confusion_matrix)), 100)
    assert r.statements == ("10 of 100 films were refused and count in no metric but the two that say so.",)
    assert (r.predictions[0].label, r.predictions[0].refused, r.predictions[10].refused) == (None, "a hand", "")
    assert math.isnan(r.predictions[0].probabilities[0])


def test_all_films_refused() -> None:
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
    ages = [None if i == 0 else str(i % 40) for i in range(90)]
    views = ["AP" if i % 2 else "PA" for i in range(85)] + ["lateral"] * 5
    r = report(y, p, sources=sources, groups={"age": ages, "view": views, "site": [f"site {i}" for i in range(90)], "empty": [None] * 90})
    assert {name: part.n for name, part in r.by_source.items()} == {"here": 60, "there": 30}
    assert r.by_source["there"].auroc.value == pytest.approx(sk.roc_auc_score(y[60:], p[60:, 1]))
    assert list(r.subgroups["age"]) == ["0 to below 7", "7 to below 17", "17 to below 28", "28 to 39"]
    assert sum(part.n for part in r.subgroups["age"].values()) == 89
    assert {name: part.n for name, part in r.subgroups["view"].items()} == {"AP": 42, "PA": 43}
    assert list(r.subgroups) == ["age", "view"]
    assert r.statements == (
        "The column site has 90 different values and is not measured by subgroup.",
        "Subgroups of fewer than 10 films are not measured: age = unknown, view = lateral.",
        "The overall figures pool several sources: read them beside those of each source.",
    )
    assert r.predictions[84].groups == {"age": "0 to below 7", "view": "PA"}
    assert r.predictions[0].groups["age"] == "unknown"
    assert not report(y, p).by_source
    single = report(y, p, sources=["one"] * 90, data="validation patients")
    assert single.by_source["one"].auroc == single.auroc
    assert not single.statements
    assert single.data == "validation patients"


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
        refused=["not a film, it seems"] + [None] * 59,
    )


@pytest.mark.parametrize("make", [full, lambda: report(*many(40), ("A", "B", "C", "D")), lambda: report([1], [[0.2, 0.8]])])
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


def test_json_without_predictions_names_no_film_and_no_patient() -> None:
    text = full().to_json(predictions=False)
    assert "film1" not in text
    assert '"p1"' not in text
    with pytest.raises(ValueError, match="the report lacks its predictions, which curves are drawn from"):
        reliability(Report.from_json(text))


@pytest.mark.parametrize(
    "change", [{"schema": 99}, {"auroc": {"value": 1, "low": 0}}, {"labels": ["one"]}, {"surprise": 1}, {"auroc": {"value": 0.5, "low": 0.6, "high": 0.7}}]
)
def test_json_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    data = {**json.loads(full().to_json()), **change}
    with pytest.raises(ValueError, match="this is no cxrlib report of schema 1: "):
        Report.from_json(json.dumps(data))
    for text in ("[]", "no json", "[" * 100_000):
        with pytest.raises(ValueError, match="this is no cxrlib report of schema 1: "):
            Report.from_json(text)


def test_save_writes_every_file(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    r = full()
    assert r.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    folder = tmp_path / "new" / "folder"
    assert Report.from_json((folder / "report.json").read_text("utf-8")).to_json() == r.to_json()
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "truth", "label", "probability_NORMAL", "probability_PNEUMONIA", "refused", "patient", "source", "sex"]
    assert (rows[0]["label"], rows[0]["probability_NORMAL"], rows[0]["refused"]) == ("", "", "not a film, it seems")
    assert len(rows) == 60
    assert float(rows[9]["probability_PNEUMONIA"]) == r.predictions[9].probabilities[1]
    assert rows[9]["patient"] == "p4"
    assert (folder / "report.html").read_text("utf-8").count("data:image/png;base64,") == len(list((folder / "figures").glob("*.png"))) == 6


def test_threshold_is_inclusive() -> None:
    assert report([1, 0], [[0.3, 0.7], [0.31, 0.69]], threshold=0.7).confusion_matrix.tolist() == [[1, 0], [0, 1]]


def test_report_is_frozen() -> None:
    with pytest.raises(AttributeError):
        full().n = 3  # type: ignore[misc]
    assert set(METRICS + WITH_REFUSALS) <= set(Report.__dataclass_fields__)


def test_estimate_prints_and_checks_itself() -> None:
    assert [str(e) for e in (Estimate(0.5, 0.4, 0.625), Estimate(0.5, math.nan, math.nan), Estimate(*[math.nan] * 3))] == [
        "0.500 (0.400–0.625)",
        "0.500 (no interval)",
        "undefined",
    ]
    with pytest.raises(ValueError, match=r"an interval must hold its value\. Received: value=0\.5, low=0\.6, high=0\.7"):
        Estimate(0.5, 0.6, 0.7)


# --- messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": [0, 2]}, r"truth must hold at least one integer in \[0, 1\] in one dimension\. Received: \[0 2\] of type int64"),
        ({"truth": [0.0, 1.0]}, r"truth must hold .* of type float64"),
        ({"truth": []}, r"truth must hold at least one integer"),
        ({"probabilities": [[0.5, 0.5]]}, r"probabilities must have one row per film and one column per label: shape \(2, 2\)\. Received: shape \(1, 2\)"),
        ({"probabilities": [[0.5, 0.5], [0.9, 0.9]]}, r"add up to 1 in each row, or be nan throughout a refused film's\. Received: \[0\.9, 0\.9\] in row 1"),
        ({"probabilities": [[0.5, 0.5], [-0.5, 1.5]]}, r"probabilities must lie in \[0, 1\] .* in row 1"),
        ({"probabilities": [[0.5, math.nan], [0.5, 0.5]]}, r"probabilities must lie in \[0, 1\] .* Received: \[0\.5, nan\] in row 0"),
        ({"labels": ["one"]}, "labels must be two or more different"),
        ({"threshold": None}, r"threshold must lie in \[0, 1\] when there are two labels\. Received: threshold=None"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\] when there are two labels\. Received: threshold=1\.5"),
        ({"names": ["a"]}, "names must have one entry for each of the 2 films. Received: 1 entries"),
        ({"names": ["a", "a"]}, "names must all be different. Received: 'a' more than once"),
        ({"patients": ["a"]}, "patients must have one entry for each of the 2 films"),
        ({"groups": {"age": ["1"]}}, r"groups\['age'\] must have one entry for each of the 2 films"),
        ({"refused": ["a hand", ""]}, "refused gives a reason for films that have probabilities. Received: a"),
        ({"n_bootstrap": 10}, "n_bootstrap must be at least 100. Received: n_bootstrap=10"),
    ],
)
def test_messages(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"truth": [0, 1], "probabilities": [[0.9, 0.1], [0.2, 0.8]], "labels": TWO, "threshold": 0.5, "names": ["a", "b"]}
    options = {**good, **change}
    with pytest.raises(ValueError, match=message):
        make_report(options.pop("truth"), options.pop("probabilities"), **options)


def test_other_messages() -> None:
    y, p = many(20)
    with pytest.raises(ValueError, match=r"threshold must be None with three or more labels: the most probable one is predicted\. Received: threshold=0\.5"):
        report(y, p, ("A", "B", "C", "D"), threshold=0.5)
    with pytest.raises(ValueError, match=r"successes must lie in \[0, total\]\. Received: successes=3, total=2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match=r"label must be one of NORMAL, PNEUMONIA\. Received: label='COVID'"):
        curves(report(*two(20)), "COVID")
