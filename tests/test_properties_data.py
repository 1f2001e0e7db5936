"""What holds for any data set: splits, weights, draws, and manifests that are read back."""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from cxrlib.data.scan import Dataset, scan, write_manifest
from cxrlib.data.split import connected, split
from cxrlib.network.fit import draw, sampling_weights

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

bounded = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

ROWS = st.lists(
    st.tuples(st.sampled_from([None, *"abcdefghijkl"]), st.integers(0, 2), st.sampled_from(["east", "west", "süd"])),
    min_size=1,
    max_size=60,
)
LABELS = ("NORMAL", "BACTERIAL", "VIRAL")


def dataset(rows: list[tuple[str | None, int, str]]) -> Dataset:
    n, k = len(rows), max(2, 1 + max(target for _, target, _ in rows))
    names = tuple(f"image{i}.png" for i in range(n))
    patients, targets, sources = zip(*rows, strict=True)
    return Dataset(names, np.array(targets), LABELS[:k], patients, sources, (None,) * n)


@bounded
@given(
    ROWS, st.floats(0.02, 0.9), st.integers(0, 10**6), st.lists(st.lists(st.integers(0, 59), max_size=4), max_size=4)
)
def test_a_split_parts_the_images_and_no_patient(
    rows: list[tuple[str | None, int, str]], fraction: float, seed: int, links: list[list[int]]
) -> None:
    images = dataset(rows)
    together = [[images.paths[i] for i in link if i < len(images)] for link in links]
    try:
        sides = split(images, fraction=fraction, seed=seed, together=together)
    except ValueError as error:
        assert "cannot be both trained on and validated" in str(error)  # noqa: PT017
        groups = groups_of(images, together)
        by_class = [
            {g for g, target in zip(groups, images.targets, strict=True) if target == c}
            for c in range(len(images.labels))
        ]
        assert min(map(len, by_class)) < 2 or len(set(groups)) < 2 * len(images.labels), (
            "enough independent patients for every class"
        )
        return
    both = np.concatenate([sides.train, sides.validation])
    assert np.array_equal(np.sort(both), np.arange(len(images)))
    aside = np.isin(np.arange(len(images)), sides.validation)
    for group in connected(len(images), links_of(images, together)):
        assert len(set(aside[group])) == 1, "a patient, or images that belong together, on both sides"
    for c in range(len(images.labels)):
        assert set(aside[images.targets == c]) == {True, False}, "a class on one side only"


def links_of(images: Dataset, together: list[list[str]]) -> list[list[int]]:
    by_patient = defaultdict(list)
    for i, patient in enumerate(images.patients):
        if patient is not None:
            by_patient[patient].append(i)
    return [*by_patient.values(), *([images.paths.index(path) for path in group] for group in together if group)]


def groups_of(images: Dataset, together: list[list[str]]) -> list[int]:
    of = {}
    for group in connected(len(images), links_of(images, together)):
        of.update(dict.fromkeys(group, group[0]))
    return [of[i] for i in range(len(images))]


