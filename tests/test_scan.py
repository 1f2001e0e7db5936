"""Folders, manifests and tables become images with labels, patients, sources and splits."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrlib.data.scan import PATIENT_PATTERNS, Dataset, add_columns, scan, write_manifest
from cxrlib.data.split import split

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))
real = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"no real images in {SHARED}")


def plant(root: Path, *names: str) -> Path:
    """Make small pictures."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(root / name)
    return root


# --- folders ---


def test_class_folders(tmp_path: Path) -> None:
    found = scan(plant(tmp_path / "clinic", "pneumonia/b.png", "Normal/deep/a.png", "Normal/.hidden.png"))
    assert found.labels == ("NORMAL", "PNEUMONIA")
    assert found.paths == (str(tmp_path / "clinic/Normal/deep/a.png"), str(tmp_path / "clinic/pneumonia/b.png"))
    assert found.targets.tolist() == [0, 1]
    assert found.sources == ("clinic", "clinic")
    assert found.names == ("clinic/Normal/deep/a.png", "clinic/pneumonia/b.png")
    assert found.splits == found.patients == (None, None)


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (("covid", "NORMAL", "TB"), ("NORMAL", "TB", "covid")),
        (("positive", "negative"), ("negative", "positive")),
        (("Sick", "Healthy"), ("Healthy", "Sick")),
        (("no pneumonia", "pneumonia"), ("no pneumonia", "PNEUMONIA")),
        (("NonCOVID", "Non-COVID"), ("Non-COVID", "NonCOVID")),
        (("TB", "normal chest"), ("normal chest", "TB")),
        (("Covid", "NEGATIVE_pcr"), ("NEGATIVE_pcr", "Covid")),
        (("nodule", "healthy_adults"), ("healthy_adults", "nodule")),
        (("clear", "Pneumonia"), ("clear", "PNEUMONIA")),
        (("Pneumonia", "other"), ("other", "PNEUMONIA")),
        (("TB", "COVID", "viral"), ("COVID", "TB", "viral")),
        (("TB", "no TB", "Normal", "COVID"), ("NORMAL", "no TB", "COVID", "TB")),
    ],
)
def test_the_normal_class_comes_first(tmp_path: Path, folders: tuple[str, ...], labels: tuple[str, ...]) -> None:
    found = scan(plant(tmp_path, *(f"{name}/x.png" for name in folders)))
    assert found.labels == labels
    assert [found.labels[t].casefold() for t in found.targets] == [
        Path(path).parent.name.casefold() for path in found.paths
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [("A", "B"), ("COVID", "TB"), ("Normal", "no finding"), ("nodule", "normality"), ("clear", "viral pneumonia")],
)
def test_which_of_two_classes_is_the_normal_one_is_not_guessed(tmp_path: Path, first: str, second: str) -> None:
    plant(tmp_path, f"{first}/x.png", f"{second}/x.png")
    a, b = first.replace("Normal", "NORMAL"), second
    message = (
        rf"the classes are '{a}' and '{b}', and their names do not tell .* normal.*"
        rf"labels=\('{a}', '{b}'\) or the other way round, .*--labels"
    )
    with pytest.raises(ValueError, match=message):
        scan(tmp_path)
    for labels in ((a, b), (b, a)):
        assert scan(tmp_path, labels=labels).labels == labels


def test_given_labels_fix_the_order(tmp_path: Path) -> None:
    plant(tmp_path, "normal/a.png", "pneumonia/b.png")
    found = scan(tmp_path, labels=["Pneumonia", "NORMAL", "TB"])
    assert found.labels == ("Pneumonia", "NORMAL", "TB")
    assert found.targets.tolist() == [1, 0]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_class_folders_in_any_order(tmp_path: Path, order: tuple[str, str]) -> None:
    plant(tmp_path, "b/first.png", "a/second.png", "a/third.png")
    found = scan(tmp_path, labels=order)
    assert found.labels == order
    assert [order[t] for t in found.targets] == ["a", "a", "b"]
    assert [order[t] for t in scan(tmp_path, labels=[x.upper() for x in order]).targets] == ["a", "a", "b"]


