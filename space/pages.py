"""What the pages show, as HTML. Whatever comes from outside is escaped where it is put in."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from drawings import PREFIX
from PIL import Image

from cxrlib import Explanation, Prediction, Predictor

if TYPE_CHECKING:
    from cxrlib.images.decode import Radiograph

SHOWN = 1024  # longest side of an image on the screen, in pixels
HEAT = 320  # of a heatmap, which is smooth
Row = tuple[str, str, Prediction | str]  # of a batch: name, thumbnail, and the answer or why there is none


class Pages:
    """The parts of the pages, for one model.

    Args:
        predictor: The model.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.config, self.report, self.folder = predictor.config, predictor.report, predictor.folder
        self.points = self.config.operating_points
        self.finding = _spoken(self.config.labels[1])

    def head(self) -> str:
        labels = escape(" or ".join(map(_spoken, self.config.labels)))
        more = "<span class='cx-wide'> A calibrated probability, and what it is based on.</span>"
        said = f"<p>{labels[:1].upper()}{labels[1:]}?{more}</p>"
        live = '<p class="cx-unseen" role="status" id="cx-live"></p>'  # what screen readers say
        return f"<h1>Chest radiographs</h1>{said}{live}"

    def examples(self, examples: Sequence[tuple[str, Radiograph, object]]) -> str:
        drawn = all(name.startswith(PREFIX) for name, *_ in examples)
        buttons = "".join(
            f'<button type="button" data-index="{i}"><img src="{thumbnail(image)}" alt="" width="64" height="64">'
            f"<span>{escape(name.removeprefix(PREFIX) if drawn else name)}</span></button>"
            for i, (name, image, _) in enumerate(examples)
        )
        title = "Examples: drawings, not patients" if drawn else "Examples"
        return f'<h2 class="cx-title">{title}</h2><div class="cx-row">{buttons}</div>'

    # --- one image ---

    def viewer(self, explanation: Explanation | None = None, *, unread: bool = False) -> str:
        """The image; where it got an answer, with the heatmap over it."""
        if explanation is None:
            empty = (
                "<strong>No image yet.</strong> Choose one, drop it on this page, or paste it: JPEG, PNG, TIFF, DICOM."
            )
            empty = "<strong>Nothing to show.</strong> The file could not be read as an image." if unread else empty
            return _figure(f'<div class="cx-frame cx-empty"><p>{empty}</p></div>', "", "")
        height, width = explanation.image.size
        base = data_url(Image.fromarray(shrink(explanation.image).pixels))
        pictures = f'<img class="cx-base" src="{base}" alt="The image, {width} by {height} pixels">'
        tools, finding = "", escape(_spoken(explanation.label))
        caption = "The image as it was read."
        if explanation.prediction.status == "ok" and explanation.empty:
            caption = f"No heatmap: nowhere does the evidence for {finding} exceed that of normal images."
        elif explanation.prediction.status == "ok":
            pictures += f'<img class="cx-heat" src="{data_url(colours(explanation), "WEBP")}" alt="">'
            tools = _range("Heatmap", "--heat", 0, 100, 50)
            caption = f'<span class="cx-colours"></span> Evidence for {finding}, beyond that in normal images.'
        tools += (
            '<span><button type="button" class="cx-plain" data-zoom="0.67" aria-label="Smaller">−</button>'
            '<button type="button" class="cx-plain" data-zoom="1.5" aria-label="Larger">+</button></span>'
            f"<details><summary>Adjust</summary>{_range('Brightness', '--light', 40, 250, 100)}"
            f"{_range('Contrast', '--contrast', 40, 300, 100)}</details>"
            '<button type="button" class="cx-plain" data-save>Save</button>'
            '<button type="button" class="cx-plain" data-print>Print</button>'
        )
        shown = f'<div class="cx-image" style="--ratio:{width / height:.4f}">{pictures}</div>'
        return _figure(f'<div class="cx-frame" tabindex="0">{shown}</div>', tools, caption)

    def answer(self, explanation: Explanation | None = None, *, error: str = "") -> str:
        """The verdict in words at every operating point; the browser shows the chosen one."""
        found = explanation.prediction if explanation else None
        lead = _described(explanation) if explanation else "There is no answer" if error else "The answer"
        body = f'<p class="cx-lead">{lead}</p>'
        state = "" if found or error else " cx-waiting"
        if error:
            body += _verdict("Not read", error)
        elif found is None:
            body += _verdict("–", "It appears here: in words, and as a calibrated probability.") + _axis()
        elif found.status != "ok":
            sentence = "This does not look like a frontal chest radiograph, so the model gives no probability."
            body += _verdict("Refused", sentence) + _list(found.reasons)
        else:
            body += self._verdicts(found)
            if found.reasons:
                body += f'<div class="cx-care"><h3>Note</h3>{_list(found.reasons)}</div>'
        known = _pretest(found) if found and found.status == "ok" and found.threshold is not None else ""
        return (
            f'<div class="cx-answer{state}" data-points><div data-said>{body}</div>{self._choice("one")}{known}</div>'
        )

    def _verdicts(self, p: Prediction) -> str:
        table = ""
        if len(p.probabilities) > 2:
            cells = (f"<th>{escape(_shown(x))}</th><td>{_percent(q)}</td>" for x, q in p.probabilities.items())
            table = f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>"
        if p.threshold is None:
            return _verdict(_shown(p.label or ""), "The most probable of the classes:") + table
        positive = p.probabilities[self.config.labels[1]]
        chance = f"The model puts the probability of {escape(self.finding)} at <strong>{_percent(positive)}</strong>"
        blocks = ""
        for name, point in self.points.items() or {"": None}.items():
            threshold = point.threshold if point else p.threshold
            which = f"{escape(name)} threshold" if name else "threshold"
            said = f"{chance}. That is {_relation(positive, threshold)} the {which} of {_percent(threshold)}."
            hidden = "" if name == (self.config.default_point or "") else "hidden"
            blocks += f'<div data-point="{escape(name)}" {hidden}>{self._worded(p.at(threshold), name, said)}</div>'
        for side, threshold in enumerate((1.0, 0.0) if self.points else ()):
            said = f"{chance}. That is {'above' if side else 'below'} your threshold of <span data-threshold></span>."
            block = self._worded(p.at(threshold), "own", said)
            blocks += f'<div data-point="own" data-side="{side}" hidden>{block}</div>'
        return f"{blocks}{_axis(positive, p.threshold)}{table}"

    def _worded(self, p: Prediction, point: str, said: str) -> str:
        if p.label == self.config.labels[1]:
            likely = f"{_shown(p.label)} likely"
            word = f"Possible {self.finding}: have it read" if point == "screening" else likely
            return _verdict(word, said, strong=True, safe=True)
        word = f"No sign of {self.finding}" if len(p.probabilities) == 2 else _shown(p.label or "")
        return _verdict(word, said, safe=True)

    def _choice(self, group: str) -> str:
        """Radio buttons for the operating point, with what each achieved in validation."""
        if not self.points:
            return ""
        options = ""
        for name, point in self.points.items():
            checked = "checked" if name == self.config.default_point else ""
            options += (
                f'<label><input type="radio" name="cx-{group}" value="{escape(name)}" {checked} '
                f'data-threshold="{point.threshold}"><span><b>{escape(name.capitalize())}</b>: positive from '
                f'{_percent(point.threshold)}. <span class="cx-achieved">In validation it flagged '
                f"{_part(point.sensitivity)} of {escape(self.finding)} images and cleared {_part(point.specificity)} "
                "of the others.</span></span></label>"
            )
        options += (
            f'<label><input type="radio" name="cx-{group}" value="own" data-threshold="0.5"><span><b>Your own</b>: '
            'positive from <input type="number" min="0" max="100" step="any" value="50" aria-label="Your threshold, '
            'in per cent" data-own>%</span></label>'
        )
        return f'<fieldset class="cx-choice"><legend>Operating point</legend>{options}</fieldset>'

    # --- a batch ---

    def progress(self, done: int = 0, total: int | None = None) -> str:
        """How far a batch has come; `total` is not known while a zip archive is being read."""
        share = f'value="{done}" max="{total}"' if total else ""
        bar = f'<progress {share} aria-label="Images answered"></progress>'
        return f'<p class="cx-progress">{bar} {done}{f" of {total}" if total else ""} answered</p>'

    def table(self, rows: Sequence[Row] = ()) -> str:
        """Name, thumbnail and answer of every image; the browser decides, counts, sorts and makes the CSV file."""
        if not rows:
            return (
                '<div class="cx-table cx-none"><p>A table of the answers appears here, to sort and to save.</p></div>'
            )
        names = ("File", "Answer", "Probability", "Remarks")
        head = "".join(f'<th scope="col" aria-sort="none"><button type="button">{name}</button></th>' for name in names)
        summary = f"<strong>{len(rows)} {'image' if len(rows) == 1 else 'images'}</strong><span data-counts></span>"
        return (
            f'<div class="cx-table" data-points><div class="cx-above"><p data-said>{summary}</p>'
            '<button type="button" class="cx-plain" data-csv>Download as CSV</button></div>'
            '<div class="cx-scroll" tabindex="0" role="region" aria-label="Answers"><table><thead><tr><th scope="col">'
            f'<span class="cx-unseen">Image</span></th>{head}</tr></thead><tbody>{"".join(map(self._row, rows))}'
            f"</tbody></table></div>{self._choice('batch')}</div>"
        )

    def _row(self, row: Row) -> str:
        name, picture, p = row
        status, chance, order, data = "unreadable", "–", -2.0, ""
        remarks = p.removeprefix(f"{name}: ") if isinstance(p, str) else "; ".join(p.reasons)
        answer = {"unreadable": "Not read", "refused": "Refused"}.get(status if isinstance(p, str) else p.status, "")
        if isinstance(p, Prediction):
            status, order = p.status, -1.0
            if p.status == "ok":
                yes, no = (p.at(0.0).label, p.at(1.0).label) if p.threshold is not None else (p.label, p.label)
                order, chance, answer = p.probability, _percent(p.probability), _shown(p.label or "")
                data = f'data-p="{p.probability}" data-yes="{escape(yes or "")}" data-no="{escape(no or "")}"'
        image = f'<img src="{picture}" alt="">' if picture else '<span class="cx-nothing"></span>'
        opener = f'<button type="button" class="cx-open" data-open>{escape(name)}</button>'
        return (
            f'<tr data-status="{status}" {data}><td>{image}</td><td>{opener}</td><td>{escape(answer)}</td>'
            f'<td data-order="{order}">{chance}</td><td>{escape(remarks[:1].upper() + remarks[1:])}</td></tr>'
        )

    # --- the model ---

    def glance(self) -> str:
        """The figures that matter first."""
        if self.report is None:
            return '<p class="cx-fine">This model was not measured, or its report was not kept: do not rely on it.</p>'
        names = {"AUROC": "auroc", "Sensitivity": "recall", "Specificity": "specificity", "Calibration error": "ece"}
        found = {name: getattr(self.report, field) for name, field in names.items()}
        tiles = "".join(
            f"<div><dt>{name}</dt><dd><strong>{e.value:.3f}</strong><span>{e.low:.3f} to {e.high:.3f}</span></dd></div>"
            for name, e in found.items()
            if math.isfinite(e.value)
        )
        where = f" ({escape(self.report.data)})" if self.report.data else ""
        sources = (f"{escape(s.name)} ({sum(s.train.values()):,})" for s in self.config.sources)
        trained = f" Trained on images of {', '.join(sources)}." if self.config.sources else ""
        measured = f"Measured on {self.report.n:,} images{where}, with 95% intervals.{trained}"
        for label, other in self.report.by_other.items():
            unknown = f"Of {other.n:,} images labelled {escape(label)}, a class that it does not have"
            measured += f" {unknown}, it called {_part(other.called_positive.value)} {escape(self.finding)}."
        return f'<dl class="cx-glance">{tiles}</dl><p class="cx-fine">{measured}</p>'

    def card(self) -> str:
        """The model card, its figures put into the text and its numbers kept on one line."""
        card = self.folder / "README.md"
        if not card.is_file():
            return "This model has no card."
        text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text("utf-8"), flags=re.DOTALL)  # metadata for the Hub
        cell = r"(?<=\| )\d[^|A-Za-z\n]*(?= \|)"
        text = re.sub(cell, r'<span class="cx-number">\g<0></span>', text)

        def figure(match: re.Match[str]) -> str:
            file = self.folder / "figures" / match[2]
            if not file.is_file():
                return ""
            return f"![{match[1]}](data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()})"

        return re.sub(r"!\[([^\]]*)\]\(figures/([A-Za-z0-9_-]+\.png)\)", figure, text)


