"""The report: what a model's answers to some films were, what they are worth, and how it is written down."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrlib.config import SCHEMA, check_labels
from cxrlib.metrics.intervals import Estimate
from cxrlib.metrics.resampling import Floats, Ints, clusters

METRICS = ("auroc", "average_precision", "accuracy", "precision", "recall", "specificity", "f1", "npv", "brier", "ece")
WITH_REFUSALS = ("sensitivity_with_refusals_missed", "accuracy_with_refusals_wrong")


@dataclass(frozen=True)
class Row:
    """What became of one film.

    Args:
        name: Its name, unique in the report.
        truth: Its true label.
        label: The predicted label; `None` when the film was refused.
        probabilities: One per label, in the report's order, in [0, 1]; `nan` when the film was refused.
        refused: Why it was refused, in words; empty when it was not, or when nobody said why.
        patient: Whose film it is; `None` when unknown.
        source: Which collection it comes from; empty when unknown.
        groups: The subgroup it belongs to, for every column of subgroups.

    Example:
        >>> Row("a.png", "NORMAL", "NORMAL", (0.9, 0.1)).refused
        ''
    """

    name: str
    truth: str
    label: str | None
    probabilities: tuple[float, ...]
    refused: str = ""
    patient: str | None = None
    source: str = ""
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Summary:
    """The metrics of some films: of all, of one source, of a subgroup, of one label against the others.

    With two labels, the second is the positive class of every metric. With more, `precision`, `recall`, `specificity`, `f1`, `npv`, `auroc` and
    `average_precision` are means over the labels, each against the others, and `ece` is that of the most probable label.

    Args:
        n: Number of films, refused ones included.
        n_refused: Number of films refused: in no metric but the two that say so.
        n_patients: Number of patients; `None` when they are unknown, and each film counts as its own patient.
        auroc: Area under the receiver operating characteristic curve.
        average_precision: Mean precision over the positive films, in the order of their scores.
        accuracy: Part of the films with the right label.
        precision: Part of the films called positive that are (positive predictive value).
        recall: Part of the positive films called positive (sensitivity).
        specificity: Part of the negative films called negative.
        f1: Harmonic mean of precision and recall.
        npv: Part of the films called negative that are (negative predictive value).
        brier: Mean squared error of the probability; with three or more labels, summed over them and in [0, 2].
        ece: Expected calibration error: mean distance of probability and observed frequency, in 15 equally wide bins.
        sensitivity_with_refusals_missed: The recall, had every refused film been called wrongly.
        accuracy_with_refusals_wrong: The accuracy, had every refused film been called wrongly.
        confusion_matrix: ndarray of shape (k, k), int64, number of films: rows are the truth, columns the prediction.
        statements: What is undefined, left out or fragile, and why, in plain sentences.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> y, p = [0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
        >>> r = make_report(y, p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abc", sources=["here", "here", "there"])
        >>> print(r.by_source["here"].recall)
        1.000 (0.207–1.000)
    """

    n: int
    n_refused: int
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
    """The metrics of a model on a data set, overall and apart, with the prediction of every film. `make_report` makes it.

    Args:
        labels: The class names, in the order of the probabilities.
        threshold: Probability of the second label from which on it is predicted; `None` with three or more labels, where the most probable one is.
        predictions: One row per film.
        data: What the films are, in a few words; empty when nobody said.
        by_source: The same metrics for each source; empty when sources are unknown.
        by_label: With three or more labels, the metrics of each label against the others; empty with two.
        subgroups: The same metrics for each column and each of its values.
        intervals: Where the intervals come from, in words.
        seed: Of the resampling.
        n_bootstrap: Number of resamples.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b", "c"])
        >>> r.confusion_matrix.tolist(), round(r.recall.value, 2)
        ([[1, 0], [1, 1]], 0.5)
    """

    labels: tuple[str, ...]
    threshold: float | None
    predictions: tuple[Row, ...]
    data: str
    by_source: dict[str, Summary]
    by_label: dict[str, Summary]
    subgroups: dict[str, dict[str, Summary]]
    intervals: str
    seed: int
    n_bootstrap: int

    def to_json(self, *, predictions: bool = True) -> str:
        """Write the report as JSON; what is undefined becomes `null`.

        Args:
            predictions: Whether the rows of the films, which name files and patients, are written too.

        Returns:
            JSON text that `from_json` reads.

        Example:
            >>> from cxrlib.metrics.compute import make_report
            >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
            >>> Report.from_json(r.to_json()).auroc == r.auroc
            True
        """
        rows = self.predictions if predictions else ()
        return json.dumps(
            {"schema": SCHEMA, **_plain(dataclasses.replace(self, predictions=rows))},
            indent=1,
            allow_nan=False,
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote.

        Args:
            text: JSON text.

        Returns:
            The report.

        Raises:
            ValueError: If the text is no report of this schema.

        Example:
            >>> Report.from_json("{}")
            Traceback (most recent call last):
            ValueError: this is no cxrlib report of schema 1: 'schema'
        """
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            data["labels"] = check_labels(data["labels"])
            data["predictions"] = tuple(
                Row(**{**row, "probabilities": tuple(_number(p) for p in row["probabilities"])})
                for row in data["predictions"]
            )
            for name in ("by_source", "by_label"):
                data[name] = {key: Summary(**_summary_fields(value)) for key, value in data[name].items()}
            data["subgroups"] = {
                c: {key: Summary(**_summary_fields(value)) for key, value in part.items()}
                for c, part in data["subgroups"].items()
            }
            return cls(**_summary_fields(data))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"this is no cxrlib report of schema {SCHEMA}: {error}") from error

    def save(
        self,
        folder: str | Path,
        *,
        points: Mapping[str, float] | None = None,
        films: Mapping[str, NDArray[Any]] | None = None,
        heatmaps: Mapping[str, NDArray[Any]] | None = None,
        history: Mapping[str, Sequence[float]] | None = None,
    ) -> Path:
        """Write `report.json`, `predictions.csv`, `figures/` and the self-contained `report.html`.

        Args:
            folder: Where to; made when it does not exist.
            points: Thresholds by the name of their operating point, marked in the figures; the report's own is added.
            films: Some films by name, each of shape (h, w), shown as samples; `plots.pick` says which are worth showing.
            heatmaps: Heatmaps of these films by name, each of its film's shape, in [0, 1].
            history: The training history by name, one value per epoch.

        Returns:
            The folder.

        Raises:
            ImportError: If matplotlib is missing.

        Example:
            >>> from cxrlib.metrics.compute import make_report
            >>> import tempfile
            >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     sorted(p.name for p in r.save(folder).iterdir())
            ['figures', 'predictions.csv', 'report.html', 'report.json']
        """
        from cxrlib.reporting import html as html_report
        from cxrlib.reporting import plots

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(
            self.to_json(), encoding="utf-8", errors="backslashreplace"
        )  # a path that is no UTF-8 is still JSON
        _write_csv(self, folder / "predictions.csv")
        figures = plots.save(self, folder / "figures", points=points, films=films, heatmaps=heatmaps, history=history)
        (folder / "report.html").write_text(
            html_report.render(self, figures), encoding="utf-8", errors="backslashreplace"
        )
        return folder


def answered(report: Report) -> tuple[Ints, Floats, Ints]:
    """Give the films of a report that were not refused, as arrays.

    Args:
        report: A report with its predictions.

    Returns:
        Truth, (n,) int64 into the report's labels; probabilities, (n, k); and patients as `clusters` numbers them, (n,).

    Raises:
        ValueError: If the report lacks its predictions.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
        >>> answered(r)[0].tolist()
        [0, 1]
    """
    if not report.predictions:
        raise ValueError(
            "the report lacks its predictions, which curves are drawn from: make it anew, or read a report.json that holds them"
        )
    rows = [row for row in report.predictions if row.label is not None]
    truth = np.array([report.labels.index(row.truth) for row in rows], np.int64)
    probabilities = np.array([row.probabilities for row in rows], np.float64).reshape(len(rows), len(report.labels))
    return truth, probabilities, clusters([row.patient for row in rows])


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _summary_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    estimates = {
        name: Estimate(**{key: _number(x) for key, x in data[name].items()}) for name in (*METRICS, *WITH_REFUSALS)
    }
    return {
        **data,
        **estimates,
        "confusion_matrix": np.array(data["confusion_matrix"], np.int64),
        "statements": tuple(data["statements"]),
    }


def _write_csv(report: Report, path: Path) -> None:
    """One line per film: name, truth, label, a probability per label, why refused, patient, source, and the subgroups."""
    columns = sorted({column for row in report.predictions for column in row.groups})
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "name",
                "truth",
                "label",
                *(f"probability_{label}" for label in report.labels),
                "refused",
                "patient",
                "source",
                *columns,
            ]
        )
        for row in report.predictions:
            numbers = ["" if math.isnan(p) else repr(p) for p in row.probabilities]
            groups = [row.groups.get(column, "") for column in columns]
            writer.writerow(
                [row.name, row.truth, row.label or "", *numbers, row.refused, row.patient or "", row.source, *groups]
            )


def counted(n: int, thing: str) -> str:
    """Name a number of things.

    Args:
        n: How many.
        thing: What they are, in the singular.

    Returns:
        The words.

    Example:
        >>> counted(1, "film"), counted(1200, "film")
        ('1 film', '1,200 films')
    """
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
