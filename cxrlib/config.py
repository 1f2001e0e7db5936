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
from typing import Any, TypeVar

import numpy as np

SCHEMA = 1
DEFAULT_LABELS = ("NORMAL", "PNEUMONIA")
DISCLAIMER = "Decision support and research software, not a medical device: it does not replace a radiologist."

T = TypeVar("T")


class BundleError(ValueError):
    """A bundle that cannot be trusted: a file is missing, altered, of another schema, or gives other answers than it must."""


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Check the class names of a classifier.

    Args:
        labels: Two or more different names, the healthy class first.

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
class AugmentConfig:
    """How far a film may be changed while training; each change is drawn anew for every film.

    Args:
        rotation: Largest rotation, in degrees.
        zoom: Largest relative change of scale.
        aspect: Largest relative change of width against height.
        shift: Largest shift, as a part of the film's side.
        flip: Whether half of the films are mirrored left to right.
        gamma: Largest natural logarithm of the exponent put on intensities.
        window: Largest part of the intensity range that is clipped at either end.
        field: Largest relative change of brightness from one side of the film to the other.
        sharpen: Strongest unsharp mask, 1 doubling what a 5 x 5 binomial filter removes.
        blur: Strongest blur, 1 being that filter itself.
        coarse: Probability that a film loses half of its resolution.
        noise_std: Largest standard deviation of added Gaussian noise, intensities being in [0, 1].
        jpeg: Probability that a film goes through a lossy compression like JPEG's, of random strength.
        strip: Widest border that is painted over, as a part of the side.
        strip_rate: Probability, for each of the four borders, that it is.
        marker_rate: Probability that a letter-sized patch is painted over.
        local: Strongest local contrast enhancement, 1 giving every part of a film the same contrast; half of the films get none.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> AugmentConfig(rotation=5.0).rotation
        5.0
    """

    rotation: float = 10.0
    zoom: float = 0.15
    aspect: float = 0.08
    shift: float = 0.06
    flip: bool = True
    gamma: float = 0.5
    window: float = 0.12
    field: float = 0.15
    sharpen: float = 0.4
    blur: float = 0.5
    coarse: float = 0.1
    noise_std: float = 0.0
    jpeg: float = 1.0
    strip: float = 0.15
    strip_rate: float = 0.15
    marker_rate: float = 0.25
    local: float = 1.0

    def __post_init__(self) -> None:
        _check_types(self)
        _between(self, "rotation", 0, 180)
        for name in ("zoom", "aspect", "shift", "window", "strip"):
            _between(self, name, 0, 0.45)
        for name in ("field", "sharpen", "blur", "coarse", "noise_std", "jpeg", "strip_rate", "marker_rate", "local"):
            _between(self, name, 0, 1)
        _between(self, "gamma", 0, 2)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it achieved on the validation films.

    Args:
        threshold: Calibrated probability from which on a film is called positive, in [0, 1].
        sensitivity: Part of the positive validation films called positive, all sources together.
        specificity: Part of the negative validation films called negative, all sources together.
        by_source: For each source, its own `(sensitivity, specificity)`; `nan` is written as -1 where a source lacks the class.

    Raises:
        ValueError: If the threshold is no probability.

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
class TrainConfig:
    """The recipe of a training run.

    Args:
        backbone: A name in `cxrlib.network.model.BACKBONES`.
        image_size: Height and width that films are fitted to, in pixels.
        dropout: Part of the pooled features dropped while fine-tuning, in [0, 1).
        views: Views of every film whose frozen features the head is trained on: the first is the film itself, the others are augmented.
        head_penalty: What half the squared length of the head's weights, on standardised features, adds to the mean loss; a strong one keeps the head from
            learning the hospital.
        compression_penalty: How much stronger that penalty is along the directions in which compressing films moves the features, per unit of variance; a film
            and its compressed copy are then answered more alike.
        calm_penalty: The same for the tuned head, which is shrunk along the directions in which compressing films moves the tuned features.
        epochs: Epochs of fine-tuning; 0 keeps the backbone frozen.
        fine_tune_from: First layer that fine-tuning moves; `None` for the backbone's usual one.
        batch_size: Films per step.
        learning_rate: Peak of fine-tuning's learning rate, which is warmed up over the first twentieth and decays along a cosine to a fifth.
        weight_decay: Decoupled weight decay of fine-tuning.
        label_smoothing: In [0, 1).
        mixup: Parameter of the beta distribution by which films, and their targets, are blended in pairs while fine-tuning; 0 blends none.
        average: Number of last epochs whose weights are averaged; 0 for the best single epoch instead.
        prior_films: With how many films half of what fine-tuning changes is kept, where epochs are averaged: of fine-tuning on n films, each counting as far as
            its source's labels are believed, n² / (n² + prior_films²); the rest is the weights before it. Few films teach what does not travel; 0 keeps all of
            it, for a model that serves no hospital but those it is trained in.
        framing_correction: How much of what the height of the lungs' apices on the film does to the features is taken off them in the end, in [0, 1]. It is
            measured without a look at labels, by cutting the tops off films: other hospitals frame their films otherwise.
        margin: Part of a film's height and width, at each edge, that the trained network is not shown, in [0, 0.25]. Training shows it whole films.
        follow: How far what the trained network is shown of a film follows the outer edges of the lungs, in [0, 1]: 0 shows all films alike, 1 shows all lungs
            equally wide (`cxrlib.network.layers.Show`).
        detail: How much of the contrast of the finest band of frequencies, as training shows it, the trained network is shown, in [0, 1].
        patience: Fine-tuning stops after so many epochs without a better validation AUROC.
        validation: Part of the patients set aside for validation, in (0, 1).
        balance: `"sample"` draws as many films of each class within a source, `"weights"` weighs them instead, `"none"` leaves them as they are.
        balance_by: Columns of the data within whose values the classes are balanced too, so that they cannot stand for the disease
            (`cxrlib.data.split.weights`). DICOM files and manifests may say the `view`; the `framing` is measured where it tells classes apart
            (`cxrlib.network.framing.groups`), unless a column of that name says it.
        source_power: A source of n films counts n to this power: 1 by its size, 0 as much as any other.
        source_trust: Among several sources, the films of one count by (2 AUROC - 1) to this power, the AUROC being that of a head trained on all sources, in
            cross-validation on the films of this one, balanced alike: labels that the other films contradict count little. 0 believes all labels alike.
        precision: `"auto"` is mixed on a GPU and float32 elsewhere; or a Keras dtype policy.
        seed: Of the split, the draws, the augmentation and the initial weights.
        augment: How far films are changed while training.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> TrainConfig(epochs=3).batch_size
        32
    """

    backbone: str = "mobilenet_v2"
    image_size: int = 224
    dropout: float = 0.3
    views: int = 2
    head_penalty: float = 3.0
    compression_penalty: float = 0.9
    calm_penalty: float = 0.5
    epochs: int = 7
    fine_tune_from: str | None = None
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 1e-3
    label_smoothing: float = 0.05
    mixup: float = 0.0
    average: int = 2
    prior_films: float = 2240.0
    framing_correction: float = 0.5
    margin: float = 0.05
    follow: float = 1.0
    detail: float = 0.5
    patience: int = 6
    validation: float = 0.15
    balance: str = "sample"
    balance_by: tuple[str, ...] = ("view", "framing")
    source_power: float = 1.0
    source_trust: float = 2.0
    precision: str = "auto"
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.balance_by, tuple):
            raise ValueError(
                f"balance_by must be a tuple of names of columns. Received: balance_by={self.balance_by!r}"
            )
        _check_types(self)
        for name, low, high in (
            ("image_size", 32, 2048),
            ("views", 1, 100),
            ("head_penalty", 1e-6, 1e6),
            ("compression_penalty", 0, 1e6),
            ("calm_penalty", 0, 1e6),
            ("epochs", 0, 1000),
            ("batch_size", 1, 4096),
            ("patience", 1, 1000),
            ("average", 0, 1000),
            ("prior_films", 0, 1e9),
            ("framing_correction", 0, 1),
            ("margin", 0, 0.25),
            ("follow", 0, 1),
            ("detail", 0, 1),
            ("dropout", 0, 0.95),
            ("learning_rate", 1e-8, 1),
            ("weight_decay", 0, 1),
            ("label_smoothing", 0, 0.95),
            ("mixup", 0, 100),
            ("validation", 0.01, 0.9),
            ("source_power", 0, 1),
            ("source_trust", 0, 8),
            ("seed", 0, 2**31 - 1),
        ):
            _between(self, name, low, high)
        if self.balance not in ("sample", "weights", "none"):
            raise ValueError(f"balance must be 'sample', 'weights' or 'none'. Received: balance={self.balance!r}")


