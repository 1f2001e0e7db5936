"""Is this a frontal chest radiograph, and if not, why not?

First, plain checks of header and pixels. Then two measures of what the network computes. A linear classifier on its
embedding and on the image's coarse layout separates chest radiographs from kinds of images that were made to be
refused (outlier exposure). A distance from chest radiographs, in features that training hardly changes, finds kinds
that were not made. They decide together: an image that is rather unusual by both is refused.

References:
    Hendrycks et al., Deep anomaly detection with outlier exposure, ICLR 2019, arXiv:1812.04606.
    Lee et al., A simple unified framework for detecting out-of-distribution samples, NeurIPS 2018, arXiv:1807.03888.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cxrlib.config import Array

if TYPE_CHECKING:
    from cxrlib.images.decode import Radiograph

GRID = 16  # the layout is this many cells high and wide
_RANKS = ((np.arange(GRID**2) - (GRID**2 - 1) / 2) * (math.sqrt(12) / GRID**2)).astype(np.float32)
VIEWS = {"PA", "AP", "AP AXIAL", "ANTERO-POSTERIOR", "POSTERO-ANTERIOR"}
LATERALS = {"LL", "RL", "LAT", "LATERAL", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "ML", "LM", "MLO", "CC"}
MODALITIES = {"CR", "DX", "DR", "RG", "RF", "XA", "OT", "SC"}
_GENERAL = "it does not look like a frontal chest radiograph"
HINTS = {  # by kind; other kinds get the general reason alone
    "lateral": "it looks like a lateral view",
    "scan": "it looks like a slice of a CT or MR scan",
    "sideways": "it seems to lie on its side",
    "upside down": "it seems to be upside down",
    "negative": "its grey levels look inverted, bone should be bright and air dark",
    "several": "it seems to show several images in one picture",
    "screen": "it looks like a screen or a page with an image on it",
    "part": "it seems to show only a part of the chest",
}


@dataclass(frozen=True)
class GateConfig:
    """Statistics of a gate, made by `cxrlib.network.gate_fit.fit` and kept in the bundle.

    Args:
        kinds: Names of the k kinds of images to be refused that the classifier knows.
        weights: Shape (d + 256, k): logits of the kinds against chest radiographs, per square root of an embedding's
            value, then per value of the layout.
        bias: Shape (k,).
        score: Median score of chest radiographs, and how much larger that of one in a hundred is.
        centre: Shape (p,): means of the square roots of the embedding's first p values.
        scale: Shape (p,): their inverse standard deviations.
        directions: Shape (p, q), orthonormal columns: the leading principal directions of the standardised values.
        spread: Shape (q,): standard deviations along them.
        rest: Mean squared length of the part outside of them.
        distance: Median distance of chest radiographs, and how much larger that of one in a hundred is.
        refuse: Images that are more unusual than this are refused.
        warn: Images that are more unusual than this get an answer with a warning.
        refused: For each source, the part of its radiographs that was refused, each scored by a fit without it.
        outliers_refused: For each kind, the part that was refused, likewise.

    Raises:
        ValueError: If the shapes do not agree, or a scale is not positive.

    Example:
        >>> one = Array.pack(np.ones(1))
        >>> GateConfig(("a",), one, one, (0, 1), one, one, one, one, 1, (0, 1), 1, 1)
        Traceback (most recent call last):
        ValueError: a gate's arrays do not agree: weights (1,), bias (1,), centre (1,), scale (1,), directions (1,), \
spread (1,)
    """

    kinds: tuple[str, ...]
    weights: Array
    bias: Array
    score: tuple[float, float]
    centre: Array
    scale: Array
    directions: Array
    spread: Array
    rest: float
    distance: tuple[float, float]
    refuse: float
    warn: float
    refused: dict[str, float] = field(default_factory=dict)
    outliers_refused: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("weights", "bias", "centre", "scale", "directions", "spread")
        shapes = {name: getattr(self, name).shape for name in names}
        (n, k), (p, q) = (shapes[name] if len(shapes[name]) == 2 else (0, 0) for name in ("weights", "directions"))
        wanted = {"bias": (len(self.kinds),), "centre": (p,), "scale": (p,), "spread": (q,)}
        if n < p + GRID**2 or k != len(self.kinds) or any(shapes[name] != shape for name, shape in wanted.items()):
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"a gate's arrays do not agree: {found}")
        if not min(self.rest, self.score[1], self.distance[1]) > 0:
            raise ValueError(
                "a gate's rest and the second values of score and distance must be positive. "
                f"Received: rest={self.rest!r}, score={self.score}, distance={self.distance}"
            )


@dataclass(frozen=True)
class Verdict:
    """The gate's decision on an image.

    Args:
        accepted: Whether the image gets a prediction.
        reasons: Why not; or, where it does, warnings.

    Example:
        >>> Verdict(False, ("it is almost blank",)).accepted
        False
    """

    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Inspection:
    """What header and pixels say of an image.

    Args:
        refusals: Reasons to refuse it.
        warnings: Reasons for care.
        layout: ndarray of shape (256,), float32, from `layout_of`.
    """

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    layout: np.ndarray


def inspect(image: Radiograph, fitted: np.ndarray) -> Inspection:
    """Check an image's header and pixels, without any network.

    Args:
        image: The image.
        fitted: The network's input: ndarray of shape (s, s, 1), float32 in [0, 1], s at least 16.

    Returns:
        What they say.

    Example:
        >>> from cxrlib.images.decode import fit, read
        >>> image = read(np.zeros((300, 300), np.uint8))
        >>> inspect(image, fit(image)).refusals
        ('it is almost blank',)
    """
    refusals, warnings = [], []
    if image.modality and image.modality not in MODALITIES:
        refusals.append(f"its header says that it is not a plain radiograph (modality {image.modality:.16})")
    if image.view in LATERALS:
        refusals.append(f"its header says that it is a lateral or oblique view ({image.view})")
    elif image.view and image.view not in VIEWS:
        warnings.append(f"its header names a view that is neither PA nor AP ({image.view:.16})")
    height, width = image.size
    small, aspect = min(image.size), max(image.size) / min(image.size)
    if small < 64:
        refusals.append(f"it is too small: {width} x {height} pixels, at least 64 x 64 are needed")
    elif small < len(fitted):
        warnings.append(f"it is small: {width} x {height} pixels, the network uses {len(fitted)} x {len(fitted)}")
    if aspect > 4:
        refusals.append(f"it is too long and narrow: {width} x {height} pixels")
    elif aspect > 2.5:
        warnings.append(f"it is unusually long and narrow: {width} x {height} pixels")
    if image.colour > 0.03:
        warnings.append("it is a colour image; only its brightness was used")
    levels = (fitted[::4, ::4].ravel() * np.float32(255)).astype(np.intp)
    below = np.bincount(levels, minlength=256).cumsum()  # pixels of each level or darker
    darkest, brightest = below.searchsorted((0.01 * levels.size, 0.99 * levels.size))
    spread = (brightest - darkest) / 255
    if spread < 0.1:
        refusals.append("it is almost blank")
    else:
        if spread < 0.3:
            warnings.append("it has very little contrast")
        for name, part in (("black", below[1] / levels.size), ("white", 1 - below[253] / levels.size)):
            if part > 0.85:
                refusals.append(f"{part:.0%} of it is pure {name}")
            elif part > 0.6 or (part > 0.2 and name == "white"):
                warnings.append(f"{part:.0%} of it is pure {name}: it may be badly exposed or cut off")
    return Inspection(tuple(refusals), tuple(warnings), layout_of(fitted[None, ..., 0])[0])


class Gate:
    """Tells frontal chest radiographs from all other images. Safe to use from many threads.

    Args:
        config: What `cxrlib.network.gate_fit.fit` returned.

    Example:
        See `cxrlib.network.gate_fit.fit`.
    """

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        self._of_embedding, self._of_layout = np.split(config.weights.numpy(), [-(GRID**2)])
        self._bias, self._centre, self._scale = config.bias.numpy(), config.centre.numpy(), config.scale.numpy()
        self._directions, self._inside = config.directions.numpy(), inside_weights(config.spread.numpy(), config.rest)

    def check(self, seen: Inspection, embedding: np.ndarray) -> Verdict:
        """Decide whether an image gets a prediction.

        Args:
            seen: What `inspect` returned for it.
            embedding: The network's embedding of it: ndarray of shape (d,), float32.

        Returns:
            The verdict.

        Raises:
            ValueError: If the gate was fitted for embeddings of another length.
        """
        if seen.refusals:
            return Verdict(False, seen.refusals)
        unusual, logits = self.measure(embedding, seen.layout)
        if not unusual <= self.config.refuse:  # nan is refused
            return Verdict(False, (_GENERAL + self._hint(logits),))
        if unusual > self.config.warn:
            warning = "it differs from most radiographs that the model was trained on: use its probability with care"
            return Verdict(True, (*seen.warnings, warning))
        return Verdict(True, seen.warnings)

    def measure(self, embedding: np.ndarray, layout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Measure how unusual images are.

        Args:
            embedding: ndarray of shape (d,), float32; or (n, d), of several images.
            layout: ndarray of shape (256,), float32, from `layout_of`; or (n, 256).

        Returns:
            How unusual they are, ndarray of shape () or (n,), not negative: 0 for the median chest radiograph, 1 for
            one in a hundred by either measure. And the logits of the kinds, of shape (k,) or (n, k).

        Raises:
            ValueError: If the gate was fitted for embeddings of another length.
        """
        if embedding.shape[-1] != len(self._of_embedding):
            raise ValueError(
                f"this gate was fitted for embeddings of length {len(self._of_embedding)}. "
                f"Received: {embedding.shape[-1]}"
            )
        roots = np.sqrt(np.maximum(embedding, 0))
        logits = roots @ self._of_embedding + layout @ self._of_layout + self._bias
        z = (roots[..., : len(self._centre)] - self._centre) * self._scale
        far = distance(z, self._directions, self._inside, self.config.rest)
        return combined(score(logits), self.config.score, far, self.config.distance), logits

    def _hint(self, logits: np.ndarray) -> str:
        """What it looks like, where the classifier is sure of one kind."""
        best = int(np.argmax(logits))
        sure = logits[best] > 0 and np.exp(logits - logits[best]).sum() < 2
        hint = HINTS.get(self.config.kinds[best], "") if sure else ""
        return f": {hint}" if hint else ""


