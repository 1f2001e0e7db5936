"""`cxrlib predict`: answers on stdout, one a line, everything else on stderr."""

from __future__ import annotations

import argparse
import contextlib
import csv
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cxrlib.config import DISCLAIMER
from cxrlib.images import sources
from cxrlib.predictor import Predictor
from cxrlib.runtime.prediction import Prediction


def predict(options: argparse.Namespace, load: Callable[[], Predictor]) -> int:
    """Predict images here, and write what the options ask for.

    Args:
        options: Of the command.
        load: Gives the model.

    Returns:
        0, or 1 when an image could not be read.
    """
    images, skipped = find(options.paths)
    _check_outputs(options, images)
    predictor = load()
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        add_row = stack.enter_context(_table(options.csv)) if options.csv else None
        bar: Any = None
        if len(images) > 1 and not options.quiet and sys.stderr.isatty():
            from tqdm import tqdm

            bar = stack.enter_context(tqdm(desc="predict", total=len(images), unit=" images"))

        def say(line: str, stream: Any) -> None:
            bar.write(line, file=stream) if bar is not None else stream.write(f"{line}\n")
            stream.flush()

        for prediction, heatmap in _answers(predictor, images, options.heatmaps):
            counts[prediction.label or prediction.status] += 1
            if prediction.status == "unreadable":
                say(f"cxrlib: {prediction.reasons[0]}", sys.stderr)
            if options.json:
                say(json.dumps({**prediction.to_dict(), **_after(prediction, options.pretest)}), sys.stdout)
            elif prediction.status != "unreadable":
                known = options.pretest if prediction.status == "ok" else None
                after = "" if known is None else f"\n  {prediction.given(known)}"
                say(_sentence(prediction) + after + (f"\n  heatmap: {heatmap}" if heatmap else ""), sys.stdout)
            if add_row:
                row = {**prediction.to_dict(flat=True), **_after(prediction, options.pretest)}
                add_row({**row, **({"heatmap": heatmap} if options.heatmaps else {})})
            if bar is not None:
                bar.update()
    if not options.quiet and (len(images) > 1 or skipped):
        kinds = (*predictor.labels, "refused", "unreadable")
        _summarise(len(images), [(counts[kind], kind.lower()) for kind in kinds], skipped)
    if not options.quiet and not options.json:
        sys.stderr.write(f"{DISCLAIMER}\n")
    return 1 if counts["unreadable"] else 0


def predict_in_bulk(options: argparse.Namespace, load: Callable[[], Predictor]) -> int:
    """Predict images on Ray.

    Args:
        options: Of the command.
        load: Gives the model.

    Returns:
        0, or 1 when an image could not be read.
    """
    from cxrlib import ray

    done = ray.predict(options.paths, options.output, predictor=load(), workers=options.workers)
    sys.stdout.write(f"{options.output}\n")
    if not options.quiet:
        counts = ((done.answered, "answered"), (done.refused, "refused"), (done.unreadable, "unreadable"))
        _summarise(done.images, [*counts, (done.before, "done before")])
        sys.stderr.write(f"{DISCLAIMER}\n")
    return 1 if done.unreadable else 0


def find(paths: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """List the images that words of the command line mean.

    Args:
        paths: Files, URLs, folders, and patterns such as `scans/*.png`.

    Returns:
        The images, and how many other files lie in the folders, by extension. A folder without images, or one that
        cannot be listed, and a pattern that fits nothing stand for themselves.

    Example:
        >>> find(["no*such.png"])
        (['no*such.png'], Counter())
    """
    images: list[str] = []
    skipped: Counter[str] = Counter()
    for word in paths:
        for path in [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True)) or [word]:
            if not os.path.isdir(path):
                images.append(path)
                continue
            found = [str(image) for image in sources.find(path, strict=False)]
            images += found or [path]
            for folder, folders, names in os.walk(path):
                folders[:] = [name for name in folders if not name.startswith(".")]
                others = {str(Path(folder, name)) for name in names if not name.startswith(".")}.difference(found)
                skipped.update(Path(name).suffix.lower() or "without extension" for name in others)
    return images, skipped


