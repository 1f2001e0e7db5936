"""From folders, manifests and tables to images with labels, patients, sources and splits."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np

from cxrlib.config import DEFAULT_LABELS, check_labels
from cxrlib.data import hf
from cxrlib.data.dataset import (
    PATIENT_PATTERNS,
    Dataset,
    add_columns,
    count,
    patient_of,
    qualified,
    read_table,
    some,
    write_manifest,
)
from cxrlib.images import sources

__all__ = ["PATIENT_PATTERNS", "SPLITS", "Data", "Dataset", "add_columns", "of_split", "scan", "write_manifest"]

Data: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NORMAL = ("normal", "healthy", "negative", "no finding", "no_finding", "control")  # such a class comes first
_NORMAL_WORD = re.compile(r"(?:no|non|normal|healthy|negative)(?![^\W_])", re.IGNORECASE)  # as in no_pneumonia
_DEFAULTS = {label.casefold(): label for label in DEFAULT_LABELS}
_MANIFEST_AT = re.compile(r"(.+?\.csv)@(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class _Row:
    path: str
    name: str  # below the source's folder
    label: str
    patient: str | None
    source: str
    split: str | None
    where: str  # how messages name the row
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Patterns:
    patient: re.Pattern[str] | None
    label: re.Pattern[str] | None

    def label_of(self, name: str, given: str) -> str:
        found = self.label.search(name) if self.label else None
        return next((label for label, text in found.groupdict().items() if text), given) if found else given

    def patient_of(self, name: str, source: str) -> str | None:
        return patient_of(name, source, self.patient)


def scan(
    data: Data,
    *,
    labels: Sequence[str] | None = None,
    label_pattern: str | None = None,
    patient_pattern: str | None = None,
    split: str | None = None,
) -> Dataset:
    """List the images of folders and manifests, with their labels, patients, sources and splits.

    A folder holds one folder per class, or `train`, `val` and `test` folders that hold those. A manifest is a CSV file
    with the columns `path` (absolute, or relative to the manifest) and `label`, and perhaps `patient`, `source`,
    `split` and others, which are kept; with its images elsewhere it is `nih.csv@/data/nih`. A data set of the Hugging
    Face Hub is `hf://datasets/user/name` (see `cxrlib.data.hf.fetch`). Hidden files are skipped.

    A source is named after its folder or manifest, or, where that is called `train`, `val` or `test`, after the folder
    above. Patients come from the manifest, where an id is one patient in all of its sources, else from
    `patient_pattern`, where it holds within its source. One with a colon holds everywhere (`cohort:17`, or `:00000061`
    for the patient 00000061 of ChestX-ray14). Else they come from the naming schemes of the public collections
    (`PATIENT_PATTERNS`).

    Args:
        data: A folder, a CSV manifest, the address of a data set on the Hub, or a list of them.
        labels: Class names in the order of the model's outputs, in any case; None for those found: the normal class
            first (called so, or beginning with no, non, normal, healthy or negative), one called pneumonia second.
        label_pattern: Regular expression with one named group for each label, searched in an image's path below its
            source's folder: the group that matches names the label. Where none does, the folder or the manifest does.
            `(?P<BACTERIAL>_bacteria_)|(?P<VIRAL>_virus_)` tells the causes of the paediatric set.
        patient_pattern: Regular expression that finds the patient in that path: its first group, or the whole match.
        split: Keep only this split.

    Returns:
        The images, in the order of the sources and sorted by path within each folder.

    Raises:
        FileNotFoundError: If a folder, a manifest or an image in it does not exist.
        ValueError: If there are no images, images without a label or with another one, two images of one name, or no
            such split; unless `labels` are given, also if there is one class only, or two whose names do not tell which
            is the normal one.

    Example:
        >>> import tempfile
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = scan(phantom.write(folder, n=2, size=32))
        >>> len(data), data.labels
        (4, ('NORMAL', 'PNEUMONIA'))
    """
    places = [data] if isinstance(data, (str, os.PathLike)) else list(data) if isinstance(data, Iterable) else []
    if not places:
        raise ValueError(f"data must be a folder, a CSV manifest or a list of them. Received: data={data!r}")
    patterns = _Patterns(_compiled("patient_pattern", patient_pattern), _compiled("label_pattern", label_pattern))
    if patterns.label and not patterns.label.groupindex:
        raise ValueError(f"label_pattern must have a named group for each label. Received: {label_pattern!r}")
    known = check_labels(labels) if labels is not None else None
    taken: dict[str, Path] = {}
    rows: list[_Row] = []
    notes: list[str] = []
    for place in places:
        root = None
        if isinstance(place, str) and place.startswith(hf.PREFIX):
            path, stem = hf.fetch(place)
            source = _source_name(stem, path, taken)
        else:
            path, root = _located(place)
            named = root or path
            named = named.parent if named.stem.casefold() in SPLITS else named  # train and test are one source
            source = _source_name(named.stem if named.suffix == ".csv" else named.name, named, taken)
        if path.is_dir():
            rows += _scan_folder(path, source, known, patterns, notes)
        else:
            rows += _scan_manifest(path, root or path.parent, source, patterns)
    for option, given, nothing in (
        ("patient_pattern", patterns.patient, all(row.patient is None for row in rows)),
        ("label_pattern", patterns.label, not any(patterns.label_of(row.name, "") for row in rows)),
    ):
        if given and nothing:
            example = f"{count(len(rows), 'image')}, {rows[0].name!r} for one"
            raise ValueError(f"{option} matches none of {example}. Received: {option}={given.pattern!r}")
    if split is not None:
        rows = [rows[i] for i in of_split([row.split for row in rows], split)]
    return _collected(rows, known, notes)


def of_split(splits: Sequence[str | None], split: str) -> list[int]:
    """Find the images of a split.

    Args:
        splits: The images' splits, as in `Dataset.splits`.
        split: Which one, in any spelling of `SPLITS`.

    Returns:
        Their positions, at least one.

    Raises:
        ValueError: If there is no such split.

    Example:
        >>> of_split(("train", "val", None, "val"), "validation")
        [1, 3]
    """
    chosen = [i for i, one in enumerate(splits) if one == SPLITS.get(split.casefold(), split)]
    if not chosen:
        known = ", ".join(sorted({one for one in splits if one}))
        raise ValueError(f"the data has no split {split!r}; it has {known or 'none at all'}. Received: split={split!r}")
    return chosen


def _compiled(option: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{option} must be a regular expression: {error}. Received: {option}={pattern!r}") from None


def _located(place: str | os.PathLike[str]) -> tuple[Path, Path | None]:
    """A folder or a manifest, and the folder that the paths of `manifest.csv@folder` are relative to."""
    path, root = Path(os.path.abspath(place)), None
    if not os.path.exists(path) and (match := _MANIFEST_AT.fullmatch(os.fspath(place))):
        path, root = (Path(os.path.abspath(part)) for part in match.groups())
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {match[2]!r} for the images of {match[1]!r}")
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise FileNotFoundError(f"there is no folder or manifest {os.fspath(place)!r}")
    return path, root


def _source_name(stem: str, root: Path, taken: dict[str, Path]) -> str:
    """A name that no other source has."""
    stem = _text(stem) or "data"
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    return next(name for name in names if taken.setdefault(name, root) == root)


def _text(name: str) -> str:
    """A file's name as text that can be written anywhere, even where its bytes are not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _scan_folder(
    folder: Path, source: str, labels: tuple[str, ...] | None, patterns: _Patterns, notes: list[str]
) -> list[_Row]:
    root = os.path.join(folder, "")
    files = [(path := str(file), path[len(root) :].split(os.sep)) for file in sources.find(folder)]
    if not files:
        kinds = ", ".join(sorted(sources.EXTENSIONS))
        raise ValueError(f"{folder} has no images: looked for {kinds} in it and in the folders below")
    tops = sorted({parts[0] for _, parts in files if len(parts) > 1})
    below = {parts[1].casefold() for _, parts in files if len(parts) > 2}
    named = {name.casefold() for name in labels or ()} | set(_DEFAULTS)
    has_splits = any(top.casefold() in SPLITS for top in tops)
    if not has_splits and len(tops) == 1 and below & set(SPLITS):
        return _scan_folder(folder / tops[0], source, labels, patterns, notes)
    if has_splits:  # the Kaggle archive holds itself once more in a folder of its own name
        n = len(files)
        files = [(path, parts) for path, parts in files if parts[0] != folder.name]
        if n > len(files):
            notes.append(f"{count(n - len(files), 'image')} of {source} skipped: a copy of the folder within itself")
    elif len(tops) > 1 and below & (named | set(SPLITS)) and not {top.casefold() for top in tops} & named:
        raise ValueError(f"{folder} holds several data sets; give them as a list: {[root + top for top in tops]}")
    hidden = (name for _, _, names in os.walk(folder) for name in names if name.startswith("."))  # as a Mac's ._x.png
    if n := sum(os.path.splitext(name)[1].lower() in sources.EXTENSIONS for name in hidden):
        notes.append(f"{count(n, 'hidden file')} of {source} skipped")
    depth, own = int(has_splits), SPLITS.get(folder.name.casefold())
    rows, loose = [], []
    for path, parts in files:
        name = _text("/".join([folder.name, *parts] if own else parts))
        label = patterns.label_of(name, _text(parts[depth]) if len(parts) > depth + 1 else "")
        if not label or (has_splits and parts[0].casefold() not in SPLITS):
            loose.append("/".join(parts))
            continue
        split = SPLITS[parts[0].casefold()] if has_splits else own
        rows.append(_Row(path, name, label, patterns.patient_of(name, source), source, split, where=path))
    if loose:
        splits = "train, val or test folders with class folders in them"
        wanted = splits if has_splits else "class folders such as NORMAL and PNEUMONIA"
        raise ValueError(f"{folder} has {count(len(loose), 'image')} without a label, outside {wanted}: {some(loose)}")
    return rows


