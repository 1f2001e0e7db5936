"""What a training run and a bundle are made of: frozen dataclasses, checked when made, to and from JSON."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np

SCHEMA = 2
DEFAULT_LABELS = ("NORMAL", "PNEUMONIA")
_ADVICE = "Train it again with this version, or install the version of cxrlib that made it."
DISCLAIMER = "Decision support and research software, not a medical device: it does not replace a radiologist."

T = TypeVar("T")


class BundleError(ValueError):
    """A bundle that cannot be trusted: a file is missing, altered, of another schema, or gives wrong answers."""


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Check the class names of a classifier.

    Args:
        labels: Two or more different names, the normal class first.

    Returns:
        The names as a tuple.

    Raises:
        ValueError: If there are fewer than two names, or one is empty or given twice.

    Example:
        >>> check_labels(["NORMAL", "PNEUMONIA"])
        ('NORMAL', 'PNEUMONIA')
    """
    if (
        isinstance(labels, str)
        or len(labels) < 2
        or len(set(labels)) != len(labels)
        or not all(isinstance(x, str) and x for x in labels)
    ):
        raise ValueError(f"labels must be two or more different, non-empty class names. Received: labels={labels!r}")
    return tuple(labels)


def _between(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}]. Received: {name}={value!r}")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it achieved on the validation images.

    Args:
        threshold: Calibrated probability from which on an image is called positive, in [0, 1].
        sensitivity: Part of the positive validation images called positive, all sources together.
        specificity: Part of the negative validation images called negative, all sources together.
        by_source: For each source, its own `(sensitivity, specificity)`; -1 where a source lacks the class.

    Raises:
        ValueError: If the threshold is not in [0, 1].

    Example:
        >>> OperatingPoint(threshold=0.4, sensitivity=0.98, specificity=0.9).threshold
        0.4
    """

    threshold: float
    sensitivity: float
    specificity: float
    by_source: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _between(self, "threshold", 0, 1)


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
        _check_types(self)
        _between(self, "rotation", 0, 180)
        for name in ("zoom", "shift"):
            _between(self, name, 0, 0.45)
        for name in ("blur", "low_resolution", "erase"):
            _between(self, name, 0, 1)
        _between(self, "gamma", 0, 2)


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
        _between(self, "dense_units", 1, 4096)


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
    _check_types(recipe)
    for name, (low, high) in _RANGES.items():
        if hasattr(recipe, name):
            _between(recipe, name, low, high)
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
    if isinstance(recipe, (DefaultRecipe, TextbookRecipe)):
        return recipe
    settings = dict(recipe) if isinstance(recipe, Mapping) else {"name": recipe}
    name = settings.pop("name", "default")
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(
            f"recipe must be one of {', '.join(RECIPES)}, or a recipe object. Received: recipe={name!r:.80}"
        )
    return from_dict(RECIPES[name], settings, where=f"the {name} recipe")


@dataclass(frozen=True)
class SourceSummary:
    """What one source brought to a training run.

    Args:
        name: Of the source.
        train: Images trained on, by label.
        validation: Images validated on, by label.
        patients: Number of known patients, or `None`.

    Example:
        >>> SourceSummary("nih", {"NORMAL": 218}, {"NORMAL": 38}, 480).name
        'nih'
    """

    name: str
    train: dict[str, int]
    validation: dict[str, int]
    patients: int | None


@dataclass(frozen=True)
class Array:
    """A float array as JSON can hold it.

    Args:
        shape: Its shape.
        dtype: `float16` or `float32`.
        data: Its bytes, little-endian and row by row, in base64.

    Raises:
        ValueError: If they do not belong together, or a value is not finite.

    Example:
        >>> Array.pack(np.ones((2, 3))).numpy().shape
        (2, 3)
    """

    shape: tuple[int, ...]
    dtype: str
    data: str

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32") or any(n < 1 for n in self.shape):
            raise ValueError(
                f"an array must be float16 or float32 and not empty. Received: dtype={self.dtype!r}, shape={self.shape}"
            )
        try:
            raw = base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"an array's data must be base64 ({error})") from error
        if len(raw) != math.prod(self.shape) * np.dtype(self.dtype).itemsize:
            raise ValueError(
                "an array's data must fill its shape. "
                f"Received: {len(raw)} bytes for shape={self.shape}, dtype={self.dtype}"
            )
        if not np.isfinite(self.numpy()).all():
            raise ValueError("an array's values must be finite")

    @classmethod
    def pack(cls, values: np.ndarray, dtype: str = "float32") -> Array:
        """Pack values.

        Args:
            values: ndarray of any shape.
            dtype: `float16` or `float32`.

        Returns:
            The array.
        """
        little = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
        return cls(tuple(map(int, little.shape)), dtype, base64.b64encode(little.tobytes()).decode())

    def numpy(self) -> np.ndarray:
        """Unpack the values: an ndarray of shape `shape`, float32."""
        flat = np.frombuffer(base64.b64decode(self.data), np.dtype(self.dtype).newbyteorder("<"))
        return flat.reshape(self.shape).astype(np.float32)


@dataclass(frozen=True)
class BundleConfig:
    """Everything about a bundle but its weights: what `config.json` holds.

    Args:
        schema: Version of this format.
        labels: Class names, the normal class first.
        image_size: Height and width of the input, in pixels.
        decoder: Version of the path from a file to the input.
        preprocessing: The same in words.
        temperature: What the network's logits are divided by.
        operating_points: Thresholds on the probability of the positive class, by name.
        default_point: The one used when none is named.
        recipe: The recipe.
        sources: What the network was trained on.
        fingerprint: SHA-256 over the content and label of every image of these sources.
        split: SHA-256 over the images' names and sides.
        notes: What a reader must know, such as overridden leaks.
        population: Who the patients are, in words; `None` when not stated.
        license: Licence of the weights as the Hub abbreviates it; `None` when not stated.
        gate: Statistics of the gate as plain JSON, or `None` when the bundle has no gate.
        normal_evidence: Array of shape (h, w, k): mean plus one standard deviation of the evidence of normal validation
            images, which heatmaps leave out; `None` for none.
        probe: Raw probabilities that the network must give for the probe image.
        versions: Of cxrlib and of the libraries that made the bundle.
        files: SHA-256 of every other file, hexadecimal, by name.

    Raises:
        BundleError: If the schema is not the one this version reads, a file name is unsafe or a hash is not one.
        ValueError: If another value is not valid.

    Example:
        >>> what = {"labels": ("NORMAL", "PNEUMONIA"), "image_size": 224, "decoder": 1, "preprocessing": ""}
        >>> BundleConfig(**what, temperature=1.0, recipe=DefaultRecipe(), probe=(0.9, 0.1)).schema
        2
    """

    labels: tuple[str, ...]
    image_size: int
    decoder: int
    preprocessing: str
    temperature: float
    recipe: Recipe
    probe: tuple[float, ...]
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)
    default_point: str | None = None
    sources: tuple[SourceSummary, ...] = ()
    fingerprint: str | None = None
    split: str | None = None
    notes: tuple[str, ...] = ()
    population: str | None = None
    license: str | None = None
    gate: dict[str, Any] | None = None
    normal_evidence: Array | None = None
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise BundleError(f"the bundle has schema {self.schema}, this cxrlib reads schema {SCHEMA}. {_ADVICE}")
        check_labels(self.labels)
        _between(self, "image_size", 32, 2048)
        _between(self, "temperature", 1e-3, 1e3)
        if len(self.probe) != len(self.labels):
            raise ValueError(
                f"probe must hold one probability per label. Received: {len(self.probe)} for {len(self.labels)} labels"
            )
        if (self.default_point is None) == bool(self.operating_points) or self.default_point not in (
            *self.operating_points,
            None,
        ):
            raise ValueError(
                f"default_point must name one of the operating points {sorted(self.operating_points)}. "
                f"Received: {self.default_point!r}"
            )
        for name, digest in self.files.items():
            check_file_name(name)
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise BundleError(f"the bundle lists {name} with {digest!r:.80}, which is not a SHA-256")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config into plain JSON types.

    Args:
        config: Any dataclass of this module.

    Returns:
        Nested dicts and lists.

    Example:
        >>> to_dict(OperatingPoint(threshold=0.4, sensitivity=0.98, specificity=0.9))["sensitivity"]
        0.98
    """
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_dict(kind: type[T], data: Any, *, where: str = "config") -> T:
    """Build a config from JSON types, strictly: unknown, missing and ill-typed fields are errors.

    Args:
        kind: The dataclass to build.
        data: What `to_dict` gave.
        where: How messages name the place.

    Returns:
        An instance of `kind`.

    Raises:
        ValueError: If a field is unknown, missing, of another type or out of range; the message names it.

    Example:
        >>> from_dict(Augmentation, {"rotation": 3.0}).rotation
        3.0
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object with named fields. Received: {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields), key=str):
        raise ValueError(f"{where} has unknown fields: {', '.join(map(str, unknown))}. Known: {', '.join(fields)}")
    optional = {
        n
        for n, f in fields.items()
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    }
    if missing := [name for name in fields if name not in data and name not in optional]:
        raise ValueError(f"{where} lacks: {', '.join(missing)}")
    return kind(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _check_types(config: Any) -> None:
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not dataclasses.is_dataclass(hint):
            _typed(hint, value, name)
        elif not isinstance(value, typing.cast(type, hint)):
            raise ValueError(f"{name} must be of {typing.cast(type, hint).__name__}. Received: {name}={value!r:.80}")


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if all(arg in RECIPES.values() for arg in args):
            return recipe_of(value)
        return _typed(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(Any, hint), value, where=where)
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is ...:
            return tuple(_typed(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) == len(args):
            return tuple(_typed(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(args, value, strict=True)))
    if origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _typed(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(
        f"{where} must be {getattr(hint, '__name__', hint) if origin is None else hint}. Received: {value!r:.80}"
    )


_SAFE_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.-]*/)?[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_file_name(name: str) -> str:
    """Check that a bundle's file name stays inside the bundle: at most one folder deep, plain characters.

    Args:
        name: A relative POSIX path such as `figures/roc.png`.

    Returns:
        The same name.

    Raises:
        BundleError: If the name could lead elsewhere.

    Example:
        >>> check_file_name("figures/roc.png")
        'figures/roc.png'
    """
    if len(name) > 200 or not _SAFE_NAME.fullmatch(name):
        raise BundleError(f"the bundle lists a file with an unsafe name: {name!r}")
    return name
