"""Which films train and which validate, a patient on one side only, how much each of them counts, and which ones an epoch draws."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cxrlib.config import TrainConfig
from cxrlib.data.cache import Films
from cxrlib.data.scan import Dataset

_MOST_CHANGES = 3  # of sides, when a class is on one side only
_MOST = 10.0  # times its usual weight that a film of a rare kind counts at most


@dataclass(frozen=True, eq=False)
class Split:
    """Which films train and which validate; no patient is on both sides.

    Args:
        train: ndarray of shape (n,), int64, positions in the data set, ascending.
        validation: ndarray of shape (m,), int64, positions in the data set, ascending.
        digest: SHA-256 over the films' names and sides, the same on every machine.

    Example:
        >>> Split(np.array([0, 1]), np.array([2]), "4f0c…").validation.tolist()
        [2]
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    digest: str

    @classmethod
    def of(cls, dataset: Dataset, aside: NDArray[np.bool_]) -> Split:
        """Make the split that sets some films aside.

        Args:
            dataset: The films.
            aside: ndarray of shape (n,), bool: whether a film validates.

        Returns:
            The split.
        """
        lines = sorted(
            f"{'validation' if away else 'train'}\t{name}"
            for away, name in zip(aside.tolist(), dataset.names, strict=True)
        )
        return cls(np.flatnonzero(~aside), np.flatnonzero(aside), digest(lines))

    def marked(self, dataset: Dataset) -> Dataset:
        """Mark films with their sides, as `cxrlib.data.scan.write_manifest` writes them down.

        Args:
            dataset: The films that were split.

        Returns:
            The same films; their `splits` are `"train"` or `"val"`.
        """
        aside = np.isin(np.arange(len(dataset)), self.validation)
        return replace(dataset, splits=tuple("val" if away else "train" for away in aside.tolist()))


