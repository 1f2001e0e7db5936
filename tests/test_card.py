"""The model card: its whole text, its metadata through the Hub's own classes, and what it says when it knows little."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrlib.config import DISCLAIMER, BundleConfig, OperatingPoint, SourceSummary, TrainConfig
from cxrlib.metrics.compute import Report, make_report
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
    training=TrainConfig(),
    probe=(0.9, 0.1),
)
FULL = BundleConfig(
    labels=("NORMAL", "PNEUMONIA"),
    image_size=224,
    decoder=1,
    preprocessing="Pixels by declared bit depth, squashed to 224 x 224.",
    temperature=1.31,
    training=TrainConfig(),
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
    notes=("26 films are exact copies of others.",),
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
        refused=["a hand" if n in (3, 4) else "" for n in range(80)],
    )


def test_the_whole_card() -> None:
    text = card.render(
        FULL,
        rich(),
        repo_id="user/repo",
        license="cc-by-4.0",
        population="Children of one to five years at one hospital.",
    )
    if os.environ.get("CXRLIB_WRITE_EXPECTED"):
        EXPECTED.write_text(text, encoding="utf-8")
    assert text == EXPECTED.read_text(encoding="utf-8")
    assert text == card.render(
        FULL,
        rich(),
        repo_id="user/repo",
        license="cc-by-4.0",
        population="Children of one to five years at one hospital.",
    )


def test_the_hub_reads_its_metadata() -> None:
    hub = pytest.importorskip("huggingface_hub")
    report = rich()
    data = hub.ModelCard(card.render(FULL, report, repo_id="user/repo", license="cc-by-4.0")).data
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
    answered = re.findall(r"\| ([^|]+) \|$", text.split("| Asked for")[1].split("**The bundle")[0], re.MULTILINE)[2:]
    assert {part for where in answered for part in where.split("; ")} <= set(headings)


def test_what_is_unknown_is_said() -> None:
    text = card.render(BARE, None)
    for sentence in (
        "This bundle was not measured, or its report was not kept",
        "**It was not measured.**",
        "The bundle does not record what the network was trained on.",
        "**What it was trained on is not recorded.**",
        "Ages, sexes, devices and the way the films were chosen are not recorded in the bundle.",
        "**Audit.** No remark is recorded.",
        "The bundle has no gate: it answers for any picture",
        "No licence of the weights is recorded",
        "- Performance with intervals (12e, 23a)",
        "- Sources of the data (5a)",
        "- Whom the films show (6a, 20b)",
        'predictor = Predictor(".")  # the folder that holds this file',
    ):
        assert sentence in text
    assert "model-index" not in text
    assert "license:" not in text
    assert "Training and validation films are of different patients" not in text


def test_one_source_is_a_warning() -> None:
    one = dataclasses.replace(FULL, sources=FULL.sources[:1])
    assert "**It was trained on one source (clinic)**: it may have learnt that place, not the disease" in card.render(
        one, rich()
    )
    assert "It was measured on films of one source" in card.render(FULL, measured())
    assert "It was measured on films of one source" not in card.render(FULL, rich())
    assert "Whether it serves men and women" in card.render(FULL, measured())
    assert "Whether it serves" not in card.render(FULL, rich())


def test_several_labels() -> None:
    labels = ("NORMAL", "PNEUMONIA", "COVID-19", "TB")
    config = dataclasses.replace(BARE, labels=labels, probe=(0.25,) * 4)
    text = card.render(config, measured(4))
    assert "tells NORMAL, PNEUMONIA, COVID-19 and TB apart" in text
    assert "None: with three or more labels the most probable one is predicted." in text
    assert "means over the labels, each against the others" in text
    assert re.search(r"\| COVID-19 \| 80 \| 2 \| 0\.\d{3} \(", text)


def test_undefined_metrics_stay_out_of_the_metadata() -> None:
    hub = pytest.importorskip("huggingface_hub")
    ill = make_report(
        [1, 1], [[0.2, 0.8], [0.3, 0.7]], labels=BARE.labels, threshold=0.5, names="ab", sources=["w", "w"]
    )
    text = card.render(BARE, ill)
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
    assert {e.dataset_name for e in hub.ModelCard(text).data.eval_results} == {"w"}
    assert "| AUROC | undefined | – |" in text
    refused = make_report([0, 1], np.full((2, 2), np.nan), labels=BARE.labels, threshold=0.5, names="ab")
    assert "model-index" not in card.render(BARE, refused)


def test_words_of_others_cannot_change_the_card() -> None:
    hub = pytest.importorskip("huggingface_hub")
    evil = 'x"\n---\nlicense: mit\n# Approved | <script>alert(1)</script> [safe](http://bad) `code` $title {curly}'
    config = dataclasses.replace(
        FULL, labels=("NORMAL", evil), sources=(SourceSummary(evil, {evil: 3}, {}, 1),), notes=(evil,)
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
    text = card.render(config, report, population=evil)
    loaded = hub.ModelCard(text)
    assert loaded.data.license is None
    assert " ".join(loaded.data.eval_results[0].dataset_name.split()) == " ".join(evil.split())
    assert "<script>" not in loaded.text
    assert "\n# Approved" not in text
    assert not re.search(r"(?<!\\)\]\(http", loaded.text.split("```bibtex")[0])
    assert len(re.findall(r"^# ", loaded.text, re.MULTILINE)) == 1
    rows = [line for line in loaded.text.splitlines() if line.startswith("|")]
    assert all(line.endswith(" |") for line in rows)


def test_yaml_reads_every_text_back() -> None:
    yaml = pytest.importorskip("yaml")
    data = {
        "a": ["yes", "no", "null", "1", "1.0", "a: b", "- a", "#", "é", 'q"uote', "\\", "plain-text", "on", "~", ""],
        "b": {"c": 1, "d": 0.5},
        "e": [{"f": "g", "h": [{"i": "j"}]}],
    }
    assert yaml.safe_load(card._yaml(data)) == data
