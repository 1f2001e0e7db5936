"""The network: what it computes, what its formats compute."""

import os

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the [train] extra")

from cxrlib.images.phantom import draw  # noqa: E402
from cxrlib.network import framing, lungs  # noqa: E402
from cxrlib.network import model as networks  # noqa: E402
from cxrlib.network.layers import FindLungs, LevelBands, Reframe, Show, Standardise  # noqa: E402
from cxrlib.network.model import _on_whole_film, build_model, export_litert, hand_over, serving_graph, set_trainable  # noqa: E402
from cxrlib.runtime.litert import Runtime  # noqa: E402


def films(n=3, size=64):
    return (
        np.stack([draw(seed, size=size, opacity=bool(seed % 2)) for seed in range(n)]).astype("float32")[..., None]
        / 255
    )


@pytest.fixture(scope="module")
def net():
    """A random network through which signals neither die nor explode: without batch normalisation that takes He's scaling."""
    model = build_model(weights=None, image_size=64, seed=3)
    random = np.random.default_rng(0)
    model.get_layer("reframe").set_weights([random.normal(0, 1, model.get_layer("reframe").slope.shape)])
    for layer in model.layers:
        values = layer.get_weights()
        if values and values[0].ndim > 1 and not isinstance(layer, FindLungs):
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            fan_in = np.prod(values[0].shape[:2]) if depthwise else np.prod(values[0].shape[:-1])
            layer.set_weights(
                [random.normal(0, (2 / fan_in) ** 0.5, values[0].shape), random.normal(0, 0.1, values[1].shape)]
                if len(values) > 1
                else values
            )
    return model


def test_shapes_and_activations():
    two, three = build_model(weights=None, image_size=64), build_model(["A", "B", "C"], weights=None, image_size=64)
    assert (two.input_shape, two.output_shape) == ((None, 64, 64, 1), (None, 1))
    assert three.output_shape == (None, 3)
    assert np.allclose(three.predict_on_batch(films()).sum(1), 1, atol=1e-6)
    assert {layer.name for layer in two.layers if layer.trainable_weights} == {"probability"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg"}, "backbone must be one of mobilenet_v2, .*Received: backbone='vgg'"),
        ({"image_size": 16}, r"image_size must lie in \[32, 2048\]"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"margin": 0.3}, r"margin must lie in \[0, 0.25\]"),
        ({"follow": -0.5}, r"follow must lie in \[0, 1\]"),
        ({"detail": 1.5}, r"detail must lie in \[0, 1\]"),
        *(
            ({"seed": seed}, r"seed must be an integer in \[0, 2\*\*31 - 1\]\. Received: seed=")
            for seed in (-1, 2**31, 2**32 - 1, 0.5, True)
        ),
        ({"labels": ["one"]}, "labels must be two or more"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_model(**options, weights=None)
    with pytest.raises(ValueError, match="no layer to fine-tune from of that name"):
        set_trainable(build_model(weights=None, image_size=32), "nowhere")


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_v2_b0"])
def test_the_seed_decides_all_random_weights(backbone):
    one, again = (build_model(weights=None, image_size=32, backbone=backbone, seed=2**31 - 1) for _ in range(2))
    assert all(map(np.array_equal, one.get_weights(), again.get_weights()))
    kernels = [keras.ops.convert_to_numpy(layer.kernel).tobytes() for layer in one.layers if hasattr(layer, "kernel")]
    assert len(set(kernels)) == len(kernels) > 50


def test_another_seed_is_another_network():
    one, other = (build_model(weights=None, image_size=32, seed=seed) for seed in (3, 4))
    assert not any(
        np.array_equal(layer.kernel, other.get_layer(layer.name).kernel)
        for layer in one.layers
        if hasattr(layer, "kernel")
    )


def test_merging_batch_normalisation_changes_nothing():
    body = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
    random = np.random.default_rng(1)
    for layer in body.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(
                [np.abs(w + random.normal(0, 0.2, w.shape)).astype(w.dtype) + 0.05 for w in layer.get_weights()]
            )
    merged = networks._fold(body)
    x = random.normal(size=(2, 96, 96, 3)).astype("float32")
    expected, found = (np.asarray(m.predict_on_batch(x)) for m in (body, merged))
    assert expected.std() > 0.1
    assert np.abs(expected - found).max() < 1e-4
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in merged.layers)