# --- words ---


def _described(explanation: Explanation) -> str:
    """Name, size and declared view."""
    height, width = explanation.image.size
    view = f"{explanation.image.view} view" if explanation.image.view else "view not stated"
    return escape(f"{explanation.prediction.source} · {width:,} × {height:,} pixels · {view}")


def _verdict(word: str, said: str, *, strong: bool = False, safe: bool = False) -> str:
    shown = said if safe else escape(said)
    return f'<h2 class="cx-word{" cx-strong" if strong else ""}">{escape(word)}</h2><p>{shown}</p>'


def _figure(frame: str, tools: str, caption: str) -> str:
    return f'<div class="cx-figure">{frame}<div class="cx-tools">{tools}</div><p class="cx-caption">{caption}</p></div>'


def _range(name: str, variable: str, low: int, high: int, value: int) -> str:
    given = f'min="{low}" max="{high}" value="{value}"'
    return f'<label>{name} <input type="range" {given} data-variable="{variable}"></label>'


def _pretest(p: Prediction) -> str:
    """A slider for the probability before the image; the browser combines it with the likelihood ratio."""
    after = p.given(0.5)
    return (
        f'<details class="cx-pretest" data-ratio="{after.likelihood_ratio:.6g}"><summary>Combine with what was known '
        "before</summary><label>Probability before the image"
        '<input type="range" min="1" max="99" value="20" data-pretest></label><output>20%</output>'
        f"<p>Likelihood ratio of this image: {after.likelihood_ratio:.2g}. Probability after the image: "
        f'<strong data-after>{_percent(p.given(0.2).probability)}</strong>.</p><p class="cx-fine">Bayes’ rule, with '
        "the clinician’s estimate. It holds for patients like those that the model was calibrated on.</p></details>"
    )


