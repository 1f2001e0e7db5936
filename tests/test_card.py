"""The model card: its whole text, its metadata through the Hub's own classes, and what it says when it knows little."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrlib.config import DISCLAIMER, BundleConfig, DefaultRecipe, OperatingPoint, SourceSummary, TextbookRecipe
from cxrlib.metrics.compute import make_report
from cxrlib.metrics.report import Report
from cxrlib.reporting import card

EXPECTED = Path(__file__).with_name(
    "expected_card.md"
)  # written anew by: CXRLIB_WRITE_EXPECTED=1 pytest tests/test_card.py
BARE = BundleConfig(
    labels=("NORMAL", "PNEUMONIA"),
    image_size=224,
    decoder=1,
    preprocessing="",
    temperature=1.0,
    recipe=DefaultRecipe(),
    probe=(0.9, 0.1),
)
FULL = BundleConfig(
    labels=("NORMAL", "PNEUMONIA"),
    image_size=224,
    decoder=1,
    preprocessing="Pixels by declared bit depth, squashed to 224 x 224.",
    temperature=1.31,
    recipe=DefaultRecipe(),
    probe=(0.25, 0.75),
    operating_points={
        "balanced": OperatingPoint(0.5, 0.97, 0.95, {"clinic": (0.98, 0.96), "ward": (0.9, -1)}),
        "screening": OperatingPoint(0.2, 0.99, 0.9, {"clinic": (0.99, 0.91), "ward": (0.97, -1)}),
    },
    default_point="balanced",
    sources=(
        SourceSummary("clinic", {"NORMAL": 1100, "PNEUMONIA": 3300}, {"NORMAL": 200, "PNEUMONIA": 500}, 2700),
        SourceSummary("ward", {"NORMAL": 218, "PNEUMONIA": 220}, {"NORMAL": 38, "PNEUMONIA": 43}, None),
    ),
    fingerprint="ab" * 32,
    split="cd" * 32,
    notes=("26 images are exact copies of others.",),
    population="Children of one to five years at one hospital.",
    license="cc-by-4.0",
    gate={"anything": 1},
    versions={"cxrlib": "0.1.0", "keras": "3.15.1"},
)


def measured(k: int = 2, **options: Any) -> Report:
    """A report of round numbers, the same on every machine."""
    i = np.arange(80)
    y, wrong = i % k, i % 11 == 0
    p = np.full((80, k), 0.25 / (k - 1))
    p[i, np.where(wrong, (y + 1) % k, y)] = 0.75
    p[[3, 4]] = np.nan
    labels = ("NORMAL", "PNEUMONIA", "COVID-19", "TB")[:k] if k > 2 else ("NORMAL", "PNEUMONIA")
    return make_report(
        y,
        p,
        labels=labels,
        threshold=0.5 if k == 2 else None,
        names=[f"{n}.png" for n in i],
        n_bootstrap=100,
        **options,
    )


def rich() -> Report:
    return measured(
        data="test patients",
        patients=[f"p{n // 4}" for n in range(80)],
        sources=["clinic"] * 50 + ["ward"] * 30,
        groups={"sex": ["F", "M", "M", "F"] * 20},
        reasons=["a hand" if n in (3, 4) else "" for n in range(80)],
    )


def test_the_whole_card() -> None:
    text = card.render(FULL, rich(), repo_id="user/repo")
    if os.environ.get("CXRLIB_WRITE_EXPECTED"):
        EXPECTED.write_text(text, encoding="utf-8")
    assert text == EXPECTED.read_text(encoding="utf-8")
    assert text == card.render(FULL, rich(), repo_id="user/repo")


def test_the_hub_reads_its_metadata() -> None:
    hub = pytest.importorskip("huggingface_hub")
    report = rich()
    data = hub.ModelCard(card.render(FULL, report, repo_id="user/repo")).data
    assert (data.library_name, data.pipeline_tag, data.license, data.model_name) == (
        "cxrlib",
        "image-classification",
        "cc-by-4.0",
        "user/repo",
    )
    assert "mobilenet_v2" in data.tags
    values = {(e.dataset_name, e.metric_type): e.metric_value for e in data.eval_results}
    assert len(values) == 30
    assert {name for name, _ in values} == {"test patients", "test patients: clinic", "test patients: ward"}
    assert values["test patients", "roc_auc"] == round(report.auroc.value, 4)
    assert values["test patients: ward", "recall"] == round(report.by_source["ward"].recall.value, 4)
    assert hub.ModelCardData(**data.to_dict()).to_dict() == data.to_dict()
    assert all(e.dataset_type == re.sub(r"[: ]+", "-", e.dataset_name) for e in data.eval_results)


@pytest.mark.parametrize("config", [BARE, FULL])
@pytest.mark.parametrize("report", [None, rich(), measured(4), measured(sources=["one"] * 80)])
def test_no_placeholder_and_nothing_left_open(config: BundleConfig, report: Report | None) -> None:
    hub = pytest.importorskip("huggingface_hub")
    if report is not None:
        config = dataclasses.replace(config, labels=report.labels, probe=(0.25,) * len(report.labels))
        if len(report.labels) > 2:
            config = dataclasses.replace(config, operating_points={}, default_point=None)
    text = card.render(config, report)
    assert not re.search(r"\$|TODO|TBD|More Information Needed|<your|\bNone\b(?!`|:)|\bnan\b|path/to", text)
    assert hub.ModelCard(text).data.library_name == "cxrlib"
    assert DISCLAIMER in text
    assert "huggingface.co" not in text
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == re.findall(r"^## (.+)$", EXPECTED.read_text("utf-8"), re.MULTILINE)


def test_what_is_unknown_is_said() -> None:
    text = card.render(BARE, None)
    for sentence in (
        "This bundle was not measured. Measure it on images like yours",
        "**It was not measured.**",
        "The bundle does not record what the network was trained on.",
        "**What it was trained on is not recorded.**",
        "Ages, sexes, devices and how the images were selected are not recorded.",
        "The bundle has no gate: it answers for any picture",
        "No licence is recorded.",
        'predictor = Predictor(".")  # the folder that holds this file',
    ):
        assert sentence in text
    assert "model-index" not in text
    assert "license:" not in text
    assert "Training and validation images are of different patients" not in text


def test_one_source_is_a_warning() -> None:
    one = dataclasses.replace(FULL, sources=FULL.sources[:1])
    assert "**It was trained on one source (clinic)**: it may have learnt that place, not the disease" in card.render(
        one, rich()
    )
    assert "It was measured on images of one source" in card.render(FULL, measured())
    assert "It was measured on images of one source" not in card.render(FULL, rich())
    assert "Subgroups of age, sex and view were not measured." in card.render(FULL, measured())
    assert "Subgroups of age" not in card.render(FULL, rich())


def test_several_labels() -> None:
    labels = ("NORMAL", "PNEUMONIA", "COVID-19", "TB")
    config = dataclasses.replace(BARE, labels=labels, probe=(0.25,) * 4)
    text = card.render(config, measured(4))
    assert "as NORMAL, PNEUMONIA, COVID-19 or TB" in text
    assert "None: the most probable label is predicted." in text
    assert "means over the labels, each against the others" in text
    assert re.search(r"\| COVID-19 \| 80 \| 2 \| 0\.\d{3} \(", text)


def test_undefined_metrics_stay_out_of_the_metadata() -> None:
    hub = pytest.importorskip("huggingface_hub")
    positive = make_report(
        [1, 1], [[0.2, 0.8], [0.3, 0.7]], labels=BARE.labels, threshold=0.5, names="ab", sources=["w", "w"]
    )
    text = card.render(BARE, positive)
    assert {e.metric_type for e in hub.ModelCard(text).data.eval_results} == {
        "average_precision",
        "accuracy",
        "precision",
        "recall",
        "f1",
        "npv",
        "brier_score",
        "expected_calibration_error",
    } - {"npv"}
    assert {e.dataset_name for e in hub.ModelCard(text).data.eval_results} == {"evaluation images"}
    assert "| AUROC | undefined |  |" in text
    refused = make_report([0, 1], np.full((2, 2), np.nan), labels=BARE.labels, threshold=0.5, names="ab")
    assert "model-index" not in card.render(BARE, refused)


def test_words_of_others_cannot_change_the_card() -> None:
    hub = pytest.importorskip("huggingface_hub")
    evil = 'x"\n---\nlicense: mit\n# Approved | <script>alert(1)</script> [safe](http://bad) `code` $title {curly}'
    config = dataclasses.replace(
        FULL,
        labels=("NORMAL", evil),
        sources=(SourceSummary(evil, {evil: 3}, {}, 1),),
        notes=(evil,),
        population=evil,
        license=None,
    )
    y = np.arange(40) % 2
    report = make_report(
        y,
        np.eye(2)[y] * 0.8 + 0.1,
        labels=config.labels,
        threshold=0.5,
        names=range(40),
        sources=[evil] * 20 + ["b"] * 20,
        groups={evil: [evil] * 40},
        data=evil,
    )
    text = card.render(config, report)
    loaded = hub.ModelCard(text)
    assert loaded.data.license is None
    assert " ".join(loaded.data.eval_results[0].dataset_name.split()) == " ".join(evil.split())
    assert "<script>" not in loaded.text
    assert "\n# Approved" not in text
    assert not re.search(r"(?<!\\)\]\(http", loaded.text.split("```bibtex")[0])
    assert len(re.findall(r"^# ", loaded.text, re.MULTILINE)) == 1
    rows = [line for line in loaded.text.splitlines() if line.startswith("|")]
    assert all(line.endswith(" |") for line in rows)


def test_every_recipe_is_written_down() -> None:
    config = dataclasses.replace(FULL, recipe=TextbookRecipe(epochs=11))
    text = card.render(config, None)
    assert r"A mobilenet\_v2 network" in text
    assert "| epochs | 11 |" in text
    assert "| augmentation.rotation | 10.0 |" in text
    assert "trust" not in text
    other = card.render(dataclasses.replace(FULL, recipe=DefaultRecipe(backbone="densenet121")), None)
    assert "Sandler" not in other
    assert "- densenet121" in other


def test_labels_that_the_model_does_not_have_are_named() -> None:
    y = np.arange(40) % 2
    report = make_report(
        np.r_[y, np.zeros(20, int)],
        np.concatenate([np.eye(2)[y] * 0.8 + 0.1, [[0.1, 0.9], [0.8, 0.2]] * 10]),
        labels=BARE.labels,
        threshold=0.5,
        names=range(60),
        other=[None] * 40 + ["TB"] * 20,
    )
    text = card.render(FULL, report)
    called = report.by_other["TB"].called_positive
    assert f"| TB | 20 | 0 | {called} |" in text
    assert f"- Share of images with other labels called PNEUMONIA: TB {called}." in text
    assert "TB" not in text.split("---")[1]
    assert "How often it calls other findings PNEUMONIA was not measured." in card.render(FULL, rich())


def test_three_labels_with_operating_points() -> None:
    labels = ("NORMAL", "PNEUMONIA", "OTHER")
    config = dataclasses.replace(FULL, labels=labels, probe=(0.3, 0.3, 0.4))
    text = card.render(config, None)
    assert "Chosen on the validation images for PNEUMONIA against everything else." in text
    assert "From the threshold of the operating point on, the label is PNEUMONIA." in text
