"""Fitting a network on decoded images: what is drawn, what each recipe does, and that a stopped run goes on."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the [train] extra")

from conftest import small_recipe  # noqa: E402

from cxrlib.config import Augmentation  # noqa: E402
from cxrlib.data.scan import Dataset  # noqa: E402
from cxrlib.images.phantom import draw as drawn  # noqa: E402
from cxrlib.network import default  # noqa: E402
from cxrlib.network.fit import Side, draw, fit, sampling_weights  # noqa: E402
from cxrlib.network.model import build_model  # noqa: E402

LABELS = ("NORMAL", "PNEUMONIA")
STILL = {**dict.fromkeys((field.name for field in dataclasses.fields(Augmentation)), 0.0), "flip": False}


def dataset(counts: dict[tuple[str, int], int], labels=LABELS) -> Dataset:
    rows = [cell for cell, n in counts.items() for _ in range(n)]
    n = len(rows)
    targets, sources = np.array([t for _, t in rows]), tuple(s for s, _ in rows)
    return Dataset(tuple(map(str, range(n))), targets, labels, (None,) * n, sources, (None,) * n)


def sides(n=24, validation=8, labels=LABELS, size=32):
    """Images to train on, and images to validate with: a class has an opacity, or none."""
    k = len(labels)
    data = dataset({("home", 0): n + validation}, labels)
    data = dataclasses.replace(data, targets=np.arange(n + validation) % k)
    images = np.stack([drawn(i, opacity=bool(t), size=size) for i, t in enumerate(data.targets)])
    return (Side(images, index, data.take(index)) for index in (np.arange(n), np.arange(n, n + validation)))


# --- what is drawn ---


def cells(data: Dataset, weights: np.ndarray) -> Counter:
    total: Counter = Counter()
    for cell, w in zip(zip(data.sources, data.targets.tolist(), strict=True), weights.tolist(), strict=True):
        total[cell] += w
    return total


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 1.0), (0.5, 4.0), (1.0, 16.0)])
def test_classes_count_the_same_within_a_source_and_sources_by_their_power(power, ratio):
    data = dataset({("big", 0): 200, ("big", 1): 600, ("small", 0): 30, ("small", 1): 20})
    weights = sampling_weights(data, power)
    parts = cells(data, weights)
    assert parts["big", 0] == pytest.approx(parts["big", 1])
    assert parts["small", 0] == pytest.approx(parts["small", 1])
    assert parts["big", 0] / parts["small", 0] == pytest.approx(ratio)
    assert weights.mean() == pytest.approx(1)


def test_a_source_of_one_class_counts_by_its_power_too():
    parts = cells(data := dataset({("a", 0): 50, ("a", 1): 50, ("b", 1): 100}), sampling_weights(data, 1.0))
    assert parts["a", 0] == pytest.approx(parts["a", 1])
    assert parts["b", 1] == pytest.approx(parts["a", 0] + parts["a", 1])


def test_a_draw_repeats_no_image_more_than_it_must_and_can_be_replayed():
    weights = sampling_weights(dataset({("a", 0): 50, ("a", 1): 150}), 0.5)
    chosen = draw(weights, 200, seed=3, epoch=7)
    times = Counter(chosen.tolist())
    assert {times[i] for i in range(50)} == {2}
    assert {times[i] for i in range(50, 200)} <= {0, 1}
    assert np.array_equal(chosen, draw(weights, 200, seed=3, epoch=7))
    for other in (draw(weights, 200, seed=3, epoch=8), draw(weights, 200, seed=4, epoch=7)):
        assert not np.array_equal(chosen, other)
    assert sorted(draw(np.ones(200), 200, seed=1, epoch=0).tolist()) == list(range(200))
    assert not np.array_equal(draw(np.ones(200), 200, seed=1, epoch=0), np.arange(200))


def test_a_side_reads_its_own_images():
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
    data = dataset({("home", 0): 1, ("home", 1): 2})
    side = Side(images, np.array([5, 0, 3]), data)
    assert np.array_equal(side.batch(np.array([2, 0]))[..., 0], images[[3, 5]])
    assert side.batch(slice(1, 3)).shape == (2, 2, 2, 1)
    assert side.targets(slice(None)).tolist() == [[0], [1], [1]]
    three = dataclasses.replace(data, labels=("A", "B", "C"), targets=np.array([2, 0, 1]))
    assert dataclasses.replace(side, dataset=three).targets(slice(0, 2)).tolist() == [[0, 0, 1], [1, 0, 0]]


# --- both recipes ---

NAMES = {"loss", "accuracy", "auroc", "val_loss", "val_accuracy", "val_auroc"}


@pytest.mark.usefixtures("small_backbone")
@pytest.mark.parametrize("name", ["default", "textbook"])
@pytest.mark.parametrize("labels", [LABELS, ("NORMAL", "BACTERIAL", "VIRAL")])
def test_every_epoch_has_loss_accuracy_and_auroc_of_both_sides(tmp_path, name, labels):
    recipe = small_recipe(name)
    net = build_model(labels, recipe=recipe, weights=None)
    before = {layer.name: layer.get_weights() for layer in net.layers if layer.weights}
    history = fit(net, *sides(labels=labels), recipe, tmp_path, progress=False)
    assert set(history) == NAMES
    assert {len(values) for values in history.values()} == {2}
    assert all(0 <= value <= 1 for name in NAMES if "loss" not in name for value in history[name])
    moved = {
        n
        for n, w in before.items()
        if any(map(np.not_equal, map(np.sum, w), map(np.sum, net.get_layer(n).get_weights())))
    }
    assert moved == {"default": {"block_3_expand", "Conv_1", "probability"}, "textbook": {"dense", "probability"}}[name]


@pytest.mark.usefixtures("small_backbone")
@pytest.mark.parametrize("name", ["default", "textbook"])
def test_the_validation_figures_are_those_of_the_network_without_augmentation(tmp_path, name):
    recipe = small_recipe(name, epochs=1)
    net = build_model(recipe=recipe, weights=None)
    train, validation = sides()
    history = fit(net, train, validation, recipe, tmp_path, progress=False)
    p = np.asarray(net.predict_on_batch(validation.batch(slice(None)).astype("float32") / 255))[:, 0]
    truth = validation.dataset.targets
    assert history["val_accuracy"] == [pytest.approx(((p > 0.5) == truth).mean(), abs=1e-4)]
    smooth = {"default": recipe.label_smoothing if name == "default" else 0, "textbook": 0}[name]
    soft = truth * (1 - smooth) + smooth / 2
    assert history["val_loss"] == [pytest.approx(-(soft * np.log(p) + (1 - soft) * np.log(1 - p)).mean(), abs=1e-4)]


@pytest.mark.usefixtures("small_backbone")
@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_without_epochs_the_head_alone_is_trained(tmp_path, ema):
    recipe = small_recipe(epochs=0, ema=ema)
    net = build_model(recipe=recipe, weights=None)
    before = {layer.name: layer.get_weights() for layer in net.layers if layer.weights}
    assert fit(net, *sides(), recipe, tmp_path, progress=False) == {}
    for layer in net.layers:
        if layer.weights:
            same = all(map(np.array_equal, before[layer.name], layer.get_weights()))
            assert same == (layer.name != "probability"), layer.name
    assert any(np.abs(w).max() > 0 for w in net.get_layer("probability").get_weights())


@pytest.mark.usefixtures("small_backbone")
def test_the_textbook_keeps_its_best_epoch_and_stops_when_patience_ends(tmp_path, monkeypatch):
    recipe = small_recipe("textbook", epochs=9, patience=2, learning_rate=0.02)
    net = build_model(recipe=recipe, weights=None)
    scores = iter([0.6, 0.8, 0.7, 0.75, 0.9])
    kept = []

    class Scripted(keras.callbacks.Callback):
        """Gives the validation AUROC of a script, in the place of the measured one."""

        def on_epoch_end(self, epoch, logs=None):
            logs["val_auroc"] = next(scores)
            kept.append([np.array(w) for w in net.get_weights()])

    usual = keras.Model.fit

    def scripted(model, *args, callbacks, **options):
        return usual(model, *args, callbacks=[Scripted(), *callbacks], **options)

    monkeypatch.setattr(keras.Model, "fit", scripted)
    history = fit(net, *sides(), recipe, tmp_path, progress=False)
    assert history["val_auroc"] == [0.6, 0.8, 0.7, 0.75]
    assert all(map(np.array_equal, net.get_weights(), kept[1]))
    assert not all(map(np.array_equal, net.get_weights(), kept[-1]))
    again = fit(net, *sides(), recipe, tmp_path, progress=False)  # what is done is not done again
    assert again == history
    assert all(map(np.array_equal, net.get_weights(), kept[1]))


@pytest.mark.usefixtures("small_backbone")
@pytest.mark.parametrize("name", ["default", "textbook"])
def test_every_epoch_trains_on_its_own_draw(tmp_path, monkeypatch, name):
    data = dataset({("home", 0): 8, ("home", 1): 24})
    images = np.stack([drawn(i, opacity=bool(t), size=32) for i, t in enumerate(data.targets)])
    read = []

    class Watched(Side):
        def batch(self, chosen):
            read.append(chosen)
            return super().batch(chosen)

    recipe = small_recipe(name, epochs=2, seed=5)
    train, validation = Watched(images, np.arange(32), data), Side(images, np.arange(32), data)
    fit(build_model(recipe=recipe, weights=None), train, validation, recipe, tmp_path, progress=False)
    weights = sampling_weights(data, recipe.source_power) if name == "default" else np.ones(32)
    for epoch, batches in ((1, read[-4:]), (0, read[-8:-4])):
        assert np.array_equal(np.concatenate(batches), draw(weights, 32, 5, epoch))


@pytest.mark.usefixtures("small_backbone")
def test_the_textbook_weighs_a_rare_class_more(tmp_path, monkeypatch):
    asked = []
    usual = keras.Model.fit

    def watched(model, *args, class_weight, **options):
        asked.append(class_weight)
        return usual(model, *args, class_weight=class_weight, **options)

    monkeypatch.setattr(keras.Model, "fit", watched)
    data = dataset({("home", 0): 6, ("home", 1): 18})
    images = np.stack([drawn(i, opacity=bool(t), size=32) for i, t in enumerate(data.targets)])
    side = Side(images, np.arange(24), data)
    recipe = small_recipe("textbook", epochs=1)
    fit(build_model(recipe=recipe, weights=None), side, side, recipe, tmp_path, progress=False)
    assert asked == [{0: 2.0, 1: pytest.approx(2 / 3)}]


@pytest.mark.usefixtures("small_backbone")
def test_an_opacity_is_learnt(tmp_path):
    """Whether the arrows point the right way: a network of three convolutions tells bright images from dark ones."""
    data = dataset({("home", 0): 40, ("home", 1): 40})
    random = np.random.default_rng(0)
    spots = random.integers(0, 60, (80, 32, 32)).astype(np.uint8)
    for image, target in zip(spots, data.targets, strict=True):
        image[:: 4 if target else 16] += 150  # finer stripes in one class: standardising does not remove them
    train, validation = (Side(spots, np.arange(i, 80, 2), data.take(np.arange(i, 80, 2))) for i in (0, 1))
    recipe = small_recipe(epochs=4, learning_rate=0.01, ema=0.0, augmentation={**STILL, "flip": True})
    history = fit(build_model(recipe=recipe, weights="imagenet"), train, validation, recipe, tmp_path, progress=False)
    assert history["val_auroc"][-1] > 0.95
    assert history["loss"][-1] < history["loss"][0]


# --- going on ---


@pytest.mark.usefixtures("small_backbone")
@pytest.mark.parametrize("name", ["default", "textbook"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_anywhere_ends_as_an_unbroken_one(tmp_path, monkeypatch, name, every):
    """Stopped after a batch, before and after a file is written, and in the head's training; then started again."""
    recipe = small_recipe(name, epochs=2, **({"ema": 0.9} if name == "default" else {}))
    train, validation = sides(16)

    def run(folder):
        net = build_model(recipe=recipe, weights=None)
        history = fit(net, train, validation, recipe, folder, progress=False)
        return net.get_weights(), history

    (tmp_path / "whole").mkdir()
    expected, history = run(tmp_path / "whole")

    usual_fit, fit_head, replace, left = keras.Model.fit, default.fit_head, os.replace, 0

    def stop_when_due():
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    class Stopper(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            stop_when_due()

    def moved(source, target):
        stop_when_due()
        replace(source, target)
        stop_when_due()

    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(default, "fit_head", lambda *args: (stop_when_due(), fit_head(*args)))
    monkeypatch.setattr(
        keras.Model,
        "fit",
        lambda *args, callbacks=(), **options: usual_fit(*args, callbacks=[*callbacks, Stopper()], **options),
    )
    (tmp_path / "broken").mkdir()
    stops = []
    for length in range(3 if every > 1 else 1, 200, every):
        left = length
        try:
            found, again = run(tmp_path / "broken")
            break
        except KeyboardInterrupt:
            stops.append(length)
    assert len(stops) >= (2 if every > 1 else 6)
    assert again == {n: pytest.approx(values, abs=1e-4) for n, values in history.items()}
    for one, other in zip(expected, found, strict=True):
        assert np.abs(one - other).max() < 1e-5


STEPS = """
import json, sys
import numpy as np
sys.path[:0] = sys.argv[1:]
import small_backbone
small_backbone.install()
import tempfile
from pathlib import Path
from conftest import small_recipe
from test_fit import STILL, sides
from cxrlib.network.fit import fit
from cxrlib.network.model import build_model
recipe = small_recipe(epochs=2, dropout=0.0, learning_rate=1e-4, augmentation=STILL)
net = build_model(recipe=recipe, weights=None)
rng = np.random.default_rng(0)  # backends draw differently from one seed
shapes = [w.shape for w in net.get_weights()]
net.set_weights([rng.normal(0, max(1, np.prod(shape[:-1])) ** -0.5, shape) for shape in shapes])
with tempfile.TemporaryDirectory() as folder:
    history = fit(net, *sides(), recipe, Path(folder), progress=False)
print(json.dumps({"history": history, "weights": [float(np.abs(np.asarray(w)).sum()) for w in net.get_weights()]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_train_like_tensorflow(backend):
    pytest.importorskip(backend)
    found = []
    for name in ("tensorflow", backend):
        environment = {**os.environ, "KERAS_BACKEND": name}
        command = [sys.executable, "-c", STEPS, os.path.dirname(__file__)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[1]["history"]["loss"] == pytest.approx(found[0]["history"]["loss"], rel=5e-3)
    assert found[1]["weights"] == pytest.approx(found[0]["weights"], rel=2e-3)


def test_the_rate_rises_and_falls():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, activation="sigmoid")])
    default.compile(net, small_recipe(learning_rate=1e-3), 100)
    rate = net.optimizer._learning_rate
    values = [float(rate(step)) for step in (0, 5, 50, 100)]
    assert values[0] == pytest.approx(5e-5)
    assert values[1] == pytest.approx(1e-3)
    assert values[1] > values[2] > values[3] == pytest.approx(1e-4)
