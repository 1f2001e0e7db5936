"""Which images train and which validate: a patient is on one side only."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cxrlib.data.dataset import Dataset, count

MIN_PATIENTS = 50  # of a class in a validation split that chooses thresholds
_MOST_CHANGES = 3  # of sides, when a class is on one side only


@dataclass(frozen=True, eq=False)
class Split:
    """Which images train and which validate; no patient is on both sides.

    Args:
        train: ndarray of shape (n,), int64, positions in the data set, ascending.
        validation: ndarray of shape (m,), int64, positions in the data set, ascending.
        digest: SHA-256 over the images' names and sides, the same on every machine.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    digest: str

    def marked(self, dataset: Dataset) -> Dataset:
        """Mark images with their sides: their `splits` become `"train"` or `"val"`.

        Args:
            dataset: The images that were split.
        """
        aside = np.isin(np.arange(len(dataset)), self.validation)
        return replace(dataset, splits=tuple("val" if away else "train" for away in aside.tolist()))


def sides(
    dataset: Dataset, *, fraction: float = 0.15, seed: int = 0, together: Iterable[Sequence[str]] = ()
) -> tuple[Split, str]:
    """Choose the images to validate with.

    The data's own `val` split is used where it has at least 50 patients of every class, enough to choose thresholds by;
    of sources without one, patients are set aside. A smaller one is joined by patients set aside from all sources.

    Args:
        dataset: The images to train and to validate with.
        fraction: As for `split`.
        seed: As for `split`.
        together: As for `split`.

    Returns:
        Both sides, and a sentence where patients were set aside in spite of a `val` split; empty otherwise.

    Raises:
        ValueError: If a class cannot be on both sides, or all images are of the `val` split.
    """
    own = np.array([name == "val" for name in dataset.splits], bool)
    if not own.any():
        return split(dataset, fraction=fraction, seed=seed, together=together), ""
    if own.all():
        raise ValueError("all images are of the val split: there is nothing to train on")
    patients = np.array(dataset.patients_or_names, object)
    counts = [len(set(patients[own & (dataset.targets == k)])) for k in range(len(dataset.labels))]
    rest, k, note = ~own, int(np.argmin(counts)), ""
    if counts[k] < MIN_PATIENTS:
        few = f"{count(counts[k], 'patient')} of {dataset.labels[k]}"
        note = f"the val split has only {few}: patients of the training images validate, too, to choose thresholds by"
    else:
        without = set(dataset.sources) - {dataset.sources[i] for i in np.flatnonzero(own)}
        rest &= np.array([source in without for source in dataset.sources], bool)
        if without:
            note = f"patients of {', '.join(sorted(without))} were set aside: there is no val split of their own"
    together = list(together)
    groups = _groups(dataset, together)
    for members in groups.values():
        rest[members] &= rest[members].all()  # who is also among the others stays with them
    aside = own.copy()
    if rest.any():
        index = np.flatnonzero(rest)
        aside[index] = _aside(dataset.take(index), _groups(dataset.take(index), together), fraction, seed)
    _check(dataset, aside, groups)
    return _as_split(dataset, aside), note