def _axis(probability: float | None = None, threshold: float = 0.0) -> str:
    """Probability from 0 to 1, with the threshold and the image on it; the sentence above says the same."""
    marks = ""
    if probability is not None:
        marks = '<i class="cx-called"></i><i class="cx-threshold"></i><i class="cx-here"></i>'
    place = f"--threshold:{threshold:.4f};--here:{probability or 0:.4f}"
    ticks = "".join(f"<span>{tick}%</span>" for tick in (0, 50, 100))
    bar = f'<div class="cx-bar">{marks}</div><div class="cx-ticks">{ticks}</div>'
    data = "" if probability is None else f'data-p="{probability}"'
    return f'<div class="cx-axis" aria-hidden="true" {data} style="{place}">{bar}</div>'


def _shown(label: str) -> str:
    return label.capitalize() if label.isupper() else label


def _spoken(label: str) -> str:
    return label.lower() if label.isupper() else label


def _percent(p: float) -> str:
    if 0 < p < 0.001 or 0.999 < p < 1:
        return "under 0.1%" if p < 0.5 else "over 99.9%"
    return f"{100 * p:.{1 if p < 0.1 or p > 0.9 else 0}f}%"


def _part(p: float) -> str:
    return f"{100 * p:.0f}%" if 0 <= p <= 1 else "an unknown part"


def _relation(p: float, threshold: float) -> str:
    """Where a probability stands relative to a threshold; near and far are meant in log-odds."""
    here, there = (math.log(x / (1 - x)) for x in (min(max(x, 1e-6), 1 - 1e-6) for x in (p, threshold)))
    far = "just " if abs(here - there) < 0.5 else "well " if abs(here - there) > 2 else ""
    return f"{far}{'above' if p >= threshold else 'below'}"


def _list(reasons: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(reason[:1].upper() + reason[1:])}</li>" for reason in reasons)
    return f"<ul>{items}</ul>" if items else ""


# --- pictures ---


def shrink(image: Radiograph, longest: int = SHOWN) -> Radiograph:
    """The image as a screen shows it: in 8 bits, and no larger than needed."""
    height, width = image.size
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = image.pixels
    if grey.dtype != np.uint8:
        grey = np.clip(grey * (255 / image.white) + 0.5, 0, 255).astype(np.uint8)
    picture = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return dataclasses.replace(image, picture=picture, white=255.0, size=(size[1], size[0]))


def resized(explanation: Explanation, image: Radiograph) -> Explanation:
    """The explanation with another rendering of its image, and the heatmap at that size."""
    heat = np.asarray(Image.fromarray(explanation.heatmap).resize(image.size[::-1], Image.Resampling.BILINEAR))
    return dataclasses.replace(explanation, heatmap=heat, image=image)


def colours(explanation: Explanation) -> Image.Image:
    """The heatmap alone, RGBA: the colours of `Explanation.overlay`, as opaque as the evidence is strong."""
    small = resized(explanation, shrink(explanation.image, HEAT))
    black = dataclasses.replace(small.image, picture=np.zeros(small.image.size, np.uint8))
    painted = np.asarray(dataclasses.replace(small, image=black).overlay(alpha=1.0), np.float32)  # colour x heat
    heat = small.heatmap[..., None]
    return Image.fromarray(
        np.concatenate([painted / np.maximum(heat, 1 / 255), 255 * heat], 2).clip(0, 255).astype("u1")
    )


def thumbnail(image: Radiograph) -> str:
    return data_url(Image.fromarray(shrink(image, 160).pixels), quality=75)


def data_url(image: Image.Image, kind: str = "JPEG", *, quality: int = 88) -> str:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
