"""evaluate: what a model does with images whose labels are known, through the code that users run."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrlib import Predictor, evaluate
from cxrlib.data.scan import scan
from cxrlib.evaluation import _at
from cxrlib.images import decode, phantom


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of eight images each."""
    return phantom.write(tmp_path_factory.mktemp("data") / "hospital", n=8, size=72)


def rows(report: Any) -> dict[str, float]:
    return {row.name: row.probabilities[1] for row in report.predictions}


def test_a_report_holds_the_predictor_s_own_answers(tiny: Path, images: Path) -> None:
    report = evaluate(tiny, images, progress=False)
    predictor = Predictor(tiny)
    assert (report.n, report.n_refused, report.threshold) == (16, 0, 0.3)
    assert report.labels == ("NORMAL", "PNEUMONIA")
    assert rows(report) == {
        name: predictor(path).probability for name, path in zip(scan(images).names, scan(images).paths, strict=True)
    }
    called = [
        int((np.array([p for n, p in rows(report).items() if truth in n]) >= 0.3).sum())
        for truth in ("NORMAL", "PNEUMONIA")
    ]
    assert report.confusion_matrix[:, 1].tolist() == called
    assert report.confusion_matrix.sum() == 16


def test_every_kind_of_model(tiny: Path, images: Path) -> None:
    wanted = rows(evaluate(tiny, images, progress=False))
    assert rows(evaluate(str(tiny), images, progress=False)) == wanted
    assert rows(evaluate(Predictor(tiny), scan(images), progress=False)) == wanted
    with pytest.raises(
        TypeError, match=r"model must be a bundle's folder, a Predictor, a keras\.Model or None\. Received: int"
    ):
        evaluate(3, images)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="there is no bundle at"):
        evaluate("nowhere", images)


def test_thresholds(tiny: Path, images: Path) -> None:
    assert evaluate(tiny, images, threshold=0.9, progress=False).threshold == 0.9
    assert evaluate(Predictor(tiny, operating_point="balanced"), images, progress=False).threshold == 0.6
    with pytest.raises(ValueError, match="threshold"):
        evaluate(tiny, images, threshold=1.5, progress=False)


