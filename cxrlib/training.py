"""train: films in, an audited, calibrated, documented bundle out."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlib import bundle
from cxrlib.config import Array, BundleConfig, SourceSummary, TrainConfig, to_dict
from cxrlib.data.audit import Audit, audit, drop_duplicates
from cxrlib.data.cache import Facts, Films, decode, fingerprint
from cxrlib.data.scan import Data, Dataset, scan, write_manifest
from cxrlib.data.split import Side, Split, digest, split
from cxrlib.evaluation import evaluate
from cxrlib.images.decode import DECODER
from cxrlib.metrics import thresholds as operating_points
from cxrlib.metrics.calibration import calibrate, fit_temperature
from cxrlib.metrics.compute import Report
from cxrlib.network import framing, machines
from cxrlib.predictor import Predictor
from cxrlib.runtime import gate
from cxrlib.runtime.litert import Runtime

if TYPE_CHECKING:
    import keras

PREPROCESSING = "grey by declared bit depth in [0, 1], MONOCHROME1 inverted, empty bars cut off, squashed by an antialiased bicubic filter; standardised in the network"
_RECORD, _SPLIT = "run.json", "split.csv"


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What `train` left.

    Args:
        bundle: The bundle's folder. Its subfolder `run` holds the split, as a manifest, and the history.
        history: Per epoch of fine-tuning, by name: `loss`, `val_auroc` (the mean over the sources), `val_auroc <source>`, `seconds`.
        report: How the bundle does on the validation films.
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
    config: TrainConfig | None = None,
    init: str | os.PathLike[str] | None = "imagenet",
    leaks: str = "error",
    formats: Sequence[str] = ("keras",),
    patient_pattern: str | None = None,
    labels: Sequence[str] | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train a classifier and save it as a bundle.

    The films are audited and decoded once; patients are set aside for validation; the head is trained on the frozen backbone's features, then the deeper blocks
    are fine-tuned; temperature, operating points and gate are fitted. Started again with the same arguments, a run that was stopped at any moment goes on from
    its last epoch, and a finished one returns what it made, its report without the rows. Where the data has `train`, `val` and `test` splits, `val`
    validates and `test` is left alone.

    Args:
        data: A folder of class folders, a CSV manifest, or a list of them: one entry per source; or a `Dataset` of `cxrlib.data.scan`, to which
            `cxrlib.data.scan.add_columns` may have added what is known of the films.
        output: The bundle's folder, which must not exist yet. While the training runs, its state lies beside it in `<output>.partial`.
        config: The recipe; `None` for the default one.
        init: `"imagenet"`, the folder of a bundle to fine-tune from, or `None` for random weights.
        leaks: What to do about copies and patients in several splits: `"error"`, `"drop"` the surplus films, or `"allow"` them, which the bundle then says.
        formats: Keras files to write beside `model.tflite`: `"keras"`, `"h5"`.
        patient_pattern: Regular expression that finds the patient in a film's name, see `cxrlib.data.scan`.
        labels: The classes, the healthy one first; by default as `cxrlib.data.scan` finds them.
        progress: Whether to show what is going on, on stderr.

    Returns:
        The run.

    Raises:
        FileExistsError: If `output` holds something else than this very training's bundle.
        ValueError: If an argument cannot be, or the data cannot be trained on, or leak between their splits.
        ImageError: If films cannot be read.
        BlockingIOError: If another process is training into the same output.
        ImportError: If a library of the `train` extra is not installed.

    Example:
        >>> run = train(["chest_xray/train", "nih"], output="runs/first")  # doctest: +SKIP
        >>> run.predictor("film.png").label  # doctest: +SKIP
        'NORMAL'
    """
    _check_libraries()
    from cxrlib.network import fit as fitting
    from cxrlib.network.model import build_served

    machines.join()  # before anything is computed
    progress = progress and machines.rank() == 0
    config = config or TrainConfig()
    _check_arguments(config, init, leaks, formats)
    if isinstance(data, Dataset):
        if patient_pattern is not None or labels is not None:
            raise ValueError(
                "a Dataset has its patients and labels: give patient_pattern and labels to `cxrlib.data.scan` instead"
            )
        films = data
    else:
        films = scan(data, patient_pattern=patient_pattern, labels=labels)

    def say(line: str) -> None:
        if progress:
            sys.stderr.write(f"{line}\n")

    target = Path(os.path.abspath(output))
    films, found = _prepare(films, leaks, config, progress)
    for warning in found.warnings:
        say(f"note: {warning}")
    sides = _sides(films, found, config)
    decoded = decode(films, size=config.image_size, progress=progress)
    decoded.check(films)
    films = _with_declared_views(films, decoded.facts)
    balanced = _with_framing(films, decoded.films, config)
    told = {name: balanced.columns[name] for name in config.balance_by if name in balanced.columns}
    identity: dict[str, Any] = {
        "config": to_dict(config),
        "split": sides.digest,
        "films": fingerprint(films, decoded),
        "balanced": {name: digest(column) for name, column in told.items()},
        "init": str(init),
        "leaks": leaks,
    }
    partial = target.with_name(f"{target.name}.partial")
    if target.exists():
        run = _finished(target, identity, formats)
        if partial.exists():  # it was stopped when all was done but the clearing up
            with contextlib.suppress(FileExistsError, BlockingIOError), _alone(partial, identity):
                shutil.rmtree(partial, ignore_errors=True)
        return run
    with contextlib.nullcontext(partial) if machines.rank() else _alone(partial, identity) as work:
        machines.wait("the first process holds the folder")
        train_side = Side(decoded.films, sides.train, balanced.take(sides.train))
        validation = Side(decoded.films, sides.validation, films.take(sides.validation))
        say(
            f"{len(sides.train):,} films to train on, {len(sides.validation):,} to validate, {len(set(films.sources))} source(s)"
        )
        for name, column in told.items():
            values = Counter(source for source, _ in set(zip(films.sources, column, strict=True)))
            if among := sorted(source for source, n in values.items() if n > 1):
                say(f"classes are balanced within each {name} of {', '.join(among)}")
        with _precision(config.precision), machines.sharing():
            net = _network(films.labels, config, init)
            served = build_served(films.labels, config)
            history, trust = fitting.fit(net, served, train_side, validation, config, work, say)
        if machines.rank():  # the first process does the rest
            _wait_for_first(work)
            if not target.exists():
                raise RuntimeError(f"the first process stopped before {target} was complete: its own output says why")
            return _finished(target, identity, formats)
        settings = BundleConfig(
            labels=films.labels,
            image_size=config.image_size,
            decoder=DECODER,
            preprocessing=PREPROCESSING,
            temperature=1.0,
            training=config,
            probe=(0.0,) * len(films.labels),
            sources=_summaries(train_side.films, validation.films, trust),
            fingerprint=identity["films"],
            split=sides.digest,
            notes=_notes(found, leaks),
        )
        made = work / "bundle"
        shutil.rmtree(made, ignore_errors=True)
        bundle.save(made, served, settings, formats=formats)
        say("fits temperature, operating points and gate")
        _calibrate(made, train_side, validation)
        report = replace(evaluate(Predictor(made), validation.films, progress=progress), data="validation patients")
        bundle.update(made, report=report, history=history)
        (made / "run").mkdir()
        write_manifest(sides.marked(films), made / "run" / _SPLIT)
        (made / "run" / _RECORD).write_text(json.dumps({"identity": identity, "history": history}, indent=1), "utf-8")
        made.rename(target)
        shutil.rmtree(work, ignore_errors=True)
    return TrainingRun(target, history, report)


