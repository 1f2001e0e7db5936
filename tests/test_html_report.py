"""The HTML report: self-contained, well formed, nobody's words taken for markup."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from cxrlib.config import DISCLAIMER
from cxrlib.metrics.compute import make_report
from cxrlib.metrics.report import Report
from cxrlib.reporting import html as html_report

PNG = b"\x89PNG\r\n\x1a\n not really"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that every element is closed in its turn, and collects elements and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())


def report(k: int = 2, **options: Any) -> Report:
    rng = np.random.default_rng(0)
    y = rng.integers(0, k, 60)
    p = rng.dirichlet(np.ones(k), 60)
    labels = ("NORMAL", "PNEUMONIA", "COVID-19", "TB")[:k]
    return make_report(
        y,
        p,
        **{
            "labels": labels,
            "threshold": 0.5 if k == 2 else None,
            "names": [f"{i}.png" for i in range(60)],
            "n_bootstrap": 100,
            **options,
        },
    )


def test_a_page_of_everything() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 60)
    p = rng.dirichlet([1, 1], 60)
    p[:2] = np.nan
    r = make_report(
        y,
        p,
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names=[f"image{i}.png" for i in range(60)],
        patients=[f"p{i // 2}" for i in range(60)],
        sources=["here", "there"] * 30,
        groups={"sex": ["F", "M", "M"] * 20},
        status=["refused", "unreadable"] + ["ok"] * 58,
        reasons=["a hand"] + [""] * 59,
        data="official test split",
        n_bootstrap=100,
    )
    page = Page(html_report.render(r, {"roc": PNG, "samples": PNG}, title="Report of spring"))
    assert page.texts.count("Report of spring") == 2
    assert DISCLAIMER in page.texts
    assert (
        "official test split · NORMAL versus PNEUMONIA · 60 images of 30 patients, 1 refused, 1 unreadable · "
        "PNEUMONIA from a probability of 0.5" in page.texts
    )
    for name in (
        "auroc",
        "recall",
        "specificity",
        "accuracy",
        "ece",
        "brier",
        "npv",
        "f1",
        "precision",
        "average_precision",
    ):
        assert f"{getattr(r, name).value:.3f}" in page.texts
    assert {"here", "there", "F", "M", "Source", "Subgroup by sex"} <= set(page.texts)
    assert [t for t in page.texts if t.endswith("wrong predictions, the most confident first")] == [
        f"{r.confusion_matrix[0, 1] + r.confusion_matrix[1, 0]} wrong predictions, the most confident first"
    ]
    assert {"2 images without an answer", "a hand", "no reason given", "image0.png", "p0"} <= set(page.texts)
    assert set(r.statements) <= set(page.texts)
    assert any("100 bootstrap resamples of patients" in text and "seed 0" in text for text in page.texts)


def test_it_is_self_contained() -> None:
    page = Page(html_report.render(report(), {"roc": PNG, "history": PNG, "mine": PNG}))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [a["src"] for a in images] == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"] * 3
    assert [str(a["alt"]).split(".")[0] for a in images] == ["ROC curve", "Training", "mine"]
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "form"}
    for _, attributes in page.elements:
        assert not any(
            str(value).startswith(("http", "//")) or name.startswith("on") for name, value in attributes.items()
        )
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("html", {"lang": "en"}) in page.elements


def test_pictures_are_read_from_files(tmp_path: Any) -> None:
    (tmp_path / "roc.png").write_bytes(PNG)
    assert html_report.render(report(), {"roc": tmp_path / "roc.png"}) == html_report.render(report(), {"roc": PNG})


def test_words_of_others_are_not_markup() -> None:
    evil = '<script>alert("1")</script>&$title'
    r = report(
        labels=("NORMAL", evil),
        names=[f"{evil}{i}" for i in range(60)],
        sources=[evil, "b"] * 30,
        groups={evil: [evil] * 60},
        patients=[evil] * 60,
        data=evil,
    )
    text = html_report.render(r, {evil: PNG}, title=evil)
    page = Page(text)
    assert "<script" not in text
    assert page.texts.count(evil) > 5
    assert not {tag for tag, _ in page.elements} & {"script"}


@pytest.mark.parametrize("k", [2, 4])
def test_undefined_and_several_labels(k: int) -> None:
    page = Page(html_report.render(report(k), {}))
    assert ("Label" in page.texts) == (k == 4)
    assert any("mean over the labels" in text for text in page.texts) == (k == 4)
    positive = make_report(
        [1, 1], [[0.2, 0.8], [0.3, 0.7]], labels=("NORMAL", "PNEUMONIA"), threshold=0.5, names="ab", n_bootstrap=100
    )
    page = Page(html_report.render(positive, {}))
    assert "undefined" in page.texts
    assert "Keep in mind" in page.texts
    assert "Images to look at" not in page.texts


def test_statements_of_parts_name_the_part() -> None:
    y = [1] * 30 + [0, 1] * 15
    p = [[0.2, 0.8]] * 60
    r = make_report(
        y,
        p,
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names=range(60),
        sources=["ward"] * 30 + ["both"] * 30,
        n_bootstrap=100,
    )
    assert "ward: No image is labelled NORMAL: what needs one is undefined." in Page(html_report.render(r, {})).texts


def test_long_lists_are_cut() -> None:
    n = 250
    r = make_report(
        [0] * n,
        [[0.1, 0.9]] * n,
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names=[f"image{i}" for i in range(n)],
        n_bootstrap=100,
    )
    page = Page(html_report.render(r, {}))
    assert "The first 100 of 250; predictions.csv holds all." in page.texts
    assert sum(bool(re.fullmatch(r"image\d+", text)) for text in page.texts) == html_report.LISTED


def test_one_is_not_many() -> None:
    r = make_report(
        [0], [[0.1, 0.9]], labels=("NORMAL", "PNEUMONIA"), threshold=0.5, names="a", patients="p", n_bootstrap=100
    )
    texts = Page(html_report.render(r, {})).texts
    assert "1 wrong prediction, the most confident first" in texts
    assert any("1 image of 1 patient ·" in text for text in texts)


def test_prose_can_be_read_on_a_phone() -> None:
    p = [[0.2, 0.8], [np.nan] * 2]
    r = make_report(
        [1, 1],
        p,
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names="ab",
        reasons=["", "a hand, not a chest"],
        n_bootstrap=100,
    )
    text = html_report.render(r, {"groups": PNG})
    for prose in ("What it is", "Share of the images with the right label", "Why", "a hand, not a chest"):
        assert re.search(rf'<t[hd] class="prose">{prose}</t[hd]>', text)
    assert "\n.prose { min-width: 15rem; }\n" in text
    assert 'Positive is PNEUMONIA.</p><div class="scroll">' in text  # above the box that scrolls, not in it
    assert "<b>By label, source and subgroup.</b>" in text


def test_labels_that_the_model_does_not_have_stand_apart() -> None:
    y = np.arange(20) % 2
    p = np.concatenate([np.eye(2)[y] * 0.8 + 0.1, [[0.1, 0.9], [0.8, 0.2]]])
    r = make_report(
        [*y, 0, 0],
        p,
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names=range(22),
        other=[None] * 20 + ["TB"] * 2,
        n_bootstrap=100,
    )
    texts = Page(html_report.render(r, {})).texts
    assert {"Other labels", "TB", "Called PNEUMONIA", str(r.by_other["TB"].called_positive)} <= set(texts)
    assert "1 image of other labels called PNEUMONIA" in texts
    assert not any("wrong prediction" in text for text in texts)


def test_missing_figures_are_mentioned() -> None:
    assert any("matplotlib is not installed" in text for text in Page(html_report.render(report(), {})).texts)
    assert not any("matplotlib" in text for text in Page(html_report.render(report(), {"roc": PNG})).texts)
