"""One self-contained HTML page from a report and its figures: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from cxrlib.config import DISCLAIMER
from cxrlib.metrics.compute import BINS, Estimate, Report, Row, Summary
from cxrlib.metrics.report import counted

LISTED = 100  # films in a list, at most: predictions.csv holds all

_NAMES = {
    "auroc": ("AUROC", "Chance that a positive film scores above a negative one"),
    "average_precision": ("Average precision", "Area under the precision–recall curve; chance is the prevalence"),
    "accuracy": ("Accuracy", "Part of the films with the right label"),
    "recall": ("Sensitivity (recall)", "Part of the positive films called positive"),
    "specificity": ("Specificity", "Part of the negative films called negative"),
    "precision": ("Precision (PPV)", "Part of the films called positive that are; it moves with the prevalence"),
    "npv": ("NPV", "Part of the films called negative that are; it moves with the prevalence"),
    "f1": ("F1", "Harmonic mean of precision and sensitivity"),
    "brier": ("Brier score", "Mean squared error of the probabilities; 0 is best"),
    "ece": ("ECE", f"Expected calibration error in {BINS} bins; 0 is best"),
    "sensitivity_with_refusals_missed": ("Sensitivity, refusals missed", "Had every refused film been called wrongly"),
    "accuracy_with_refusals_wrong": ("Accuracy, refusals wrong", "Had every refused film been called wrongly"),
}
_FIGURES = {
    "confusion_matrix": ("Confusion matrix", "Films by true and predicted label."),
    "roc": (
        "ROC curve",
        "Sensitivity against false alarms at every threshold, with a 95 % band and the operating points.",
    ),
    "precision_recall": (
        "Precision and recall",
        "Precision against sensitivity at every threshold, with a 95 % band and the operating points.",
    ),
    "reliability": (
        "Calibration",
        "How often the label was true against the probability it was given, above the number of films.",
    ),
    "decision_curve": (
        "Decision curve",
        "Net benefit of acting on the model, on every film and on none. It assumes the prevalence of these films.",
    ),
    "groups": (
        "By label, source and subgroup",
        "AUROC, sensitivity and specificity of each, with 95 % intervals. The dotted line is all films together.",
    ),
    "samples": ("Samples", "Some films, the surest errors first, each beside itself under its heatmap."),
    "history": ("Training", "How the training went, epoch by epoch."),
}
_WIDE = ("groups", "samples", "history")
_SHORT = ("auroc", "recall", "specificity", "accuracy", "ece")


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
        >>> r = make_report([0, 1], [[0.9, 0.1], [0.2, 0.8]], labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names=["a", "b"])
        >>> render(r, {}).splitlines()[0]
        '<!DOCTYPE html>'
    """
    tiles = [_tile(name, getattr(report, name)) for name in _SHORT]
    return Template(files("cxrlib").joinpath("html_report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        subtitle=escape(_subtitle(report)),
        disclaimer=escape(DISCLAIMER),
        tiles="\n".join(tiles),
        statements=_notes(report),
        metrics=_metrics(report),
        parts=_parts(report),
        figures="\n".join(_figure(name, picture) for name, picture in figures.items()),
        lists=_lists(report),
        method=_method(report),
    )


def _subtitle(report: Report) -> str:
    patients = "" if report.n_patients is None else f" of {counted(report.n_patients, 'patient')}"
    refused = f", {report.n_refused:,} of them refused" if report.n_refused else ""
    rule = (
        "the most probable label is predicted"
        if report.threshold is None
        else f"{report.labels[1]} is predicted from a probability of {report.threshold:.3g} on"
    )
    data = f"{report.data} · " if report.data else ""
    return f"{data}{' versus '.join(report.labels)} · {counted(report.n, 'film')}{patients}{refused} · {rule}"


def _tile(name: str, estimate: Estimate) -> str:
    value, _, interval = str(estimate).partition(" ")
    return f"<div><dt>{_NAMES[name][0]}</dt><dd>{value}<small>{interval.strip('()') or '&nbsp;'}</small></dd></div>"


def _notes(report: Report) -> str:
    own = [escape(s) for s in report.statements]
    parts = [
        *report.by_label.items(),
        *report.by_source.items(),
        *((f"{c} = {v}", p) for c, values in report.subgroups.items() for v, p in values.items()),
    ]
    own += [
        f"{escape(name)}: {escape(s)}" for name, part in parts for s in part.statements if s not in report.statements
    ]
    return f"<h2>Keep in mind</h2>\n<ul>{''.join(f'<li>{s}</li>' for s in own)}</ul>" if own else ""


def _metrics(report: Report) -> str:
    names = [name for name in _NAMES if report.n_refused or "refusals" not in name]
    rows = [[_NAMES[name][0], *_estimate(getattr(report, name)), _NAMES[name][1]] for name in names]
    mean = (
        " Where it says positive, this is the mean over the labels, each against the others."
        if len(report.labels) > 2
        else f" Positive is {report.labels[1]}."
    )
    return _table(
        f"All films, with 95 % intervals.{mean}",
        ["Metric", "Value", "95 % interval", "What it is"],
        rows,
        numbers={1, 2},
        prose={3},
    )


def _estimate(e: Estimate) -> list[str]:
    value, _, interval = str(e).partition(" ")
    return [value, interval.strip("()")]


def _parts(report: Report) -> str:
    html = []
    for title, parts in {
        "Labels": report.by_label,
        "Sources": report.by_source,
        **{f"Subgroups by {c}": v for c, v in report.subgroups.items()},
    }.items():
        if parts:
            rows = [
                [name, *_counts(part), *("\n".join(_estimate(getattr(part, metric))) for metric in _SHORT)]
                for name, part in parts.items()
            ]
            head = ["", "Films", "Positive", "Refused", *(_NAMES[metric][0] for metric in _SHORT)]
            html.append(f"<h3>{escape(title)}</h3>{_table('', head, rows, numbers=set(range(1, 9)))}")
    return "\n".join(html)


def _counts(part: Summary) -> list[str]:
    positive = f"{part.confusion_matrix[1].sum():,}" if len(part.confusion_matrix) == 2 else "–"
    return [f"{part.n:,}", positive, f"{part.n_refused:,}"]


def _figure(name: str, picture: Path | bytes) -> str:
    title, caption = _FIGURES.get(name, (name, ""))
    data = base64.b64encode(picture if isinstance(picture, bytes) else picture.read_bytes()).decode("ascii")
    kind = ' class="wide"' if name in _WIDE else ""
    alt = escape(f"{title}. {caption}")
    return f'<figure{kind}><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>'


def _lists(report: Report) -> str:
    wrong = [row for row in report.predictions if row.label not in (None, row.truth)]
    wrong.sort(key=lambda row: -max(row.probabilities))
    refused = [row for row in report.predictions if row.label is None]
    html = []
    if wrong:
        rows = [
            [
                row.name,
                row.truth,
                str(row.label),
                f"{row.probabilities[report.labels.index(str(row.label))]:.3f}",
                *_origin(row),
            ]
            for row in wrong
        ]
        html.append(
            _listing(
                "wrong prediction",
                ", the surest first",
                ["Film", "True", "Predicted", "Probability", "Source", "Patient"],
                rows,
                numbers={3},
            )
        )
    if refused:
        rows = [[row.name, row.truth, row.refused or "no reason given", *_origin(row)] for row in refused]
        html.append(_listing("refused film", "", ["Film", "True", "Why", "Source", "Patient"], rows, prose={2}))
    return "<h2>Films to look at</h2>\n" + "\n".join(html) if html else ""


def _origin(row: Row) -> list[str]:
    return [row.source, row.patient or ""]


def _listing(thing: str, order: str, head: Sequence[str], rows: Sequence[Sequence[str]], **columns: set[int]) -> str:
    more = f"The first {LISTED} of {len(rows):,}; predictions.csv holds all." if len(rows) > LISTED else ""
    return f"<details><summary>{counted(len(rows), thing)}{order}</summary>{_table(more, head, rows[:LISTED], **columns)}</details>"


def _method(report: Report) -> str:
    sentences = [
        f"95 % intervals: {report.intervals}; seed {report.seed}.",
        "What is resampled has its standard error put on the logit scale; the calibration error's interval allows for the noise that raises it.",
        "Refused films are in no metric but the two that count them as errors."
        if report.n_refused
        else "No film was refused.",
        f"The calibration error has {BINS} equally wide bins of the {'second label' if len(report.labels) == 2 else 'most probable label'}'s probability.",
    ]
    if len(report.labels) > 2:
        sentences.append(
            "AUROC, average precision, precision, sensitivity, specificity, F1 and NPV are means over the labels, each against the others."
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
    """A table in a box of its own that scrolls on a narrow page; columns of prose stay wide enough to be read, the words above it stay in view."""

    def cell(tag: str, i: int, text: str) -> str:
        kind = (
            ' class="n"'
            if i in numbers
            else ' class="prose"'
            if i in prose
            else ' class="name"'
            if tag == "td" and i == 0
            else ""
        )
        return f"<{tag}{kind}>{escape(text).replace(chr(10), '<br>')}</{tag}>"

    lines = "\n".join(f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in rows)
    top = "".join(cell("th", i, text) for i, text in enumerate(head))
    title = f'<p class="soft">{escape(caption)}</p>' if caption else ""
    return f'{title}<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
