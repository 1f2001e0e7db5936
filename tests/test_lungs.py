"""The network that finds the lungs: it is whole, and every film is looked at by itself. What it finds is tested in test_framing.py."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlib.images import phantom
from cxrlib.network import lungs
from cxrlib.network.framing import cells


def films(n: int) -> np.ndarray:
    return cells(np.stack([phantom.draw(seed, size=224) for seed in range(n)]), lungs.SIDE) / np.float32(255)


def test_the_weights_belong_together_and_cannot_be_changed() -> None:
    *convolutions, kernel, bias = lungs.weights()
    assert [array.shape for array in convolutions[::2]] == [
        (3, 3, 1, 16),
        (3, 3, 16, 24),
        (3, 3, 24, 32),
        (3, 3, 32, 48),
        (3, 3, 48, 48),
    ]
    assert (kernel.shape, bias.shape) == ((7 * 7 * 48, len(lungs.EDGES)), (len(lungs.EDGES),))
    assert len(convolutions) == 2 * len(lungs.STRIDES)
    with pytest.raises(ValueError, match="read-only"):
        kernel[0] = 0


def test_films_are_looked_at_one_by_one() -> None:
    some = films(5)
    alone = np.concatenate([lungs.find(film[None]) for film in some])
    assert np.abs(lungs.find(some) - alone).max() < 1e-5
    assert lungs.find(some).dtype == np.float32
    assert lungs.find(some[:0]).shape == (0, 6)


def test_exposure_does_not_matter() -> None:
    some = films(5)
    assert np.abs(lungs.find(0.2 + 0.5 * some) - lungs.find(some)).max() < 0.01


def test_a_blank_film_has_no_lungs_but_an_answer() -> None:
    assert np.isfinite(lungs.find(np.zeros((1, 56, 56), np.float32))).all()
