"""One artifact: a folder that holds a network, how it was made, what it achieved, and the proof that it is intact."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlib.config import BundleConfig, BundleError, from_dict, to_dict
from cxrlib.metrics.compute import Report
from cxrlib.reporting import card
from cxrlib.runtime.litert import Runtime

if TYPE_CHECKING:
    import keras

CONFIG, RUNTIME, KERAS, H5, REPORT, CARD = (
    "config.json",
    "model.tflite",
    "model.keras",
    "model.h5",
    "report.json",
    "README.md",
)
DEFAULT = Path(__file__).parent / "default"  # the bundled model
_PROBE_TOLERANCE = 1e-3  # processors round differently, to about 1e-6; an altered network is off by far more
_MAX_CONFIG_BYTES = 8 * 2**20
_MAX_FILE_BYTES = 2**29
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
    """

    folder: Path
    config: BundleConfig
    runtime: Runtime

    @property
    def report(self) -> Report | None:
        """How it was measured, or `None` when the bundle holds no report."""
        if REPORT not in self.config.files:
            return None
        try:
            return Report.from_json(_read(self.folder, REPORT).decode())
        except ValueError as error:
            raise BundleError(f"{self.folder / REPORT} cannot be read: {error}") from error


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


def save(
    folder: str | os.PathLike[str], model: keras.Model, config: BundleConfig, *, formats: Sequence[str] = ("keras",)
) -> Path:
    """Write a bundle: all of it or, if anything goes wrong, nothing.

    Args:
        folder: The bundle's folder; an older bundle there is replaced once the new one is complete.
        model: A network of `build_model`.
        config: Everything but the probe, the hashes and the versions, which are filled in here.
        formats: Which Keras files to write beside `model.tflite`: `"keras"`, `"h5"` or both.

    Returns:
        The folder.

    Raises:
        ValueError: If a format is not known.
        OSError: If the folder cannot be written, or holds something that is no bundle.
    """
    from cxrlib.network.model import export_litert

    check_formats(formats)
    target = Path(folder)
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _draft(target) as new:
        export_litert(model, new / RUNTIME)
        if "keras" in formats:
            model.save(new / KERAS)
        if "h5" in formats:
            _save_h5(model, new / H5)
        config = dataclasses.replace(
            config, probe=_probe(Runtime(new / RUNTIME), config.image_size), versions=_versions()
        )
        _seal(new, config, None)
    return target


def check_formats(formats: Sequence[str]) -> None:
    """Check which Keras files are asked for.

    Args:
        formats: As for `save`.

    Raises:
        ValueError: If one is not known, or they are no sequence of names.

    Example:
        >>> check_formats(("keras", "h5"))
    """
    if isinstance(formats, str) or set(formats) - {"keras", "h5"}:
        raise ValueError(f"formats must be ('keras',), ('h5',) or both. Received: formats={formats!r}")


def update(
    folder: str | os.PathLike[str],
    *,
    report: Report | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    **changes: Any,
) -> Path:
    """Change what a bundle says, not its network: the config, the report, and the card, which is rendered anew. Other files in the folder stay.

    Args:
        folder: A bundle.
        report: How it was measured, `None` keeps what it has. The rows, which name files and patients, stay out of the bundle.
        history: The training history, drawn among the report's figures; `None` keeps the figure it has.
        **changes: Fields of `BundleConfig`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        BundleError: If the bundle cannot be trusted.
    """
    target = Path(folder)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no bundle at {target}")
    with _draft(target) as new:
        old = load(target)
        config = dataclasses.replace(old.config, **changes)
        for name in config.files:
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(target / name, new / name)
        if report is not None:
            for figure in new.glob("figures/*"):
                if history is not None or figure.stem != "history":
                    figure.unlink()
            _save_report(report, new, config, history)
        _seal(new, config, report or old.report)
        _keep_unlisted(target, old.config, new)
    return target


def read_config(data: bytes, where: str = CONFIG) -> BundleConfig:
    """Read and check the bytes of a `config.json`.

    Args:
        data: JSON text in UTF-8.
        where: How messages name it.

    Returns:
        The config.

    Raises:
        BundleError: If it is no config of a bundle that this version reads.

    Example:
        >>> read_config(b"[]")
        Traceback (most recent call last):
        cxrlib.config.BundleError: config.json is no config of a cxrlib bundle: config must be an object with named fields. Received: list
    """
    try:
        if len(data) > _MAX_CONFIG_BYTES:
            raise ValueError(f"it has {len(data):,} bytes, more than {_MAX_CONFIG_BYTES:,}")
        content = json.loads(data)
        schema = content.get("schema") if isinstance(content, dict) else None
        if isinstance(schema, int) and schema != BundleConfig.schema:
            raise BundleError(
                f"{where} has schema {schema}, this cxrlib reads schema {BundleConfig.schema}: install a cxrlib that reads it"
            )
        return from_dict(BundleConfig, content)
    except BundleError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{where} is no config of a cxrlib bundle: {error}") from error


