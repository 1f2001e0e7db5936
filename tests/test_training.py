"""train: from images to a bundle. Backbones are small and images are drawn: real figures are measured elsewhere."""

import contextlib
import csv
import dataclasses
import functools
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

keras = pytest.importorskip("keras", reason="needs the [train] extra")

from conftest import small_recipe  # noqa: E402

import cxrlib.network.fit as fitting  # noqa: E402
from cxrlib import ImageError, Predictor, TextbookRecipe, bundle, train, training  # noqa: E402
from cxrlib.config import BundleError  # noqa: E402
from cxrlib.data.scan import scan  # noqa: E402
from cxrlib.images import decode as images  # noqa: E402
from cxrlib.images import phantom  # noqa: E402
from cxrlib.network import gate_fit  # noqa: E402
from cxrlib.network import model as networks  # noqa: E402
from cxrlib.network.model import build_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_backbone")

RECIPE = small_recipe()
quietly = functools.partial(train, recipe=RECIPE, progress=False)
THREE = ("NORMAL", "BACTERIAL", "VIRAL")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))


class Stop(Exception):
    """Ends a training before its network is trained."""


@pytest.fixture
def sides(monkeypatch):
    """What a training that ends before its network is trained would have trained and validated on."""
    seen = []

    def fit(model, train, validation, *args, **options):
        seen[:] = train, validation
        raise Stop

    monkeypatch.setattr(fitting, "fit", fit)

    def of(*args, **options):
        with pytest.raises(Stop):
            quietly(*args, **options)
        return seen

    return of


def weights(folder):
    return keras.models.load_model(Path(folder) / "model.keras").get_weights()


# --- what a run leaves ---


def test_a_run_leaves_a_whole_bundle(trained):
    files = {"config.json", "model.tflite", "model.keras", "model.h5", "report.json", "README.md", "figures", "run"}
    assert set(os.listdir(trained.bundle)) == files
    assert os.listdir(trained.bundle.parent) == ["first"]
    config = bundle.load(trained.bundle).config
    assert config.recipe == RECIPE
    assert (config.labels, config.image_size) == (("NORMAL", "PNEUMONIA"), 32)
    [source] = config.sources
    assert (source.name, source.patients) == ("phantoms", None)
    assert {k: source.train[k] + source.validation[k] for k in config.labels} == {"NORMAL": 16, "PNEUMONIA": 16}
    assert set(config.operating_points) == {"screening", "balanced", "specific"}
    assert config.default_point == "balanced"
    assert trained.report.n == 8 == sum(source.validation.values())
    assert trained.report.data == "validation patients"
    figures = {"loss", "accuracy", "auroc", "val_loss", "val_accuracy", "val_auroc"}
    assert {name: len(values) for name, values in trained.history.items()} == dict.fromkeys(figures, 2)


def test_its_split_is_kept_as_a_manifest(trained):
    again = scan(trained.bundle / "run" / "split.csv")
    assert Counter(again.splits) == {"train": 24, "val": 8}
    assert again.labels == ("NORMAL", "PNEUMONIA")
    assert all(map(os.path.isfile, again.paths))


def test_all_its_networks_answer_the_same(trained):
    x = (np.stack([phantom.draw(i, size=32) for i in range(4)]) / 255).astype("float32")[..., None]
    expected = bundle.load(trained.bundle).runtime.run(x).probabilities[:, 1]
    for name in ("model.keras", "model.h5"):
        found = np.asarray(keras.models.load_model(trained.bundle / name).predict_on_batch(x))[:, 0]
        assert np.abs(found - expected).max() < 1e-5


def test_its_predictor_answers(trained):
    predictor = trained.predictor
    assert isinstance(predictor, Predictor)
    assert predictor is trained.predictor
    answer = Predictor(trained.bundle, gate=False)(phantom.draw(1, opacity=True))
    assert answer.status == "ok"
    assert 0 <= answer.probability <= 1


def test_the_evidence_of_normal_validation_images_is_kept(trained):
    with (trained.bundle / "run" / "split.csv").open(encoding="utf-8") as file:
        normal = [r["path"] for r in csv.DictReader(file) if (r["label"], r["split"]) == ("NORMAL", "val")]
    assert len(normal) == 4
    loaded = bundle.load(trained.bundle)
    inputs = np.stack([images.fit(images.read(trained.bundle / "run" / path), 32) for path in normal])
    evidence = loaded.runtime.run(inputs).evidence
    expected = evidence.mean(axis=0) + evidence.std(axis=0)
    assert np.abs(loaded.config.normal_evidence.numpy() - expected).max() < 1e-3