@pytest.mark.parametrize("between", [[], [keras.layers.Rescaling(2.0)]], ids=["seen at once", "changed first"])
def test_three_equal_channels_are_one(between):
    grey = keras.Input((32, 32, 1))
    x = keras.layers.Concatenate(name="to_rgb")([grey] * 3)
    for layer in between:
        x = layer(x)
    fine = keras.layers.Conv2D(5, 3, strides=2, padding="same", name="fine")(x)
    coarse = keras.layers.Conv2D(4, 3, use_bias=False, name="coarse")(
        keras.layers.ZeroPadding2D()(keras.layers.AveragePooling2D(2)(x))
    )
    body = keras.Model(grey, [fine, keras.layers.BatchNormalization()(coarse)])
    folded = networks._fold(body)
    seen = np.random.default_rng(2).normal(size=(2, 32, 32, 1)).astype("float32")
    for expected, found in zip(body.predict_on_batch(seen), folded.predict_on_batch(seen), strict=True):
        assert expected.std() > 0.1
        assert np.abs(expected - found).max() < 1e-5
    channels = {folded.get_layer(name).kernel.shape[2] for name in ("fine", "coarse")}
    assert channels == ({3} if between else {1})


def test_a_film_is_the_same_at_any_exposure(net):
    x = films()
    brighter = (0.2 + 0.6 * x).astype("float32")
    plain, changed = (np.asarray(Standardise()(v)) for v in (x, brighter))
    assert np.abs(plain - changed).max() < 0.02
    assert np.abs(net.predict_on_batch(x) - net.predict_on_batch(brighter)).max() < 0.02
    seen = plain[:, 8:56, 8:56]
    assert np.abs(seen.mean((1, 2))).max() < 0.02
    assert np.abs(seen.std((1, 2)) - 1).max() < 0.02


def test_standardising_blank_and_two_valued_films_stays_finite():
    x = np.stack([np.zeros((64, 64, 1)), np.ones((64, 64, 1)), np.arange(4096).reshape(64, 64, 1) % 2]).astype(
        "float32"
    )
    assert np.abs(np.asarray(Standardise()(x))).max() <= 3


def test_a_smoothed_film_gets_its_contrast_back():
    x = (np.asarray(Standardise()(films()))).astype("float32")
    smooth = np.asarray(keras.ops.average_pool(x, 2, strides=1, padding="same"))
    before, after = (
        np.abs(np.diff(a, axis=2)).mean() / np.abs(np.diff(b, axis=2)).mean()
        for a, b in ((smooth, x), (LevelBands()(smooth), LevelBands()(x)))
    )
    assert before < 0.85
    assert 0.9 < after < 1.1
    layer = LevelBands(contrasts=(0.1, 0.2))
    assert LevelBands.from_config(layer.get_config()).contrasts == (0.1, 0.2)


@pytest.mark.parametrize("size", [32, 75, 224])
def test_levelling_keeps_what_is_coarse_and_stays_finite(size):
    slope = np.broadcast_to(np.linspace(-1.7, 1.7, size, dtype="float32")[None, :, None, None], (1, size, size, 1))
    assert np.asarray(LevelBands()(slope)).shape == slope.shape
    assert np.corrcoef(np.asarray(LevelBands()(slope)).ravel(), slope.ravel())[0, 1] > 0.97
    assert np.abs(np.asarray(LevelBands()(np.zeros((1, size, size, 1), "float32")))).max() == 0