def split(dataset: Dataset, *, fraction: float = 0.15, seed: int = 0, together: Iterable[Sequence[str]] = ()) -> Split:
    """Set images aside for validation: whole patients, in the same proportion for every class of every source.

    An image whose patient is unknown counts as a patient of its own. Patients are drawn in the order of a hash of the
    seed and their id, so that the split is the same on every machine and hardly changes when images are added.

    Args:
        dataset: The images.
        fraction: Part of the images to set aside, in (0, 1).
        seed: Another seed, another split.
        together: Groups of paths that must stay on one side, such as an audit's duplicates.

    Returns:
        Both sides.

    Raises:
        ValueError: If the fraction is out of range, or a class has fewer than two patients.

    Example:
        >>> labels, unknown = ("NORMAL", "PNEUMONIA"), (None,) * 8
        >>> data = Dataset(tuple("abcdefgh"), np.array([0, 1] * 4), labels, tuple("11223344"), ("home",) * 8, unknown)
        >>> found = split(data, fraction=0.25)
        >>> len(found.train), len(found.validation)
        (6, 2)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1). Received: fraction={fraction!r}")
    groups = _groups(dataset, together)
    aside = _aside(dataset, groups, fraction, seed)
    _check(dataset, aside, groups)
    return _as_split(dataset, aside)


def _aside(dataset: Dataset, groups: dict[int, list[int]], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which images to set aside; a class of one patient stays on one side."""
    patients = dataset.patients_or_names
    order = sorted(groups, key=lambda group: _lot(seed, min(patients[i] for i in groups[group])))
    strata = list(zip(dataset.sources, dataset.targets.tolist(), strict=True))
    # sorted, so that sums round alike in any order of images
    counts = {group: Counter(sorted(strata[i] for i in members)) for group, members in groups.items()}
    in_stratum: dict[tuple[str, int], list[int]] = defaultdict(list)
    of_class: dict[int, list[int]] = defaultdict(list)
    for group in order:
        for stratum in counts[group]:
            in_stratum[stratum].append(group)
        for target in sorted({target for _, target in counts[group]}):
            of_class[target].append(group)
    missing = {s: max(fraction * n, 1.0) if len(in_stratum[s]) > 1 else 0.0 for s, n in Counter(strata).items()}

    def change(group: int) -> float:
        """How far the proportions are from those wanted with it, less how far without."""
        pairs = ((missing[s], c) for s, c in counts[group].items())
        return sum(((m - c) ** 2 - m**2) / max(m, 1.0) for m, c in pairs)

    chosen: set[int] = set()
    for group in order:
        if change(group) < 0:
            chosen.add(group)
            for stratum, c in counts[group].items():
                missing[stratum] -= c
    size = {group: len(members) for group, members in groups.items()}
    for members in in_stratum.values():  # nothing small enough, or everything: the smallest patient changes sides
        if len(members) > 1 and _one_sided(members, chosen):
            chosen ^= {min(members, key=size.__getitem__)}
    by_size = [sorted(of_class[target], key=size.__getitem__) for target in range(len(dataset.labels))]
    chosen ^= _changes(by_size, chosen)
    aside = np.zeros(len(dataset), bool)
    for group in chosen:
        aside[groups[group]] = True
    return aside


def _as_split(dataset: Dataset, aside: NDArray[np.bool_]) -> Split:
    sides = ("validation" if away else "train" for away in aside.tolist())
    lines = sorted(f"{side}\t{name}" for side, name in zip(sides, dataset.names, strict=True))
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    return Split(np.flatnonzero(~aside), np.flatnonzero(aside), digest)


def _check(dataset: Dataset, aside: NDArray[np.bool_], groups: dict[int, list[int]]) -> None:
    """Raise where a class is on one side only."""
    for target, label in enumerate(dataset.labels):
        own = dataset.targets == target
        if aside[own].all() or not aside[own].any():
            n = sum(bool(own[members].any()) for members in groups.values())
            why = "and two are needed" if n < 2 else "all on one side"
            both = f"class {label!r} cannot be both trained on and validated"
            raise ValueError(f"{both}: it has {n} independent patients, {why}")


def _one_sided(members: Iterable[int], chosen: set[int]) -> bool:
    return len({member in chosen for member in members}) < 2


def _changes(classes: list[list[int]], chosen: set[int]) -> set[int]:
    """The fewest patients, small ones first, who must change sides to have every class on both; none if none help."""
    if min(map(len, classes)) < 2:
        return set()
    few = list(dict.fromkeys(itertools.chain.from_iterable(members[: 2 * len(classes)] for members in classes)))
    for n in range(_MOST_CHANGES + 1):
        for changes in itertools.combinations(few, n):
            if not any(_one_sided(members, chosen ^ set(changes)) for members in classes):
                return set(changes)
    return set()


def _lot(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed}/{patient}".encode(errors="surrogateescape")).digest()


def _groups(dataset: Dataset, together: Iterable[Sequence[str]]) -> dict[int, list[int]]:
    """Images that must stay on one side, by their first one: those of a patient, and those that belong together."""
    by_patient, by_path = defaultdict(list), defaultdict(list)
    for i, (patient, path) in enumerate(zip(dataset.patients, dataset.paths, strict=True)):
        by_path[path].append(i)
        if patient is not None:
            by_patient[patient].append(i)
    named = ([i for path in paths for i in by_path.get(path, ())] for paths in together)
    links = itertools.chain(by_patient.values(), by_path.values(), named)
    return {members[0]: members for members in connected(len(dataset), links)}


def connected(n: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """Find connected components.

    Args:
        n: How many things there are.
        links: Groups of positions that belong together.

    Returns:
        Every position once, in ascending groups in the order of their first members.

    Example:
        >>> connected(5, [(3, 1), (1, 4)])
        [[0], [1, 3, 4], [2]]
    """
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for link in links:
        for other in link[1:]:
            a, b = sorted((root(link[0]), root(other)))
            parent[b] = a
    groups = defaultdict(list)
    for i in range(n):
        groups[root(i)].append(i)
    return list(groups.values())
