"""train: images in, an audited, calibrated, documented bundle out."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from cxrlib import bundle
from cxrlib.bundle import Bundle
from cxrlib.config import DEFAULT_LABELS, Array, BundleConfig, DefaultRecipe, Recipe, SourceSummary, recipe_of, to_dict
from cxrlib.data.audit import Audit, audit, without_leaks
from cxrlib.data.cache import Facts, decode, fingerprint
from cxrlib.data.scan import Data, Dataset, scan, write_manifest
from cxrlib.data.split import sides
from cxrlib.evaluation import evaluate
from cxrlib.images.decode import DECODER
from cxrlib.metrics import thresholds
from cxrlib.metrics.calibration import calibrate, fit_temperature
from cxrlib.metrics.report import Report
from cxrlib.predictor import Predictor
from cxrlib.runtime.litert import Runtime

if TYPE_CHECKING:
    import keras

    from cxrlib.network.fit import Side

PREPROCESSING = (
    "grey by declared bit depth in [0, 1], MONOCHROME1 inverted, empty bars cut off, resized to a square by an "
    "antialiased bicubic filter; everything else happens in the network"
)
_RECORD, _SPLIT = "run.json", "split.csv"


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What `train` made.

    Args:
        bundle: The bundle's folder. Its subfolder `run` holds the split, as a manifest, and the history.
        history: Per epoch, by name: `loss`, `accuracy`, `auroc`, and the same of the validation images with `val_`.
        report: How the bundle does on the validation images.
    """

    bundle: Path
    history: dict[str, list[float]]
    report: Report

    @cached_property
    def predictor(self) -> Predictor:
        """A `Predictor` of the bundle."""
        return Predictor(self.bundle)


