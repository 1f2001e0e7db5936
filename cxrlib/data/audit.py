"""What is wrong with a data set before a network is trained on it: leaks, copies, contradictions and shortcuts."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrlib.data import copies
from cxrlib.data.cache import Decoded, Facts, Images, decode
from cxrlib.data.dataset import Dataset, count, some
from cxrlib.data.split import MIN_PATIENTS, connected
from cxrlib.metrics.compute import auroc as measure_auroc

_TELLS = 0.8  # what ranks the classes this well (AUROC) besides the disease is worth a warning
_SIGMAS = 4.0  # standard errors away from chance that it must lie, too
_UNEVEN = 10  # times as many images of one class, or of one source, as of another
_GRID = 56  # cells along a side, of which borders are made
_BORDER = 4.0  # standard deviation in grey levels of 255 below which a row or a column is a border
_FALSE_COLOUR = re.compile(r"false colour \((\w+)\)")  # in the notes of `cxrlib.images.decode`
_SHORTCUTS = "age|sex|gender|view|viewposition|site|hospital|institution|manufacturer|device|portable"  # columns


@dataclass(frozen=True)
class Confounder:
    """Something other than the disease that tells a class from the others.

    Args:
        attribute: What it is, such as `"size"` (root of the area in pixels) or `"source"`.
        source: The source within which it does; empty for all sources together.
        label: The class that it tells from the others.
        auroc: How well, in [0.5, 1], by itself.
        typical: Its median or most frequent value, by class name.
    """

    attribute: str
    source: str
    label: str
    auroc: float
    typical: dict[str, str]

    def __str__(self) -> str:
        values = ", ".join(f"{label}: {value}" for label, value in self.typical.items())
        what = f"in {self.source}, {self.attribute}" if self.source else self.attribute
        how = f"alone tells {self.label} apart with an AUROC of {self.auroc:.2f} ({values})"
        return f"{what} {how}: a network may learn it instead of the disease"


@dataclass(frozen=True)
class Audit:
    """What an audit found. Images are named by their paths.

    Args:
        n: Images in the data set.
        counts: Images per source and class.
        splits: Images per split, `""` for those without one.
        patients: Known patients.
        exact_duplicates: Groups of images with the same pixels.
        near_duplicates: Groups of copies: re-encoded, resized, mirrored, inverted or of another contrast.
        patient_overlap: For each patient with images in two splits, the images by split.
        contradictions: Groups of copies with different labels, as pairs of path and label.
        unreadable: Images that cannot be read, with the reason.
        confounders: What tells the classes apart besides the disease.
        errors: Leaks between splits, one sentence each: figures measured on these splits would be wrong.
        warnings: What else is worth knowing before training, one sentence each.
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
        """How many images are exact copies of another one."""
        return sum(len(group) - 1 for group in self.exact_duplicates)

    @property
    def leaks(self) -> tuple[str, ...]:
        """The errors without names, fit to be published: `("2 images in two splits",)`."""
        return tuple(text.partition(":")[0] for text in self.errors)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The warnings without names of images, fit to be published: `("2 images with altered copies",)`."""
        whole = {str(confounder) for confounder in self.confounders}
        return tuple(text if text in whole else text.partition(":")[0] for text in self.warnings)

    def to_dict(self) -> dict[str, Any]:
        """The fields and `surplus` as plain JSON types; `patient_overlap` and `unreadable` as lists of objects."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        plain["patient_overlap"] = [{"patient": p, "splits": splits} for p, splits in plain["patient_overlap"].items()]
        plain["unreadable"] = [{"path": path, "reason": reason} for path, reason in plain["unreadable"].items()]
        return plain | {"surplus": self.surplus}

    def to_json(self) -> str:
        """What `to_dict` gives, as one line."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        lines = [f"{count(self.n, 'image')}, {count(self.patients, 'known patient')}"]
        for source, counts in self.counts.items():
            lines.append(f"  {source}: " + ", ".join(f"{n} {label}" for label, n in counts.items()))
        if set(self.splits) - {""}:
            lines.append("  splits: " + ", ".join(f"{n} {split or 'without'}" for split, n in self.splits.items()))
        lines += [f"error: {text}" for text in self.errors] + [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines if self.errors or self.warnings else [*lines, "no problem found"])


def audit(dataset: Dataset, decoded: Decoded | None = None, *, size: int = 224, progress: bool = False) -> Audit:
    """Look for what spoils a training or its figures.

    Args:
        dataset: The images.
        decoded: What `cxrlib.data.cache.decode` gave for them; None decodes them into the cache.
        size: Side in pixels of the decoded images, where they are decoded here.
        progress: Whether to show progress on stderr.

    Example:
        >>> import shutil, tempfile
        >>> from cxrlib.data.scan import scan
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = phantom.write(folder, n=2, size=64) / "NORMAL" / "phantom00000.png"
        ...     copied = shutil.copy(first, first.parent / "copy.png")
        ...     found = audit(scan(folder))
        >>> [[Path(path).name for path in group] for group in found.exact_duplicates]
        [['copy.png', 'phantom00000.png']]
    """
    decoded = decoded or decode(dataset, size=size, progress=progress)
    images, facts = decoded.images, decoded.facts
    readable = [i for i, fact in enumerate(facts) if not fact.error]
    exact = copies.exact(readable, images, facts)
    first = np.array(sorted(set(readable) - {i for group in exact for i in group[1:]}), np.int64)
    pairs = copies.near(first, images, progress)
    groups = [group for group in connected(len(dataset), [*exact, *pairs]) if len(group) > 1]
    in_pairs = {i for pair in pairs for i in pair}
    near = [group for group in groups if in_pairs & set(group)]
    overlap = _patient_overlap(dataset)
    leaks = [group for group in groups if _conflict(dataset.splits[i] for i in group)]
    contradictions = [group for group in groups if len({int(dataset.targets[i]) for i in group}) > 1]
    confounders = tuple(_confounders(dataset, readable, images, facts))

    def paths(groups: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(dataset.paths[i] for i in group) for group in groups)

    def listed(groups: Sequence[Sequence[int]]) -> str:
        return some([some([dataset.names[i] for i in group], separator=" = ") for group in groups], separator="; ")

    errors, warnings = [], list(dataset.notes)
    if leaks:
        errors.append(f"{count(len(leaks), 'image')} in two splits: {listed(leaks)}")
    if overlap:
        errors.append(f"{count(len(overlap), 'patient')} in two splits: {some(overlap)}")
    if unreadable := [f"{dataset.names[i]} ({fact.error})" for i, fact in enumerate(facts) if fact.error]:
        warnings.append(f"{count(len(unreadable), 'image')} cannot be read: {some(unreadable, separator='; ')}")
    if contradictions:
        n = count(len(contradictions), "image")
        warnings.append(f"{n} with contradictory labels: {listed(contradictions)}")
    if exact:
        surplus = sum(len(group) - 1 for group in exact)
        what = f"{surplus} surplus {'copy' if surplus == 1 else 'copies'} of {count(len(exact), 'image')}"
        warnings.append(f"{what} with the same pixels: {listed(exact)}")
    if near:
        warnings.append(f"{count(len(near), 'image')} with altered copies: {listed(near)}")
    if len(first) > copies.MOST:
        warnings.append(f"altered copies were not looked for among {len(first):,} images: more than {copies.MOST:,}")
    counts = _counts(dataset)
    warnings += [*_small(dataset), *_uneven(counts), *_false_colour(dataset, facts), *_unknown_patients(dataset)]
    return Audit(
        n=len(dataset),
        counts=counts,
        splits=dict(Counter(split or "" for split in dataset.splits)),
        patients=len(set(dataset.patients) - {None}),
        exact_duplicates=paths(exact),
        near_duplicates=paths(near),
        patient_overlap={p: dict(zip(of, paths(list(of.values())), strict=True)) for p, of in overlap.items()},
        contradictions=tuple(
            tuple((dataset.paths[i], dataset.labels[dataset.targets[i]]) for i in group) for group in contradictions
        ),
        unreadable={path: fact.error for path, fact in zip(dataset.paths, facts, strict=True) if fact.error},
        confounders=confounders,
        errors=tuple(errors),
        warnings=(*warnings, *map(str, confounders)),
    )


def without_leaks(dataset: Dataset, found: Audit) -> NDArray[np.bool_]:
    """Choose images so that no error remains: ndarray of shape (n,), bool, whether to keep an image.

    Of every group of copies one image stays, and of a patient in two splits the images of one split: those of `test`
    before those of `val`, and those before all others. Copies with contradictory labels all go.

    Args:
        dataset: The images that were audited.
        found: What the audit found.
    """
    at: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(dataset.paths):
        at[path].append(i)
    order = {"test": 0, "val": 1}
    kept = np.ones(len(dataset), bool)

    def members(paths: Iterable[str]) -> list[int]:
        """Images that are still there, those of the test split first."""
        left = {i for path in paths for i in at[path] if kept[i]}
        return sorted(left, key=lambda i: (order.get(dataset.splits[i] or "", 2), i))

    for splits in found.patient_overlap.values():
        images = members(path for paths in splits.values() for path in paths)
        kept[[i for i in images if dataset.splits[i] != dataset.splits[images[0]]]] = False
    for contradiction in found.contradictions:
        kept[members(path for path, _ in contradiction)] = False
    for group in (*found.exact_duplicates, *found.near_duplicates):
        kept[members(group)[1:]] = False
    return kept


def _conflict(splits: Iterable[str | None]) -> bool:
    """Whether what is in all of these splits spoils a measurement; images without a split may be for training."""
    found = set(splits)
    return len(found) > 1 and not found <= {None, "train"}


def _patient_overlap(dataset: Dataset) -> dict[str, dict[str, list[int]]]:
    images: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (patient, split) in enumerate(zip(dataset.patients, dataset.splits, strict=True)):
        if patient is not None:
            images[patient][split or ""].append(i)
    return {patient: dict(splits) for patient, splits in images.items() if _conflict(split or None for split in splits)}


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    counts = Counter(zip(dataset.sources, dataset.targets.tolist(), strict=True))
    sources = dict.fromkeys(dataset.sources)
    return {source: {label: counts[source, k] for k, label in enumerate(dataset.labels)} for source in sources}


def _small(dataset: Dataset) -> Iterator[str]:
    """Classes with few patients, in all and in the splits that measure."""
    names, splits = np.array(dataset.patients_or_names, object), np.array([split or "" for split in dataset.splits])
    for split, what in (("", "train on or to measure with"), ("val", "choose thresholds by"), ("test", "measure with")):
        inside = splits == split if split else np.ones(len(dataset), bool)
        for k, label in enumerate(dataset.labels if inside.any() else ()):
            n = int((inside & (dataset.targets == k)).sum())
            patients = len(set(names[inside & (dataset.targets == k)]))
            if patients < MIN_PATIENTS:
                where = f" in the {split} split" if split else ""
                few = f"{count(n, 'image')} of {count(patients, 'patient')}"
                yield f"{label} has only {few}{where}: too few to {what}"


def _uneven(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    for source, of in counts.items():
        present = [label for label, n in of.items() if n]
        if len(counts) > 1 and len(present) == 1:
            instead = f"a network may learn to tell {source} instead of the disease"
            yield f"{source} has images of {present[0]} only: {instead}. Every source should have every class"
    classes: Counter[str] = Counter()
    for of in counts.values():
        classes.update(of)
    for what, numbers in (
        ("classes", classes),
        ("sources", {source: sum(of.values()) for source, of in counts.items()}),
    ):
        if numbers and max(numbers.values()) >= _UNEVEN * max(1, min(numbers.values())):
            most, least = max(numbers, key=numbers.__getitem__), min(numbers, key=numbers.__getitem__)
            yield f"the {what} are very uneven: {most} has {numbers[most]} images, {least} {numbers[least]}"


def _false_colour(dataset: Dataset, facts: Sequence[Facts]) -> Iterator[str]:
    maps = (_FALSE_COLOUR.search(" ".join(fact.notes)) for fact in facts)
    found = Counter((source, name[1]) for source, name in zip(dataset.sources, maps, strict=True) if name)
    for (source, name), n in found.items():
        text = f"{count(n, 'image')} of {source} in false colour ({name}), turned back to grey"
        yield f"{text}: better get the originals, since what saved them so may have changed more"


def _unknown_patients(dataset: Dataset) -> Iterator[str]:
    known = zip(dataset.sources, dataset.patients, strict=True)
    for source, n in Counter(source for source, patient in known if patient is None).items():
        text = f"{count(n, 'image')} of {source} without a patient, so a split may put two of one patient on both sides"
        yield f"{text}: a manifest or patient_pattern can name them"


def _confounders(
    dataset: Dataset, readable: Sequence[int], images: Images, facts: Sequence[Facts]
) -> Iterator[Confounder]:
    chosen = np.array(readable, np.int64)
    sources, targets = np.array(dataset.sources, object)[chosen], dataset.targets[chosen]
    of_file: dict[str, Callable[[Facts], str]] = {
        "size": lambda fact: f"{math.sqrt(fact.height * fact.width):.0f}",
        "aspect ratio": lambda fact: f"{fact.width / fact.height:.2f}",
        "bit depth": lambda fact: f"{math.log2(fact.white + 1):.0f}",
        "colour": lambda fact: f"{fact.colour:.3f}",
        "view": lambda fact: fact.view or "",
    }
    columns = {name: [value(facts[i]) for i in readable] for name, value in of_file.items()}
    columns["file type"] = [Path(dataset.paths[i]).suffix.lower() for i in readable]
    columns["border"] = [f"{border:.2f}" for border in _borders(chosen, images)]
    for name, values in dataset.columns.items():
        if re.fullmatch(_SHORTCUTS, re.sub(r"[\W_]|^patient", "", name.casefold())):
            columns[name] = [values[i] for i in readable]
    each = list(dict.fromkeys(dataset.sources))
    for place in ["", *each] if len(each) > 1 else each:
        inside = np.flatnonzero(sources == place) if place else np.arange(len(chosen))
        for attribute, column in (columns if place else {"source": sources.tolist()}).items():
            if found := _telling([column[i] for i in inside], targets[inside]):
                k, auroc, (own, others) = found
                other = dataset.labels[1 - k] if len(dataset.labels) == 2 else "others"
                yield Confounder(attribute, place, dataset.labels[k], auroc, {dataset.labels[k]: own, other: others})


def _telling(column: Sequence[str], targets: NDArray[np.int64]) -> tuple[int, float, tuple[str, str]] | None:
    """The class that an attribute tells from the others best, how well, and typical values; None if it hardly does."""
    present = np.unique(targets).tolist()
    if len(present) < 2 or len(set(column)) < 2:
        return None
    best: tuple[float, int] = (0.0, 0)
    for k in present[-1:] if len(present) == 2 else present:
        mine = targets == k
        scores = _scores(column, mine)
        if scores is None:
            return None
        auroc = measure_auroc(mine, scores)
        auroc = max(auroc, 1 - auroc)
        error = math.sqrt((len(mine) + 1) / (12 * mine.sum() * (~mine).sum()))  # of an attribute that tells nothing
        if auroc >= _TELLS and auroc - 0.5 > _SIGMAS * error:
            best = max(best, (auroc, k))
    mine = targets == best[1]
    return (best[1], best[0], (_typical(column, mine), _typical(column, ~mine))) if best[0] else None


def _scores(column: Sequence[str], mine: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Numbers as they are; names by how often they come with the class. None for names that hardly repeat."""
    try:
        return np.array([float(value) for value in column])
    except ValueError:
        names, index = np.unique(np.array(column), return_inverse=True)
        share: NDArray[np.float64] = np.bincount(index, mine) / np.bincount(index)
        return share[index] if len(names) <= 20 else None


def _typical(column: Sequence[str], mine: NDArray[np.bool_]) -> str:
    values = [value for value, chosen in zip(column, mine.tolist(), strict=True) if chosen]
    try:
        return f"{np.median([float(value) for value in values]):g}"
    except ValueError:
        return Counter(values).most_common(1)[0][0] or "not given"


def _borders(chosen: NDArray[np.int64], images: Images) -> Iterator[float]:
    """Part of each image that is an even margin: rows and columns of cells at the edges that hardly vary."""
    for start in range(0, len(chosen), 256):
        grid = copies.cells(images[chosen[start : start + 256]], _GRID)  # (m, n, n)
        inside = np.ones(len(grid))
        for axis in (1, 2):
            uneven = grid.std(axis=axis) > _BORDER  # (m, n)
            margins = uneven.argmax(axis=1) + uneven[:, ::-1].argmax(axis=1)
            inside *= np.where(uneven.any(axis=1), 1 - margins / uneven.shape[1], 0)
        yield from (1 - inside).tolist()
