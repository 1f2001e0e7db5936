"""The bundle: a folder with a network, how it was made, what it achieved, and hashes that show it is intact."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxrlib.config import SCHEMA, BundleConfig, BundleError, from_dict, to_dict
from cxrlib.images.sources import ImageError, bytes_of
from cxrlib.metrics.report import Report
from cxrlib.runtime.litert import Runtime

if TYPE_CHECKING:
    import keras

CONFIG, RUNTIME, REPORT, CARD = "config.json", "model.tflite", "report.json", "README.md"
KERAS, H5 = "model.keras", "model.h5"
DEFAULT = Path(__file__).parent / "default"  # the bundled model
BUNDLED = {"default": DEFAULT, "causes": Path(__file__).parent / "causes"}  # all that come with cxrlib, by name
_TOLERANCE = 1e-3  # of the probe: processors differ by about 1e-6, another network by far more
_MAX_CONFIG_BYTES = 8 * 2**20
_MAX_WEIGHTS_BYTES = 2**29
_LISTED = re.compile(
    r"model\.(?:tflite|keras|h5)|report\.json|README\.md|figures/[A-Za-z0-9][A-Za-z0-9_.-]*\.png"
)  # all that a config may list


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that was read and verified.

    Args:
        folder: Where it lies.
        config: What `config.json` holds.
        runtime: The network, ready to run.
        report: How it was measured; `None` when it holds no report.
    """

    folder: Path
    config: BundleConfig
    runtime: Runtime
    report: Report | None


def probe_image(size: int) -> np.ndarray:
    """Draw the image whose probabilities every bundle states: smooth waves, the same on every machine.

    Args:
        size: Side in pixels.

    Returns:
        ndarray of shape (size, size, 1), float32, multiples of 1/255 in [0, 1].

    Example:
        >>> probe_image(4).shape
        (4, 4, 1)
    """
    axis = np.linspace(-1.0, 1.0, size)
    x, y = axis[None, :], axis[:, None]
    waves = 0.5 + 0.25 * np.cos(5 * x) * np.cos(4 * y) - 0.2 * np.exp(-8 * ((np.abs(x) - 0.4) ** 2 + y**2 / 2))
    image: np.ndarray = (np.round(255 * np.clip(waves, 0, 1)) / 255).astype(np.float32)[..., None]
    return image


def probe(runtime: Runtime) -> tuple[float, ...]:
    """Run a network on the probe image.

    Args:
        runtime: The network.

    Returns:
        Its raw probability of each label.
    """
    return tuple(map(float, runtime.run(probe_image(runtime.input_size)[None]).probabilities[0]))


