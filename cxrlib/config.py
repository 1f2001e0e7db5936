"""What a training run and a bundle are made of: frozen dataclasses, checked when made, to and from JSON."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

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
    if isinstance(labels, str) or len(labels) < 2 or len(set(labels)) != len(labels) or not all(isinstance(x, str) and x for x in labels):
        raise ValueError(f"labels must be two or more different, non-empty class names. Received: labels={labels!r}")
    return tuple(labels)


def _between(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if not low <= value <= high:
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
        strip: Widest border that is painted over, as a part of the side.
        strip_rate: Probability, for each of the four borders, that it is.
        marker_rate: Probability that a letter-sized patch is painted over.

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
    field: float = 0.25
    sharpen: float = 0.7
    blur: float = 1.0
    coarse: float = 0.2
    noise_std: float = 0.04
    strip: float = 0.15
    strip_rate: float = 0.25
    marker_rate: float = 0.4

    def __post_init__(self) -> None:
        _between(self, "rotation", 0, 180)
        for name in ("zoom", "aspect", "shift", "window", "strip"):
            _between(self, name, 0, 0.45)
        for name in ("field", "sharpen", "blur", "coarse", "noise_std", "strip_rate", "marker_rate"):
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
    optional = {n for n, f in fields.items() if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING}
    if missing := [name for name in fields if name not in data and name not in optional]:
        raise ValueError(f"{where} lacks: {', '.join(missing)}")
    return kind(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
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
    raise ValueError(f"{where} must be {getattr(hint, '__name__', hint) if origin is None else hint}. Received: {value!r:.80}")


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
