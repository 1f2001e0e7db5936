"""The command line: the library's verbs, one subcommand each."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlib import __version__
from cxrlib.config import DISCLAIMER, BundleError, Recipe, recipe_of, to_dict

if TYPE_CHECKING:
    from cxrlib.data.dataset import Dataset
    from cxrlib.predictor import Predictor

_MODEL = "a bundle's folder, hf://user/repo[@revision], or one that comes with cxrlib: default, causes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after `cxrlib`; `None` for those of the process.

    Returns:
        0 when everything was answered, 1 when something could not be read or done, 2 for wrong usage, 130 when
        interrupted.

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
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # of argparse: help and version, or wrong usage
        return int(end.code or 0)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing fails at exit
        return 1
    except argparse.ArgumentTypeError as error:
        return _complain(str(error), 2)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # while a compiled module was being loaded
            return _complain("stopped", 130)
        return _complain(_message(error), 1)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:  # of the system, without a sentence
        return f"{os.fsdecode(error.filename)}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return str(error) or type(error).__name__


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"cxrlib: {text}\n")
    return code


# --- options ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cxrlib", description=f"Chest X-rays: normal or pneumonia. {DISCLAIMER}")
    parser.add_argument("--version", action="version", version=f"cxrlib {__version__}")
    parser.set_defaults(run=lambda _: sys.stdout.write(parser.format_help()) and 0)
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], text: str) -> Callable[..., Any]:
        sub = commands.add_parser(run.__name__.strip("_"), help=text, description=text)
        sub.set_defaults(run=run)
        return sub.add_argument

    add = command(_predict, "Predict images: files, folders (searched through), patterns, URLs.")
    add("paths", nargs="+", metavar="PATH")
    add("--model", metavar="MODEL", help=f"{_MODEL}; the bundled model when not given")
    _decision_options(add)
    add("--pretest", type=_open_probability, metavar="P", help="also the probability after the image, from P before it")
    add("--json", action="store_true", help="print one JSON object a line")
    add("--csv", type=Path, metavar="FILE", help="also write a table")
    add("--heatmaps", type=Path, metavar="DIR", help="also write every image with its heatmap, into a folder")
    add("--quiet", action="store_true", help="no progress bar, summary or disclaimer")
    add("--engine", choices=("local", "ray"), default="local", help="ray: millions of images, on one machine or many")
    add("--output", metavar="DIR", help="where --engine ray puts its Parquet files; a stopped run continues there")
    add("--workers", type=int, metavar="N", help="of --engine ray; one per core when not given")

    add = command(_phantom, "Draw a chest radiograph, to try things without data.")
    add("file", type=_png, metavar="FILE", help="where to write it, as PNG")
    add("--opacity", action="store_true", help="with an opacity, as in pneumonia")
    add("--seed", type=int, default=0, help="which person")

    add = command(_train, "Train on folders of class folders or CSV manifests, one per source.")
    _data_options(add, labels=True)
    add("--output", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    add("--recipe", default="default", metavar="NAME", help="default or textbook")
    add("--config", type=Path, metavar="FILE", help="a recipe as JSON: its name and settings that differ")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe, such as epochs=8")
    add("--init", default="imagenet", metavar="imagenet|none|BUNDLE", help="initial weights")
    add("--formats", nargs="+", choices=("keras", "h5"), default=["keras"], help="Keras files beside model.tflite")
    add("--leaks", choices=("error", "drop", "allow"), default="error", help="copies and patients in two splits")
    add("--quiet", action="store_true", help="no progress bar")

    add = command(_evaluate, "Measure a model on images with known labels.")
    add("model", metavar="MODEL", help=_MODEL)
    _data_options(add)
    add("--other", nargs="+", default=[], metavar="LABEL", help="labels the model does not have: how often is it wrong")
    add("--output", type=Path, metavar="DIR", help="where the report goes; without it, figures are only printed")
    add("--split", help="measure this split; test when not given and there is one")
    _decision_options(add)
    add("--quiet", action="store_true", help="no progress bar")

    add = command(_audit, "Find what spoils a data set: copies, leaks, contradictions, confounders.")
    _data_options(add, labels=True)
    add("--json", action="store_true", help="print the whole audit as JSON")

    add = command(_publish, "Publish a model on the Hugging Face Hub.")
    add("model", metavar="MODEL", help=_MODEL)
    add("repo", metavar="user/repo")
    add("--space", metavar="user/space", help="also publish the demo, with this model at this revision")
    add("--device", metavar="user/space", help="also publish the page that runs this model in the visitor's browser")
    add("--private", action="store_true")
    add("--revision", help="branch to commit to")
    add("--message", help="title of the commit")

    add = command(_demo, "Start the web demo on this machine.")
    add("--model", metavar="MODEL", help=f"{_MODEL}; the bundled model when not given")
    add("--port", type=_port, help="where it listens; the first free port from 7860 when not given")
    add("--examples", type=Path, metavar="DIR", help="images to offer as examples, instead of drawings")
    add("--device", action="store_true", help="serve the page that runs the model in the visitor's browser instead")

    add = command(_info, "Describe a model and how it was measured.")
    add("model", nargs="?", metavar="MODEL", help=_MODEL)
    add("--model", dest="model_option", metavar="MODEL", help=argparse.SUPPRESS)
    add("--json", action="store_true", help="print the bundle's config")
    add("--prevalence", type=_probability, help="also print predictive values at this part of positives, in [0, 1]")

    add = command(_export, "Write a model in another format, and check that it gives the same answers.")
    add("model", metavar="MODEL", help=_MODEL)
    add("--format", required=True, choices=("keras", "onnx", "saved_model", "litert", "float16", "int8", "web"))
    add("--output", type=Path, required=True, metavar="PATH", help="file or, for saved_model and web, folder to write")
    add("--images", nargs="+", default=[], metavar="PATH", help="to check with, and to quantise with; else drawings")

    add = command(_clean, "Remove the cache of decoded images.")
    add("--cache", type=Path, metavar="DIR", help="its folder, if not the usual one")
    return parser


def _data_options(add: Callable[..., Any], *, labels: bool = False) -> None:
    add("data", nargs="+", metavar="DATA", help="a folder of class folders, a CSV manifest, or hf://datasets/user/name")
    add("--patient-pattern", metavar="REGEX", help="finds the patient in an image's name")
    add("--label-pattern", metavar="REGEX", help="finds the label in its name: one named group for each label")
    add("--columns", type=Path, metavar="FILE", help="a CSV table of what is known of the images, such as their view")
    if labels:
        add("--labels", nargs="+", metavar="LABEL", help="the classes, the normal one first; found when not given")


def _decision_options(add: Callable[..., Any]) -> None:
    add("--operating-point", metavar="NAME", help="one of the model's thresholds, such as screening or balanced")
    add("--threshold", type=_probability, help="a threshold of your own instead, in [0, 1]")
    add("--no-gate", action="store_true", help="answer even for images that are not chest radiographs")


def _probability(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number in [0, 1], not {text!r}")


def _open_probability(text: str) -> float:
    if not 0 < (value := _probability(text)) < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text!r}")
    return value


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 < int(text) < 2**16:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a number from 1 to 65535, not {text!r}")


def _png(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"must end with .png, not {text!r}")
    return Path(text)


def _load(options: argparse.Namespace) -> Predictor:
    """The model of `_decision_options`."""
    from cxrlib.predictor import Predictor

    try:
        return Predictor(
            options.model,
            operating_point=options.operating_point,
            threshold=options.threshold,
            gate=not options.no_gate,
        )
    except BundleError:
        raise
    except ValueError as error:  # such as an operating point that the model does not have
        raise argparse.ArgumentTypeError(str(error)) from None


def _scan(options: argparse.Namespace, **which: Any) -> Dataset:
    """The images of `_data_options`."""
    from cxrlib.data.dataset import add_columns
    from cxrlib.data.scan import scan

    patterns = {"label_pattern": options.label_pattern, "patient_pattern": options.patient_pattern}
    images = scan(options.data, **patterns, **which)
    return add_columns(images, options.columns) if options.columns else images


# --- commands ---


def _predict(options: argparse.Namespace) -> int:
    from cxrlib import _cli_predict

    bulk = options.engine == "ray"
    if bulk and (not options.output or options.json or options.csv or options.heatmaps):
        raise argparse.ArgumentTypeError("--engine ray needs --output, and takes no --json, --csv or --heatmaps")
    if not bulk and (options.output or options.workers):
        raise argparse.ArgumentTypeError("--output and --workers go with --engine ray")
    return (_cli_predict.predict_in_bulk if bulk else _cli_predict.predict)(options, lambda: _load(options))


def _phantom(options: argparse.Namespace) -> int:
    from cxrlib.images import phantom

    phantom.save(options.file, options.seed, opacity=options.opacity)
    sys.stdout.write(f"{options.file}: a drawn chest {'with' if options.opacity else 'without'} an opacity\n")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    try:
        given = json.loads(options.config.read_bytes()) if options.config else {}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{options.config} is not JSON: {error}") from None
    try:
        if not isinstance(given, dict):
            raise ValueError(f"{options.config} must hold an object with named settings. Received: {given!r:.80}")
        settings = to_dict(recipe_of({"name": options.recipe, **given}))
        for setting in options.set:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"--set must be NAME=VALUE, such as epochs=8. Received: {setting!r}")
            group, _, last = name.rpartition(".")  # augmentation.rotation=5
            place, key = (settings[group], last) if isinstance(settings.get(group), dict) else (settings, name)
            try:
                place[key] = json.loads(text)
            except ValueError:  # a plain word
                place[key] = text
        return recipe_of(settings)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _train(options: argparse.Namespace) -> int:
    recipe = _recipe(options)
    from cxrlib.training import train

    data = _scan(options, labels=options.labels)
    run = train(
        data,
        output=options.output,
        recipe=recipe,
        init=None if options.init == "none" else options.init,
        leaks=options.leaks,
        formats=options.formats,
        progress=not options.quiet,
    )
    split = ["--split", "test"] if "test" in data.splits else []
    command = shlex.join(["cxrlib", "evaluate", str(run.bundle), *options.data, *split])
    sys.stdout.write(f"Validation: {run.report}\n\nThe model is in {run.bundle}. Next: {command}\n")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from cxrlib.evaluation import evaluate

    predictor = _load(options)
    data = _scan(options, labels=(*predictor.labels, *options.other))
    progress = not options.quiet
    report = evaluate(
        predictor, data, split=options.split, other=options.other, output=options.output, progress=progress
    )
    sys.stdout.write(f"{report}\n" + (f"{options.output / 'report.html'}\n" if options.output else ""))
    unreadable = [row for row in report.predictions if row.status == "unreadable"]
    for row in unreadable:
        _complain(row.reasons, 1)
    return 1 if unreadable else 0


def _audit(options: argparse.Namespace) -> int:
    from cxrlib.data.audit import audit

    found = audit(_scan(options, labels=options.labels), progress=not options.json)
    sys.stdout.write((found.to_json() if options.json else str(found)) + "\n")
    return 1 if found.errors or found.unreadable else 0


def _publish(options: argparse.Namespace) -> int:
    import tempfile

    from cxrlib import hub, web
    from cxrlib.predictor import Predictor

    private, predictor = options.private, Predictor(options.model)
    published = predictor.push_to_hub(
        options.repo, private=private, revision=options.revision, commit_message=options.message
    )
    sys.stdout.write(f"{published.url}\n")
    if options.space:
        where = {"model": options.repo, "revision": published.revision, "library": Path(__file__).parent}
        sys.stdout.write(f"{hub.publish_space(web.space_folder(), options.space, private=private, **where).url}\n")
    if options.device:
        with tempfile.TemporaryDirectory() as place:
            page = web.write_page(predictor, Path(place) / "page")
            published = hub.publish_page(page, options.device, private=private)
        sys.stdout.write(f"{published.url}\n")
    return 0


def _demo(options: argparse.Namespace) -> int:
    import runpy
    from importlib.util import find_spec

    from cxrlib import web

    if options.device:
        if options.examples:
            raise ValueError("--examples is of the demo; the page on the device has drawings")
        with web.serving(options.model, port=options.port) as server:
            sys.stdout.write(f"the page is ready at http://localhost:{server.server_port}/ (Ctrl-C stops it)\n")
            sys.stdout.flush()
            server.serve_forever()
        return 0
    if find_spec("gradio") is None:
        raise ImportError('the demo needs gradio: pip install "cxrlib[demo]"')
    app = runpy.run_path(str(web.space_folder() / "app.py"))
    app["main"](model=options.model, port=options.port, examples=options.examples)
    return 0


def _info(options: argparse.Namespace) -> int:
    from cxrlib.metrics.thresholds import predictive_values
    from cxrlib.predictor import Predictor

    predictor = Predictor(options.model_option or options.model)
    config = predictor.config
    if options.json:
        sys.stdout.write(json.dumps(to_dict(config)) + "\n")
        return 0
    lines = [
        ("bundle", f"{predictor.folder}" + (f" (revision {predictor.revision})" if predictor.revision else "")),
        ("labels", ", ".join(config.labels)),
        ("recipe", f"{config.recipe.name}, {config.image_size} x {config.image_size} pixels"),
        ("made with", ", ".join(f"{name} {version}" for name, version in config.versions.items())),
        ("temperature", f"{config.temperature:.3f}"),
        ("gate", "yes" if config.gate else "none"),
    ]
    for name, point in config.operating_points.items():
        default = " (default)" if name == config.default_point else ""
        achieved = f"sensitivity {point.sensitivity:.3f}, specificity {point.specificity:.3f} in validation"
        lines.append((name, f"threshold {point.threshold:.3f}: {achieved}{default}"))
        if options.prevalence is not None:
            values = predictive_values(point.sensitivity, point.specificity, options.prevalence)
            worth = "where {:.1%} are positive: positive predictive value {:.1%}, negative predictive value {:.1%}"
            lines.append(("", worth.format(options.prevalence, *values)))
    for source in config.sources:
        counts = (sum(part.values()) for part in (source.train, source.validation))
        lines.append(("source", "{}: trained on {:,} images, validated on {:,}".format(source.name, *counts)))
    lines += [("note", note) for note in config.notes]
    report = f"\n{predictor.report}\n" if predictor.report else ""
    sys.stdout.write("".join(f"{name:<12} {text}\n" for name, text in lines) + f"{report}\n{DISCLAIMER}\n")
    return 0


def _export(options: argparse.Namespace) -> int:
    from cxrlib import web
    from cxrlib._cli_predict import find
    from cxrlib.export import export

    if options.format == "web":
        page = web.write_page(options.model, options.output)
        sys.stdout.write(f"{page}: a page for any static host with HTTPS; to try it: cxrlib demo --device\n")
        return 0
    images, _ = find(options.images)
    sys.stdout.write(f"{export(options.model, options.output, format=options.format, images=images)}\n")
    return 0


def _clean(options: argparse.Namespace) -> int:
    from cxrlib.data.cache import clean

    sys.stdout.write(f"{clean(options.cache) / 2**20:,.0f} MiB freed\n")
    return 0