def layout_of(images: np.ndarray) -> np.ndarray:
    """Rank the brightness of an image's cells: its layout, independent of contrast.

    Args:
        images: ndarray of shape (n, s, s), s at least 16.

    Returns:
        ndarray of shape (n, 256), float32, each row with mean 0 and standard deviation 1.

    Example:
        >>> layout_of(np.random.default_rng(0).random((1, 32, 32))).std().round(2).item()
        1.0
    """
    n, cell = len(images), images.shape[1] // GRID
    side = cell * GRID
    # First down, then across: several times faster than at once.
    rows = images[:, :side, :side].reshape(n, GRID, cell, side).sum(2, dtype=np.float32)
    cells = rows.reshape(n, GRID, GRID, cell).sum(3).reshape(n, -1)
    ranks = np.empty(cells.shape, np.float32)
    for row, of_image in zip(ranks, cells, strict=True):
        row[of_image.argsort(kind="stable")] = _RANKS
    return ranks


def score(logits: np.ndarray) -> np.ndarray:
    """Combine the logits of the kinds to that of any of them.

    Args:
        logits: ndarray of shape (..., k).

    Returns:
        ndarray of shape (...): the logarithm of the sum of their exponentials.

    Example:
        >>> score(np.zeros((1, 2))).round(3).tolist()
        [0.693]
    """
    most = logits.max(-1, keepdims=True)
    combined: np.ndarray = most[..., 0] + np.log(np.exp(logits - most).sum(-1))
    return combined