def test_hidden_and_appledouble_files_are_skipped_and_counted(tmp_path: Path) -> None:
    plant(tmp_path / "clinic", "NORMAL/a.png", "PNEUMONIA/b.png")
    for name in ("NORMAL/._a.png", "PNEUMONIA/._b.png", ".DS_Store", "NORMAL/.hidden.jpg"):
        (tmp_path / "clinic" / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    found = scan(tmp_path / "clinic")
    assert [Path(path).name for path in found.paths] == ["a.png", "b.png"]
    assert found.notes == ("3 hidden files of clinic skipped",)


CAUSES = "(?P<BACTERIAL>_bacteria_)|(?P<VIRAL>_virus_)"


def test_labels_from_names(tmp_path: Path) -> None:
    names = ("NORMAL/IM-0001-0001.png", "PNEUMONIA/person1_bacteria_1.png", "PNEUMONIA/person1_virus_6.png")
    root = plant(tmp_path / "chest_xray", *names)
    found = scan(root, labels=("NORMAL", "BACTERIAL", "VIRAL"), label_pattern=CAUSES)
    assert found.labels == ("NORMAL", "BACTERIAL", "VIRAL")
    assert found.targets.tolist() == [0, 1, 2]
    assert found.patients == ("IM-0001", "person1_bacteria", "person1_virus")
    assert scan(root, label_pattern=CAUSES).labels == ("NORMAL", "BACTERIAL", "VIRAL")
    for pattern, message in ((r"_virus_", "a named group for each label"), (r"(?P<TB>_tb_)", "matches none of 3")):
        with pytest.raises(ValueError, match=message):
            scan(root, label_pattern=pattern)


def test_kaggle_layout(tmp_path: Path) -> None:
    root = tmp_path / "chest_xray"
    for part in ("train", "val", "test"):
        plant(root / part, f"NORMAL/{part}.png", f"PNEUMONIA/{part}.png")
    plant(root / "chest_xray" / "train", "NORMAL/again.png")  # as the archive holds itself once more
    plant(root / "__MACOSX" / "train", "NORMAL/._x.png")
    for place in (root, tmp_path):
        found = scan(place)
        assert Counter(found.splits) == {"train": 2, "val": 2, "test": 2}
        assert set(found.targets) == {0, 1}
        assert all(f"/{part}/" in path for part, path in zip(found.splits, found.paths, strict=True))
    assert [Path(path).stem for path in scan(root, split="test").paths] == ["test", "test"]
    assert [Path(path).stem for path in scan(root, split="validation").paths] == ["val", "val"]


def test_a_split_folder_by_itself_is_named_after_the_folder_above(tmp_path: Path) -> None:
    for part in ("train", "test"):
        plant(tmp_path / "clinic" / part, "NORMAL/a.png", "PNEUMONIA/b.png")
    alone, whole = scan(tmp_path / "clinic" / "test"), scan(tmp_path / "clinic", split="test")
    assert alone.names == whole.names == ("clinic/test/NORMAL/a.png", "clinic/test/PNEUMONIA/b.png")
    both = scan([tmp_path / "clinic" / "train", tmp_path / "clinic" / "test"])
    assert set(both.sources) == {"clinic"}
    assert both.splits == ("train", "train", "test", "test")


def test_several_sources_get_names_of_their_own(tmp_path: Path) -> None:
    places = [
        plant(tmp_path / name, "NORMAL/a.png", "PNEUMONIA/b.png") for name in ("x/clinic", "y/clinic", "z/clinic")
    ]
    assert scan(places).sources == ("clinic", "clinic", "clinic-2", "clinic-2", "clinic-3", "clinic-3")


def test_class_folders_and_splits_that_are_links(tmp_path: Path) -> None:
    plant(tmp_path / "pool", "a/1.png", "b/2.png", "held out/NORMAL/3.png", "held out/PNEUMONIA/4.png")
    for link, target in {"train/NORMAL": "a", "train/PNEUMONIA": "b", "val": "held out"}.items():
        (tmp_path / "clinic" / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clinic" / link).symlink_to(tmp_path / "pool" / target)
    found = scan(tmp_path / "clinic")
    assert found.names == (
        "clinic/train/NORMAL/1.png",
        "clinic/train/PNEUMONIA/2.png",
        "clinic/val/NORMAL/3.png",
        "clinic/val/PNEUMONIA/4.png",
    )
    assert found.splits == ("train", "train", "val", "val")


def test_labels_of_several_sources_are_one_list(tmp_path: Path) -> None:
    plant(tmp_path / "a", "normal/a.png")
    plant(tmp_path / "b", "NORMAL/a.png", "Covid/b.png")
    plant(tmp_path / "c", "covid/c.png")
    found = scan([tmp_path / "a", tmp_path / "b", tmp_path / "c"], labels=None)
    assert found.labels == ("NORMAL", "Covid")
    assert found.targets.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("names", "options", "error"),
    [
        ((), {}, r"has no images: looked for \.bmp.*\.tiff"),
        (
            ("a.png", "b.png"),
            {},
            r"has 2 images without a label, outside class folders such as NORMAL and PNEUMONIA: a\.png, b\.png$",
        ),
        (("NORMAL/a.png", "TB/a.png", "c.png"), {}, r"has 1 image without a label.*: c\.png$"),
        (
            ("train/NORMAL/a.png", "train/b.png"),
            {},
            r"1 image without a label, outside train, val or test folders.*: train/b\.png",
        ),
        (
            ("train/NORMAL/a.png", "extra/NORMAL/b.png"),
            {},
            r"1 image without a label, outside train, val or test.*: extra/NORMAL/b\.png",
        ),
        (tuple(f"{i}.png" for i in range(7)), {}, r"4\.png and 2 more$"),
        (
            ("NORMAL/a.png", "NORMAL/b.png"),
            {},
            r"there is one class only, 'NORMAL' in 2 images, and a classifier needs two: add",
        ),
        (
            ("nih/NORMAL/a.png", "rsna/NORMAL/a.png"),
            {},
            r"holds several data sets; give them as a list: \['.*nih', '.*rsna'\]",
        ),
        (
            ("a/x.png", "b/x.png"),
            {"labels": ("a", "c")},
            r"1 image with a label that is none of a, c: 'b'. The first: .*b/x\.png",
        ),
        (("a/x.png", "b/x.png"), {"split": "test"}, r"has no split 'test'; it has none at all"),
        (("train/a/x.png", "val/b/x.png"), {"split": "test"}, r"has no split 'test'; it has train, val"),
        (
            ("a/x.png", "b/x.png"),
            {"patient_pattern": "("},
            r"must be a regular expression: .*Received: patient_pattern='\('",
        ),
        (("a/x.png", "b/x.png"), {"patient_pattern": "z+"}, r"matches none of 2 images, '\w+/x\.png' for one"),
    ],
)
def test_what_a_folder_may_not_be(
    tmp_path: Path, names: tuple[str, ...], options: dict[str, object], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        scan(plant(tmp_path, *names), **options)  # type: ignore[arg-type]


def test_one_class_is_enough_when_labels_are_given(tmp_path: Path) -> None:
    found = scan(plant(tmp_path, "normal/a.png"), labels=("NORMAL", "PNEUMONIA"))
    assert found.targets.tolist() == [0]


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder or manifest '.*nowhere'"):
        scan(tmp_path / "nowhere")


@pytest.mark.parametrize("nothing", [[], None, 3])
def test_no_place_at_all(nothing: object) -> None:
    with pytest.raises(ValueError, match=r"must be a folder, a CSV manifest or a list of them. Received: data="):
        scan(nothing)  # type: ignore[arg-type]


# --- patients ---


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("PNEUMONIA/person1_bacteria_1.jpeg", "person1_bacteria"),
        ("PNEUMONIA/person1_virus_6.jpeg", "person1_virus"),
        ("PNEUMONIA/person1_virus_6_2.jpeg", "person1_virus"),
        ("NORMAL/IM-0001-0001.jpeg", "IM-0001"),
        ("NORMAL/IM-0539-0001-0002.jpeg", "IM-0539"),
        ("NORMAL/NORMAL2-IM-0001-0001.jpeg", "NORMAL2-IM-0001"),
        ("IM-0001-0001.dcm", None),  # what viewers call the first image of anybody
        ("NORMAL/NORMAL-1003233-0001.jpeg", "NORMAL-1003233"),
        ("images_001/00000013_026.png", "00000013"),
        ("20240131_001.png", None),  # a date
        ("train/patient00042/study2/view1_frontal.jpg", "patient00042"),
        ("files/p10/p10000032/s50414267/02aa804e.jpg", "p10000032"),
        ("0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm", "0004cfab-14fd-4e49-80ba-63a80b6bddd6"),
        ("train/50a418190bc3fb1ef1633bf9678929b3.dicom", "50a418190bc3fb1ef1633bf9678929b3"),
        ("superperson1_bacteria_1.jpeg", None),
        ("image.png", None),
    ],
)
def test_patients_of_public_collections(tmp_path: Path, name: str, patient: str | None) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "images.csv").write_text(f"path,label\n{name},NORMAL\n")
    assert scan(tmp_path / "images.csv", labels=("NORMAL", "PNEUMONIA")).patients == (patient,)


