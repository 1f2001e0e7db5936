"""Images with labels, patients and sources, and the CSV files that hold them."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxrlib.config import check_labels

_COLUMNS = ("path", "label", "patient", "source", "split")
_ALIASES = {"file_name": "path"}  # in the metadata.csv of image folders on the Hub
_PER_IMAGE = ("paths", "targets", "patients", "sources", "splits", "names")

# The patient, by the naming scheme of a public collection; matched against the path below the source's folder.
PATIENT_PATTERNS = {
    "Kermany, findings": r"(?:^|/)(person\d+_(?:bacteria|virus))_\d+[^/]*$",  # person1_bacteria is not person1_virus
    "Kermany, normal": r"(?:^|/)((?:NORMAL2-)?IM-\d+)(?:-\d+)+\.(?:jpe?g|png)$",  # IM-0001-0001.dcm is anybody's
    "Kermany, Mendeley": r"(?:^|/)((?:NORMAL|BACTERIA|VIRUS)-\d{5,})-\d+\.[^/]*$",
    "ChestX-ray14": r"(?:^|/)(000\d{5})_\d{3}\.[^/]*$",
    "CheXpert": r"(?:^|/)(patient\d{5,})/study\d+/[^/]*$",
    "MIMIC-CXR": r"(?:^|/)(p\d{8})/s\d{8}/[^/]*$",
    "RSNA": r"(?:^|/)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.[^/]*$",  # one image per id
    "VinDr-CXR": r"(?:^|/)([0-9a-f]{32})\.[^/]*$",  # one image per id
}
_PATIENT = re.compile("|".join(PATIENT_PATTERNS.values()))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and what is known of them; nothing is decoded yet. Fields have one entry per image where not said.

    Args:
        paths: Where the images lie.
        targets: ndarray of shape (n,), int64, index into `labels`.
        labels: Class names, the normal class first.
        patients: Patient ids; None where unknown. Equal ids mean the same patient, whatever the source.
        sources: The collection or hospital that each image comes from.
        splits: `"train"`, `"val"`, `"test"` or another name that the data gives; None where it gives none.
        columns: Further columns of the manifests, such as age or view, by name; empty strings where unknown.
        names: Names that do not depend on the machine, `source/path below its folder`; empty for `paths`.
        notes: What was left out, one sentence each.

    Raises:
        ValueError: If lengths differ, or a target does not index the labels.

    Example:
        >>> labels, unknown = ("NORMAL", "PNEUMONIA"), (None, None)
        >>> data = Dataset(("a.png", "b.png"), np.array([0, 1]), labels, ("1", None), ("home",) * 2, unknown)
        >>> len(data), data.take([1]).paths
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
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_labels(self.labels)
        targets = np.array(self.targets, np.int64)
        targets.flags.writeable = False
        object.__setattr__(self, "names", self.names or self.paths)
        object.__setattr__(self, "targets", targets)
        lengths = {name: len(getattr(self, name)) for name in _PER_IMAGE}
        lengths |= {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) != 1:
            received = ", ".join(f"{name}: {n}" for name, n in lengths.items())
            raise ValueError(f"a Dataset needs one entry per image in every field. Received: {received}")
        if len(targets) and not (targets.min() >= 0 and targets.max() < len(self.labels)):
            received = f"targets from {targets.min()} to {targets.max()}"
            raise ValueError(f"targets must index the {len(self.labels)} labels. Received: {received}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    @property
    def patients_or_names(self) -> tuple[str, ...]:
        """The patient of each image; the image's name where the patient is unknown, so that it counts as one."""
        return tuple(patient or name for patient, name in zip(self.patients, self.names, strict=True))

    def take(self, index: ArrayLike) -> Dataset:
        """Choose images, in the given order.

        Args:
            index: Positions of shape (m,), or a mask of shape (n,).
        """
        chosen = positions(index, len(self))
        fields = {name: tuple(getattr(self, name)[i] for i in chosen) for name in _PER_IMAGE if name != "targets"}
        columns = {name: tuple(column[i] for i in chosen) for name, column in self.columns.items()}
        return replace(self, targets=self.targets[chosen], columns=columns, **fields)


def positions(index: ArrayLike, n: int) -> NDArray[np.int64]:
    """Positions of shape (m,), int64, from positions or a mask.

    Args:
        index: Positions of shape (m,), or a mask of shape (n,).
        n: How many things are indexed.
    """
    chosen: NDArray[np.int64] = np.arange(n)[np.asarray(index) if np.size(index) else np.empty(0, np.int64)]
    return chosen


def patient_of(name: str, source: str, pattern: re.Pattern[str] | None = None) -> str | None:
    """Find the patient in an image's name; None where it tells none.

    Args:
        name: The image's path below its source's folder.
        source: The source.
        pattern: Finds the patient: its first group, or the whole match; None for the public collections' schemes.

    Example:
        >>> patient_of("PNEUMONIA/person1_virus_6.jpeg", "clinic")
        'person1_virus'
    """
    match = (pattern or _PATIENT).search(name)
    if match is None:
        return None
    found = next((group for group in match.groups() if group), match.group())
    return qualified(found, name, source) if pattern else found


