"""What is wrong with a data set before anything is trained on it: leaks, duplicates, contradictions, and what tells the classes apart besides the disease."""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrlib.data import cache
from cxrlib.data.cache import Facts, Films
from cxrlib.data.scan import Dataset
from cxrlib.data.split import connected
from cxrlib.network.framing import TELLS, cells, find
from cxrlib.network.lungs import EDGES
from cxrlib.progress import Progress

# Copies are told from films that merely look alike by what lies between two scales: every cell of a grid over the film is compared with its
# neighbourhood and divided by the contrast there, so that brightness, gamma, a marker or a border count for little. Among 31 million pairs of untouched
# films of three collections none correlates above 0.51 on the fine grid; their copies keep 0.62 and more (median 0.9) as JPEG of quality 15, 0.79 through a
# resize to 48 pixels.
_COARSE = (28, 7)  # cells along a side, cells along a neighbourhood's side; every film with every other
_FINE = (112, 9)  # only what the coarse grid finds
_ALIKE_COARSE = 0.7  # part of the way from the correlation that two films of this data set may well have to 1
_ALIKE_FINE = 0.57
_SAMPLE = 256  # films that say what they may well have
_FEW = 32  # films among which copies may be so many that only the median is safe from them
_CLIP = 1.5  # a cell's largest deviation, in contrasts of its neighbourhood
_FLAT = 4.0  # grey levels of 255 that are added to the contrast: noise in flat regions stays small
_BLOCK = 2048  # films compared with as many others at a time: 16 MiB

_SIGMAS = 4.0  # standard errors away from chance that an attribute must lie to be warned of, besides ranking the classes at TELLS
_FEW_FILMS, _FEW_PATIENTS = 50, 10  # of a class
_BORDER = 4.0  # standard deviation in grey levels of 255 below which a row or a column is a border
_CONFOUNDERS = (
    "age",
    "sex",
    "gender",
    "view",
    "viewposition",
    "site",
    "hospital",
    "institution",
    "manufacturer",
    "device",
    "portable",
)  # columns
_LISTED = 5  # names in a sentence; the JSON has all


@dataclass(frozen=True)
class Confounder:
    """Something other than the disease that tells a class from the others.

    Args:
        attribute: What it is, such as `"size"` (root of the area in pixels) or `"source"`.
        source: Where: the source's name, or `""` across all sources.
        label: The class that it tells from the others.
        auroc: How well, in [0.5, 1], if nothing else is looked at.
        typical: Its median or most frequent value, by class name.

    Example:
        >>> print(Confounder("view", "clinic", "PNEUMONIA", 0.9, {"PNEUMONIA": "AP", "NORMAL": "PA"}))
        in clinic, the view alone tells PNEUMONIA apart with an AUROC of 0.90 (PNEUMONIA: AP, NORMAL: PA): a network may learn that instead of the disease
    """

    attribute: str
    source: str
    label: str
    auroc: float
    typical: dict[str, str]

    def __str__(self) -> str:
        values = ", ".join(f"{label}: {value}" for label, value in self.typical.items())
        what = f"in {self.source}, the {self.attribute}" if self.source else f"the {self.attribute}"
        return f"{what} alone tells {self.label} apart with an AUROC of {self.auroc:.2f} ({values}): a network may learn that instead of the disease"