def test_three_formats_agree(net, tmp_path):
    x = films(4)
    expected = np.asarray(net.predict_on_batch(x))
    assert expected.std() > 1e-4
    net.save(tmp_path / "m.keras")
    export_litert(net, tmp_path / "m.tflite")
    from cxrlib.bundle import _save_h5

    _save_h5(net, tmp_path / "m.h5")
    for name in ("m.keras", "m.h5"):
        assert (
            np.abs(keras.models.load_model(tmp_path / name, compile=False).predict_on_batch(x) - expected).max() < 1e-6
        )
    output = Runtime(tmp_path / "m.tflite").run(x)
    assert np.abs(output.probabilities[:, 1:] - expected).max() < 1e-4
    assert np.allclose(output.probabilities.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("labels", [["NORMAL", "PNEUMONIA"], ["A", "B", "C"]])
def test_the_mean_of_the_evidence_is_the_logit(net, labels):
    if len(labels) > 2:
        net = build_model(labels, weights=None, image_size=64)
    x = films(4)
    evidence = np.asarray(serving_graph(net).predict_on_batch(x)["evidence"])
    assert evidence.shape == (4, 4, 4, len(labels))
    assert not np.delete(evidence.reshape(4, 16, -1), [5, 6, 9, 10], axis=1).any()  # outside the lungs
    logits = evidence[:, 1:3, 1:3].mean((1, 2))
    p = np.asarray(net.predict_on_batch(x))
    if len(labels) == 2:
        assert np.allclose(logits[:, 1], np.log(p[:, 0] / (1 - p[:, 0])), rtol=1e-3, atol=1e-4)
        assert np.allclose(logits[:, 0], -logits[:, 1])
    else:
        powers = np.exp(logits)
        assert np.allclose(powers / powers.sum(1, keepdims=True), p, atol=1e-4)


def test_evidence_lies_where_its_features_lie(net):
    """The finest map speaks at every place for itself, the others for the quarter of the lungs around them."""
    kernel, bias = net.get_layer("probability").get_weights()
    first = net.get_layer("lungs_0").output.shape[-1]
    blind = kernel.copy()
    blind[first:] = 0
    reframe = net.get_layer("reframe")
    slope = reframe.get_weights()
    net.get_layer("probability").set_weights([blind, bias])
    reframe.set_weights([np.zeros_like(slope[0])])  # what framing takes off lies everywhere
    maps, evidence = (
        keras.Model(net.input, out).predict_on_batch(films(1))
        for out in (net.get_layer("lungs_0").output, serving_graph(net).output["evidence"])
    )
    net.get_layer("probability").set_weights([kernel, bias])
    reframe.set_weights(slope)
    assert np.allclose(evidence[0, 1:3, 1:3, 1], (maps[0] @ kernel[:first] + bias)[..., 0], atol=1e-4)
    assert np.ptp(evidence[0, 1:3, 1:3, 1]) > 0


def test_what_lies_in_the_margin_is_not_seen_and_no_evidence_lies_there():
    net, x = build_model(weights=None, margin=1 / 16, seed=3), films(2, 224)
    other = np.random.default_rng(0).random(x.shape).astype("float32")
    other[:, 14:-14, 14:-14] = x[:, 14:-14, 14:-14]
    p = np.asarray(net.predict_on_batch(x))
    assert np.array_equal(net.predict_on_batch(other), p)
    assert not np.array_equal(
        build_model(weights=None, seed=3).predict_on_batch(other), build_model(weights=None, seed=3).predict_on_batch(x)
    )
    evidence = np.asarray(serving_graph(net).predict_on_batch(x)["evidence"])[..., 1]
    assert evidence.shape == (2, 16, 16)  # the margin is as wide as one of the 14 places inside it
    pooled = evidence[:, 5:13, 3:13]
    assert np.allclose(pooled.mean((1, 2)), np.log(p[:, 0] / (1 - p[:, 0])), rtol=1e-3, atol=1e-5)
    assert np.allclose(pooled.sum(), evidence.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "margin", "side"), [(64, 1 / 16, 5), (448, 1 / 16, 32), (224, 0.1, 18), (32, 0.25, 8)]
)
def test_evidence_in_a_margin_is_none(size, margin, side):
    net = build_model(weights=None, image_size=size, margin=margin)
    evidence = np.asarray(serving_graph(net).predict_on_batch(films(1, size))["evidence"])[0, ..., 1]
    assert evidence.shape == (side, side)
    of_margin = int(margin * side)
    inside = evidence[of_margin : side - of_margin, of_margin : side - of_margin]
    assert np.allclose(inside.sum(), evidence.sum())
    assert inside.any()