def _check_libraries() -> None:
    """Name at once what would be missed only at the end of a training: networks are exported by TensorFlow whatever trains them, and figures are drawn."""

    def is_here(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            return False

    if missing := [name for name in ("tensorflow", "keras", "sklearn", "matplotlib") if not is_here(name)]:
        raise ImportError(f'training needs {", ".join(missing)}: pip install "cxrlib[train]"')


def _check_arguments(
    config: TrainConfig, init: str | os.PathLike[str] | None, leaks: str, formats: Sequence[str]
) -> None:
    """Name at once what would be missed only when it is needed."""
    import keras

    from cxrlib.network.model import check_backbone

    if leaks not in ("error", "drop", "allow"):
        raise ValueError(f"leaks must be 'error', 'drop' or 'allow'. Received: leaks={leaks!r}")
    bundle.check_formats(formats)
    check_backbone(config.backbone)
    if config.precision != "auto":
        try:
            keras.dtype_policies.get(config.precision)
        except (ValueError, TypeError):
            raise ValueError(
                f"precision must be 'auto' or a dtype policy of Keras. Received: precision={config.precision!r}"
            ) from None
    if init not in ("imagenet", None) and not Path(init).is_dir():
        raise FileNotFoundError(
            f"init must be 'imagenet', None or a bundle's folder; Predictor.from_hub(...).folder is that of one of the Hub. Received: {init}"
        )


def _notes(found: Audit, leaks: str) -> tuple[str, ...]:
    """What the card says of the data."""
    resolved = {
        "allow": found.leaks,
        "drop": ("films that were in two splits, and copies, were left out of training",) if found.errors else (),
        "error": (),
    }
    return (*resolved[leaks], *found.remarks)


def _prepare(films: Dataset, leaks: str, config: TrainConfig, progress: bool) -> tuple[Dataset, Audit]:
    """Audit; resolve leaks as asked; leave the test split out of it."""
    if unknown := Counter(s for s in films.splits if s not in ("train", "val", "test", None)):
        listed = ", ".join(f"{n:,} films of {name}" for name, n in unknown.items())
        raise ValueError(
            f"splits must be train, val and test: what is neither trained on nor validated with belongs in test. Received: {listed}"
        )
    if absent := sorted(set(config.balance_by) - {"view", "framing", *films.columns}):
        raise ValueError(
            f"balance_by names columns that the data do not have: {', '.join(absent)}. Known: {', '.join(films.columns) or 'none'}"
        )
    found = audit(films, size=config.image_size, progress=progress)
    if found.errors and leaks == "error":
        raise ValueError(
            "the data leak between their splits:\n"
            + "\n".join(found.errors)
            + '\nResolve it, or train with leaks="drop" (--drop-duplicates)'
        )
    if leaks == "drop":
        films = drop_duplicates(films, found)
    kept = films.take(np.array([s != "test" for s in films.splits]))
    if not len(kept):
        raise ValueError("all films are of the test split, which training leaves alone: there is nothing to train on")
    return kept, found


def _with_declared_views(films: Dataset, facts: Sequence[Facts]) -> Dataset:
    """The films with the view that their files declare, as DICOM files do, where no manifest names one."""
    told = films.columns.get("view", ("",) * len(films))
    views = tuple(view or fact.view or "" for view, fact in zip(told, facts, strict=True))
    return replace(films, columns={**films.columns, "view": views}) if any(views) else films


def _with_framing(films: Dataset, pixels: Films, config: TrainConfig) -> Dataset:
    """The films with groups of alike framing, where these are to be balanced and nothing is said of them yet."""
    if "framing" not in config.balance_by or "framing" in films.columns:
        return films
    return replace(
        films,
        columns={
            **films.columns,
            "framing": framing.groups(machines.agree(framing.find(pixels, range(len(films)))), films),
        },
    )


def _sides(films: Dataset, found: Audit, config: TrainConfig) -> Split:
    """The data's own validation split where it has one, else patients set aside."""
    own = np.array([s == "val" for s in films.splits])
    if own.any():
        for side, part in (("train", films.take(~own)), ("val", films.take(own))):
            if absent := [label for k, label in enumerate(films.labels) if k not in part.targets]:
                raise ValueError(
                    f"every split needs films of every class. Received: no film of {', '.join(absent)} in {side}"
                )
        return Split.of(films, own)
    return split(
        films, fraction=config.validation, seed=config.seed, together=[*found.exact_duplicates, *found.near_duplicates]
    )


def _network(labels: tuple[str, ...], config: TrainConfig, init: str | os.PathLike[str] | None) -> keras.Model:
    """A network with the asked initial weights; of a bundle, weights are all that is taken."""
    from cxrlib.network.model import build_model

    fresh = init if init in ("imagenet", None) else None
    options: dict[str, Any] = {"backbone": config.backbone, "image_size": config.image_size, "dropout": config.dropout}
    net = build_model(labels, weights=fresh, seed=config.seed, **options)
    if init not in ("imagenet", None):
        bundle.load_weights(net, init)
    return net


def _calibrate(folder: Path, train_side: Side, validation: Side) -> None:
    """Fit what turns scores into answers: temperature and operating points on validation films, the gate on both sides; through the runtime that users run.

    A source counts as far as its labels are believed: labels that are wrong would make all answers unsure, and move the threshold. How much evidence healthy
    validation films have, place by place, is kept too: a heatmap shows what goes beyond it.
    """
    loaded = bundle.load(folder)
    config = loaded.config

    def run(pixels: np.ndarray) -> Any:
        return loaded.runtime.run(pixels.astype(np.float32) / np.float32(255))

    sources, truth = validation.films.sources, validation.films.targets
    outputs = [run(validation.batch(slice(i, i + 64))) for i in range(0, len(truth), 64)]
    raw = np.concatenate([output.probabilities for output in outputs]).astype(np.float64)
    trust = {source.name: source.trust for source in config.sources}
    temperature = fit_temperature(np.log(np.clip(raw, 1e-12, 1)), truth, [trust[source] for source in sources])
    changes: dict[str, Any] = {"temperature": temperature}
    healthy = np.concatenate([output.evidence for output in outputs])[truth == 0]  # (m, h, w, k)
    if len(healthy):
        changes["usual_evidence"] = Array.pack(healthy.mean(axis=0) + healthy.std(axis=0))
    if len(config.labels) == 2:
        changes["operating_points"] = operating_points.choose(truth, calibrate(raw, temperature)[:, 1], sources, trust)
        changes["default_point"] = "balanced"
    changes["gate"] = to_dict(_gate(loaded.runtime, train_side, validation, config.training.seed))
    bundle.update(folder, **changes)


def _gate(runtime: Runtime, train_side: Side, validation: Side, seed: int) -> gate.GateConfig:
    """Fit the gate on films of both sides, as many of each source as it can use."""
    sources = np.array([*train_side.films.sources, *validation.films.sources])
    index = np.concatenate([train_side.index, validation.index])
    shuffled = np.random.default_rng(seed).permutation(len(index))
    chosen = np.concatenate([shuffled[sources[shuffled] == source][: gate.PER_SOURCE] for source in np.unique(sources)])
    pixels = train_side.pixels[index[chosen]]  # (n, s, s)
    return gate.fit(
        pixels, sources=sources[chosen].tolist(), embed=lambda films: runtime.run(films).embedding, seed=seed
    )


def _summaries(train_films: Dataset, validation: Dataset, trust: dict[str, float]) -> tuple[SourceSummary, ...]:
    def count(films: Dataset, source: str) -> dict[str, int]:
        counts = Counter(
            films.labels[t] for s, t in zip(films.sources, films.targets.tolist(), strict=True) if s == source
        )
        return {label: counts[label] for label in films.labels}

    summaries = []
    for source in dict.fromkeys((*train_films.sources, *validation.sources)):
        patients = [
            p
            for films in (train_films, validation)
            for p, s in zip(films.patients, films.sources, strict=True)
            if s == source
        ]
        known = len(set(patients)) if None not in patients else None
        summaries.append(
            SourceSummary(source, count(train_films, source), count(validation, source), known, trust.get(source, 1.0))
        )
    return tuple(summaries)


def _finished(target: Path, identity: dict[str, Any], formats: Sequence[str]) -> TrainingRun:
    record = target / "run" / _RECORD
    made = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    if made.get("identity") != json.loads(json.dumps(identity)):
        raise FileExistsError(
            f"{target} exists and comes from other data or another recipe: choose another output folder, nothing was written"
        )
    if absent := [name for name in formats if not (target / f"model.{name}").is_file()]:
        raise FileExistsError(
            f"{target} is finished, without {', '.join(f'model.{name}' for name in absent)}: choose another output folder for these formats"
        )
    report = bundle.load(target).report
    if report is None:
        raise FileExistsError(f"{target} exists but lost its report: choose another output folder")
    return TrainingRun(target, made["history"], report)


@contextlib.contextmanager
def _alone(work: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """The folder of an unfinished run, held by one process; what another recipe or other data left there is refused."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("a") as file:
        with contextlib.suppress(ImportError):  # Windows: whoever starts two runs there must look after them
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"another process is training into {work}: wait for it, or choose another output folder"
                ) from None
        record = work / _RECORD
        ours = json.dumps(identity, sort_keys=True)
        if not record.exists():
            part = record.with_name(f"part-{record.name}")
            part.write_text(ours, "utf-8")
            part.replace(record)
        elif record.read_text("utf-8") != ours:
            raise FileExistsError(
                f"{work} holds an unfinished run of other data or another recipe: remove it, or choose another output folder"
            )
        yield work


def _wait_for_first(work: Path) -> None:
    """Wait until the first process lets go of the folder, whether it has finished or failed."""
    import fcntl

    with contextlib.suppress(FileNotFoundError), (work / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def _precision(wanted: str) -> Iterator[None]:
    """Mixed precision where there is a GPU; what was set before is set again afterwards."""
    import keras

    before = keras.config.dtype_policy()
    policy = wanted if wanted != "auto" else "mixed_bfloat16" if _gpus() else "float32"
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _gpus() -> list[str]:
    import keras

    try:
        return list(keras.distribution.list_devices("gpu"))
    except (RuntimeError, NotImplementedError, ValueError):  # a backend that knows none says so in its own way
        return []
