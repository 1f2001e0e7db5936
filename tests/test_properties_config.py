"""Any configuration, bundle, file name and address is read back the same, or refused with a reason."""

from __future__ import annotations

import contextlib
import copy
import json
import ntpath
import posixpath
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network

from cxrlib import bundle
from cxrlib.config import (
    RECIPES,
    Array,
    Augmentation,
    BundleConfig,
    BundleError,
    DefaultRecipe,
    OperatingPoint,
    TextbookRecipe,
    check_file_name,
    from_dict,
    recipe_of,
    to_dict,
)
from cxrlib.hub import parse_address
from cxrlib.runtime.gate import GateConfig

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

bounded = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PART = st.floats(0, 1)
AUGMENTATION = st.builds(
    Augmentation,
    rotation=st.floats(0, 180),
    zoom=st.floats(0, 0.45),
    flip=st.booleans(),
    gamma=st.floats(0, 2),
    erase=PART,
)
SIZE = st.integers(1, 64).map(lambda n: 32 * n)
SETTINGS = {
    "epochs": st.integers(0, 1000),
    "image_size": SIZE,
    "dropout": st.floats(0, 0.95),
    "seed": st.integers(0, 2**31 - 1),
    "augmentation": AUGMENTATION,
}
RECIPE = st.builds(DefaultRecipe, backbone=st.text(), ema=st.floats(0, 0.9999), **SETTINGS) | st.builds(
    TextbookRecipe, patience=st.integers(1, 1000), **SETTINGS
)
POINT = st.builds(
    OperatingPoint,
    threshold=PART,
    sensitivity=PART,
    specificity=PART,
    by_source=st.dictionaries(st.text(), st.tuples(PART, PART), max_size=3),
)


@st.composite
def bundles(draw: Any) -> BundleConfig:
    labels = tuple(draw(st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True)))
    points = draw(st.dictionaries(st.text(), POINT, max_size=3)) if len(labels) == 2 else {}
    return BundleConfig(
        labels=labels,
        image_size=draw(st.integers(32, 2048)),
        decoder=draw(st.integers()),
        preprocessing=draw(st.text()),
        temperature=draw(st.floats(1e-3, 1e3)),
        recipe=draw(RECIPE),
        probe=tuple(draw(st.lists(PART, min_size=len(labels), max_size=len(labels)))),
        operating_points=points,
        default_point=draw(st.sampled_from(sorted(points))) if points else None,
        notes=tuple(draw(st.lists(st.text(), max_size=2))),
        gate=draw(st.none() | st.dictionaries(st.text(), st.text(), max_size=2)),
        versions=draw(st.dictionaries(st.text(), st.text(), max_size=2)),
        files=draw(
            st.dictionaries(
                st.sampled_from(["model.tflite", "README.md", "figures/roc.png"]),
                st.text("0123456789abcdef", min_size=64, max_size=64),
            )
        ),
    )


@bounded
@given(st.one_of(bundles(), RECIPE, POINT))
def test_a_config_is_read_back_the_same(config: Any) -> None:
    text = json.dumps(to_dict(config), allow_nan=False)
    if isinstance(config, (DefaultRecipe, TextbookRecipe)):
        assert recipe_of(json.loads(text)) == config
    else:
        assert from_dict(type(config), json.loads(text)) == config
    if isinstance(config, BundleConfig):
        assert bundle.read_config(text.encode()) == config


@bounded
@given(st.sampled_from([Augmentation, OperatingPoint, *RECIPES.values(), BundleConfig, GateConfig]), JSON)
def test_any_json_is_a_config_or_a_value_error(kind: type[Any], value: Any) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(from_dict(kind, value), kind)
    with contextlib.suppress(ValueError):
        assert isinstance(recipe_of(value), tuple(RECIPES.values()))