@bounded
@given(ROWS, st.integers(0, 100), st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_images_or_where_they_lie(rows, seed, random) -> None:  # type: ignore[no-untyped-def]
    images = dataset(rows)
    order = list(range(len(images)))
    random.shuffle(order)
    moved = images.take(order)
    moved = Dataset(
        tuple(f"/elsewhere/{p}" for p in moved.paths),
        moved.targets,
        moved.labels,
        moved.patients,
        moved.sources,
        moved.splits,
        names=moved.names,
    )
    try:
        here = split(images, seed=seed)
    except ValueError:
        with pytest.raises(ValueError, match="cannot be both trained on and validated"):
            split(moved, seed=seed)
        return
    there = split(moved, seed=seed)
    assert here.digest == there.digest
    assert {images.names[i] for i in here.validation} == {moved.names[i] for i in there.validation}


@bounded
@given(ROWS)
def test_weights_balance_the_classes_of_every_source(rows: list[tuple[str | None, int, str]]) -> None:
    images = dataset(rows)
    w = sampling_weights(images, 1.0)
    assert (w > 0).all()
    assert w.mean() == pytest.approx(1, abs=1e-4)
    total: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for weight, source, target in zip(w.tolist(), images.sources, images.targets.tolist(), strict=True):
        total[source][target] += weight
    for source, by_class in total.items():
        assert max(by_class.values()) == pytest.approx(min(by_class.values()), rel=1e-4)
        assert sum(by_class.values()) == pytest.approx(images.sources.count(source), rel=1e-4)


@bounded
@given(ROWS, st.integers(1, 200), st.integers(0, 100), st.integers(0, 5))
def test_images_are_drawn_as_often_as_they_count(
    rows: list[tuple[str | None, int, str]], n: int, seed: int, epoch: int
) -> None:
    w = sampling_weights(dataset(rows), 0.5)
    chosen = draw(w, n, seed, epoch)
    assert len(chosen) == n
    expected = w / w.sum() * n
    times = np.bincount(chosen, minlength=len(w))
    assert (np.abs(times - expected) < 1 + 1e-6).all()
    assert chosen.tolist() == draw(w, n, seed, epoch).tolist()


@bounded
@given(st.integers(0, 25), st.lists(st.lists(st.integers(0, 24), min_size=1, max_size=5), max_size=12))
def test_connected_is_reachability(n: int, links: list[list[int]]) -> None:
    links = [kept for link in links if (kept := [i for i in link if i < n])]
    groups = connected(n, links)
    assert sorted(i for group in groups for i in group) == list(range(n))
    assert groups == sorted(sorted(group) for group in groups)
    of = {i: k for k, group in enumerate(groups) for i in group}
    assert all(len({of[i] for i in link}) == 1 for link in links)
    assert len(groups) >= n - sum(len(link) - 1 for link in links)


# --- manifests ---

CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=12).map(str.strip)
COLUMN = CELL.filter(
    lambda name: name and name.casefold() not in ("path", "label", "patient", "source", "split", "file_name")
)


@bounded
@given(
    st.lists(
        st.tuples(
            CELL.filter(bool), CELL, CELL.filter(bool), st.sampled_from([None, "train", "val", "test", "fold 3"])
        ),
        min_size=2,
        max_size=6,
    ),
    st.lists(COLUMN, max_size=2, unique=True),
    st.data(),
)
def test_a_written_manifest_is_read_back_the_same(rows, columns, data) -> None:  # type: ignore[no-untyped-def]
    found = [label for label, *_ in rows]
    labels = tuple(sorted({label.casefold(): label for label in found}.values()))
    assume(len(labels) >= 2)
    targets = np.array([[label.casefold() for label in labels].index(label.casefold()) for label in found])
    n = len(rows)
    with tempfile.TemporaryDirectory() as folder:
        paths = tuple(str(Path(folder, f"image {i}.png")) for i in range(n))
        for path in paths:
            Path(path).touch()
        extra = {name: tuple(data.draw(CELL) for _ in range(n)) for name in sorted(columns)}
        images = Dataset(
            paths,
            targets,
            labels,
            tuple(f"{s}:{p}" if p else None for _, p, s, _ in rows),
            tuple(s for *_, s, _ in rows),
            tuple(r[3] for r in rows),
            extra,
        )
        write_manifest(images, Path(folder, "images.csv"))
        again = scan(Path(folder, "images.csv"), labels=labels)
    for name in ("paths", "labels", "patients", "sources", "splits", "columns"):
        assert getattr(again, name) == getattr(images, name), name
    assert again.targets.tolist() == targets.tolist()


@bounded
@given(
    st.one_of(st.binary(max_size=200), st.text("path,label;\t\n\r\"x.png AB\0'ü", max_size=200).map(str.encode)),
    st.booleans(),
)
def test_any_manifest_is_read_or_refused_with_a_reason(content: bytes, header: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x.png").touch()
        manifest = Path(folder, "images.csv")
        manifest.write_bytes(b"path,label\n" * header + content)
        with contextlib.suppress(ValueError, FileNotFoundError):
            images = scan(manifest)
            assert len(images) > 0
            assert all(Path(path).is_file() for path in images.paths)
            assert len(set(images.names)) == len(images)