def test_a_finished_run_is_returned_and_nothing_is_written(trained, phantoms):
    before = {path: path.stat().st_mtime_ns for path in trained.bundle.rglob("*")}
    again = quietly(phantoms, output=trained.bundle, formats=("keras", "h5"))
    assert (again.bundle, again.history) == (trained.bundle, trained.history)
    assert again.report.to_json(predictions=False) == trained.report.to_json(predictions=False)
    assert {path: path.stat().st_mtime_ns for path in trained.bundle.rglob("*")} == before


def test_a_folder_of_other_data_or_another_recipe_is_refused(trained, phantoms, tmp_path):
    refused = "comes from other data or another recipe: choose another output folder, nothing was written"
    with pytest.raises(FileExistsError, match=refused):
        quietly(phantoms, output=trained.bundle, recipe=dataclasses.replace(RECIPE, seed=1))
    with pytest.raises(FileExistsError, match=refused):
        quietly(phantom.write(tmp_path / "others", n=8, seed=90, size=64), output=trained.bundle)
    copy = shutil.copytree(trained.bundle, tmp_path / "copy")
    (copy / "model.h5").unlink()
    with pytest.raises(FileExistsError, match=r"is finished, without model\.h5: choose another output folder"):
        quietly(phantoms, output=copy, formats=("keras", "h5"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=refused):
        quietly(phantoms, output=tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


# --- recipes ---


def test_the_textbook_recipe_with_three_labels(tmp_path):
    for i, label in enumerate(THREE):
        drawn = phantom.write(tmp_path / "drawn", n=8, seed=100 * i, size=48)
        shutil.move(drawn / "PNEUMONIA", tmp_path / "data" / label)
        shutil.rmtree(drawn)
    recipe = small_recipe("textbook", epochs=1)
    run = quietly(tmp_path / "data", output=tmp_path / "run", recipe=recipe, labels=THREE, formats=("h5",))
    loaded = bundle.load(run.bundle)
    assert loaded.config.recipe == recipe
    assert isinstance(loaded.config.recipe, TextbookRecipe)
    assert (loaded.config.operating_points, loaded.config.default_point) == ({}, None)
    assert run.report.confusion_matrix.shape == (3, 3)
    assert {path.name for path in run.bundle.glob("model.*")} == {"model.tflite", "model.h5"}
    x = (np.stack([phantom.draw(i, size=32) for i in range(4)]) / 255).astype("float32")[..., None]
    found = keras.models.load_model(run.bundle / "model.h5").predict_on_batch(x)
    output = loaded.runtime.run(x)
    assert np.abs(output.probabilities - found).max() < 1e-5
    answer = Predictor(run.bundle, gate=False)(phantom.draw(0))
    assert answer.threshold is None
    assert answer.probability == max(answer.probabilities.values())
    assert answer.label == max(answer.probabilities, key=answer.probabilities.get)


def test_a_run_starts_from_the_weights_of_a_bundle(trained, phantoms, tmp_path, monkeypatch):
    started = []

    def fit(model, *args, **options):
        started[:] = model.get_weights()
        raise Stop

    monkeypatch.setattr(fitting, "fit", fit)
    with pytest.raises(Stop):
        quietly(phantoms, output=tmp_path / "tuned", init=trained.bundle)
    assert all(map(np.array_equal, started, weights(trained.bundle)))


def test_weights_are_taken_of_the_same_architecture_only(trained, phantoms, tmp_path):
    net, kept = build_model(recipe=RECIPE, weights=None), weights(trained.bundle)
    bundle.load_weights(net, trained.bundle)
    assert all(map(np.array_equal, net.get_weights(), kept))
    three = build_model(THREE, recipe=RECIPE, weights=None)
    own = three.get_layer("probability").get_weights()
    bundle.load_weights(three, trained.bundle)
    assert np.array_equal(three.get_layer("Conv1").get_weights()[0], net.get_layer("Conv1").get_weights()[0])
    assert all(map(np.array_equal, three.get_layer("probability").get_weights(), own))
    with pytest.raises(BundleError, match=r"model\.keras is damaged or of another architecture"):
        bundle.load_weights(build_model(recipe=small_recipe("textbook"), weights=None), trained.bundle)
    old = shutil.copytree(trained.bundle, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "schema": 1, "training": config.pop("recipe")}))
    with pytest.raises(BundleError, match=r"schema 1.*train it again"):
        quietly(phantoms, output=tmp_path / "x", init=old)