@dataclass(frozen=True)
class Audit:
    """What an audit found. Films are named by their paths.

    Args:
        n: Films in the data set.
        counts: Films per source and class.
        splits: Films per split, `""` for those without one.
        patients: Known patients.
        exact_duplicates: Groups of films with the same pixels.
        near_duplicates: Groups of films that are copies of each other, re-encoded, resized, mirrored, inverted or of other contrast.
        patient_overlap: For each patient with films in two splits, the films by split.
        contradictions: Groups of copies with different labels, as pairs of path and label.
        unreadable: Films that cannot be read, with the reason.
        confounders: What tells the classes apart besides the disease.
        errors: Leaks between splits, one sentence each: figures measured on these splits would be wrong.
        warnings: All else that is worth knowing before training, one sentence each.

    Example:
        >>> print(Audit(2, {"home": {"NORMAL": 2}}, {}, 0, (("a.png", "b.png"),), (), {}, (), {}, (), (), ("1 surplus copy",)))
        2 films, 0 known patients
          home: 2 NORMAL
        warning: 1 surplus copy
    """

    n: int
    counts: dict[str, dict[str, int]]
    splits: dict[str, int]
    patients: int
    exact_duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    patient_overlap: dict[str, dict[str, tuple[str, ...]]]
    contradictions: tuple[tuple[tuple[str, str], ...], ...]
    unreadable: dict[str, str]
    confounders: tuple[Confounder, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def surplus(self) -> int:
        """Films that could go without a picture being lost: all but one of every group of exact duplicates."""
        return sum(len(group) - 1 for group in self.exact_duplicates)

    @property
    def leaks(self) -> tuple[str, ...]:
        """The errors as counts without names, fit to be published: `("2 films in two splits",)`."""
        return tuple(text.partition(":")[0] for text in self.errors)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The warnings without names of films, fit to be published: `("1 surplus copy of 1 film with the same pixels",)`."""
        whole = {str(confounder) for confounder in self.confounders}
        return tuple(text if text in whole else text.partition(":")[0] for text in self.warnings)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain JSON types.

        Returns:
            The fields under their names, and `surplus`; `patient_overlap` and `unreadable` as lists of objects.
        """
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        plain["patient_overlap"] = [
            {"patient": patient, "splits": splits} for patient, splits in plain["patient_overlap"].items()
        ]
        plain["unreadable"] = [{"path": path, "reason": reason} for path, reason in plain["unreadable"].items()]
        return plain | {"surplus": self.surplus}

    def to_json(self) -> str:
        """Give everything as one line of JSON.

        Returns:
            What `to_dict` gives, serialised.
        """
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        """Write a report for a terminal."""
        lines = [f"{self.n} films, {self.patients} known patients"]
        for source, counts in self.counts.items():
            lines.append(f"  {source}: " + ", ".join(f"{n} {label}" for label, n in counts.items()))
        if set(self.splits) - {""}:
            lines.append("  splits: " + ", ".join(f"{n} {split or 'without'}" for split, n in self.splits.items()))
        lines += [f"error: {text}" for text in self.errors] + [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines if self.errors or self.warnings else [*lines, "nothing to complain of"])


def audit(
    dataset: Dataset,
    *,
    size: int = 224,
    folder: str | Path | None = None,
    workers: int | None = None,
    near: bool = True,
    progress: bool = True,
) -> Audit:
    """Look for what spoils a training or its figures. Decodes the films into the cache, where training finds them.

    Args:
        dataset: The films.
        size: Side in pixels of the cached films.
        folder: Where the cache lies, see `cache.open_cache`.
        workers: Threads that decode; `None` for one per core.
        near: Whether to look for near duplicates, whose time grows with the square of the number of films.
        progress: Whether to show how far it is on stderr.

    Returns:
        What was found.

    Example:
        >>> import shutil, tempfile
        >>> from cxrlib.data import scan as data
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = phantom.write(folder + "/films", n=2, size=64) / "NORMAL" / "phantom00000.png"
        ...     copied = shutil.copy(first, first.parent / "copy.png")
        ...     found = audit(data.scan(folder + "/films"), folder=folder + "/cache", progress=False)
        >>> [[path.rpartition("/")[2] for path in group] for group in found.exact_duplicates]
        [['copy.png', 'phantom00000.png']]
    """
    decoded = cache.decode(dataset, size=size, folder=folder, workers=workers, progress=progress)
    films, facts = decoded.films, decoded.facts
    readable = [i for i, fact in enumerate(facts) if not fact.error]
    exact = _exact(readable, films, facts)
    doubles = {i for group in exact for i in group[1:]}
    pairs = _near(np.array([i for i in readable if i not in doubles], np.int64), films, progress) if near else []
    copies = [group for group in connected(len(dataset), [*exact, *pairs]) if len(group) > 1]
    in_pairs = {i for pair in pairs for i in pair}
    found_near = [group for group in copies if in_pairs & set(group)]
    overlap = _patient_overlap(dataset)
    contradictions = [group for group in copies if len({int(dataset.targets[i]) for i in group}) > 1]
    unreadable = {path: fact.error for path, fact in zip(dataset.paths, facts, strict=True) if fact.error}
    confounders = tuple(_confounders(dataset, readable, films, facts))

    def paths(groups: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(dataset.paths[i] for i in group) for group in groups)

    def listed(groups: Sequence[Sequence[int]]) -> str:
        return _some([_some([dataset.names[i] for i in group], " = ") for group in groups], "; ")

    errors, warnings = [], []
    leaks = [group for group in copies if _conflict(dataset.splits[i] for i in group)]
    if leaks:
        errors.append(f"{len(leaks)} film{_s(leaks)} in two splits: {listed(leaks)}")
    if overlap:
        errors.append(f"{len(overlap)} patient{_s(overlap)} in two splits: {_some(list(overlap))}")
    if unreadable:
        reasons = [f"{name} ({fact.error})" for name, fact in zip(dataset.names, facts, strict=True) if fact.error]
        warnings.append(f"{len(unreadable)} film{_s(unreadable)} cannot be read: {_some(reasons, '; ')}")
    if contradictions:
        warnings.append(
            f"{len(contradictions)} film{_s(contradictions)} with contradictory labels: {listed(contradictions)}"
        )
    if exact:
        surplus = sum(len(group) - 1 for group in exact)
        warnings.append(
            f"{surplus} surplus cop{'ies' if surplus > 1 else 'y'} of {len(exact)} film{_s(exact)} with the same pixels: {listed(exact)}"
        )
    if found_near:
        warnings.append(f"{len(found_near)} film{_s(found_near)} with altered copies: {listed(found_near)}")
    counts = _counts(dataset)
    warnings += [*_too_few(dataset), *_one_sided(counts), *_unknown_patients(dataset), *map(str, confounders)]
    return Audit(
        n=len(dataset),
        counts=counts,
        splits=dict(Counter(split or "" for split in dataset.splits)),
        patients=len({patient for patient in dataset.patients if patient is not None}),
        exact_duplicates=paths(exact),
        near_duplicates=paths(found_near),
        patient_overlap={
            p: {s: tuple(dataset.paths[i] for i in members) for s, members in splits.items()}
            for p, splits in overlap.items()
        },
        contradictions=tuple(
            tuple((dataset.paths[i], dataset.labels[dataset.targets[i]]) for i in group) for group in contradictions
        ),
        unreadable=unreadable,
        confounders=confounders,
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


def drop_duplicates(dataset: Dataset, found: Audit) -> Dataset:
    """Leave out surplus films, so that no error remains: of every group of copies one film stays, and of a patient in two splits the films of one split.

    What stays is what a test needs: films of `test` before those of `val`, and those before all others. Copies with contradictory labels all go, since
    nobody knows which label is right.

    Args:
        dataset: The films that were audited.
        found: What the audit found.

    Returns:
        The remaining films, in their order.

    Example:
        >>> films = Dataset(("a.png", "b.png"), np.array([0, 1]), ("NORMAL", "PNEUMONIA"), (None,) * 2, ("home",) * 2, (None,) * 2)
        >>> found = Audit(2, {}, {}, 0, (("a.png", "b.png"),), (), {}, (), {}, (), (), ())
        >>> drop_duplicates(films, found).paths
        ('a.png',)
    """
    at: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(dataset.paths):
        at[path].append(i)
    rank = {"test": 0, "val": 1}
    gone: set[int] = set()

    def members(paths: Iterable[str]) -> list[int]:
        """Films that are still there, what a test needs first."""
        left = {i for path in paths for i in at[path]} - gone
        return sorted(left, key=lambda i: (rank.get(dataset.splits[i] or "", 2), i))

    for splits in found.patient_overlap.values():
        films = members(path for paths in splits.values() for path in paths)
        gone.update(i for i in films if dataset.splits[i] != dataset.splits[films[0]])
    for contradiction in found.contradictions:
        gone.update(members(path for path, _ in contradiction))
    for group in (*found.exact_duplicates, *found.near_duplicates):
        gone.update(members(group)[1:])
    return dataset.take([i for i in range(len(dataset)) if i not in gone])


def _conflict(splits: Iterable[str | None]) -> bool:
    """Whether what lies in all of these splits spoils a measurement; films without a split may well be for training."""
    found = set(splits)
    return len(found) > 1 and not found <= {None, "train"}


def _patient_overlap(dataset: Dataset) -> dict[str, dict[str, list[int]]]:
    films: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (patient, split) in enumerate(zip(dataset.patients, dataset.splits, strict=True)):
        if patient is not None:
            films[patient][split or ""].append(i)
    return {patient: dict(splits) for patient, splits in films.items() if _conflict(split or None for split in splits)}


# --- copies ---


def _exact(readable: Sequence[int], films: Films, facts: Sequence[Facts]) -> list[list[int]]:
    """Groups of films of one size that are the same pixel by pixel once they are fitted, whatever their files are."""
    suspects: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for i in readable:
        suspects[facts[i].height, facts[i].width, zlib.crc32(films[i].data)].append(i)
    links = [
        pair
        for group in suspects.values()
        for pair in itertools.pairwise(group)
        if np.array_equal(films[pair[0]], films[pair[1]])
    ]
    return [group for group in connected(len(films), links) if len(group) > 1]


def _near(chosen: NDArray[np.int64], films: Films, progress: bool) -> list[tuple[int, int]]:
    """Pairs of chosen films that are copies of each other, every one compared with every other."""
    coarse_enough, fine_enough = (
        _enough(films, chosen, _COARSE, _ALIKE_COARSE),
        _enough(films, chosen, _FINE, _ALIKE_FINE),
    )
    blocks = [chosen[i : i + _BLOCK] for i in range(0, len(chosen), _BLOCK)]
    suspects: set[tuple[int, int]] = set()
    with Progress(len(chosen), "comparing", shown=progress) as bar:
        coarse: list[NDArray[np.float16]] = []  # (m, 784): 1.5 KiB per film is all that stays in memory
        for block in blocks:
            own = _describe(films, block, *_COARSE)
            both = np.concatenate([own, _mirrored(own)]).T  # (784, 2 m)
            coarse.append(own.astype(np.float16))
            for other, described in zip(blocks, coarse, strict=False):
                alike = (
                    np.abs(described.astype(np.float32) @ both) > coarse_enough
                )  # (k, 2 m); a negative correlates at -1
                rows, columns = np.nonzero(alike)
                suspects.update(
                    (a, b)
                    for a, b in zip(other[rows].tolist(), block[columns % len(block)].tolist(), strict=True)
                    if a < b
                )
            bar.advance(len(block))
    pairs = sorted(suspects)
    return [
        pair
        for start in range(0, len(pairs), 512)
        for pair in _verified(pairs[start : start + 512], films, fine_enough)
    ]


def _enough(films: Films, chosen: NDArray[np.int64], grid: tuple[int, int], alike: float) -> float:
    """The correlation from which on two films are copies: part of the way from what one pair in ten of this data set exceeds to 1.

    That is 0.11 on the fine grid where people differ, and far more for drawings or films of one test object.
    """
    if len(chosen) < 6:
        return alike
    sample = chosen[np.unique(np.linspace(0, len(chosen) - 1, _SAMPLE).astype(np.int64))]
    described = _describe(films, sample, *grid)
    pairs = (described @ described.T)[np.triu_indices(len(sample), 1)]
    usual = max(0.0, float(np.quantile(pairs, 0.5 if len(sample) < _FEW else 0.9)))
    return usual + alike * (1 - usual)


def _verified(pairs: list[tuple[int, int]], films: Films, enough: float) -> list[tuple[int, int]]:
    chosen, index = np.unique(np.array(pairs), return_inverse=True)
    described = _describe(films, chosen, *_FINE)  # (m, 12544)
    first, second = (described[column] for column in index.reshape(-1, 2).T)
    alike = np.maximum(np.abs((first * second).sum(axis=1)), np.abs((first * _mirrored(second)).sum(axis=1)))
    return [pair for pair, value in zip(pairs, alike.tolist(), strict=True) if value > enough]


def _mirrored(described: NDArray[np.float32]) -> NDArray[np.float32]:
    side = math.isqrt(described.shape[1])
    return described.reshape(-1, side, side)[:, :, ::-1].reshape(described.shape)


def _describe(films: Films, chosen: NDArray[np.int64], side: int, neighbourhood: int) -> NDArray[np.float32]:
    """What a film shows between two scales: (m, side * side) of mean 0 and norm 1, so that a product is a correlation. A blank film gives 0."""
    described = np.empty((len(chosen), side * side), np.float32)
    for start in range(0, len(chosen), 256):
        grid = cells(films[chosen[start : start + 256]], side)  # (m, side, side)
        detail = grid - _smooth(grid, neighbourhood)
        contrast = np.sqrt(_smooth(detail * detail, neighbourhood)) + _FLAT
        flat = np.clip(detail / contrast, -_CLIP, _CLIP).reshape(len(grid), -1)
        flat -= flat.mean(axis=1, keepdims=True)
        described[start : start + 256] = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return described


def _smooth(grid: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """Mean over a square window, the edge repeated; (m, h, w) as given."""
    for axis in (1, 2):
        margin = [(0, 0)] * 3
        margin[axis] = (window // 2 + 1, window // 2)
        total = np.pad(grid, margin, "edge").cumsum(axis=axis, dtype=np.float64)
        n = grid.shape[axis]
        grid = ((np.take(total, range(window, n + window), axis) - np.take(total, range(n), axis)) / window).astype(
            np.float32
        )
    return grid


# --- what tells the classes apart ---


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    counts = Counter(zip(dataset.sources, dataset.targets.tolist(), strict=True))
    return {
        source: {label: counts[source, k] for k, label in enumerate(dataset.labels)}
        for source in dict.fromkeys(dataset.sources)
    }


def _one_sided(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    for source, of in counts.items():
        present = [label for label, n in of.items() if n]
        if len(counts) > 1 and len(present) == 1:
            yield f"{source} has films of {present[0]} only: a network may learn to know {source} instead of the disease. Every source should bring every class"


def _too_few(dataset: Dataset) -> Iterator[str]:
    for k, label in enumerate(dataset.labels):
        members = np.flatnonzero(dataset.targets == k).tolist()
        patients = len({dataset.patients[i] or i for i in members})
        if len(members) < _FEW_FILMS or patients < _FEW_PATIENTS:
            yield f"{label} has only {len(members)} film{_s(members)} of {patients} patient{'s' * (patients != 1)}: too few to train on or to measure with"


def _unknown_patients(dataset: Dataset) -> Iterator[str]:
    for source, n in Counter(
        source for source, patient in zip(dataset.sources, dataset.patients, strict=True) if patient is None
    ).items():
        text = f"{n} film{'s' * (n != 1)} of {source} name no patient, so a split may tear two films of one apart"
        yield f"{text}: a manifest or patient_pattern can name them"


def _confounders(
    dataset: Dataset, readable: Sequence[int], films: Films, facts: Sequence[Facts]
) -> Iterator[Confounder]:
    chosen = np.array(readable, np.int64)
    sources = np.array(dataset.sources, object)[chosen]
    targets = dataset.targets[chosen]
    columns: dict[str, list[str]] = {
        "size": [f"{math.sqrt(facts[i].height * facts[i].width):.0f}" for i in readable],
        "aspect": [f"{facts[i].width / facts[i].height:.2f}" for i in readable],
        "bit depth": [f"{math.log2(facts[i].white + 1):.0f}" for i in readable],
        "colour": [f"{facts[i].colour:.3f}" for i in readable],
        "border": [f"{border:.2f}" for border in _borders(chosen, films)],
        "file type": [Path(dataset.paths[i]).suffix.lower() for i in readable],
        "view": [facts[i].view or "" for i in readable],
        **{
            f"lungs' place ({edge})": [f"{place:.2f}" for place in column]
            for edge, column in zip(EDGES, find(films, chosen).T, strict=True)
        },
    }
    for name, values in dataset.columns.items():
        if re.sub(r"[\W_]|^patient", "", name.casefold()) in _CONFOUNDERS:
            columns[name] = [values[i] for i in readable]
    places = (
        ["", *dict.fromkeys(dataset.sources)] if len(set(dataset.sources)) > 1 else list(dict.fromkeys(dataset.sources))
    )
    for place in places:
        inside = np.flatnonzero(sources == place) if place else np.arange(len(chosen))
        looked_at = columns if place else {"source": [str(source) for source in sources]}
        for attribute, column in looked_at.items():
            found = _telling([column[i] for i in inside], targets[inside])
            if found:
                k, auroc, values = found
                others = dataset.labels[1 - k] if len(dataset.labels) == 2 else "others"
                yield Confounder(
                    attribute, place, dataset.labels[k], auroc, {dataset.labels[k]: values[0], others: values[1]}
                )


def _telling(column: Sequence[str], targets: NDArray[np.int64]) -> tuple[int, float, tuple[str, str]] | None:
    """The class that an attribute tells from the others best, how well, and the typical value of either; nothing if it hardly does."""
    present = np.unique(targets).tolist()
    best: tuple[float, int] = (0.0, 0)
    if len(present) < 2 or len(set(column)) < 2:
        return None
    for k in present[-1:] if len(present) == 2 else present:
        mine = targets == k
        scores = _scores(column, mine)
        if scores is None:
            return None
        inside, outside = int(mine.sum()), int((~mine).sum())
        auroc = _auroc(scores, mine)
        auroc = max(auroc, 1 - auroc)
        error = math.sqrt((inside + outside + 1) / (12 * inside * outside))  # of an attribute that tells nothing
        if auroc >= TELLS and auroc - 0.5 > _SIGMAS * error and auroc > best[0]:
            best = auroc, k
    if not best[0]:
        return None
    mine = targets == best[1]
    return best[1], best[0], (_typical(column, mine), _typical(column, ~mine))


def _scores(column: Sequence[str], mine: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Numbers as they are; names by how often they come with the class. Nothing for names that hardly repeat."""
    try:
        return np.array([float(value) for value in column])
    except ValueError:
        names, index = np.unique(np.array(column), return_inverse=True)
        if len(names) > 20:
            return None
        share: NDArray[np.float64] = np.bincount(index, mine) / np.bincount(index)
        return share[index]


def _auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    _, index = np.unique(scores, return_inverse=True)
    above, below = np.bincount(index, positive), np.bincount(index, ~positive)
    return float((above * (np.cumsum(below) - below / 2)).sum() / (above.sum() * below.sum()))


def _typical(column: Sequence[str], mine: NDArray[np.bool_]) -> str:
    values = [value for value, chosen in zip(column, mine.tolist(), strict=True) if chosen]
    try:
        return f"{np.median([float(value) for value in values]):g}"
    except ValueError:
        return Counter(values).most_common(1)[0][0] or "not given"


def _borders(chosen: NDArray[np.int64], films: Films) -> Iterator[float]:
    """Part of each film that is an even margin: rows and columns of cells at the edges that hardly differ within themselves."""
    for start in range(0, len(chosen), 256):
        grid = cells(films[chosen[start : start + 256]], _COARSE[0] * 2)  # (m, cells, cells)
        inside = np.ones(len(grid))
        for axis in (1, 2):
            uneven = grid.std(axis=axis) > _BORDER  # (m, cells)
            inside *= (
                np.where(
                    uneven.any(axis=1), uneven.shape[1] - uneven.argmax(axis=1) - uneven[:, ::-1].argmax(axis=1), 0
                )
                / uneven.shape[1]
            )
        yield from (1 - inside).tolist()


# --- words ---


def _s(items: Sized) -> str:
    return "s" if len(items) != 1 else ""


def _some(names: Sequence[str], separator: str = ", ") -> str:
    return separator.join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
