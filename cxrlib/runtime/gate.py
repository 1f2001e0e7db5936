"""Is this a frontal chest film, and if not, why?

What the network sees is judged twice. A linear score on its embedding and on the film's coarse layout tells chest films from pictures that were drawn or spoilt
on purpose (outlier exposure). A distance from the chest films, in features that training hardly moves, finds what nobody thought of drawing. Both together
decide: a picture that is rather strange to both is refused, though neither would refuse it alone. Before them come plain checks of pixels and header.

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

_GRID = 16  # the layout is this many cells high and wide
_RANKS = ((np.arange(_GRID**2) - (_GRID**2 - 1) / 2) * (math.sqrt(12) / _GRID**2)).astype(np.float32)

_VIEWS = {"PA", "AP", "AP AXIAL", "ANTERO-POSTERIOR", "POSTERO-ANTERIOR"}
_LATERALS = {"LL", "RL", "LAT", "LATERAL", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "ML", "LM", "MLO", "CC"}
_MODALITIES = {"CR", "DX", "DR", "RG", "RF", "XA", "OT", "SC"}


@dataclass(frozen=True)
class GateConfig:
    """What a gate knows: made by `fit`, kept in the bundle.

    Args:
        weights: Shape (d + 256,): of the square roots of the embedding's d values and of the layout, in the score: 0 for a usual film, 1 for one in a hundred.
        bias: Added to the score.
        layout: Shape (256,): the mean layout of chest films, of length 1.
        centre: Shape (p,): mean of the square roots of the embedding's first p values.
        scale: Shape (p,): their inverse standard deviations.
        directions: Shape (p, q), orthonormal columns: in which the standardised values vary most.
        spread: Shape (q,): standard deviations along them.
        rest: Mean squared length of what lies outside them.
        usual: The distance of a usual film.
        reach: How much farther one film in a hundred lies.
        refuse: Films stranger than this are refused.
        warn: Films stranger than this are answered with a warning.
        refused: For each source, the part of its films that was refused, each scored by a fit without it.
        outliers_refused: The part of the drawn and spoilt pictures that was refused, likewise.

    Raises:
        ValueError: If the shapes do not belong together, or `rest` or `reach` is not positive.

    Example:
        >>> one = Array.pack(np.ones(1))
        >>> GateConfig(one, 0, one, one, one, one, one, 1, 0, 1, 0, 0)
        Traceback (most recent call last):
        ValueError: a gate's arrays do not belong together: weights (1,), layout (1,), centre (1,), scale (1,), directions (1,), spread (1,)
    """

    weights: Array
    bias: float
    layout: Array
    centre: Array
    scale: Array
    directions: Array
    spread: Array
    rest: float
    usual: float
    reach: float
    refuse: float
    warn: float
    refused: dict[str, float] = field(default_factory=dict)
    outliers_refused: float = 0.0

    def __post_init__(self) -> None:
        shapes = {
            name: getattr(self, name).shape for name in ("weights", "layout", "centre", "scale", "directions", "spread")
        }
        p, q = shapes["directions"] if len(shapes["directions"]) == 2 else (0, 0)
        wanted = {"layout": (_GRID**2,), "centre": (p,), "scale": (p,), "spread": (q,)}
        if (
            len(shapes["weights"]) != 1
            or shapes["weights"][0] < p + _GRID**2
            or any(shapes[name] != shape for name, shape in wanted.items())
        ):
            raise ValueError(
                f"a gate's arrays do not belong together: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"
            )
        if not (self.rest > 0 and self.reach > 0):
            raise ValueError(f"rest and reach must be positive. Received: rest={self.rest!r}, reach={self.reach!r}")


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a film.

    Args:
        accepted: Whether the film gets a prediction.
        reasons: Why not; or, where it does, what to be careful about.

    Example:
        >>> Verdict(False, ("it is almost blank",)).accepted
        False
    """

    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Sight:
    """What header and pixels say of a film.

    Args:
        refusals: Reasons to refuse it.
        warnings: What to be careful about.
        layout: ndarray of shape (256,), float32, from `layout_of`.
    """

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    layout: np.ndarray


