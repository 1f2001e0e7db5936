"""evaluate: what a model does with films whose labels are known, through the code that users run."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrlib import Predictor, evaluate
from cxrlib.data.scan import scan
from cxrlib.evaluation import _at
from cxrlib.images import decode as images
from cxrlib.images import phantom
from cxrlib.predictor import UNREADABLE


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of eight films each."""
    return phantom.write(tmp_path_factory.mktemp("data") / "hospital", n=8, size=72)


def rows(report: Any) -> dict[str, float]:
    return {row.name: row.probabilities[1] for row in report.predictions}


def test_a_report_holds_the_predictor_s_own_answers(tiny: Path, films: Path) -> None:
    report = evaluate(tiny, films, progress=False)
    predictor = Predictor(tiny)
    assert (report.n, report.n_refused, report.threshold) == (16, 0, 0.3)
    assert report.labels == ("NORMAL", "PNEUMONIA")
    assert rows(report) == {
        name: predictor(path).probability for name, path in zip(scan(films).names, scan(films).paths, strict=True)
    }
    called = [
        int((np.array([p for n, p in rows(report).items() if truth in n]) >= 0.3).sum())
        for truth in ("NORMAL", "PNEUMONIA")
    ]
    assert report.confusion_matrix[:, 1].tolist() == called
    assert report.confusion_matrix.sum() == 16


def test_every_kind_of_model(tiny: Path, films: Path) -> None:
    wanted = rows(evaluate(tiny, films, progress=False))
    assert rows(evaluate(str(tiny), films, progress=False)) == wanted
    assert rows(evaluate(Predictor(tiny), scan(films), progress=False)) == wanted
    with pytest.raises(
        TypeError, match=r"model must be a bundle's folder, a Predictor, a keras\.Model or None\. Received: int"
    ):
        evaluate(3, films)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="there is no bundle at"):
        evaluate("nowhere", films)


def test_thresholds(tiny: Path, films: Path) -> None:
    assert evaluate(tiny, films, threshold=0.9, progress=False).threshold == 0.9
    assert evaluate(Predictor(tiny, operating_point="balanced"), films, progress=False).threshold == 0.6
    with pytest.raises(ValueError, match="threshold"):
        evaluate(tiny, films, threshold=1.5, progress=False)