@dataclass(frozen=True, eq=False)
class Side:
    """The films of one side of a split.

    Args:
        pixels: (n, s, s) uint8 of the whole data set, perhaps on disk.
        index: ndarray of shape (m,), int64, the side's positions in it.
        films: The m films.
    """

    pixels: Films
    index: NDArray[np.int64]
    films: Dataset

    def batch(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Read pixels of some of the side's films.

        Args:
            chosen: ndarray of shape (b,), or a slice: which of them.

        Returns:
            ndarray of shape (b, s, s, 1), uint8.
        """
        return self.pixels[self.index[chosen]][..., None]

    def targets(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Give the targets of some of the side's films.

        Args:
            chosen: As for `batch`.

        Returns:
            ndarray of float32: 0 or 1 of shape (b, 1) for two labels, one-hot of shape (b, k) for more.
        """
        targets = self.films.targets[chosen]
        k = len(self.films.labels)
        return targets.astype(np.float32)[:, None] if k == 2 else np.eye(k, dtype=np.float32)[targets]


def split(dataset: Dataset, *, fraction: float = 0.15, seed: int = 0, together: Iterable[Sequence[str]] = ()) -> Split:
    """Set films aside for validation: whole patients, in the same proportion for every class of every source.

    A film whose patient is unknown counts as a patient of its own. Patients are drawn in the order of a hash of the seed and their id, so that the split is
    the same on every machine and hardly changes when films are added.

    Args:
        dataset: The films.
        fraction: Part of the films to set aside, in (0, 1).
        seed: Another seed, another split.
        together: Groups of paths that must stay on one side, such as an audit's duplicates.

    Returns:
        Both sides.

    Raises:
        ValueError: If the fraction is out of range, or a class has fewer than two patients.

    Example:
        >>> films = Dataset(tuple("abcdefgh"), np.array([0, 1] * 4), ("NORMAL", "PNEUMONIA"), tuple("11223344"), ("home",) * 8, (None,) * 8)
        >>> sides = split(films, fraction=0.25)
        >>> len(sides.train), len(sides.validation)
        (6, 2)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1). Received: fraction={fraction!r}")
    groups, patients = _groups(dataset, together), dataset.patients_or_names
    order = sorted(groups, key=lambda group: _lot(seed, min(patients[i] for i in groups[group])))
    strata = list(zip(dataset.sources, dataset.targets.tolist(), strict=True))
    counts = {
        group: Counter(sorted(strata[i] for i in members)) for group, members in groups.items()
    }  # sorted, so that sums round alike in any order of films
    in_stratum: dict[tuple[str, int], list[int]] = defaultdict(list)
    of_class: dict[int, list[int]] = defaultdict(list)
    for group in order:
        for stratum in counts[group]:
            in_stratum[stratum].append(group)
        for target in sorted({target for _, target in counts[group]}):
            of_class[target].append(group)
    missing = {
        stratum: max(fraction * n, 1.0) if len(in_stratum[stratum]) > 1 else 0.0
        for stratum, n in Counter(strata).items()
    }
    chosen: set[int] = set()
    for group in order:
        if (
            sum(((missing[s] - c) ** 2 - missing[s] ** 2) / max(missing[s], 1.0) for s, c in counts[group].items()) < 0
        ):  # nearer to the proportions with it
            chosen.add(group)
            for stratum, c in counts[group].items():
                missing[stratum] -= c
    size = {group: sum(count.values()) for group, count in counts.items()}
    for members in in_stratum.values():  # nothing small enough, or everything: the smallest patient changes sides
        if len(members) > 1 and _one_sided(members, chosen):
            chosen ^= {min(members, key=size.__getitem__)}
    chosen ^= _changes(
        [sorted(of_class[target], key=size.__getitem__) for target in range(len(dataset.labels))], chosen
    )
    for target, label in enumerate(dataset.labels):
        if _one_sided(of_class[target], chosen):
            raise ValueError(
                f"class {label!r} cannot be both trained on and validated: it has {len(of_class[target])} independent patients, and two are needed"
            )
    aside = np.zeros(len(dataset), bool)
    for group in chosen:
        aside[groups[group]] = True
    return Split.of(dataset, aside)


def _one_sided(members: Iterable[int], chosen: set[int]) -> bool:
    return len({member in chosen for member in members}) < 2


def _changes(classes: list[list[int]], chosen: set[int]) -> set[int]:
    """Find the fewest patients, small ones first, who must change sides so that every class has patients on both; none where nothing helps."""
    if min(map(len, classes)) < 2:
        return set()
    few = list(dict.fromkeys(itertools.chain.from_iterable(members[: 2 * len(classes)] for members in classes)))
    for n in range(_MOST_CHANGES + 1):
        for changes in itertools.combinations(few, n):
            if not any(_one_sided(members, chosen ^ set(changes)) for members in classes):
                return set(changes)
    return set()


def digest(lines: Iterable[str]) -> str:
    """Say what lines of text are, in 64 letters.

    Args:
        lines: The lines, in an order that means something.

    Returns:
        SHA-256 over them, in hexadecimal digits.

    Example:
        >>> digest(["one", "two"])[:8]
        '21066d10'
    """
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _lot(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed}/{patient}".encode(errors="surrogateescape")).digest()


def _groups(dataset: Dataset, together: Iterable[Sequence[str]]) -> dict[int, list[int]]:
    """Films that must stay on one side, by their first one: those of a patient, and those that belong together."""
    by_patient, by_path = defaultdict(list), defaultdict(list)
    for i, (patient, path) in enumerate(zip(dataset.patients, dataset.paths, strict=True)):
        by_path[path].append(i)
        if patient is not None:
            by_patient[patient].append(i)
    named = ([i for path in paths for i in by_path.get(path, ())] for paths in together)
    return {
        members[0]: members
        for members in connected(len(dataset), itertools.chain(by_patient.values(), by_path.values(), named))
    }


def connected(n: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """Find what hangs together.

    Args:
        n: How many things there are.
        links: Groups of positions that belong together.

    Returns:
        Every position once, in ascending groups, ordered by their first member.

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


def weights(dataset: Dataset, *, by: Sequence[str] = ()) -> NDArray[np.float32]:
    """Weigh films so that within every source each class counts the same; a source keeps its share.

    With columns, each class also gets the same mixture of their values within every source, so that they no longer tell the classes apart: where ill patients
    are mostly filmed lying, by a portable machine, lying says nothing about the disease any more. Values that only one class has stay with it.

    Args:
        dataset: The films.
        by: Names of columns, such as `("view",)`. Films without a value are one group, and so are all films where there is no such column.

    Returns:
        ndarray of shape (n,), float32, positive, mean 1.

    Example:
        >>> films = Dataset(tuple("abcd"), np.array([0, 1, 1, 1]), ("NORMAL", "PNEUMONIA"), (None,) * 4, ("home",) * 4, (None,) * 4)
        >>> [round(weight, 2) for weight in weights(films).tolist()]
        [2.0, 0.67, 0.67, 0.67]
    """
    columns = [dataset.columns[name] for name in by if name in dataset.columns]
    values = [tuple(value.strip().casefold() for value in film) for film in zip(*columns, strict=True)] or [()] * len(
        dataset
    )
    cells = list(zip(dataset.sources, dataset.targets.tolist(), values, strict=True))
    of_source, of_class, of_cell = (
        Counter(dataset.sources),
        Counter((source, target) for source, target, _ in cells),
        Counter(cells),
    )
    classes = Counter(source for source, _ in of_class)
    share = {
        (source, target, value): n / of_class[source, target] for (source, target, value), n in of_cell.items()
    }  # of the class
    mixture: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    for (source, _, value), part in share.items():
        mixture[source, value] += part / classes[source]
    factor = {
        cell: min(mixture[cell[0], cell[2]] / part, _MOST) for cell, part in share.items()
    }  # what a film counts within its class
    mean: dict[tuple[str, int], float] = defaultdict(float)
    for cell, part in share.items():
        mean[cell[:2]] += part * factor[cell]
    return np.array(
        [
            of_source[cell[0]] / (classes[cell[0]] * of_class[cell[:2]]) * factor[cell] / mean[cell[:2]]
            for cell in cells
        ],
        np.float32,
    )


def oversample(dataset: Dataset, *, seed: int = 0) -> NDArray[np.int64]:
    """Repeat films so that within every source each class has as many as the largest: what to do instead of weights.

    Args:
        dataset: The films.
        seed: Which films are repeated once more than others.

    Returns:
        ndarray of shape (m,), int64, positions in the data set, every one at least once.

    Example:
        >>> films = Dataset(tuple("abcd"), np.array([0, 1, 1, 1]), ("NORMAL", "PNEUMONIA"), (None,) * 4, ("home",) * 4, (None,) * 4)
        >>> oversample(films).tolist()
        [0, 0, 0, 1, 2, 3]
    """
    random = np.random.default_rng(seed)
    strata: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, stratum in enumerate(zip(dataset.sources, dataset.targets.tolist(), strict=True)):
        strata[stratum].append(i)
    most = {
        source: max(len(members) for (s, _), members in strata.items() if s == source)
        for source in set(dataset.sources)
    }
    chosen = [np.empty(0, np.int64)]
    for (source, _), members in strata.items():
        whole, rest = divmod(most[source], len(members))
        chosen += [np.array(members, np.int64)] * whole + [random.permutation(np.array(members, np.int64))[:rest]]
    return np.sort(np.concatenate(chosen))


def importance(films: Dataset, config: TrainConfig, trust: Mapping[str, float]) -> NDArray[np.float64]:
    """Say how much each film counts.

    Classes count alike within a source, and within each view and framing there (or what else `config.balance_by` names); a source of m films counts as m to
    the power of `config.source_power`, times how far its labels are believed.

    Args:
        films: The films.
        config: The recipe.
        trust: For each source, how far its labels are believed, in [0, 1]; sources that are not named are believed.

    Returns:
        ndarray of shape (m,), float64, positive, mean 1.

    Example:
        >>> films = Dataset(tuple("abcd"), np.array([0, 1, 0, 1]), ("NORMAL", "PNEUMONIA"), (None,) * 4, ("home",) * 2 + ("away",) * 2, (None,) * 4)
        >>> importance(films, TrainConfig(), {"away": 0.25}).round(2).tolist()
        [1.6, 1.6, 0.4, 0.4]
    """
    _, source, size = np.unique(films.sources, return_inverse=True, return_counts=True)
    w = (np.ones(len(films)) if config.balance == "none" else weights(films, by=config.balance_by)) * size[source] ** (
        config.source_power - 1.0
    )
    w *= [trust.get(name, 1.0) for name in films.sources]
    return np.asarray(w * (len(w) / w.sum()), np.float64)


def draw(
    films: Dataset, config: TrainConfig, n: int, epoch: int, trust: Mapping[str, float]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw the films of an epoch; the same ones for the same seed and epoch.

    With `balance="sample"` films come the more often the more they count, see `importance`; otherwise every film comes once and weighs more or less.

    Args:
        films: The films to draw from.
        config: The recipe.
        n: How many to draw.
        epoch: Which epoch.
        trust: As for `importance`.

    Returns:
        Positions of shape (n,), int64, and the weight of each, float32 with mean about 1.

    Example:
        >>> films = Dataset(tuple("abcd"), np.array([0, 1, 1, 1]), ("NORMAL", "PNEUMONIA"), (None,) * 4, ("home",) * 4, (None,) * 4)
        >>> chosen, _ = draw(films, TrainConfig(), 4, 1, {})
        >>> int(films.targets[chosen].sum())
        2
    """
    random = np.random.default_rng([config.seed, epoch])
    w = importance(films, config, trust)
    order = random.permutation(len(w))
    if config.balance != "sample":
        chosen = np.resize(order, n)
        return chosen, w[chosen].astype(np.float32)
    edges = np.cumsum(w[order]) * (n / len(w))  # systematic sampling: a film that counts 1.4 comes once or twice
    chosen = order[np.searchsorted(edges, np.arange(n) + random.random(), side="right").clip(max=len(w) - 1)]
    return random.permutation(chosen), np.ones(n, np.float32)
