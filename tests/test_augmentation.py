"""What augmentation does to films, and when it does nothing."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs the [train] extra")

from cxrlib.augmentation import Augment
from cxrlib.config import AugmentConfig
from cxrlib.phantom import draw

STILL = AugmentConfig(**{f.name: 0.0 if f.name != "flip" else False for f in dataclasses.fields(AugmentConfig)})


def films(n=3, size=64):
    return np.stack([draw(seed, size=size, opacity=bool(seed % 2)) for seed in range(n)]).astype("float32")[..., None] / 255


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
    assert np.array_equal(np.asarray(again(x, training=True)), np.asarray(Augment(AugmentConfig(), seed=5)(x, training=True)))


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(AugmentConfig)])
def test_every_augmentation_does_something_plausible(name):
    value = {"flip": True, "rotation": 15.0, "coarse": 1.0, "strip_rate": 1.0, "marker_rate": 1.0, "jpeg": 1.0, "strip": 0.2}.get(name, 0.3)
    partner = {"strip": {"strip_rate": 1.0}, "strip_rate": {"strip": 0.2}}.get(name, {})
    layer = Augment(dataclasses.replace(STILL, **{name: value}, **partner), seed=2)
    x = films(8)
    changed = np.asarray(layer(x, training=True))
    assert 1e-4 < np.abs(changed - x).mean() < 0.35
    if name == "flip":
        whole = [min(np.abs(c - f).max(), np.abs(c - f[:, ::-1]).max()) for c, f in zip(changed, x, strict=True)]
        assert max(whole) < 2e-3


def test_the_top_is_cut_off_and_nothing_else():
    x, layer = np.repeat(films(1), 16, axis=0), Augment(AugmentConfig(), seed=3)
    ramp = np.repeat(np.linspace(0, 1, 64, dtype="float32")[None, :, None, None], 64, axis=2)  # each row is its own height
    cut = np.asarray(layer.cut(np.repeat(ramp, 16, axis=0)))
    tops = cut[:, 0, 0, 0]
    assert tops.min() >= 0
    assert 0.1 < tops.max() <= 0.15
    assert np.ptp(tops) > 0.05
    assert np.allclose(cut[:, -1], 1, atol=1e-5)
    assert np.allclose(cut[..., 0], tops[:, None, None] + (1 - tops)[:, None, None] * ramp[0, :, :, 0], atol=1e-5)
    assert not np.array_equal(layer.cut(x), layer.cut(x))
