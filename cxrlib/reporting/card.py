"""The model card: a bundle's config and report in, the text of its README.md out. The same arguments give one text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from cxrlib.config import DISCLAIMER, BundleConfig, to_dict
from cxrlib.metrics.report import METRICS, NAMES, SHORT, WITH_REFUSALS, Report, Summary, counted, metric_cells
from cxrlib.reporting.html import FIGURES

_ON_THE_HUB = {"auroc": "roc_auc", "brier": "brier_score", "ece": "expected_calibration_error"}  # the Hub's own names
_SHOWN = ("confusion_matrix", "roc", "precision_recall", "reliability", "decision_curve")
_METHODS = (
    "Network: Sandler et al. 2018, MobileNetV2: inverted residuals and linear bottlenecks, arXiv:1801.04381.",
    "Calibration: Guo et al. 2017, On calibration of modern neural networks, arXiv:1706.04599.",
    "Intervals: Wilson 1927, doi:10.1080/01621459.1927.10502953; Field and Welsh 2007, "
    "doi:10.1111/j.1467-9868.2007.00593.x.",
    "The sources named under Training data ask to be cited too.",
)


def render(config: BundleConfig, report: Report | None, *, repo_id: str | None = None) -> str:
    """Write the model card of a bundle.

    Args:
        config: The bundle's config.
        report: How the bundle was measured; `None` when it was not, and the card says so.
        repo_id: The repository on the Hugging Face Hub, `"user/repo"`, when the bundle has one.

    Returns:
        Markdown with the Hub's metadata, `model-index` included.

    Example:
        >>> from cxrlib.config import DefaultRecipe
        >>> what = {"labels": ("NORMAL", "PNEUMONIA"), "image_size": 224, "decoder": 1, "preprocessing": ""}
        >>> c = BundleConfig(**what, temperature=1.0, recipe=DefaultRecipe(), probe=(0.9, 0.1))
        >>> render(c, None).splitlines()[1]
        'library_name: cxrlib'

    References:
        Mitchell et al. 2019, "Model cards for model reporting", doi:10.1145/3287560.3287596.
    """
    measured = f" Measured: ECE {report.ece}, Brier score {report.brier}." if report else ""
    return Template((files("cxrlib.reporting") / "card.md").read_text(encoding="utf-8")).substitute(
        metadata=_metadata(config, report, repo_id),
        title=f"Chest X-ray classifier: {_text(' versus '.join(config.labels))}",
        disclaimer=DISCLAIMER,
        summary=_summary(config),
        model=f"hf://{repo_id}" if repo_id else ".",
        open=f'.from_hub("{repo_id}")' if repo_id else '(".")  # the folder that holds this file',
        answer=_answer(config),
        labels=_text(", ".join(config.labels)),
        data=_data(config),
        performance=_performance(report),
        points=_points(config),
        temperature=f"{config.temperature:.4g}",
        positive=_text(config.labels[1]),
        calibrated=measured,
        refusals=_refusals(config, report),
        recipe=_recipe(config),
        limitations=_limitations(config, report),
        citation=_citation(config, repo_id),
    )


def _backbone(config: BundleConfig) -> str:
    return getattr(config.recipe, "backbone", "mobilenet_v2")


def _metadata(config: BundleConfig, report: Report | None, repo_id: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    parts: dict[str, Summary] = {}
    if report is not None:
        name = report.data or "evaluation images"
        several = len(report.by_source) > 1
        parts = {name: report, **{f"{name}: {s}": part for s, part in report.by_source.items() if several}}
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Chest X-ray classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images",
            dataset_name=name,
            metric_type=_ON_THE_HUB.get(metric, metric),
            metric_value=round(estimate.value, 4),
            metric_name=f"{NAMES[metric][0]}, 95 % interval {estimate.interval}",
        )
        for name, part in parts.items()
        for metric in METRICS
        if not math.isnan((estimate := getattr(part, metric)).value)
    ]
    tags = ["chest-x-ray", "radiology", "medical-imaging", "image-classification", "litert", "keras"]
    measured: dict[str, Any] = {
        "metrics": [_ON_THE_HUB.get(metric, metric) for metric in METRICS],
        "model_name": repo_id or f"cxrlib {' '.join(config.labels)}",
        "eval_results": results,
    }
    return ModelCardData(
        library_name="cxrlib",
        pipeline_tag="image-classification",
        tags=[*tags, _backbone(config)],
        license=config.license,
        **(measured if results else {}),
    ).to_yaml()


def _summary(config: BundleConfig) -> str:
    images = sum(sum(source.train.values()) for source in config.sources)
    trained = f", trained on {counted(images, 'image')} from {counted(len(config.sources), 'source')}" if images else ""
    labels = " or ".join([", ".join(config.labels[:-1]), config.labels[-1]])
    size, version = f"{config.image_size} × {config.image_size} pixels", config.versions.get("cxrlib", "")
    what = (
        f"A {_text(_backbone(config))} network that classifies frontal chest radiographs of {size} as {_text(labels)}"
    )
    return f"{what}{trained}. Made with {_text(f'cxrlib {version}')}."


def _answer(config: BundleConfig) -> str:
    refused = "`prediction.label` is `None`, with reasons, when the image is refused."
    positive = _text(config.labels[1])
    if not config.operating_points:
        return f"The answer is the most probable label. {refused}"
    rule = f"`prediction.probability` is the calibrated probability of {positive}"
    return f"{rule}. From the threshold of the operating point on, the label is {positive}. {refused}"


def _data(config: BundleConfig) -> str:
    lines = ["The bundle does not record what the network was trained on."]
    if config.sources:
        head = ["Source", "Patients", "Training images", "Validation images"]
        rows = [
            [s.name, "unknown" if s.patients is None else f"{s.patients:,}", _counts(s.train), _counts(s.validation)]
            for s in config.sources
        ]
        lines = [_table(head, rows)]
    lines.append(
        f"**Population.** {_text(config.population)}"
        if config.population
        else "**Population.** Ages, sexes, devices and how the images were selected are not recorded."
    )
    if config.split and not any(note.endswith("in two splits") for note in config.notes):  # leaks that were allowed
        lines.append("Training and validation images are of different patients, as far as patients are known.")
    prints = {"Images and labels": config.fingerprint, "split": config.split}
    if named := [f"{name} `{value}`" for name, value in prints.items() if value]:
        lines.append(f"**Fingerprints.** {'; '.join(named)}.")
    if config.notes:
        lines.append("**Notes of the audit and the training.**\n\n" + _list(_text(note) for note in config.notes))
    return "\n\n".join(lines)


def _performance(report: Report | None) -> str:
    if report is None:
        return "This bundle was not measured. Measure it on images like yours with `cxrlib evaluate` before you use it."
    lines = [f"Measured on {_text(report.headline)}."]
    if len(report.labels) > 2:
        lines.append(
            "All but accuracy and the Brier score are means over the labels, each against the others; the ECE is that "
            "of the most probable label."
        )
    without = report.n_refused + report.n_unreadable
    names = (*METRICS, *(WITH_REFUSALS if without else ()))
    lines.append(_table(["Metric", "Value", "95 % interval"], [metric_cells(name, report) for name in names]))
    lines.append(f"95 % intervals: {report.intervals}; seed {report.seed}.")
    matrix = [[f"True {label}", *(f"{n:,}" for n in counts)] for label, counts in report.matrix_rows]
    lines.append(_table(["", *(f"Predicted {label}" for label in report.labels)], matrix))
    for title, parts in report.parts.items():
        rows = [
            [name, f"{p.n:,}", f"{p.n_refused + p.n_unreadable:,}", *(str(getattr(p, m)) for m in SHORT)]
            for name, p in parts.items()
        ]
        lines.append(_table([title, "Images", "No answer", *(NAMES[m][0] for m in SHORT)], rows))
    if report.by_other:
        lines.append("Images with labels that the model does not have, which are in no figure above:")
        lines.append(_table(["Label", "Images", "No answer", f"Called {report.labels[1]}"], report.other_rows))
    if report.statements:
        lines.append(_list(_text(statement) for statement in report.statements))
    lines.append("\n".join(f"![{FIGURES[name][0]}](figures/{name}.png)" for name in _SHOWN))
    return "\n\n".join(lines)


def _points(config: BundleConfig) -> str:
    if not config.operating_points:
        return "None: the most probable label is predicted."
    sources = sorted({name for point in config.operating_points.values() for name in point.by_source})
    rows = [
        [
            f"{name} (default)" if name == config.default_point else name,
            f"{p.threshold:.4f}",
            *(_pair(rates) for rates in ((p.sensitivity, p.specificity), *(p.by_source.get(s) for s in sources))),
        ]
        for name, p in config.operating_points.items()
    ]
    against = f" for {_text(config.labels[1])} against everything else" if len(config.labels) > 2 else ""
    table = _table(["Operating point", "Threshold", "All sources", *sources], rows)
    return f"Chosen on the validation images{against}. Sensitivity / specificity there:\n\n{table}"


def _pair(rates: tuple[float, float] | None) -> str:
    return " / ".join("–" if x < 0 else f"{x:.3f}" for x in rates or (-1, -1))


def _refusals(config: BundleConfig, report: Report | None) -> str:
    if config.gate is None:
        return "The bundle has no gate: it answers for any picture. Give it frontal chest radiographs only."
    text = "Images that do not look like a frontal chest radiograph are refused, with a reason, and get no probability."
    if report is None or not report.n:
        return text
    share = f"{100 * report.n_refused / report.n:.1f} %"
    return f"{text} In the measurement above: {report.n_refused:,} of {counted(report.n, 'image')} ({share})."


def _recipe(config: BundleConfig) -> str:
    settings = to_dict(config.recipe)
    changes = settings.pop("augmentation")
    lines = [f"**Preprocessing.** {_text(config.preprocessing)}"] if config.preprocessing else []
    lines.append(_details("Recipe", [*settings.items(), *((f"augmentation.{n}", v) for n, v in changes.items())]))
    if config.versions:
        lines.append(_details("Versions", config.versions.items()))
    probe = f"{', '.join(f'{p:.6f}' for p in config.probe)} for {_text(', '.join(config.labels))}"
    lines.append(
        "The network runs on LiteRT from `model.tflite`. Loading the bundle checks the SHA-256 of every file, and that "
        f"a drawn test image still gets {probe} before calibration."
    )
    return "\n\n".join(lines)


def _limitations(config: BundleConfig, report: Report | None) -> str:
    lines = []
    if report is None:
        lines.append("**It was not measured.**")
    if not config.sources:
        lines.append("**What it was trained on is not recorded.**")
    elif len(config.sources) == 1:
        name = _text(config.sources[0].name)
        lines.append(f"**It was trained on one source ({name})**: it may have learnt that place, not the disease.")
    if report is not None:
        if report.by_other:
            shares = (f"{_text(label)} {part.called_positive}" for label, part in report.by_other.items())
            lines.append(f"Share of images with other labels called {_text(report.labels[1])}: {', '.join(shares)}.")
        else:
            lines.append(f"How often it calls other findings {_text(report.labels[1])} was not measured.")
        if len(report.by_source) < 2:
            lines.append("It was measured on images of one source, or of sources that are not told apart.")
        if not report.subgroups:
            lines.append("Subgroups of age, sex and view were not measured.")
    return _list(
        [
            *lines,
            "It sees one radiograph: no history, symptoms, laboratory values, earlier images or second view.",
            "The sources' labels count as the truth, with their errors.",
            "Other devices, positions, ages and hospitals shift the probabilities. Measure it on your images first.",
            "A heatmap shows what the network used, not where disease is.",
            "Predictive values depend on how common disease is where it is used.",
            "Not recorded here, and asked for by TRIPOD+AI (doi:10.1136/bmj-2023-078378) and CLAIM "
            "(doi:10.1148/ryai.240300): dates, eligibility, how the labels were made, devices, ethics, funding.",
        ]
    )


def _citation(config: BundleConfig, repo_id: str | None) -> str:
    fields = {
        "title": f"Chest X-ray classifier: {' versus '.join(config.labels)}",
        "note": f"Made with cxrlib {config.versions.get('cxrlib', '')}".rstrip(),
    }
    if config.fingerprint:
        fields["note"] += f", trained on images with the fingerprint {config.fingerprint[:16]}"
    if repo_id:
        fields["url"] = f"https://huggingface.co/{repo_id}"
    plain = {name: re.sub(r"[{}<>\\`]", "", " ".join(value.split())) for name, value in fields.items()}
    entry = "\n".join(f"  {name} = {{{value}}}," for name, value in plain.items())
    rights = f"Licence of the weights: {_text(config.license)}." if config.license else "No licence is recorded."
    methods = _METHODS[0 if _backbone(config) == "mobilenet_v2" else 1 :]
    return f"```bibtex\n@software{{cxrlib_model,\n{entry}\n}}\n```\n\n{_list(methods)}\n\n{rights}"


# --- Markdown ---


def _counts(images: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {label}" for label, n in images.items()) or "0"


def _text(text: str) -> str:
    """Foreign words as plain words: on one line, without the effect of Markdown's or HTML's signs."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell if cell == '---' else _text(cell) for cell in line)} |" for line in lines)


def _details(title: str, items: Iterable[tuple[str, Any]]) -> str:
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in items]
    return f"<details><summary>{title}</summary>\n\n{_table(['Name', 'Value'], rows)}\n\n</details>"