CONFIG = json.loads(tiny_network.files()["config.json"])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@settings(bounded, max_examples=500)
@given(st.sampled_from(places(CONFIG)[1:]), JSON)
def test_a_config_with_another_value_anywhere_is_read_or_refused(place: tuple[Any, ...], value: Any) -> None:
    changed = copy.deepcopy(CONFIG)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with contextlib.suppress(BundleError):
        config = bundle.read_config(json.dumps(changed).encode())
        assert bundle.read_config(json.dumps(to_dict(config)).encode()) == config or value != value


@bounded
@given(st.one_of(st.binary(max_size=100), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_refused_as_a_config(data: bytes) -> None:
    with pytest.raises(BundleError):
        bundle.read_config(data)


# --- names and addresses ---


@settings(bounded, max_examples=500)
@given(st.one_of(st.text(max_size=20), st.text("ab./\\:~\0\n-_C ", max_size=12)))
def test_a_file_name_that_passes_stays_in_its_folder(name: str) -> None:
    try:
        check_file_name(name)
    except BundleError:
        return
    assert posixpath.normpath(name) == name
    assert not posixpath.isabs(name)
    assert ".." not in name.split("/")
    assert not any(part.startswith(".") for part in name.split("/"))
    assert ntpath.splitdrive(name)[0] == ""
    assert not ntpath.isabs(name)
    assert name.isascii()
    assert name.isprintable()


@settings(bounded, max_examples=500)
@given(
    st.one_of(
        st.text(max_size=30),
        st.text("hf:/ab@.-_ \n", max_size=20),
        st.text("ab@.-_/", max_size=12).map("hf://u/r".__add__),
    )
)
def test_an_address_that_passes_leads_nowhere_else(address: str) -> None:
    try:
        repo, revision = parse_address(address)
    except ValueError as error:
        assert repr(address) in str(error)  # noqa: PT017
        return
    assert address == f"hf://{repo}" + (f"@{revision}" if revision else "")
    for part in (repo, revision or "main"):
        assert ".." not in part
        assert part.isascii()
        assert not set(part) & set("\\?#%& \n\0:")
        assert not part.startswith("/")


# --- arrays in a config ---


@bounded
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float16]),
        hnp.array_shapes(max_dims=3, max_side=4),
        elements=st.floats(-100, 100, width=16),
    )
)
def test_an_array_survives_json(values: np.ndarray) -> None:
    packed = Array.pack(values, values.dtype.name)
    again = from_dict(Array, json.loads(json.dumps(to_dict(packed))))
    assert again == packed
    assert np.array_equal(again.numpy(), values.astype(np.float32))


@bounded
@given(
    st.lists(st.integers(-2, 2**40), max_size=5),
    st.sampled_from(["float16", "float32", "float64", "object", ""]),
    st.one_of(st.text(max_size=12), st.just("AAAAAA==")),
)
def test_any_array_is_sound_or_a_value_error(shape: list[int], dtype: str, data: str) -> None:
    with contextlib.suppress(ValueError):
        assert np.isfinite(from_dict(Array, {"shape": shape, "dtype": dtype, "data": data}).numpy()).all()


# --- whole bundles ---


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_network.write(tmp_path_factory.mktemp("bundles") / "made", tiny_network.files())


@bounded
@given(
    st.sampled_from(["config.json", "model.tflite", "README.md"]),
    st.integers(0, 10**6),
    st.integers(0, 255),
    st.sampled_from(["set", "cut", "add"]),
)
def test_a_bundle_with_any_byte_changed_is_refused_or_says_the_same(
    made: Path, name: str, at: int, byte: int, how: str
) -> None:
    """In config.json a byte may change what nothing was promised of, such as a name; every other file has its hash."""
    content = (made / name).read_bytes()
    at %= len(content)
    changed = {
        "set": content[:at] + bytes([byte]) + content[at + 1 :],
        "cut": content[:at],
        "add": content[:at] + bytes([byte]) + content[at:],
    }[how]
    folder = made.with_name("changed")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(changed)
    if name == "config.json" or changed == content:
        with contextlib.suppress(BundleError):
            bundle.load(folder, threads=1)
    else:
        with pytest.raises(BundleError, match=name.replace(".", r"\.")):
            bundle.load(folder, threads=1)