def _scan_manifest(file: Path, root: Path, source: str, patterns: _Patterns) -> list[_Row]:
    rows, unlabelled, missing = [], [], []
    lines: dict[tuple[str, str], list[int]] = defaultdict(list)  # of a source's path
    for line, row in read_table(file, ("path", "label")):
        path, given, split = row.pop("path"), row.pop("patient", ""), row.pop("split", "")
        own = row.pop("source", "") or source
        full, name = root / path, str(PurePosixPath(*Path(path).parts))
        label = patterns.label_of(name, row.pop("label"))
        if not label:
            unlabelled.append(f"line {line}")
        elif not os.path.isfile(full):  # also one whose name is too long to be one
            missing.append(path)
        lines[own, str(full)].append(line)
        patient = qualified(given, name, source) if given else patterns.patient_of(name, own)
        side = SPLITS.get(split.casefold(), split) if split else SPLITS.get(file.stem.casefold())
        rows.append(_Row(str(full), name, label, patient, own, side, f"{file}, line {line}", row))
    if unlabelled:
        raise ValueError(f"{file} has {count(len(unlabelled), 'image')} without a label: {some(unlabelled)}")
    if missing:
        which = f"{count(len(missing), 'image')} that cannot be found below {root}: {some(missing)}"
        raise FileNotFoundError(f"{file} lists {which}. Images that lie elsewhere: {file.name}@FOLDER")
    if not rows:
        raise ValueError(f"{file} lists no images")
    if twice := [f"{p} in lines {', '.join(map(str, where))}" for (_, p), where in lines.items() if len(where) > 1]:
        which = f"{count(len(twice), 'image')} more than once: {some(twice, 3)}"
        raise ValueError(f"{file} lists {which}. Keep one line of each")
    return _without_machine(rows, root)