def test_patients_by_pattern_belong_to_their_source(tmp_path: Path) -> None:
    for clinic in ("a", "b"):
        plant(tmp_path / clinic, "NORMAL/p7-1.png", "PNEUMONIA/p7-2.png", "PNEUMONIA/unnamed.png")
    found = scan([tmp_path / "a", tmp_path / "b"], patient_pattern=r"p(\d+)-")
    assert found.patients == ("a:7", "a:7", None, "b:7", "b:7", None)
    assert scan(tmp_path / "a", patient_pattern=r"p\d+").patients == ("a:p7", "a:p7", None)


# --- manifests ---


def test_manifest(tmp_path: Path) -> None:
    plant(tmp_path / "images", "x.png", "y.png", "z.png")
    (tmp_path / "clinic.csv").write_text(
        "\ufeffPath,Label,patient,source,split,Age\n"
        'images/x.png,normal,1,,train,"4"\n'
        f"{tmp_path / 'images/y.png'},Pneumonia,1,other,Validation,\n"
        "\n"
        " images/z.png , PNEUMONIA,,,test,70\n",
        encoding="utf-8",
    )
    found = scan(tmp_path / "clinic.csv")
    assert [Path(path).name for path in found.paths] == ["x.png", "y.png", "z.png"]
    assert found.labels == ("NORMAL", "PNEUMONIA")
    assert found.targets.tolist() == [0, 1, 1]
    assert found.patients == ("clinic:1", "clinic:1", None), "one patient, in two sources"
    assert found.sources == ("clinic", "other", "clinic")
    assert found.splits == ("train", "val", "test")
    assert found.columns == {"Age": ("4", "", "70")}
    assert found.names == ("clinic/images/x.png", "other/images/y.png", "clinic/images/z.png")