def test_what_cannot_be_answered_is_counted_and_named(gated: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hospital"
    phantom.write(folder, n=3, size=72)
    Image.new("L", (90, 90)).save(folder / "NORMAL" / "blank.png")
    (folder / "PNEUMONIA" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = evaluate(gated, folder, output=tmp_path / "report", progress=False)
    assert (report.n, report.n_refused, report.n_unreadable) == (8, 1, 1)
    assert report.confusion_matrix.sum() == 6
    found = {row.name.rpartition("/")[2]: row for row in report.predictions if row.status != "ok"}
    assert (found["blank.png"].status, found["blank.png"].reasons) == ("refused", "it is almost blank")
    assert found["damaged.png"].status == "unreadable"
    assert "damaged.png" in found["damaged.png"].reasons
    with (tmp_path / "report" / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_images_that_the_model_has_seen_are_counted(trained: Any, phantoms: Path, tmp_path: Path) -> None:
    statement = "The model was trained or calibrated on {} of these images: the figures flatter it."
    found = evaluate(trained.bundle, phantoms, progress=False)
    assert statement.format(found.n) in found.statements
    mixed = phantom.write(tmp_path / "mixed", n=3, seed=900, size=64)
    known = sorted((phantoms / "NORMAL").iterdir())[:2]
    for i, path in enumerate(known):  # under other names
        shutil.copy(path, mixed / "NORMAL" / f"renamed{i}.png")
    assert statement.format(2) in evaluate(trained.bundle, mixed, progress=False).statements
    fresh = phantom.write(tmp_path / "fresh", n=3, seed=950, size=64)
    assert not any("flatter" in text for text in evaluate(trained.bundle, fresh, progress=False).statements)
    assert not any("flatter" in text for text in trained.report.statements), "its own validation says so otherwise"


def test_a_report_is_written(tiny: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [train] extra")
    evaluate(tiny, images, output=tmp_path / "report", progress=False)
    assert {"report.json", "predictions.csv", "report.html", "figures"} <= set(os.listdir(tmp_path / "report"))
    assert any((tmp_path / "report" / "figures").iterdir())


def test_sources_splits_and_subgroups(tiny: Path, images: Path, tmp_path: Path) -> None:
    table = tmp_path / "images.csv"
    found = scan(images)
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


def test_a_split_of_images_that_were_listed_before(tiny: Path, images: Path) -> None:
    whole = scan(images)
    whole = replace(whole, splits=tuple("val" if i % 4 else None for i in range(len(whole))))
    report = evaluate(tiny, whole, split="validation", progress=False)
    assert [row.name for row in report.predictions] == [name for i, name in enumerate(whole.names) if i % 4]
    assert report.data == "hospital (validation)"
    with pytest.raises(ValueError, match=r"the data has no split 'nonsense'; it has val\. Received: split='nonsense'"):
        evaluate(tiny, whole, split="nonsense", progress=False)
    with pytest.raises(ValueError, match="the data has no split 'test'; it has none at all"):
        evaluate(tiny, scan(images), split="test", progress=False)


def test_the_test_split_is_the_default(tiny: Path, images: Path) -> None:
    whole = scan(images)
    split = replace(whole, splits=tuple("test" if i % 4 else "train" for i in range(len(whole))))
    report = evaluate(tiny, split, progress=False)
    assert (report.n, report.data) == (12, "hospital (test)")
    assert report.statements[0] == "Only the test split was measured; 4 other images were left out."
    assert evaluate(tiny, split, split="train", progress=False).n == 4
    only = evaluate(tiny, split.take(np.array(split.splits) == "test"), progress=False)
    assert (only.n, only.data) == (12, "hospital (test)")
    assert not any("split" in statement for statement in only.statements)
    without = replace(whole, splits=tuple("val" if i % 4 else "train" for i in range(len(whole))))
    report = evaluate(tiny, without, progress=False)
    assert (report.n, report.data) == (16, "hospital")
    assert report.statements[:1] == ("The splits train and val are measured together: the data has no test split.",)


@pytest.mark.parametrize("listed", [False, True])
def test_labels_that_the_model_does_not_have(tiny: Path, tmp_path: Path, listed: bool) -> None:
    folder = phantom.write(tmp_path, n=4, size=72)
    (folder / "TB").mkdir()
    for i in range(3):
        phantom.save(folder / "TB" / f"{i}.png", 90 + i, size=72, opacity=True)
    data = scan(folder, labels=("NORMAL", "TB", "PNEUMONIA")) if listed else folder
    report = evaluate(tiny, data, other=["TB"], progress=False)
    predictor = Predictor(tiny)
    called = [predictor(folder / "TB" / f"{i}.png").label == "PNEUMONIA" for i in range(3)]
    assert (report.n, report.by_other["TB"].n) == (8, 3)
    assert report.by_other["TB"].called_positive.value == pytest.approx(np.mean(called))
    assert [row.truth for row in report.predictions].count("TB") == 3
    assert report.confusion_matrix.sum() == 8
    absent = evaluate(tiny, scan(folder, labels=("NORMAL", "PNEUMONIA", "TB", "EFFUSION")), other=["TB", "EFFUSION"])
    assert "No image is labelled EFFUSION." in absent.statements
    assert list(absent.by_other) == ["TB"]
    with pytest.raises(ValueError, match="TB"):
        evaluate(tiny, data, progress=False)
    with pytest.raises(ValueError, match=r"other must be a list of labels\. Received: other='TB'"):
        evaluate(tiny, data, other="TB", progress=False)


def test_without_matplotlib_the_report_has_no_figures(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrlib import reporting

    find = reporting.importlib.util.find_spec
    monkeypatch.setattr(
        reporting.importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    with pytest.warns(UserWarning, match=r'figures are left out: they need matplotlib, pip install "cxrlib\[train\]"'):
        evaluate(tiny, images, output=tmp_path / "report", progress=False)
    assert set(os.listdir(tmp_path / "report")) == {"report.json", "predictions.csv", "report.html"}
    assert "matplotlib is not installed" in (tmp_path / "report" / "report.html").read_text("utf-8")


def test_nothing_to_measure(tiny: Path, images: Path) -> None:
    with pytest.raises(ValueError, match="there are no images to measure on"):
        evaluate(tiny, scan(images).take(np.arange(0)), progress=False)


def test_other_labels(tiny: Path, tmp_path: Path) -> None:
    folder = phantom.write(tmp_path, n=2, size=64)
    (folder / "NORMAL").rename(folder / "CLEAR")
    with pytest.raises(ValueError, match="CLEAR"):
        evaluate(tiny, folder, progress=False)
    with pytest.raises(
        ValueError,
        match=r"has the labels CLEAR, PNEUMONIA, the model has the labels NORMAL, PNEUMONIA: name the",
    ):
        evaluate(tiny, scan(folder, labels=("CLEAR", "PNEUMONIA")), progress=False)


class Network:
    """As much of a `keras.Model` as is used: the mean grey level as its probability, or as two of three."""

    def __init__(self, units: int) -> None:
        self.input_shape, self.output_shape = (None, 32, 32, 1), (None, units)

    def predict_on_batch(self, x: np.ndarray) -> np.ndarray:
        p = x.mean((1, 2, 3))[:, None]
        return p if self.output_shape[1] == 1 else np.concatenate([p, 1 - p, p], 1)


def test_a_keras_model(images: Path) -> None:
    report = evaluate(Network(1), images, progress=False)  # type: ignore[arg-type]
    path = scan(images).paths[0]
    assert report.threshold == 0.5
    assert rows(report)[scan(images).names[0]] == pytest.approx(
        float(decode.fit(decode.read(path), 32).mean()), abs=1e-6
    )
    with pytest.raises(ValueError, match="the data has the labels NORMAL, PNEUMONIA, the model has 3 outputs"):
        evaluate(Network(3), images, progress=False)  # type: ignore[arg-type]


def test_a_keras_model_and_a_damaged_image(tmp_path: Path) -> None:
    folder = phantom.write(tmp_path, n=2, size=64)
    (folder / "NORMAL" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = evaluate(Network(1), folder, progress=False)  # type: ignore[arg-type]
    assert (report.n, report.n_refused, report.n_unreadable) == (5, 0, 1)
    assert [row.status for row in report.predictions].count("unreadable") == 1


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


def test_progress_is_shown_on_a_terminal_and_can_be_silent(
    tiny: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    evaluate(tiny, images)
    assert "evaluate: 100%" in capsys.readouterr().err
    evaluate(tiny, images, progress=False)
    assert capsys.readouterr().err == ""