def _check_outputs(options: argparse.Namespace, images: Iterable[str]) -> None:
    """No table and no heatmap may take the place of an image."""
    places = {Path(image).resolve(): image for image in images if "://" not in image}
    table, folder = options.csv, options.heatmaps
    if table and (table.suffix.lower() in sources.EXTENSIONS or table.resolve() in places):
        raise argparse.ArgumentTypeError(f"--csv must name a file that is not an image, such as table.csv: {table}")
    if folder:
        if image := next((image for place, image in places.items() if place.parent == folder.resolve()), None):
            raise argparse.ArgumentTypeError(f"--heatmaps must name a folder of its own: {folder} holds {image}")
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _table(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that adds a row to a CSV file; rows stay, whatever happens next."""
    try:
        file = path.open("w", newline="", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError as error:
        raise OSError(f"--csv {path} cannot be written ({error.strerror}): choose another place") from error
    with file:
        writer = csv.writer(file)

        def add(row: dict[str, Any]) -> None:
            if not file.tell():
                writer.writerow(row)
            writer.writerow(row.values())

        yield add


def _answers(
    predictor: Predictor, images: Sequence[str], folder: Path | None
) -> Iterator[tuple[Prediction, Path | None]]:
    """Predictions, each with the file of its heatmap where a folder for them is given."""
    if folder is None:
        yield from ((_corrected(p), None) for p in predictor.stream(images, errors="return"))
        return
    taken: Counter[str] = Counter()
    for image in images:
        name = sources.name_of(image)
        try:
            found = predictor.explain(image)
        except (sources.ImageError, ImportError) as error:  # ImportError: this image needs an extra, others may not
            message = str(error) if isinstance(error, sources.ImageError) else f"{name}: {error}"
            yield _corrected(Prediction.unreadable(name, message, predictor.labels, predictor.threshold)), None
            continue
        heatmap = None
        if found.prediction.status == "ok":
            stem = os.fsencode(Path(name).stem)[:200].decode("utf-8", "ignore")  # a name may have 255 bytes
            while taken[stem.casefold()]:  # another image of the same name
                taken[stem.casefold()] += 1
                stem = f"{stem}-{taken[stem.casefold()]}"
            taken[stem.casefold()] += 1
            part, heatmap = folder / f".{os.getpid()}.part", folder / f"{stem}.png"
            found.overlay().save(part, "PNG")
            part.replace(heatmap)  # no file is ever half written
        yield replace(found.prediction, reasons=(*found.prediction.reasons, *found.warnings)), heatmap


def _corrected(prediction: Prediction) -> Prediction:
    """Say of a folder that stands for itself why it does."""
    folder = prediction.source
    if prediction.status != "unreadable" or not os.path.isdir(folder):
        return prediction
    reason = f"{folder}: there are no images in this folder"
    try:
        sources.find(folder)
    except OSError as error:
        reason = str(error)
    return replace(prediction, reasons=(reason,))


def _sentence(p: Prediction) -> str:
    if p.status == "refused":
        return f"{p.source}: refused: {'; '.join(p.reasons)}"
    threshold = "" if p.threshold is None else f", threshold {p.threshold:.3f}"
    notes = "".join(f"\n  note: {reason}" for reason in p.reasons)
    return f"{p.source}: {p.label} (probability {p.probability:.3f}{threshold}){notes}"


def _after(p: Prediction, pretest: float | None) -> dict[str, Any]:
    """What the image adds to a pre-test probability, as fields of a row."""
    if pretest is None:
        return {}
    after = p.given(pretest) if p.status == "ok" else None
    ratio, probability = (after.likelihood_ratio, after.probability) if after else (None, None)
    return {"pretest": pretest, "likelihood_ratio": ratio, "posttest": probability}


def _summarise(total: int, counts: Iterable[tuple[int, str]], skipped: Counter[str] | None = None) -> None:
    found = ", ".join(f"{n:,} {what}" for n, what in counts)
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in (skipped or Counter()).most_common(5))
    others = f"; skipped {skipped.total():,} files that are not images ({kinds})" if skipped else ""
    sys.stderr.write(f"{total:,} images: {found}{others}\n")