EDGES = np.array([[0.15, 0.85, 0.5, 0.1, 0.7, 0.8], [0.125, 0.875, 0.5, 0.2, 0.6, 0.9]], "float32")


@pytest.mark.parametrize("side", [56, 28])
def test_what_is_shown_lies_where_the_window_says(side):
    layer = Show(side, margin=0.1, follow=1.0)
    left, top, right, bottom = np.asarray(layer.window(EDGES))[:, :, None].transpose(1, 0, 2)  # each (n, 1)
    assert np.allclose(np.hstack([left, top, right, bottom]), [[0.125, 0.1125, 0.875, 0.8875], [0.1, 0.1, 0.9, 0.9]])
    centre = (np.arange(56) + 0.5) / 56
    across, down = (
        np.broadcast_to(ramp, (2, 56, 56))[..., None].astype("float32") for ramp in (centre, centre[:, None])
    )
    place = (
        np.arange(side) + (0.5 if side == 56 else 0.75)
    ) / side  # means of three points half a pixel apart, the last of them the next pixel's first
    within = slice(1, -1)  # at its ends the part's own edge is repeated
    for film, start, end, axis in ((across, left, right, 2), (down, top, bottom, 1)):
        shown = np.asarray(layer([film, EDGES]))[..., 0]
        assert np.ptp(shown, axis=3 - axis).max() < 1e-6
        assert np.allclose(shown.mean(axis=3 - axis)[:, within], (start + place * (end - start))[:, within], atol=1e-6)


def test_lungs_are_shown_equally_wide_however_tightly_a_film_is_framed():
    film = np.stack([draw(7, size=448)] * 2)[..., None].astype("float32") / 255
    tight = np.asarray(
        keras.ops.image.resize(film[:1, 22:426, 45:403], (448, 448))
    )  # a tenth less at the left and at the right, a twentieth above and below
    film[1] = tight[0]
    edges = np.array([[0.2, 0.8, 0.5, 0.1, 0.7, 0.8], [0.125, 0.875, 0.5, 0.1, 0.7, 0.8]], "float32")
    same, other = (np.asarray(Show(112, margin=1 / 16, follow=follow)([film, edges])) for follow in (1.0, 0.0))
    assert np.abs(same[0] - same[1]).mean() < 0.2 * np.abs(other[0] - other[1]).mean()


def test_beyond_a_film_its_edge_is_repeated():
    layer, edges = Show(28, margin=0.0, follow=1.0), np.array([[-0.5, 1.5, 0.5, 0.1, 0.7, 0.8]], "float32")
    left, top, right, bottom = np.asarray(layer.window(edges))[0]
    assert (left, top, right, bottom) == (-1 / 16, -1 / 16, 17 / 16, 17 / 16)
    film = np.random.default_rng(0).random((1, 56, 56, 1)).astype("float32")
    shown = np.asarray(layer([film, edges]))
    assert shown[0, 0, 0, 0] == pytest.approx(film[0, 0, 0, 0])
    assert shown[0, -1, -1, 0] == pytest.approx(film[0, -1, -1, 0])
    nothing = np.asarray(layer.window(np.array([[0.9, 0.1, 0.5, 0.1, 0.7, 0.8]], "float32")))[
        0
    ]  # where no lungs are, edges mean nothing
    assert np.allclose(nothing, [0.3, 0.3, 0.7, 0.7])