def train(
    data: Data | Dataset,
    *,
    output: str | os.PathLike[str],
    recipe: str | Recipe = "default",
    init: str | os.PathLike[str] | None = "imagenet",
    leaks: str = "error",
    formats: Sequence[str] = ("keras",),
    labels: Sequence[str] | None = None,
    about: Mapping[str, str] | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train a classifier and save it as a bundle.

    The images are decoded once and audited; patients are set aside for validation; the network is trained; temperature,
    operating points and gate are fitted on the validation patients; the bundle is written once, whole. Started again
    with the same arguments, a run that was stopped at any moment goes on from its last epoch, and a finished one
    returns what it made. Where the data has `train`, `val` and `test` splits, `val` validates and `test` is left alone.

    Args:
        data: A folder of class folders, a CSV manifest, or a list of them: one entry per source; or a `Dataset` of
            `cxrlib.data.scan.scan`.
        output: The bundle's folder, which must not exist yet. While the training runs, its state lies in
            `<output>.partial`.
        recipe: `"default"`, `"textbook"`, or a recipe with settings of your own.
        init: `"imagenet"`, the folder of a bundle to start from, or `None` for random weights.
        leaks: What to do about copies and patients in several splits: `"error"`, `"drop"` the surplus images, or
            `"allow"` them, which the bundle then says.
        formats: Keras files to write beside `model.tflite`: `"keras"`, `"h5"`.
        labels: The classes, the normal one first; by default as `cxrlib.data.scan.scan` finds them.
        about: What the card says and the data does not: `population`, in words, and `license`, as the Hub writes it.
        progress: Whether to show progress on stderr.

    Returns:
        The run.

    Raises:
        FileExistsError: If `output` holds something other than this very training's bundle.
        ValueError: If an argument is not valid, or the data cannot be trained on, or leaks between its splits.
        ImageError: If images cannot be read.
        BlockingIOError: If another process is training into the same output.
        ImportError: If a library of the `train` extra is not installed.

    Example:
        >>> run = train(["chest_xray/train", "nih"], output="runs/first")  # doctest: +SKIP
        >>> run.predictor("image.png").label  # doctest: +SKIP
        'NORMAL'
    """
    _check_libraries()
    from cxrlib.network import devices
    from cxrlib.network.fit import Side, fit
    from cxrlib.network.model import export_litert, round_weights

    recipe = recipe_of(recipe)
    _check_arguments(recipe, init, leaks, formats)
    if unknown := set(about or ()) - {"population", "license"}:
        raise ValueError(f"about may have population and license. Received: {', '.join(sorted(unknown))}")
    devices.join()  # before anything is computed
    progress = progress and devices.rank() == 0

    def say(line: str) -> None:
        if progress:
            sys.stderr.write(f"{line}\n")

    # images, each decoded once
    if isinstance(data, Dataset) and labels is not None:
        raise ValueError("a Dataset has its labels: give labels to `cxrlib.data.scan.scan` instead")
    dataset = data if isinstance(data, Dataset) else scan(data, labels=labels)
    decoded = decode(dataset, size=recipe.image_size, progress=progress)
    decoded.check(dataset)

    # audit, and what may be trained on
    found = audit(dataset, decoded)
    for warning in found.warnings:
        say(f"note: {warning}")
    kept = np.flatnonzero(_usable(dataset, found, leaks))
    dataset, decoded = _with_declared_views(dataset.take(kept), [decoded.facts[i] for i in kept]), decoded.take(kept)

    # patients for validation
    together = [*found.exact_duplicates, *found.near_duplicates]
    split, remark = sides(dataset, fraction=recipe.validation, seed=recipe.seed, together=together)
    identity: dict[str, Any] = {
        "recipe": to_dict(recipe),
        "split": split.digest,
        "images": fingerprint(dataset, decoded),
        "init": str(init),
        "leaks": leaks,
    }
    target = Path(os.path.abspath(output))
    partial = target.with_name(f"{target.name}.partial")
    if target.exists():
        run = _finished(target, identity, formats)
        shutil.rmtree(partial, ignore_errors=True)
        return run

    with _held(partial, identity, wait=devices.rank() > 0) as work:
        if target.exists():  # another process has finished it meanwhile
            return _finished(target, identity, formats)
        train_side = Side(decoded.images, split.train, dataset.take(split.train))
        validation = Side(decoded.images, split.validation, dataset.take(split.validation))
        n = len(set(dataset.sources))
        say(f"{len(split.train):,} images to train on, {len(split.validation):,} to validate, {n} source(s)")
        if remark:
            say(f"note: {remark}")

        # the network
        with _precision(recipe.precision), devices.sharing():
            model = _network(dataset.labels, recipe, init)
            history = fit(model, train_side, validation, recipe, work, progress=progress)
            round_weights(model)
        first = devices.rank() == 0
        devices.leave()
        if not first:
            raise SystemExit(0)  # the first process does the rest

        # what turns its outputs into answers
        say("fitting temperature, operating points and gate")
        network = export_litert(model)
        runtime = Runtime(network, trusted=True)
        config = BundleConfig(
            labels=dataset.labels,
            image_size=recipe.image_size,
            decoder=DECODER,
            preprocessing=PREPROCESSING,
            recipe=recipe,
            probe=bundle.probe(runtime),
            sources=_summaries(train_side.dataset, validation.dataset),
            fingerprint=identity["images"],
            split=split.digest,
            notes=tuple(filter(None, (*_notes(found, leaks), remark))),
            population=(about or {}).get("population"),
            license=(about or {}).get("license"),
            **_calibrated(runtime, train_side, validation, recipe.seed),
        )

        # measured through the code that users run, and written once
        predictor = Predictor(Bundle(work, config, runtime, None))
        report = replace(evaluate(predictor, validation.dataset, progress=progress), data="validation patients")
        shutil.rmtree(work / "bundle", ignore_errors=True)  # of a run that was killed after this line
        config = replace(config, seen="".join(sorted(facts.digest[:8] for facts in decoded.facts)))
        made = bundle.save(
            work / "bundle", config, network, model=model, formats=formats, report=report, history=history
        )
        (made / "run").mkdir()
        write_manifest(split.marked(dataset), made / "run" / _SPLIT)
        (made / "run" / _RECORD).write_text(json.dumps({"identity": identity, "history": history}, indent=1), "utf-8")
        made.rename(target)
    shutil.rmtree(partial, ignore_errors=True)
    return TrainingRun(target, history, report)


def _check_libraries() -> None:
    """Name at once what would be missed only at the end of a training."""

    def missing(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is None
        except (ImportError, ValueError):
            return True

    if absent := [name for name in ("tensorflow", "keras", "sklearn", "matplotlib") if missing(name)]:
        raise ImportError(f'training needs {", ".join(absent)}: pip install "cxrlib[train]"')


def _check_arguments(recipe: Recipe, init: str | os.PathLike[str] | None, leaks: str, formats: Sequence[str]) -> None:
    """Name at once what would be missed only when it is needed."""
    import keras

    from cxrlib.network.default import backbone_of

    if isinstance(recipe, DefaultRecipe):
        backbone_of(recipe)
    if leaks not in ("error", "drop", "allow"):
        raise ValueError(f"leaks must be 'error', 'drop' or 'allow'. Received: leaks={leaks!r}")
    bundle.check_formats(formats)
    if recipe.precision != "auto":
        try:
            keras.dtype_policies.get(recipe.precision)
        except (ValueError, TypeError):
            raise ValueError(
                f"precision must be 'auto' or a dtype policy of Keras. Received: precision={recipe.precision!r}"
            ) from None
    if init not in ("imagenet", None) and not Path(init).is_dir():
        raise FileNotFoundError(
            "init must be 'imagenet', None or the folder of a bundle (of the Hub: Predictor.from_hub(...).folder). "
            f"Received: {init}"
        )


def _usable(dataset: Dataset, found: Audit, leaks: str) -> np.ndarray:
    """Which images may be used: a mask. Leaks are resolved as asked, and the test split is left alone."""
    if unknown := Counter(s for s in dataset.splits if s not in ("train", "val", "test", None)):
        listed = ", ".join(f"{n:,} images of {name}" for name, n in unknown.items())
        raise ValueError(f"splits must be train, val and test. Received: {listed}")
    if found.errors and leaks == "error":
        raise ValueError(
            "the data leaks between its splits:\n"
            + "\n".join(found.errors)
            + '\nResolve it, or train with leaks="drop"'
        )
    usable = np.array([s != "test" for s in dataset.splits])
    if leaks == "drop":
        usable &= without_leaks(dataset, found)
    if not usable.any():
        raise ValueError("all images are of the test split, which training leaves alone: there is nothing to train on")
    return usable


def _notes(found: Audit, leaks: str) -> tuple[str, ...]:
    """What the card says of the data."""
    dropped = ("images that were in two splits, and copies, were left out of training",) if found.errors else ()
    return (*{"allow": found.leaks, "drop": dropped, "error": ()}[leaks], *found.remarks)


def _with_declared_views(dataset: Dataset, facts: Sequence[Facts]) -> Dataset:
    """The images with the view that their files declare, as DICOM files do, where no manifest names one."""
    named = dataset.columns.get("view", ("",) * len(dataset))
    views = tuple(view or fact.view or "" for view, fact in zip(named, facts, strict=True))
    return replace(dataset, columns={**dataset.columns, "view": views}) if any(views) else dataset


def _network(labels: tuple[str, ...], recipe: Recipe, init: str | os.PathLike[str] | None) -> keras.Model:
    """A network with the wanted initial weights; of a bundle, only weights are taken."""
    from cxrlib.network.model import build_model

    if init in ("imagenet", None):
        return build_model(labels, recipe=recipe, weights=init)
    model = build_model(labels, recipe=recipe, weights=None)
    bundle.load_weights(model, init)
    return model


def _calibrated(runtime: Runtime, train: Side, validation: Side, seed: int) -> dict[str, Any]:
    """Fit what turns outputs into answers: temperature and operating points on the validation images, the gate on all.

    The mean evidence of normal validation images, place by place, is kept too: a heatmap shows what exceeds it.
    """
    from cxrlib.network import gate_fit
    from cxrlib.network.fit import sampling_weights

    truth = validation.dataset.targets
    batches = (validation.batch(slice(i, i + 64)) for i in range(0, len(truth), 64))
    outputs = [runtime.run(batch.astype(np.float32) / np.float32(255)) for batch in batches]
    raw = np.concatenate([output.probabilities for output in outputs]).astype(np.float64)  # (n, k)
    balance = sampling_weights(validation.dataset, 1.0)  # classes alike within each source
    temperature = fit_temperature(np.log(np.clip(raw, 1e-12, 1)), truth, balance)
    normal = np.concatenate([output.evidence for output in outputs])[truth == 0]  # (m, h, w, k)
    fitted: dict[str, Any] = {
        "temperature": temperature,
        "normal_evidence": Array.pack(normal.mean(axis=0) + normal.std(axis=0)) if len(normal) else None,
    }
    known = validation.dataset
    if len(known.labels) == 2 or known.labels[1] == DEFAULT_LABELS[1]:  # of the second label against all others
        p = calibrate(raw, temperature)[:, 1]
        fitted["operating_points"] = thresholds.choose(truth == 1, p, known.sources, known.patients)
        fitted["default_point"] = "balanced"
    sources = np.array([*train.dataset.sources, *validation.dataset.sources])
    index = np.concatenate([train.index, validation.index])
    shuffled = np.random.default_rng(seed).permutation(len(index))
    chosen = [shuffled[sources[shuffled] == source][: gate_fit.PER_SOURCE] for source in np.unique(sources)]
    chests = np.concatenate(chosen)
    fitted["gate"] = to_dict(
        gate_fit.fit(
            np.asarray(train.images[index[chests]]),
            sources=sources[chests].tolist(),
            embed=lambda images: runtime.run(images).embedding,
            seed=seed,
        )
    )
    return fitted


def _summaries(train: Dataset, validation: Dataset) -> tuple[SourceSummary, ...]:
    def count(dataset: Dataset, source: str) -> dict[str, int]:
        counts = Counter(t for s, t in zip(dataset.sources, dataset.targets.tolist(), strict=True) if s == source)
        return {label: counts[k] for k, label in enumerate(dataset.labels)}

    summaries = []
    for source in dict.fromkeys((*train.sources, *validation.sources)):
        both = ((p, s) for side in (train, validation) for p, s in zip(side.patients, side.sources, strict=True))
        patients = {patient for patient, s in both if s == source}
        known = None if None in patients else len(patients)
        summaries.append(SourceSummary(source, count(train, source), count(validation, source), known))
    return tuple(summaries)


def _finished(target: Path, identity: dict[str, Any], formats: Sequence[str]) -> TrainingRun:
    """What an earlier run with the same arguments made."""
    record = target / "run" / _RECORD
    made = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    if made.get("identity") != json.loads(json.dumps(identity)):
        raise FileExistsError(
            f"{target} exists and comes from other data or another recipe: choose another output folder, "
            "nothing was written"
        )
    if absent := [f"model.{name}" for name in formats if not (target / f"model.{name}").is_file()]:
        raise FileExistsError(
            f"{target} is finished, without {', '.join(absent)}: choose another output folder for these formats"
        )
    report = bundle.load(target).report
    if report is None:
        raise FileExistsError(f"{target} exists but has no report: choose another output folder")
    return TrainingRun(target, made["history"], report)


@contextlib.contextmanager
def _held(work: Path, identity: dict[str, Any], *, wait: bool) -> Iterator[Path]:
    """The folder of an unfinished run, held by one process; one of another recipe or other data is refused."""
    work.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if not wait:
            try:
                stack.enter_context(filelock.FileLock(work / "lock", timeout=0))
            except filelock.Timeout:
                raise BlockingIOError(
                    f"another process is training into {work}: wait for it, or choose another output folder"
                ) from None
        record, ours = work / _RECORD, json.dumps(identity, sort_keys=True)
        if not record.exists():
            part = record.with_name(f"part-{record.name}")
            part.write_text(ours, "utf-8")
            part.replace(record)
        elif record.read_text("utf-8") != ours:
            raise FileExistsError(
                f"{work} holds an unfinished run of other data or another recipe: remove it, or choose another output "
                "folder"
            )
        yield work


@contextlib.contextmanager
def _precision(wanted: str) -> Iterator[None]:
    """Mixed precision where there is a GPU; the policy of before is set again afterwards."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(wanted if wanted != "auto" else "mixed_bfloat16" if _gpus() else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _gpus() -> list[str]:
    import keras

    try:
        return list(keras.distribution.list_devices("gpu"))
    except (RuntimeError, NotImplementedError, ValueError):  # each backend without any has its own way to say so
        return []
