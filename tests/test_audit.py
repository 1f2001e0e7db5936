"""The audit finds what is planted, and nothing on untouched images that is worth stopping for."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrlib.data import audit as module
from cxrlib.data import cache
from cxrlib.data import scan as data
from cxrlib.data.audit import Audit, audit, without_leaks
from cxrlib.data.scan import Dataset
from cxrlib.images import phantom

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))
real = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"no real images in {SHARED}")


def drawn(seed: int, size: int = 160) -> Image.Image:
    """A picture with detail of every size, unlike any other."""
    draw = np.random.default_rng(seed)
    pixels = np.zeros((size, size))
    for cells in (4, 8, 16, 32, 64):
        noise = Image.fromarray(draw.normal(0, 1, (cells, cells)).astype(np.float32))
        pixels += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC)) / np.log2(cells)
    return Image.fromarray(np.clip(128 + 40 * pixels, 0, 255).astype(np.uint8))


def plant(folder: Path, n: int = 12, *, suffix: str = "png") -> Path:
    for i in range(n):
        path = folder / ("NORMAL", "PNEUMONIA")[i % 2] / f"{i:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn(i).save(path)
    return folder


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Audit]:
    """Audit a data set, or a place."""
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))

    def call(what: Any, **options: Any) -> Audit:
        dataset = what if isinstance(what, Dataset) else data.scan(what)
        return audit(dataset, progress=False, **options)

    return call


def kept_of(dataset: Dataset, found: Audit) -> Dataset:
    return dataset.take(np.flatnonzero(without_leaks(dataset, found)))


def names(groups: tuple[tuple[str, ...], ...]) -> list[list[str]]:
    return [[Path(path).name for path in group] for group in groups]


# --- copies ---


def test_nothing_to_complain_of(tmp_path: Path, look: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_PATIENTS", 5)
    dataset = replace(data.scan(plant(tmp_path / "clinic")), patients=tuple("abcdefghijkl"))
    found = look(dataset)
    assert not found.errors
    assert not found.warnings
    assert found.counts == {"clinic": {"NORMAL": 6, "PNEUMONIA": 6}}
    assert str(found) == "12 images, 12 known patients\n  clinic: 6 NORMAL, 6 PNEUMONIA\nno problem found"


def test_exact_copies_whatever_their_file(tmp_path: Path, look: Callable[..., Audit]) -> None:
    root = plant(tmp_path / "clinic")
    shutil.copy(root / "NORMAL" / "000.png", root / "NORMAL" / "zz.png")
    drawn(0).save(root / "NORMAL" / "zz.bmp")
    drawn(1).convert("RGB").save(root / "PNEUMONIA" / "zz.png", compress_level=1)
    found = look(root)
    assert names(found.exact_duplicates) == [["000.png", "zz.bmp", "zz.png"], ["001.png", "zz.png"]]
    assert found.surplus == 3
    assert found.near_duplicates == ()
    assert found.warnings[0] == (
        "3 surplus copies of 2 images with the same pixels: clinic/NORMAL/000.png = clinic/NORMAL/zz.bmp = "
        "clinic/NORMAL/zz.png; "
        "clinic/PNEUMONIA/001.png = clinic/PNEUMONIA/zz.png"
    )
    assert found.remarks[0] == "3 surplus copies of 2 images with the same pixels"


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg 60": lambda x: jpeg(x, 60),
    "jpeg 20": lambda x: jpeg(x, 20),
    "half the size": lambda x: x.resize((x.width // 2, x.height // 2), Image.Resampling.BICUBIC),
    "three times the size": lambda x: x.resize((3 * x.width, 3 * x.height), Image.Resampling.NEAREST),
    "another aspect": lambda x: x.resize((200, 90), Image.Resampling.BILINEAR),
    "resized and re-encoded": lambda x: jpeg(x.resize((120, 120)), 50),
    "brighter": lambda x: x.point(lambda v: 255 * (v / 255) ** 0.6),
    "more contrast": lambda x: x.point(lambda v: max(0, min(255, 1.3 * v - 30))),
    "16 bits": lambda x: Image.fromarray(np.asarray(x).astype(np.uint16) * 200),
    "mirrored": lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "negative": lambda x: x.point(lambda v: 255 - v),
    "marked": lambda x: Image.composite(
        Image.new("L", x.size, 255), x, Image.new("L", (20, 12), 255).crop((0, 0, *x.size))
    ),
}


@pytest.mark.parametrize("how", ALTERED)
def test_altered_copies(tmp_path: Path, look: Callable[..., Audit], how: str) -> None:
    root = plant(tmp_path / "clinic", 8)
    ALTERED[how](drawn(2)).save(root / "PNEUMONIA" / "another name.png")
    found = look(root)
    assert names(found.near_duplicates) == [["002.png", "another name.png"]]
    assert found.exact_duplicates == ()
    assert [label for _, label in found.contradictions[0]] == ["NORMAL", "PNEUMONIA"]
    assert any(
        "1 image with altered copies: clinic/NORMAL/002.png = clinic/PNEUMONIA/another name.png" in text
        for text in found.warnings
    )


def test_exact_and_altered_copies_of_one_image_are_one_group(tmp_path: Path, look: Callable[..., Audit]) -> None:
    root = plant(tmp_path / "clinic", 8)
    shutil.copy(root / "NORMAL" / "000.png", root / "NORMAL" / "same.png")
    jpeg(drawn(0), 40).save(root / "NORMAL" / "alike.png")
    found = look(root)
    assert names(found.exact_duplicates) == [["000.png", "same.png"]]
    assert names(found.near_duplicates) == [["000.png", "alike.png", "same.png"]]


def test_drawn_people_are_not_copies(tmp_path: Path, look: Callable[..., Audit]) -> None:
    from cxrlib.images import phantom

    found = look(phantom.write(tmp_path / "phantoms", n=40, size=96))
    assert sum(len(group) - 1 for group in found.near_duplicates) <= 1  # they are all of one mould
    assert not found.contradictions


def test_blank_images_are_no_altered_copies(tmp_path: Path, look: Callable[..., Audit]) -> None:
    root = plant(tmp_path / "clinic", 4)
    for level in (0, 128, 255):
        Image.new("L", (50, 50), level).save(root / "NORMAL" / f"blank{level}.png")
    Image.new("L", (60, 50), 0).save(root / "PNEUMONIA" / "blank.png")
    found = look(root)
    assert found.exact_duplicates == found.near_duplicates == ()


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_any_number_of_images_in_any_blocks(
    tmp_path: Path, look: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    root = plant(tmp_path / "clinic", n)
    jpeg(drawn(0), 60).save(root / "NORMAL" / "copy.png")
    (root / "PNEUMONIA").mkdir(exist_ok=True)
    dataset = data.scan(root, labels=("NORMAL", "PNEUMONIA"))
    whole = look(dataset)
    monkeypatch.setattr("cxrlib.data.copies._BLOCK", 7)
    assert names(look(dataset).near_duplicates) == names(whole.near_duplicates) == [["000.png", "copy.png"]]
    assert look(dataset.take([0])).near_duplicates == ()
    assert look(dataset.take([])).n == 0


@pytest.mark.parametrize("size", [64, 224, 300])
def test_copies_are_found_at_the_size_that_is_trained(tmp_path: Path, look: Callable[..., Audit], size: int) -> None:
    root = plant(tmp_path / "clinic", 8)
    jpeg(drawn(3), 60).save(root / "NORMAL" / "copy.png")
    assert names(look(root, size=size).near_duplicates) == [["copy.png", "003.png"]]


def test_a_path_in_two_sources(tmp_path: Path, look: Callable[..., Audit]) -> None:
    plant(tmp_path / "clinic", 8)
    (tmp_path / "films.csv").write_text(
        "path,label,source\nclinic/NORMAL/000.png,NORMAL,a\nclinic/PNEUMONIA/001.png,PNEUMONIA,a\n"
        "clinic/NORMAL/002.png,NORMAL,a\nclinic/NORMAL/000.png,PNEUMONIA,b\n"
    )
    found = look(tmp_path / "films.csv")
    assert names(found.exact_duplicates) == [["000.png", "000.png"]]
    assert [label for _, label in found.contradictions[0]] == ["NORMAL", "PNEUMONIA"]
    assert names((kept_of(data.scan(tmp_path / "films.csv"), found).paths,)) == [["001.png", "002.png"]]


# --- leaks ---


def splits(root: Path) -> Path:
    for i in range(16):
        path = (
            root
            / ("train", "val", "test", "train")[i % 4]
            / ("NORMAL", "PNEUMONIA")[i // 4 % 2]
            / f"person{i}_virus_{i}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn(i).save(path)
    return root


def test_untouched_splits_are_no_leak(tmp_path: Path, look: Callable[..., Audit]) -> None:
    found = look(splits(tmp_path / "clinic"))
    assert found.errors == ()
    assert found.splits == {"test": 4, "train": 8, "val": 4}
    assert "  splits: 4 test, 8 train, 4 val" in str(found)


@pytest.mark.parametrize("how", ["same pixels", "jpeg 60", "half the size"])
@pytest.mark.parametrize("into", ["val", "test"])
def test_an_image_in_two_splits_is_an_error(tmp_path: Path, look: Callable[..., Audit], how: str, into: str) -> None:
    root = splits(tmp_path / "clinic")
    ALTERED.get(how, lambda x: x)(drawn(0)).save(root / into / "NORMAL" / "renamed.png")
    found = look(root)
    assert len(found.errors) == 1
    assert found.errors[0].startswith("1 image in two splits: clinic/")
    assert "renamed.png" in found.errors[0]
    assert "error: 1 image in two splits" in str(found)
    kept = kept_of(data.scan(root), found)
    assert look(kept).errors == ()
    assert len(kept) == 16
    assert str(root / into / "NORMAL" / "renamed.png") in kept.paths  # what is tested on stays


def test_an_image_without_a_split_may_be_for_training(tmp_path: Path, look: Callable[..., Audit]) -> None:
    root = splits(tmp_path / "clinic")
    for i, folder in ((0, "NORMAL"), (15, "PNEUMONIA")):
        (tmp_path / "more" / folder).mkdir(parents=True)
        drawn(i).save(tmp_path / "more" / folder / "copy.png")
    assert look([root, tmp_path / "more"]).errors == ()  # both copies are of training images
    drawn(2).save(tmp_path / "more" / "NORMAL" / "leak.png")
    [error] = look([root, tmp_path / "more"]).errors
    assert error == "1 image in two splits: clinic/test/NORMAL/person2_virus_2.png = more/NORMAL/leak.png"


def test_a_patient_in_two_splits_is_an_error(tmp_path: Path, look: Callable[..., Audit]) -> None:
    root = splits(tmp_path / "clinic")
    drawn(100).save(root / "test" / "NORMAL" / "person0_virus_99.png")
    drawn(101).save(root / "val" / "NORMAL" / "person0_virus_98.png")
    drawn(102).save(root / "test" / "NORMAL" / "person1_bacteria_97.png")  # not person1_virus
    found = look(root)
    assert found.errors == ("1 patient in two splits: person0_virus",)
    assert found.leaks == ("1 patient in two splits",)  # names nobody
    assert not any(name in text for text in found.remarks for name in ("person", ".png"))
    assert {split: names((paths,))[0] for split, paths in found.patient_overlap["person0_virus"].items()} == {
        "test": ["person0_virus_99.png"],
        "train": ["person0_virus_0.png"],
        "val": ["person0_virus_98.png"],
    }
    kept = kept_of(data.scan(root), found)
    assert look(kept).errors == ()
    assert len(kept) == 17
    assert str(root / "test" / "NORMAL" / "person0_virus_99.png") in kept.paths


def test_dropping_leaves_one_of_every_image_and_none_with_two_labels(
    tmp_path: Path, look: Callable[..., Audit]
) -> None:
    root = plant(tmp_path / "clinic")
    drawn(0).save(root / "NORMAL" / "copy0.png")
    jpeg(drawn(1), 50).save(root / "PNEUMONIA" / "copy1.png")
    drawn(2).save(root / "PNEUMONIA" / "copy2.png")
    dataset = data.scan(root)
    kept = kept_of(dataset, look(dataset))
    gone = {Path(path).name for path in set(dataset.paths) - set(kept.paths)}
    assert gone == {"copy0.png", "copy1.png", "002.png", "copy2.png"}
    again = look(kept)
    assert again.exact_duplicates == again.near_duplicates == again.contradictions == ()


# --- what else is wrong ---


def test_unreadable_images_are_named_with_their_reasons(tmp_path: Path, look: Callable[..., Audit]) -> None:
    root = plant(tmp_path / "clinic")
    (root / "NORMAL" / "broken.png").write_bytes(b"no image")
    (root / "NORMAL" / "empty.png").write_bytes(b"")
    found = look(root)
    assert found.unreadable[str(root / "NORMAL" / "empty.png")] == "it is empty"
    assert set(map(os.path.basename, found.unreadable)) == {"broken.png", "empty.png"}
    assert found.errors == ()
    assert "2 images cannot be read: clinic/NORMAL/broken.png (it is not a JPEG" in found.warnings[0]
    assert "; clinic/NORMAL/empty.png (it is empty)" in found.warnings[0]


def test_too_few_images_and_patients(tmp_path: Path, look: Callable[..., Audit]) -> None:
    dataset = data.scan(plant(tmp_path / "clinic"))
    assert "NORMAL has only 6 images of 6 patients: too few to train on or to measure with" in look(dataset).warnings
    one_patient = replace(dataset, patients=("x",) * 12)
    assert (
        "PNEUMONIA has only 6 images of 1 patient: too few to train on or to measure with" in look(one_patient).warnings
    )


def test_unknown_patients_are_counted(tmp_path: Path, look: Callable[..., Audit]) -> None:
    dataset = replace(data.scan(plant(tmp_path / "clinic")), patients=("x", None, None, *"abcdefghi"))
    text = (
        "2 images of clinic without a patient, so a split may put two of one patient on both sides: "
        "a manifest or patient_pattern can name them"
    )
    assert text in look(dataset).warnings


def test_false_colour_is_named_per_source(tmp_path: Path, look: Callable[..., Audit]) -> None:
    colours = pytest.importorskip("matplotlib").colormaps
    for source, saved in (("plain", ()), ("bright", ("viridis", "viridis", "jet"))):
        for i, image in enumerate(phantom.draw(seed=seed) for seed in range(4)):
            path = tmp_path / source / ("NORMAL", "PNEUMONIA")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(image)
            Image.fromarray(colours[saved[i]](pixels, bytes=True)[..., :3] if i < len(saved) else pixels).save(path)
    found = look([tmp_path / "plain", tmp_path / "bright"])
    coloured = [text.partition(":")[0] for text in found.warnings if "false colour" in text]
    assert coloured == [
        "2 images of bright in false colour (viridis), turned back to grey",
        "1 image of bright in false colour (jet), turned back to grey",
    ]
    assert set(coloured) <= set(found.remarks)  # the card says so, too
    assert found.errors == ()


def test_a_source_with_one_class_is_named(tmp_path: Path, look: Callable[..., Audit]) -> None:
    plant(tmp_path / "a")
    for name, label in (("b", "NORMAL"), ("c", "PNEUMONIA")):
        for i in range(6):
            (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
            drawn(50 + i + 10 * (name == "c")).save(tmp_path / name / label / f"{i}.png")
    found = look([tmp_path / name for name in "abc"])
    assert [text for text in found.warnings if "only: a network" in text] == [
        f"{name} has images of {label} only: a network may learn to tell {name} instead of the disease. "
        "Every source should have every class"
        for name, label in (("b", "NORMAL"), ("c", "PNEUMONIA"))
    ]


def confounded(tmp_path: Path, alter: Callable[[Image.Image, int], Image.Image], suffix: str = "png") -> Path:
    """Thirty images a class; what `alter` makes of an image may depend on its class."""
    for i in range(60):
        path = tmp_path / "clinic" / ("NORMAL", "PNEUMONIA")[i % 2] / f"{i:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        alter(drawn(i, 96 + i // 2 % 7), i % 2).save(path)
    return tmp_path / "clinic"


def framed(picture: Image.Image, positive: int) -> Image.Image:
    """With a bar at the side, so narrow that it is not cut off."""
    frame = Image.new("L", (130, 130))
    frame.paste(picture.resize((113, 130) if positive else (130, 130)), (17, 0) if positive else (0, 0))
    return frame


@pytest.mark.parametrize(
    ("attribute", "alter", "typical"),
    [
        (
            "size",
            lambda x, positive: x.resize((120 + x.width, 120 + x.width)) if positive else x,
            {"PNEUMONIA": "219", "NORMAL": "99"},
        ),
        (
            "aspect ratio",
            lambda x, positive: x.resize((x.width * 3 // 2, x.width)) if positive else x,
            {"PNEUMONIA": "1.5", "NORMAL": "1"},
        ),
        (
            "bit depth",
            lambda x, positive: Image.fromarray(np.asarray(x).astype(np.uint16) * 257) if positive else x,
            {"PNEUMONIA": "16", "NORMAL": "8"},
        ),
        (
            "colour",
            lambda x, positive: Image.merge("RGB", (x, x, x.point(lambda v: v // 2))) if positive else x,
            {"NORMAL": "0"},
        ),
        ("border", framed, {"NORMAL": "0"}),
    ],
)
def test_what_tells_the_classes_apart_is_named(
    tmp_path: Path,
    look: Callable[..., Audit],
    attribute: str,
    alter: Callable[[Image.Image, int], Image.Image],
    typical: dict[str, str],
) -> None:
    found = look(confounded(tmp_path, alter))
    [confounder] = [c for c in found.confounders if c.attribute == attribute]
    assert (confounder.source, confounder.label) == ("clinic", "PNEUMONIA")
    assert confounder.auroc > 0.95
    assert confounder.typical.items() >= typical.items()
    assert f"in clinic, {attribute} alone tells PNEUMONIA apart with an AUROC of 1.00 (PNEUMONIA: " in "\n".join(
        found.warnings
    )


def test_equal_classes_have_no_confounder(tmp_path: Path, look: Callable[..., Audit]) -> None:
    assert look(confounded(tmp_path, lambda x, _: x)).confounders == ()


def test_columns_and_file_types_are_looked_at(tmp_path: Path, look: Callable[..., Audit]) -> None:
    dataset = data.scan(confounded(tmp_path, lambda x, _: x))
    age = tuple(str(4 + t + i % 3) if t == 0 else str(40 + i % 30) for i, t in enumerate(dataset.targets))
    view = tuple("AP" if t else ("PA", "PA", "AP")[i % 3] for i, t in enumerate(dataset.targets))
    positive = tuple(str(t) for t in dataset.targets)
    found = look(replace(dataset, columns={"Patient Age": age, "View_Position": view, "diagnosis": positive}))
    assert [(c.attribute, round(c.auroc, 2)) for c in found.confounders] == [
        ("Patient Age", 1.0),
        ("View_Position", 0.83),
    ]
    assert found.confounders[1].typical == {"PNEUMONIA": "AP", "NORMAL": "PA"}


def test_sources_that_tell_the_classes_apart(tmp_path: Path, look: Callable[..., Audit]) -> None:
    dataset = data.scan(confounded(tmp_path, lambda x, _: x))
    sources = tuple("a" if (t == 0) != (i % 12 < 2) else "b" for i, t in enumerate(dataset.targets))
    found = look(replace(dataset, sources=sources))
    [confounder] = [c for c in found.confounders if c.attribute == "source"]
    assert confounder.source == ""
    assert confounder.auroc == pytest.approx(0.83, abs=0.02)
    assert str(confounder).startswith("source alone tells PNEUMONIA apart with an AUROC of 0.8")


def test_one_of_three_classes(tmp_path: Path, look: Callable[..., Audit]) -> None:
    dataset = data.scan(confounded(tmp_path, lambda x, _: x))
    targets = np.arange(60) % 3
    view = tuple("portable" if t == 1 else "fixed" for t in targets)
    found = look(replace(dataset, targets=targets, labels=("NORMAL", "TB", "COVID"), columns={"view": view}))
    assert [(c.attribute, c.label, c.typical) for c in found.confounders] == [
        ("view", "TB", {"TB": "portable", "others": "fixed"})
    ]


# --- in and out ---


def test_json(tmp_path: Path, look: Callable[..., Audit]) -> None:
    root = splits(tmp_path / "clinic")
    drawn(0).save(root / "test" / "PNEUMONIA" / "person0_virus_7.png")
    (root / "test" / "NORMAL" / "bad.png").write_bytes(b"")
    found = look(root)
    plain = json.loads(found.to_json())
    assert plain == found.to_dict()
    leak = [
        str(root / "test" / "PNEUMONIA" / "person0_virus_7.png"),
        str(root / "train" / "NORMAL" / "person0_virus_0.png"),
    ]
    assert plain["exact_duplicates"] == [leak]
    assert plain["near_duplicates"] == []
    assert plain["patient_overlap"] == [{"patient": "person0_virus", "splits": {"test": leak[:1], "train": leak[1:]}}]
    assert plain["contradictions"] == [[[leak[0], "PNEUMONIA"], [leak[1], "NORMAL"]]]
    assert plain["unreadable"] == [{"path": str(root / "test" / "NORMAL" / "bad.png"), "reason": "it is empty"}]
    assert plain["surplus"] == 1
    assert plain["n"] == 18
    assert len(plain["errors"]) == 2


def test_long_lists_are_cut_in_sentences_only(tmp_path: Path, look: Callable[..., Audit]) -> None:
    root = plant(tmp_path / "clinic", 7)
    for i in range(7):
        for copy in range(6):
            drawn(i).save(root / ("NORMAL", "PNEUMONIA")[i % 2] / f"{i}copy{copy}.png")
    found = look(root)
    assert found.surplus == 42
    assert sum(map(len, found.exact_duplicates)) == 49
    [text] = [text for text in found.warnings if "surplus" in text]
    assert text.count(" and 2 more;") == 4
    assert text.endswith(" and 2 more and 2 more")


def test_the_audit_decodes_into_the_cache_of_the_training(
    tmp_path: Path, look: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = data.scan(plant(tmp_path / "clinic"))
    look(dataset)
    monkeypatch.setattr("cxrlib.images.decode.read", lambda *_, **__: pytest.fail("decoded twice"))
    cache.decode(dataset, progress=False)


# --- real images ---


@real
def test_native_images_are_found_again_among_their_small_copies(look: Callable[..., Audit]) -> None:
    native = data.scan(SHARED / "data" / "native").take(range(0, 120, 10))
    small = data.scan(SHARED / "data" / "chest_xray" / "train")
    kept = {Path(path).name for path in native.paths}
    others = [i for i, path in enumerate(small.paths) if Path(path).name in kept or i % 40 == 0]
    small = small.take(others)
    both = Dataset(
        native.paths + small.paths,
        np.concatenate([native.targets, small.targets]),
        native.labels,
        native.patients + small.patients,
        native.sources + small.sources,
        ("test",) * len(native) + small.splits,
    )
    found = look(both)
    groups = names(found.near_duplicates)
    assert len(groups) == 12
    assert all(len(group) == 2 and group[0] == group[1] for group in groups)
    assert len(found.errors) == 2
    assert found.errors[0].startswith("12 images in two splits")
    assert len(kept_of(both, found)) == len(both) - sum(p in set(native.patients) for p in small.patients)


@real
@pytest.mark.slow
def test_untouched_real_images(look: Callable[..., Audit]) -> None:
    whole = data.scan([SHARED / "data" / name for name in ("chest_xray", "nih", "rsna")])
    found = look(whole)
    assert found.errors == ()
    assert found.near_duplicates == ()
    assert found.contradictions == ()
    assert found.confounders == ()
    split_of = dict(zip(whole.paths, whole.splits, strict=True))
    surplus = Counter[str | None]()
    for group in found.exact_duplicates:
        [part] = {split_of[path] for path in group}  # none across splits
        surplus[part] += len(group) - 1
    assert surplus == {"train": 26, "test": 6}


@real
@pytest.mark.slow
def test_planted_among_real_images(tmp_path: Path, look: Callable[..., Audit]) -> None:
    whole = data.scan([SHARED / "data" / name for name in ("nih", "rsna")])
    chosen = np.random.default_rng(5).permutation(len(whole))[: 5 * len(ALTERED)]
    planted: dict[str, str] = {}
    for k, i in enumerate(chosen.tolist()):
        how = list(ALTERED)[k % len(ALTERED)]
        path = str(tmp_path / f"{k}.png")
        with Image.open(whole.paths[i]) as picture:
            ALTERED[how](picture.convert("L")).save(path)
        planted[path] = whole.paths[i]
    m = len(planted)
    both = Dataset(
        whole.paths + tuple(planted),
        np.concatenate([whole.targets, whole.targets[chosen]]),
        whole.labels,
        (None,) * (len(whole) + m),
        whole.sources + ("planted",) * m,
        ("train",) * len(whole) + ("test",) * m,
    )
    found = look(both)
    expected = {frozenset(pair) for pair in planted.items()}
    assert {frozenset(group) for group in (*found.near_duplicates, *found.exact_duplicates)} == expected
    assert found.errors[0].startswith(f"{m} images in two splits")