def test_without_a_keras_file_weights_come_from_the_network_that_runs(trained, tmp_path):
    bare = shutil.copytree(trained.bundle, tmp_path / "bare")
    config = json.loads((bare / "config.json").read_text())
    for name in ("model.keras", "model.h5"):
        (bare / name).unlink()
        del config["files"][name]
    (bare / "config.json").write_text(json.dumps(config))
    net = build_model(recipe=RECIPE, weights=None)
    bundle.load_weights(net, bare)
    assert all(map(np.array_equal, net.get_weights(), weights(trained.bundle)))
    assert {w.dtype for w in net.get_weights()} == {np.dtype("float32")}
    three = build_model(THREE, recipe=RECIPE, weights=None)
    own = three.get_layer("probability").get_weights()
    bundle.load_weights(three, bare)
    assert np.array_equal(three.get_layer("Conv1").get_weights()[0], net.get_layer("Conv1").get_weights()[0])
    assert all(map(np.array_equal, three.get_layer("probability").get_weights(), own))
    with pytest.raises(BundleError, match="is of another architecture: train it again, or start from another"):
        bundle.load_weights(build_model(recipe=small_recipe("textbook"), weights=None), bare)
    (bare / "config.json").write_text(json.dumps({**config, "recipe": {**config["recipe"], "dense_units": 7}}))
    with pytest.raises(
        BundleError, match=r"holds no model\.keras, and its model\.tflite no weights that can be copied"
    ):
        bundle.load_weights(net, bare)


def test_a_trained_network_has_weights_of_16_bits(trained):
    assert all(np.array_equal(w, w.astype(np.float16)) for w in weights(trained.bundle))


# --- stopped, and started again ---

STAGES = ["decode", "audit", "first epoch", "second epoch", "export", "gate", "evaluate", "save", "saved", "manifest"]


@pytest.mark.parametrize(
    "stages", [["first epoch", "saved"], pytest.param(STAGES, marks=pytest.mark.slow)], ids=["some stages", "all"]
)
def test_a_run_that_is_stopped_in_any_stage_ends_as_an_unbroken_one(trained, phantoms, tmp_path, monkeypatch, stages):
    left, usual, epochs = list(stages), keras.Model.fit, []

    def stop(stage):
        if stage in left:
            left.remove(stage)
            raise KeyboardInterrupt

    def before(owner, name, stage, after=None):
        function = getattr(owner, name)

        def watched(*args, **options):
            stop(stage)
            made = function(*args, **options)
            stop(after)
            return made

        monkeypatch.setattr(owner, name, watched)

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(epoch)

        def on_train_batch_end(self, batch, logs=None):
            stop(("first epoch", "second epoch")[epochs[-1]])

    def watched_fit(*args, callbacks=(), **options):
        return usual(*args, callbacks=[*callbacks, Watch()] if callbacks else [], **options)

    monkeypatch.setattr(keras.Model, "fit", watched_fit)
    before(training, "decode", "decode")
    before(training, "audit", "audit")
    before(networks, "export_litert", "export")
    before(gate_fit, "fit", "gate")
    before(training, "evaluate", "evaluate")
    before(bundle, "save", "save", "saved")
    before(training, "write_manifest", "manifest")

    output = tmp_path / "broken"
    for _ in stages:
        with pytest.raises(KeyboardInterrupt):
            quietly(phantoms, output=output)
        assert not output.exists()
    resumed = quietly(phantoms, output=output)
    assert not left
    assert Counter(epochs) == Counter([0, 1, *(stage.split()[0] == "second" for stage in stages if "epoch" in stage)])
    assert not (tmp_path / "broken.partial").exists()
    for one, other in zip(weights(trained.bundle), weights(resumed.bundle), strict=True):
        assert np.abs(one - other).max() < 1e-5
    assert resumed.history == {n: pytest.approx(values, abs=1e-4) for n, values in trained.history.items()}
    one, other = (bundle.load(run.bundle).config for run in (trained, resumed))
    assert other.temperature == pytest.approx(one.temperature, rel=0.05)
    assert (other.split, other.fingerprint, other.sources) == (one.split, one.fingerprint, one.sources)


def test_an_unfinished_run_of_another_recipe_is_refused(phantoms, tmp_path, sides):
    sides(phantoms, output=tmp_path / "run")
    assert (tmp_path / "run.partial").is_dir()
    with pytest.raises(FileExistsError, match="holds an unfinished run of other data or another recipe: remove it"):
        quietly(phantoms, output=tmp_path / "run", recipe=dataclasses.replace(RECIPE, seed=9))


