"""What a bundle is made of."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxrlib.config.plain import check_between
from cxrlib.config.recipes import Recipe

SCHEMA = 2
DEFAULT_LABELS = ("NORMAL", "PNEUMONIA")
_ADVICE = "Train it again with this version, or install the version of cxrlib that made it."
DISCLAIMER = "Decision support and research software, not a medical device: it does not replace a radiologist."


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
        check_between(self, "threshold", 0, 1)


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
        seen: The first eight digits of the digest of every image trained or calibrated on, sorted, one after the other;
            `None` when not kept.
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
        >>> from cxrlib.config import DefaultRecipe
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
    seen: str | None = None
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
        check_between(self, "image_size", 32, 2048)
        check_between(self, "temperature", 1e-3, 1e3)
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
        if not re.fullmatch(r"(?:[0-9a-f]{8})*", self.seen or ""):
            raise ValueError("seen must hold eight hexadecimal digits for each image")
        for name, digest in self.files.items():
            check_file_name(name)
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise BundleError(f"the bundle lists {name} with {digest!r:.80}, which is not a SHA-256")


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
