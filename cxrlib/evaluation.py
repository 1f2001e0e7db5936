"""evaluate: a model and images with labels in, a Report out, computed through the code that users run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cxrlib import reporting
from cxrlib.data.cache import digest_of
from cxrlib.data.scan import Data, Dataset, of_split, scan
from cxrlib.images import decode
from cxrlib.images.sources import ImageError, bytes_of
from cxrlib.metrics.compute import make_report
from cxrlib.metrics.report import Report
from cxrlib.predictor import Predictor
from cxrlib.reporting import samples
from cxrlib.runtime.prediction import Prediction

if TYPE_CHECKING:
    import keras


def evaluate(
    model: str | os.PathLike[str] | Predictor | keras.Model | None,
    data: Data | Dataset,
    *,
    split: str | None = None,
    other: Sequence[str] = (),
    threshold: float | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Report:
    """Measure a model on images with known labels.

    Args:
        model: A bundle's folder, `hf://user/repo[@revision]`, a `Predictor` (with its operating point and gate), a
            `keras.Model` of `build_model` (labels as in the data, threshold 0.5, no gate, no calibration), or `None`
            for the model that comes with cxrlib.
        data: A folder of class folders, a CSV manifest, a list of them, or a `Dataset`; see `cxrlib.data.scan.scan`.
            Other columns of a manifest become subgroups.
        split: Measure this split of the data. `None` is `"test"` where there is one, and all images where there is not.
        other: Labels that the data has and the model does not: how often such images are called positive is reported
            apart, in `Report.by_other`.
        threshold: Another threshold than the model's, in [0, 1].
        output: Folder for `report.json`, `predictions.csv`, the figures and `report.html`; `None` writes nothing.
        progress: Whether to show a progress bar.

    Returns:
        The report. Images that the gate refuses, or that cannot be read, are counted, with the reason.

    Raises:
        FileNotFoundError: If the model or the data do not exist.
        ValueError: If the data has other labels than the model and `other`, no images or no such split, or the
            threshold is not in [0, 1].
        TypeError: If the model is none of the kinds above.

    Example:
        >>> import tempfile
        >>> from cxrlib.images import phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = evaluate(Predictor(gate=False), phantom.write(folder, n=2, size=64), progress=False)
        >>> report.n, int(report.confusion_matrix.sum())
        (4, 4)
    """
    if isinstance(other, str):
        raise ValueError(f"other must be a list of labels. Received: other={other!r}")
    predictor = _predictor(model)
    draw = output is not None and reporting.can_draw()  # said before the work is done
    dataset = data
    if not isinstance(dataset, Dataset):
        dataset = scan(dataset, labels=(*predictor.labels, *other) if predictor else None)
    dataset, split, remarks = _of_split(dataset, split)
    if not len(dataset):
        raise ValueError("there are no images to measure on")
    labels = tuple(label for label in dataset.labels if label not in other)
    _check_labels(labels, predictor or model)

    answers = predictor.stream(dataset.paths, errors="return") if predictor else _keras_answers(model, dataset, labels)
    predictions = list(tqdm(answers, "evaluate", len(dataset), unit=" images", disable=None if progress else True))
    used = predictor.threshold if predictor else 0.5 if len(labels) == 2 else None
    truths = [dataset.labels[target] for target in dataset.targets]
    report = make_report(
        np.array([labels.index(truth) if truth in labels else 0 for truth in truths]),
        np.array([list(p.probabilities.values()) for p in predictions]),
        labels=labels,
        threshold=used if threshold is None else threshold,
        names=dataset.names,
        patients=dataset.patients,
        sources=dataset.sources,
        groups=dataset.columns,
        other=[None if truth in labels else truth for truth in truths],
        status=[p.status for p in predictions],
        reasons=["" if p.status == "ok" else "; ".join(p.reasons) for p in predictions],
        data=", ".join(dict.fromkeys(dataset.sources)) + (f" ({split})" if split else ""),
    )
    absent = tuple(f"No image is labelled {label}." for label in other if label not in truths)
    seen = _seen(predictor, dataset) if predictor else ()
    report = dataclasses.replace(report, statements=(*seen, *remarks, *absent, *report.statements))
    if output is not None:
        report.save(os.fspath(output), **(_samples(report, dataset, predictor) if draw and predictor else {}))
    return report


def _of_split(dataset: Dataset, split: str | None) -> tuple[Dataset, str, tuple[str, ...]]:
    """The images of a split, its name, and what is to be said: by default of the test split, where there is one."""
    splits = sorted({name for name in dataset.splits if name})
    if split is None and "test" not in splits:
        pooled = f"The splits {' and '.join(splits)} are measured together: the data has no test split."
        return dataset, "", (pooled,) if len(splits) > 1 else ()
    chosen = dataset.take(of_split(dataset.splits, split or "test"))
    rest = f"Only the test split was measured; {len(dataset) - len(chosen):,} other images were left out."
    return chosen, split or "test", (rest,) if split is None and len(chosen) < len(dataset) else ()


def _seen(predictor: Predictor, dataset: Dataset) -> tuple[str, ...]:
    """What is to be said where the model knows some of the images."""
    seen = predictor.config.seen or ""
    known = {seen[i : i + 8] for i in range(0, len(seen), 8)}
    n = sum(os.path.isfile(path) and digest_of(bytes_of(path))[:8] in known for path in dataset.paths) if known else 0
    if not n:
        return ()
    return (f"The model was trained or calibrated on {n:,} of these images: the figures flatter it.",)


def _check_labels(labels: tuple[str, ...], model: Any) -> None:
    wanted, known = max(getattr(model, "output_shape", (0,))[-1], 2), getattr(model, "labels", None)
    if labels != (known or labels) or (known is None and len(labels) != wanted):
        has = f"the labels {', '.join(known)}" if known else f"{wanted} outputs"
        advice = "name the labels that only the data has with other=(…)"
        raise ValueError(f"the data has the labels {', '.join(labels)}, the model has {has}: {advice}")


def _predictor(model: Any) -> Predictor | None:
    if isinstance(model, Predictor):
        return model
    if model is None or isinstance(model, (str, os.PathLike)):
        return Predictor(model)
    if hasattr(model, "predict_on_batch"):
        return None
    kind = type(model).__name__
    raise TypeError(f"model must be a bundle's folder, a Predictor, a keras.Model or None. Received: {kind}")


def _keras_answers(model: Any, dataset: Dataset, labels: tuple[str, ...]) -> Iterator[Prediction]:
    size = model.input_shape[1]
    for path in dataset.paths:
        try:
            image = decode.fit(decode.read(path, model_size=size), size)
        except ImageError as error:
            yield Prediction.unreadable(path, str(error), labels, None)
            continue
        p = np.asarray(model.predict_on_batch(image[None]), np.float64)[0]  # (units,)
        p = np.array([1 - p[0], p[0]]) if len(p) == 1 else p / p.sum()
        best = labels[int(p.argmax())]
        yield Prediction(best, float(p.max()), dict(zip(labels, p.tolist(), strict=True)), None, "ok", (), path)


def _samples(report: Report, dataset: Dataset, predictor: Predictor) -> dict[str, Any]:
    """Some images worth showing, with their heatmaps, and the operating points, for `reporting.save`."""
    where = dict(zip(dataset.names, dataset.paths, strict=True))
    explained = {name: predictor.explain(where[name]) for name in samples.pick(report)}
    return {
        "points": {name: point.threshold for name, point in predictor.config.operating_points.items()} or None,
        "images": {name: e.image.pixels / e.image.white for name, e in explained.items()},
        "heatmaps": {name: _at(e.heatmap, e.image.pixels.shape) for name, e in explained.items()},
    }


def _at(heatmap: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A heatmap at the size at which its image was decoded, which is smaller than its own for very large JPEGs."""
    sides = zip(heatmap.shape, shape, strict=True)
    rows, columns = (np.linspace(0, full - 1, small).round().astype(int) for full, small in sides)
    seen: np.ndarray = heatmap[np.ix_(rows, columns)]
    return seen
