"""The command line: the library's own names, one subcommand each."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlib import __version__
from cxrlib.config import DISCLAIMER, BundleError, TrainConfig

if TYPE_CHECKING:
    from cxrlib.data.scan import Dataset
    from cxrlib.images.sources import ImageError
    from cxrlib.predictor import Prediction, Predictor


class _UsageError(Exception):
    """Words that do not fit together: the user must call differently."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after `cxrlib`; `None` for those of the process.

    Returns:
        0 when everything was answered, 1 when something could not be read or done, 2 for wrong usage, 130 when interrupted.

    Example:
        >>> main(["info", "--model", "nowhere"])
        1
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.run
        code = command(options)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # of argparse: help and version, or wrong words
        return int(end.code or 0)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing complains at exit
        return 1
    except _UsageError as error:
        return _complain(str(error), 2)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # while a compiled module was being loaded
            return _complain("stopped", 130)
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
    _decision_options(predict)
    predict.add_argument("--json", action="store_true", help="print one JSON object a line")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="also write a table")
    predict.add_argument(
        "--heatmaps",
        type=Path,
        metavar="DIR",
        help="also write every accepted film with its heatmap, into a folder of its own",
    )
    predict.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: films by the million, on this machine or a cluster",
    )
    predict.add_argument(
        "--output",
        metavar="DIR",
        help="where --engine ray puts its Parquet files; a run that was stopped goes on there",
    )
    predict.add_argument("--workers", type=int, metavar="N", help="of --engine ray; one per core when not given")

    phantom = add("phantom", _phantom, "Draw a chest film, to try things without data.")
    phantom.add_argument("file", type=_png, metavar="FILE", help="where to write it, as PNG")
    phantom.add_argument("--opacity", action="store_true", help="with an opacity, as in pneumonia")
    phantom.add_argument("--seed", type=int, default=0, help="of the person")

    train = add("train", _train, "Train on folders of class folders or CSV manifests, one per source.")
    _data_options(train)
    _labels_option(train)
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    train.add_argument("--config", type=Path, metavar="FILE", help="a recipe as JSON, with fields of TrainConfig")
    train.add_argument("--epochs", type=int, help="epochs of fine-tuning; 0 trains the head alone")
    train.add_argument("--seed", type=int, help="of the split, the draws and the augmentation")
    train.add_argument("--init", default="imagenet", metavar="imagenet|none|BUNDLE", help="initial weights")
    train.add_argument(
        "--formats",
        nargs="+",
        choices=("keras", "h5"),
        default=["keras"],
        help="Keras files to write beside model.tflite",
    )
    leaks = train.add_mutually_exclusive_group()
    leaks.add_argument(
        "--drop-duplicates",
        action="store_const",
        const="drop",
        dest="leaks",
        help="leave out surplus copies and patients in two splits",
    )
    leaks.add_argument(
        "--allow-leaks",
        action="store_const",
        const="allow",
        dest="leaks",
        help="train all the same; the bundle says so",
    )

    evaluate = add("evaluate", _evaluate, "Measure a model on films with known labels.")
    evaluate.add_argument("model", metavar="MODEL", help=_MODEL)
    _data_options(evaluate)
    evaluate.add_argument(
        "--output", type=Path, metavar="DIR", help="where the report goes; without it, the figures are only printed"
    )
    evaluate.add_argument("--split", help="measure only this split, such as test")
    _decision_options(evaluate)

    audit = add("audit", _audit, "Look for what spoils a data set: copies, leaks, contradictions, confounders.")
    _data_options(audit)
    _labels_option(audit)
    audit.add_argument("--json", action="store_true", help="print the whole audit as JSON")

    publish = add("publish", _publish, "Publish a model on the Hugging Face Hub.")
    publish.add_argument("model", metavar="MODEL", help=_MODEL)
    publish.add_argument("repo", metavar="user/repo")
    publish.add_argument(
        "--space", metavar="user/space", help="also publish the demo, bound to this model and revision"
    )
    publish.add_argument("--private", action="store_true")
    publish.add_argument("--revision", help="branch to commit to")
    publish.add_argument("--message", help="title of the commit")

    demo = add("demo", _demo, "Start the web demo on this machine.")
    _model_option(demo)
    demo.add_argument("--port", type=int, help="where it listens; the first free one from 7860 on when not given")
    demo.add_argument("--examples", type=Path, metavar="DIR", help="films to offer as examples")

    info = add("info", _info, "Say what a model is and how it was measured.")
    info.add_argument("model", nargs="?", metavar="MODEL", help=_MODEL)
    info.add_argument("--model", dest="model_option", metavar="MODEL", help=argparse.SUPPRESS)
    info.add_argument("--json", action="store_true", help="print the bundle's config")
    info.add_argument(
        "--prevalence",
        type=_probability,
        help="also say what the answers are worth where this part of the films is positive, in [0, 1]",
    )

    export = add("export", _export, "Write a model in another form, and check that it answers the same.")
    export.add_argument("model", metavar="MODEL", help=_MODEL)
    export.add_argument("--format", required=True, choices=("onnx", "saved_model", "litert", "int8"))
    export.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="file or, for saved_model, folder to write"
    )
    export.add_argument(
        "--films",
        nargs="+",
        default=[],
        metavar="PATH",
        help="films and folders to check on, and to quantise with; drawn phantoms when not given",
    )

    clean = add("clean", _clean, "Remove the cache of decoded films.")
    clean.add_argument("--cache", type=Path, metavar="DIR", help="where it lies, if not at the usual place")
    return parser


