"""Data sets of the Hugging Face Hub, brought here as the folders and manifests that `cxrlib.data.scan` reads."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from cxrlib.data.cache import cache_folder
from cxrlib.images import sources

PREFIX = "hf://datasets/"
MANIFEST = "manifest.csv"
_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<inside>.+?))?/?")
_RESERVED = ("path", "label", "split")  # columns of a manifest that other columns of a data set may not take
_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"II*\0": ".tif", b"MM\0*": ".tif", b"RIFF": ".webp"}
_SAME = {".jpeg": ".jpg", ".tiff": ".tif", ".dicom": ".dcm"}


def fetch(address: str, *, token: str | bool | None = None) -> tuple[Path, str]:
    """Download a data set from the Hub; parquet files are written out as images with a manifest, once per commit.

    Args:
        address: `hf://datasets/user/name`, with `@revision` behind the name for another state than `main`, and with the
            path of a folder or a manifest inside.
        token: Token for a private or gated data set; None takes the one that `hf auth login` or `HF_TOKEN` gave.

    Returns:
        A folder or a manifest, and the data set's name.

    Raises:
        ValueError: If the address has another form, or the data set holds nothing that is understood.
        FileNotFoundError: If there is no such data set, or nothing at that path in it.
        PermissionError: If the data set is gated, or the token is not accepted.
        ConnectionError: If the Hub cannot be reached, and there is no copy here.
        ImportError: If it takes pyarrow, and that is not installed.

    Example:
        >>> fetch("hf://datasets/user/name")  # doctest: +SKIP
        (PosixPath('…/snapshots/4f0c…'), 'name')
    """
    from cxrlib import hub
    from cxrlib.hub_errors import plain_errors

    match = _ADDRESS.fullmatch(address)
    if match is None:
        forms = f"{PREFIX}user/name, {PREFIX}user/name@revision or these with a path"
        raise ValueError(f"a data set on the Hub has the form {forms}. Received: {address!r}")
    repo, revision, inside = match["repo"], match["revision"], match["inside"] or ""
    hub.check_names(repo, revision)
    kinds = [f"*{kind}" for suffix in (*sources.EXTENSIONS, ".csv", ".parquet") for kind in (suffix, suffix.upper())]
    with plain_errors(repo, "read"):
        download = hub.connect(token).snapshot_download
        snapshot = Path(download(repo, repo_type="dataset", revision=revision, allow_patterns=kinds))
    name, root = repo.partition("/")[2], snapshot / inside
    if ".." in Path(inside).parts or not root.exists():
        raise FileNotFoundError(f"{PREFIX}{repo} has no image, CSV or parquet file below {inside!r}")
    tables = sorted(path for path in root.rglob("*.parquet") if "/." not in f"/{path.relative_to(root).as_posix()}")
    if tables:
        parts = [*repo.split("/"), *PurePosixPath(inside).parts]
        target = cache_folder() / "datasets" / "--".join(parts) / snapshot.name
        if not (target / MANIFEST).is_file():
            _write_out(tables, root, target, name, address)
        return target / MANIFEST, name
    manifests = (root / file for file in (MANIFEST, "metadata.csv"))
    return next((manifest for manifest in manifests if manifest.is_file()), root), name


def _write_out(tables: list[Path], root: Path, target: Path, name: str, address: str) -> None:
    """Write the images of parquet files into a folder, whole or not at all."""
    places = {_split_of(table, root)[1] for table in tables}
    if len(places) > 1:
        choices = ", ".join(f"{address.rstrip('/')}/{place}" for place in sorted(places))
        raise ValueError(f"{address} holds several data sets; choose one: {choices}")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent))
    try:
        rows = [row for table in tables for row in _rows(table, _split_of(table, root)[0], part, address)]
        columns = list(dict.fromkeys(["path", "label", "split", "source", *(key for row in rows for key in row)]))
        with (part / MANIFEST).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows({"source": name, **row} for row in rows)
        shutil.rmtree(target, ignore_errors=True)  # one that was damaged by hand
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _split_of(table: Path, root: Path) -> tuple[str, str]:
    """The split that a path tells, as data/train-00000-of-00002.parquet or a/train/0000.parquet do, and its folder."""
    place = table.parent
    word = re.match(r"[A-Za-z]+", table.stem)
    if word is None and place != root:
        return place.name, place.parent.relative_to(root).as_posix()
    return word.group() if word else "", place.relative_to(root).as_posix()


def _rows(table: Path, split: str, folder: Path, address: str) -> Iterator[dict[str, Any]]:
    """Write one file's images below a folder, and give a manifest row for each."""
    try:
        from pyarrow import parquet, types  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise ImportError('reading parquet files needs pyarrow: pip install "cxrlib[parquet]"') from None
    simple = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    with parquet.ParquetFile(table) as file:
        schema = file.schema_arrow
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        images = [f.name for f in schema if types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
        classes = [key for key, of in features.items() if isinstance(of, dict) and of.get("_type") == "ClassLabel"]
        labels = [key for key in ("label", "labels", *classes[: len(classes) == 1]) if key in schema.names]
        if not images or not labels:
            received = ", ".join(schema.names)
            raise ValueError(f"{address} needs a column of images and one called label. Received: {received}")
        image, label = images[0], labels[0]
        names = dict(enumerate(features.get(label, {}).get("names") or ()))
        others = (f for f in schema if f.name not in (image, label) and f.name.casefold() not in _RESERVED)
        extra = [f.name for f in others if any(is_a(f.type) for is_a in simple)]
        batches = file.iter_batches(batch_size=32, columns=[image, label, *extra])
        rows = (row for batch in batches for row in batch.to_pylist())
        shown = tqdm(rows, f"unpacking {table.name}", file.metadata.num_rows, unit="image", disable=None, leave=False)
        for number, row in enumerate(shown):
            try:
                content = sources.bytes_of((row[image] or {}).get("bytes") or b"")
            except sources.ImageError as error:
                which = f"{address}, row {number} of {table.name}"
                raise ValueError(f"{which}: its image cannot be used, {error}") from None
            named = str(names.get(row[label], "" if row[label] is None else row[label]))
            path = _file_name(row[image].get("path"), content, number)
            where = PurePosixPath(_plain(split) or "images", _plain(named) or "unlabelled", path)
            if (folder / where).exists():
                where = where.with_stem(f"{where.stem}-row{number}")
            (folder / where).parent.mkdir(parents=True, exist_ok=True)
            (folder / where).write_bytes(content)
            yield {"path": str(where), "label": named, "split": split, **{key: row[key] for key in extra}}


def _file_name(given: str | None, content: bytes, number: int) -> PurePosixPath:
    """An image's own name, which may tell its patient, as far as it is harmless; with the suffix of its content."""
    suffix = next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), ".bmp")
    suffix = ".dcm" if content[128:132] == b"DICM" else suffix
    parts = [plain for part in PurePosixPath((given or "").replace("\\", "/")).parts if (plain := _plain(part))]
    path = PurePosixPath(*parts) if parts else PurePosixPath(f"{number:06d}")
    return path if _SAME.get(path.suffix.lower(), path.suffix.lower()) == suffix else path.with_name(path.name + suffix)


def _plain(part: str) -> str:
    return re.sub(r"[^\w.-]+", "_", part, flags=re.ASCII).lstrip(".")[:100]