def inside_weights(spread: np.ndarray, rest: float) -> np.ndarray:
    """Weigh squares along the leading directions for `distance`, which counts them once among all already.

    Args:
        spread: ndarray of shape (q,): standard deviations along them.
        rest: Mean squared length outside of them.

    Returns:
        ndarray of shape (q,).

    Example:
        >>> inside_weights(np.ones(2), 4.0).tolist()
        [0.25, 0.25]
    """
    weights: np.ndarray = 1 / (len(spread) * np.square(spread)) - 1 / rest
    return weights


def distance(z: np.ndarray, directions: np.ndarray, inside: np.ndarray, rest: float) -> np.ndarray:
    """Measure how far images lie from the radiographs that the gate was fitted with.

    Args:
        z: ndarray of shape (..., p), standardised.
        directions: ndarray of shape (p, q), orthonormal columns.
        inside: ndarray of shape (q,), of `inside_weights`.
        rest: Mean squared length outside of the directions.

    Returns:
        ndarray of shape (...): the logarithm of the mean squared deviation along them plus that outside of them.

    Example:
        >>> distance(np.ones((1, 2)), np.eye(2)[:, :1], inside_weights(np.ones(1), 1.0), 1.0).round(2).tolist()
        [0.69]
    """
    far: np.ndarray = np.log(np.maximum(np.square(z @ directions) @ inside + np.square(z).sum(-1) / rest, 1e-12))
    return far


def combined(
    score: np.ndarray, score_scale: tuple[float, float], far: np.ndarray, far_scale: tuple[float, float]
) -> np.ndarray:
    """Put score and distance together; what is less than usual counts as 0.

    Args:
        score: ndarray of shape (n,).
        score_scale: The usual value, and how much more one in a hundred has.
        far: ndarray of shape (n,).
        far_scale: Likewise.

    Returns:
        ndarray of shape (n,): the hypotenuse of the two.

    Example:
        >>> combined(np.array([3.0]), (0, 1), np.array([4.0]), (0, 1)).tolist()
        [5.0]
    """
    scaled = [np.maximum((x - usual) / reach, 0) for x, (usual, reach) in ((score, score_scale), (far, far_scale))]
    together: np.ndarray = np.hypot(*scaled)
    return together
