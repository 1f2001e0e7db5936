"""Images by the million: workers on one machine or many, through Ray Data; Parquet out, and a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cxrlib import bundle
from cxrlib.images.decode import DECODER
from cxrlib.images.sources import EXTENSIONS, MAX_BYTES, local
from cxrlib.images.sources import find as find_in_folder
from cxrlib.predictor import Predictor

_FILE = 512  # images in a Parquet file: at most so many are done again by each worker of a run that was stopped
_MODEL = "_model.json"  # what the answers in a folder depend on; readers of tables pass over names with an underscore
_WAITS = (1.0, 2.0, 4.0)  # seconds between attempts to fetch an image


@dataclass(frozen=True)
class Summary:
    """What a run did and found.

    Args:
        images: How many images were asked for; each has one row.
        refused: How many of them the gate refused.
        unreadable: How many of them could not be read.
        before: How many of them an earlier run had done.

    Example:
        >>> Summary(images=10, refused=2, unreadable=1, before=0).answered
        7
    """

    images: int
    refused: int
    unreadable: int
    before: int

    @property
    def answered(self) -> int:
        """How many of them got a label."""
        return self.images - self.refused - self.unreadable


def predict(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    predictor: Predictor | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Predict images with a pool of workers, each with a `Predictor` of one thread, into Parquet files of a row each.

    The columns are those of `Prediction.to_dict(flat=True)`. Images that have a row in `output` are not done again: a
    run that was stopped at any moment goes on when it is started again, be it with more images or other workers. One
    run at a time writes to an output.

    Joins the Ray cluster that `RAY_ADDRESS` names or that runs on this machine, else starts one here for as long as it
    takes. The bundle travels to the workers. They need cxrlib, and the same access to images and output: where there
    are several machines, a local path must be that of a shared folder.

    Args:
        sources: Images, folders, and CSV manifests with a column `path`, as paths or as addresses that fsspec knows
            (`s3://…`, `gs://…`) and has a driver for.
        output: A folder for the Parquet files, as a path or such an address.
        predictor: Whose bundle, threshold and gate the workers use; `None` for the bundled model.
        workers: How many; `None` for one per core of the cluster.
        progress: Whether to show Ray's progress bars.

    Returns:
        Counts over the images that were asked for.

    Raises:
        ValueError: If there are no images, `workers` is below 1, or an address would write a secret into the table.
        FileExistsError: If `output` holds answers of another model, threshold or gate.
        OSError: If sources cannot be reached, images cannot be fetched though they are not missing, or `output` cannot
            be written. What is done stays.
        RuntimeError: If Ray does not start.
        ImportError: If Ray or fsspec's driver for an address is not installed.

    Example:
        >>> predict("s3://archive/chest", "s3://archive/answers", workers=64)  # doctest: +SKIP
        Summary(images=1000000, refused=20312, unreadable=17, before=0)
    """
    ray = _ray()
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1. Received: workers={workers!r}")
    predictor = predictor or Predictor(threads=1)
    images = find(sources)
    system, folder = _reach(_address(os.fspath(output)))
    rows = _rows(system, folder, _identity(predictor))
    left = [image for image in images if _text(image) not in rows]
    if left:
        files = {name: (predictor.folder / name).read_bytes() for name in (bundle.CONFIG, *predictor.config.files)}
        options = {"threshold": predictor.threshold, "gate": predictor.gated}
        with _cluster(ray, progress):
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
            blocks = max(-(-len(left) // _FILE), min(4 * (workers or cores), len(left)))  # each a file
            pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers or cores, blocks))
            given = ray.data.from_items([{"image": image} for image in left], override_num_blocks=blocks)
            answers = given.map_batches(
                _Worker, fn_constructor_args=(files, options), batch_size=None, compute=pool, num_cpus=1
            )
            try:
                answers.write_parquet(folder, filesystem=system, mode="append")
            except Exception as error:  # Ray wraps what a worker raises
                cause = getattr(error, "cause", None) or error.__cause__ or error
                raise OSError(str(cause).strip().splitlines()[-1]) from error
        rows = _rows(system, folder, _identity(predictor))
    counts = Counter(rows[_text(image)] for image in images)
    return Summary(len(images), counts["refused"], counts["unreadable"], len(images) - len(left))