def test_absolute_paths_are_named_by_what_tells_them_apart_and_not_by_where_they_lie(tmp_path: Path) -> None:
    images = [f"patient0000{i}/study1/view1_frontal.png" for i in range(2)]
    plant(tmp_path / "Dr. Mabuse" / "CheXpert", *images)
    rows = "".join(
        f"{tmp_path / 'Dr. Mabuse' / 'CheXpert' / image},{label}\n"
        for image, label in zip(images, ("NORMAL", "PNEUMONIA"), strict=True)
    )
    for place, wanted in (
        ("Dr. Mabuse/all.csv", "all/CheXpert/"),
        ("Dr. Mabuse/CheXpert/all.csv", "all/"),
        ("elsewhere/all.csv", "all/"),
    ):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("path,label\n" + rows)
        found = scan(tmp_path / place)
        assert found.names == tuple(wanted + image for image in images)
        assert found.patients == ("patient00000", "patient00001")


def test_every_source_of_a_manifest_has_a_folder_of_its_own(tmp_path: Path) -> None:
    plant(tmp_path, "me/x/a.png", "me/x/b.png", "me/you/y/c/a.png", "me/you/y/d/a.png", "list/a.png", "list/b.png")
    rows = [
        ("me/x/a.png", "x"),
        ("me/x/b.png", "x"),
        ("me/you/y/c/a.png", "y"),
        ("me/you/../you/y/d/a.png", "y"),
        ("list/./a.png", "z"),
        ("list/b.png", "x/"),
    ]
    lines = [f"{tmp_path}/{path},{'AB'[i % 2]},{source}\n" for i, (path, source) in enumerate(rows)]
    (tmp_path / "list" / "images.csv").write_text(
        "path,label,source\n" + "".join(lines) + "a.png,A,\n../me/x/a.png,B,\n"
    )
    found = scan(tmp_path / "list" / "images.csv", labels=("A", "B"))
    assert found.names == (
        "x/a.png",
        "x/b.png",
        "y/c/a.png",
        "y/d/a.png",
        "z/a.png",
        "x//b.png",
        "images/a.png",
        "images/../me/x/a.png",
    )


