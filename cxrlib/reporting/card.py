"""The model card: a bundle's config and report in, the text of its README.md out. Pure: the same arguments give the same text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from cxrlib.config import DISCLAIMER, BundleConfig, OperatingPoint, to_dict
from cxrlib.metrics.compute import METRICS, WITH_REFUSALS, Estimate, Report, Summary
from cxrlib.metrics.report import counted

_NAMES = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "accuracy": "Accuracy",
    "precision": "Precision (positive predictive value)",
    "recall": "Sensitivity (recall)",
    "specificity": "Specificity",
    "f1": "F1",
    "npv": "Negative predictive value",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "sensitivity_with_refusals_missed": "Sensitivity, had every refused film been called wrongly",
    "accuracy_with_refusals_wrong": "Accuracy, had every refused film been called wrongly",
}
_ON_THE_HUB = {  # names of the Hub's metric types
    "auroc": "roc_auc",
    "average_precision": "average_precision",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "f1",
    "npv": "npv",
    "brier": "brier_score",
    "ece": "expected_calibration_error",
}
_SHORT = ("auroc", "recall", "specificity", "accuracy", "ece")
_FIGURES = {
    "confusion_matrix": "Confusion matrix",
    "roc": "ROC curve with its 95 % band and the operating point",
    "precision_recall": "Precision–recall curve with its 95 % band and the operating point",
    "reliability": "Reliability diagram",
    "decision_curve": "Decision curve",
}


def render(
    config: BundleConfig,
    report: Report | None,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    population: str | None = None,
) -> str:
    """Write the model card of a bundle.

    Args:
        config: The bundle's config.
        report: How the bundle was measured; `None` when it was not, and the card says so.
        repo_id: The repository on the Hugging Face Hub, `"user/repo"`, when the bundle has one: names it in the example and the citation.
        license: Licence of the weights as the Hub abbreviates it, such as `"cc-by-4.0"`; when not given, the card says that none is recorded.
        population: Whom the training films show, in words; when not given, the card says that this is not recorded.

    Returns:
        Markdown with the Hub's metadata, `model-index` included.

    Example:
        >>> from cxrlib.config import TrainConfig
        >>> c = BundleConfig(
        ...     labels=("NORMAL", "PNEUMONIA"), image_size=224, decoder=1, preprocessing="", temperature=1.0, training=TrainConfig(), probe=(0.9, 0.1)
        ... )
        >>> render(c, None).splitlines()[1]
        'library_name: cxrlib'

    References:
        Mitchell et al. 2019, "Model cards for model reporting", doi:10.1145/3287560.3287596.
    """
    return Template(files("cxrlib").joinpath("card.md").read_text(encoding="utf-8")).substitute(
        metadata=_metadata(config, report, repo_id, license),
        title=f"Chest X-ray classifier: {_text(' versus '.join(config.labels))}",
        disclaimer=DISCLAIMER,
        summary=_summary(config),
        model=f"hf://{repo_id}" if repo_id else ".",
        open=f'.from_hub("{repo_id}")' if repo_id else '(".")  # the folder that holds this file',
        answer=_answer(config),
        use=_use(config),
        data=_data(config, population),
        performance=_performance(report),
        points=_points(config),
        calibration=_calibration(config, report),
        refusals=_refusals(config, report),
        recipe=_recipe(config),
        limitations=_limitations(config, report),
        checklists=_checklists(config, report, population),
        citation=_citation(config, repo_id, license),
    )


def _metadata(config: BundleConfig, report: Report | None, repo_id: str | None, license: str | None) -> str:
    tags = [
        "chest-x-ray",
        "radiology",
        "medical-imaging",
        "image-classification",
        "litert",
        "keras",
        config.training.backbone,
    ]
    data: dict[str, Any] = {"library_name": "cxrlib", "pipeline_tag": "image-classification", "tags": tags}
    if license:
        data["license"] = license
    if report is not None:
        parts: dict[str, Summary] = {report.data or "evaluation films": report}
        if len(report.by_source) > 1 or not report.data:
            parts |= {
                f"{report.data}: {name}" if report.data else name: part for name, part in report.by_source.items()
            }
        if len(report.by_source) == 1 and not report.data:
            del parts["evaluation films"]
        results = [result for name, part in parts.items() if (result := _result(name, part))]
        if results:
            data["metrics"] = [_ON_THE_HUB[name] for name in METRICS]
            data["model-index"] = [{"name": repo_id or _slug(f"cxrlib {' '.join(config.labels)}"), "results": results}]
    return _yaml(data)


def _result(name: str, part: Summary) -> dict[str, Any]:
    metrics = [
        {"type": _ON_THE_HUB[m], "value": round(e.value, 4), "name": f"{_NAMES[m]}, 95 % interval {_range(e)}"}
        for m, e in _estimates(part)
        if m in _ON_THE_HUB
    ]
    task = {"type": "image-classification", "name": "Chest X-ray classification"}
    return {"task": task, "dataset": {"type": _slug(name), "name": name}, "metrics": metrics} if metrics else {}


def _summary(config: BundleConfig) -> str:
    films = sum(sum(source.train.values()) for source in config.sources)
    trained = f", trained on {films:,} radiographs from {counted(len(config.sources), 'source')}" if films else ""
    labels = " and ".join([", ".join(config.labels[:-1]), config.labels[-1]])
    return (
        f"A {_text(config.training.backbone)} network that tells {_text(labels)} apart on one frontal chest radiograph of "
        f"{config.image_size} × {config.image_size} pixels{trained}. Made with cxrlib {_text(config.versions.get('cxrlib', ''))}".rstrip()
        + "."
    )


def _answer(config: BundleConfig) -> str:
    if len(config.labels) > 2:
        return "The answer is the most probable label. `prediction.label` is `None`, with the reasons, when the picture was refused."
    return (
        f"`prediction.probability` is the calibrated probability of {_text(config.labels[1])}; from the operating point's threshold on, the label is "
        f"{_text(config.labels[1])}. `prediction.label` is `None`, with the reasons, when the picture was refused."
    )


def _use(config: BundleConfig) -> str:
    labels = _text(", ".join(config.labels))
    outside = (
        "diagnosis or exclusion of disease without a reader",
        f"findings other than these labels (“{_text(config.labels[0])}” only means that none of the others was seen)",
        "lateral views, CT, ultrasound, photographs of films",
        "patients, devices or hospitals unlike those listed below, until it was measured there",
    )
    return _list(
        [
            "**For** research, teaching and the sorting of worklists under the eyes of somebody who is qualified to read chest radiographs.",
            f"**Input**: one frontal (PA or AP) chest radiograph. **Output**: {labels}, with probabilities and a heatmap.",
            f"**Not for** {'; '.join(outside)}.",
        ]
    )


def _data(config: BundleConfig, population: str | None) -> str:
    lines = []
    if config.sources:
        rows = [
            [
                source.name,
                "unknown" if source.patients is None else f"{source.patients:,}",
                _counts(source.train),
                _counts(source.validation),
                f"{source.trust:.0%}",
            ]
            for source in config.sources
        ]
        lines.append(_table(["Source", "Patients", "Training films", "Validation films", "Labels believed"], rows))
        if any(source.trust < 1 for source in config.sources):
            lines.append(
                "Films of a source count the less while training, the more its labels contradict what all sources together teach (`source_trust`)."
            )
    else:
        lines.append("The bundle does not record what the network was trained on.")
    lines.append(
        f"**Population.** {_text(population)}"
        if population
        else "**Population.** Ages, sexes, devices and the way the films were chosen are not recorded in the bundle."
    )
    if _separated(config):
        lines.append("Training and validation films are of different patients, as far as patients are known.")
    prints = {"Films and labels": config.fingerprint, "split": config.split}
    if any(prints.values()):
        lines.append(
            f"**Fingerprints.** {'; '.join(f'{name} `{_plain(value)}`' for name, value in prints.items() if value)}."
        )
    if config.notes:
        lines.append(
            "**What the audit of these films and the training noted.**\n\n"
            + _list(_text(note) for note in config.notes)
        )
    else:
        lines.append("**Audit.** No remark is recorded.")
    return "\n\n".join(lines)


def _separated(config: BundleConfig) -> bool:
    """Whether no patient trained and validated: leaks that were allowed are noted."""
    return bool(config.split) and not any(note.endswith("in two splits") for note in config.notes)


def _performance(report: Report | None) -> str:
    if report is None:
        return "This bundle was not measured, or its report was not kept: do not rely on it before `cxrlib evaluate` has measured it on films like yours."
    patients = "" if report.n_patients is None else f" of {counted(report.n_patients, 'patient')}"
    rule = "the most probable label" if report.threshold is None else f"threshold {report.threshold:.4g}"
    lines = [
        f"Measured on {_text(report.data) + ': ' if report.data else ''}{counted(report.n, 'film')}{patients}, {report.n_refused:,} of them refused; {rule}."
    ]
    if len(report.labels) > 2:
        lines.append(
            "All but accuracy and the Brier score are means over the labels, each against the others; the calibration error is that of the most probable label."
        )
    names = [name for name in (*METRICS, *WITH_REFUSALS) if report.n_refused or name in METRICS]
    lines.append(
        _table(["Metric", "Value", "95 % interval"], [[_NAMES[name], *_cells(getattr(report, name))] for name in names])
    )
    lines.append(f"95 % intervals: {report.intervals}; seed {report.seed}.")
    head = ["", *(f"Predicted {label}" for label in report.labels)]
    lines.append(
        _table(
            head,
            [
                [f"True {label}", *(f"{n:,}" for n in row)]
                for label, row in zip(report.labels, report.confusion_matrix.tolist(), strict=True)
            ],
        )
    )
    parts = {
        "Label": report.by_label,
        "Source": report.by_source,
        **{f"Subgroup by {column}": values for column, values in report.subgroups.items()},
    }
    for title, values in parts.items():
        if len(values) > 1 or (values and title != "Source"):
            rows = [
                [name, f"{part.n:,}", f"{part.n_refused:,}", *(str(getattr(part, m)) for m in _SHORT)]
                for name, part in values.items()
            ]
            lines.append(_table([title, "Films", "Refused", *(_NAMES[m] for m in _SHORT)], rows))
    if report.statements:
        lines.append(_list(_text(statement) for statement in report.statements))
    lines.append("\n".join(f"![{title}](figures/{name}.png)" for name, title in _FIGURES.items()))
    return "\n\n".join(lines)


def _points(config: BundleConfig) -> str:
    if not config.operating_points:
        return "None: with three or more labels the most probable one is predicted."
    sources = sorted({name for point in config.operating_points.values() for name in point.by_source})
    rows = [
        [
            f"{name} (default)" if name == config.default_point else name,
            f"{p.threshold:.4f}",
            f"{p.sensitivity:.3f}",
            f"{p.specificity:.3f}",
            *(_pair(p, s) for s in sources),
        ]
        for name, p in config.operating_points.items()
    ]
    head = [
        "Operating point",
        "Threshold",
        "Sensitivity",
        "Specificity",
        *(f"{source}: sensitivity / specificity" for source in sources),
    ]
    return "Chosen on validation films; this is what they achieved there.\n\n" + _table(head, rows)


def _pair(point: OperatingPoint, source: str) -> str:
    return " / ".join("–" if x < 0 else f"{x:.3f}" for x in point.by_source.get(source, (-1.0, -1.0)))


def _calibration(config: BundleConfig, report: Report | None) -> str:
    text = (
        f"Logits are divided by the temperature {config.temperature:.4g}, fitted on validation films (Guo et al. 2017). "
        + (
            "A probability holds for films among which disease is about as common as among those of the training: "
            if config.training.balance == "none"
            else "Classes count alike in training, so a probability holds where every class is equally common: "
        )
        + "where disease is rarer, the model overstates it."
    )
    return (
        text
        if report is None
        else f"{text} Measured: expected calibration error {report.ece}, Brier score {report.brier}."
    )


def _refusals(config: BundleConfig, report: Report | None) -> str:
    if config.gate is None:
        return "The bundle has no gate: it answers for any picture, a cat included. See to it that only frontal chest radiographs reach it."
    text = "Pictures that do not look like the frontal chest radiographs of the training are refused with a reason, and get no probability."
    if report is None or not report.n:
        return text
    return f"{text} In the measurement above {report.n_refused:,} of {counted(report.n, 'film')} were refused ({report.n_refused / report.n:.1%}).".replace(
        "%)", " %)"
    )


def _recipe(config: BundleConfig) -> str:
    training = to_dict(config.training)
    augment = training.pop("augment")
    lines = [f"**Preprocessing.** {_text(config.preprocessing)}"] if config.preprocessing else []
    lines.append(
        _details("The recipe", [*training.items(), *((f"augment.{name}", value) for name, value in augment.items())])
    )
    if config.versions:
        lines.append(_details("Versions", config.versions.items()))
    lines.append(
        f"The network runs on LiteRT from `model.tflite`. Whoever loads the bundle checks the SHA-256 of every file, and that a drawn probe image still gets "
        f"{', '.join(f'{p:.6f}' for p in config.probe)} for {_text(', '.join(config.labels))} before calibration."
    )
    return "\n\n".join(lines)


def _limitations(config: BundleConfig, report: Report | None) -> str:
    lines = [
        "It sees one radiograph: no history, no symptoms, no laboratory values, no earlier film, no second view. A film alone seldom makes a diagnosis.",
        "Its truth is that of the sources' labels, with their errors.",
        "Other devices, postures, ages and hospitals change how films look. Ranking suffers less than the threshold: measure both on your films first.",
        "A heatmap shows what moved the network, not where disease is.",
        "Predictive values and the benefit of use depend on how common disease is where it is used.",
    ]
    if len(config.sources) == 1:
        lines.insert(
            0,
            f"**It was trained on one source ({_text(config.sources[0].name)})**: it may have learnt that place, not the disease.",
        )
    elif not config.sources:
        lines.insert(0, "**What it was trained on is not recorded.**")
    if report is None:
        lines.insert(0, "**It was not measured.**")
    elif len(report.by_source) < 2:
        lines.append("It was measured on films of one source, or of sources that are not told apart.")
    if report is not None and not report.subgroups:
        lines.append("Whether it serves men and women, the young and the old equally well was not measured.")
    return _list(lines)


def _checklists(config: BundleConfig, report: Report | None, population: str | None) -> str:
    """What TRIPOD+AI (items by number) and CLAIM ask for: where it is answered, or that the bundle cannot."""
    measured, sources = report is not None, bool(config.sources)
    subgroups = measured and any(report.subgroups.values())  # type: ignore[union-attr]
    several = measured and len(report.by_source) > 1  # type: ignore[union-attr]
    items: list[tuple[str, str, str | None]] = [
        ("Kind of model, target and users", "1, 3b", "Intended use"),
        ("Sources of the data", "5a", "Training data" if sources else None),
        ("Whom the films show", "6a, 20b", "Training data" if population else None),
        ("Preparation of the films", "7, 9", "How it was made" if config.preprocessing else None),
        ("Numbers of patients and films", "20a, 21", "Training data" if sources else None),
        (
            "Separation of training, validation and test by patient",
            "12a",
            "Training data" if _separated(config) else None,
        ),
        ("Imbalance of the classes", "13", "How it was made"),
        ("Output, thresholds and how they were chosen", "15", "Operating points"),
        ("The whole model, ready to run", "22", "How to use it"),
        ("Performance with intervals", "12e, 23a", "Performance" if measured else None),
        ("Performance by source", "23b", "Performance" if several else None),
        ("Performance by subgroup, fairness", "14, 23a", "Performance" if subgroups else None),
        ("Calibration", "12e", "Calibration" if measured else None),
        ("Films that got no answer", "11", "Refusals"),
        ("Limitations", "26", "Limitations"),
        ("Handling of poor input, skill needed", "27", "Intended use; Refusals"),
        ("Code", "18f", "How to use it"),
        ("Licence of the weights", "–", "How to cite it"),
        ("Dates of the films", "5b", None),
        ("How the films of training and of measurement differ; known inequalities in health", "3c, 16", None),
        ("Eligibility, consecutive or selected patients, treatment", "6b, 6c", None),
        ("Who set the reference standard, how, blinded to what; agreement of readers", "8a–8c", None),
        ("Reason for the sample size", "10", None),
        ("Devices and acquisition; how identities were removed", "CLAIM", None),
        ("Comparison with readers or with other models; effect on care", "3a, 25", None),
        ("Ethical approval", "17", None),
        ("Funding, conflicts of interest, protocol, registration", "18a–18d", None),
        ("Involvement of patients and the public", "19", None),
    ]
    known = _table(
        ["Asked for", "TRIPOD+AI item", "Answered under"],
        [[topic, item, where] for topic, item, where in items if where],
    )
    unknown = _list(f"{topic} ({item})" for topic, item, where in items if not where)
    return (
        "After TRIPOD+AI (Collins et al. 2024, doi:10.1136/bmj-2023-078378) and CLAIM (Tejani et al. 2024, doi:10.1148/ryai.240300), as far as the bundle "
        f"knows the answer.\n\n{known}\n\n**The bundle cannot answer** the following; ask those who made it, and the publications of the sources.\n\n{unknown}"
    )


def _citation(config: BundleConfig, repo_id: str | None, license: str | None) -> str:
    version = config.versions.get("cxrlib")
    fields = {
        "title": f"Chest X-ray classifier: {' versus '.join(config.labels)}",
        "note": f"Made with cxrlib {version}" if version else "Made with cxrlib",
    }
    if repo_id:
        fields["url"] = f"https://huggingface.co/{repo_id}"
    if config.fingerprint:
        fields["note"] += f", trained on films with the fingerprint {config.fingerprint[:16]}"
    entry = "\n".join(
        [
            "```bibtex",
            "@software{cxrlib_model,",
            *(f"  {name} = {{{_plain(value)}}}," for name, value in fields.items()),
            "}",
            "```",
        ]
    )
    methods = [
        "Calibration: Guo et al. 2017, On calibration of modern neural networks, arXiv:1706.04599.",
        "Intervals: Wilson 1927, doi:10.1080/01621459.1927.10502953; Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x.",
    ]
    if config.training.backbone == "mobilenet_v2":
        methods.insert(
            0, "Network: Sandler et al. 2018, MobileNetV2: inverted residuals and linear bottlenecks, arXiv:1801.04381."
        )
    rights = (
        f"Licence of the weights: {_text(license)}."
        if license
        else "No licence of the weights is recorded: ask those who made them before using them for anything but a look."
    )
    return f"{entry}\n\n{_list([*methods, 'The sources named under Training data ask to be cited too.'])}\n\n{rights}"


# --- Markdown and YAML ----------------------------------------------------------------------------------------------------------------------------------


def _estimates(part: Summary) -> Iterable[tuple[str, Estimate]]:
    return ((name, e) for name in METRICS if not math.isnan((e := getattr(part, name)).value))


def _range(e: Estimate) -> str:
    return "undefined" if math.isnan(e.low) else f"{e.low:.4f} to {e.high:.4f}"


def _cells(e: Estimate) -> list[str]:
    return (
        ["undefined", "–"]
        if math.isnan(e.value)
        else [f"{e.value:.3f}", "–" if math.isnan(e.low) else f"{e.low:.3f}–{e.high:.3f}"]
    )


def _counts(films: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {label}" for label, n in films.items()) or "0"


def _text(text: str) -> str:
    """Somebody else's words as plain words: on one line, without Markdown's or HTML's signs taking effect."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _plain(text: str) -> str:
    return re.sub(r"[{}<>\\`]", "", " ".join(text.split()))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "films"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell if cell == '---' else _text(cell) for cell in line)} |" for line in lines)


def _details(title: str, items: Iterable[tuple[str, Any]]) -> str:
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in items]
    return f"<details><summary>{title}</summary>\n\n{_table(['Name', 'Value'], rows)}\n\n</details>"


def _yaml(data: Mapping[str, Any], indent: str = "") -> str:
    """Block YAML of nested dicts, lists and plain values. Texts that could be read as something else are quoted as in JSON, which YAML reads alike."""
    lines = []
    for key, value in data.items():
        if isinstance(value, list):
            lines.append(f"{indent}{key}:")
            for item in value:
                body = _yaml(item, f"{indent}  ").lstrip() if isinstance(item, dict) else _scalar(item)
                lines.append(f"{indent}- {body}")
        elif isinstance(value, dict):
            lines += [f"{indent}{key}:", _yaml(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}")
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    if (
        isinstance(value, str)
        and re.fullmatch(r"[a-z][a-z0-9_-]*[a-z0-9]", value)
        and value not in ("true", "false", "null", "yes", "no", "on", "off")
    ):
        return value
    return json.dumps(value, ensure_ascii=False)