_MODEL = 'a bundle\'s folder, hf://user/repo[@revision], or "default" for the bundled model'


def _model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a bundle's folder or hf://user/repo[@revision]; the bundled model when not given",
    )


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="+", metavar="DATA", help="a folder of class folders, a CSV manifest, or hf://datasets/user/name"
    )
    parser.add_argument("--patient-pattern", metavar="REGEX", help="finds the patient in a film's name")
    parser.add_argument(
        "--columns",
        type=Path,
        metavar="FILE",
        help="a CSV table of what is known of the films, such as their view, one line per film",
    )


def _labels_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="the classes, the healthy one first; those found when not given"
    )


def _decision_options(parser: argparse.ArgumentParser) -> None:
    decision = parser.add_mutually_exclusive_group()
    decision.add_argument(
        "--operating-point",
        metavar="NAME",
        help="which of the model's thresholds to use, such as screening or balanced",
    )
    decision.add_argument("--threshold", type=_probability, help="a threshold of your own, in [0, 1]")
    parser.add_argument("--no-gate", action="store_true", help="answer even for pictures that are no chest films")


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1], not {text!r}")
    return value


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"must end with .png, not {text!r}")
    return Path(text)


def _complain(text: str, code: int) -> int:
    start = "\r\033[K" if sys.stderr.isatty() else ""  # wipes a progress line
    sys.stderr.write(f"{start}cxrlib: {text}\n")
    return code


def _load(model: str | None, **options: Any) -> Predictor:
    from cxrlib.predictor import Predictor

    if model is not None and model.startswith("hf://"):
        return Predictor(model, **options)
    with _without_greeting():
        return Predictor(model, **options)


@contextmanager
def _without_greeting() -> Iterator[None]:
    """LiteRT greets on stderr, from native code and without a switch; what goes wrong there comes as an exception."""
    try:
        before = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _deciding(options: argparse.Namespace) -> Predictor:
    try:
        return _load(
            options.model,
            operating_point=options.operating_point,
            threshold=options.threshold,
            gate=not options.no_gate,
        )
    except BundleError:
        raise
    except ValueError as error:  # such as a point that the model does not have
        raise _UsageError(str(error)) from None


