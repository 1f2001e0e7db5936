"""Data sets of the Hugging Face Hub, brought here as the folders and manifests that `data.scan` reads."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cxrlib import hub
from cxrlib.images import sources
from cxrlib.progress import track

PREFIX = "hf://datasets/"
MANIFEST = "manifest.csv"
_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<inside>.+?))?/?")
_RESERVED = ("path", "label", "split")  # columns of a manifest that other columns of a data set may not take
_MAGIC = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
}


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Say where everything lies that cxrlib keeps and could make again.

    Args:
        folder: A folder of the user's choice; `None` for `$CXRLIB_CACHE`, else `cxrlib` in `$XDG_CACHE_HOME` or `~/.cache`.

    Returns:
        The folder, which may not exist yet.

    Raises:
        FileNotFoundError: If it lies in the home folder, and there is none, as in some containers.

    Example:
        >>> cache_folder("/data/cache").name
        'cache'
    """
    chosen = folder or os.environ.get("CXRLIB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "cxrlib")
    place = os.path.expanduser(os.fspath(chosen))
    if place.startswith("~"):
        raise FileNotFoundError(f"there is no home folder for {place}: name a folder for the cache in CXRLIB_CACHE")
    return Path(os.path.abspath(place))


def fetch(
    address: str, *, folder: str | os.PathLike[str] | None = None, token: str | bool | None = None
) -> tuple[Path, str]:
    """Download a data set from the Hub.

    Image folders are used where the Hub's own cache has them. Parquet files with an image column and a label column are written out as films with a
    manifest, once per commit.

    Args:
        address: `hf://datasets/user/name`, with `@revision` behind the name if it is not to be `main`, and with the path of a folder or a manifest inside.
        folder: Where films from parquet files are kept, see `cache_folder`.
        token: Token for a private or gated data set; `None` takes the one that `hf auth login` or `HF_TOKEN` gave.

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
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(
            f"a data set on the Hub has the form {PREFIX}user/name, {PREFIX}user/name@revision or these with a path. Received: {address!r}"
        )
    repo, inside = match["repo"], match["inside"] or ""
    hub.check_names(repo, match["revision"])
    patterns = [
        f"*{suffix}" for suffix in (*sources.EXTENSIONS, *map(str.upper, sources.EXTENSIONS), ".csv", ".parquet")
    ]
    with hub.plain_errors(repo, "read"):
        snapshot = Path(
            hub.connect(token).snapshot_download(
                repo, repo_type="dataset", revision=match["revision"], allow_patterns=patterns
            )
        )
    name = repo.partition("/")[2]
    root = snapshot / inside
    if ".." in Path(inside).parts or not root.exists():
        raise FileNotFoundError(f"{PREFIX}{repo} holds no film, CSV or parquet file below {inside!r}")
    if root.is_file():
        return root, name
    tables = sorted(
        path
        for path in root.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if tables:
        target = (
            cache_folder(folder)
            / "datasets"
            / "--".join([*repo.split("/"), *PurePosixPath(inside).parts])
            / snapshot.name
        )
        if not (target / MANIFEST).is_file():
            _write_out(tables, root, target, name, address)
        return target / MANIFEST, name
    manifest = next((root / file for file in (MANIFEST, "metadata.csv") if (root / file).is_file()), root)
    return manifest, name


def _write_out(tables: list[Path], root: Path, target: Path, name: str, address: str) -> None:
    """Write the films of parquet files into a folder, whole or not at all."""
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
    """The split that a file's name tells, as in data/train-00000-of-00002.parquet or default/train/0000.parquet, and the folder above that."""
    place = table.parent
    word = re.match(r"[A-Za-z]+", table.stem)
    if word is None and place != root:
        return place.name, place.parent.relative_to(root).as_posix()
    return word.group() if word else "", place.relative_to(root).as_posix()


def _rows(table: Path, split: str, folder: Path, address: str) -> Iterator[dict[str, Any]]:
    """Write one file's films below a folder, and give a manifest row for each."""
    try:
        from pyarrow import parquet, types  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise ImportError('reading parquet files needs pyarrow: pip install "cxrlib[parquet]"') from None
    with parquet.ParquetFile(table) as file:
        schema = file.schema_arrow
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        picture = next(
            (f.name for f in schema if types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0), None
        )
        classes = [
            key
            for key, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        ]
        label = next(
            (key for key in ("label", "labels", *(classes if len(classes) == 1 else ())) if key in schema.names), None
        )
        if picture is None or label is None:
            raise ValueError(
                f"{address} needs a column of pictures and one called label. Received: {', '.join(schema.names)}"
            )
        names = features.get(label, {}).get("names")
        simple = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
        extra = [
            f.name
            for f in schema
            if f.name not in (picture, label)
            and f.name.casefold() not in _RESERVED
            and any(is_a(f.type) for is_a in simple)
        ]
        batches = file.iter_batches(batch_size=32, columns=[picture, label, *extra])
        rows = track(
            (row for batch in batches for row in batch.to_pylist()),
            f"unpacking {table.name}",
            total=file.metadata.num_rows,
        )
        for number, row in enumerate(rows):
            content, value = (row[picture] or {}).get("bytes"), row[label]
            if not content:
                raise ValueError(f"{address} has no picture in row {number} of {table.name}")
            named = (
                names[value]
                if names and isinstance(value, int) and 0 <= value < len(names)
                else ""
                if value is None
                else str(value)
            )
            path = _file_name(row[picture].get("path"), content, number)
            where = PurePosixPath(_plain(split) or "films", _plain(named) or "unlabelled", path)
            if (folder / where).exists():
                where = where.with_stem(f"{where.stem}-row{number}")
            (folder / where).parent.mkdir(parents=True, exist_ok=True)
            (folder / where).write_bytes(content)
            yield {"path": str(where), "label": named, "split": split, **{key: row[key] for key in extra}}


def _file_name(given: str | None, content: bytes, number: int) -> PurePosixPath:
    """A film's own name, which may tell its patient, as far as it is harmless; with the suffix of what it really is."""
    suffix = (
        ".dcm"
        if content[128:132] == b"DICM"
        else next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), ".bin")
    )
    parts = [plain for part in PurePosixPath((given or "").replace("\\", "/")).parts if (plain := _plain(part))]
    path = PurePosixPath(*parts) if parts else PurePosixPath(f"{number:06d}")
    same = {".jpeg": ".jpg", ".tiff": ".tif", ".dicom": ".dcm"}
    return path if same.get(path.suffix.lower(), path.suffix.lower()) == suffix else path.with_name(path.name + suffix)


def _plain(part: str) -> str:
    return re.sub(r"[^\w.-]+", "_", part, flags=re.ASCII).lstrip(".")[:100]