def inspect(film: Radiograph, fitted: np.ndarray) -> Sight:
    """Look at a film's header and pixels, without any network.

    Args:
        film: The film.
        fitted: What the network sees of it: ndarray of shape (s, s, 1), float32 in [0, 1], s at least 16.

    Returns:
        What they say.

    Example:
        >>> from cxrlib.images.decode import fit, read
        >>> film = read(np.zeros((300, 300), np.uint8))
        >>> inspect(film, fit(film)).refusals
        ('it is almost blank',)
    """
    refusals, warnings = [], []
    if film.modality and film.modality not in _MODALITIES:
        refusals.append(f"its header says that it is no plain radiograph (modality {film.modality:.16})")
    if film.view in _LATERALS:
        refusals.append(f"its header says that it is a lateral or oblique view ({film.view})")
    elif film.view and film.view not in _VIEWS:
        warnings.append(f"its header names a view that is neither PA nor AP ({film.view:.16})")
    height, width = film.size
    small, aspect = min(film.size), max(film.size) / min(film.size)
    if small < 64:
        refusals.append(f"it is too small: {width} x {height} pixels, at least 64 x 64 are needed")
    elif small < len(fitted):
        warnings.append(f"it is small: {width} x {height} pixels, the network uses {len(fitted)} x {len(fitted)}")
    if aspect > 4:
        refusals.append(f"it is too long and narrow: {width} x {height} pixels")
    elif aspect > 2.5:
        warnings.append(f"it is unusually long and narrow: {width} x {height} pixels")
    if film.colour > 0.03:
        warnings.append("it is a colour picture; only its brightness was used")
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
    return Sight(tuple(refusals), tuple(warnings), layout_of(fitted[None, ..., 0])[0])


