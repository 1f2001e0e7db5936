"""Configs: checked when made, strict when read."""

import dataclasses
import json
import math

import pytest

from cxrlib.config import (
    AugmentConfig,
    BundleConfig,
    BundleError,
    OperatingPoint,
    SourceSummary,
    TrainConfig,
    check_file_name,
    check_labels,
    from_dict,
    to_dict,
)


def make(**changes):
    fields = {
        "labels": ("NORMAL", "PNEUMONIA"),
        "image_size": 224,
        "decoder": 1,
        "preprocessing": "words",
        "temperature": 1.5,
        "training": TrainConfig(epochs=3, augment=AugmentConfig(gamma=0.1)),
        "probe": (0.9, 0.1),
        "operating_points": {"screening": OperatingPoint(0.3, 0.98, 0.9, {"nih": (0.97, -1.0)})},
        "default_point": "screening",
        "sources": (SourceSummary("nih", {"NORMAL": 3}, {"NORMAL": 1}, None),),
        "gate": {"any": [1, {"plain": "json"}]},
        "files": {"model.tflite": "0" * 64, "figures/roc.png": "a" * 64},
    }
    return BundleConfig(**{**fields, **changes})


def test_a_config_survives_json():
    config = make()
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
        (AugmentConfig, {"rotation": 181.0}, r"rotation must lie in \[0, 180\]"),
        (AugmentConfig, {"zoom": 0.5}, r"zoom must lie in \[0, 0.45\]"),
        (AugmentConfig, {"noise_std": -0.1}, r"noise_std must lie in \[0, 1\]"),
        (TrainConfig, {"epochs": -1}, r"epochs must lie in \[0, 1000\]. Received: epochs=-1"),
        (TrainConfig, {"learning_rate": math.nan}, r"learning_rate must lie in"),
        (TrainConfig, {"dropout": True}, r"dropout must be float\. Received: True"),
        (TrainConfig, {"batch_size": 8.5}, r"batch_size must be int\. Received: 8\.5"),
        (TrainConfig, {"seed": 2**31}, r"seed must lie in"),
        (TrainConfig, {"seed": "a"}, r"seed must be int\. Received: 'a'"),
        (
            TrainConfig,
            {"augment": {"rotation": 5.0}},
            r"augment must be of AugmentConfig\. Received: augment=\{'rotation'",
        ),
        (AugmentConfig, {"flip": 1}, r"flip must be bool\. Received: 1"),
        (
            TrainConfig,
            {"balance_by": "view"},
            r"balance_by must be a tuple of names of columns. Received: balance_by='view'",
        ),
        (
            TrainConfig,
            {"balance": "evenly"},
            r"balance must be 'sample', 'weights' or 'none'. Received: balance='evenly'",
        ),
        (OperatingPoint, {"threshold": 1.1, "sensitivity": 1.0, "specificity": 1.0}, r"threshold must lie in \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_named(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


def test_every_range_of_the_recipe_is_checked():
    for field in dataclasses.fields(TrainConfig):
        if field.type in ("int", "float") and field.name != "seed":
            with pytest.raises(ValueError, match=f"{field.name} must lie in"):
                TrainConfig(**{field.name: -1})


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
        ({"schema": 2}, BundleError, "the bundle has schema 2, this cxrlib reads schema 1"),
        ({"files": {"../model.tflite": "0" * 64}}, BundleError, "unsafe name"),
        ({"files": {"model.tflite": "0" * 63}}, BundleError, "which is no SHA-256"),
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
        from_dict(AugmentConfig, data)


def test_missing_and_nested_fields_are_named_with_their_place():
    with pytest.raises(ValueError, match=r"config lacks: sensitivity, specificity"):
        from_dict(OperatingPoint, {"threshold": 0.5})
    data = to_dict(make())
    data["training"]["augment"]["gamma"] = "much"
    with pytest.raises(ValueError, match=r"config.training.augment.gamma must be float. Received: 'much'"):
        from_dict(BundleConfig, data)
    data = to_dict(make())
    data["operating_points"]["screening"]["by_source"]["nih"] = [1.0]
    with pytest.raises(ValueError, match=r"by_source.nih must be tuple\[float, float\]"):
        from_dict(BundleConfig, data)


def test_a_recipe_may_name_one_column_or_many():
    for told, meant in (("view", ("view",)), ("", ()), ([], ()), (["view", "age"], ("view", "age"))):
        assert from_dict(TrainConfig, {"balance_by": told}).balance_by == meant
    with pytest.raises(ValueError, match="balance_by"):
        from_dict(TrainConfig, {"balance_by": 3})