def _without_machine(rows: list[_Row], folder: Path) -> list[_Row]:
    """Let names of absolute paths begin below the folder, or else below what the source's other such paths share."""
    within = os.path.join(folder, "")
    absolute = {i: os.path.normpath(row.path) for i, row in enumerate(rows) if os.path.isabs(row.name)}
    elsewhere: dict[str, list[str]] = defaultdict(list)
    for i, path in absolute.items():
        if not path.startswith(within):
            elsewhere[rows[i].source].append(os.path.dirname(path))
    roots = {source: os.path.commonpath(folders) for source, folders in elsewhere.items()}
    named = list(rows)
    for i, path in absolute.items():
        below = os.path.relpath(path, folder if path.startswith(within) else roots[rows[i].source])
        named[i] = replace(rows[i], name=Path(below).as_posix())
    return named


def _collected(rows: list[_Row], labels: tuple[str, ...] | None, notes: list[str]) -> Dataset:
    spelling = dict(_DEFAULTS) if labels is None else {label.casefold(): label for label in labels}
    if labels is None:
        for row in rows:
            spelling.setdefault(row.label.casefold(), row.label)
        labels = _normal_first({spelling[row.label.casefold()] for row in rows}, len(rows))
    if unknown := [row for row in rows if row.label.casefold() not in spelling]:
        names = ", ".join(sorted({repr(row.label) for row in unknown}))
        which = f"{count(len(unknown), 'image')} with a label that is none of {', '.join(labels)}: {names}"
        raise ValueError(f"{which}. The first: {unknown[0].where}")
    named: dict[str, _Row] = {}
    for row in rows:
        if (other := named.setdefault(name := f"{row.source}/{row.name}", row)) is not row:
            different = "give them different sources, as in a manifest's column source"
            how = "list it once" if other.path == row.path else different
            which = f"{name!r}: {other.where}, and {row.where}"
            raise ValueError(f"two images have one name, {which}. Names must differ: {how}")
    extra = sorted({name for row in rows for name in row.extra})
    return Dataset(
        paths=tuple(row.path for row in rows),
        targets=np.array([labels.index(spelling[row.label.casefold()]) for row in rows], np.int64),
        labels=labels,
        patients=tuple(row.patient for row in rows),
        sources=tuple(row.source for row in rows),
        splits=tuple(row.split for row in rows),
        columns={name: tuple(row.extra.get(name, "") for row in rows) for name in extra},
        names=tuple(named),
        notes=tuple(notes),
    )


def _normal_first(found: set[str], n: int) -> tuple[str, ...]:
    """Labels in order; which of two is the normal one is never guessed: sensitivity and specificity depend on it."""
    if len(found) < 2:
        which = f"{found.pop()!r} in {count(n, 'image')}"
        advice = "add the other class, or name both with labels=(…) to evaluate on this one"
        raise ValueError(f"there is one class only, {which}, and a classifier needs two: {advice}")
    worded = {label for label in found if label.casefold() in _NORMAL or _NORMAL_WORD.match(label)}
    if len(found) == 2 and len(worded) != 1:
        first, second = sorted(found, key=lambda label: (label == DEFAULT_LABELS[1], label))
        if second != DEFAULT_LABELS[1]:
            which = f"the classes are {first!r} and {second!r}, and their names do not tell which is the normal one"
            how = f"labels=({first!r}, {second!r}) or the other way round, on the command line --labels"
            raise ValueError(f"{which}: name both, that one first, with {how}")
        return first, second

    def rank(label: str) -> tuple[bool, bool, bool, str]:  # the second is the positive class of every threshold
        return label.casefold() not in _NORMAL, label not in worded, "pneumonia" not in label.casefold(), label

    return tuple(sorted(found, key=rank))
