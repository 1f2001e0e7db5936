"""What augmentation does to films, and when it does nothing."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("keras", reason="needs the [train] extra")

from cxrlib.config import AugmentConfig
from cxrlib.images.phantom import draw
from cxrlib.network.augment import Augment, _compress, _enhance

STILL = AugmentConfig(**{f.name: 0.0 if f.name != "flip" else False for f in dataclasses.fields(AugmentConfig)})


def films(n=3, size=64):
    return (
        np.stack([draw(seed, size=size, opacity=bool(seed % 2)) for seed in range(n)]).astype("float32")[..., None]
        / 255
    )


def test_augmentation_rests_outside_training_and_when_told_nothing():
    x = films()
    assert np.array_equal(np.asarray(Augment(AugmentConfig())(x)), x)
    assert np.abs(np.asarray(Augment(STILL)(x, training=True)) - np.clip(x, 1e-4, 1)).max() < 2e-3


def test_an_augmentation_can_be_replayed():
    x, layer = films(), Augment(AugmentConfig(), seed=5)
    drawn = layer.draw(len(x), x.shape[1])
    once, twice = (np.asarray(layer.apply(x, drawn)) for _ in range(2))
    assert np.array_equal(once, twice)
    assert np.abs(once - x).mean() > 0.01
    assert once.min() >= 0
    assert once.max() <= 1
    again = Augment.from_config(layer.get_config())
    assert np.array_equal(
        np.asarray(again(x, training=True)), np.asarray(Augment(AugmentConfig(), seed=5)(x, training=True))
    )


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(AugmentConfig)])
def test_every_augmentation_does_something_plausible(name):
    value = {
        "flip": True,
        "rotation": 15.0,
        "coarse": 1.0,
        "strip_rate": 1.0,
        "marker_rate": 1.0,
        "jpeg": 1.0,
        "strip": 0.2,
    }.get(name, 0.3)
    partner = {"strip": {"strip_rate": 1.0}, "strip_rate": {"strip": 0.2}}.get(name, {})
    layer = Augment(dataclasses.replace(STILL, **{name: value}, **partner), seed=2)
    x = films(8)
    changed = np.asarray(layer(x, training=True))
    assert 1e-4 < np.abs(changed - x).mean() < 0.35
    if name == "flip":
        whole = [min(np.abs(c - f).max(), np.abs(c - f[:, ::-1]).max()) for c, f in zip(changed, x, strict=True)]
        assert max(whole) < 2e-3


@pytest.mark.parametrize(("strength", "quality"), [(0.5, 75), (1.0, 50), (2.0, 25)])
def test_compression_loses_what_jpeg_loses(strength, quality):
    x = films(2)
    compressed = np.asarray(_compress(x, np.full((2, 1, 1), strength, "float32")))
    for film, ours in zip(x, compressed, strict=True):
        file = io.BytesIO()
        Image.fromarray((film[..., 0] * 255).astype("uint8")).save(file, format="JPEG", quality=quality)
        theirs = np.asarray(Image.open(file), "float32") / 255
        assert (
            np.abs(ours[..., 0] - theirs).mean() < 0.2 * np.abs(film[..., 0] - theirs).mean() + 0.5 / 255
        )  # files hold whole numbers


@pytest.mark.parametrize("size", [64, 60, 44])
def test_local_contrast_becomes_alike_everywhere(size):
    grain = np.random.default_rng(0).normal(0, 1, (1, size, size, 1)).astype("float32")
    left = (np.arange(size) < size // 2)[None, None, :, None]
    x = 0.5 + np.where(left, 0.02, 0.1).astype("float32") * grain.clip(
        -2, 2
    )  # grain that is five times as strong on the right
    kept, changed = (np.asarray(_enhance(x, np.full((1, 1, 1, 1), strength, "float32"))) for strength in (0.0, 1.0))
    assert np.abs(kept - x).max() < 1e-6

    def ratio(film):
        return float(film[~np.broadcast_to(left, film.shape)].std() / film[np.broadcast_to(left, film.shape)].std())

    assert ratio(x) > 3
    assert ratio(changed) < 0.7 * ratio(x)


def test_the_top_is_cut_off_and_nothing_else():
    x, layer = np.repeat(films(1), 16, axis=0), Augment(AugmentConfig(), seed=3)
    ramp = np.repeat(
        np.linspace(0, 1, 64, dtype="float32")[None, :, None, None], 64, axis=2
    )  # each row is its own height
    cut = np.asarray(layer.cut(np.repeat(ramp, 16, axis=0)))
    tops = cut[:, 0, 0, 0]
    assert tops.min() >= 0
    assert 0.1 < tops.max() <= 0.15
    assert np.ptp(tops) > 0.05
    assert np.allclose(cut[:, -1], 1, atol=1e-5)
    assert np.allclose(cut[..., 0], tops[:, None, None] + (1 - tops)[:, None, None] * ramp[0, :, :, 0], atol=1e-5)
    assert not np.array_equal(layer.cut(x), layer.cut(x))
