"""Figures: every text drawn lies inside the picture and on no other text; values drawn are those of the report."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cxrlib.metrics.compute import make_report
from cxrlib.metrics.report import Report
from cxrlib.reporting import plots, samples
from cxrlib.reporting.style import wrap

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from matplotlib.text import Text

LONG = (
    "NORMAL",
    "Bacterial pneumonia with effusion",
    "VIRAL_PNEUMONIA_SUSPECTED",
    "Pulmonary tuberculosis/post-primary",
)
HISTORY = {
    "loss": [0.5, 0.4, 0.3, 0.2],
    "val_loss": [0.45, 0.4, 0.35, 0.3],
    "accuracy": [0.7, 0.8, 0.9, 0.95],
    "val_accuracy": [0.7, 0.75, 0.8, 0.85],
    "auroc": [0.9, 0.92, 0.95, 0.99],
    "val_auroc": [0.9, 0.91, 0.95, 0.97],
}


def report(
    k: int = 2,
    *,
    n: int = 300,
    separation: float = 3.5,
    seed: int = 0,
    labels: tuple[str, ...] | None = None,
    **options: Any,
) -> Report:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    z = rng.normal(size=(n, k)) + separation * np.eye(k)[y]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = labels or (("NORMAL", "PNEUMONIA") if k == 2 else LONG[:k])
    options = {
        "names": [f"folder/person{i}_bacteria_{i}_of_many_images.jpeg" for i in range(n)],
        "n_bootstrap": 100,
        **options,
    }
    return make_report(y, p, labels=labels, threshold=0.4 if k == 2 else None, **options)


def rich(k: int = 2) -> Report:
    return report(
        k,
        sources=["Guangzhou paediatric hospital, outpatients" if i % 3 else "NIH" for i in range(300)],
        groups={"age": [str(i % 80) for i in range(300)], "view": ["AP" if i % 2 else "PA" for i in range(300)]},
    )


def pixels(r: Report, count: int = 8) -> tuple[dict[str, Any], dict[str, Any]]:
    names = samples.pick(r, count=count)
    shown = {
        name: np.random.default_rng(i).integers(0, 255, (60 + 10 * (i % 3), 80)).astype(np.uint8)
        for i, name in enumerate(names)
    }
    return shown, {name: np.linspace(0, 1, image.size).reshape(image.shape) for name, image in shown.items()}


FIGURES: dict[str, Callable[[int], Figure]] = {
    "confusion_matrix": lambda k: plots.confusion_matrix(rich(k)),
    "confusion_matrix, long names": lambda k: plots.confusion_matrix(
        report(k, labels=("Nothing of note whatsoever", *LONG[1:k]))
    ),
    "roc": lambda k: plots.roc(
        report(k), {"balanced": 0.5, "screening for the tuberculosis programme": 0.2} if k == 2 else None
    ),
    "roc of a poor model": lambda k: plots.roc(report(k, separation=0.7)),
    "roc, long names": lambda k: plots.roc(report(k, labels=("Nothing of note whatsoever", *LONG[1:k]))),
    "precision_recall": lambda k: plots.precision_recall(
        report(k), {"balanced": 0.5, "screening": 0.2} if k == 2 else None
    ),
    "precision_recall of a poor model": lambda k: plots.precision_recall(report(k, separation=0.7)),
    "reliability_diagram": lambda k: plots.reliability_diagram(report(k)),
    "reliability_diagram, long names": lambda k: plots.reliability_diagram(
        report(k, labels=(LONG[0], LONG[3], *LONG[1:3])[:k])
    ),
    "decision_curve": lambda k: plots.decision_curve(
        report(k, labels=("Nothing of note whatsoever", *LONG[1:k])), {"balanced": 0.5, "screening": 0.2}
    ),
    "groups": lambda k: plots.groups(rich(k)),
    "training_history": lambda k: plots.training_history(HISTORY),
    "samples": lambda k: samples.draw(r := report(k, separation=1), *pixels(r)),
    "samples without heatmaps": lambda k: samples.draw(r := report(k, separation=1), pixels(r, 5)[0]),
}


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is written when the figure is drawn as it is saved, and where, in pixels."""
    seen: list[Text] = []
    draw = Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, renderer: (seen.append(self), draw(self, renderer))[1])
    figure.canvas.draw()
    monkeypatch.undo()
    return [
        (text.get_text(), text.get_window_extent()) for text in seen if text.get_visible() and text.get_text().strip()
    ]