def test_what_cannot_be_answered_is_counted_and_named(gated: Path, films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hospital"
    phantom.write(folder, n=3, size=72)
    Image.new("L", (90, 90)).save(folder / "NORMAL" / "blank.png")
    (folder / "PNEUMONIA" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = evaluate(gated, folder, output=tmp_path / "report", progress=False)
    assert (report.n, report.n_refused) == (8, 2)
    assert report.confusion_matrix.sum() == 6
    reasons = {row.name.rpartition("/")[2]: row.refused for row in report.predictions if row.refused}
    assert reasons["blank.png"] == "it is almost blank"
    assert reasons["damaged.png"].startswith(UNREADABLE)
    with (tmp_path / "report" / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_a_report_is_written(tiny: Path, films: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [train] extra")
    evaluate(tiny, films, output=tmp_path / "report", progress=False)
    assert {"report.json", "predictions.csv", "report.html", "figures"} <= set(os.listdir(tmp_path / "report"))
    assert any((tmp_path / "report" / "figures").iterdir())


def test_sources_splits_and_subgroups(tiny: Path, films: Path, tmp_path: Path) -> None:
    table = tmp_path / "films.csv"
    found = scan(films)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "source", "split", "sex"])
        for i, path in enumerate(found.paths):
            writer.writerow(
                [
                    path,
                    found.labels[found.targets[i]],
                    f"p{i}",
                    "ab"[i % 2],
                    "test" if i % 4 < 2 else "train",
                    "fm"[i // 2 % 2],
                ]
            )
    report = evaluate(tiny, table, split="test", progress=False)
    assert report.n == 8
    assert set(report.by_source) == {"a", "b"}
    assert "(test)" in report.data
    with pytest.raises(ValueError, match="the data has no split 'val'; it has test, train"):
        evaluate(tiny, table, split="val", progress=False)


def test_a_split_of_films_that_were_listed_before(tiny: Path, films: Path) -> None:
    whole = scan(films)
    whole = replace(whole, splits=tuple("val" if i % 4 else None for i in range(len(whole))))
    report = evaluate(tiny, whole, split="validation", progress=False)
    assert [row.name for row in report.predictions] == [name for i, name in enumerate(whole.names) if i % 4]
    assert report.data == "hospital (validation)"
    with pytest.raises(ValueError, match=r"the data has no split 'nonsense'; it has val\. Received: split='nonsense'"):
        evaluate(tiny, whole, split="nonsense", progress=False)
    with pytest.raises(ValueError, match="the data has no split 'test'; it has none at all"):
        evaluate(tiny, scan(films), split="test", progress=False)


def test_patients_are_found_when_films_are_listed(tiny: Path, films: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"a Dataset has its patients: give patient_pattern to `cxrlib\.data\.scan` instead\. Received: patient_pattern='x'",
    ):
        evaluate(tiny, scan(films), patient_pattern="x", progress=False)


def test_nothing_to_measure(tiny: Path, films: Path) -> None:
    with pytest.raises(ValueError, match="there are no films to measure on"):
        evaluate(tiny, scan(films).take(np.arange(0)), progress=False)


def test_other_labels(tiny: Path, tmp_path: Path) -> None:
    folder = phantom.write(tmp_path, n=2, size=64)
    (folder / "NORMAL").rename(folder / "HEALTHY")
    with pytest.raises(ValueError, match="HEALTHY"):
        evaluate(tiny, folder, progress=False)
    with pytest.raises(ValueError, match="the data have the labels HEALTHY, PNEUMONIA, the model NORMAL, PNEUMONIA"):
        evaluate(tiny, scan(folder, labels=("HEALTHY", "PNEUMONIA")), progress=False)


class Network:
    """As much of a `keras.Model` as is used: the mean grey level as its probability, or as two of three."""

    def __init__(self, units: int) -> None:
        self.input_shape, self.output_shape = (None, 32, 32, 1), (None, units)

    def predict_on_batch(self, x: np.ndarray) -> np.ndarray:
        p = x.mean((1, 2, 3))[:, None]
        return p if self.output_shape[1] == 1 else np.concatenate([p, 1 - p, p], 1)


def test_a_keras_model(films: Path) -> None:
    report = evaluate(Network(1), films, progress=False)  # type: ignore[arg-type]
    path = scan(films).paths[0]
    assert report.threshold == 0.5
    assert rows(report)[scan(films).names[0]] == pytest.approx(
        float(images.fit(images.read(path), 32).mean()), abs=1e-6
    )
    with pytest.raises(ValueError, match="the data have the 2 labels NORMAL, PNEUMONIA, the network tells 3 apart"):
        evaluate(Network(3), films, progress=False)  # type: ignore[arg-type]


def test_a_keras_model_and_a_damaged_film(tmp_path: Path) -> None:
    folder = phantom.write(tmp_path, n=2, size=64)
    (folder / "NORMAL" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = evaluate(Network(1), folder, progress=False)  # type: ignore[arg-type]
    assert (report.n, report.n_refused) == (5, 1)
    assert any(row.refused.startswith(UNREADABLE) for row in report.predictions)


def test_three_classes(tmp_path: Path) -> None:
    folder = phantom.write(tmp_path, n=2, size=64)
    (folder / "OTHER").mkdir()
    for i in range(2):
        phantom.save(folder / "OTHER" / f"{i}.png", 90 + i, size=64)
    report = evaluate(Network(3), folder, progress=False)  # type: ignore[arg-type]
    assert report.threshold is None
    assert report.confusion_matrix.shape == (3, 3)
    assert all(sum(row.probabilities) == pytest.approx(1) for row in report.predictions)


def test_a_heatmap_at_the_decoded_size() -> None:
    heat = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert np.array_equal(_at(heat, (4, 4)), heat)
    assert _at(heat, (2, 2)).tolist() == [[0, 3], [12, 15]]


def test_progress_is_shown_and_can_be_silent(
    tiny: Path, films: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrlib.progress._LOG_EVERY", 0.0)
    evaluate(tiny, films)
    assert "evaluate: 16/16 films" in capsys.readouterr().err
    evaluate(tiny, films, progress=False)
    assert capsys.readouterr().err == ""
