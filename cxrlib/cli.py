"""The command line: the library's own names, one subcommand each."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cxrlib import __version__
from cxrlib.config import DISCLAIMER, TrainConfig
from cxrlib.images import ImageError

_COLUMNS = ("source", "label", "probability", "threshold", "accepted", "reasons")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after `cxrlib`; `None` for those of the process.

    Returns:
        0 when everything was answered, 1 when something could not be read or done, 2 for wrong usage.

    Example:
        >>> main(["info", "--model", "nowhere"])
        1
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing complains at exit
        return 1
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        return _complain(str(error) or type(error).__name__, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cxrlib", description=f"Chest X-rays: normal or pneumonia. {DISCLAIMER}")
    parser.add_argument("--version", action="version", version=f"cxrlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    predict = add("predict", _predict, "Predict films: files, folders (searched through), URLs.")
    predict.add_argument("paths", nargs="+", metavar="PATH")
    _model_option(predict)
    predict.add_argument("--operating-point", choices=("screening", "balanced"), help="which of the model's thresholds to use")
    predict.add_argument("--threshold", type=_probability, help="a threshold of your own, in [0, 1]")
    predict.add_argument("--no-gate", action="store_true", help="answer even for pictures that are no chest films")
    predict.add_argument("--json", action="store_true", help="print one JSON object a line")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="also write a table")
    predict.add_argument("--heatmaps", type=Path, metavar="DIR", help="also write a heatmap over every film")

    train = add("train", _train, "Train on folders of class folders or CSV manifests, one per source.")
    train.add_argument("data", nargs="+", metavar="DATA")
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    train.add_argument("--config", type=Path, metavar="FILE", help="a recipe as JSON, with fields of TrainConfig")
    train.add_argument("--epochs", type=int, help="epochs of fine-tuning; 0 trains the head alone")
    train.add_argument("--seed", type=int, help="of the split, the draws and the augmentation")
    train.add_argument("--init", default="imagenet", metavar="imagenet|none|BUNDLE", help="initial weights")
    train.add_argument("--patient-pattern", metavar="REGEX", help="finds the patient in a film's name")
    train.add_argument("--formats", nargs="+", choices=("keras", "h5"), default=["keras"], help="Keras files to write beside model.tflite")
    leaks = train.add_mutually_exclusive_group()
    leaks.add_argument("--drop-duplicates", action="store_const", const="drop", dest="leaks", help="leave out surplus copies and patients in two splits")
    leaks.add_argument("--allow-leaks", action="store_const", const="allow", dest="leaks", help="train all the same; the bundle says so")

    evaluate = add("evaluate", _evaluate, "Measure a model on films with known labels.")
    evaluate.add_argument("model", metavar="MODEL", help='a bundle\'s folder, hf://user/repo[@revision], or "default"')
    evaluate.add_argument("data", nargs="+", metavar="DATA")
    evaluate.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the report goes")
    evaluate.add_argument("--split", help="measure only this split, such as test")
    evaluate.add_argument("--operating-point", choices=("screening", "balanced"))
    evaluate.add_argument("--threshold", type=_probability)
    evaluate.add_argument("--no-gate", action="store_true")

    audit = add("audit", _audit, "Look for what spoils a data set: copies, leaks, contradictions, confounders.")
    audit.add_argument("data", nargs="+", metavar="DATA")
    audit.add_argument("--json", action="store_true", help="print the whole audit as JSON")
    audit.add_argument("--patient-pattern", metavar="REGEX")

    publish = add("publish", _publish, "Publish a model on the Hugging Face Hub.")
    publish.add_argument("model", metavar="MODEL")
    publish.add_argument("repo", metavar="user/repo")
    publish.add_argument("--space", metavar="user/space", help="also publish the demo, bound to this model and revision")
    publish.add_argument("--private", action="store_true")
    publish.add_argument("--revision", help="branch to commit to")
    publish.add_argument("--message", help="title of the commit")

    demo = add("demo", _demo, "Start the web demo on this machine.")
    _model_option(demo)
    demo.add_argument("--port", type=int, default=7860)
    demo.add_argument("--examples", type=Path, metavar="DIR", help="films to offer as examples")

    info = add("info", _info, "Say what a model is and how it was measured.")
    info.add_argument("model", nargs="?", metavar="MODEL")
    info.add_argument("--model", dest="model_option", metavar="MODEL", help=argparse.SUPPRESS)
    info.add_argument("--json", action="store_true", help="print the bundle's config")

    clean = add("clean", _clean, "Remove the cache of decoded films.")
    clean.add_argument("--cache", type=Path, metavar="DIR", help="where it lies, if not at the usual place")
    return parser


def _model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help="a bundle's folder or hf://user/repo[@revision]; the bundled model when not given")


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], not {text}")
    return value


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"cxrlib: {text}\n")
    return code


def _predictor(options: argparse.Namespace) -> Any:
    from cxrlib.predictor import Predictor

    model = None if options.model == "default" else options.model
    return Predictor(model, operating_point=options.operating_point, threshold=options.threshold, gate=not options.no_gate)


def _predict(options: argparse.Namespace) -> int:
    if options.operating_point and options.threshold is not None:
        return _complain("give --operating-point or --threshold, not both", 2)
    predictor = _predictor(options)
    failed = 0
    with contextlib.ExitStack() as stack:
        table = csv.writer(stack.enter_context(options.csv.open("w", newline="", encoding="utf-8"))) if options.csv else None
        if table:
            table.writerow(_COLUMNS)
        if options.heatmaps:
            options.heatmaps.mkdir(parents=True, exist_ok=True)
        for answer in _answers(predictor, options, lambda error: _complain(str(error), 1)):
            if isinstance(answer, ImageError):
                failed += 1
                continue
            fields = answer.to_dict()
            if options.json:
                sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
            else:
                sys.stdout.write(_sentence(answer) + "\n")
            sys.stdout.flush()
            if table:
                table.writerow(["; ".join(fields[c]) if c == "reasons" else "" if fields[c] is None else fields[c] for c in _COLUMNS])
    if not options.json:
        sys.stderr.write(f"{DISCLAIMER}\n")
    return 1 if failed else 0


def _answers(predictor: Any, options: argparse.Namespace, complain: Callable[[Exception], int]) -> Iterator[Any]:
    """A prediction or an ImageError for every film, in order; the latter has been complained about."""
    films = _films(options.paths, complain)
    for answer in _explained(predictor, films, options.heatmaps) if options.heatmaps else predictor.stream(_passing(films), errors="return"):
        if isinstance(answer, ImageError):
            complain(answer)
        yield answer


def _films(paths: Iterable[str], complain: Callable[[Exception], int]) -> Iterator[str]:
    from cxrlib import images

    for path in paths:
        if os.path.isdir(path):
            found = images.find(path)
            yield from (map(str, found) if found else [path])
        else:
            yield path


def _passing(films: Iterable[str]) -> Iterator[str]:
    yield from films


def _explained(predictor: Any, films: Iterable[str], folder: Path) -> Iterator[Any]:
    taken: set[str] = set()
    for film in films:
        try:
            explanation = predictor.explain(film)
        except ImageError as error:
            yield error
            continue
        stem = name = Path(film).stem or "film"
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        if explanation.prediction.accepted:
            explanation.overlay().save(folder / f"{name}.png")
        yield explanation.prediction


def _sentence(p: Any) -> str:
    if not p.accepted:
        return f"{p.source}: refused: {'; '.join(p.reasons)}"
    chance = f"probability {p.probability:.3f}" + (f", threshold {p.threshold:.3f}" if p.threshold is not None else "")
    return f"{p.source}: {p.label} ({chance})" + "".join(f"\n  note: {reason}" for reason in p.reasons)


def _train(options: argparse.Namespace) -> int:
    import dataclasses

    from cxrlib.config import from_dict
    from cxrlib.training import train

    config = from_dict(TrainConfig, json.loads(options.config.read_text("utf-8")), where=str(options.config)) if options.config else TrainConfig()
    given = {name: value for name in ("epochs", "seed") if (value := getattr(options, name)) is not None}
    run = train(
        options.data,
        output=options.output,
        config=dataclasses.replace(config, **given),
        init=None if options.init == "none" else options.init,
        leaks=options.leaks or "error",
        formats=options.formats,
        patient_pattern=options.patient_pattern,
    )
    sys.stdout.write(f"{run.bundle}\n{_figures(run.report)}\n")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    if options.operating_point and options.threshold is not None:
        return _complain("give --operating-point or --threshold, not both", 2)
    from cxrlib.evaluation import evaluate

    report = evaluate(_predictor(options), options.data, output=options.output, split=options.split)
    sys.stdout.write(f"{_figures(report)}\n{options.output / 'report.html'}\n")
    return 0


def _figures(report: Any) -> str:
    """The figures of a report as a small table, sources below each other."""
    names = ("auroc", "accuracy", "precision", "recall", "specificity", "f1", "ece")
    lines = [f"{report.n:,} films, {report.n_refused:,} refused" + (f", threshold {report.threshold:.3f}" if report.threshold is not None else "")]
    lines += [f"  {name:<12} {getattr(report, name)}" for name in names]
    lines += ["  confusion matrix (rows: truth; columns: " + ", ".join(report.labels) + ")"]
    lines += [
        f"    {label:<12} " + " ".join(f"{count:>6}" for count in row) for label, row in zip(report.labels, report.confusion_matrix.tolist(), strict=True)
    ]
    for source, part in report.by_source.items():
        lines.append(f"  {source}: " + ", ".join(f"{name} {getattr(part, name)}" for name in ("auroc", "recall", "specificity")))
    lines += [f"  note: {statement}" for statement in report.statements]
    return "\n".join(lines)


def _audit(options: argparse.Namespace) -> int:
    from cxrlib.audit import audit
    from cxrlib.data import scan

    found = audit(scan(options.data, patient_pattern=options.patient_pattern))
    sys.stdout.write((found.to_json() if options.json else str(found)) + "\n")
    return 1 if found.errors or found.unreadable else 0


def _publish(options: argparse.Namespace) -> int:
    from cxrlib.predictor import Predictor

    predictor = Predictor(None if options.model == "default" else options.model)
    published = predictor.push_to_hub(options.repo, private=options.private, revision=options.revision, commit_message=options.message)
    sys.stdout.write(f"{published.url}\n")
    if options.space:
        from cxrlib import hub

        space = hub.publish_space(_space(), options.space, model=options.repo, revision=published.revision, private=options.private)
        sys.stdout.write(f"{space.url}\n")
    return 0


def _space() -> Path:
    folder = Path(__file__).parent.parent / "space"
    if not (folder / "app.py").is_file():
        raise FileNotFoundError("the demo is not installed beside cxrlib: publish it from a checkout of the repository")
    return folder


def _demo(options: argparse.Namespace) -> int:
    import runpy

    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError('the demo needs gradio: pip install "cxrlib[demo]"') from error
    app = runpy.run_path(str(_space() / "app.py"))
    app["main"](model=options.model, port=options.port, examples=options.examples)
    return 0


def _info(options: argparse.Namespace) -> int:
    from cxrlib.config import to_dict
    from cxrlib.predictor import Predictor

    predictor = Predictor(options.model_option or options.model)
    config = predictor.config
    if options.json:
        sys.stdout.write(json.dumps(to_dict(config), ensure_ascii=False) + "\n")
        return 0
    lines = [
        f"bundle       {predictor.folder}" + (f" (revision {predictor.revision})" if predictor.revision else ""),
        f"labels       {', '.join(config.labels)}",
        f"network      {config.training.backbone}, {config.image_size} x {config.image_size} pixels",
        f"made with    {', '.join(f'{name} {version}' for name, version in config.versions.items())}",
        f"temperature  {config.temperature:.3f}",
        f"gate         {'yes' if config.gate else 'none'}",
    ]
    lines += [
        f"{name:<12} threshold {point.threshold:.3f}: sensitivity {point.sensitivity:.3f}, specificity {point.specificity:.3f} on validation films"
        + (" (default)" if name == config.default_point else "")
        for name, point in config.operating_points.items()
    ]
    for source in config.sources:
        lines.append(f"source       {source.name}: {sum(source.train.values()):,} films trained on, {sum(source.validation.values()):,} validated")
    lines += [f"note         {note}" for note in config.notes]
    report = predictor.report
    sys.stdout.write("\n".join(lines) + "\n" + (f"{_figures(report)}\n" if report else "") + f"{DISCLAIMER}\n")
    return 0


def _clean(options: argparse.Namespace) -> int:
    from cxrlib.cache import clean

    sys.stdout.write(f"{clean(options.cache) / 2**20:,.0f} MiB freed\n")
    return 0