@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_on_another_or_cut_off(name: str, labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = FIGURES[name](labels)
    FigureCanvasAgg(figure)
    texts = drawn_texts(figure, monkeypatch)
    assert len(texts) > 3
    # The picture is saved with a tight box, so that only the sides of neighbouring texts and a runaway width can hurt.
    for i, (text, box) in enumerate(texts):
        assert -0.05 < box.x0 / figure.bbox.width < box.x1 / figure.bbox.width < 1.05, text
        for other, its in texts[:i]:
            across = min(box.x1, its.x1) - max(box.x0, its.x0)
            down = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert min(across, down) < 1.5, f"{text!r} lies on {other!r}"


def test_confusion_matrix_shows_counts_and_rates() -> None:
    r = make_report(
        [0, 0, 0, 1],
        [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]],
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names="abcd",
        n_bootstrap=100,
    )
    axes = plots.confusion_matrix(r).axes[0]
    assert [t.get_text() for t in axes.texts] == ["2\n66.7 %", "1\n33.3 %", "0\n0.0 %", "1\n100.0 %"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["NORMAL\n(3)", "PNEUMONIA\n(1)"]
    assert axes.get_title("left") == "4 images\nThreshold 0.5; percentages are of each row"


def test_confusion_matrix_counts_refused_images_and_empty_rows() -> None:
    r = make_report(
        [0, 1], [[0.9, 0.1], [math.nan] * 2], labels=("NORMAL", "PNEUMONIA"), threshold=0.5, names="ab", n_bootstrap=100
    )
    axes = plots.confusion_matrix(r).axes[0]
    assert [t.get_text() for t in axes.texts][2:] == ["0\nno images"] * 2
    assert axes.get_title("left").startswith("2 images, 1 without an answer not shown")


def test_operating_points_lie_on_the_curve() -> None:
    r = report()
    axes = plots.roc(r, {"balanced": 0.5, "own": 0.4}).axes[0]
    marks = {line.get_label(): line.get_xydata()[0] for line in axes.lines if line.get_marker() not in ("None", "")}
    labels = list(marks)
    assert len(labels) == 2
    assert labels[1] == f"own (0.4): sens. {r.recall.value:.3f}, spec. {r.specificity.value:.3f}"
    assert marks[labels[1]] == pytest.approx([1 - r.specificity.value, r.recall.value])
    curve = next(line.get_xydata() for line in axes.lines if "AUROC" in str(line.get_label()))
    for point in marks.values():
        assert np.abs(curve - point).sum(1).min() < 1e-9
    assert str(r.auroc) in next(str(line.get_label()) for line in axes.lines if "AUROC" in str(line.get_label()))


def test_operating_points_of_precision_and_several_labels() -> None:
    r = report()
    marks = [str(line.get_label()) for line in plots.precision_recall(r, {"screening": 0.2}).axes[0].lines]
    assert any(mark.startswith("screening (0.2): recall") for mark in marks)
    assert f"Threshold (0.4): recall {r.recall.value:.3f}, precision {r.precision.value:.3f}" in marks
    four = report(4)
    part = four.by_label["NORMAL"]
    assert f"NORMAL: sens. {part.recall.value:.3f}, spec. {part.specificity.value:.3f}" in [
        str(line.get_label()) for line in plots.roc(four).axes[0].lines
    ]


def test_lines_can_be_told_apart_without_colour() -> None:
    lines = [line for line in plots.roc(report(4)).axes[0].lines if "AUROC" in str(line.get_label())]
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in lines}) == 4
    assert len({line.get_color() for line in lines}) == 4


def test_the_corner_is_enlarged_only_for_good_models() -> None:
    assert len(plots.roc(report()).axes[0].child_axes) == 1
    assert len(plots.roc(report(separation=0.7)).axes[0].child_axes) == 0


def test_operating_points_on_the_border_are_whole_and_none_leaves_the_enlargement() -> None:
    for axes in (plots.roc(report(separation=20)).axes[0], plots.precision_recall(report(separation=20)).axes[0]):
        marks = [line for a in (axes, *axes.child_axes) for line in a.lines if line.get_marker() == "o"]
        assert [line.get_clip_on() for line in marks] == [False, False]
    axes = plots.roc(report(separation=2.5), {"all but the surest": 0.001}).axes[0]
    marked, enlarged = ({line.get_marker() for line in a.lines} - {"None"} for a in (axes, *axes.child_axes))
    assert (marked, enlarged) == ({"o", "s"}, {"s"})


@pytest.mark.parametrize("draw", [plots.roc, plots.precision_recall])
def test_one_class_is_said_to_be_undefined(draw: Callable[[Report], Figure]) -> None:
    r = make_report(
        [1, 1], [[0.2, 0.8], [0.3, 0.7]], labels=("NORMAL", "PNEUMONIA"), threshold=0.5, names="ab", n_bootstrap=100
    )
    axes = draw(r).axes[0]
    assert axes.texts[0].get_text() == "Undefined: all images\nare of one class"
    assert not axes.child_axes  # nothing lies over it


