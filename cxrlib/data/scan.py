"""From folders, manifests and tables to films with labels, patients and sources."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxrlib.config import DEFAULT_LABELS, check_labels
from cxrlib.data import hf as remote
from cxrlib.images import sources

Data: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_HEALTHY = (
    "normal",
    "healthy",
    "negative",
    "no finding",
    "no_finding",
    "control",
)  # comes first: the classes behind it are the findings
_HEALTHY_WORD = re.compile(
    r"(?:no|non|normal|healthy|negative)(?![^\W_])", re.IGNORECASE
)  # begins a name, as in no_pneumonia
_DEFAULTS = {label.casefold(): label for label in DEFAULT_LABELS}
_COLUMNS = ("path", "label", "patient", "source", "split")
_ALIASES = {"file_name": "path"}  # in the metadata.csv of image folders on the Hub

# Who is on a film, by the naming scheme of a public collection; matched against the path below the source's folder.
PATIENT_PATTERNS = {
    "Kermany, findings": r"(?:^|/)(person\d+_(?:bacteria|virus))_\d+[^/]*$",  # person1_bacteria_1 and person1_virus_6 are two patients
    "Kermany, normal": r"(?:^|/)((?:NORMAL2-)?IM-\d+)(?:-\d+)+\.(?:jpe?g|png)$",  # NORMAL2-IM-0001 and IM-0001 are two; IM-0001-0001.dcm is anybody's
    "Kermany, Mendeley": r"(?:^|/)((?:NORMAL|BACTERIA|VIRUS)-\d{5,})-\d+\.[^/]*$",
    "ChestX-ray14": r"(?:^|/)(000\d{5})_\d{3}\.[^/]*$",
    "CheXpert": r"(?:^|/)(patient\d{5,})/study\d+/[^/]*$",
    "MIMIC-CXR": r"(?:^|/)(p\d{8})/s\d{8}/[^/]*$",
    "RSNA": r"(?:^|/)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.[^/]*$",  # one film per id
    "VinDr-CXR": r"(?:^|/)([0-9a-f]{32})\.[^/]*$",  # one film per id
}
_PATIENT = re.compile("|".join(PATIENT_PATTERNS.values()))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Films and what is known of them; nothing is decoded yet. All fields but `labels` and `columns` have one entry per film.

    Args:
        paths: Where the films lie.
        targets: ndarray of shape (n,), int64, index into `labels`.
        labels: Class names, the healthy class first.
        patients: Who is on each film; `None` where nobody knows. Equal ids mean the same patient, whatever the source.
        sources: Which collection or hospital each film comes from.
        splits: `"train"`, `"val"`, `"test"` or another name that the data gives; `None` where it gives none.
        columns: Further columns of the manifests, such as age or view; empty strings where a source lacks one.
        names: Names that do not depend on the machine, `source/path below its folder`; empty for `paths`.

    Raises:
        ValueError: If lengths differ, or a target is no index into the labels.

    Example:
        >>> films = Dataset(("a.png", "b.png"), np.array([0, 1]), ("NORMAL", "PNEUMONIA"), ("1", None), ("home",) * 2, (None,) * 2)
        >>> len(films), films.take([1]).paths
        (2, ('b.png',))
    """

    paths: tuple[str, ...]
    targets: NDArray[np.int64]
    labels: tuple[str, ...]
    patients: tuple[str | None, ...]
    sources: tuple[str, ...]
    splits: tuple[str | None, ...]
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_labels(self.labels)
        if not self.names:
            object.__setattr__(self, "names", self.paths)
        targets = np.array(self.targets, np.int64)
        targets.flags.writeable = False
        object.__setattr__(self, "targets", targets)
        lengths = {
            name: len(getattr(self, name)) for name in ("paths", "targets", "patients", "sources", "splits", "names")
        }
        lengths |= {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"a Dataset needs one entry per film in every field. Received: {', '.join(f'{k}: {n}' for k, n in lengths.items())}"
            )
        if len(targets) and not (targets.min() >= 0 and targets.max() < len(self.labels)):
            raise ValueError(
                f"targets must index the {len(self.labels)} labels. Received: targets from {targets.min()} to {targets.max()}"
            )

    def __len__(self) -> int:
        """Count the films.

        Returns:
            How many there are.
        """
        return len(self.paths)

    @property
    def patients_or_names(self) -> tuple[str, ...]:
        """Who is on each film; the film's name where nobody knows, so that it counts as a patient of its own."""
        return tuple(patient or name for patient, name in zip(self.patients, self.names, strict=True))

    def take(self, indices: ArrayLike) -> Dataset:
        """Choose films.

        Args:
            indices: Positions of shape (m,), or a mask of shape (n,).

        Returns:
            The chosen films, in the given order.
        """
        chosen = np.arange(len(self))[np.asarray(indices) if np.size(indices) else np.empty(0, np.int64)]  # (m,)

        def pick(column: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(column[i] for i in chosen)

        return replace(
            self,
            paths=pick(self.paths),
            targets=self.targets[chosen],
            patients=tuple(self.patients[i] for i in chosen),
            sources=pick(self.sources),
            splits=tuple(self.splits[i] for i in chosen),
            columns={name: pick(column) for name, column in self.columns.items()},
            names=pick(self.names),
        )


@dataclass(frozen=True)
class _Row:
    path: str
    name: str  # below the source's folder
    label: str
    patient: str | None
    source: str
    split: str | None
    where: str  # how messages name the row
    extra: dict[str, str]


def scan(
    data: Data, *, labels: Sequence[str] | None = None, patient_pattern: str | None = None, split: str | None = None
) -> Dataset:
    """List the films of folders and manifests, with their labels, patients, sources and splits.

    Data are folders, manifests, and data sets of the Hugging Face Hub as `hf://datasets/user/name`, which are downloaded (see `remote.fetch`).
    A folder holds one folder per class, or `train`, `val` and `test` folders that hold those; folders named `normal` and `pneumonia` in any case mean the
    same. A manifest is a CSV file with the columns `path` (absolute or below the manifest's folder) and `label`, and perhaps `patient`, `source`, `split`
    and others, which are kept. A source is named after its folder or manifest, or, where that is called `train`, `val` or `test`, after the folder above.

    Patients come from the manifest, else from `patient_pattern`, else from the naming schemes of the public collections (`PATIENT_PATTERNS`). Ids of the
    first two kinds only mean something within their source, so they are prefixed with its name.

    A film's name is its source's and its path below that one's folder. For absolute paths in a manifest that is the manifest's folder where they lie in it,
    else the folder that the source's other such films have in common: what lies above is nobody's business.

    Args:
        data: A folder, a CSV manifest, the address of a data set on the Hub, or a list of them.
        labels: Class names in the order of the model's outputs; `None` for those found, the healthy class first: one called so, or that begins with no, non,
            normal, healthy or negative. Beside `PNEUMONIA` alone any other counts as healthy.
        patient_pattern: Regular expression that finds the patient in a film's path below its source's folder: its first group, or the whole match.
        split: Keep only this split.

    Returns:
        The films, in the order of the sources and sorted by path within each folder.

    Raises:
        FileNotFoundError: If a folder, a manifest or a film in it does not exist.
        ValueError: If there are no films, films without a label or with another one, two films of one name, or no such split; unless `labels` are given, also
            if there is one class only, or two whose names do not tell which is the healthy one.

    Example:
        >>> import tempfile
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     films = scan(phantom.write(folder, n=2, size=32))
        >>> len(films), films.labels
        (4, ('NORMAL', 'PNEUMONIA'))
    """
    places = [data] if isinstance(data, (str, os.PathLike)) else list(data) if isinstance(data, Iterable) else []
    if not places:
        raise ValueError(f"data must be a folder, a CSV manifest or a list of them. Received: data={data!r}")
    pattern = _compile(patient_pattern)
    known = check_labels(labels) if labels is not None else None
    taken: dict[str, Path] = {}
    rows: list[_Row] = []
    for place in places:
        if isinstance(place, str) and place.startswith(remote.PREFIX):
            path, stem = remote.fetch(place)
            source = _name_source(stem, path, taken)
        else:
            path = Path(os.path.abspath(place))
            root = path.parent if path.stem.casefold() in SPLITS else path  # train and test side by side are one source
            source = _name_source(root.stem if root.suffix == ".csv" else root.name, root, taken)
        if os.path.isdir(path):
            rows += _scan_folder(path, source, known, pattern)
        elif os.path.isfile(path):
            rows += _scan_manifest(path, source, pattern)
        else:
            raise FileNotFoundError(f"there is no folder or manifest {str(place)!r}")
    if pattern and all(row.patient is None for row in rows):
        raise ValueError(
            f"patient_pattern matches none of {len(rows)} films, {rows[0].name!r} for one. Received: patient_pattern={patient_pattern!r}"
        )
    if split is not None:
        rows = [rows[i] for i in of_split([row.split for row in rows], split)]
    return _collect(rows, known)


def of_split(splits: Sequence[str | None], split: str) -> list[int]:
    """Find the films of a split.

    Args:
        splits: The films' splits, as in `Dataset.splits`.
        split: Which one, also as spelled otherwise in `SPLITS`.

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


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"patient_pattern must be a regular expression: {error}. Received: patient_pattern={pattern!r}"
        ) from None


def _name_source(stem: str, root: Path, taken: dict[str, Path]) -> str:
    """A name that no other source has."""
    stem = _text(stem)
    names = itertools.chain([stem or "data"], (f"{stem}-{i}" for i in itertools.count(2)))
    return next(name for name in names if taken.setdefault(name, root) == root)


def _text(name: str) -> str:
    """A file's name as text that can be written anywhere, also where its bytes are no UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _scan_folder(
    folder: Path, source: str, labels: tuple[str, ...] | None, pattern: re.Pattern[str] | None
) -> list[_Row]:
    root = os.path.join(folder, "")
    files = [
        (path := str(file), path[len(root) :].split(os.sep)) for file in sources.find(folder)
    ]  # paths, and their parts below the folder
    if not files:
        raise ValueError(
            f"{folder} has no images: looked for {', '.join(sorted(sources.EXTENSIONS))} in it and in the folders below"
        )
    tops = sorted({parts[0] for _, parts in files if len(parts) > 1})
    below = {parts[1].casefold() for _, parts in files if len(parts) > 2}
    named = {name.casefold() for name in labels or ()} | set(_DEFAULTS)
    has_splits = any(top.casefold() in SPLITS for top in tops)
    if not has_splits and len(tops) == 1 and below & set(SPLITS):
        return _scan_folder(folder / tops[0], source, labels, pattern)
    if has_splits:  # the Kaggle archive holds itself once more in a folder of its own name
        files = [(path, parts) for path, parts in files if parts[0] != folder.name]
    elif len(tops) > 1 and below & (named | set(SPLITS)) and not {top.casefold() for top in tops} & named:
        raise ValueError(f"{folder} holds several data sets; give them as a list: {[root + top for top in tops]}")
    depth = 1 if has_splits else 0
    loose = [
        "/".join(parts)
        for _, parts in files
        if len(parts) < depth + 2 or (has_splits and parts[0].casefold() not in SPLITS)
    ]
    if loose:
        wanted = (
            "train, val or test folders with class folders in them"
            if has_splits
            else "class folders such as NORMAL and PNEUMONIA"
        )
        raise ValueError(f"{folder} has {_films(len(loose))} without a label, outside {wanted}: {_some(loose)}")
    own = SPLITS.get(folder.name.casefold())
    prefix = [folder.name] if own else []
    rows = []
    for path, parts in files:
        name = _text("/".join(prefix + parts))
        split = SPLITS[parts[0].casefold()] if has_splits else own
        rows.append(
            _Row(path, name, _text(parts[depth]), _patient(name, source, pattern), source, split, where=path, extra={})
        )
    return rows


