"""Configs: checked when made, strict when read."""

import dataclasses
import json
import math
import re

import pytest

from cxrlib.bundle import read_config
from cxrlib.config import (
    RECIPES,
    Augmentation,
    BundleConfig,
    BundleError,
    DefaultRecipe,
    OperatingPoint,
    SourceSummary,
    TextbookRecipe,
    check_file_name,
    check_labels,
    from_dict,
    recipe_of,
    to_dict,
)


def make(**changes):
    fields = {
        "labels": ("NORMAL", "PNEUMONIA"),
        "image_size": 224,
        "decoder": 1,
        "preprocessing": "words",
        "temperature": 1.5,
        "recipe": DefaultRecipe(epochs=3, augmentation=Augmentation(gamma=0.1)),
        "probe": (0.9, 0.1),
        "operating_points": {"screening": OperatingPoint(0.3, 0.98, 0.9, {"nih": (0.97, -1.0)})},
        "default_point": "screening",
        "sources": (SourceSummary("nih", {"NORMAL": 3}, {"NORMAL": 1}, None),),
        "gate": {"any": [1, {"plain": "json"}]},
        "files": {"model.tflite": "0" * 64, "figures/roc.png": "a" * 64},
    }
    return BundleConfig(**{**fields, **changes})


@pytest.mark.parametrize("recipe", [DefaultRecipe(epochs=3), TextbookRecipe(augmentation=Augmentation(gamma=0.1))])
def test_a_config_survives_json(recipe):
    config = make(recipe=recipe)
    assert from_dict(BundleConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("labels", [["NORMAL"], "NORMAL", ["A", "A"], ["A", ""], ["A", 3]])
def test_labels_must_be_two_different_names(labels):
    with pytest.raises(
        ValueError, match=r"labels must be two or more different, non-empty class names\. Received: labels="
    ):
        check_labels(labels)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Augmentation, {"rotation": 181.0}, r"rotation must lie in \[0, 180\]"),
        (Augmentation, {"zoom": 0.5}, r"zoom must lie in \[0, 0.45\]"),
        (Augmentation, {"blur": -0.1}, r"blur must lie in \[0, 1\]"),
        (Augmentation, {"flip": 1}, r"flip must be bool\. Received: 1"),
        (DefaultRecipe, {"epochs": -1}, r"epochs must lie in \[0, 1000\]\. Received: epochs=-1"),
        (DefaultRecipe, {"learning_rate": math.nan}, "learning_rate must lie in"),
        (DefaultRecipe, {"dropout": True}, r"dropout must be float\. Received: True"),
        (DefaultRecipe, {"batch_size": 8.5}, r"batch_size must be int\. Received: 8\.5"),
        (DefaultRecipe, {"seed": 2**31}, "seed must lie in"),
        (DefaultRecipe, {"seed": "a"}, r"seed must be int\. Received: 'a'"),
        (DefaultRecipe, {"image_size": 200}, r"image_size must be a multiple of 32\. Received: image_size=200"),
        (DefaultRecipe, {"augmentation": {"rotation": 5.0}}, r"augmentation must be of Augmentation\. Received: augm"),
        (TextbookRecipe, {"patience": 0}, r"patience must lie in \[1, 1000\]"),
        (TextbookRecipe, {"dense_units": 0}, r"dense_units must lie in \[1, 4096\]"),
        (OperatingPoint, {"threshold": 1.1, "sensitivity": 1.0, "specificity": 1.0}, r"threshold must lie in \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_named(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


@pytest.mark.parametrize("kind", [*RECIPES.values(), Augmentation])
def test_every_range_is_checked(kind):
    for field in dataclasses.fields(kind):
        if field.type in ("int", "float"):
            with pytest.raises(ValueError, match=f"{field.name} must lie in"):
                kind(**{field.name: -1})


def test_recipes_are_found_by_name_and_by_settings():
    assert recipe_of("default") == DefaultRecipe()
    assert recipe_of("textbook") == TextbookRecipe()
    mine = TextbookRecipe(epochs=3)
    assert recipe_of(mine) is mine
    assert recipe_of(to_dict(mine)) == mine
    assert recipe_of({"epochs": 3}) == DefaultRecipe(epochs=3)
    settings = {"name": "textbook", "augmentation": {"zoom": 0.2}}
    assert recipe_of(settings) == TextbookRecipe(augmentation=Augmentation(zoom=0.2))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("resnet", "recipe must be one of default, textbook, or a recipe object. Received: recipe='resnet'"),
        (None, "recipe must be one of default, textbook, or a recipe object. Received: recipe=None"),
        ({"name": ["default"]}, "recipe must be one of default, textbook"),
        ({"name": "textbook", "ema": 0.5}, "the textbook recipe has unknown fields: ema. Known: image_size"),
        ({"name": "default", "patience": 2, "tilt": 1}, "the default recipe has unknown fields: patience, tilt. Known"),
        ({"augmentation": {"tilt": 1}}, "the default recipe.augmentation has unknown fields: tilt. Known: rotation"),
        ({"epochs": "3"}, "the default recipe.epochs must be int. Received: '3'"),
    ],
)
def test_a_recipe_that_does_not_exist_or_lacks_a_setting_is_named(recipe, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe_of(recipe)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"probe": (0.5,)}, ValueError, "probe must hold one probability per label. Received: 1 for 2 labels"),
        (
            {"default_point": "other"},
            ValueError,
            r"default_point must name one of the operating points \['screening'\]. Received: 'other'",
        ),
        ({"default_point": None}, ValueError, "default_point must name one"),
        ({"temperature": 0.0}, ValueError, "temperature must lie in"),
        ({"schema": 1}, BundleError, "the bundle has schema 1, this cxrlib reads schema 2. Train it again"),
        ({"files": {"../model.tflite": "0" * 64}}, BundleError, "unsafe name"),
        ({"files": {"model.tflite": "0" * 63}}, BundleError, "which is not a SHA-256"),
    ],
)
def test_a_bundle_config_is_checked(changes, kind, message):
    with pytest.raises(kind, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "..", "../x", "a/../b", "a/b/c", "a\\b", ".hidden", "a/.hidden", "", "a\nb", "C:x", "x" * 201, "ä"],
)
def test_file_names_stay_inside_the_bundle(name):
    with pytest.raises(BundleError, match="unsafe name"):
        check_file_name(name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "config must be an object with named fields. Received: list"),
        ({"rotation": 1.0, "tilt": 2}, "config has unknown fields: tilt. Known: rotation"),
        ({"rotation": "1"}, r"config.rotation must be float. Received: '1'"),
        ({"rotation": True}, r"config.rotation must be float. Received: True"),
        ({"flip": 1}, r"config.flip must be bool. Received: 1"),
    ],
)
def test_reading_is_strict(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Augmentation, data)


def test_missing_and_nested_fields_are_named_with_their_place():
    with pytest.raises(ValueError, match=r"config lacks: sensitivity, specificity"):
        from_dict(OperatingPoint, {"threshold": 0.5})
    data = to_dict(make())
    data["recipe"]["augmentation"]["gamma"] = "much"
    with pytest.raises(ValueError, match=r"the default recipe.augmentation.gamma must be float. Received: 'much'"):
        from_dict(BundleConfig, data)
    data = to_dict(make())
    data["operating_points"]["screening"]["by_source"]["nih"] = [1.0]
    with pytest.raises(ValueError, match=r"by_source.nih must be tuple\[float, float\]"):
        from_dict(BundleConfig, data)


def test_a_bundle_of_version_0_1_is_told_from_a_damaged_one():
    old = {**to_dict(make()), "schema": 1, "training": {"epochs": 6}}
    del old["recipe"]
    with pytest.raises(BundleError, match=r"config\.json has schema 1.*0\.1.*train it again"):
        read_config(json.dumps(old).encode())