class Gate:
    """Tells frontal chest films from everything else. Safe to use from many threads.

    Args:
        config: What `fit` returned.

    Example:
        >>> from cxrlib.images.decode import fit as fit_film, read
        >>> from cxrlib.images.phantom import draw
        >>> def embed(films):  # stands for the network
        ...     return films.reshape(len(films), 8, 4, 8, 4).mean((2, 4)).reshape(len(films), -1)
        >>> films = np.stack([draw(seed, size=32) for seed in range(20)])
        >>> gate = Gate(fit(films, sources=["here"] * 20, embed=embed, made=40))
        >>> page = read(np.full((100, 100), 255, np.uint8))
        >>> seen = fit_film(page, 32)
        >>> gate.check(inspect(page, seen), embed(seen[None])[0])
        Verdict(accepted=False, reasons=('it is almost blank',))
    """

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        self._of_embedding, self._of_layout = np.split(config.weights.numpy(), [-(_GRID**2)])
        self._bias = np.float32(config.bias)
        self._layout, self._centre, self._scale = config.layout.numpy(), config.centre.numpy(), config.scale.numpy()
        self._directions, self._inside = config.directions.numpy(), _inside(config.spread.numpy(), config.rest)

    def check(self, sight: Sight, embedding: np.ndarray) -> Verdict:
        """Decide whether a film gets a prediction.

        Args:
            sight: What `inspect` saw of it.
            embedding: What the network makes of it: ndarray of shape (d,), float32.

        Returns:
            The verdict.

        Raises:
            ValueError: If the gate was fitted for an embedding of another length.
        """
        if sight.refusals:
            return Verdict(False, sight.refusals)
        strangeness = self.measure(embedding, sight.layout)
        if not strangeness <= self.config.refuse:  # nan is refused
            return Verdict(False, ("it does not look like a frontal chest film" + self._hint(sight.layout),))
        if strangeness > self.config.warn:
            return Verdict(
                True,
                (
                    *sight.warnings,
                    "it is unlike most chest films that the model was trained on: take its probability with care",
                ),
            )
        return Verdict(True, sight.warnings)

    def measure(self, embedding: np.ndarray, layout: np.ndarray) -> np.ndarray:
        """Measure how strange films are.

        Args:
            embedding: ndarray of shape (d,), float32; or (n, d), of several films.
            layout: ndarray of shape (256,), float32, from `layout_of`; or (n, 256).

        Returns:
            ndarray of shape () or (n,), float32, not negative: the higher, the stranger.

        Raises:
            ValueError: If the gate was fitted for embeddings of another length.
        """
        self.check_embedding(embedding)
        roots = np.sqrt(np.maximum(embedding, 0))
        score = roots @ self._of_embedding + layout @ self._of_layout + self._bias
        z = (roots[..., : len(self._centre)] - self._centre) * self._scale
        distance = (
            _distance(z, self._directions, self._inside, self.config.rest) - self.config.usual
        ) / self.config.reach
        return _strangeness(score, distance)

    def check_embedding(self, embedding: np.ndarray) -> None:
        """Raise ValueError if the gate was fitted for embeddings of another length."""
        if embedding.shape[-1] != len(self._of_embedding):
            raise ValueError(
                f"this gate was fitted for embeddings of length {len(self._of_embedding)}. "
                f"Received: {embedding.shape[-1]}"
            )

    def _hint(self, layout: np.ndarray) -> str:
        """Whether the picture would look like a chest if it were turned or inverted."""
        turned = [float(np.rot90(layout.reshape(_GRID, _GRID), k).ravel() @ self._layout) / _GRID for k in range(4)]
        best = int(np.argmax(turned))
        if turned[0] < -0.4:
            return ": its intensities look inverted, bone should be bright and air dark"
        if best and turned[best] > 0.45 and turned[best] > turned[0] + 0.25:
            return ": it seems to be upside down" if best == 2 else ": it seems to lie on its side"
        return ""


def layout_of(films: np.ndarray) -> np.ndarray:
    """Rank the brightness of a film's cells: its layout, whatever its contrast.

    Args:
        films: ndarray of shape (n, s, s), s at least 16.

    Returns:
        ndarray of shape (n, 256), float32, each row with mean 0 and deviation 1.

    Example:
        >>> layout_of(np.random.default_rng(0).random((1, 32, 32))).std().round(2).item()
        1.0
    """
    n, cell = len(films), films.shape[1] // _GRID
    side = cell * _GRID
    rows = (
        films[:, :side, :side].reshape(n, _GRID, cell, side).sum(2, dtype=np.float32)
    )  # first down, then across: several times faster than at once
    cells = rows.reshape(n, _GRID, _GRID, cell).sum(3).reshape(n, -1)
    ranks = np.empty(cells.shape, np.float32)
    for row, of_film in zip(ranks, cells, strict=True):
        row[of_film.argsort(kind="stable")] = _RANKS
    return ranks


def _inside(spread: np.ndarray, rest: float) -> np.ndarray:
    """What squares along the leading directions weigh in `_distance`, where they have been counted once among all."""
    weights: np.ndarray = 1 / (len(spread) * np.square(spread)) - 1 / rest
    return weights


def _distance(z: np.ndarray, directions: np.ndarray, inside: np.ndarray, rest: float) -> np.ndarray:
    """Logarithm of the mean squared deviation along the leading directions plus that outside them; about 0.7 for a usual film."""
    distance: np.ndarray = np.log(np.maximum(np.square(z @ directions) @ inside + np.square(z).sum(-1) / rest, 1e-12))
    return distance


def _strangeness(score: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Score and distance together; less than usual is not strange."""
    together: np.ndarray = np.hypot(np.maximum(score, 0), np.maximum(distance, 0))
    return together