def _scan_manifest(file: Path, source: str, pattern: re.Pattern[str] | None) -> list[_Row]:
    rows, unlabelled, missing = [], [], []
    lines: dict[tuple[str, str], list[int]] = defaultdict(list)  # of a source's path
    for line, row in _read_csv(file):
        path, label, given = row.pop("path"), row.pop("label"), row.pop("patient", "")
        own = row.pop("source", "") or source
        split = row.pop("split", "")
        full, below = file.parent / path, PurePosixPath(*Path(path).parts)
        if not label:
            unlabelled.append(f"line {line}")
        elif not os.path.isfile(full):  # also one whose name is too long to be one
            missing.append(path)
        lines[own, str(full)].append(line)
        rows.append(
            _Row(
                path=str(full),
                name=str(below),
                label=label,
                patient=_qualify(given, str(below), own) if given else _patient(str(below), own, pattern),
                source=own,
                split=SPLITS.get(split.casefold(), split) if split else SPLITS.get(file.stem.casefold()),
                where=f"{file}, line {line}",
                extra=row,
            )
        )
    if unlabelled:
        raise ValueError(f"{file} has {_films(len(unlabelled))} without a label: {_some(unlabelled)}")
    if missing:
        raise FileNotFoundError(
            f"{file} lists {_films(len(missing))} that cannot be found below {file.parent}: {_some(missing)}"
        )
    if not rows:
        raise ValueError(f"{file} lists no films")
    if twice := [
        f"{path} in lines {', '.join(map(str, where))}" for (_, path), where in lines.items() if len(where) > 1
    ]:
        raise ValueError(f"{file} lists {_films(len(twice))} more than once: {_some(twice, 3)}. Keep one line of each")
    return _without_machine(rows, file.parent)


