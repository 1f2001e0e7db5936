"""evaluate: a model and films with labels in, a Report out, computed through the code that users run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlib import images, plots
from cxrlib.data import Data, Dataset, scan
from cxrlib.images import ImageError
from cxrlib.metrics import Report, make_report
from cxrlib.predictor import Prediction, Predictor
from cxrlib.progress import track

if TYPE_CHECKING:
    import keras


def evaluate(
    model: str | os.PathLike[str] | Predictor | keras.Model | None,
    data: Data | Dataset,
    *,
    output: str | os.PathLike[str] | None = None,
    split: str | None = None,
    threshold: float | None = None,
    patient_pattern: str | None = None,
    progress: bool = True,
) -> Report:
    """Measure a model on films with known labels.

    Args:
        model: A bundle's folder, `hf://user/repo[@revision]`, a `Predictor` (with its operating point and gate), a `keras.Model` of `build_model` (two classes
            are called NORMAL and PNEUMONIA; no gate, no calibration), or `None` for the model that comes with cxrlib.
        data: A folder of class folders, a CSV manifest (`path,label[,patient,source,split,…]`), a list of them, or a `Dataset`. Other columns become subgroups.
        output: Folder for `report.json`, `predictions.csv`, the figures and `report.html`; `None` writes nothing.
        split: Measure only this split of the data, such as `"test"`.
        threshold: Another threshold than the model's, in [0, 1].
        patient_pattern: Regular expression that finds the patient in a film's name, see `cxrlib.data.scan`.
        progress: Whether to show a progress line.

    Returns:
        The report. Films that the gate refuses, or that cannot be read, are counted as refused, and named with the reason.

    Raises:
        FileNotFoundError: If the model or the data do not exist.
        ValueError: If the data have other labels than the model, or no films.

    Example:
        >>> import tempfile
        >>> from cxrlib import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = evaluate(Predictor(gate=False), phantom.write(folder, n=2, size=64), progress=False)
        >>> report.n, int(report.confusion_matrix.sum())
        (4, 4)
    """
    predictor = _predictor(model)
    labels = predictor.labels if predictor else _labels(model)
    films = data if isinstance(data, Dataset) else scan(data, labels=labels, patient_pattern=patient_pattern, split=split)
    if films.labels != labels:
        raise ValueError(f"the data have the labels {', '.join(films.labels)}, the model {', '.join(labels)}")
    if predictor:
        answers: Iterator[Prediction | ImageError] = predictor.stream(films.paths, errors="return")
        rows = [_row(answer, labels) for answer in track(answers, "evaluate", total=len(films), shown=progress)]
        used = predictor.threshold
    else:
        rows = list(track(_keras_rows(model, films, len(labels)), "evaluate", total=len(films), shown=progress))
        used = 0.5 if len(labels) == 2 else None
    report = make_report(
        films.targets,
        np.array([p for p, _ in rows]),
        labels=labels,
        threshold=used if threshold is None else threshold,
        names=films.names,
        patients=films.patients,
        sources=films.sources,
        groups=films.columns,
        refused=[reason for _, reason in rows],
        data=", ".join(dict.fromkeys(films.sources)) + (f" ({split})" if split else ""),
    )
    if output is not None:
        report.save(Path(output), **_samples(report, films, predictor))
    return report


def _predictor(model: Any) -> Predictor | None:
    if isinstance(model, Predictor):
        return model
    if model is None or isinstance(model, (str, os.PathLike)):
        return Predictor(model)
    if hasattr(model, "predict_on_batch"):
        return None
    raise TypeError(f"model must be a bundle's folder, a Predictor, a keras.Model or None. Received: {type(model).__name__}")


def _labels(model: Any) -> tuple[str, ...]:
    units = model.output_shape[-1]
    return ("NORMAL", "PNEUMONIA") if units == 1 else tuple(f"class {i}" for i in range(units))


def _row(answer: Prediction | ImageError, labels: tuple[str, ...]) -> tuple[list[float], str]:
    if isinstance(answer, ImageError):
        return [np.nan] * len(labels), f"unreadable: {answer}"
    return list(answer.probabilities.values()), "" if answer.accepted else "; ".join(answer.reasons)


def _keras_rows(model: Any, films: Dataset, k: int) -> Iterator[tuple[list[float], str]]:
    size = model.input_shape[1]
    for paths in _batches(films.paths, 32):
        batch: list[np.ndarray | str] = []
        for path in paths:
            try:
                batch.append(images.fit(images.read(path, model_size=size), size))
            except ImageError as error:
                batch.append(f"unreadable: {error}")
        readable = [x for x in batch if not isinstance(x, str)]
        p: Iterator[Any] = iter(np.asarray(model.predict_on_batch(np.stack(readable)), np.float64) if readable else ())
        for x in batch:
            if isinstance(x, str):
                yield [np.nan] * k, x
            else:
                row = next(p)
                yield ([1 - row[0], row[0]] if k == 2 and len(row) == 1 else (row / row.sum()).tolist()), ""


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _samples(report: Report, films: Dataset, predictor: Predictor | None) -> dict[str, Any]:
    """Some films worth showing, with their heatmaps, and the operating points: what `Report.save` draws beside the metrics."""
    if predictor is None:
        return {}
    where = dict(zip(films.names, films.paths, strict=True))
    explained = {name: predictor.explain(where[name]) for name in plots.pick(report)}
    return {
        "points": {name: point.threshold for name, point in predictor.config.operating_points.items()} or None,
        "films": {name: e.film.pixels / e.film.white for name, e in explained.items() if e.film.pixels.shape == e.heatmap.shape},
        "heatmaps": {name: e.heatmap for name, e in explained.items() if e.film.pixels.shape == e.heatmap.shape},
    }
