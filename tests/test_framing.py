"""Lungs are found where they lie, and classes that are framed otherwise are told from classes that are not."""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxrlib.data.cache import open_cache
from cxrlib.data.scan import Dataset, scan
from cxrlib.images import phantom
from cxrlib.network import framing, lungs

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="the real radiographs (CXRLIB_SHARED) are not here"
)
TABLE = Path(__file__).parents[1] / "examples" / "lungs.csv"


def people(n: int) -> Dataset:
    """Films of as many patients, every second of them ill."""
    names = tuple(map(str, range(n)))
    return Dataset(names, np.arange(n) % 2, ("NORMAL", "PNEUMONIA"), names, ("clinic",) * n, (None,) * n)


def framed(films: Dataset, shift: float) -> np.ndarray:
    """Edges of films whose apices lie lower by `shift` where they are healthy."""
    edges = np.random.default_rng(0).normal([0.1, 0.9, 0.5, 0.1, 0.7, 0.8], 0.03, (len(films), 6)).astype(np.float32)
    edges[films.targets == 0, 3] += shift
    return edges


# --- finding ---


def test_the_edges_move_with_the_film() -> None:
    wide = np.stack([phantom.draw(seed, size=280) for seed in range(8)])
    left, right = (
        framing.find(np.ascontiguousarray(wide[:, 28:-28, part]), range(8)) for part in (slice(16, 240), slice(40, 264))
    )
    low = framing.find(np.ascontiguousarray(wide[:, :224, 28:-28]), range(8))
    assert np.median((left - right)[:, :3]) == pytest.approx(24 / 224, abs=0.03)
    assert abs(np.median((left - right)[:, 3:])) < 0.02
    assert np.median((low - (left + right) / 2)[:, 3]) == pytest.approx(28 / 224, abs=0.04)


def test_films_of_any_size_and_some_of_many() -> None:
    small, large = (np.stack([phantom.draw(seed, size=size) for seed in range(3)]) for size in (100, 448))
    assert np.abs(framing.find(small, range(3)) - framing.find(large, range(3))).max() < 0.03
    assert np.array_equal(framing.find(large, [2, 0]), framing.find(large, range(3))[[2, 0]])
    assert framing.find(large, []).shape == (0, 6)


def test_cells_are_means() -> None:
    film = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert framing.cells(film, 2).tolist() == [[[13.5, 17.5], [45.5, 49.5]]]
    assert framing.cells(film, 3).shape == (1, 3, 3)


@needs_shared
def test_real_lungs_are_found_where_they_were_measured() -> None:
    with TABLE.open(encoding="utf-8", newline="") as file:
        told = {row["film"]: [float(row[edge]) / 100 for edge in lungs.EDGES] for row in csv.DictReader(file)}
    films = scan([SHARED / "data" / name for name in ("nih", "rsna")])
    films = films.take([i for i, name in enumerate(films.names) if name in told])
    assert len(films) == 320
    error = np.abs(
        framing.find(open_cache(films, progress=False), range(320)) - np.array([told[name] for name in films.names])
    )
    assert error.mean() < 0.015
    assert np.quantile(error, 0.95) < 0.05


# --- groups ---


def test_where_framing_tells_the_classes_apart_films_are_grouped_by_it() -> None:
    films = people(1000)
    found = framing.groups(framed(films, 0.08), films)
    size = Counter(found)
    assert size == {f"{i} of 10": 100 for i in range(1, 11)}
    ill = [films.targets[np.array(found) == f"{i} of 10"].mean() for i in range(1, 11)]
    assert ill[0] < 0.1 < 0.9 < ill[-1]
    assert framing.groups(framed(films, 0.08), films) == found


def test_where_it_does_not_they_are_left_alone() -> None:
    films = people(1000)
    assert set(framing.groups(framed(films, 0.0), films)) == {""}
    assert set(framing.groups(framed(films, 0.02), films)) == {""}


def test_sources_are_judged_by_themselves() -> None:
    films = replace(people(500), sources=("clinic",) * 300 + ("home",) * 200)
    edges = framed(films, 0.0)
    edges[:300:2, 3] += 0.1  # the healthy ones of the clinic
    found = framing.groups(edges, films)
    assert set(found[:300]) == {f"{i} of 6" for i in range(1, 7)}
    assert set(found[300:]) == {""}


@pytest.mark.parametrize("n", [0, 1, 2, 40, 99])
def test_few_films_say_nothing(n: int) -> None:
    films = people(n)
    assert framing.groups(framed(films, 0.3), films) == ("",) * n


def test_few_patients_say_nothing() -> None:
    films = people(400)
    films = replace(films, patients=tuple(f"p{i % 20}" for i in range(400)))
    assert set(framing.groups(framed(films, 0.3), films)) == {""}


def test_healthy_against_the_rest_where_there_are_three_classes() -> None:
    films = people(600)
    films = replace(films, targets=np.arange(600) % 3, labels=("NORMAL", "PNEUMONIA", "TB"))
    assert set(framing.groups(framed(films, 0.1), films)) == {f"{i} of 10" for i in range(1, 11)}