def test_what_a_run_killed_at_its_very_end_left_is_removed(trained, phantoms, tmp_path):
    copy, left = shutil.copytree(trained.bundle, tmp_path / "first"), tmp_path / "first.partial"
    left.mkdir()
    (left / "last-0.weights.h5").write_bytes(b"half of it is gone")
    quietly(phantoms, output=copy, formats=("keras", "h5"))
    assert not left.exists()


def test_two_runs_into_one_output_do_not_mix(phantoms, tmp_path):
    work = tmp_path / "run.partial"
    work.mkdir()
    with (
        filelock.FileLock(work / "lock"),
        pytest.raises(BlockingIOError, match=r"another process is training into .*: wait for it, or choose another"),
    ):
        quietly(phantoms, output=tmp_path / "run")
    assert os.listdir(work) == ["lock"]


# --- the data ---


def test_mistakes_are_named(phantoms, tmp_path):
    for options, error, message in (
        ({"leaks": "ignore"}, ValueError, r"leaks must be 'error', 'drop' or 'allow'\. Received: leaks='ignore'"),
        ({"recipe": "best"}, ValueError, r"recipe must be one of default, textbook.*Received: recipe='best'"),
        (
            {"recipe": dataclasses.replace(RECIPE, backbone="alexnet")},
            ValueError,
            "backbone must be one of mobilenet_v2, .*Received: backbone='alexnet'",
        ),
        (
            {"recipe": dataclasses.replace(RECIPE, precision="float17")},
            ValueError,
            r"precision must be 'auto' or a dtype policy of Keras\. Received: precision='float17'",
        ),
        ({"formats": "keras"}, ValueError, r"formats must be \('keras',\), \('h5',\) or both\. Received: formats="),
        ({"formats": ("savedmodel",)}, ValueError, r"formats must be \('keras',\), \('h5',\) or both"),
        ({"init": "hf://user/repo"}, FileNotFoundError, r"init must be 'imagenet', None or the folder of a bundle"),
    ):
        with pytest.raises(error, match=message):
            quietly(phantoms, output=tmp_path / "x", **options)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        quietly(tmp_path / "nowhere", output=tmp_path / "x")
    with pytest.raises(ValueError, match="a Dataset has its labels: give labels to"):
        quietly(scan(phantoms), output=tmp_path / "x", labels=("NORMAL", "PNEUMONIA"))
    assert not list(tmp_path.glob("x*"))


def test_a_missing_library_is_named_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'training needs sklearn: pip install "cxrlib\[train\]"'):
        train("nowhere", output="nowhere")


def test_images_that_cannot_be_read_are_named(phantoms, tmp_path):
    data = shutil.copytree(phantoms, tmp_path / "images")
    (data / "NORMAL" / "bad.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"1 of 33 images cannot be read(.|\n)*bad\.png"):
        quietly(data, output=tmp_path / "x")
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "holdout"] * 16, r"splits must be train, val and test\. Received: 16 images of holdout"),
        (["test"] * 32, "all images are of the test split, which training leaves alone"),
        (["val"] * 32, "all images are of the val split: there is nothing to train on"),
    ],
)
def test_splits_that_cannot_be_trained_with_are_refused(phantoms, tmp_path, splits, message):
    with pytest.raises(ValueError, match=message):
        quietly(dataclasses.replace(scan(phantoms), splits=tuple(splits)), output=tmp_path / "x")


def test_the_test_split_is_left_alone(phantoms, tmp_path, sides):
    found = scan(phantoms)
    aside = dataclasses.replace(found, splits=tuple("test" if i % 4 == 0 else None for i in range(32)))
    both = {path for side in sides(aside, output=tmp_path / "x") for path in side.dataset.paths}
    assert both == {path for i, path in enumerate(found.paths) if i % 4}


def test_a_val_split_of_few_patients_does_not_choose_thresholds_alone(phantoms, tmp_path, sides, capsys):
    found = scan(phantoms)
    few = dataclasses.replace(found, splits=tuple("val" if i % 8 == 0 else "train" for i in range(32)))
    _, validation = sides(few, output=tmp_path / "x", progress=True)
    assert set(validation.dataset.paths) >= {path for i, path in enumerate(found.paths) if i % 8 == 0}
    assert len(validation.index) > 4
    assert "note: the val split has only 2 patients of" in capsys.readouterr().err


