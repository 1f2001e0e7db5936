"""Data sets of the Hub through the real client: image folders, manifests and parquet files become images."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer, client_of, serving
from PIL import Image

from cxrlib.data import hf as remote
from cxrlib.data.scan import scan

REPO = "alice/images"
ADDRESS = f"hf://datasets/{REPO}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))
    with serving() as server, client_of(server, tmp_path / "home"):
        server.add_user("hf_alice", "alice")
        yield server


def picture(level: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((12, 10), level, np.uint8)).save(stream, form)
    return stream.getvalue()


def table(rows: list[dict[str, Any]], *, classes: list[str] | None = None, label: str = "label") -> bytes:
    """A parquet file as the Hub's libraries write it."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    made = pyarrow.Table.from_pylist(rows)
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if classes:
        features[label] = {"names": classes, "_type": "ClassLabel"}
    made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    stream = io.BytesIO()
    parquet.write_table(made, stream)
    return stream.getvalue()


def row(level: int, label: Any, path: str | None = None, form: str = "PNG", **more: Any) -> dict[str, Any]:
    return {"image": {"bytes": picture(level, form), "path": path}, "label": label, **more}


def levels(paths: tuple[str, ...]) -> list[int]:
    return [int(np.asarray(Image.open(path)).flat[0]) for path in paths]


def test_image_folders(hub: HubServer) -> None:
    hub.plant(
        REPO,
        {
            "train/NORMAL/a.png": picture(1),
            "test/PNEUMONIA/b.PNG": picture(2),
            "README.md": b"# images",
            "big.zip": b"no",
        },
        kind="dataset",
    )
    found = scan(ADDRESS)
    assert found.labels == ("NORMAL", "PNEUMONIA")
    assert found.names == ("images/test/PNEUMONIA/b.PNG", "images/train/NORMAL/a.png")
    assert found.sources == ("images", "images")
    assert found.splits == ("test", "train")
    assert not hub.asked(r"README|big\.zip")


def test_a_manifest_in_the_repository(hub: HubServer) -> None:
    metadata = b"file_name,label,age\nimages/a.png,TB,7\nimages/b.png,NORMAL,9\n"
    hub.plant(
        REPO,
        {"metadata.csv": metadata, "other.csv": metadata, "images/a.png": picture(1), "images/b.png": picture(2)},
        kind="dataset",
    )
    for address in (ADDRESS, f"{ADDRESS}/other.csv"):
        found = scan(address)
        assert found.labels == ("NORMAL", "TB")
        assert found.sources == ("images", "images")
        assert found.columns == {"age": ("7", "9")}
        assert levels(found.paths) == [1, 2]


def test_a_revision_and_a_path(hub: HubServer, tmp_path: Path) -> None:
    old = hub.plant(REPO, {"child/NORMAL/a.png": picture(1), "child/TB/b.png": picture(2)}, kind="dataset")
    hub.plant(REPO, {"child/TB/c.png": picture(3)}, kind="dataset")
    assert len(scan(f"{ADDRESS}/child")) == 3
    assert len(scan(f"{ADDRESS}@{old}/child/")) == 2
    for inside in ("nowhere", "child/../.."):
        with pytest.raises(
            FileNotFoundError, match=r"hf://datasets/alice/images has no image, CSV or parquet file below '.*'"
        ):
            scan(f"{ADDRESS}/{inside}")


def test_parquet(hub: HubServer) -> None:
    classes = ["PNEUMONIA", "NORMAL"]
    train = [
        row(1, 1, "IM-0001-0001.jpeg", "JPEG", age=4, site="a"),
        row(2, 0, "../../etc/person1_virus_6.jpeg", "JPEG", age=None, site="b"),
        row(3, 0, None, "BMP"),
    ]
    hub.plant(
        REPO,
        {
            "data/train-00000-of-00001.parquet": table(train, classes=classes),
            "data/test-0.parquet": table([row(9, 1)], classes=classes),
        },
        kind="dataset",
    )
    found = scan(ADDRESS)
    assert found.labels == ("NORMAL", "PNEUMONIA")
    assert found.splits == ("test", "train", "train", "train")
    assert [found.labels[t] for t in found.targets] == ["NORMAL", "NORMAL", "PNEUMONIA", "PNEUMONIA"]
    assert found.patients == (None, "IM-0001", "person1_virus", None)
    assert levels(found.paths) == [9, 1, 2, 3]
    assert [Path(path).name for path in found.paths] == [
        "000000.png",
        "IM-0001-0001.jpeg",
        "person1_virus_6.jpeg",
        "000002.bmp",
    ]
    assert found.columns == {"age": ("", "4", "", ""), "site": ("", "a", "b", "")}
    assert found.sources == ("images",) * 4
    place = remote.cache_folder() / "datasets" / "alice--images"
    assert all(Path(path).is_relative_to(place) for path in found.paths)
    assert place.stat().st_mode & 0o077 == 0
    assert not list(place.glob("*.part"))


