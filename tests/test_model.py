"""The networks of both recipes: what they compute, and that every saved form computes the same without cxrlib."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the [train] extra")

import small_backbone  # noqa: E402
from conftest import small_recipe  # noqa: E402

from cxrlib.config import DefaultRecipe, TextbookRecipe  # noqa: E402
from cxrlib.images.phantom import draw  # noqa: E402
from cxrlib.network import default, model  # noqa: E402
from cxrlib.network.default import BACKBONES, fold_batch_normalisation, set_trainable  # noqa: E402
from cxrlib.network.model import build_model, export_litert, serving_graph  # noqa: E402
from cxrlib.network.preprocessing import level_bands, standardise  # noqa: E402
from cxrlib.runtime.litert import Runtime  # noqa: E402

TWO, THREE = ("NORMAL", "PNEUMONIA"), ("NORMAL", "BACTERIAL", "VIRAL")
NETWORKS = {  # labels, recipe, whether with the real backbone
    "default": (TWO, small_recipe(), True),
    "textbook": (TWO, small_recipe("textbook", dense_units=16), True),
    "default, three labels": (THREE, small_recipe(), False),
    "default with a dense layer": (TWO, small_recipe(dense_units=12), False),
    "textbook, three labels": (THREE, small_recipe("textbook", dense_units=16), False),
}


def images(n=4, size=32):
    pixels = [draw(seed, size=size, opacity=bool(seed % 2)) for seed in range(n)]
    return np.stack(pixels).astype("float32")[..., None] / 255


def scramble(net, seed=0):
    """Random weights that let signals through: He's scaling, and biases that are not 0."""
    random = np.random.default_rng(seed)
    for layer in net.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([w + random.uniform(0, 0.3, w.shape).astype("float32") for w in layer.get_weights()])
        elif layer.weights:
            kernel, *bias = layer.get_weights()
            fan_in = np.prod(kernel.shape[:2] if isinstance(layer, keras.layers.DepthwiseConv2D) else kernel.shape[:-1])
            layer.set_weights(
                [random.normal(0, (2 / fan_in) ** 0.5, kernel.shape), *(random.normal(0, 0.1, b.shape) for b in bias)]
            )
    return net


@pytest.fixture(scope="module")
def networks():
    """Networks of both recipes, by name."""
    made = {}
    for name, (labels, recipe, real) in NETWORKS.items():
        with pytest.MonkeyPatch.context() as patch:
            if not real:
                patch.setattr(keras.applications, "MobileNetV2", small_backbone.build)
            made[name] = scramble(build_model(labels, recipe=recipe, weights=None))
    return made


@pytest.fixture(scope="module")
def exported(networks):
    """What LiteRT gives for `images()`, by network."""
    return {name: Runtime(export_litert(net)).run(images()) for name, net in networks.items()}


# --- saved forms ---

WITHOUT_CXRLIB = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cxrlib":
            raise ModuleNotFoundError("no cxrlib here")