def test_the_legend_of_the_reliability_diagram_lists_what_is_drawn() -> None:
    few, many = "Observed in fewer than 10 images", "Observed, with 95 % interval"
    for r, names in ((report(n=5), [few]), (report(separation=20), [many]), (report(), [many, few])):
        figure = plots.reliability_diagram(r)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Perfect calibration", *names]
        assert not any(
            text.get_text() for text in figure.axes[1].get_yticklabels(minor=True)
        )  # no 2 × 10⁰ among few images


def test_a_single_image_and_what_is_undefined_are_worded() -> None:
    r = report(n=3, sources=["a", "a", "b"])
    axes = plots.groups(r).axes[0]
    assert [label.get_text().split("\n")[1].split(",")[0] for label in axes.get_yticklabels()] == [
        "3 images",
        "2 images",
        "1 image",
    ]
    undefined = [i for i, part in enumerate((r, *r.by_source.values())) if math.isnan(part.auroc.value)]
    assert 2 in undefined
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("undefined", i) for i in undefined]
    assert plots.confusion_matrix(report(n=1)).axes[0].get_title("left").startswith("1 image\n")


def test_acting_on_normal_images_shows_its_harm() -> None:
    axes = plots.decision_curve(
        make_report([0] * 20, [[0.9, 0.1]] * 20, labels=("NORMAL", "PNEUMONIA"), threshold=0.5, names=range(20))
    ).axes[0]
    assert all((line.get_ydata() >= axes.get_ylim()[0]).sum() > 1 for line in axes.lines[:2])


def test_save_draws_what_there_is(tmp_path: Any) -> None:
    r = rich()
    shown, heat = pixels(r, 2)
    paths = plots.save(r, tmp_path / "figures", points={"balanced": 0.5}, images=shown, heatmaps=heat, history=HISTORY)
    assert list(paths) == [
        "confusion_matrix",
        "roc",
        "precision_recall",
        "reliability",
        "decision_curve",
        "groups",
        "samples",
        "history",
    ]
    for name, path in paths.items():
        assert path == tmp_path / "figures" / f"{name}.png"
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(plots.save(report(n=20), tmp_path / "few")) == list(paths)[:5]


@pytest.mark.parametrize("nothing", [True, False])
def test_degenerate_reports_are_drawn(nothing: bool, tmp_path: Any) -> None:
    p = np.full((3, 2), np.nan) if nothing else np.array([[0.5, 0.5]] * 3)
    r = make_report(
        [1, 1, 1],
        p,
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names="abc",
        sources=["x", "x", "y"],
        n_bootstrap=100,
    )
    assert len(plots.save(r, tmp_path)) == 6


def test_pyplot_and_global_settings_are_left_alone() -> None:
    import sys

    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.decision_curve(report(n=30))
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_pick_takes_both_kinds() -> None:
    r = report(separation=1)
    by_name = {row.name: row for row in r.predictions}
    picked = [by_name[name] for name in samples.pick(r)]
    wrong = [row for row in picked if row.label != row.truth]
    assert len(picked) == 8
    assert len(wrong) == 4
    assert picked[:4] == wrong
    assert max(wrong[0].probabilities) == max(max(row.probabilities) for row in r.predictions if row.label != row.truth)
    assert len({row.name for row in picked}) == 8
    right = [max(row.probabilities) for row in picked[4:]]
    assert right == sorted(right, reverse=True)
    perfect = make_report(
        [0, 1], [[0.9, 0.1], [0.1, 0.9]], labels=("NORMAL", "PNEUMONIA"), threshold=0.5, names="ab", n_bootstrap=100
    )
    assert samples.pick(perfect) == ["a", "b"]
    assert samples.pick(perfect, count=1) == ["a"]
    refused = make_report(
        [0], [[math.nan] * 2], labels=("NORMAL", "PNEUMONIA"), threshold=0.5, names="a", n_bootstrap=100
    )
    assert samples.pick(refused) == []


def test_samples_show_right_wrong_and_refused() -> None:
    p = [[0.1, 0.9], [0.1, 0.9], [math.nan] * 2]
    r = make_report(
        [1, 0, 1],
        p,
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names=["a.png", "b.png", "c.png"],
        reasons=["", "", "a hand"],
        n_bootstrap=100,
    )
    image = np.arange(12.0).reshape(3, 4)
    axes = samples.draw(r, dict.fromkeys(["a.png", "b.png", "c.png"], image), {"a.png": image / 11}).axes
    titles = [a.get_title("left").split("\n") for a in axes[:3]]
    assert titles == [
        ["WRONG, true: NORMAL", "predicted: PNEUMONIA (0.90)", "b.png"],
        ["REFUSED, true: PNEUMONIA", "a hand", "c.png"],
        ["RIGHT, true: PNEUMONIA", "predicted: PNEUMONIA (0.90)", "a.png"],
    ]
    shapes = [a.images[0].get_array().shape for a in axes[:3]]
    assert shapes == [(3, 4, 3), (3, 4, 3), (3, 9, 3)]


