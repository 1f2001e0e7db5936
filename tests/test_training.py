"""Training: the draw of an epoch, both phases, resume, and what a finished run leaves. Networks are tiny and random: real figures are measured elsewhere."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the [train] extra")

from cxrlib import ImageError, Predictor, TrainConfig, bundle, train, training
from cxrlib.config import AugmentConfig, BundleError  # noqa: E402
from cxrlib.data import split as sampling  # noqa: E402
from cxrlib.data.audit import Audit  # noqa: E402
from cxrlib.data.cache import Facts  # noqa: E402
from cxrlib.data.scan import Dataset, scan  # noqa: E402
from cxrlib.images import decode as images
from cxrlib.images import phantom
from cxrlib.network import fit as fitting
from cxrlib.network import head
from cxrlib.network.model import build_model  # noqa: E402

TINY = TrainConfig(
    image_size=32,
    epochs=2,
    views=1,
    batch_size=8,
    fine_tune_from="block_12_expand",
    average=2,
    validation=0.25,
    learning_rate=5e-5,
    compression_penalty=0.5,
    calm_penalty=0.5,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    return phantom.write(tmp_path_factory.mktemp("films") / "phantoms", n=16, seed=3, size=64)


@pytest.fixture(scope="module")
def whole(films, tmp_path_factory) -> training.TrainingRun:
    """A run that nothing stopped."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRLIB_CACHE", str(home / "cache"))
        return train(
            films, output=home / "runs" / "first", config=TINY, init=None, formats=("keras", "h5"), progress=False
        )


def dataset(counts: dict[tuple[str, int], int]) -> Dataset:
    rows = [stratum for stratum, n in counts.items() for _ in range(n)]
    n = len(rows)
    return Dataset(
        tuple(map(str, range(n))),
        np.array([t for _, t in rows]),
        ("NORMAL", "PNEUMONIA"),
        (None,) * n,
        tuple(s for s, _ in rows),
        (None,) * n,
    )


def strata(data: Dataset, chosen: np.ndarray, weights: np.ndarray) -> Counter:
    total: Counter = Counter()
    for i, w in zip(chosen.tolist(), weights.tolist(), strict=True):
        total[data.sources[i], int(data.targets[i])] += w
    return total


@pytest.mark.parametrize("balance", ["sample", "weights"])
def test_classes_count_alike_within_a_source_and_sources_by_their_power(balance):
    data = dataset({("big", 0): 200, ("big", 1): 600, ("small", 0): 30, ("small", 1): 20})
    chosen, weights = sampling.draw(data, TrainConfig(balance=balance, source_power=0.5), len(data), 1, {})
    parts = strata(data, chosen, weights)
    assert parts["big", 0] == pytest.approx(parts["big", 1], rel=0.1)
    assert parts["small", 0] == pytest.approx(parts["small", 1], abs=12)
    assert (parts["big", 0] + parts["big", 1]) / (parts["small", 0] + parts["small", 1]) == pytest.approx(
        4.0, rel=0.15
    )  # (800 / 50) ** 0.5
    assert weights.mean() == pytest.approx(1, abs=0.01)


def test_a_source_that_is_believed_less_is_drawn_less():
    data = dataset({("big", 0): 100, ("big", 1): 300, ("small", 0): 50, ("small", 1): 50})
    parts = strata(data, *sampling.draw(data, TrainConfig(), len(data), 1, {"small": 0.25}))
    assert parts["big", 0] == pytest.approx(parts["big", 1], abs=2)
    assert (parts["big", 0] + parts["big", 1]) / (parts["small", 0] + parts["small", 1]) == pytest.approx(16, rel=0.1)