def test_one_image_in_two_sources(tmp_path: Path) -> None:
    plant(tmp_path / "clinic", "NORMAL/x.png", "PNEUMONIA/y.png")
    (tmp_path / "more.csv").write_text(
        "path,label,source\nclinic/NORMAL/x.png,NORMAL,\nclinic/NORMAL/x.png,NORMAL,third\n"
    )
    found = scan([tmp_path / "clinic", tmp_path / "more.csv"])
    assert found.names == (
        "clinic/NORMAL/x.png",
        "clinic/PNEUMONIA/y.png",
        "more/clinic/NORMAL/x.png",
        "third/clinic/NORMAL/x.png",
    )
    assert len(set(found.paths)) == 2


def test_names_must_differ(tmp_path: Path) -> None:
    for place in ("a", "b"):
        plant(tmp_path / place, "x.png", "y.png")
        (tmp_path / place / f"{place}.csv").write_text(
            "path,label,source\nx.png,NORMAL,clinic\ny.png,PNEUMONIA,clinic\n"
        )
    message = (
        r"two images have one name, 'clinic/x\.png': .*a\.csv, line 2, and .*b\.csv, line 2\. "
        r"Names must differ: give them different sources"
    )
    with pytest.raises(ValueError, match=message):
        scan([tmp_path / "a" / "a.csv", tmp_path / "b" / "b.csv"])
    with pytest.raises(ValueError, match=r"one name, 'clinic/x\.png': .*Names must differ: list it once"):
        scan([tmp_path / "a" / "a.csv", tmp_path / "a" / "a.csv"])
    plant(tmp_path / "c", "NORMAL/x.png", "PNEUMONIA/y.png")
    with pytest.raises(ValueError, match=r"one name, 'c/NORMAL/x\.png': .*Names must differ: list it once"):
        scan([tmp_path / "c", tmp_path / "c"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_manifests_of_spreadsheets(tmp_path: Path, delimiter: str) -> None:
    plant(tmp_path, "x.png", "y,1.png")
    rows = [("path", "label", "note"), ('"x.png"', "NORMAL", '"two\nlines"'), ('"y,1.png"', "TB", "")]
    (tmp_path / "images.csv").write_text("\r\n".join(delimiter.join(row) for row in rows) + "\r\n", newline="")
    found = scan(tmp_path / "images.csv")
    assert [Path(path).name for path in found.paths] == ["x.png", "y,1.png"]
    assert found.columns == {"note": ("two\nlines", "")}


def test_metadata_of_image_folders_on_the_hub(tmp_path: Path) -> None:
    plant(tmp_path, "x.png", "y.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\nx.png,TB\ny.png,NORMAL\n")
    assert scan(tmp_path / "metadata.csv").labels == ("NORMAL", "TB")


def test_a_manifest_called_test_is_the_test_split(tmp_path: Path) -> None:
    plant(tmp_path / "clinic", "x.png", "y.png")
    (tmp_path / "clinic" / "test.csv").write_text("path,label\nx.png,NORMAL\ny.png,TB\n")
    found = scan(tmp_path / "clinic" / "test.csv")
    assert found.splits == ("test", "test")
    assert found.sources == ("clinic", "clinic")


def test_manifest_and_folder_together(tmp_path: Path) -> None:
    plant(tmp_path / "clinic", "NORMAL/x.png", "PNEUMONIA/y.png")
    (tmp_path / "more.csv").write_text("path,label,age\nclinic/NORMAL/x.png,NORMAL,7\n")
    found = scan([tmp_path / "clinic", tmp_path / "more.csv"])
    assert found.sources == ("clinic", "clinic", "more")
    assert found.columns == {"age": ("", "", "7")}


@pytest.mark.parametrize(
    ("text", "kind", "error"),
    [
        (
            "",
            ValueError,
            r"must begin with a line that names its columns, path and label among them, each once. Received: ''",
        ),
        ("file,class\nx.png,A\n", ValueError, r"Received: 'file,class'"),
        ("path,label,label\nx.png,A,A\n", ValueError, r"each once"),
        ("path,label\n", ValueError, r"images\.csv lists no images"),
        ("path,label\nx.png\n", ValueError, r"images\.csv, line 2: expected 2 cells as in the first line. Received: 1"),
        ("path,label\nx.png,A\nx.png,\nx.png, \n", ValueError, r"has 2 images without a label: line 3, line 4$"),
        (
            "path,label\nx.png,A\nx.png,B\n./x.png,B\n",
            ValueError,
            r"lists 1 image more than once: .*x\.png in lines 2, 3, 4\. Keep one line of each$",
        ),
        (
            "path,label\nx.png,A\nlost.png,B\n",
            FileNotFoundError,
            r"lists 1 image that cannot be found below .*: lost\.png",
        ),
        ("path,label\nx.png,A\n", ValueError, r"there is one class only, 'A' in 1 image, and a classifier needs two"),
        ('path,label\n"x.png,A' + "x" * 200_000, ValueError, r"not CSV \(field larger than"),
    ],
)
def test_what_a_manifest_may_not_be(tmp_path: Path, text: str, kind: type[Exception], error: str) -> None:
    plant(tmp_path, "x.png")
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(kind, match=error):
        scan(tmp_path / "images.csv")


def test_an_image_is_not_a_manifest(tmp_path: Path) -> None:
    plant(tmp_path, "x.png")
    with pytest.raises(ValueError, match=r"x\.png is neither a folder nor a CSV manifest in UTF-8"):
        scan(tmp_path / "x.png")


def test_a_label_that_is_not_asked_for_is_named_with_its_line(tmp_path: Path) -> None:
    plant(tmp_path, "x.png", "y.png", "z.png")
    (tmp_path / "images.csv").write_text("path,label\nx.png,NORMAL\ny.png,TB\nz.png,COVID\n")
    with pytest.raises(
        ValueError,
        match=r"2 images with a label that is none of NORMAL, PNEUMONIA: 'COVID', 'TB'. "
        r"The first: .*images\.csv, line 3$",
    ):
        scan(tmp_path / "images.csv", labels=("NORMAL", "PNEUMONIA"))


def test_written_manifests_read_back_the_same(tmp_path: Path) -> None:
    plant(tmp_path / "kermany", "NORMAL/IM-0001-0001.jpeg", "PNEUMONIA/person1_virus_6.jpeg")
    plant(tmp_path / "clinic", "x.png", "y.png")
    (tmp_path / "clinic" / "images.csv").write_text(
        "path,label,patient,split,age\nx.png,NORMAL,1,train,7\ny.png,PNEUMONIA,2,,\n"
    )
    first = scan([tmp_path / "kermany", tmp_path / "clinic" / "images.csv"])
    for place in (tmp_path / "all.csv", tmp_path / "elsewhere" / "all.csv"):
        place.parent.mkdir(exist_ok=True)
        write_manifest(first, place)
        again = scan(place)
        for name in ("paths", "labels", "patients", "sources", "splits", "columns"):
            assert getattr(again, name) == getattr(first, name), name
        assert again.targets.tolist() == first.targets.tolist()
    assert not list(tmp_path.glob("**/*.part"))
    assert str(tmp_path) not in (tmp_path / "all.csv").read_text()


# --- data sets ---


def test_an_image_of_nobody_known_counts_as_a_patient_of_its_own() -> None:
    images = Dataset(
        ("a", "b", "c"),
        np.array([0, 1, 0]),
        ("N", "P"),
        ("1", None, "1"),
        ("x",) * 3,
        (None,) * 3,
        names=("x/a", "x/b", "x/c"),
    )
    assert images.patients_or_names == ("1", "x/b", "1")


def test_take() -> None:
    whole = Dataset(
        ("a", "b", "c"),
        np.array([0, 1, 0]),
        ("N", "P"),
        ("1", None, "3"),
        ("x", "y", "x"),
        (None, "test", None),
        {"age": ("7", "", "9")},
        ("k", "l", "m"),
    )
    for indices in ([2, 1], np.array([2, 1]), (2, 1)):
        part = whole.take(indices)
        assert (part.paths, part.patients, part.sources, part.splits, part.names) == (
            ("c", "b"),
            ("3", None),
            ("x", "y"),
            (None, "test"),
            ("m", "l"),
        )
        assert part.columns == {"age": ("9", "")}
        assert part.targets.tolist() == [0, 1]
    assert whole.take([True, False, True]).paths == ("a", "c")
    assert len(whole.take([])) == 0
    with pytest.raises(ValueError, match="read-only"):
        whole.targets[0] = 1


def test_data_sets_are_checked_when_made() -> None:
    with pytest.raises(ValueError, match=r"one entry per image in every field. Received: paths: 1, targets: 2"):
        Dataset(("a",), np.array([0, 1]), ("N", "P"), (None,), ("x",), (None,))
    with pytest.raises(ValueError, match=r"age: 0"):
        Dataset(("a",), np.array([0]), ("N", "P"), (None,), ("x",), (None,), {"age": ()})
    with pytest.raises(ValueError, match=r"targets must index the 2 labels. Received: targets from 0 to 2"):
        Dataset(("a", "b"), np.array([0, 2]), ("N", "P"), (None,) * 2, ("x",) * 2, (None,) * 2)
    with pytest.raises(ValueError, match=r"labels must be two or more"):
        Dataset(("a",), np.array([0]), ("N",), (None,), ("x",), (None,))


# --- what a table says of images ---


def test_columns_of_a_table(tmp_path: Path) -> None:
    found = scan(plant(tmp_path / "clinic", "NORMAL/a.png", "NORMAL/b.png", "PNEUMONIA/c.png"))
    table = tmp_path / "views.csv"
    table.write_text(
        "image;view;age\nclinic/NORMAL/b.png;AP;64\nclinic/PNEUMONIA/c.png;PA;\nelsewhere/d.png;PA;7\n",
        encoding="utf-8",
    )
    told = add_columns(found, table)
    assert told.columns == {"view": ("", "AP", "PA"), "age": ("", "64", "")}
    assert told.paths == found.paths
    known = add_columns(replace(found, columns={"site": ("1", "2", "3"), "view": ("LL", "LL", "")}), table).columns
    assert known == {"site": ("1", "2", "3"), "view": ("LL", "AP", "PA"), "age": ("", "64", "")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,view\nclinic/a.png,AP\n",
            "must begin with a line that names its columns, image among them, each once. Received: 'path,view'",
        ),
        (
            "image,view\nclinic/NORMAL/a.png,AP\nclinic/NORMAL/a.png,PA\n",
            "line 3: it names the image 'clinic/NORMAL/a.png' twice",
        ),
        ("image,view\na.png,AP\n", "names none of these 2 images; a name is such as clinic/NORMAL/a.png"),
        ("image,view\n", "Received: no line"),
    ],
)
def test_tables_that_say_nothing_of_the_images(tmp_path: Path, text: str, message: str) -> None:
    found = scan(plant(tmp_path / "clinic", "NORMAL/a.png", "PNEUMONIA/c.png"))
    (tmp_path / "views.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        add_columns(found, tmp_path / "views.csv")


# --- real images ---


@real
def test_the_images_of_the_bundled_model() -> None:
    spec = importlib.util.spec_from_file_location("train_default", EXAMPLES / "train_default.py")
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.images(SHARED / "data")
    assert found.labels == ("NORMAL", "PNEUMONIA")
    counts = Counter(zip(found.sources, found.targets.tolist(), strict=True))
    paediatric = {("chest_xray", 0): 1341, ("chest_xray", 1): 3875}
    assert counts == {**paediatric, ("nih", 0): 263, ("nih", 1): 67, ("rsna", 0): 760, ("rsna", 1): 770}
    assert "test" not in found.splits
    sources = {patient: set[str]() for patient in found.patients}
    for patient, source in zip(found.patients, found.sources, strict=True):
        sources[patient].add(source)
    assert {patient for patient, of in sources.items() if patient and len(of) > 1} == {"00000061", "00000218"}
    aside = set(split(found).validation.tolist())
    for shared in ("00000061", "00000218"):
        assert len({i in aside for i, patient in enumerate(found.patients) if patient == shared}) == 1


@real
def test_the_causes_of_the_paediatric_set() -> None:
    found = scan(
        SHARED / "data" / "chest_xray" / "train", labels=("NORMAL", "BACTERIAL", "VIRAL"), label_pattern=CAUSES
    )
    assert np.bincount(found.targets).tolist() == [1341, 2530, 1345]


@real
def test_the_official_split_has_no_patient_in_common() -> None:
    found = scan(SHARED / "data" / "chest_xray")
    assert Counter(found.splits) == {"train": 5216, "test": 624}
    assert Counter(found.targets.tolist()) == {0: 1575, 1: 4265}
    assert None not in found.patients
    train, test = (
        {p for p, s in zip(found.patients, found.splits, strict=True) if s == side} for side in ("train", "test")
    )
    assert not train & test
    assert len(train) == 3654


# --- the documentation's scripts for the big collections ---


def run_script(title: str) -> None:
    """Run the Python block of a section of the documentation, in this folder."""
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "get-the-data.md").read_text(encoding="utf-8")
    exec(page.split(f"\n## {title}")[1].split("```python\n")[1].split("```")[0], {})