def _predict(options: argparse.Namespace) -> int:
    from cxrlib.images.sources import ImageError
    from cxrlib.predictor import UNREADABLE
    from cxrlib.progress import track

    if options.engine == "ray":
        return _predict_in_bulk(options)
    if options.output or options.workers:
        raise _UsageError("--output and --workers go with --engine ray")
    films = list(_films(options.paths))
    if options.csv:
        _check_table(options.csv, films)
    if options.heatmaps:
        _check_folder(options.heatmaps, films)
    predictor = _deciding(options)
    failed = 0
    with ExitStack() as stack:
        row = (
            stack.enter_context(_table(options.csv, predictor.labels, bool(options.heatmaps))) if options.csv else None
        )
        answers = _answers(predictor, films, options.heatmaps)
        for film, (answer, heatmap) in zip(
            films, track(answers, "predict", total=len(films), shown=not sys.stdout.isatty()), strict=True
        ):
            if isinstance(answer, ImageError):
                failed += 1
                answer = _unanswered(film, answer, predictor)
                _complain(answer.reasons[0].removeprefix(UNREADABLE), 1)
            elif not options.json:
                sys.stdout.write(_sentence(answer) + (f"\n  heatmap: {heatmap}" if heatmap else "") + "\n")
            if options.json:
                sys.stdout.write(json.dumps(answer.to_dict()) + "\n")
            sys.stdout.flush()
            if row:
                row(answer, heatmap)
    if not options.json:
        sys.stderr.write(f"{DISCLAIMER}\n")
    return 1 if failed else 0


def _predict_in_bulk(options: argparse.Namespace) -> int:
    from cxrlib import ray as bulk

    if not options.output or options.json or options.csv or options.heatmaps:
        raise _UsageError("--engine ray needs --output for its Parquet files, and takes no --json, --csv or --heatmaps")
    done = bulk.predict(options.paths, options.output, predictor=_deciding(options), workers=options.workers)
    counts = f"{done.films:,} films, {done.answered:,} answered, {done.refused:,} refused, {done.unreadable:,} unreadable; {done.before:,} were done before"
    sys.stdout.write(f"{options.output}: {counts}\n")
    sys.stderr.write(f"{DISCLAIMER}\n")
    return 1 if done.unreadable else 0


def _films(paths: Iterable[str]) -> Iterator[str]:
    """Paths and URLs as given, and what lies below folders; a folder without films, or one that cannot be listed, stands for itself, and cannot be read."""
    from cxrlib.images import sources

    for path in paths:
        below = [str(film) for film in sources.find(path, strict=False)] if os.path.isdir(path) else []
        yield from below or [path]


def _unanswered(film: str, error: ImageError, predictor: Predictor) -> Prediction:
    from cxrlib.images.sources import find, name_of
    from cxrlib.predictor import unanswered

    reason = str(error)
    if os.path.isdir(film):
        try:
            find(film)
            reason = f"{film}: there are no films in this folder"
        except OSError as unlisted:
            reason = str(unlisted)
    return unanswered(name_of(film), reason, predictor)


@contextmanager
def _table(path: Path, labels: Sequence[str], heatmaps: bool) -> Iterator[Callable[[Prediction, Path | None], Any]]:
    """A function that adds a row to a CSV file; what was added stays, whatever happens next."""
    columns = ("source", "label", "probability", "threshold", "accepted")
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"probability_{label}" for label in labels), "reasons", *["heatmap"] * heatmaps])

        def row(answer: Prediction, heatmap: Path | None) -> None:
            fields = answer.to_dict()
            writer.writerow(
                [
                    *(fields[column] for column in columns),
                    *fields["probabilities"].values(),
                    "; ".join(answer.reasons),
                    *[heatmap] * heatmaps,
                ]
            )

        yield row


