"""What augmentation does to images, and when it does nothing."""

import dataclasses

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the [train] extra")

from cxrlib.config import Augmentation  # noqa: E402
from cxrlib.images.phantom import draw  # noqa: E402
from cxrlib.network.augment import augmenter, reseed  # noqa: E402

FIELDS = [field.name for field in dataclasses.fields(Augmentation)]
NONE = Augmentation(**{name: False if name == "flip" else 0.0 for name in FIELDS})
ALL = Augmentation(blur=1.0, low_resolution=1.0, erase=1.0)


def images(n=3, size=64):
    pixels = [draw(seed, size=size, opacity=bool(seed % 2)) for seed in range(n)]
    return np.stack(pixels).astype("float32")[..., None] / 255


def changed(config, x, seed=2):
    return np.asarray(augmenter(config, seed=seed)(x, training=True))


def test_nothing_changes_outside_training_and_where_nothing_is_asked_for():
    x = images()
    assert np.array_equal(np.asarray(augmenter(ALL)(x, training=False)), x)
    inputs = keras.Input(x.shape[1:])
    assert np.array_equal(keras.Model(inputs, augmenter(ALL)(inputs)).predict_on_batch(x), x)
    assert np.array_equal(changed(NONE, x), x)


def test_an_augmentation_can_be_replayed():
    x, layers = images(), augmenter(ALL, seed=5)

    def at(seed, epoch):
        reseed(layers, seed, epoch)
        return np.asarray(layers(x, training=True))

    first = at(7, 0)
    following = np.asarray(layers(x, training=True))
    assert np.array_equal(at(7, 0), first)
    assert np.array_equal(np.asarray(layers(x, training=True)), following)
    for other in (following, at(7, 1), at(8, 0)):
        assert np.abs(other - first).mean() > 0.01
    again = augmenter(ALL, seed=99)  # as in another process: only the seed and the epoch count
    reseed(again, 7, 0)
    assert np.array_equal(np.asarray(again(x, training=True)), first)


@pytest.mark.parametrize("name", FIELDS)
def test_every_augmentation_changes_images_plausibly(name):
    value = {"flip": True, "rotation": 15.0, "blur": 1.0, "low_resolution": 1.0, "erase": 1.0}.get(name, 0.3)
    x = images(8)
    y = changed(dataclasses.replace(NONE, **{name: value}), x)
    assert y.shape == x.shape
    assert y.dtype == np.float32
    assert y.min() >= 0
    assert y.max() <= 1 + 1e-5
    assert 1e-4 < np.abs(y - x).mean() < 0.35
    if name == "flip":
        kept = [np.array_equal(a, b) for a, b in zip(y, x, strict=True)]
        mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(y, x, strict=True)]
        assert all(map(np.logical_xor, kept, mirrored))
        assert 0 < sum(kept) < 8
    if name in ("rotation", "zoom", "shift", "gamma"):  # each image is changed in its own way
        one = changed(dataclasses.replace(NONE, **{name: value}), np.repeat(x[:1], 8, axis=0))
        assert len({image.tobytes() for image in one}) == 8


def test_a_changed_tone_curve_keeps_the_order_of_intensities():
    ramp = np.repeat(np.linspace(0, 1, 64, dtype="float32")[None, :, None, None], 64, axis=2)
    for curve in changed(dataclasses.replace(NONE, gamma=1.0), np.repeat(ramp, 8, axis=0)):
        column = curve[:, 0, 0]
        assert (np.diff(column[1:]) > 0).all()
        exponent = np.log(column[32]) / np.log(ramp[0, 32, 0, 0])
        assert np.exp(-1) - 1e-3 <= exponent <= np.exp(1) + 1e-3
        assert np.allclose(column[1:], ramp[0, 1:, 0, 0] ** exponent, atol=1e-3)


def test_low_resolution_loses_detail_and_keeps_the_mean():
    x = np.random.default_rng(0).random((32, 64, 64, 1), dtype="float32")
    y = changed(dataclasses.replace(NONE, low_resolution=0.5), x)
    untouched = np.array([np.array_equal(a, b) for a, b in zip(y, x, strict=True)])
    assert 4 < untouched.sum() < 28
    coarse = y[~untouched]
    assert (coarse.std(axis=(1, 2)) < 0.6 * x[~untouched].std(axis=(1, 2))).all()
    assert np.allclose(coarse.mean(axis=(1, 2)), x[~untouched].mean(axis=(1, 2)), atol=0.01)
    detail = np.abs(np.diff(coarse, axis=2)).mean(axis=(1, 2, 3))
    assert detail.max() > 2 * detail.min()  # a half and a quarter of the side


def test_rotation_stays_within_its_bound():
    line = np.zeros((16, 65, 65, 1), "float32")
    line[:, 31:34] = 1  # a horizontal bar through the centre
    for image in changed(dataclasses.replace(NONE, rotation=10.0), line)[..., 0]:
        rows = (image * np.arange(65)[:, None]).sum(axis=0) / image.sum(axis=0)  # height of the bar in each column
        slope = np.polyfit(np.arange(10, 55), rows[10:55], 1)[0]
        assert abs(np.degrees(np.arctan(slope))) < 10.5