def _without_machine(rows: list[_Row], folder: Path) -> list[_Row]:
    """Let names of absolute paths begin below the manifest's folder, else below the folder that the source's other such films have in common."""
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


def _read_csv(file: Path, required: Sequence[str] = ("path", "label")) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a manifest with their numbers; cells between commas, semicolons or tabs, as spreadsheets write them."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is neither a folder nor a CSV manifest in UTF-8 ({error})") from None
    header = text.partition("\n")[0].strip()
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        fields = [name.strip() for name in next(reader, [])]
        fields = [
            _ALIASES.get(name.casefold(), name.casefold() if name.casefold() in _COLUMNS else name) for name in fields
        ]
        if not set(required) <= set(fields) or len(set(fields)) != len(fields):
            wanted = f"a line that names its columns, {' and '.join(required)} among them, each once"
            raise ValueError(f"{file} must begin with {wanted}. Received: {header[:200]!r}")
        for cells in reader:
            if any(cells):
                if len(cells) != len(fields):
                    raise ValueError(
                        f"{file}, line {reader.line_num}: expected {len(fields)} cells as in the first line. Received: {len(cells)}"
                    )
                yield reader.line_num, dict(zip(fields, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: no CSV ({error})") from None


def _patient(name: str, source: str, pattern: re.Pattern[str] | None) -> str | None:
    match = (pattern or _PATIENT).search(name)
    if match is None:
        return None
    found = next((group for group in match.groups() if group), match.group())
    return _qualify(found, name, source) if pattern else found


def _qualify(patient: str, name: str, source: str) -> str:
    """Prefix an id with its source, for it means nothing elsewhere; not where it is the id of a public collection, or prefixed already."""
    return (
        patient
        if patient == _patient(name, source, None) or patient.startswith(f"{source}:")
        else f"{source}:{patient}"
    )


def _collect(rows: list[_Row], labels: tuple[str, ...] | None) -> Dataset:
    spelling = dict(_DEFAULTS) if labels is None else {label.casefold(): label for label in labels}
    if labels is None:
        for row in rows:
            spelling.setdefault(row.label.casefold(), row.label)
        found = {spelling[row.label.casefold()] for row in rows}
        if len(found) < 2:
            text = f"there is one class only, {found.pop()!r} in {_films(len(rows))}, and a classifier needs two"
            raise ValueError(f"{text}: add the other class, or name both with labels=(…) to evaluate on this one")
        labels = _healthy_first(found)
    unknown = [row for row in rows if row.label.casefold() not in spelling]
    if unknown:
        names = ", ".join(sorted({repr(row.label) for row in unknown}))
        raise ValueError(
            f"{_films(len(unknown))} with a label that is none of {', '.join(labels)}: {names}. The first: {unknown[0].where}"
        )
    named: dict[str, _Row] = {}
    for row in rows:
        if (other := named.setdefault(name := f"{row.source}/{row.name}", row)) is not row:
            how = (
                "list it once"
                if other.path == row.path
                else "give them different sources, as in a manifest's column source"
            )
            raise ValueError(
                f"two films have one name, {name!r}: {other.where}, and {row.where}. Names must differ: {how}"
            )
    index = {label: i for i, label in enumerate(labels)}
    extra = sorted({name for row in rows for name in row.extra})
    return Dataset(
        paths=tuple(row.path for row in rows),
        targets=np.array([index[spelling[row.label.casefold()]] for row in rows], np.int64),
        labels=labels,
        patients=tuple(row.patient for row in rows),
        sources=tuple(row.source for row in rows),
        splits=tuple(row.split for row in rows),
        columns={name: tuple(row.extra.get(name, "") for row in rows) for name in extra},
        names=tuple(named),
    )


def _healthy_first(found: set[str]) -> tuple[str, ...]:
    """Labels in order; which of two is the healthy one is never guessed, for sensitivity and specificity hang on it."""
    worded = {label for label in found if label.casefold() in _HEALTHY or _HEALTHY_WORD.match(label)}
    if len(found) == 2 and len(worded) != 1:
        finding = DEFAULT_LABELS[1]
        first, second = sorted(found, key=lambda label: (label == finding, label))
        if second != finding:
            text = f"the classes are {first!r} and {second!r}, and their names do not tell which is the healthy one"
            raise ValueError(
                f"{text}: name both, that one first, with labels=({first!r}, {second!r}) or the other way round, on the command line --labels"
            )
        return first, second
    return tuple(sorted(found, key=lambda label: (label.casefold() not in _HEALTHY, label not in worded, label)))


def _films(n: int) -> str:
    return f"{n} film{'s' if n != 1 else ''}"


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def write_manifest(dataset: Dataset, file: str | os.PathLike[str]) -> None:
    """Write a CSV manifest that `scan` reads back as the same films; a path that is no UTF-8 is written with backslashes, and cannot be found again.

    Args:
        dataset: The films.
        file: Where to write; paths of films below its folder are written relative to it.

    Example:
        >>> import tempfile
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_manifest(scan(phantom.write(folder, n=2, size=32)), folder + "/films.csv")
        ...     len(scan(folder + "/films.csv"))
        4
    """
    file = Path(os.path.abspath(file))
    extra = list(dataset.columns)
    part = file.with_name(f"{file.name}.part")
    with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as out:
        writer = csv.writer(out)
        writer.writerow([*_COLUMNS, *extra])
        for i, path in enumerate(dataset.paths):
            full = Path(os.path.abspath(path))
            shown = full.relative_to(file.parent).as_posix() if full.is_relative_to(file.parent) else str(full)
            row = [
                shown,
                dataset.labels[dataset.targets[i]],
                dataset.patients[i] or "",
                dataset.sources[i],
                dataset.splits[i] or "",
            ]
            writer.writerow(row + [dataset.columns[name][i] for name in extra])
    os.replace(part, file)


def add_columns(dataset: Dataset, table: str | os.PathLike[str]) -> Dataset:
    """Add what a table says of films to what is known of them, such as their views, which `train` can balance and `evaluate` reports by.

    Args:
        dataset: The films.
        table: A CSV file in UTF-8, of commas, semicolons or tabs. Its column `film` holds names as in `Dataset.names`, `source/path below its folder`.

    Returns:
        The films with the table's other columns. Where it says nothing of a film, what was known stays, or is an empty string.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If the table has no column `film`, names a film twice, or names none of these.

    Example:
        >>> import tempfile
        >>> films = Dataset(("clinic/a.png", "clinic/b.png"), np.array([0, 1]), ("NORMAL", "PNEUMONIA"), (None,) * 2, ("clinic",) * 2, (None,) * 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "views.csv").write_text("film,view\\nclinic/b.png,AP\\n")
        ...     add_columns(films, folder + "/views.csv").columns
        {'view': ('', 'AP')}
    """
    told: dict[str, dict[str, str]] = {}
    for line, row in _read_csv(Path(table), required=("film",)):
        if (name := row.pop("film")) in told:
            raise ValueError(f"{table}, line {line}: it names the film {name!r} twice")
        told[name] = row
    if not told.keys() & set(dataset.names):
        raise ValueError(
            f"{table} names none of these {_films(len(dataset))}; a name is such as {_some(dataset.names, 1)}. Received: {_some(told) or 'no line'}"
        )
    columns = dict(dataset.columns)
    for column in next(iter(told.values())):
        known = columns.get(column, ("",) * len(dataset))
        columns[column] = tuple(
            told.get(name, {}).get(column) or value for name, value in zip(dataset.names, known, strict=True)
        )
    return replace(dataset, columns=columns)