def _places(films: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Films that are files, and where they lie."""
    return ((film, Path(film).resolve()) for film in films if "://" not in film)


def _check_table(table: Path, films: Iterable[str]) -> None:
    from cxrlib.images.sources import EXTENSIONS

    if table.suffix.lower() in EXTENSIONS or table.resolve() in (place for _, place in _places(films)):
        raise _UsageError(
            f"--csv needs a file of its own, so that no film is overwritten, with another ending than a film's. Received: {table}"
        )


def _check_folder(folder: Path, films: Iterable[str]) -> None:
    own = folder.resolve()
    if film := next((film for film, place in _places(films) if place.parent == own), None):
        raise _UsageError(
            f"--heatmaps needs a folder of its own, so that no film is overwritten: {folder} holds {film}"
        )
    folder.mkdir(parents=True, exist_ok=True)


def _answers(
    predictor: Predictor, films: Iterable[str], folder: Path | None
) -> Iterator[tuple[Prediction | ImageError, Path | None]]:
    """Predictions; with a folder, each accepted one with the place of its picture, named after the film: of two of one name, the second gets a number."""
    from dataclasses import replace

    from cxrlib.images.sources import ImageError, name_of

    if folder is None:
        yield from ((answer, None) for answer in predictor.stream(films, errors="return"))
        return
    taken: set[str] = set()
    for film in films:
        try:
            explanation = predictor.explain(film)
        except (ImageError, ImportError) as error:  # the latter where this film needs an extra, and the others may not
            yield error if isinstance(error, ImageError) else ImageError(f"{name_of(film)}: {error}"), None
            continue
        heatmap = None
        if explanation.prediction.accepted:
            stem = os.fsencode(Path(name_of(film)).stem)[:200].decode("utf-8", "ignore")  # a name may have 255 bytes
            name = next(
                name
                for name in (stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 3)))
                if name.casefold() not in taken
            )
            taken.add(name.casefold())
            part, heatmap = folder / f".{os.getpid()}.part", folder / f"{name}.png"
            explanation.overlay().save(part, "PNG")
            part.replace(heatmap)  # so that no picture is ever half there
        yield replace(explanation.prediction, reasons=(*explanation.prediction.reasons, *explanation.warnings)), heatmap


def _sentence(p: Prediction) -> str:
    if not p.accepted:
        return f"{p.source}: refused: {'; '.join(p.reasons)}"
    chance = f"probability {p.probability:.3f}" + (f", threshold {p.threshold:.3f}" if p.threshold is not None else "")
    return f"{p.source}: {p.label} ({chance})" + "".join(f"\n  note: {reason}" for reason in p.reasons)


def _phantom(options: argparse.Namespace) -> int:
    from cxrlib.images import phantom

    phantom.save(options.file, options.seed, opacity=options.opacity)
    sys.stdout.write(
        f"{options.file}: a drawn chest {'with an opacity' if options.opacity else 'without an opacity'}, no patient's\n"
    )
    return 0


def _scan(options: argparse.Namespace, **which: Any) -> Dataset:
    """The films of `_data_options`."""
    from cxrlib.data.scan import add_columns, scan

    films = scan(options.data, patient_pattern=options.patient_pattern, **which)
    return add_columns(films, options.columns) if options.columns else films


def _train(options: argparse.Namespace) -> int:
    import dataclasses

    from cxrlib.config import from_dict
    from cxrlib.training import train

    config = TrainConfig()
    if options.config:
        try:
            config = from_dict(TrainConfig, json.loads(options.config.read_bytes()), where=str(options.config))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{options.config} is no JSON: {error}") from error
    given = {name: value for name in ("epochs", "seed") if (value := getattr(options, name)) is not None}
    run = train(
        _scan(options, labels=options.labels),
        output=options.output,
        config=dataclasses.replace(config, **given),
        init=None if options.init == "none" else options.init,
        leaks=options.leaks or "error",
        formats=options.formats,
    )
    sys.stdout.write(f"{run.bundle}\n{_figures(run.report)}\n")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from cxrlib.evaluation import evaluate
    from cxrlib.predictor import UNREADABLE

    predictor = _deciding(options)
    report = evaluate(predictor, _scan(options, labels=predictor.labels), split=options.split, output=options.output)
    sys.stdout.write(f"{_figures(report)}\n" + (f"{options.output / 'report.html'}\n" if options.output else ""))
    unreadable = [
        row.refused.removeprefix(UNREADABLE) for row in report.predictions if row.refused.startswith(UNREADABLE)
    ]
    for reason in unreadable:
        _complain(reason, 1)
    return 1 if unreadable else 0


def _figures(report: Any) -> str:
    """The figures of a report as a small table, sources below each other."""
    names = ("auroc", "accuracy", "precision", "recall", "specificity", "f1", "ece")
    lines = [
        f"{report.n:,} films, {report.n_refused:,} refused"
        + (f", threshold {report.threshold:.3f}" if report.threshold is not None else "")
    ]
    lines += [f"  {name:<12} {getattr(report, name)}" for name in names]
    lines += ["  confusion matrix (rows: truth; columns: " + ", ".join(report.labels) + ")"]
    lines += [
        f"    {label:<12} " + " ".join(f"{count:>6}" for count in row)
        for label, row in zip(report.labels, report.confusion_matrix.tolist(), strict=True)
    ]
    for source, part in report.by_source.items():
        lines.append(
            f"  {source}: " + ", ".join(f"{name} {getattr(part, name)}" for name in ("auroc", "recall", "specificity"))
        )
    lines += [f"  note: {statement}" for statement in report.statements]
    return "\n".join(lines)


def _audit(options: argparse.Namespace) -> int:
    from cxrlib.data.audit import audit

    found = audit(_scan(options, labels=options.labels))
    sys.stdout.write((found.to_json() if options.json else str(found)) + "\n")
    return 1 if found.errors or found.unreadable else 0


def _publish(options: argparse.Namespace) -> int:
    predictor = _load(options.model)
    published = predictor.push_to_hub(
        options.repo, private=options.private, revision=options.revision, commit_message=options.message
    )
    sys.stdout.write(f"{published.url}\n")
    if options.space:
        from cxrlib import hub

        library = Path(__file__).parent
        space = hub.publish_space(
            _space(),
            options.space,
            model=options.repo,
            revision=published.revision,
            library=library,
            private=options.private,
        )
        sys.stdout.write(f"{space.url}\n")
    return 0


def _space() -> Path:
    package = Path(__file__).parent
    for folder in (package / "_space", package.parent / "space"):  # of an installed cxrlib, and of a checkout
        if (folder / "app.py").is_file():
            return folder
    raise FileNotFoundError("the demo is missing from this installation of cxrlib: install it anew")


def _demo(options: argparse.Namespace) -> int:
    import runpy
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ImportError('the demo needs gradio: pip install "cxrlib[demo]"')
    app = runpy.run_path(str(_space() / "app.py"))
    app["main"](model=options.model, port=options.port, examples=options.examples)
    return 0


def _info(options: argparse.Namespace) -> int:
    from cxrlib.config import to_dict
    from cxrlib.metrics.thresholds import predictive_values

    predictor = _load(options.model_option or options.model)
    config = predictor.config
    if options.json:
        sys.stdout.write(json.dumps(to_dict(config)) + "\n")
        return 0
    lines = [
        f"bundle       {predictor.folder}" + (f" (revision {predictor.revision})" if predictor.revision else ""),
        f"labels       {', '.join(config.labels)}",
        f"network      {config.training.backbone}, {config.image_size} x {config.image_size} pixels",
        f"made with    {', '.join(f'{name} {version}' for name, version in config.versions.items())}",
        f"temperature  {config.temperature:.3f}",
        f"gate         {'yes' if config.gate else 'none'}",
    ]
    for name, point in config.operating_points.items():
        lines.append(
            f"{name:<12} threshold {point.threshold:.3f}: sensitivity {point.sensitivity:.3f}, specificity {point.specificity:.3f} on validation films"
            + (" (default)" if name == config.default_point else "")
        )
        if options.prevalence is not None:
            ppv, npv = predictive_values(point.sensitivity, point.specificity, options.prevalence)
            lines.append(
                f"{'':<12} of 100 films {100 * options.prevalence:g} positive: a positive answer is right in {ppv:.1%}, a negative one in {npv:.1%}"
            )
    for source in config.sources:
        films, aside = sum(source.train.values()), sum(source.validation.values())
        lines.append(
            f"source       {source.name}: {films:,} films trained on, {aside:,} validated, labels believed to {source.trust:.0%}"
        )
    lines += [f"note         {note}" for note in config.notes]
    report = predictor.report
    sys.stdout.write("\n".join(lines) + "\n" + (f"{_figures(report)}\n" if report else "") + f"{DISCLAIMER}\n")
    return 0


def _export(options: argparse.Namespace) -> int:
    from cxrlib.export import export

    films = list(_films(options.films))
    made = export(options.model, options.output, format=options.format, films=films)
    sys.stdout.write(f"{made}\n")
    return 0


def _clean(options: argparse.Namespace) -> int:
    from cxrlib.data.cache import clean

    sys.stdout.write(f"{clean(options.cache) / 2**20:,.0f} MiB freed\n")
    return 0
