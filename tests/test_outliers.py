"""Images to fit the gate with: the same for a seed, of every kind, and not too much alike."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlib.data.drawings import DRAWINGS
from cxrlib.data.outliers import outliers, variants
from cxrlib.images import phantom

CHESTS = np.stack([phantom.draw(seed, size=64) for seed in range(4)])


def test_the_same_seed_makes_the_same_images() -> None:
    for make in (variants, lambda *a, **k: outliers(*a, **k)[0]):
        made = make(CHESTS, 12, seed=3)
        assert (made.shape, made.dtype) == ((12, 64, 64), np.uint8)
        assert np.array_equal(made, make(CHESTS, 12, seed=3))
        assert not np.array_equal(made, make(CHESTS, 12, seed=4))
        assert len({image.tobytes() for image in made}) == 12
        assert all(image.std() > 1 for image in made)


def test_variants_are_still_the_same_chests() -> None:
    """A variant correlates with one of the images it is made of; an outlier seldom does."""

    def likeness(images: np.ndarray) -> np.ndarray:
        both = np.concatenate([CHESTS, CHESTS[:, :, ::-1]])
        flat = [x.reshape(len(x), -1).astype(float) for x in (images, both)]
        flat = [(x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in flat]
        return (flat[0] @ flat[1].T / flat[0].shape[1]).max(1)

    made, kinds = outliers(CHESTS, 120)
    same, other = likeness(variants(CHESTS, 60)), likeness(made[~np.isin(kinds, ["part", "several", "screen"])])
    assert np.median(same) > np.median(other) + 0.3


def test_every_tenth_variant_is_a_phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def draw(seed: int, **options: object) -> np.ndarray:
        seen.append((seed, options["opacity"], options["size"]))
        return np.zeros((options["size"],) * 2, np.uint8)  # type: ignore[operator]

    monkeypatch.setattr("cxrlib.data.outliers.draw", draw)
    variants(CHESTS, 200)
    seeds, opacities, sizes = zip(*seen, strict=True)
    assert len(set(seeds)) == 20
    assert set(opacities) == {False, True}
    assert min(sizes) < 64 < max(sizes)


def test_every_kind_is_made() -> None:
    made, kinds = outliers(CHESTS, 200)
    assert set(kinds) == {
        *("lateral", "scan", "sideways", "upside down", "negative", "several", "screen", "part", "other")
    }
    assert made.shape == (200, 64, 64)


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_shows_something(name: str) -> None:
    for seed in range(3):
        drawn = DRAWINGS[name](np.random.default_rng(seed), 64)
        assert drawn.dtype == np.float32  # in double precision all would take twice as long
        assert drawn.shape == (64, 64)
        assert drawn.std() > 0


def test_small_and_blank_images() -> None:
    assert variants(np.zeros((2, 16, 16), np.uint8), 11).shape == (11, 16, 16)
    assert outliers(np.full((2, 16, 16), 255, np.uint8), 60)[0].shape == (60, 16, 16)