def save(
    folder: str | os.PathLike[str],
    config: BundleConfig,
    network: bytes,
    *,
    model: keras.Model | None = None,
    formats: Sequence[str] = ("keras",),
    report: Report | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Write a bundle, once: the whole of it appears at its place, or nothing.

    Args:
        folder: Where; it must not exist yet, or be empty.
        config: Everything but the probe, the hashes and the versions, which are filled in here.
        network: The bytes of `model.tflite`, as `cxrlib.network.model.export_litert` gives them.
        model: The same network in Keras, to be written beside it; `None` for no Keras file.
        formats: Which Keras files to write: `"keras"`, `"h5"` or both.
        report: How it was measured. Its rows, which name files and patients, stay out of the bundle.
        history: The training history, drawn among the report's figures.

    Returns:
        The folder.

    Raises:
        ValueError: If a format is not known.
        FileExistsError: If something is at this place.
        BlockingIOError: If another process is writing there.
        BundleError: If the network cannot be run.
        OSError: If the folder cannot be written.
    """
    check_formats(formats)
    target = Path(folder)
    check_free(target)
    config = dataclasses.replace(config, probe=probe(Runtime(network)), versions=_versions())
    with _draft(target) as new:
        (new / RUNTIME).write_bytes(network)
        if model is not None:
            logging.disable(logging.WARNING)  # of Keras, that HDF5 is legacy: it was asked for by name
            try:
                for form in formats:
                    model.save(new / f"model.{form}")
            finally:
                logging.disable(logging.NOTSET)
        if report is not None:
            from cxrlib.reporting import plots

            points = {name: point.threshold for name, point in config.operating_points.items()}
            plots.save(report, new / "figures", points=points or None, history=history)
            (new / REPORT).write_text(report.to_json(predictions=False), "utf-8")
        (new / CARD).write_bytes(_card(config, report))
        names = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
        files = {name: _sha256(_read(new, name)) for name in names}
        (new / CONFIG).write_bytes(_json(dataclasses.replace(config, files=files)))
    return target


def check_formats(formats: Sequence[str]) -> None:
    """Check which Keras files are asked for.

    Args:
        formats: As for `save`.

    Raises:
        ValueError: If one is not known, or this is not a sequence of names.

    Example:
        >>> check_formats(("keras", "h5"))
    """
    if isinstance(formats, str) or set(formats) - {"keras", "h5"}:
        raise ValueError(f"formats must be ('keras',), ('h5',) or both. Received: formats={formats!r}")


def read_config(data: bytes, where: str = CONFIG) -> BundleConfig:
    """Read and check the bytes of a `config.json`.

    Args:
        data: JSON text in UTF-8.
        where: How messages name it.

    Returns:
        The config.

    Raises:
        BundleError: If it is not the config of a bundle that this version reads.

    Example:
        >>> try:
        ...     read_config(b"[]")
        ... except BundleError as error:
        ...     print(error)
        config.json is not the config of a cxrlib bundle: config must be an object with named fields. Received: list
    """
    try:
        if len(data) > _MAX_CONFIG_BYTES:
            raise ValueError(f"it has {len(data):,} bytes, more than {_MAX_CONFIG_BYTES:,}")
        content = json.loads(data)
        schema = content.get("schema") if isinstance(content, dict) else None
        if isinstance(schema, int) and schema != SCHEMA:
            advice = "install a version that reads it"
            if schema == 1:
                advice = "it was made by cxrlib 0.1, so train it again with this version, or install 0.1"
            raise BundleError(f"{where} has schema {schema}, this version reads schema {SCHEMA}: {advice}")
        return from_dict(BundleConfig, content)
    except BundleError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{where} is not the config of a cxrlib bundle: {error}") from error


def list_files(data: bytes) -> dict[str, str]:
    """Say which files a bundle's `config.json` lists.

    Args:
        data: The bytes of `config.json`.

    Returns:
        SHA-256, hexadecimal, by file name.

    Raises:
        BundleError: If the config cannot be trusted, or lists no network.
    """
    files = read_config(data).files
    if RUNTIME not in files:
        raise BundleError(f"{CONFIG} lists no {RUNTIME}")
    if foreign := [name for name in files if not _LISTED.fullmatch(name)]:
        raise BundleError(f"{CONFIG} lists {', '.join(foreign)}: a bundle does not hold such files")
    return files


def load(folder: str | os.PathLike[str], *, threads: int | None = None) -> Bundle:
    """Read a bundle, check every hash and the golden probe. No Keras file is opened.

    Args:
        folder: The bundle.
        threads: For the runtime; `None` for one per core.

    Returns:
        The bundle.

    Raises:
        FileNotFoundError: If there is no such folder.
        BundleError: If the bundle cannot be trusted; the message says which check failed.
    """
    root = Path(folder)
    if not root.is_dir():
        on_hub = len(root.parts) == 2 and not root.is_absolute()
        hint = f" (a bundle on the Hub would be hf://{root.as_posix()})" if on_hub else ""
        raise FileNotFoundError(f"there is no bundle at {root}{hint}")
    if not os.path.lexists(root / CONFIG):
        raise BundleError(f"{root} is not a cxrlib bundle: it has no {CONFIG}")
    data = _read(root, CONFIG)
    config = read_config(data, f"{root / CONFIG}")
    kept: dict[str, bytes] = {}
    for name, digest in list_files(data).items():
        content = _read(root, name)
        if _sha256(content) != digest:
            raise BundleError(f"{root / name} was altered or damaged: its SHA-256 is not the one that {CONFIG} lists")
        if name in (RUNTIME, REPORT):
            kept[name] = content
    runtime = Runtime(kept[RUNTIME], threads=threads)
    if (runtime.input_size, runtime.labels_count) != (config.image_size, len(config.labels)):
        raise BundleError(f"{root / RUNTIME} does not fit {CONFIG}: another image size or number of labels")
    try:
        found = probe(runtime)
    except RuntimeError as error:
        raise BundleError(f"{root / RUNTIME} cannot be run: {error}") from error
    if not np.allclose(found, config.probe, rtol=0, atol=_TOLERANCE):
        gives, must = (", ".join(f"{p:.4f}" for p in values) for values in (found, config.probe))
        raise BundleError(f"{root} fails its golden probe: the probe image gives {gives}, and must give {must}")
    try:
        report = Report.from_json(kept[REPORT].decode()) if REPORT in kept else None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{root / REPORT} cannot be read: {error}") from error
    return Bundle(root, config, runtime, report)


def for_hub(bundle: Bundle, repo_id: str) -> dict[str, Path | bytes]:
    """List what is published of a bundle: its files, with a card that names the repository and the config that fits.

    Args:
        bundle: The bundle; its folder stays as it is.
        repo_id: `user/repo`.

    Returns:
        Path or content of each file, by name.
    """
    readme = _card(bundle.config, bundle.report, repo_id)
    listed = {**bundle.config.files, CARD: _sha256(readme)}
    paths: dict[str, Path | bytes] = {name: bundle.folder / name for name in listed}
    return {**paths, CARD: readme, CONFIG: _json(dataclasses.replace(bundle.config, files=listed))}


def load_weights(model: keras.Model, folder: str | os.PathLike[str]) -> None:
    """Copy the weights of a verified bundle. The rest of its Keras file, which could hold code, is not read.

    Args:
        model: A network of `build_model` of the same backbone and image size. Where it has other labels, its last layer
            keeps its own weights.
        folder: The bundle, on this machine. One without `model.keras`, as those that come with cxrlib, gives the
            weights of its `model.tflite`.

    Raises:
        BundleError: If the bundle cannot be trusted, or is of another architecture.
    """
    import tempfile
    import zipfile

    found = load(folder)
    units = 1 if len(found.config.labels) == 2 else len(found.config.labels)
    other_labels = model.get_layer("probability").units != units
    if KERAS not in found.config.files:
        _copy_weights(found, model, other_labels)
        return
    path = Path(folder) / KERAS
    try:
        with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            weights = archive.getinfo("model.weights.h5")  # arrays
            if weights.file_size > _MAX_WEIGHTS_BYTES:
                raise ValueError(f"its weights are larger than {_MAX_WEIGHTS_BYTES // 2**20} MiB")
            warnings.simplefilter("ignore")  # about the last layer, where it is skipped
            model.load_weights(archive.extract(weights, place), skip_mismatch=other_labels)
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BundleError(f"{path} is damaged or of another architecture: {reason}") from error


def _copy_weights(found: Bundle, model: keras.Model, other_labels: bool) -> None:
    """Copy the weights of a LiteRT file by way of a network of its own recipe, whose answer to the probe must agree."""
    from cxrlib.network.model import assign, build_model
    from cxrlib.runtime.flatbuffer import layers_of

    config, advice = found.config, "train it again, or start from another"
    source = build_model(config.labels, recipe=config.recipe, weights=None)
    complete = assign(source, layers_of(found.runtime.model))
    positive = np.asarray(source.predict_on_batch(probe_image(config.image_size)[None]))[0, -1]
    if not complete or abs(positive - config.probe[-1]) > _TOLERANCE:
        raise BundleError(f"{found.folder} holds no {KERAS}, and its {RUNTIME} no weights that can be copied: {advice}")
    ours, theirs = model.get_weights(), source.get_weights()
    if [w.shape for w in ours[:-2]] != [w.shape for w in theirs[:-2]]:
        raise BundleError(f"{found.folder} is of another architecture: {advice}")
    model.set_weights([*theirs[:-2], *(ours if other_labels else theirs)[-2:]])


def _read(root: Path, name: str) -> bytes:
    try:
        return bytes_of(root / name)
    except ImageError as error:
        raise BundleError(f"{root} is not complete: {name} cannot be read ({error})") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_free(target: Path) -> None:
    """Check that a folder can be written.

    Args:
        target: It must not exist yet, or be empty.

    Raises:
        FileExistsError: If something is at this place.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists: choose another folder, nothing was written")


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A folder that becomes the target at the end. One process at a time; what a killed one left is removed first."""
    import filelock

    place = target.with_name(f".{target.name}.part")
    place.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(f"another process is writing {target}: choose another folder") from None
    try:
        shutil.rmtree(place / "bundle", ignore_errors=True)
        (place / "bundle").mkdir()
        yield place / "bundle"
        check_free(target)
        (place / "bundle").replace(target)
    finally:
        lock.release()
        shutil.rmtree(place, ignore_errors=True)


def _card(config: BundleConfig, report: Report | None, repo_id: str | None = None) -> bytes:
    from cxrlib.reporting import card

    return card.render(config, report, repo_id=repo_id).encode()


def _json(config: BundleConfig) -> bytes:
    return (json.dumps(to_dict(config), indent=1, ensure_ascii=False) + "\n").encode()


def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in ("cxrlib", "keras", "tensorflow", "ai-edge-litert", "numpy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