def test_the_script_for_chestxray14(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(
        plant(
            tmp_path,
            *(f"nih/images/{name}.png" for name in ("00000001_000", "00000001_001", "00000002_000", "00000003_000")),
        )
    )
    (tmp_path / "nih" / "Data_Entry_2017_v2020.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
        "00000001_000.png,No Finding,0,1,57,M,PA\n"
        "00000001_001.png,Infiltration|Pneumonia,1,1,58,M,AP\n"
        "00000002_000.png,Mass,0,2,80,F,PA\n"
        "00000003_000.png,No Finding,0,3,8,F,PA\n"
        "00000004_000.png,Pneumonia,0,4,8,F,PA\n"
    )
    run_script("ChestX-ray14")
    found = scan("nih/nih.csv")
    assert [Path(path).name for path in found.paths] == ["00000001_000.png", "00000001_001.png", "00000003_000.png"]
    assert found.targets.tolist() == [0, 1, 0]
    assert found.patients == ("00000001", "00000001", "00000003")
    assert found.sources == ("nih",) * 3
    assert found.columns == {"age": ("57", "58", "8"), "view": ("PA", "AP", "PA")}


def test_the_script_for_rsna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"0004cfab-14fd-4e49-80ba-63a80b6bddd{i}" for i in range(3)]
    monkeypatch.chdir(plant(tmp_path, "rsna/x.png"))
    (tmp_path / "rsna" / "stage_2_train_images").mkdir()
    for name in ids:
        (tmp_path / "rsna" / "stage_2_train_images" / f"{name}.dcm").touch()
    rows = [
        (ids[0], "No Lung Opacity / Not Normal"),
        (ids[1], "Lung Opacity"),
        (ids[1], "Lung Opacity"),
        (ids[2], "Normal"),
    ]
    (tmp_path / "rsna" / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\n" + "".join(f"{name},{label}\n" for name, label in rows)
    )
    run_script("RSNA")
    found = scan("rsna/rsna.csv")
    assert [Path(path).stem for path in found.paths] == ids[1:]
    assert found.targets.tolist() == [1, 0]
    assert found.patients == tuple(ids[1:])


def test_patterns_are_documented_by_name() -> None:
    assert all(name and pattern.startswith("(?:^|/)") for name, pattern in PATIENT_PATTERNS.items())
