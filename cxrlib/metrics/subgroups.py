"""Subgroups: children and adults, sex, view, and whatever else is known of images."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from cxrlib.metrics.intervals import Bools, difference
from cxrlib.metrics.report import NAMES, Summary

SMALLEST = 10  # images: smaller subgroups are named, not measured
_ADULT = 18  # years
_MOST = 12  # values of a column that is not cut
_KINDS = {"age": "age", "sex": "sex", "gender": "sex", "view": "view", "viewposition": "view", "projection": "view"}
_UNITS = {"Y": 1, "M": 12, "W": 52, "D": 365}  # in a year; of DICOM ages such as 054Y
_UNKNOWN = "unknown"


def cut(groups: Mapping[str, Sequence[str | None]], measured: Bools) -> tuple[dict[str, list[str]], list[str]]:
    """Sort images into subgroups.

    A column called age is cut into children (below 18 years) and adults, where both occur. Sex is spelled F and M, view
    AP and PA. Other columns of two to twelve values stay as they are; more numbers are cut at their quartiles.

    Args:
        groups: Columns of n values; `None` or an empty text where unknown.
        measured: ndarray of shape (n,), bool: the images that are measured.

    Returns:
        The subgroup of each image by column, and remarks about columns that are left out.

    Example:
        >>> cut({"age": ["4", "061Y", ""], "Gender": ["female", "M", "m"]}, np.ones(3, bool))[0]
        {'age': ['children', 'adults', 'unknown'], 'Gender': ['F', 'M', 'M']}
    """
    cuts: dict[str, list[str]] = {}
    remarks: list[str] = []
    for column, given in groups.items():
        kind = _KINDS.get(re.sub(r"[^a-z]|patient", "", column.casefold()))
        values = [_spelled(kind, str(value).strip()) if value else _UNKNOWN for value in given]
        if kind == "age":
            numbers = [_years(value) for value in values]
            stages = [_UNKNOWN if math.isnan(x) else "children" if x < _ADULT else "adults" for x in numbers]
            values = stages if {"children", "adults"} <= set(stages) else [f"{x:g}" for x in numbers]
        known = {value for value in values if value not in (_UNKNOWN, "nan")}
        if len(known) > _MOST:
            try:
                values = _quartiles([math.nan if value == _UNKNOWN else float(value) for value in values])
            except ValueError:
                remarks.append(f"The column {column} has {len(known)} different values: not measured by subgroup.")
                continue
        values = [_UNKNOWN if value == "nan" else value for value in values]
        if len(set(values)) > 1:
            cuts[column] = values
    small = [
        f"{column} = {value}"
        for column, values in cuts.items()
        for value in sorted(set(values), key=_natural)
        if 0 < (np.array(values) == value)[measured].sum() < SMALLEST
    ]
    if small:
        remarks.append(f"Subgroups of fewer than {SMALLEST} images are not measured: {', '.join(small)}.")
    return cuts, remarks


def masks(cuts: Mapping[str, Sequence[str]], measured: Bools) -> dict[str, dict[str, Bools]]:
    """Say which images are in the subgroups that are large enough.

    Args:
        cuts: As `cut` gives it.
        measured: As for `cut`.

    Returns:
        By column and value, ndarray of shape (n,), bool.
    """
    return {
        column: {
            value: mask
            for value in sorted(set(values), key=_natural)
            if (mask := (np.array(values) == value) & measured).sum() >= SMALLEST
        }
        for column, values in cuts.items()
    }


def gaps(parts: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    """Name the gaps between subgroups that are larger than chance: their 95 % interval does not hold 0.

    Args:
        parts: Summaries by column and value.

    Returns:
        A sentence for each column and metric (AUROC, sensitivity, specificity) with such a gap.
    """
    found = []
    for (column, values), metric in itertools.product(parts.items(), ("auroc", "recall", "specificity")):
        measured = {
            value: estimate
            for value, part in values.items()
            if value != _UNKNOWN and not math.isnan((estimate := getattr(part, metric)).low)
        }
        if len(measured) < 2:
            continue
        least, most = (pick(measured, key=lambda value: measured[value].value) for pick in (min, max))
        gap = difference(measured[most], measured[least], comparisons=math.comb(len(measured), 2))
        if gap.low > 0:
            numbers = f"{measured[least].number} for {least}, {measured[most].number} for {most}"
            found.append(f"{NAMES[metric][0]} differs by {column}: {numbers}; difference {gap}.")
    return found


def _spelled(kind: str | None, value: str) -> str:
    if kind == "sex" and (letter := value[:1].upper()) in ("F", "M"):
        return letter
    if kind == "view" and (view := re.search(r"(?<![a-z])(AP|PA)(?![a-z])", value, re.IGNORECASE)):
        return view[0].upper()
    return value or _UNKNOWN


def _years(value: str) -> float:
    """An age in years; `nan` for what is not an age."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([YMWD]?)", value.upper())
    age = float(match[1]) / _UNITS[match[2] or "Y"] if match else math.nan
    return age if age <= 120 else math.nan


def _quartiles(numbers: Sequence[float]) -> list[str]:
    edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    last = max(len(edges) - 2, 0)
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, last)
    spans = [f"{a:g} to {'below ' if i < last else ''}{b:g}" for i, (a, b) in enumerate(itertools.pairwise(edges))]
    return [_UNKNOWN if math.isnan(x) else spans[i] for x, i in zip(numbers, place, strict=True)]


def _natural(value: str) -> tuple[bool, bool, float, str]:
    """Children before adults, numbers in their order, then words, `unknown` last."""
    try:
        return False, False, float(value.split(" ")[0]), value
    except ValueError:
        return value == _UNKNOWN, value != "children", math.inf, value