def test_a_source_may_validate_only(tmp_path, sides):
    random = np.random.default_rng(0)
    for source, n in (("home", 8), ("away", 50)):  # drawn chests look too alike for so many
        for label in ("NORMAL", "PNEUMONIA"):
            (tmp_path / source / label).mkdir(parents=True)
            for i in range(n):
                texture = random.integers(0, 256, (8, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
                Image.fromarray(texture).save(tmp_path / source / label / f"{i}.png")
    both = scan([tmp_path / "home", tmp_path / "away"])
    splits = tuple("train" if source == "home" else "val" for source in both.sources)
    own, validation = sides(dataclasses.replace(both, splits=splits), output=tmp_path / "x")
    assert set(own.dataset.sources) == {"home"}
    assert Counter(validation.dataset.sources) == {"away": 100, "home": 4}  # which has no val split of its own
    assert len(own.index) == 12


def test_leaks_stop_a_training_and_can_be_dropped_or_allowed(tmp_path, sides):
    data = tmp_path / "data"
    for split, seed in (("train", 3), ("val", 50)):
        phantom.write(data / split, n=8, seed=seed, size=64)
    leaked = next((data / "train" / "NORMAL").iterdir())
    (data / "val" / "NORMAL" / "copy.png").write_bytes(leaked.read_bytes())
    with pytest.raises(ValueError, match=r"the data leaks between its splits:(.|\n)*copy\.png(.|\n)*leaks=.drop."):
        quietly(data, output=tmp_path / "x")
    dropped, allowed = (
        sum(len(side.index) for side in sides(data, output=tmp_path / leaks, leaks=leaks))
        for leaks in ("drop", "allow")
    )
    assert (dropped, allowed) == (32, 33)


def test_copies_stay_on_one_side(phantoms, tmp_path, sides):
    data = shutil.copytree(phantoms, tmp_path / "images")
    for path in sorted((data / "NORMAL").iterdir()):
        shutil.copy(path, path.with_name(f"again-{path.name}"))
    own, validation = sides(data, output=tmp_path / "x", leaks="allow")
    names = [{Path(p).name.removeprefix("again-") for p in side.dataset.paths} for side in (own, validation)]
    assert not names[0] & names[1]


def test_an_image_has_the_view_of_its_manifest_or_else_of_its_file(tmp_path, sides):
    pytest.importorskip("pydicom")
    from drawn_dicom import dataset, saved

    for i in range(16):
        path = tmp_path / "images" / ("PNEUMONIA" if i % 2 else "NORMAL") / f"{i:02}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        declared = {"ViewPosition": "AP"} if i < 8 else {}
        chest = phantom.draw(i, opacity=bool(i % 2), size=64)
        path.write_bytes(saved(dataset(chest, Modality="DX", BodyPartExamined="CHEST", **declared)))
    found = scan(tmp_path / "images")
    told = tuple("PA" if Path(path).stem in ("00", "08") else "" for path in found.paths)

    def views(data):
        both = sides(data, output=tmp_path / "x")
        return {
            Path(path).stem: view
            for side in both
            for path, view in zip(side.dataset.paths, side.dataset.columns["view"], strict=True)
        }

    declared = views(found)
    assert (declared["00"], declared["07"], declared["08"]) == ("AP", "AP", "")
    named = views(dataclasses.replace(found, columns={"view": told}))
    assert (named["00"], named["07"], named["08"], named["09"]) == ("PA", "AP", "PA", "")


def test_overridden_leaks_and_copies_are_said_in_the_bundle(tmp_path):
    data = tmp_path / "data"
    for split, seed in (("train", 3), ("val", 50)):
        phantom.write(data / split, n=8, seed=seed, size=64)
    leaked = next((data / "train" / "NORMAL").iterdir())
    (data / "val" / "NORMAL" / "copy.png").write_bytes(leaked.read_bytes())
    recipe = small_recipe("textbook", epochs=0)
    for leaks, note in (
        ("allow", "1 image in two splits"),
        ("drop", "images that were in two splits, and copies, were left out of training"),
    ):
        run = quietly(data, output=tmp_path / leaks, leaks=leaks, recipe=recipe)
        assert note in bundle.load(run.bundle).config.notes
        assert note in (run.bundle / "README.md").read_text(encoding="utf-8")


def test_mixed_precision_ends_with_the_training(phantoms, tmp_path, sides):
    before = keras.config.dtype_policy()
    with contextlib.suppress(Stop):
        sides(phantoms, output=tmp_path / "x", recipe=small_recipe(precision="mixed_bfloat16"))
    assert keras.config.dtype_policy() is before