def test_a_heatmap_colours_only_where_it_is_warm() -> None:
    image, heat = np.full((4, 4), 7.0), np.zeros((4, 4))
    image[0, 0], heat[3, 3] = 0, 1
    picture = samples._picture(image, heat)
    np.testing.assert_allclose(picture[:, 5:][heat == 0], picture[:, :4][heat == 0])
    assert np.ptp(picture[3, 8]) > 0.1
    assert np.ptp(picture[3, 3]) == 0


@pytest.mark.parametrize(
    ("shown", "heat", "message"),
    [
        ({}, {}, "images must hold at least one image. Received: none"),
        ({"z": np.zeros((2, 2))}, {}, "images must be in the report. Received: 'z'"),
        (
            {"a": np.zeros((2, 2, 3))},
            {},
            r"image and heatmap must share one shape \(h, w\)\. Received: 'a' of \(2, 2, 3\), heatmap of \(\)",
        ),
        ({"a": np.zeros((2, 2))}, {"a": np.zeros((2, 3))}, r"Received: 'a' of \(2, 2\), heatmap of \(2, 3\)"),
    ],
)
def test_samples_say_what_is_wrong(shown: dict[str, Any], heat: dict[str, Any], message: str) -> None:
    r = make_report([0], [[0.9, 0.1]], labels=("NORMAL", "PNEUMONIA"), threshold=0.5, names=["a"], n_bootstrap=100)
    with pytest.raises(ValueError, match=message):
        samples.draw(r, shown, heat)


def test_history_shows_loss_accuracy_and_auroc_of_both_sides() -> None:
    figure = plots.training_history({**HISTORY, "learning_rate": [1e-3, 1e-3, 1e-4, 1e-4]})
    assert [a.get_title("left") for a in figure.axes] == ["Loss", "Accuracy", "AUROC"]
    for axes, name in zip(figure.axes, ("loss", "accuracy", "auroc"), strict=True):
        assert [line.get_ydata().tolist() for line in axes.lines] == [HISTORY[name], HISTORY[f"val_{name}"]]
        assert [line.get_label() for line in axes.lines] == ["Training", "Validation"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Training", "Validation"]


def test_history_leaves_out_what_is_missing() -> None:
    loss, auroc = plots.training_history({"loss": [0.5], "val_auroc": [0.99], "seconds": [30.0]}).axes
    assert [a.get_title("left") for a in (loss, auroc)] == ["Loss", "AUROC"]
    assert [tick for tick in loss.get_xticks() if 0.5 <= tick <= 1.5] == [1]
    assert auroc.get_ylim()[1] == 1
    assert [len(axes.lines) for axes in (loss, auroc)] == [1, 1]
    for bad in ({}, {"seconds": [9.0]}, {"loss": []}, {"loss": [1.0], "val_loss": [1.0, 2.0]}):
        with pytest.raises(
            ValueError, match=r"history must hold one value per epoch of loss, accuracy, auroc .*Received: "
        ):
            plots.training_history(bad)


def test_images_of_other_labels_are_in_no_figure() -> None:
    r = report()
    p = np.array([row.probabilities for row in r.predictions])
    targets = [r.labels.index(row.truth) for row in r.predictions]
    more = make_report(
        [*targets, 0],
        [*p, [0.01, 0.99]],
        labels=r.labels,
        threshold=0.4,
        names=range(301),
        other=[None] * 300 + ["TB"],
        n_bootstrap=100,
    )
    for draw in (plots.roc, plots.precision_recall, plots.decision_curve):
        one, other = ([line.get_xydata().tolist() for line in draw(x, {"low": 0.2}).axes[0].lines] for x in (r, more))
        assert one == other
    assert "300" not in samples.pick(more, count=300)


def test_curves_need_the_predictions() -> None:
    bare = Report.from_json(report(n=20).to_json(predictions=False))
    for draw in (plots.roc, plots.precision_recall, plots.reliability_diagram, plots.decision_curve):
        with pytest.raises(ValueError, match="the report lacks its predictions"):
            draw(bare)
    assert plots.confusion_matrix(bare).axes


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'figures need matplotlib: pip install "cxrlib\[train\]"'):
        plots.confusion_matrix(report(n=20))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("NORMAL", ["NORMAL"]),
        ("VIRAL_PNEUMONIA_SUSPECTED", ["VIRAL_", "PNEUMONIA_", "SUSPECTED"]),
        ("Pulmonary tuberculosis/post-primary", ["Pulmonary", "tuberculosis/", "post-primary"]),
        ("Pneumonoultramicroscopic", ["Pneumonoultra", "microscopic"]),
    ],
)
def test_names_are_broken_where_they_may(text: str, lines: list[str]) -> None:
    assert wrap(text, 13).split("\n") == lines