def test_evidence_lies_on_the_film_where_the_window_was():
    edges = np.array([[0.225, 0.875, 0.5, 0.1, 0.7, 0.8]], "float32")
    window = Show(112, margin=1 / 16, follow=1.0).window(edges)
    evidence = np.zeros((1, 14, 14, 2), "float32")
    evidence[0, 3, 11] = 1, 2
    placed = np.asarray(_on_whole_film(evidence, window, 1 / 16))
    assert placed.shape == (1, 16, 16, 2)
    assert np.allclose(placed[..., 1], 2 * placed[..., 0])
    mass = placed[0, ..., 0] / placed[0, ..., 0].sum()
    left, top, right, bottom = np.asarray(window)[0]
    at = (np.arange(16) + 0.5) / 16
    assert mass.sum(axis=1) @ at == pytest.approx(top + (3 + 0.5) / 14 * (bottom - top), abs=0.01)
    assert mass.sum(axis=0) @ at == pytest.approx(left + (11 + 0.5) / 14 * (right - left), abs=0.01)
    alike = np.asarray(_on_whole_film(np.ones((1, 14, 14, 1), "float32"), window, 1 / 16))[0, ..., 0]
    assert np.allclose(alike[3:13, 4:14], 1)  # as strong as it was
    assert not alike[:, :2].any()


def test_weights_are_handed_over_by_name():
    whole, inner = (
        build_model(weights=None, image_size=64, margin=margin, seed=seed) for margin, seed in ((0, 1), (1 / 16, 2))
    )
    hand_over(whole, inner)
    assert len(whole.get_weights()) > 50
    for layer in whole.layers:
        if layer.weights:
            assert all(map(np.array_equal, layer.get_weights(), inner.get_layer(layer.name).get_weights()))
    shown = films(2)
    shown[:, :4] = shown[:, -4:] = shown[:, :, :4] = shown[:, :, -4:] = 0
    assert not np.array_equal(whole.predict_on_batch(shown), inner.predict_on_batch(shown))


def test_the_film_is_seen_at_two_scales():
    net = build_model(weights=None, image_size=128)
    x = films(1, size=128)
    prepared, small = (
        np.asarray(keras.Model(net.input, net.get_layer(name).output).predict_on_batch(x))
        for name in ("standardise", "coarse_smaller")
    )
    assert prepared.shape == (1, 64, 64, 1)
    assert small.shape == (1, 37, 37, 1)
    padded = np.pad(x[0, ..., 0], (0, 1), constant_values=np.nan)  # beyond the film there is nothing
    means = np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::2, ::2], axis=(2, 3))
    expected = np.asarray(Standardise()(means.astype("float32")[None, ..., None]))
    assert np.abs(prepared - expected).max() < 1e-5
    largest = build_model(weights=None)
    assert largest.get_layer("to_backbone").output.shape == (None, 112, 112, 1)
    assert largest.get_layer("coarse_smaller").output.shape == (None, 64, 64, 1)


@pytest.mark.parametrize(
    ("image_size", "side", "bands"), [(224, 112, (0.04, 0.17)), (64, 32, (0.04, 0.17)), (32, 32, (0.0, 0.04, 0.17))]
)
def test_the_same_octaves_are_levelled_whatever_the_backbone_sees(image_size, side, bands):
    net = build_model(weights=None, image_size=image_size)
    assert net.get_layer("level_bands").output.shape[1] == side
    assert net.get_layer("level_bands").contrasts == bands
    finest = bands.index(0.04)
    halved = build_model(weights=None, image_size=image_size, detail=0.5).get_layer("level_bands").contrasts
    assert halved == (*bands[:finest], 0.02, *bands[finest + 1 :])


@pytest.mark.parametrize("follow", [0.0, 1.0])
def test_both_looks_start_from_the_same_weights(tmp_path, follow):
    source = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
    source.save_weights(tmp_path / "own.weights.h5")
    net = build_model(weights=str(tmp_path / "own.weights.h5"), image_size=64, follow=follow)
    for name in ("Conv1", "block_9_depthwise"):
        assert all(
            np.array_equal(a, b)
            for a, b in zip(
                net.get_layer(name).get_weights(), net.get_layer(f"coarse_{name}").get_weights(), strict=True
            )
        )