def find(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """List images, each once.

    Args:
        sources: As for `predict`. In a local folder, images are what `cxrlib.images.sources.find` finds; at other
            addresses, files with one of its `EXTENSIONS`.

    Returns:
        Their addresses, in the order of the sources and sorted within a folder; local paths are absolute.

    Raises:
        ValueError: If there are none, a manifest has no column `path`, or an address would write a secret into the
            table.
        OSError: If a manifest does not exist, or an address cannot be reached.
        ImportError: If fsspec's driver for an address is not installed.

    Example:
        >>> find(["https://example.org/image.png", "https://example.org/image.png"])
        ['https://example.org/image.png']
    """
    places = [os.fspath(place) for place in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    images = dict.fromkeys(image for place in places for image in _below(_address(place)))
    if not images:
        raise ValueError(f"there are no images in {', '.join(map(repr, places)) or 'an empty list'}")
    return list(images)


def _below(address: str) -> Iterator[str]:
    """The images that a place stands for."""
    if address.lower().endswith(".csv"):
        yield from map(_address, _manifest(address))
    elif "://" not in address:
        yield from map(str, find_in_folder(address)) if os.path.isdir(address) else [address]
    elif address.lower().startswith(("http://", "https://")):
        yield address
    else:
        system, path = _reach(address)
        try:
            names = sorted(system.find(path)) if system.isdir(path) else [path]
        except Exception as error:  # every driver has errors of its own
            raise OSError(f"{address} cannot be reached: {error}") from error
        for name in names:
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in name[len(path) :].split("/"))
            if name == path or (os.path.splitext(name)[1].lower() in EXTENSIONS and not hidden):
                yield str(system.unstrip_protocol(name))


def _manifest(address: str) -> Iterator[str]:
    """The images of a CSV file; paths are relative to it."""
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]

    system, path = _reach(address)
    try:
        with system.open(path, "rb") as file:
            table = pd.read_csv(file, sep=None, engine="python", dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{address} is not a CSV manifest in UTF-8 ({error})") from None
    columns = {str(name).strip().casefold(): name for name in table.columns}
    if "path" not in columns:
        raise ValueError(f"{address} must have a column path. Received: {', '.join(map(str, table.columns))[:200]}")
    folder = address[: max(address.rfind("/"), address.rfind(os.sep)) + 1]
    for image in filter(None, table[columns["path"]].str.strip()):
        yield image if "://" in image or os.path.isabs(image) else folder + image


def _address(place: str) -> str:
    """A place as it is written into the table: an absolute path, or an address with a scheme and without a secret."""
    if "://" not in place or place.lower().startswith("file://"):
        return os.path.abspath(local(place) if "://" in place else place)
    parts = [urlsplit(part) for part in place.split("::")]  # fsspec chains addresses so
    if any(part.password is not None or (part.query and part.scheme in ("http", "https")) for part in parts):
        raise ValueError(
            "an address must not hold a password or a query, for it is written into the table. "
            f"Received: one at {parts[0].scheme}://"
        )
    return place


def _reach(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there."""
    import fsspec  # type: ignore[import-untyped,unused-ignore]

    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise ImportError(f"{address.partition('://')[0]}:// addresses need a driver of fsspec: {error}") from None
    except Exception as error:  # every driver has errors of its own
        raise OSError(f"{address} cannot be reached: {error}") from error
    return system, path


def _text(image: str) -> str:
    """An address as a table can hold it: the name of a file need not be Unicode."""
    return image.encode("utf-8", "backslashreplace").decode()


def _identity(predictor: Predictor) -> str:
    """What answers depend on besides the image."""
    config = predictor.config
    told = [config.files[bundle.RUNTIME], config.temperature, config.gate, predictor.threshold, predictor.gated]
    return hashlib.sha256(json.dumps([*told, DECODER]).encode()).hexdigest()


def _rows(system: Any, folder: str, identity: str) -> dict[str, str]:
    """The images that have a row, and their status. What a killed writer left of a file is removed."""
    from pyarrow import ArrowInvalid, parquet  # type: ignore[import-untyped,import-not-found,unused-ignore]

    system.makedirs(folder, exist_ok=True)
    system.invalidate_cache()
    files = [name for name in system.find(folder, maxdepth=1) if name.endswith(".parquet")]
    model = f"{folder}/{_MODEL}"
    if system.exists(model):
        if json.loads(system.cat_file(model)).get("identity") != identity:
            raise FileExistsError(f"{folder} holds answers of another model, threshold or gate: choose another folder")
    elif files:
        raise FileExistsError(f"{folder} holds other tables: choose another folder")
    else:
        system.pipe_file(model, json.dumps({"identity": identity}).encode())
    rows: dict[str, str] = {}
    for name in sorted(files):
        try:
            with system.open(name, "rb") as file:
                table = parquet.read_table(file, columns=["source", "status"])
        except ArrowInvalid:
            system.rm_file(name)
            continue
        rows.update(zip(table["source"].to_pylist(), table["status"].to_pylist(), strict=True))
    return rows


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ImportError('bulk prediction needs Ray: pip install "cxrlib[ray]"') from None
    return ray


@contextmanager
def _cluster(ray: Any, progress: bool) -> Iterator[None]:
    """The cluster that there is, or one of this machine for a while."""
    own, context = not ray.is_initialized(), ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise RuntimeError(f"Ray does not start: {error}") from error
    context.enable_progress_bars = progress
    try:
        yield
    finally:
        context.enable_progress_bars = before
        if own:
            ray.shutdown()


class _Worker:
    """One predictor of one thread, in a process of its own."""

    def __init__(self, files: Mapping[str, bytes], options: Mapping[str, Any]) -> None:
        with tempfile.TemporaryDirectory(prefix="cxrlib-") as place:
            for name, content in files.items():
                Path(place, name).parent.mkdir(exist_ok=True)
                Path(place, name).write_bytes(content)
            self._predictor = Predictor(place, threads=1, **options)

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """Predict a batch of images: a table of Arrow."""
        import pyarrow as pa

        images = [str(image) for image in batch["image"]]
        answers = self._predictor.stream(map(_source, images), prefetch=4, errors="return")
        named = zip(images, answers, strict=True)
        rows = [{**answer.to_dict(flat=True), "source": _text(image)} for image, answer in named]
        numbers = ("probability", "threshold")
        schema = pa.schema([(name, pa.float64() if name.startswith(numbers) else pa.string()) for name in rows[0]])
        return pa.Table.from_pylist(rows, schema)


def _source(image: str) -> Any:
    """A local path or a web address as it is; the bytes of what lies elsewhere, fetched here."""
    if "://" not in image or image.lower().startswith(("http://", "https://")):
        return image
    system, path = _reach(image)
    for wait in (*_WAITS, None):
        try:
            return system.cat_file(path, end=MAX_BYTES + 1)
        except (FileNotFoundError, IsADirectoryError, KeyError):  # KeyError: in an archive
            return image  # which the predictor says it cannot find
        except Exception as error:  # every driver has errors of its own
            if wait is None or isinstance(error, PermissionError):
                raise OSError(f"{image} cannot be fetched: {error}") from error
            time.sleep(wait)
    raise RuntimeError(image)