def test_parquet_is_unpacked_once_and_anew_after_a_commit(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.plant(REPO, {"train.parquet": table([row(1, "NORMAL"), row(2, "TB")])}, kind="dataset")
    first = scan(ADDRESS)
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_rows", lambda *_: pytest.fail("unpacked again"))
        assert scan(ADDRESS).paths == first.paths
    hub.plant(REPO, {"train.parquet": table([row(5, "NORMAL"), row(6, "TB")])}, kind="dataset")
    assert levels(scan(ADDRESS).paths) == [5, 6]
    assert levels(first.paths) == [1, 2]


def test_parquet_that_fails_leaves_nothing(hub: HubServer) -> None:
    hub.plant(
        REPO,
        {"train.parquet": table([row(1, "A"), {"image": {"bytes": None, "path": "x"}, "label": "B"}])},
        kind="dataset",
    )
    with pytest.raises(ValueError, match=r"row 1 of train\.parquet: its image cannot be used"):
        scan(ADDRESS)
    assert list((remote.cache_folder() / "datasets" / "alice--images").iterdir()) == []


def test_parquet_in_folders_by_split_and_by_configuration(hub: HubServer) -> None:
    one = table([row(1, "NORMAL"), row(2, "TB")])
    hub.plant(REPO, {"child/train/0000.parquet": one, "child/test/0000.parquet": one}, kind="dataset")
    assert scan(ADDRESS).splits == ("test", "test", "train", "train")
    hub.plant(REPO, {"adult/train-0.parquet": one}, kind="dataset")
    with pytest.raises(
        ValueError,
        match=r"holds several data sets; choose one: hf://datasets/alice/images/adult, hf://datasets/alice/images/child$",
    ):
        scan(ADDRESS)
    assert scan(f"{ADDRESS}/adult").splits == ("train", "train")


def test_images_of_one_name_do_not_overwrite_each_other(hub: HubServer) -> None:
    hub.plant(
        REPO,
        {"train.parquet": table([row(1, "NORMAL", "x.png"), row(2, "NORMAL", "x.png"), row(3, "TB", ".hidden/x.png")])},
        kind="dataset",
    )
    assert levels(scan(ADDRESS).paths) == [1, 2, 3]


def test_a_class_column_of_another_name(hub: HubServer) -> None:
    rows = [{"image": {"bytes": picture(i), "path": None}, "finding": i % 2} for i in range(4)]
    hub.plant(REPO, {"train.parquet": table(rows, classes=["NORMAL", "TB"], label="finding")}, kind="dataset")
    assert scan(ADDRESS).targets.tolist() == [0, 1, 0, 1]


def test_images_without_a_label_are_named(hub: HubServer) -> None:
    hub.plant(REPO, {"train.parquet": table([row(1, "A"), row(2, None), row(3, "B")])}, kind="dataset")
    with pytest.raises(ValueError, match=r"has 1 image without a label: line 3"):
        scan(ADDRESS)


def test_parquet_without_the_columns(hub: HubServer) -> None:
    hub.plant(REPO, {"train.parquet": table([{"text": "a", "label": 1}])}, kind="dataset")
    with pytest.raises(ValueError, match=r"needs a column of images and one called label. Received: text, label"):
        scan(ADDRESS)


def test_parquet_without_pyarrow(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.plant(REPO, {"train.parquet": b"PAR1"}, kind="dataset")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'reading parquet files needs pyarrow: pip install "cxrlib\[parquet\]"'):
        scan(ADDRESS)


def test_a_data_set_that_is_not_there(hub: HubServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"the Hub shows no repository alice/images"):
        scan(ADDRESS)


def test_a_private_data_set(hub: HubServer) -> None:
    hub.plant(REPO, {"A/a.png": picture(1), "B/b.png": picture(2)}, kind="dataset", private=True)
    with pytest.raises(FileNotFoundError, match="if it is private, log in"):
        remote.fetch(ADDRESS)
    assert remote.fetch(ADDRESS, token="hf_alice")[1] == "images"


@pytest.mark.parametrize(
    "address", ["hf://datasets/images", "hf://datasets/", "hf://datasets/a/b@", "hf://datasets/a b/c"]
)
def test_addresses_of_another_form(address: str) -> None:
    with pytest.raises(ValueError, match=r"has the form|is named user/repo"):
        scan(address)