@dataclass(frozen=True)
class SourceSummary:
    """What one source brought to a training run.

    Args:
        name: Of the source.
        train: Films trained on, by label.
        validation: Films validated on, by label.
        patients: Number of known patients, or `None`.
        trust: How far its labels were believed, in [0, 1], see `TrainConfig.source_trust`.

    Example:
        >>> SourceSummary("nih", {"NORMAL": 218}, {"NORMAL": 38}, 480).name
        'nih'
    """

    name: str
    train: dict[str, int]
    validation: dict[str, int]
    patients: int | None
    trust: float = 1.0


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
                f"an array's data must fill its shape. Received: {len(raw)} bytes for shape={self.shape}, dtype={self.dtype}"
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
        schema: Version of this form.
        labels: Class names, the healthy class first.
        image_size: Height and width of the input, in pixels.
        decoder: Version of the path from a file to the input.
        preprocessing: The same in words.
        temperature: What the network's logits are divided by.
        operating_points: By name; empty for three or more labels.
        default_point: The one used when none is named.
        training: The recipe.
        sources: What the network was trained on.
        fingerprint: SHA-256 over the content and label of every film of these sources.
        split: SHA-256 over the films' names and sides.
        notes: What a reader must know, such as overridden leaks.
        population: Whom the films show, in words; `None` where nobody said.
        license: Licence of the weights as the Hub abbreviates it; `None` where nobody said.
        gate: Statistics of the gate as plain JSON, or `None` when the bundle has no gate.
        usual_evidence: Array of shape (h, w, k): mean plus one standard deviation of the evidence of healthy validation films, which heatmaps leave out; `None`
            for none.
        probe: Raw probabilities that the network must give for the probe image.
        versions: Of cxrlib and of the libraries that made the bundle.
        files: SHA-256 of every other file, hexadecimal, by name.

    Raises:
        BundleError: If the schema is not the one this version reads, a file name is unsafe or a hash is no hash.
        ValueError: If another value is not valid.

    Example:
        >>> BundleConfig(
        ...     labels=("NORMAL", "PNEUMONIA"), image_size=224, decoder=1, preprocessing="", temperature=1.0, training=TrainConfig(), probe=(0.9, 0.1)
        ... ).schema
        1
    """

    labels: tuple[str, ...]
    image_size: int
    decoder: int
    preprocessing: str
    temperature: float
    training: TrainConfig
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
    usual_evidence: Array | None = None
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise BundleError(
                f"the bundle has schema {self.schema}, this cxrlib reads schema {SCHEMA}: install the version that the bundle names"
            )
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
                f"default_point must name one of the operating points {sorted(self.operating_points)}. Received: {self.default_point!r}"
            )
        for name, digest in self.files.items():
            check_file_name(name)
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise BundleError(f"the bundle lists {name} with {digest!r:.80}, which is no SHA-256")


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
        >>> from_dict(AugmentConfig, {"rotation": 3.0}).rotation
        3.0
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object with named fields. Received: {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
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
        return _typed(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(Any, hint), value, where=where)
    if hint == tuple[str, ...] and isinstance(value, str):  # one name for many, as earlier recipes had it
        return (value,) if value else ()
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
    """Check that a bundle's file name stays inside the bundle: at most one folder deep, plain characters, no dots first.

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
