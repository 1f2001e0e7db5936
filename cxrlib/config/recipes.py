"""What a training run is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cxrlib.config.plain import check_between, check_types, named


@dataclass(frozen=True)
class Augmentation:
    """How much an image may be changed while training. Each change is drawn anew for every image; 0 leaves it out.

    Args:
        rotation: Largest rotation, in degrees.
        zoom: Largest relative change of width and of height, each drawn by itself.
        shift: Largest shift, as a part of the image's side.
        flip: Whether half of the images are mirrored left to right.
        gamma: Largest natural logarithm of the exponent applied to intensities in [0, 1].
        blur: Probability of a Gaussian blur.
        low_resolution: Probability that an image is reduced to a half or a quarter of its side and enlarged again.
        erase: Probability that a rectangle is painted over.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> Augmentation(rotation=5.0).rotation
        5.0
    """

    rotation: float = 10.0
    zoom: float = 0.15
    shift: float = 0.06
    flip: bool = True
    gamma: float = 0.5
    blur: float = 0.5
    low_resolution: float = 0.4
    erase: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)
        check_between(self, "rotation", 0, 180)
        for name in ("zoom", "shift"):
            check_between(self, name, 0, 0.45)
        for name in ("blur", "low_resolution", "erase"):
            check_between(self, name, 0, 1)
        check_between(self, "gamma", 0, 2)


@dataclass(frozen=True)
class DefaultRecipe:
    """The recipe of the bundled model: standardised images, fine-tuning from the third block.

    Args:
        backbone: A name in `cxrlib.network.model.BACKBONES`.
        image_size: Height and width of the network's input, in pixels; a multiple of 32.
        dense_units: Units of a ReLU layer between pooling and output; 0 for none.
        dropout: Part of the features that is dropped while training, in [0, 1).
        epochs: Epochs of fine-tuning; 0 trains the head alone.
        batch_size: Images per step.
        learning_rate: Its peak; it rises for a twentieth of the steps and falls along a cosine.
        weight_decay: Of AdamW.
        label_smoothing: Part of each target that is given to the other classes, in [0, 1).
        ema: Momentum of the exponential moving average of the weights, which is what is kept; 0 keeps the last weights.
        source_power: A source of n images is drawn in proportion to n to this power: 1 by its size, 0 all alike.
        validation: Part of the patients set aside for validation, in (0, 1).
        precision: `"auto"` is mixed on a GPU and float32 elsewhere; or a Keras dtype policy.
        seed: Of the split, the draws, the augmentation and the initial weights.
        augmentation: How much images are changed while training.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> DefaultRecipe(epochs=3).batch_size
        32
    """

    backbone: str = "mobilenet_v2"
    image_size: int = 224
    dense_units: int = 0
    dropout: float = 0.3
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 1e-3
    label_smoothing: float = 0.05
    ema: float = 0.998
    source_power: float = 1.0
    validation: float = 0.15
    precision: str = "auto"
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    name: str = field(default="default", init=False)

    def __post_init__(self) -> None:
        _check_recipe(self)


@dataclass(frozen=True)
class TextbookRecipe:
    """The network of the usual notebook: frozen MobileNetV2, global average pooling, a dense layer, dropout, sigmoid.

    Args:
        image_size: Height and width of the network's input, in pixels; a multiple of 32.
        dense_units: Units of the fully connected ReLU layer.
        dropout: Part of its outputs that is dropped while training, in [0, 1).
        epochs: Most epochs.
        patience: Training stops after so many epochs without a better validation AUROC; the best epoch is kept.
        batch_size: Images per step.
        learning_rate: Of Adam.
        validation: Part of the patients set aside for validation, in (0, 1).
        precision: `"auto"` is mixed on a GPU and float32 elsewhere; or a Keras dtype policy.
        seed: Of the split, the order, the augmentation and the initial weights.
        augmentation: How much images are changed while training.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> TextbookRecipe().epochs
        12
    """

    image_size: int = 224
    dense_units: int = 128
    dropout: float = 0.3
    epochs: int = 12
    patience: int = 4
    batch_size: int = 32
    learning_rate: float = 1e-3
    validation: float = 0.15
    precision: str = "auto"
    seed: int = 0
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(10.0, 0.1, 0.1, True, gamma=0.0, blur=0.0, low_resolution=0.0, erase=0.0)
    )
    name: str = field(default="textbook", init=False)

    def __post_init__(self) -> None:
        _check_recipe(self)
        check_between(self, "dense_units", 1, 4096)


Recipe: TypeAlias = DefaultRecipe | TextbookRecipe
RECIPES: dict[str, type[DefaultRecipe] | type[TextbookRecipe]] = {"default": DefaultRecipe, "textbook": TextbookRecipe}
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (32, 2048),
    "dense_units": (0, 4096),
    "dropout": (0, 0.95),
    "epochs": (0, 1000),
    "patience": (1, 1000),
    "batch_size": (1, 4096),
    "learning_rate": (1e-8, 1),
    "weight_decay": (0, 1),
    "label_smoothing": (0, 0.95),
    "ema": (0, 0.9999),
    "source_power": (0, 1),
    "validation": (0.01, 0.9),
    "seed": (0, 2**31 - 1),
}


def _check_recipe(recipe: Recipe) -> None:
    check_types(recipe)
    for name, (low, high) in _RANGES.items():
        if hasattr(recipe, name):
            check_between(recipe, name, low, high)
    if recipe.image_size % 32:
        raise ValueError(f"image_size must be a multiple of 32. Received: image_size={recipe.image_size}")


def recipe_of(recipe: str | Recipe | Mapping[str, Any]) -> Recipe:
    """Find a recipe by its name, or read one from JSON types.

    Args:
        recipe: `"default"` or `"textbook"`; a recipe; or its settings by name, `name` among them.

    Returns:
        The recipe.

    Raises:
        ValueError: If there is no such recipe, or it does not have a setting.

    Example:
        >>> recipe_of("textbook").dense_units
        128
        >>> recipe_of({"name": "textbook", "epochs": 10}).epochs
        10
    """
    found: Recipe = named(RECIPES, recipe, "recipe")
    return found