def list_files(data: bytes) -> dict[str, str]:
    """Say which files a bundle's `config.json` lists.

    Args:
        data: The bytes of `config.json`.

    Returns:
        SHA-256, hexadecimal, by file name.

    Raises:
        BundleError: If the config cannot be trusted, or lists no network.
    """
    return _check_files(read_config(data))


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
        hint = (
            f" (one of the Hub would be hf://{root.as_posix()})"
            if len(root.parts) == 2 and not root.is_absolute()
            else ""
        )
        raise FileNotFoundError(f"there is no bundle at {root}{hint}")
    config, network = _read_whole(root)
    runtime = Runtime(network, threads=threads)
    if runtime.input_size != config.image_size or runtime.labels_count != len(config.labels):
        raise BundleError(f"{root / RUNTIME} does not fit {CONFIG}: another image size or number of labels")
    try:
        found = _probe(runtime, config.image_size)
    except RuntimeError as error:
        raise BundleError(f"{root / RUNTIME} cannot be run: {error}") from error
    if not np.allclose(found, config.probe, rtol=0, atol=_PROBE_TOLERANCE):
        raise BundleError(
            f"{root} fails its golden probe: the probe image gives {_round(found)}, and must give {_round(config.probe)}"
        )
    return Bundle(root, config, runtime)


def for_hub(bundle: Bundle, repo_id: str) -> dict[str, bytes]:
    """Render the card of a bundle anew so that it names the repository that the bundle is published in, and the config that lists this card.

    Args:
        bundle: The bundle; its folder stays as it is.
        repo_id: `user/repo`.

    Returns:
        The content of `README.md` and `config.json`, by name.

    Raises:
        BundleError: If the bundle's report cannot be read.
    """
    readme = _card(bundle.config, bundle.report, repo_id)
    files = {**bundle.config.files, CARD: hashlib.sha256(readme).hexdigest()}
    return {CARD: readme, CONFIG: _json(dataclasses.replace(bundle.config, files=files))}


def load_weights(model: keras.Model, folder: str | os.PathLike[str]) -> None:
    """Take over the weights of a verified bundle, and nothing else of its Keras file.

    Args:
        model: A network of `build_model` of the same backbone and image size; its last layer may have other labels, and then keeps its weights.
        folder: The bundle.

    Raises:
        BundleError: If the bundle cannot be trusted, has no `model.keras`, or is of another architecture.
    """
    import zipfile

    loaded = load(folder)
    if KERAS not in loaded.config.files:
        raise BundleError(f"{folder} holds no {KERAS} to fine-tune from")
    units = model.get_layer("probability").units
    labels = len(loaded.config.labels)
    try:
        with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(loaded.folder / KERAS) as archive:
            weights = Path(place) / "model.weights.h5"  # arrays; the architecture, which could hold code, is never read
            if archive.getinfo(weights.name).file_size > _MAX_FILE_BYTES:
                raise ValueError(f"its weights are larger than {_MAX_FILE_BYTES // 2**20} MiB")
            weights.write_bytes(archive.read(weights.name))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is skipped on purpose; all else is an error
                model.load_weights(weights, skip_mismatch=(1 if labels == 2 else labels) != units)
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise BundleError(
            f"{loaded.folder / KERAS} is damaged or of another architecture: {_first_line(error)}"
        ) from error


def _check_files(config: BundleConfig) -> dict[str, str]:
    if RUNTIME not in config.files:
        raise BundleError(f"{CONFIG} lists no {RUNTIME}")
    if foreign := [name for name in config.files if not _LISTED.fullmatch(name)]:
        raise BundleError(f"{CONFIG} lists {', '.join(foreign)}, which no bundle holds")
    return config.files