sys.meta_path.insert(0, Absent())
try:
    import cxrlib
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("cxrlib can be imported")
import keras, numpy as np
images = np.load(sys.argv[1])
np.savez(sys.argv[2], *(keras.models.load_model(path).predict_on_batch(images) for path in sys.argv[3:]))
"""


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_saved_networks_load_and_answer_the_same_without_cxrlib(networks, exported, tmp_path):
    np.save(tmp_path / "images.npy", images())
    paths = []
    for i, net in enumerate(networks.values()):
        for form in ("keras", "h5"):
            paths.append(tmp_path / f"{i}.{form}")
            net.save(paths[-1])
    command = [sys.executable, "-I", "-c", WITHOUT_CXRLIB, tmp_path / "images.npy", tmp_path / "answers.npz", *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = iter(np.load(tmp_path / "answers.npz").values())
    for name, net in networks.items():
        expected = np.asarray(net.predict_on_batch(images()))
        assert np.ptp(expected, axis=0).max() > 1e-3, f"{name}: its answers do not depend on the image"
        for form in ("keras", "h5"):
            assert np.abs(next(answers) - expected).max() < 1e-5, f"{name}, {form}"
        litert = exported[name].probabilities
        assert np.allclose(litert.sum(axis=1), 1, atol=1e-6)
        assert np.abs((litert[:, 1:] if expected.shape[1] == 1 else litert) - expected).max() < 1e-5, f"{name}, LiteRT"


def test_every_layer_of_a_saved_network_is_of_keras(networks, tmp_path):
    for net in networks.values():
        net.save(tmp_path / "model.keras")
        with zipfile.ZipFile(tmp_path / "model.keras") as archive:
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        assert {layer["module"] for layer in layers} == {"keras.layers"}
        assert not {layer["class_name"] for layer in layers} & {"Lambda", "TFOpLambda"}
        assert {layer.get("registered_name") for layer in layers} == {None}


def test_other_backends_say_what_the_export_needs(networks, monkeypatch):
    monkeypatch.setattr(model.keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(model.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="the conversion to LiteRT needs TensorFlow"):
        export_litert(networks["textbook, three labels"])


@pytest.mark.usefixtures("small_backbone")
def test_a_network_of_mixed_precision_is_exported_in_float32():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        net = scramble(build_model(recipe=small_recipe(dense_units=8), weights=None))
    finally:
        keras.config.set_dtype_policy(before)
    assert net.get_layer("Conv1").compute_dtype == "bfloat16"
    mixed, found = np.asarray(net.predict_on_batch(images())), Runtime(export_litert(net)).run(images())
    assert mixed.dtype == np.float32
    assert 0 < np.abs(found.probabilities[:, 1:] - mixed).max() < 0.05
    twin = scramble(build_model(recipe=small_recipe(dense_units=8), weights=None))
    assert np.abs(found.probabilities[:, 1:] - np.asarray(twin.predict_on_batch(images()))).max() < 1e-5


# --- evidence ---


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_of_the_evidence_is_the_logit(networks, exported, name):
    for evidence in (
        exported[name].evidence,
        np.asarray(serving_graph(networks[name]).predict_on_batch(images())["evidence"]),
    ):
        logits = evidence.mean(axis=(1, 2), dtype=np.float64)  # (n, k)
        p = np.asarray(networks[name].predict_on_batch(images()), np.float64)
        if p.shape[1] == 1:
            assert np.allclose(logits[:, 1], np.log(p[:, 0] / (1 - p[:, 0])), rtol=1e-3, atol=1e-4)
            assert np.allclose(logits[:, 0], -logits[:, 1], atol=1e-5)
        else:
            powers = np.exp(logits)
            assert np.allclose(powers / powers.sum(axis=1, keepdims=True), p, atol=1e-5)


@pytest.mark.usefixtures("small_backbone")
def test_a_network_loaded_in_a_new_session_is_served(tmp_path):
    net = build_model(recipe=small_recipe(), weights=None)
    net.save(tmp_path / "model.keras")
    expected = np.asarray(serving_graph(net).predict_on_batch(images(2, 32))["probabilities"])
    keras.utils.clear_session()  # names are given from the beginning again, as in a new process
    served = serving_graph(keras.models.load_model(tmp_path / "model.keras"))
    assert np.abs(np.asarray(served.predict_on_batch(images(2, 32))["probabilities"]) - expected).max() < 1e-6


@pytest.mark.usefixtures("small_backbone")
@pytest.mark.parametrize("dense_units", [0, 12])
def test_a_place_with_other_features_has_other_evidence(dense_units):
    net = scramble(build_model(recipe=small_recipe(image_size=64, dense_units=dense_units), weights=None))
    maps = keras.Model(net.input, net.get_layer("features").input).predict_on_batch(images(1, 64))  # (1, 4, 4, 24)
    evidence = np.asarray(serving_graph(net).predict_on_batch(images(1, 64))["evidence"])[0, ..., 1]
    if dense_units:
        (inner, inner_bias), (outer, bias) = (net.get_layer(n).get_weights() for n in ("dense", "probability"))
        active = (maps.mean(axis=(0, 1, 2)) @ inner + inner_bias > 0).astype(float)
        assert 0 < active.sum() < dense_units
        expected = (maps[0] @ inner + inner_bias) * active @ outer + bias
    else:
        kernel, bias = net.get_layer("probability").get_weights()
        expected = maps[0] @ kernel + bias
    assert evidence.shape == (4, 4)
    assert np.ptp(evidence) > 0.01
    assert np.allclose(evidence, expected[..., 0], rtol=1e-4, atol=1e-4)


def test_the_embedding_holds_the_means_of_several_depths(networks):
    net = networks["default"]
    embedding = np.asarray(serving_graph(net).predict_on_batch(images())["embedding"])
    deepest = np.asarray(keras.Model(net.input, net.get_layer("features").input).predict_on_batch(images()))
    assert embedding.shape[1] > 1280
    assert np.abs(embedding[:, -1280:] - deepest.mean(axis=(1, 2))).max() < 1e-4


# --- what a recipe builds ---


def test_shapes_and_activations(networks):
    for name, (labels, recipe, _) in NETWORKS.items():
        net = networks[name]
        assert net.input_shape == (None, recipe.image_size, recipe.image_size, 1)
        assert net.output_shape == (None, 1 if len(labels) == 2 else len(labels))
        assert net.output.dtype == "float32"
    p = np.asarray(networks["textbook, three labels"].predict_on_batch(images()))
    assert np.allclose(p.sum(axis=1), 1, atol=1e-6)


def test_the_textbook_trains_its_head_alone():
    net = build_model(recipe=TextbookRecipe(image_size=32), weights=None)
    assert {v.path.split("/")[0] for v in net.trainable_variables} == {"dense", "probability"}
    names = [layer.name for layer in net.layers]
    assert names[-4:] == ["features", "dense", "dropout", "probability"]
    assert net.get_layer("dense").units == 128


def test_the_default_is_fine_tuned_from_its_third_block(networks):
    net = networks["default"]
    set_trainable(net, BACKBONES["mobilenet_v2"].fine_tune_from)
    moved = {v.path.split("/")[0] for v in net.trainable_variables}
    assert {"block_3_expand", "Conv_1", "probability"} <= moved
    assert not moved & {"Conv1", "expanded_conv_depthwise", "block_2_project"}
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in net.layers)
    with pytest.raises(
        ValueError, match=r"first_layer must be a layer of the network\. Received: first_layer='nowhere'"
    ):
        set_trainable(net, "nowhere")


@pytest.mark.parametrize("recipe", [small_recipe(dense_units=4), small_recipe("textbook", dense_units=4)])
def test_the_seed_decides_all_random_weights(recipe):
    last = dataclasses.replace(recipe, seed=2**31 - 1)
    one, again, other = (build_model(recipe=r, weights=None) for r in (last, last, recipe))
    assert all(map(np.array_equal, one.get_weights(), again.get_weights()))
    kernels = {layer.name: np.asarray(layer.kernel) for layer in one.layers if hasattr(layer, "kernel")}
    assert len({kernel.tobytes() for kernel in kernels.values()}) == len(kernels) > 50
    assert not any(np.array_equal(kernel, other.get_layer(name).kernel) for name, kernel in kernels.items())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "mobilenet_v2"])
def test_other_backbones(backbone):
    net = build_model(recipe=DefaultRecipe(image_size=64, backbone=backbone), weights=None)
    set_trainable(net, BACKBONES[backbone].fine_tune_from)
    assert len(net.trainable_variables) > 10
    outputs = serving_graph(net).predict_on_batch(images(2, 64))
    assert outputs["evidence"].shape == (2, 2, 2, 2)
    assert all(np.isfinite(value).all() for value in outputs.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "best"}, "recipe must be one of default, textbook, or a recipe object. Received: recipe='best'"),
        ({"recipe": 3}, "recipe must be one of default, textbook"),
        (
            {"recipe": {"name": "textbook", "backbone": "resnet50_v2", "ema": 0.9}},
            "the textbook recipe has unknown fields: backbone, ema. Known: image_size, dense_units",
        ),
        ({"recipe": {"patience": 3}}, "the default recipe has unknown fields: patience. Known: backbone"),
        ({"recipe": DefaultRecipe(backbone="vgg")}, "backbone must be one of mobilenet_v2, .*Received: backbone='vgg'"),
        ({"labels": ["one"]}, "labels must be two or more different"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_model(**options, weights=None)


# --- folding and preprocessing ---


def test_folding_batch_normalisation_keeps_the_function():
    body = scramble(keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(64, 64, 3)), seed=1)
    folded = fold_batch_normalisation(body)
    x = np.random.default_rng(2).normal(size=(2, 64, 64, 3)).astype("float32")
    expected, found = (np.asarray(m.predict_on_batch(x)) for m in (body, folded))
    assert expected.std() > 1e-3
    assert np.abs(expected - found).max() < 1e-3 * np.abs(expected).max()
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)


def test_a_normalisation_that_follows_no_convolution_alone_is_left_as_it_is():
    inputs = keras.Input((16, 16, 2))
    x = keras.layers.Conv2D(3, 3, name="shared")(keras.layers.BatchNormalization(name="first")(inputs))
    net = keras.Model(inputs, keras.layers.Concatenate()([keras.layers.BatchNormalization(name="second")(x), x]))
    scramble(net)
    folded = fold_batch_normalisation(net)
    assert {"first", "second"} <= {layer.name for layer in folded.layers}
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 2)).astype("float32")
    assert np.abs(folded.predict_on_batch(x) - net.predict_on_batch(x)).max() < 1e-5


def test_brightness_and_contrast_change_nothing(networks):
    x = images()
    for factor, offset in ((0.6, 0.2), (0.3, 0.0), (0.3, 0.7)):
        changed = (offset + factor * x).astype("float32")
        assert np.abs(np.asarray(standardise(x)) - np.asarray(standardise(changed))).max() < 0.02
        for name in ("default", "default, three labels"):
            net = networks[name]
            assert np.abs(net.predict_on_batch(x) - net.predict_on_batch(changed)).max() < 0.01
    textbook = networks["textbook"]
    assert np.abs(textbook.predict_on_batch(x) - textbook.predict_on_batch(0.3 * x)).max() > 0.01


def test_standardising_gives_mean_0_and_deviation_1_within_three_and_stays_finite_for_blank_images():
    x = np.asarray(standardise(images(4, 64)))
    assert np.abs(x.mean(axis=(1, 2))).max() < 0.05
    assert np.abs(x.std(axis=(1, 2)) - 1).max() < 0.05
    spike = np.zeros((1, 64, 64, 1), "float32")
    spike[0, 0, 0] = 1
    blank = np.stack([np.zeros((64, 64, 1)), np.ones((64, 64, 1))]).astype("float32")
    assert np.asarray(standardise(spike)).max() == 3
    assert np.abs(np.asarray(standardise(blank))).max() < 1e-3


def test_a_smoothed_image_gets_its_contrast_back():
    x = np.asarray(standardise(images(3, 64)))
    smooth = np.asarray(keras.ops.average_pool(x, 3, strides=1, padding="same"))
    before, after = (
        np.abs(np.diff(a, axis=2)).mean() / np.abs(np.diff(b, axis=2)).mean()
        for a, b in ((smooth, x), (level_bands(smooth), level_bands(x)))
    )
    assert before < 0.85
    assert 0.9 < np.float64(after) < 1.1


@pytest.mark.parametrize("size", [32, 96, 224])
def test_levelling_keeps_what_is_coarse_and_stays_finite(size):
    slope = np.broadcast_to(np.linspace(-1.7, 1.7, size, dtype="float32")[None, :, None, None], (1, size, size, 1))
    levelled = np.asarray(level_bands(slope))
    assert levelled.shape == slope.shape
    assert np.corrcoef(levelled.ravel(), slope.ravel())[0, 1] > 0.97
    assert np.abs(np.asarray(level_bands(np.zeros((1, size, size, 1), "float32")))).max() == 0


def test_a_band_without_contrast_is_left_out():
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype("float32")
    coarse = keras.ops.image.resize(keras.ops.average_pool(x, 2, 2), (64, 64), interpolation="bilinear")
    assert np.abs(np.asarray(level_bands(x, (0.0,))) - np.asarray(coarse)).max() < 1e-5


def test_the_head_is_fitted_on_features():
    random = np.random.default_rng(0)
    targets = (np.arange(4000) % 2).astype("float32")[:, None]
    inputs = keras.Input((4, 4, 6))
    x = keras.layers.GlobalAveragePooling2D(name="features")(inputs)
    net = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="probability")(x))
    features = random.normal(size=(4000, 6)).astype("float32") + 2 * targets
    maps = np.broadcast_to(features[:, None, None], (4000, 4, 4, 6))
    before = ((np.asarray(net.predict_on_batch(maps)) > 0.5) == targets).mean()
    default.fit_head(net, features, targets, np.ones(4000))
    after = ((np.asarray(net.predict_on_batch(maps)) > 0.5) == targets).mean()
    assert after > 0.9
    assert after >= before


def test_a_page_of_keras():
    """What a student reads first stays short."""
    from pathlib import Path

    from cxrlib.network import textbook

    assert len(Path(textbook.__file__).read_text(encoding="utf-8").splitlines()) < 80
    assert os.path.basename(textbook.__file__) == "textbook.py"
