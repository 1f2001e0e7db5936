"""Recipes and the config of a bundle: frozen dataclasses, checked when made, to and from JSON."""

from cxrlib.config.bundle import (
    DEFAULT_LABELS,
    DISCLAIMER,
    SCHEMA,
    Array,
    BundleConfig,
    BundleError,
    OperatingPoint,
    SourceSummary,
    check_file_name,
    check_labels,
)
from cxrlib.config.plain import from_dict, to_dict
from cxrlib.config.recipes import RECIPES, Augmentation, DefaultRecipe, Recipe, TextbookRecipe, recipe_of

__all__ = [
    "DEFAULT_LABELS",
    "DISCLAIMER",
    "RECIPES",
    "SCHEMA",
    "Array",
    "Augmentation",
    "BundleConfig",
    "BundleError",
    "DefaultRecipe",
    "OperatingPoint",
    "Recipe",
    "SourceSummary",
    "TextbookRecipe",
    "check_file_name",
    "check_labels",
    "from_dict",
    "recipe_of",
    "to_dict",
]
