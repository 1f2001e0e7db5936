"""One self-contained HTML page from a report and its figures: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from cxrlib.config import DISCLAIMER
from cxrlib.metrics.calibration import BINS
from cxrlib.metrics.report import METRICS, NAMES, SHORT, Report, Row, Summary, counted, metric_cells

LISTED = 100  # images in a list, at most: predictions.csv holds all

FIGURES = {
    "confusion_matrix": ("Confusion matrix", "Images by true and predicted label."),
    "roc": ("ROC curve", "Sensitivity against false alarms at every threshold, with a 95 % band."),
    "precision_recall": ("Precision and recall", "Precision against sensitivity at every threshold, with a 95 % band."),
    "reliability": ("Calibration", "How often the label was true at each probability, above the number of images."),
    "decision_curve": (
        "Decision curve",
        "Net benefit of acting on the model, on every image and on none, at the prevalence of these images.",
    ),
    "groups": (
        "By label, source and subgroup",
        "AUROC, sensitivity and specificity of each, with 95 % intervals. The dotted line is all images together.",
    ),
    "samples": ("Samples", "Some images, the most confident errors first, each beside itself with its heatmap."),
    "history": ("Training", "Loss, accuracy and AUROC by epoch."),
}
_WIDE = ("groups", "samples", "history")


def render(
    report: Report, figures: Mapping[str, Path | bytes], *, title: str = "Chest X-ray classification report"
) -> str:
    """Render a report as one HTML page that needs no other file.

    Args:
        report: The report.
        figures: PNG files or their bytes by the name of the figure, as `plots.save` gives them; embedded in this order.
        title: Heading of the page.

    Returns:
        The page: HTML text.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.2, 0.8]]
        >>> r = make_report([0, 1], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
        >>> render(r, {}).splitlines()[0]
        '<!DOCTYPE html>'
    """
    pictures = "\n".join(_figure(name, picture) for name, picture in figures.items())
    missing = '<p>They were left out: matplotlib is not installed (pip install "cxrlib[train]").</p>'
    return Template((files("cxrlib.reporting") / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        subtitle=escape(report.headline),
        disclaimer=escape(DISCLAIMER),
        tiles="\n".join(_tile(name, report) for name in SHORT),
        statements=_notes(report),
        metrics=_metrics(report),
        parts=_parts(report),
        figures=f'<div class="figures">\n{pictures}\n</div>' if pictures else missing,
        lists=_lists(report),
        method=_method(report),
    )


def _tile(name: str, report: Report) -> str:
    title, value, interval = metric_cells(name, report)
    return f"<div><dt>{title}</dt><dd>{value}<small>{interval or '&nbsp;'}</small></dd></div>"


def _notes(report: Report) -> str:
    parts = [(name, part) for values in report.parts.values() for name, part in values.items()]
    own = [f"{name}: {s}" for name, part in parts for s in part.statements if s not in report.statements]
    lines = "".join(f"<li>{escape(line)}</li>" for line in [*report.statements, *own])
    return f"<h2>Keep in mind</h2>\n<ul>{lines}</ul>" if lines else ""


def _metrics(report: Report) -> str:
    names = [name for name in NAMES if name in METRICS or report.n_refused or report.n_unreadable]
    mean = f"Positive is {report.labels[1]}."
    if len(report.labels) > 2:
        mean = "Where it says positive, this is the mean over the labels, each against the others."
    rows = [[*metric_cells(name, report), NAMES[name][1]] for name in names]
    head = ["Metric", "Value", "95 % interval", "What it is"]
    return _table(f"All images, with 95 % intervals. {mean}", head, rows, numbers={1, 2}, prose={3})


def _parts(report: Report) -> str:
    html = []
    head = ["", "Images", "Positive", "No answer", *(NAMES[name][0] for name in SHORT)]
    for title, parts in report.parts.items():
        rows = [
            [name, *_counts(part), *("\n".join(metric_cells(metric, part)[1:]) for metric in SHORT)]
            for name, part in parts.items()
        ]
        html.append(f"<h3>{escape(title)}</h3>{_table('', head, rows, numbers=set(range(1, 9)))}")
    if report.by_other:
        head = ["Label", "Images", "No answer", f"Called {report.labels[1]}"]
        text = "Images with labels that the model does not have. They are in no other figure."
        html.append(f"<h3>Other labels</h3>{_table(text, head, report.other_rows, numbers={1, 2, 3})}")
    return "\n".join(html)


def _counts(part: Summary) -> list[str]:
    positive = f"{part.confusion_matrix[1].sum():,}" if len(part.confusion_matrix) == 2 else "–"
    return [f"{part.n:,}", positive, f"{part.n_refused + part.n_unreadable:,}"]


def _figure(name: str, picture: Path | bytes) -> str:
    title, caption = (escape(text) for text in FIGURES.get(name, (name, "")))
    data = base64.b64encode(picture if isinstance(picture, bytes) else picture.read_bytes()).decode("ascii")
    kind = ' class="wide"' if name in _WIDE else ""
    image = f'<img alt="{title}. {caption}" src="data:image/png;base64,{data}">'
    return f"<figure{kind}>{image}<figcaption><b>{title}.</b> {caption}</figcaption></figure>"


def _lists(report: Report) -> str:
    def listed(rows: list[Row]) -> list[list[str]]:
        rows.sort(key=lambda row: -max(row.probabilities))
        return [
            [row.name, row.truth, str(row.label), f"{max(row.probabilities):.3f}", row.source, row.patient or ""]
            for row in rows
        ]

    answered = [row for row in report.predictions if row.label is not None]
    wrong = [row for row in answered if row.truth in report.labels and row.label != row.truth]
    others = [row for row in answered if row.truth not in report.labels and row.label == report.labels[1]]
    without = [row for row in report.predictions if row.label is None]
    head = ["Image", "True", "Predicted", "Probability", "Source", "Patient"]
    html = []
    if wrong:
        title = f"{counted(len(wrong), 'wrong prediction')}, the most confident first"
        html.append(_listing(title, head, listed(wrong), numbers={3}))
    if others:
        title = f"{counted(len(others), 'image')} of other labels called {report.labels[1]}"
        html.append(_listing(title, head, listed(others), numbers={3}))
    if without:
        rows = [[r.name, r.truth, r.reasons or "no reason given", r.source, r.patient or ""] for r in without]
        title = f"{counted(len(without), 'image')} without an answer"
        html.append(_listing(title, ["Image", "True", "Why", *head[4:]], rows, prose={2}))
    return "<h2>Images to look at</h2>\n" + "\n".join(html) if html else ""


def _listing(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], **columns: set[int]) -> str:
    more = f"The first {LISTED} of {len(rows):,}; predictions.csv holds all." if len(rows) > LISTED else ""
    return f"<details><summary>{escape(title)}</summary>{_table(more, head, rows[:LISTED], **columns)}</details>"


def _method(report: Report) -> str:
    without = report.n_refused + report.n_unreadable
    bins = "second label" if len(report.labels) == 2 else "most probable label"
    sentences = [
        f"95 % intervals: {report.intervals}; seed {report.seed}.",
        "Standard errors of resamples are put on the logit scale; the interval of the calibration error allows for "
        "the noise that raises it.",
        "Images without an answer are in no metric but the two that count them as errors."
        if without
        else "Every image has an answer.",
        f"The calibration error has {BINS} equally wide bins of the probability of the {bins}.",
    ]
    if len(report.labels) > 2:
        sentences.append(
            "AUROC, average precision, precision, sensitivity, specificity, F1 and NPV are means over the labels, each "
            "against the others."
        )
    return f"<p>{escape(' '.join(sentences))}</p>"


def _table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Container[int] = (),
    prose: Container[int] = (),
) -> str:
    """A table in a box of its own that scrolls on a narrow page; columns of prose stay wide enough to be read."""

    def cell(tag: str, i: int, text: str) -> str:
        name = "name" if tag == "td" and i == 0 else ""
        kind = "n" if i in numbers else "prose" if i in prose else name
        mark = f' class="{kind}"' if kind else ""
        return f"<{tag}{mark}>{escape(text).replace(chr(10), '<br>')}</{tag}>"

    lines = "\n".join(f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in rows)
    top = "".join(cell("th", i, text) for i, text in enumerate(head))
    title = f'<p class="soft">{escape(caption)}</p>' if caption else ""
    return f'{title}<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