def qualified(patient: str, name: str, source: str) -> str:
    """Prefix a patient's id with its source, unless it holds across sources.

    Args:
        patient: The id, as a manifest gives it. One with a colon, or of a public collection, holds across sources.
        name: The image's path below its source's folder.
        source: The source.

    Example:
        >>> [qualified(patient, "a.png", "clinic") for patient in ("7", "cohort:7", ":7")]
        ['clinic:7', 'cohort:7', '7']
    """
    shared = ":" in patient or patient == patient_of(name, source)
    return patient.removeprefix(":") if shared else f"{source}:{patient}"


def read_table(file: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV file in UTF-8; cells between commas, semicolons or tabs, as spreadsheets write them.

    Args:
        file: The file.
        required: Columns that it must have.

    Yields:
        Line numbers, and the line's cells by column.

    Raises:
        ValueError: If it is not such a file, or lacks a column.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is neither a folder nor a CSV manifest in UTF-8 ({error})") from None
    header = text.partition("\n")[0].strip()
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        columns = [name.strip() for name in next(reader, [])]
        columns = [name.casefold() if name.casefold() in (*_COLUMNS, *_ALIASES) else name for name in columns]
        columns = [_ALIASES.get(name, name) for name in columns]
        if not set(required) <= set(columns) or len(set(columns)) != len(columns):
            wanted = f"a line that names its columns, {' and '.join(required)} among them, each once"
            raise ValueError(f"{file} must begin with {wanted}. Received: {header[:200]!r}")
        for cells in filter(any, reader):
            if len(cells) != len(columns):
                wanted = f"{len(columns)} cells as in the first line"
                raise ValueError(f"{file}, line {reader.line_num}: expected {wanted}. Received: {len(cells)}")
            yield reader.line_num, dict(zip(columns, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: not CSV ({error})") from None


def write_manifest(dataset: Dataset, file: str | os.PathLike[str]) -> None:
    """Write a CSV manifest that `scan` reads back as the same images.

    Args:
        dataset: The images. A path that is not UTF-8 is written with backslashes, and cannot be found again.
        file: Where to write; paths of images below its folder are written relative to it.

    Example:
        >>> import tempfile
        >>> from cxrlib.data.scan import scan
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_manifest(scan(phantom.write(folder, n=2, size=32)), folder + "/images.csv")
        ...     len(scan(folder + "/images.csv"))
        4
    """
    file = Path(os.path.abspath(file))
    part = file.with_name(f"{file.name}.part")
    with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as out:
        writer = csv.writer(out)
        writer.writerow([*_COLUMNS, *dataset.columns])
        for i, path in enumerate(dataset.paths):
            full = Path(os.path.abspath(path))
            shown = full.relative_to(file.parent).as_posix() if full.is_relative_to(file.parent) else str(full)
            source, patient = dataset.sources[i], dataset.patients[i] or ""
            if patient and qualified(patient, dataset.names[i], source) != patient:
                patient = f":{patient}"  # it holds across sources
            label, split = dataset.labels[dataset.targets[i]], dataset.splits[i] or ""
            writer.writerow([shown, label, patient, source, split, *(column[i] for column in dataset.columns.values())])
    os.replace(part, file)


def add_columns(dataset: Dataset, table: str | os.PathLike[str]) -> Dataset:
    """Add what a table says of images, such as views or patients. What it does not say stays as it was.

    Args:
        dataset: The images.
        table: A CSV file in UTF-8. Its column `image` holds names as in `Dataset.names`, `source/path below its
            folder`; the column `patient` is read as in a manifest of `scan`.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If the table has no column `image`, names an image twice, or names none of these.

    Example:
        >>> import tempfile
        >>> labels, unknown, names = ("NORMAL", "PNEUMONIA"), (None,) * 2, ("clinic/a.png", "clinic/b.png")
        >>> data = Dataset(names, np.array([0, 1]), labels, unknown, ("clinic",) * 2, unknown)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "views.csv").write_text("image,view\\nclinic/b.png,AP\\n")
        ...     add_columns(data, folder + "/views.csv").columns
        {'view': ('', 'AP')}
    """
    told: dict[str, dict[str, str]] = {}
    for line, row in read_table(Path(table), ("image",)):
        if (name := row.pop("image")) in told:
            raise ValueError(f"{table}, line {line}: it names the image {name!r} twice")
        told[name] = row
    if not told.keys() & set(dataset.names):
        what = f"names none of these {count(len(dataset), 'image')}; a name is such as {some(dataset.names, 1)}"
        raise ValueError(f"{table} {what}. Received: {some(told) or 'no line'}")
    columns, patients = dict(dataset.columns), dataset.patients
    for column in next(iter(told.values())):
        given = [told.get(name, {}).get(column, "") for name in dataset.names]
        if column == "patient":
            each = zip(given, dataset.names, dataset.sources, patients, strict=True)
            patients = tuple(qualified(new, name, source) if new else old for new, name, source, old in each)
        else:
            known = columns.get(column, ("",) * len(dataset))
            columns[column] = tuple(new or old for new, old in zip(given, known, strict=True))
    return replace(dataset, columns=columns, patients=patients)


def count(n: int, noun: str) -> str:
    """Say how many there are: `1 image`, `2 images`.

    Args:
        n: The number.
        noun: What is counted, in the singular.
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"


def some(names: Iterable[str], most: int = 5, separator: str = ", ") -> str:
    """List a few names, and say how many more there are.

    Args:
        names: The names.
        most: How many are listed.
        separator: What stands between them.

    Example:
        >>> some("abc", 2)
        'a, b and 1 more'
    """
    listed = list(names)
    return separator.join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
