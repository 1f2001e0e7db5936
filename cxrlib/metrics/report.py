"""The report: what a model answered, what that is worth, and how it is printed, stored and read back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlib.config import SCHEMA, check_labels
from cxrlib.metrics.calibration import BINS
from cxrlib.metrics.intervals import Estimate, Floats, Ints, clusters

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

NAMES = {  # of every metric, and what it is; with three or more labels most are means over the labels
    "auroc": ("AUROC", "Chance that a positive image scores above a negative one"),
    "average_precision": ("Average precision", "Area under the precision–recall curve; chance is the prevalence"),
    "accuracy": ("Accuracy", "Share of the images with the right label"),
    "recall": ("Sensitivity (recall)", "Share of the positive images called positive"),
    "specificity": ("Specificity", "Share of the negative images called negative"),
    "precision": ("Precision (PPV)", "Share of the images called positive that are; it moves with the prevalence"),
    "npv": ("NPV", "Share of the images called negative that are; it moves with the prevalence"),
    "f1": ("F1", "Harmonic mean of precision and sensitivity"),
    "brier": ("Brier score", "Mean squared error of the probabilities; 0 is best"),
    "ece": ("ECE", f"Expected calibration error in {BINS} bins; 0 is best"),
    "sensitivity_with_refusals_missed": ("Sensitivity, refusals missed", "If every image without an answer were wrong"),
    "accuracy_with_refusals_wrong": ("Accuracy, refusals wrong", "If every image without an answer were wrong"),
}
WITH_REFUSALS = ("sensitivity_with_refusals_missed", "accuracy_with_refusals_wrong")
METRICS = tuple(name for name in NAMES if name not in WITH_REFUSALS)
SHORT = ("auroc", "recall", "specificity", "accuracy", "ece")  # in tables of sources and subgroups


@dataclass(frozen=True)
class Row:
    """What became of one image.

    Args:
        name: Its name, unique in the report.
        truth: Its true label; perhaps one that the model does not have.
        label: The predicted label; `None` unless `status` is `"ok"`.
        probabilities: One per label, in the report's order, in [0, 1]; `nan` unless `status` is `"ok"`.
        status: `"ok"`, `"refused"` or `"unreadable"`.
        reasons: Why there is no answer, in words.
        patient: The patient; `None` when unknown.
        source: The collection it comes from; empty when unknown.
        groups: The subgroup it belongs to, for every column of subgroups.

    Example:
        >>> Row("a.png", "NORMAL", "NORMAL", (0.9, 0.1)).status
        'ok'
    """

    name: str
    truth: str
    label: str | None
    probabilities: tuple[float, ...]
    status: str = "ok"
    reasons: str = ""
    patient: str | None = None
    source: str = ""
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Other:
    """How images of a label that the model does not have were answered.

    Args:
        n: Number of images.
        n_refused: Number of images refused.
        n_unreadable: Number of images that could not be read.
        n_patients: Number of patients; `None` when unknown.
        called_positive: Share of the answered images called positive.
    """

    n: int
    n_refused: int
    n_unreadable: int
    n_patients: int | None
    called_positive: Estimate


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary:
    """The metrics of some images: of all, of one source, of a subgroup, of one label against the others.

    With two labels, the second is the positive class of every metric. With more, `precision`, `recall`, `specificity`,
    `f1`, `npv`, `auroc` and `average_precision` are means over the labels, each against the others, and `ece` is that
    of the most probable label.

    Args:
        n: Number of images, those without an answer included.
        n_refused: Number of images refused: in no metric but the two that say so.
        n_unreadable: Number of images that could not be read: likewise.
        n_patients: Number of patients; `None` when they are unknown, and each image counts as its own patient.
        auroc: Area under the receiver operating characteristic curve.
        average_precision: Mean precision over the positive images, in the order of their scores.
        accuracy: Share of the images with the right label.
        precision: Share of the images called positive that are (positive predictive value).
        recall: Share of the positive images called positive (sensitivity).
        specificity: Share of the negative images called negative.
        f1: Harmonic mean of precision and recall.
        npv: Share of the images called negative that are (negative predictive value).
        brier: Mean squared error of the probability; with three or more labels, summed over them and in [0, 2].
        ece: Expected calibration error: mean distance of probability and observed frequency, in 15 equally wide bins.
        sensitivity_with_refusals_missed: The recall if every image without an answer were called wrongly.
        accuracy_with_refusals_wrong: The accuracy if every image without an answer were called wrongly.
        confusion_matrix: ndarray of shape (k, k), int64, number of images: rows are the truth, columns the prediction.
        statements: What is undefined, left out or uncertain, in plain sentences.
    """

    n: int
    n_refused: int
    n_unreadable: int
    n_patients: int | None
    auroc: Estimate
    average_precision: Estimate
    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    specificity: Estimate
    f1: Estimate
    npv: Estimate
    brier: Estimate
    ece: Estimate
    sensitivity_with_refusals_missed: Estimate
    accuracy_with_refusals_wrong: Estimate
    confusion_matrix: Ints
    statements: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Report(Summary):
    """The metrics of a model on a data set, and the prediction of every image. Made by `make_report` and `evaluate`.

    Args:
        labels: The class names, in the order of the probabilities; the second is the positive class.
        threshold: Probability of the positive class from which on it is predicted; `None` where the most probable
            label is.
        predictions: One row per image.
        data: What the images are, in a few words; empty when not stated.
        by_source: The same metrics for each source; empty when sources are unknown.
        by_label: With three or more labels, the metrics of each label against the others; empty with two.
        by_other: For each label that the model does not have, how often such images are called positive. They are in
            no other figure.
        subgroups: The same metrics for each column and each of its values.
        intervals: Where the intervals come from, in words.
        seed: Of the resampling.
        n_bootstrap: Number of resamples.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> y, p = [0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
        >>> r = make_report(y, p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abc")
        >>> r.confusion_matrix.tolist(), str(r.recall)
        ([[1, 0], [1, 1]], '0.500 (0.095–0.905)')
    """

    labels: tuple[str, ...]
    threshold: float | None
    predictions: tuple[Row, ...]
    data: str
    by_source: dict[str, Summary]
    by_label: dict[str, Summary]
    by_other: dict[str, Other]
    subgroups: dict[str, dict[str, Summary]]
    intervals: str
    seed: int
    n_bootstrap: int

    def __str__(self) -> str:
        names = [name for name in NAMES if name in METRICS or self.n_refused or self.n_unreadable]
        blocks = [
            self.headline,
            _aligned(["", "value", "95 % interval"], [metric_cells(name, self) for name in names]),
            _aligned(
                ["", *(f"predicted {label}" for label in self.labels)],
                [[f"true {label}", *(f"{n:,}" for n in line)] for label, line in self.matrix_rows],
            ),
        ]
        for title, parts in self.parts.items():
            head = [title, "images", *(NAMES[name][0] for name in SHORT[:3])]
            rows = [[n, f"{part.n:,}", *(str(getattr(part, name)) for name in SHORT[:3])] for n, part in parts.items()]
            blocks.append(_aligned(head, rows))
        if self.by_other:
            blocks.append(
                _aligned(["Other labels", "images", "no answer", f"called {self.labels[1]}"], self.other_rows)
            )
        if self.statements:
            blocks.append("\n".join(f"- {statement}" for statement in self.statements))
        return "\n\n".join(blocks)

    @property
    def headline(self) -> str:
        """One line: the data, the numbers of images and patients, and the rule of decision."""
        patients = "" if self.n_patients is None else f" of {counted(self.n_patients, 'patient')}"
        without = [f"{n:,} {what}" for n, what in ((self.n_refused, "refused"), (self.n_unreadable, "unreadable")) if n]
        rule = "the most probable label is predicted"
        if self.threshold is not None:
            rule = f"{self.labels[1]} from a probability of {self.threshold:.3g}"
        images = ", ".join([f"{counted(self.n, 'image')}{patients}", *without])
        return " · ".join(filter(None, (self.data, " versus ".join(self.labels), images, rule)))

    @property
    def matrix_rows(self) -> list[tuple[str, list[int]]]:
        """The confusion matrix: each true label with the number of images by predicted label."""
        return list(zip(self.labels, self.confusion_matrix.tolist(), strict=True))

    @property
    def parts(self) -> dict[str, dict[str, Summary]]:
        """Labels, sources and subgroups by the title of their table, where there are several."""
        tables = {"Label": self.by_label, "Source": self.by_source if len(self.by_source) > 1 else {}}
        subgroups = {f"Subgroup by {column}": parts for column, parts in self.subgroups.items()}
        return {title: parts for title, parts in {**tables, **subgroups}.items() if parts}

    @property
    def other_rows(self) -> list[list[str]]:
        """Cells of the table of labels that the model does not have."""
        return [
            [label, f"{part.n:,}", f"{part.n_refused + part.n_unreadable:,}", str(part.called_positive)]
            for label, part in self.by_other.items()
        ]

    def to_json(self, *, predictions: bool = True) -> str:
        """Write the report as JSON; what is undefined becomes `null`.

        Args:
            predictions: Whether the rows of the images, which name files and patients, are written too.

        Returns:
            JSON text that `from_json` reads.

        Example:
            >>> from cxrlib.metrics.compute import make_report
            >>> p = [[0.9, 0.1], [0.2, 0.8]]
            >>> r = make_report([0, 1], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
            >>> Report.from_json(r.to_json()).auroc == r.auroc
            True
        """
        kept = dataclasses.replace(self, predictions=self.predictions if predictions else ())
        return json.dumps(
            {"schema": SCHEMA, **_plain(dataclasses.asdict(kept))}, indent=1, allow_nan=False, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote.

        Args:
            text: JSON text.

        Returns:
            The report.

        Raises:
            ValueError: If the text is not a report of this schema.

        Example:
            >>> Report.from_json("{}")
            Traceback (most recent call last):
            ValueError: this is not a cxrlib report of schema 2: 'schema'
        """
        try:
            data = json.loads(text)
            if (schema := data.pop("schema")) != SCHEMA:
                raise ValueError(f"it has schema {schema!r:.80}")
            data["labels"] = check_labels(data["labels"])
            data["predictions"] = tuple(_row(row) for row in data["predictions"])
            data["by_other"] = {
                name: Other(**{**part, "called_positive": _estimate(part["called_positive"])})
                for name, part in data["by_other"].items()
            }
            for parts in (data, data["subgroups"]):
                for name in ("by_source", "by_label") if parts is data else list(parts):
                    parts[name] = {key: Summary(**_fields(part)) for key, part in parts[name].items()}
            return cls(**_fields(data))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"this is not a cxrlib report of schema {SCHEMA}: {error}") from error

    def table(self) -> list[dict[str, Any]]:
        """Lay out the predictions as a table, such as `predictions.csv`.

        Returns:
            One dict per image: name, truth, label, `probability_<label>`, status, reasons, patient, source, subgroups.
        """
        columns = sorted({column for row in self.predictions for column in row.groups})
        return [
            {
                "name": row.name,
                "truth": row.truth,
                "label": row.label,
                **{f"probability_{x}": p for x, p in zip(self.labels, _plain(row.probabilities), strict=True)},
                **{name: getattr(row, name) for name in ("status", "reasons", "patient", "source")},
                **{column: row.groups.get(column, "") for column in columns},
            }
            for row in self.predictions
        ]

    def to_frame(self) -> pandas.DataFrame:
        """Return the predictions as a data frame.

        Returns:
            One line per image, with the columns of `table`.

        Raises:
            ImportError: If pandas is missing.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.table())

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Write `report.json`, `predictions.csv`, figures and `report.html`; see `cxrlib.reporting.save`.

        Args:
            folder: Where to; made when it does not exist.
            **options: As for `cxrlib.reporting.save`.

        Returns:
            The folder.
        """
        from cxrlib import reporting

        return reporting.save(self, folder, **options)


def answered(report: Report) -> tuple[Ints, Floats, Ints]:
    """Give the answered images of a report whose labels the model has, as arrays.

    Args:
        report: A report with its predictions.

    Returns:
        Targets, (n,) int64 into the report's labels; probabilities, (n, k); and patients as `clusters` numbers them,
        (n,).

    Raises:
        ValueError: If the report lacks its predictions.
    """
    if not report.predictions:
        raise ValueError("the report lacks its predictions, which curves need: read a report.json that holds them")
    rows = [row for row in report.predictions if row.label is not None and row.truth in report.labels]
    targets = np.array([report.labels.index(row.truth) for row in rows], np.int64)
    probabilities = np.array([row.probabilities for row in rows], np.float64).reshape(len(rows), len(report.labels))
    return targets, probabilities, clusters([row.patient for row in rows])


def counted(n: int, noun: str) -> str:
    """Say how many there are.

    Args:
        n: The number.
        noun: What is counted, in the singular.

    Returns:
        Number and noun.

    Example:
        >>> counted(1, "image"), counted(1200, "image")
        ('1 image', '1,200 images')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def metric_cells(name: str, part: Summary) -> list[str]:
    """Lay out a metric as cells of a table.

    Args:
        name: The metric, one of `NAMES`.
        part: Where it is taken from.

    Returns:
        Its name, value and interval.
    """
    estimate: Estimate = getattr(part, name)
    return [NAMES[name][0], estimate.number, estimate.interval]


def _aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in plain text: the first column to the left, the others to the right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _estimate(data: Mapping[str, float | None]) -> Estimate:
    return Estimate(**{key: _number(value) for key, value in data.items()})


def _row(data: Mapping[str, Any]) -> Row:
    return Row(**{**data, "probabilities": tuple(_number(p) for p in data["probabilities"])})


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Summary or a Report, read from JSON types."""
    arrays = {"confusion_matrix": np.array(data["confusion_matrix"], np.int64), "statements": tuple(data["statements"])}
    return {**data, **{name: _estimate(data[name]) for name in NAMES}, **arrays}
