"""evaluate: a model and films with labels in, a Report out, computed through the code that users run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlib.data.scan import Data, Dataset, of_split, scan
from cxrlib.images import decode as images
from cxrlib.images.sources import ImageError
from cxrlib.metrics.compute import Report, make_report
from cxrlib.predictor import UNREADABLE, Predictor
from cxrlib.progress import track
from cxrlib.reporting import plots

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
        model: A bundle's folder, `hf://user/repo[@revision]`, a `Predictor` (with its operating point and gate), a `keras.Model` of `build_model` (labels as in
            the data, threshold 0.5, no gate, no calibration), or `None` for the model that comes with cxrlib.
        data: A folder of class folders, a CSV manifest (`path,label[,patient,source,split,…]`), a list of them, or a `Dataset` of `cxrlib.data.scan`. Other
            columns become subgroups.
        output: Folder for `report.json`, `predictions.csv`, the figures and `report.html`; `None` writes nothing.
        split: Measure only this split of the data, such as `"test"`.
        threshold: Another threshold than the model's, in [0, 1].
        patient_pattern: Regular expression that finds the patient in a film's name, see `cxrlib.data.scan`; not with a `Dataset`, which has its patients.
        progress: Whether to show a progress line.

    Returns:
        The report. Films that the gate refuses, or that cannot be read, are counted as refused, and named with the reason; the latter's begins with
        "unreadable".

    Raises:
        FileNotFoundError: If the model or the data do not exist.
        ValueError: If the data have other labels than the model, no films or no such split, a `Dataset` comes with a `patient_pattern`, or the threshold is no
            probability.
        TypeError: If the model is none of the kinds above.

    Example:
        >>> import tempfile
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = evaluate(Predictor(gate=False), phantom.write(folder, n=2, size=64), progress=False)
        >>> report.n, int(report.confusion_matrix.sum())
        (4, 4)
    """
    if isinstance(data, Dataset) and patient_pattern is not None:
        raise ValueError(
            f"a Dataset has its patients: give patient_pattern to `cxrlib.data.scan` instead. Received: patient_pattern={patient_pattern!r}"
        )
    predictor = _predictor(model)
    if isinstance(data, Dataset):
        films = data if split is None else data.take(of_split(data.splits, split))
    else:
        films = scan(data, labels=predictor.labels if predictor else None, patient_pattern=patient_pattern, split=split)
    if not len(films):
        raise ValueError("there are no films to measure on")
    answers = _predictor_rows(predictor, films) if predictor else _keras_rows(model, films)
    rows = list(track(answers, "evaluate", total=len(films), shown=progress))
    used = predictor.threshold if predictor else 0.5 if len(films.labels) == 2 else None
    report = make_report(
        films.targets,
        np.array([p for p, _ in rows]),
        labels=films.labels,
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
    raise TypeError(
        f"model must be a bundle's folder, a Predictor, a keras.Model or None. Received: {type(model).__name__}"
    )


def _predictor_rows(predictor: Predictor, films: Dataset) -> Iterator[tuple[list[float], str]]:
    """Probabilities and the reason for a refusal, film by film."""
    if films.labels != predictor.labels:
        raise ValueError(f"the data have the labels {', '.join(films.labels)}, the model {', '.join(predictor.labels)}")
    for answer in predictor.stream(films.paths, errors="return"):
        if isinstance(answer, ImageError):
            yield [np.nan] * len(films.labels), f"{UNREADABLE}{answer}"
        else:
            yield list(answer.probabilities.values()), "" if answer.accepted else "; ".join(answer.reasons)


def _keras_rows(model: Any, films: Dataset) -> Iterator[tuple[list[float], str]]:
    size, units, k = model.input_shape[1], model.output_shape[-1], len(films.labels)
    if max(units, 2) != k:
        raise ValueError(
            f"the data have the {k} labels {', '.join(films.labels)}, the network tells {max(units, 2)} apart"
        )
    for path in films.paths:
        try:
            film = images.fit(images.read(path, model_size=size), size)
        except ImageError as error:
            yield [np.nan] * k, f"{UNREADABLE}{error}"
            continue
        p = np.asarray(model.predict_on_batch(film[None]), np.float64)[0]  # (units,)
        yield ([1 - p[0], p[0]] if units == 1 else (p / p.sum()).tolist()), ""


def _samples(report: Report, films: Dataset, predictor: Predictor | None) -> dict[str, Any]:
    """Some films worth showing, with their heatmaps, and the operating points: what `Report.save` draws beside the metrics."""
    if predictor is None:
        return {}
    where = dict(zip(films.names, films.paths, strict=True))
    explained = {name: predictor.explain(where[name]) for name in plots.pick(report)}
    return {
        "points": {name: point.threshold for name, point in predictor.config.operating_points.items()} or None,
        "films": {name: e.film.pixels / e.film.white for name, e in explained.items()},
        "heatmaps": {name: _at(e.heatmap, e.film.pixels.shape) for name, e in explained.items()},
    }


def _at(heatmap: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A heatmap at the size at which its film was decoded, which is smaller than the film's own for very large JPEGs."""
    rows, columns = (
        np.linspace(0, full - 1, small).round().astype(int) for full, small in zip(heatmap.shape, shape, strict=True)
    )
    seen: np.ndarray = heatmap[np.ix_(rows, columns)]
    return seen