def _read_whole(root: Path) -> tuple[BundleConfig, bytes]:
    """Config and network of a folder whose files are all as listed; read again where an update has taken its place meanwhile."""
    while True:
        place = root.stat().st_ino
        try:
            if not (root / CONFIG).is_file():
                raise BundleError(f"{root} is no cxrlib bundle: it has no {CONFIG}")
            config = read_config(_read(root, CONFIG, _MAX_CONFIG_BYTES), f"{root / CONFIG}")
            network = b""
            for name, digest in _check_files(config).items():
                content = _read(root, name)
                if hashlib.sha256(content).hexdigest() != digest:
                    raise BundleError(
                        f"{root / name} was altered or damaged: its SHA-256 is not the one that {CONFIG} lists"
                    )
                if name == RUNTIME:
                    network = content
            return config, network
        except BundleError:
            if root.stat().st_ino == place:
                raise


def _read(root: Path, name: str, limit: int = _MAX_FILE_BYTES) -> bytes:
    """Read a file of bounded size; links are followed, pipes and devices are not read."""
    try:
        if not (root / name).is_file():
            raise BundleError(f"{root} is not complete: {name} is missing or no file")
        with open(root / name, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"{root} is not complete: {name} cannot be read ({error.strerror})") from error
    if len(content) > limit:
        raise BundleError(f"{root / name} is larger than {limit // 2**20} MiB")
    return content


def _probe(runtime: Runtime, size: int) -> tuple[float, ...]:
    return tuple(float(p) for p in runtime.run(probe_image(size)[None]).probabilities[0])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _round(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" if math.isfinite(value) else str(value) for value in values)


def _save_h5(model: keras.Model, path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HDF5.*legacy.*")  # asked for by name
        model.save(path)


def _save_report(
    report: Report, folder: Path, config: BundleConfig, history: Mapping[str, Sequence[float]] | None
) -> None:
    from cxrlib.reporting import plots

    points = {name: point.threshold for name, point in config.operating_points.items()}
    plots.save(
        report, folder / "figures", points=points or None, history=history
    )  # no samples: films of patients stay where they are
    (folder / REPORT).write_text(report.to_json(predictions=False), "utf-8")


def _seal(folder: Path, config: BundleConfig, report: Report | None) -> None:
    """Render the card, hash every file, and write the config last."""
    (folder / CARD).write_bytes(_card(config, report))
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != CONFIG
    )
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / CONFIG).write_bytes(_json(dataclasses.replace(config, files=files)))


def _card(config: BundleConfig, report: Report | None, repo_id: str | None = None) -> bytes:
    return card.render(config, report, repo_id=repo_id, license=config.license, population=config.population).encode()


def _json(config: BundleConfig) -> bytes:
    return (json.dumps(to_dict(config), indent=1, ensure_ascii=False) + "\n").encode()


def _keep_unlisted(target: Path, config: BundleConfig, new: Path) -> None:
    """Take along what lies in a bundle's folder and is none of its files, such as the record of its training."""
    for path in target.rglob("*"):
        name = path.relative_to(target)
        if path.is_file() and name.as_posix() not in config.files and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / name)


def _check_replaceable(target: Path) -> None:
    if target.exists() and not ((target / CONFIG).is_file() or (target.is_dir() and not any(target.iterdir()))):
        raise FileExistsError(f"{target} exists and is no cxrlib bundle: choose another folder, nothing was written")


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A folder to build a bundle in, which takes its place when it is complete. One process at a time; first it clears up after those that were killed."""
    with _locked(target.parent) as alone:
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.part") if alone else ():
            if not target.exists() and (left / "old").exists():
                (left / "old").rename(target)
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as place:
            new = Path(place) / "bundle"
            new.mkdir()
            yield new
            _replace(target, new)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Wait until no other process writes bundles in a folder; `False` where the system has no such locks."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError):
            yield False
        else:
            yield True


def _replace(target: Path, new: Path) -> None:
    """Put a complete bundle in the place of an older one. A process killed between two renames would leave none, so they are one step where there is one."""
    if target.exists() and not _exchange(target, new):
        target.rename(new.with_name("old"))
    if new.with_name("old").exists() or not target.exists():
        new.rename(target)


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change names in one step of the file system, where it has one: Linux and macOS."""
    if os.name != "posix":
        return False
    import ctypes

    libc = ctypes.CDLL(None)
    names = os.fsencode(a), os.fsencode(b)
    if hasattr(libc, "renameat2"):
        return bool(libc.renameat2(-100, names[0], -100, names[1], 2) == 0)  # AT_FDCWD, RENAME_EXCHANGE
    return hasattr(libc, "renamex_np") and bool(libc.renamex_np(*names, 2) == 0)  # RENAME_SWAP


def _versions() -> dict[str, str]:
    import platform

    versions = {"python": platform.python_version()}
    for name in ("cxrlib", "keras", "tensorflow", "ai-edge-litert", "numpy", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