def test_other_backbones_look_once():
    net = build_model(weights=None, image_size=64, backbone="resnet50_v2")
    assert not any(layer.name.startswith("coarse_") for layer in net.layers)
    assert serving_graph(net).predict_on_batch(films(1))["evidence"].shape == (1, 2, 2, 2)


@pytest.mark.parametrize(("size", "off"), [(56, 1e-5), (224, 1e-5), (64, 0.02), (100, 0.02), (300, 0.02)])
def test_lungs_are_found_in_the_graph_where_they_are_found_outside(size, off):
    x = np.stack([draw(seed, size=size) for seed in range(8)])
    found = np.asarray(FindLungs()(x[..., None].astype("float32") / 255))
    assert np.abs(found - framing.find(x, range(8))).max() < off
    assert np.ptp(found[:, 3]) > 0.02


def test_the_finder_is_saved_and_never_trained(tmp_path):
    net = build_model(weights=None, image_size=64)
    set_trainable(net, "Conv1")
    assert not net.get_layer("edges").trainable_weights
    assert not net.get_layer("reframe").trainable_weights
    layer = net.get_layer("edges")
    layer.set_weights([array + 1 for array in layer.get_weights()])
    net.save(tmp_path / "net.keras")
    kept = keras.models.load_model(tmp_path / "net.keras", compile=False).get_layer("edges").get_weights()
    assert all(np.array_equal(a, b + 1) for a, b in zip(kept, lungs.weights(), strict=True))


def test_features_move_by_the_slope_as_the_apices_do_within_bounds():
    layer, features = Reframe(), np.arange(6, dtype="float32").reshape(2, 3)
    layer.build([(None, 3), (None, 6)])
    apex = np.array([[0.15], [0.25]], "float32")
    edges = np.concatenate([np.zeros((2, 3), "float32"), apex, np.ones((2, 2), "float32")], axis=1)
    assert np.array_equal(layer([features, edges]), features)
    layer.set_weights([np.array([0, 10, -20], "float32")])
    moved = np.asarray(layer([features, edges])) - features
    assert np.allclose(moved, [[0, 0, 0], [0, -1, 2]], atol=1e-5)
    far, farther = (np.asarray(layer([features, np.full((2, 6), place, "float32")])) for place in (0.3, 5.0))
    assert np.array_equal(far, farther)


def test_a_band_without_contrast_is_left_out():
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype("float32")
    fine = x - np.asarray(keras.ops.image.resize(keras.ops.average_pool(x, 2, 2), (64, 64), interpolation="bilinear"))
    assert np.abs(np.asarray(LevelBands((0.0,))(x)) - (x - fine)).max() < 1e-5


def test_embedding_holds_the_means_of_several_depths(net):
    embedding = np.asarray(serving_graph(net).predict_on_batch(films(2))["embedding"])
    assert embedding.shape == (2, 96 + 144 + 192 + 576)
    deepest = np.asarray(keras.Model(net.input, net.get_layer("lungs_1").input).predict_on_batch(films(2)))
    assert np.abs(embedding[:, -576:] - deepest.mean((1, 2))).max() < 1e-4


def test_only_what_lies_behind_a_layer_is_trained():
    net = build_model(weights=None, image_size=32)
    set_trainable(net, "block_12_expand")
    moved = {v.path.split("/")[0] for v in net.trainable_variables}
    assert "block_12_expand" in moved
    assert "block_11_expand" not in moved
    assert not any(name.startswith("coarse_") for name in moved)


def test_other_backends_say_what_the_export_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(networks.keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(networks.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="the conversion to LiteRT needs TensorFlow"):
        export_litert(build_model(weights=None, image_size=32), tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []
