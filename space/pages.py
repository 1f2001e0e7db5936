"""What the pages show, as HTML. Whatever came from outside is escaped where it is put in."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from cxrlib import Explanation, Prediction, Predictor
from cxrlib.images.decode import Film

SHOWN = 1024  # longest side of a film on the screen, in pixels
Row = tuple[str, str, Prediction | str]  # of a batch: name of the film, thumbnail, and the answer or why there is none


class Pages:
    """The parts of the pages, for one model.

    Args:
        predictor: The model.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.config, self.report, self.folder = predictor.config, predictor.report, predictor.folder
        self.points = self.config.operating_points

    def head(self) -> str:
        question = escape(" or ".join(map(_spoken, self.config.labels)))
        said = f"{question[:1].upper()}{question[1:]}?<span class='cx-wide'> A network's opinion, with how sure it is and why.</span>"
        return f'<h1>Chest radiographs</h1><p>{said}</p><p class="cx-unseen" role="status" id="cx-live"></p>'  # the last is for what screen readers say

    def examples(self, examples: Iterable[tuple[str, Film, object]]) -> str:
        buttons = "".join(
            f'<button type="button" data-index="{i}"><img src="{thumbnail(film)}" alt="" width="74" height="74"><span>{escape(name)}</span></button>'
            for i, (name, film, _) in enumerate(examples)
        )
        return f'<h2 class="cx-unseen">Examples</h2><div class="cx-row">{buttons}</div>'

    # --- one film ---

    def viewer(self, explanation: Explanation | None = None, *, unread: bool = False) -> str:
        """The film; where it got an answer, with the heatmap over it behind a slider."""
        if explanation is None:
            empty = "<strong>No film yet.</strong> Drop one anywhere on this page, paste it, or choose a file: JPEG, PNG, TIFF or DICOM."
            empty = "<strong>Nothing to show.</strong> The file could not be read as a film." if unread else empty
            return f'<div class="cx-figure"><div class="cx-frame cx-empty"><p>{empty}</p></div><p class="cx-caption"></p></div>'
        height, width = explanation.film.size
        film = shrink(explanation.film)
        shape = f'width="{film.size[1]}" height="{film.size[0]}"'
        pictures = f'<img src="{data_url(Image.fromarray(film.pixels))}" alt="The film that was sent, {width} by {height} pixels" {shape}>'
        caption = "The film as it was read."
        if explanation.prediction.accepted:
            pictures += f'<img class="cx-heat" src="{data_url(lay_over(explanation, film)[1])}" alt="" {shape}><span class="cx-edge"></span>'
            pictures += '<input class="cx-cut" type="range" value="50" aria-label="Per cent of the film without heatmap, from the left">'
            caption = (
                f'<span class="cx-colours" aria-hidden="true"></span> Evidence for {escape(_spoken(explanation.label))}: what moved the network, not where '
                'disease is. <span class="cx-wide">Drag, or use the arrow keys, to compare.</span>'
            )
        return (
            f'<div class="cx-figure"><div class="cx-frame"><div class="cx-film" style="--ratio:{width / height:.4f}">{pictures}</div></div>'
            f'<p class="cx-caption">{caption}</p></div>'
        )

    def answer(self, prediction: Prediction | None = None, *, error: str = "") -> str:
        """The verdict in words at every operating point; the browser shows the chosen one."""
        if error:
            body = _verdict("There is no answer", "Not read", f"<p>{escape(error)}</p>")
        elif prediction is None:
            body = _verdict(
                "The answer", "–", f"<p>It appears here, in words and as a calibrated probability.</p>{_axis()}"
            )
        elif not prediction.accepted:
            sentence = "<p>The picture does not pass for a frontal chest radiograph of the kind this model knows, so it gets no probability.</p>"
            body = _verdict("The model gives no answer", "Refused", sentence + _list(prediction.reasons))
        else:
            body = self._per_point(prediction, _case)
            if prediction.reasons:
                body += f'<div class="cx-care"><h3>To be careful about</h3>{_list(prediction.reasons)}</div>'
        return f'<div class="cx-answer" data-points><div data-said>{body}</div>{self._choice("film")}</div>'

    def _choice(self, group: str) -> str:
        """Radio buttons for the operating point, with what each achieved on validation films."""
        if not self.points:
            return ""
        well, ill = (escape(_spoken(label)) for label in self.config.labels)
        options = ""
        for name, point in self.points.items():
            achieved = f"found {_part(point.sensitivity)} of {ill} and cleared {_part(point.specificity)} of {well} validation films"
            options += (
                f'<label><input type="radio" name="cx-{group}" value="{escape(name)}" {"checked" if name == self.config.default_point else ""}>'
                f"<span><b>{escape(name.capitalize())}</b>, from {_percent(point.threshold)} on: {achieved}.</span></label>"
            )
        return f'<fieldset class="cx-choice"><legend>Operating point</legend>{options}</fieldset>'

    def _per_point(self, prediction: Prediction, render: Callable[[Prediction, str], str], tag: str = "div") -> str:
        """The same at every operating point, all but the default hidden."""
        if not self.points or not prediction.accepted:
            return render(prediction, "")
        return "".join(
            f'<{tag} data-point="{escape(name)}" {"" if name == self.config.default_point else "hidden"}>{render(prediction.at(point.threshold), name)}</{tag}>'
            for name, point in self.points.items()
        )

    # --- a batch ---

    def progress(self, done: int = 0, total: int | None = None) -> str:
        """How far a batch has come; `total` is not known while a zip is under way."""
        share = f'value="{done}" max="{total}"' if total else ""
        return f'<p class="cx-progress"><progress {share} aria-label="Films answered"></progress> {done}{f" of {total}" if total else ""} answered</p>'

    def table(self, rows: Sequence[Row] = ()) -> str:
        """Name, thumbnail and answer of every film; the columns sort."""
        if not rows:
            return '<div class="cx-table cx-none"><p>The films appear here as a table that sorts, with a CSV file to keep.</p></div>'
        names = ("File", "Answer", "Probability", "Remarks")
        head = "".join(f'<th scope="col" aria-sort="none"><button type="button">{name}</button></th>' for name in names)
        unread = sum(isinstance(p, str) for *_, p in rows)
        refused = sum(isinstance(p, Prediction) and not p.accepted for *_, p in rows)
        summary = f"<strong>{len(rows)} {'film' if len(rows) == 1 else 'films'}</strong>, {refused} refused, {unread} not read"
        links = "".join(
            f'<a class="cx-plain" data-point="{escape(name)}" {"" if name == (self.config.default_point or "") else "hidden"} download="cxrlib.csv" '
            f'href="data:text/csv;charset=utf-8;base64,{self._csv(rows, name)}">Download as CSV</a>'
            for name in self.points or ("",)
        )
        return (
            f'<div class="cx-table" data-points><div class="cx-above"><p data-said>{summary}</p>{links}</div>'
            '<div class="cx-scroll" tabindex="0" role="region" aria-label="Answers">'
            f'<table><thead><tr><th scope="col"><span class="cx-unseen">Film</span></th>{head}</tr></thead><tbody>{"".join(map(self._row, rows))}</tbody>'
            f"</table></div>{self._choice('batch')}</div>"
        )

    def _row(self, row: Row) -> str:
        name, picture, p = row
        if isinstance(p, str):
            answer, chance, order, remarks = "Not read", "–", -2.0, p
        elif not p.accepted:
            answer, chance, order, remarks = "Refused", "–", -1.0, "; ".join(p.reasons)
        else:
            answer = self._per_point(p, lambda q, _: escape(_shown(q.label or "")), "span")
            chance, order, remarks = _percent(p.probability), p.probability, "; ".join(p.reasons)
        film = f'<img src="{picture}" alt="">' if picture else '<span class="cx-nothing"></span>'
        return f'<tr><td>{film}</td><td>{escape(name)}</td><td>{answer}</td><td data-order="{order}">{chance}</td><td>{escape(remarks)}</td></tr>'

    def _csv(self, rows: Sequence[Row], point: str) -> str:
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(("source", "label", "probability", "threshold", "accepted", "reasons"))
        for name, _, p in rows:
            if isinstance(p, str):
                writer.writerow((_cell(name), "", "", "", "", _cell(p)))
                continue
            q = p.at(self.points[point].threshold) if point else p
            chance = "" if math.isnan(q.probability) else q.probability
            writer.writerow((_cell(name), q.label or "", chance, q.threshold, q.accepted, _cell("; ".join(q.reasons))))
        return base64.b64encode(file.getvalue().encode("utf-8-sig")).decode()

    # --- the model ---

    def glance(self) -> str:
        """The figures that matter first."""
        if self.report is None:
            return '<p class="cx-fine">This model was not measured, or its report was not kept: rely on nothing it says.</p>'
        names = {"AUROC": "auroc", "Sensitivity": "recall", "Specificity": "specificity", "Calibration error": "ece"}
        found = {name: getattr(self.report, field) for name, field in names.items()}
        tiles = "".join(
            f"<div><dt>{name}</dt><dd><strong>{e.value:.3f}</strong> <span>{e.low:.3f} to {e.high:.3f}</span></dd></div>"
            for name, e in found.items()
            if math.isfinite(e.value)
        )
        where = f" ({escape(self.report.data)})" if self.report.data else ""
        trained = (
            "; ".join(f"{escape(s.name)}, {sum(s.train.values()):,} films" for s in self.config.sources)
            or "not recorded"
        )
        return f'<dl class="cx-glance">{tiles}</dl><p class="cx-fine">On {self.report.n:,} films{where}, with 95 % intervals. Trained on: {trained}.</p>'

    def card(self) -> str:
        """The model card, its figures put into the text and its numbers kept on one line."""
        card = self.folder / "README.md"
        if not card.is_file():
            return "This model has no card."
        text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text("utf-8"), flags=re.DOTALL)  # metadata for the Hub
        text = re.sub(
            r"(?<=\| )\d[^|A-Za-z\n]*(?= \|)", r'<span class="cx-number">\g<0></span>', text
        )  # cells of tables

        def figure(match: re.Match[str]) -> str:
            file = self.folder / "figures" / match[2]
            return (
                f"![{match[1]}](data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()})"
                if file.is_file()
                else ""
            )

        return re.sub(r"!\[([^\]]*)\]\(figures/([A-Za-z0-9_-]+\.png)\)", figure, text)


# --- words ----------------------------------------------------------------------------------------------------------------------------------------------


def _case(p: Prediction, point: str) -> str:
    labels = list(p.probabilities)
    lead, word = "The model calls this film", _shown(p.label or "")
    if p.threshold is None:
        rows = "".join(
            f'<tr><th scope="row">{escape(_shown(label))}</th><td>{_percent(x)}</td></tr>'
            for label, x in p.probabilities.items()
        )
        return _verdict(lead, word, f"<table>{rows}</table>", strong=p.label != labels[0])
    sentence = (
        f"<p>Calibrated probability of {escape(_spoken(labels[1]))}: <strong>{_percent(p.probability)}</strong>, {_relation(p.probability, p.threshold)} the "
        f"threshold of {_percent(p.threshold)}{f' ({escape(point)})' if point else ''}.</p>"
    )
    return _verdict(lead, word, sentence + _axis(p.probability, p.threshold), strong=p.label != labels[0])


def _verdict(lead: str, word: str, body: str, *, strong: bool = False) -> str:
    return f'<p class="cx-lead">{lead}</p><h2 class="cx-word{" cx-strong" if strong else ""}">{escape(word)}</h2>{body}'


def _axis(probability: float | None = None, threshold: float = 0.0) -> str:
    """Probability from 0 to 1, with the threshold and the film on it; the sentence above says the same in words."""
    marks = ""
    if probability is not None:
        side = " cx-low" if threshold < 0.15 else " cx-high" if threshold > 0.85 else ""
        at, here = f"left:{100 * threshold:.1f}%", f"left:{100 * probability:.1f}%"
        marks = f'<i class="cx-called" style="{at}"></i><i class="cx-threshold{side}" style="{at}"></i><i class="cx-here" style="{here}"></i>'
    ticks = "".join(f"<span>{tick}\u202f%</span>" for tick in (0, 50, 100))
    return f'<div class="cx-axis" aria-hidden="true"><div class="cx-bar">{marks}</div><div class="cx-ticks">{ticks}</div></div>'


def _shown(label: str) -> str:
    return label.capitalize() if label.isupper() else label


def _spoken(label: str) -> str:
    return label.lower() if label.isupper() else label


def _percent(p: float) -> str:
    if 0 < p < 0.001 or 0.999 < p < 1:
        return "under 0.1\u202f%" if p < 0.5 else "over 99.9\u202f%"
    return f"{100 * p:.{1 if p < 0.1 or p > 0.9 else 0}f}\u202f%"


def _part(p: float) -> str:
    return f"{100 * p:.0f}\u202f%" if 0 <= p <= 1 else "an unknown part"


def _relation(p: float, threshold: float) -> str:
    """Where a probability stands relative to a threshold; near and far are meant in log-odds."""
    here, there = (math.log(x / (1 - x)) for x in (min(max(x, 1e-6), 1 - 1e-6) for x in (p, threshold)))
    far = "just " if abs(here - there) < 0.5 else "well " if abs(here - there) > 2 else ""
    return f"{far}{'above' if p >= threshold else 'below'}"


def _list(reasons: Sequence[str]) -> str:
    return (
        f"<ul>{''.join(f'<li>{escape(reason[:1].upper() + reason[1:])}</li>' for reason in reasons)}</ul>"
        if reasons
        else ""
    )


def _cell(text: str) -> str:
    """Text that a spreadsheet must not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


# --- pictures -------------------------------------------------------------------------------------------------------------------------------------------


def shrink(film: Film, longest: int = SHOWN) -> Film:
    """The film as a screen shows it: in 8 bits, and no larger than needed."""
    height, width = film.size
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = (
        film.pixels
        if film.pixels.dtype == np.uint8
        else np.clip(film.pixels * (255 / film.white) + 0.5, 0, 255).astype(np.uint8)
    )
    picture = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return dataclasses.replace(film, picture=picture, white=255.0, size=(size[1], size[0]))


def lay_over(explanation: Explanation, film: Film) -> tuple[Image.Image, Image.Image]:
    """The heatmap in grey, and in colour over the film, both of the shrunken film's size."""
    heat = np.asarray(Image.fromarray(explanation.heatmap).resize(film.size[::-1], Image.Resampling.BILINEAR))
    return Image.fromarray((255 * heat + 0.5).astype(np.uint8)), dataclasses.replace(
        explanation, heatmap=heat, film=film
    ).overlay()


def thumbnail(film: Film) -> str:
    return data_url(Image.fromarray(shrink(film, 160).pixels), quality=75)


def data_url(image: Image.Image, kind: str = "JPEG", *, quality: int = 88) -> str:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