def test_classes_count_alike_within_a_view():
    data = dataset({("clinic", 0): 100, ("clinic", 1): 100})
    data = dataclasses.replace(data, columns={"view": ("AP",) * 20 + ("PA",) * 80 + ("AP",) * 80 + ("PA",) * 20})
    chosen, _ = sampling.draw(data, TrainConfig(), len(data), 1, {})
    drawn = Counter(chosen // 20 == 0 for chosen in chosen.tolist() if chosen < 100)
    assert drawn[True] == pytest.approx(50, abs=1)  # of the healthy, the fifth that lie count as much as the others
    chosen, _ = sampling.draw(data, TrainConfig(balance_by=()), len(data), 1, {})
    assert sorted(chosen.tolist()) == list(range(200))


def test_a_film_has_the_view_of_its_manifest_else_that_of_its_file():
    data = dataset({("clinic", 0): 2, ("clinic", 1): 2})
    facts = [Facts("", view=view) for view in ("AP", None, "PA", None)]
    assert training._with_declared_views(data, facts).columns == {"view": ("AP", "", "PA", "")}
    told = dataclasses.replace(data, columns={"view": ("PA", "AP", "", "")})
    assert training._with_declared_views(told, facts).columns == {"view": ("PA", "AP", "PA", "")}
    assert training._with_declared_views(data, [Facts("")] * 4).columns == {}


def test_films_are_grouped_by_their_framing_unless_the_data_say_it_or_nobody_asks(tmp_path):
    data = dataset({("clinic", 0): 150, ("clinic", 1): 150})
    pixels = np.stack([phantom.draw(i, size=160) for i in range(300)])
    films = np.stack(
        [film[24 * (i < 150) : 24 * (i < 150) + 128, 16:144] for i, film in enumerate(pixels)]
    )  # lungs of the healthy lie higher
    grouped = training._with_framing(data, films, TrainConfig()).columns["framing"]
    healthy = Counter(grouped[:150])
    assert healthy.total() == 150
    assert set(grouped) == {f"{i} of 6" for i in range(1, 7)}
    assert healthy["1 of 6"] > 40 > 10 > healthy["6 of 6"]
    told = dataclasses.replace(data, columns={"framing": ("a", "b") * 150})
    assert training._with_framing(told, films, TrainConfig()) is told
    assert training._with_framing(data, films, TrainConfig(balance_by=("view",))) is data
    assert set(training._with_framing(data, films[::-1][np.arange(300) % 150], TrainConfig()).columns["framing"]) == {
        ""
    }


def test_labels_that_the_other_films_contradict_are_believed_less():
    data = dataset(
        {("big", 0): 200, ("big", 1): 200, ("mined", 0): 60, ("mined", 1): 60, ("few", 0): 60, ("few", 1): 10}
    )
    random, where = np.random.default_rng(0), np.array(data.sources)
    sick = np.where(
        where == "big", data.targets, random.integers(0, 2, len(data))
    )  # what the films show; the smaller sources' labels know nothing of it
    features = random.normal(size=(len(data), 12)).astype(np.float32)
    features[:, :6] += 1.5 * sick[:, None]
    features[:, 6] += np.where(
        where == "mined", 6.0 * data.targets, 0.0
    )  # but its own way of making films gives its labels away
    side = sampling.Side(np.zeros((len(data), 1, 1), np.uint8), np.arange(len(data)), data)
    trust = head._trust(features, side, TrainConfig())
    assert trust["big"] > 0.8
    assert trust["mined"] < 0.4
    assert trust["few"] == 1.0  # too few films to say
    assert head._trust(features, side, TrainConfig(source_trust=4.0))["mined"] == pytest.approx(
        trust["mined"] ** 2, abs=0.001
    )
    assert set(head._trust(features, side, TrainConfig(source_trust=0.0)).values()) == {1.0}
    one_patient = dataclasses.replace(data, patients=tuple("same" if s == "mined" else None for s in data.sources))
    assert head._trust(features, dataclasses.replace(side, films=one_patient), TrainConfig())["mined"] == 1.0
    lying = tuple(
        np.where(
            np.isin(where, ["big", "mined"]) & (random.random(len(data)) < np.where(sick == 1, 0.9, 0.1)), "AP", "PA"
        ).tolist()
    )
    seen = features.copy()
    seen[:, :6] = (4.0 * (np.array(lying) == "AP"))[:, None] + random.normal(
        size=(len(data), 6)
    )  # the films show nothing but the view
    by_view = dataclasses.replace(side, films=dataclasses.replace(data, columns={"view": lying}))
    assert head._trust(seen, side, TrainConfig())["big"] > 0.4  # which tells the ill from the healthy
    assert head._trust(seen, by_view, TrainConfig())["big"] < 0.1  # unless it may not
    alone = np.flatnonzero(where == "mined")
    assert head._trust(features[alone], sampling.Side(side.pixels, alone, data.take(alone)), TrainConfig()) == {
        "mined": 1.0
    }


def test_a_draw_repeats_no_film_more_than_it_must_and_can_be_replayed():
    data = dataset({("a", 0): 50, ("a", 1): 150})
    chosen, _ = sampling.draw(data, TrainConfig(), 200, 7, {})
    times = Counter(chosen.tolist())
    assert {times[i] for i in range(50)} == {2}
    assert {times[i] for i in range(50, 200)} == {0, 1}
    assert np.array_equal(chosen, sampling.draw(data, TrainConfig(), 200, 7, {})[0])
    assert not np.array_equal(chosen, sampling.draw(data, TrainConfig(), 200, 8, {})[0])
    plain, ones = sampling.draw(data, TrainConfig(balance="none", source_power=1.0), 200, 1, {})
    assert sorted(plain.tolist()) == list(range(200))
    assert set(ones.tolist()) == {1.0}


def test_blending_keeps_ranges_and_the_larger_part_of_every_film():
    pixels = np.stack([np.full((4, 4, 1), v, np.uint8) for v in (0, 255, 0, 255, 0, 255)])
    targets = np.array([[0], [1], [0], [1], [0], [1]], np.float32)
    blended, soft = fitting.mix(pixels, targets, 0.4, np.random.default_rng(0))
    assert blended.dtype == np.uint8
    assert blended.shape == pixels.shape
    assert (
        np.abs(blended[:, 0, 0, 0] / 255 - soft[:, 0]).max() < 0.5 / 255 + 1e-6
    )  # films and targets in the same parts
    assert ((soft >= 0.5) == (targets == 1)).all()
    assert np.unique(soft).size > 2
    again, _ = fitting.mix(pixels, targets, 0.4, np.random.default_rng(0))
    assert np.array_equal(again, blended)


def test_the_head_is_trained_on_films_and_on_augmented_views_of_them():
    net = build_model(weights=None, image_size=32)
    pooled = keras.Model(net.input, net.get_layer("dropout").input)
    films = np.stack([phantom.draw(i, size=32) for i in range(4)])[..., None]
    clean = np.asarray(pooled.predict_on_batch(films.astype(np.float32) / 255))
    still = AugmentConfig(
        **{f.name: f.name == "never" if f.type == "bool" else 0.0 for f in dataclasses.fields(AugmentConfig)}
    )
    unchanged = head._Views(fitting._trainer(net, dataclasses.replace(TINY, augment=still)), pooled, "augmented")
    assert np.allclose(np.asarray(unchanged.predict_on_batch(films)), clean, atol=1e-5)
    trainer = fitting._trainer(net, TINY)
    assert np.allclose(np.asarray(head._Views(trainer, pooled, "plain").predict_on_batch(films)), clean, atol=1e-5)
    views = head._Views(trainer, pooled, "augmented")
    one, two = (np.asarray(views.predict_on_batch(films)) for _ in range(2))
    scale = np.abs(clean).max()
    assert np.abs(one - clean).max() > 0.01 * scale
    assert np.abs(one - two).max() > 0.01 * scale  # and every view is another one
    compressed = np.asarray(head._Views(trainer, pooled, "compressed").predict_on_batch(films))
    assert 0.001 * scale < np.abs(compressed - clean).max() < np.abs(one - clean).max()


def test_the_head_relies_less_on_what_compression_changes(monkeypatch):
    n, random = 200, np.random.default_rng(0)
    data = dataset({("home", 0): n // 2, ("home", 1): n // 2})
    net = build_model(weights=None, image_size=32)
    width, telling = net.get_layer("dropout").output.shape[1], 40
    known = np.where(
        np.arange(width) < telling, data.targets[:, None] + random.normal(0, 1, (n, width)), 0
    )  # each of them says as much as any other

    class Views:
        def __init__(self, trainer, pooled, kind):
            self.moved = np.where(np.arange(width) < telling // 2, 3.0 * (kind == "compressed"), 0.0)

        def predict_on_batch(self, films):
            number = np.asarray(films)[:, 0, 0, 0].astype(int)  # of the film
            return (known[number] + self.moved * random.normal(size=(len(number), width))).astype(np.float32)

    monkeypatch.setattr(head, "_Views", Views)
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 32, 32))
    parts = []
    for penalty in (0.0, 10.0):
        config = dataclasses.replace(TINY, compression_penalty=penalty, balance="weights")
        head.fit_head(net, fitting._trainer(net, config), sampling.Side(pixels, np.arange(n), data), config)
        weight = np.abs(net.get_layer("probability").get_weights()[0][:, 0])
        parts.append(weight[: telling // 2].sum() / weight.sum())
    assert 0.4 < parts[0] < 0.6
    assert parts[1] < 0.25


def test_the_head_is_a_logistic_regression_and_the_stronger_its_penalty_the_less_it_relies_on_any_feature(monkeypatch):
    n = 40
    data = dataset({("home", 0): n // 2, ("home", 1): n // 2})
    pixels = np.stack([phantom.draw(i, opacity=bool(t), size=32) for i, t in enumerate(data.targets)])

    def features(films):  # neither centred nor of one scale
        flat = np.asarray(films).reshape(len(films), -1).astype(np.float32)
        return np.concatenate([flat / 16 - 3, flat[:, ::-1] ** 2 / 5000], axis=1)

    class Views:  # every view is the film itself, and its pixels are its features
        def __init__(self, trainer, pooled, kind):
            self.first = pooled.output_shape[1]

        def predict_on_batch(self, films):
            return features(films)[:, : self.first]

    monkeypatch.setattr(head, "_Views", Views)
    reliance = []
    for penalty in (1e-2, 1e3):
        net = build_model(weights=None, image_size=32)
        config = dataclasses.replace(TINY, head_penalty=penalty, balance="weights")
        loss, _ = head.fit_head(net, fitting._trainer(net, config), sampling.Side(pixels, np.arange(n), data), config)
        kernel, bias = net.get_layer("probability").get_weights()
        x = features(pixels)[:, : len(kernel)]
        margins = np.where(data.targets == 1, 1, -1) * (x @ kernel + bias)[:, 0]
        assert np.log1p(np.exp(-margins)).mean() == pytest.approx(
            loss, abs=1e-3
        )  # its scaling and its sharpening are in the weights
        each = np.abs(kernel[:, 0] * x.std(axis=0))
        reliance.append((loss, each.max() / each.sum()))
    (weak_loss, weak), (strong_loss, strong) = reliance
    assert weak_loss < strong_loss < 0.69
    assert strong < weak


def test_the_more_films_are_believed_the_more_of_fine_tuning_is_kept(tmp_path, monkeypatch):
    net = build_model(weights=None, image_size=32)
    for name, value in (("head", 1.0), ("recent-0", 2.0), ("recent-1", 4.0)):
        net.set_weights([np.full_like(w, value) for w in net.get_weights()])
        net.save_weights(tmp_path / f"{name}.weights.h5")
    said = []
    config = dataclasses.replace(TINY, prior_films=90)
    data = dataset({("home", 0): 10, ("home", 1): 15, ("away", 0): 25, ("away", 1): 25})
    fitting._choose_weights(
        net, data, config, tmp_path, {"epoch": 2, "best_epoch": 1, "trust": {"home": 1.0, "away": 0.1}}, said.append
    )  # 25 + 5 films
    assert all(np.allclose(w, 0.1 * 3 + 0.9) for w in net.get_weights())
    assert said == ["keeps 10% of the mean of the last 2 epochs, 90% from before fine-tuning"]


def test_what_fine_tuning_learnt_to_hear_of_compression_is_shrunk_and_the_mean_logit_stays(monkeypatch):
    n, random = 60, np.random.default_rng(0)
    data = dataset({("home", 0): n // 2, ("home", 1): n // 2})
    net = build_model(weights=None, image_size=32)
    width = net.get_layer("dropout").output.shape[1]
    known, hears = random.normal(5, 2, (n, width)), np.arange(width) < 10  # the first ten features hear compression

    class Views:
        def __init__(self, trainer, pooled, kind):
            self.moved = np.where(hears, 4.0 * (kind == "compressed"), 0.0)

        def predict_on_batch(self, films):
            return (known[np.asarray(films)[:, 0, 0, 0]] + self.moved * random.normal(size=(len(films), width))).astype(
                np.float32
            )

    monkeypatch.setattr(head, "_Views", Views)
    side = sampling.Side(np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 32, 32)), np.arange(n), data)
    tuned = [np.ones((width, 1), np.float32), np.array([0.5], np.float32)]
    for penalty, least, most in ((0.0, 0.999, 1.001), (1.0, 0.05, 0.6), (1e6, -0.01, 0.01)):
        net.get_layer("probability").set_weights(tuned)
        config = dataclasses.replace(TINY, calm_penalty=penalty, balance="weights")
        head.calm_head(net, fitting._trainer(net, config), side, config, {})
        kernel, bias = net.get_layer("probability").get_weights()
        assert ((kernel[hears] >= least) & (kernel[hears] <= most)).all()
        assert np.allclose(kernel[~hears], 1, atol=1e-4)
        assert (known @ kernel + bias).mean() == pytest.approx(known.sum(axis=1).mean() + 0.5, rel=1e-4)


@pytest.mark.slow
def test_what_cutting_the_top_off_does_to_features_is_taken_off_them_whatever_the_labels():
    data = dataset({("clinic", 0): 24, ("clinic", 1): 24})
    side = sampling.Side(np.stack([phantom.draw(i, size=64) for i in range(48)]), np.arange(48), data)
    config = dataclasses.replace(TINY, image_size=64, balance="none")
    keras.utils.set_random_seed(0)
    net = build_model(weights=None, image_size=64, seed=1)
    trainer, layer = fitting._trainer(net, config), net.get_layer("reframe")

    def slope(part: float, labels: np.ndarray) -> np.ndarray:
        films = dataclasses.replace(side, films=dataclasses.replace(data, targets=labels))
        head.correct_framing(net, trainer, films, dataclasses.replace(config, framing_correction=part), {})
        return layer.get_weights()[0]

    whole = slope(1.0, data.targets)
    assert np.linalg.norm(whole) > 0
    assert np.array_equal(slope(1.0, data.targets[::-1]), whole)
    assert np.allclose(slope(0.5, data.targets), whole / 2)
    assert not slope(0.0, data.targets).any()

    slope(1.0, data.targets)
    films = side.pixels[..., None].astype(np.float32) / 255
    low, before, after = (
        [
            np.asarray(keras.Model(net.input, output)(x))
            for x in (films, np.asarray(trainer.get_layer("augment").cut(films)))
        ]
        for output in (layer.lower(layer.input[1]), layer.input[0], layer.output)
    )
    lower = (low[1] - low[0])[:, 0]
    assert lower.mean() < -0.02  # the apices lie higher where the top is cut off
    left, was = (np.linalg.norm(lower @ (x[1] - x[0])) for x in (after, before))
    assert left < 0.5 * was

    side = dataclasses.replace(side, pixels=np.zeros_like(side.pixels))  # where nothing moves there is no slope
    assert not slope(1.0, data.targets).any()


def test_a_run_leaves_a_bundle_that_predicts_and_can_be_asked_for_again(films, whole, tmp_path):
    run = whole
    assert {
        "config.json",
        "model.tflite",
        "model.keras",
        "model.h5",
        "report.json",
        "README.md",
        "figures",
        "run",
    } == set(os.listdir(run.bundle))
    assert os.listdir(run.bundle.parent) == ["first"]
    config = bundle.load(run.bundle).config
    assert config.training == TINY
    assert config.sources[0].train["NORMAL"] + config.sources[0].validation["NORMAL"] == 16
    assert (
        run.report.n
        == sum(config.sources[0].validation.values())
        == run.report.confusion_matrix.sum() + run.report.n_refused
    )
    assert set(config.operating_points) == {"screening", "balanced"}
    assert all(len(values) == 2 for values in run.history.values())
    with (run.bundle / "run" / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["split"] for row in rows)["val"] == run.report.n
    assert (
        0 <= run.predictor(phantom.draw(1)).probabilities.get("PNEUMONIA", 0) <= 1
        or not run.predictor(phantom.draw(1)).accepted
    )

    # three formats, one answer
    x = (np.stack([phantom.draw(i, size=32) for i in range(4)]) / 255).astype("float32")[..., None]
    expected = bundle.load(run.bundle).runtime.run(x).probabilities[:, 1]
    for name in ("model.keras", "model.h5"):
        found = np.asarray(keras.models.load_model(run.bundle / name, compile=False).predict_on_batch(x))[:, 0]
        assert np.abs(found - expected).max() < 1e-4

    healthy = [row["path"] for row in rows if (row["label"], row["split"]) == ("NORMAL", "val")]
    loaded = bundle.load(run.bundle)
    shown = [loaded.runtime.run(images.fit(images.read(path), TINY.image_size)[None]).evidence[0] for path in healthy]
    assert np.abs(loaded.config.usual_evidence.numpy() - np.mean(shown, axis=0) - np.std(shown, axis=0)).max() < 1e-3

    before = (run.bundle / "config.json").stat().st_mtime_ns
    again = train(films, output=run.bundle, config=TINY, init=None, formats=("keras", "h5"), progress=False)
    assert again.history == run.history
    assert (run.bundle / "config.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="comes from other data or another recipe: choose another output folder"):
        train(films, output=run.bundle, config=dataclasses.replace(TINY, seed=1), init=None, progress=False)

    # the network was trained on whole films and is shown their inner part, less sharply
    with zipfile.ZipFile(run.bundle / "model.keras") as archive:
        layers = {
            layer["config"]["name"]: layer["config"]
            for layer in json.loads(archive.read("config.json"))["config"]["layers"]
        }
    assert (layers["shown"]["margin"], layers["shown"]["follow"]) == (0.05, 1.0)
    assert layers["level_bands"]["contrasts"] == [0.0, 0.02, 0.17]

    # fine-tuning starts from the bundle's weights
    frozen = dataclasses.replace(TINY, epochs=0, learning_rate=1e-8)
    tuned = train(films, output=tmp_path / "tuned", config=frozen, init=run.bundle, progress=False)
    with pytest.raises(FileExistsError, match=r"is finished, without model\.h5"):
        train(films, output=tuned.bundle, config=frozen, init=run.bundle, formats=("keras", "h5"), progress=False)
    a, b = (keras.models.load_model(r.bundle / "model.keras", compile=False) for r in (run, tuned))
    assert all(
        np.array_equal(v, w)
        for v, w in zip(
            a.get_layer("block_12_expand").get_weights(), b.get_layer("block_12_expand").get_weights(), strict=True
        )
    )


@pytest.mark.slow
def test_weights_are_taken_over_from_the_same_architecture_only():
    net = build_model(weights=None)
    bundle.load_weights(net, bundle.DEFAULT)
    assert np.abs(net.get_layer("probability").get_weights()[1]) > 0  # a fresh one has none
    three = build_model(["A", "B", "C"], weights=None)
    bundle.load_weights(three, bundle.DEFAULT)
    assert np.array_equal(three.get_layer("Conv1").get_weights()[0], net.get_layer("Conv1").get_weights()[0])
    assert not three.get_layer("probability").get_weights()[1].any()
    with pytest.raises(BundleError, match="damaged or of another architecture"):
        bundle.load_weights(build_model(weights=None, backbone="resnet50_v2"), bundle.DEFAULT)


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(films, whole, tmp_path, monkeypatch, capsys):
    write, calls = fitting._write, []

    def stop_after_the_first_epoch(path, state):
        write(path, state)
        calls.append(state["epoch"])
        if state["epoch"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_write", stop_after_the_first_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(films, output=tmp_path / "broken", config=TINY, init=None, progress=False)
    monkeypatch.setattr(fitting, "_write", write)
    assert not (tmp_path / "broken").exists()
    with pytest.raises(FileExistsError, match="holds an unfinished run of other data or another recipe"):
        train(films, output=tmp_path / "broken", config=dataclasses.replace(TINY, seed=9), init=None, progress=False)
    resumed = train(films, output=tmp_path / "broken", config=TINY, init=None)
    assert "goes on after epoch 1" in capsys.readouterr().err
    assert resumed.history["loss"] == pytest.approx(
        whole.history["loss"], abs=5e-3
    )  # through a random network hardly any signal comes, but rounding does
    drawn = [phantom.draw(i) for i in range(8)]  # too few to compare ranks
    assert [p.accepted for p in whole.predictor.predict(drawn)] == [
        p.accepted for p in resumed.predictor.predict(drawn)
    ]
    seen = np.stack([images.fit(images.read(film), TINY.image_size) for film in drawn])
    one, two = (
        bundle.load(run.bundle).runtime.run(seen).probabilities for run in (whole, resumed)
    )  # uncalibrated: next to chance a temperature may be any
    assert np.abs(one - two).max() < 0.01
    assert not (tmp_path / "broken.partial").exists()


@pytest.mark.slow
def test_a_run_killed_between_its_checkpoint_and_its_state_trains_no_epoch_twice(films, whole, tmp_path, monkeypatch):
    options = {"config": TINY, "init": None, "progress": False}
    write = fitting._write

    def stop_before_the_state(path, state):
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_write", stop_before_the_state)
        with pytest.raises(KeyboardInterrupt):
            train(films, output=tmp_path / "broken", **options)
    record = (tmp_path / "broken.partial" / "run.json").read_text()
    trained = []
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_write", lambda path, state: (trained.append(state["epoch"]), write(path, state)))
        resumed = train(films, output=tmp_path / "broken", **options)
    assert trained == [2]
    assert resumed.history["loss"] == pytest.approx(whole.history["loss"], abs=5e-3)

    left = tmp_path / "broken.partial"  # as when it is killed while it clears up
    left.mkdir()
    (left / "run.json").write_text(record)
    (left / "last-0.weights.h5").write_bytes(b"half of it is gone")
    train(films, output=tmp_path / "broken", **options)
    assert not left.exists()
    left.mkdir()
    (left / "run.json").write_text("{}")  # another training's, which may want to go on
    train(films, output=tmp_path / "broken", **options)
    assert left.exists()


def test_two_runs_into_one_output_do_not_mix(films, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    work = tmp_path / "run.partial"
    work.mkdir()
    with (work / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process is training into"):
            train(films, output=tmp_path / "run", config=TINY, init=None, progress=False)


@pytest.mark.slow
def test_three_classes(tmp_path):
    for i, label in enumerate(("NORMAL", "BACTERIAL", "VIRAL")):
        phantom.write(tmp_path / "films" / label, n=6, seed=100 * i, size=48)
        for film in (tmp_path / "films" / label).glob("*/*"):
            film.rename(tmp_path / "films" / label / f"{film.parent.name}-{film.name}")
        for folder in (tmp_path / "films" / label).iterdir():
            if folder.is_dir():
                folder.rmdir()
    run = train(tmp_path / "films", output=tmp_path / "run", config=TINY, init=None, progress=False)
    assert run.report.confusion_matrix.shape == (3, 3)
    prediction = Predictor(run.bundle, gate=False)(phantom.draw(0))
    assert prediction.threshold is None
    assert prediction.probability == max(prediction.probabilities.values())


def test_mistakes_are_named(films, tmp_path):
    with pytest.raises(ValueError, match=r"leaks must be 'error', 'drop' or 'allow'\. Received: leaks='ignore'"):
        train(films, output=tmp_path / "x", leaks="ignore")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(tmp_path / "nowhere", output=tmp_path / "x", progress=False)
    for config, message in (
        (dataclasses.replace(TINY, backbone="alexnet"), "backbone must be one of"),
        (
            dataclasses.replace(TINY, precision="float17"),
            r"precision must be 'auto' or a dtype policy of Keras\. Received: precision='float17'",
        ),
        (
            dataclasses.replace(TINY, balance_by=("wiew",)),
            "balance_by names columns that the data do not have: wiew. Known: none",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(films, output=tmp_path / "x", config=config, init=None, progress=False)
    for formats in ("keras", ("savedmodel",)):
        with pytest.raises(ValueError, match=r"formats must be \('keras',\), \('h5',\) or both\. Received: formats="):
            train(films, output=tmp_path / "x", formats=formats, progress=False)
    with pytest.raises(
        FileNotFoundError, match=r"init must be 'imagenet', None or a bundle's folder; Predictor\.from_hub"
    ):
        train(films, output=tmp_path / "x", init="hf://user/repo", progress=False)
    with pytest.raises(ValueError, match="a Dataset has its patients and labels"):
        train(scan(films), output=tmp_path / "x", labels=("NORMAL", "PNEUMONIA"), progress=False)
    assert not list(tmp_path.glob("x*"))


def test_films_that_cannot_be_read_are_named(films, tmp_path):
    data = shutil.copytree(films, tmp_path / "films")
    (data / "NORMAL" / "bad.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"1 of 33 films cannot be read:\n.*bad\.png: "):
        train(data, output=tmp_path / "x", config=TINY, init=None, progress=False)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "holdout"] * 16, "splits must be train, val and test: .* Received: 16 films of holdout"),
        (["test"] * 32, "all films are of the test split, which training leaves alone"),
        (
            ["train"] * 16 + ["val"] * 16,
            "every split needs films of every class. Received: no film of PNEUMONIA in train",
        ),
        (["val"] * 32, "every split needs films of every class. Received: no film of NORMAL, PNEUMONIA in train"),
    ],
)
def test_splits_that_cannot_be_trained_with_are_refused(films, tmp_path, splits, message):
    with pytest.raises(ValueError, match=message):
        train(
            dataclasses.replace(scan(films), splits=tuple(splits)),
            output=tmp_path / "x",
            config=TINY,
            init=None,
            progress=False,
        )


def test_what_the_card_says_of_the_data():
    found = Audit(
        4,
        {},
        {},
        0,
        (),
        (),
        {},
        (),
        {},
        (),
        ("2 films in two splits: a.png = b.png",),
        ("1 surplus copy of 1 film with the same pixels: c.png = d.png",),
    )
    copies = "1 surplus copy of 1 film with the same pixels"
    assert training._notes(found, "error") == (copies,)
    assert training._notes(found, "allow") == ("2 films in two splits", copies)
    assert training._notes(found, "drop") == (
        "films that were in two splits, and copies, were left out of training",
        copies,
    )


def test_a_source_may_validate_only(films, tmp_path):
    both = scan([films, shutil.copytree(films, tmp_path / "elsewhere")])
    split = tuple("train" if source == films.name else "val" for source in both.sources)
    summaries = training._summaries(both.take(np.arange(32)), both.take(np.arange(32, 64)), {films.name: 0.8})
    assert [(source.name, source.trust) for source in summaries] == [(films.name, 0.8), ("elsewhere", 1.0)]
    assert split.count("val") == summaries[1].validation["NORMAL"] + summaries[1].validation["PNEUMONIA"]


def test_leaks_stop_a_training_and_can_be_dropped(films, tmp_path):
    data = tmp_path / "data"
    for split, seed in (("train", 3), ("val", 50)):
        phantom.write(data / split, n=8, seed=seed, size=64)
    leaked = next((data / "train" / "NORMAL").iterdir())
    (data / "val" / "NORMAL" / "copy.png").write_bytes(leaked.read_bytes())
    with pytest.raises(
        ValueError, match=r"the data leak between their splits:(.|\n)*copy\.png(.|\n)*--drop-duplicates"
    ):
        train(data, output=tmp_path / "x", config=TINY, init=None, progress=False)
    kept, _ = training._prepare(scan(data), "drop", TINY, False)
    assert len(kept) == len(scan(data)) - 1


def test_sources_with_one_class_each_are_refused(tmp_path):
    side = sampling.Side(np.zeros((4, 32, 32), np.uint8), np.arange(4), dataset({("a", 0): 2, ("b", 1): 2}))
    with pytest.raises(ValueError, match="a class that comes from one hospital alone teaches the hospital"):
        fitting.validate(
            keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]), side
        )


STEPS = """
import json, sys
import numpy as np
import keras
from cxrlib.network import fit as fitting
from cxrlib.images import phantom
from cxrlib.data import split as sampling
from cxrlib.config import AugmentConfig, TrainConfig
from cxrlib.data.scan import Dataset
from cxrlib.network.model import build_model, set_trainable
import dataclasses
still = AugmentConfig(**{f.name: (False if f.name == "flip" else 0.0) for f in dataclasses.fields(AugmentConfig)})
config = TrainConfig(image_size=32, epochs=1, batch_size=8, dropout=0.0, augment=still)
n = 24
films = Dataset(tuple(map(str, range(n))), np.arange(n) % 2, ("NORMAL", "PNEUMONIA"), (None,) * n, ("home",) * n, (None,) * n)
pixels = np.stack([phantom.draw(i, opacity=bool(i % 2), size=32) for i in range(n)])
net = build_model(weights=None, image_size=32, dropout=0.0)
random = np.random.default_rng(0)
net.set_weights([random.normal(0, (2 / max(1, np.prod(w.shape[:-1]))) ** 0.5 if w.ndim > 1 else 0.05, w.shape).astype("float32") for w in net.get_weights()])
trainer = fitting._trainer(net, config)
set_trainable(net, "block_12_expand")
fitting._compile(trainer, config, 3)
batches = fitting._Batches(sampling.Side(pixels, np.arange(n), films), config, 3, 1, {})
print(json.dumps([float(trainer.train_on_batch(*batches[i])) for i in range(3)]))
"""


@pytest.mark.slow
def test_backends_train_alike():
    pytest.importorskip("jax", reason="needs JAX")
    losses = {}
    for backend in ("tensorflow", "jax"):
        done = subprocess.run(
            [sys.executable, "-c", STEPS],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        losses[backend] = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(losses["jax"]).all()
    assert losses["jax"] == pytest.approx(losses["tensorflow"], rel=1e-3)
