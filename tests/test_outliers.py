"""Pictures to fit the gate with: the same for a seed, of every kind, and never too much alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cxrlib.data.drawings import KINDS
from cxrlib.data.outliers import outliers, variants
from cxrlib.data.scan import outliers as module
from cxrlib.images import phantom

FILMS = np.stack([phantom.draw(seed, size=64) for seed in range(4)])


@pytest.mark.parametrize("make", [variants, outliers])
def test_the_same_seed_makes_the_same_pictures(make: Callable[..., np.ndarray]) -> None:
    made = make(FILMS, 12, seed=3)
    assert (made.shape, made.dtype) == ((12, 64, 64), np.uint8)
    assert np.array_equal(made, make(FILMS, 12, seed=3))
    assert not np.array_equal(made, make(FILMS, 12, seed=4))
    assert len({picture.tobytes() for picture in made}) == 12
    assert all(picture.std() > 1 for picture in made)


def test_variants_are_still_the_same_chests() -> None:
    """A variant correlates with one of the films it is made of; an outlier seldom does."""

    def likeness(pictures: np.ndarray) -> np.ndarray:
        both = np.concatenate([FILMS, FILMS[:, :, ::-1]])
        flat = [x.reshape(len(x), -1).astype(float) for x in (pictures, both)]
        flat = [(x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in flat]
        return (flat[0] @ flat[1].T / flat[0].shape[1]).max(1)

    same, other = likeness(variants(FILMS, 60)), likeness(outliers(FILMS, 60))
    assert np.median(same) > np.median(other) + 0.3


def test_every_tenth_variant_is_a_phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def draw(seed: int, **options: object) -> np.ndarray:
        seen.append((seed, options["opacity"], options["size"]))
        return np.zeros((options["size"],) * 2, np.uint8)  # type: ignore[operator]

    monkeypatch.setattr(module, "draw", draw)
    variants(FILMS, 200)
    seeds, opacities, sizes = zip(*seen, strict=True)
    assert len(set(seeds)) == 20
    assert set(opacities) == {False, True}
    assert min(sizes) < 64 < max(sizes)


def test_half_of_the_outliers_are_drawn_and_half_are_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SPOIL", (lambda film, rng: np.zeros_like(film),))
    made = outliers(FILMS, 8)
    assert [not picture.any() for picture in made] == [False, True] * 4


@pytest.mark.parametrize("make", dict.fromkeys(KINDS), ids=lambda make: make.__name__)
def test_every_drawing_shows_something(make: Callable[..., np.ndarray]) -> None:
    for seed in range(3):
        drawn = make(np.random.default_rng(seed), 64)
        assert drawn.dtype == np.float32  # in double precision all would take twice as long
        picture = module._finish(drawn, np.random.default_rng(seed))
        assert (picture.shape, picture.dtype) == ((64, 64), np.uint8)
        assert picture.std() > 2


@pytest.mark.parametrize("spoil", dict.fromkeys(module._SPOIL), ids=lambda spoil: spoil.__name__)
def test_every_spoilt_film_differs_from_the_film(spoil: Callable[..., np.ndarray]) -> None:
    for seed in range(3):
        picture = spoil(FILMS[0], np.random.default_rng(seed))
        assert (picture.shape, picture.dtype) == ((64, 64), np.uint8)
        assert np.abs(picture.astype(int) - FILMS[0]).mean() > 5


def test_small_and_blank_films() -> None:
    assert variants(np.zeros((2, 16, 16), np.uint8), 11).shape == (11, 16, 16)
    assert outliers(np.full((2, 16, 16), 255, np.uint8), 46).shape == (46, 16, 16)
