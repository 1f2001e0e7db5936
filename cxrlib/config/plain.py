"""Frozen dataclasses to JSON types, and back, strictly."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config into plain JSON types.

    Args:
        config: A dataclass.

    Returns:
        Nested dicts and lists.

    Example:
        >>> from cxrlib.config import OperatingPoint
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
        >>> from cxrlib.config import Augmentation
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


def check_types(config: Any) -> None:
    """Check that every field of a dataclass has the type that it declares.

    Args:
        config: The dataclass.

    Raises:
        ValueError: If one has not; the message names it.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not dataclasses.is_dataclass(hint):
            _typed(hint, value, name)
        elif not isinstance(value, typing.cast(type, hint)):
            raise ValueError(f"{name} must be of {typing.cast(type, hint).__name__}. Received: {name}={value!r:.80}")


def named(kinds: Mapping[str, Any], value: Any, where: str) -> Any:
    """Build one of several dataclasses, which the field `name` tells apart.

    Args:
        kinds: The dataclasses by name, the default first.
        value: Such an object; a name; or the fields as JSON types, `name` among them.
        where: How messages name the place.

    Returns:
        The object.

    Raises:
        ValueError: If there is no such name, or `from_dict` fails.

    Example:
        >>> from cxrlib.config import RECIPES
        >>> named(RECIPES, "textbook", "recipe").epochs
        12
    """
    if type(value) in kinds.values():
        return value
    fields = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = fields.pop("name", next(iter(kinds)))
    if not isinstance(name, str) or name not in kinds:
        known = ", ".join(kinds)
        raise ValueError(f"{where} must be one of {known}, or a {where} object. Received: {where}={name!r:.80}")
    return from_dict(kinds[name], fields, where=f"the {name} {where}")


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if kinds := {arg.name: arg for arg in args if dataclasses.is_dataclass(arg) and hasattr(arg, "name")}:
            return named(kinds, value, where.rpartition(".")[2])
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


def check_between(owner: object, name: str, low: float, high: float) -> None:
    """Check that a number lies in a range.

    Args:
        owner: What has the number.
        name: Of the number.
        low: The lowest value.
        high: The highest value.

    Raises:
        ValueError: If it does not.
    """
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}]. Received: {name}={value!r}")
