"""Fits the gate to a network, from chest radiographs alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cxrlib.config import Array
from cxrlib.data.outliers import outliers, variants
from cxrlib.runtime.gate import _GRID, GateConfig, _distance, _inside, _strangeness, layout_of
from cxrlib.runtime.litert import usable_cores

PER_SOURCE = 1500  # films used of one source
_FOLDS = 4  # thresholds come from scores of films that the scoring fit has not seen
_ALLOWED = 0.007  # part of a source's films that may be refused; the promise is 0.01
_STRENGTH = 3.2  # inverse regularisation, for weights that sum to 1
_DIRECTIONS = 48


def fit(
    films: np.ndarray,
    *,
    sources: Sequence[str],
    embed: Callable[[np.ndarray], np.ndarray],
    shallow: int = 432,
    made: int = 3000,
    seed: int = 0,
) -> GateConfig:
    """Fit a gate to a network, from chest films alone.

    Pictures that must be refused are drawn, or made from the films by turning, cropping, shuffling and inverting them; variants of the films as other machines
    would show them must pass. All thresholds come from scores of films that the scoring fit has not seen, and hold for every source.

    Args:
        films: ndarray of shape (n, s, s), uint8: frontal chest films as the network sees them, s at least 16.
        sources: The hospital or collection of each film; the part of films that is refused is bounded for each.
        embed: Gives the network's embeddings: from ndarray (m, s, s, 1), float32 in [0, 1], to ndarray (m, d).
        shallow: How many of the embedding's first values come from layers that training hardly moves.
        made: How many pictures to draw and spoil; half as many variants of films are made.
        seed: Of all that is drawn.

    Returns:
        What the gate has to know.

    Raises:
        ValueError: If there are fewer than 8 films, or films and sources do not agree.
        ImportError: If scikit-learn is missing.

    Example:
        See `Gate`.
    """
    if films.ndim != 3 or films.dtype != np.uint8 or len(films) < 8 or min(films.shape[1:]) < _GRID:
        raise ValueError(
            f"films must be 8 or more of shape (s, s), uint8, s at least {_GRID}. Received: shape={films.shape}, dtype={films.dtype}"
        )
    if len(sources) != len(films):
        raise ValueError(f"sources must name the source of each film. Received: {len(sources)} for {len(films)} films")
    rng = np.random.default_rng(seed)
    names, which = np.unique(np.asarray(sources, str), return_inverse=True)
    chosen = np.concatenate(
        [np.sort(rng.permutation(np.flatnonzero(which == k))[:PER_SOURCE]) for k in range(len(names))]
    )
    films, which = np.asarray(films[chosen]), which[chosen]

    # Folds: a picture belongs to the fold of the film that it was made from.
    fold = rng.permutation(len(films)) % _FOLDS
    pools = []
    for k in range(_FOLDS):
        own = np.flatnonzero(fold == k)
        pools.append(films[np.concatenate([rng.choice(own[which[own] == s], 200) for s in np.unique(which[own])])])
    of_chests, of_others = -(-made // (2 * _FOLDS)), -(-made // _FOLDS)  # pictures to make from each fold

    def draw(k: int) -> np.ndarray:
        return np.concatenate(
            [
                variants(pools[k], of_chests, seed=seed * _FOLDS + k),
                outliers(pools[k], of_others, seed=seed * _FOLDS + k),
            ]
        )

    with ThreadPoolExecutor(min(_FOLDS, usable_cores())) as threads:
        pictures = np.concatenate([films, *threads.map(draw, range(_FOLDS))])
    kind = np.concatenate(
        [which, np.tile(np.repeat([len(names), len(names) + 1], [of_chests, of_others]), _FOLDS)]
    )  # source; variant; outlier
    fold = np.concatenate([fold, np.repeat(np.arange(_FOLDS), of_chests + of_others)])
    embeddings, layouts = _features(pictures, embed)
    x = np.hstack([np.sqrt(np.maximum(embeddings, 0)), layouts])  # (n, d + 256)
    p = min(shallow, embeddings.shape[1])

    # Every source weighs the same, all variants together as much as all films, and chests as much as outliers.
    outlier: np.ndarray = np.equal(kind, len(names) + 1)
    share = np.array([*[1 / len(names)] * len(names), 1, 2])
    weight = share[kind] / np.bincount(kind)[kind]

    score, distance = np.empty(len(x)), np.empty(len(x))
    for k in range(_FOLDS):
        others, mine = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        line, bias = _line(x[others], outlier[others], weight[others])
        score[mine] = x[mine] @ line + bias
        chest = others[~outlier[others]]
        centre, scale, directions, spread, left = _shape(x[chest, :p], weight[chest])
        distance[mine] = _distance((x[mine, :p] - centre) * scale, directions, _inside(spread, left), left)
    line, bias = _line(x, outlier, weight)
    centre, scale, directions, spread, left = _shape(x[~outlier, :p], weight[~outlier])
    mean = np.mean([layouts[kind == k].mean(0) for k in range(len(names))], 0)

    def worst(values: np.ndarray, allowed: float, kinds: int = len(names)) -> float:
        return float(max(np.quantile(values[kind == k], 1 - allowed) for k in range(kinds)))

    def usual(values: np.ndarray) -> tuple[float, float]:
        """What a usual film has, and how much more one in a hundred of the strangest source, or of the variants, which stand for other hospitals."""
        middle = float(np.mean([np.median(values[kind == k]) for k in range(len(names))]))
        return middle, max(worst(values, 0.01, len(names) + 1) - middle, 1e-3)

    (zero, unit), (near, reach) = usual(score), usual(distance)
    strangeness = _strangeness((score - zero) / unit, (distance - near) / reach)
    # Where chests and outliers leave a gap, the threshold lies in its middle, so that films of other hospitals have room too.
    gap = (worst(strangeness, 0.01) + float(np.quantile(strangeness[outlier], 0.03))) / 2
    refuse = max(worst(strangeness, _ALLOWED), worst(strangeness, 0.01, len(names) + 1), gap)
    refused = strangeness > refuse
    return GateConfig(
        weights=Array.pack(line / unit),
        bias=(float(bias) - zero) / unit,
        layout=Array.pack(mean / max(float(np.linalg.norm(mean)), 1e-9)),
        centre=Array.pack(centre),
        scale=Array.pack(scale),
        directions=Array.pack(directions, "float16"),
        spread=Array.pack(spread),
        rest=left,
        usual=near,
        reach=reach,
        refuse=refuse,
        warn=min(refuse, worst(strangeness, 2 * _ALLOWED)),
        refused={str(name): float(refused[kind == k].mean()) for k, name in enumerate(names)},
        outliers_refused=float(refused[outlier].mean()),
    )


def _features(films: np.ndarray, embed: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    chunks = [films[i : i + 256] for i in range(0, len(films), 256)]
    embeddings = [np.asarray(embed(chunk[..., None] / np.float32(255)), np.float32) for chunk in chunks]
    return np.concatenate(embeddings), np.concatenate([layout_of(chunk) for chunk in chunks])


def _line(x: np.ndarray, outlier: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression on standardised values, as weights of the values themselves."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError('fitting a gate needs scikit-learn: pip install "cxrlib[train]"') from error
    weight = weight / weight.sum()
    mean = weight @ x
    scale = 1 / (np.sqrt(weight @ (x - mean) ** 2) + 1e-3)
    model = LogisticRegression(C=_STRENGTH, max_iter=500, tol=1e-5).fit(
        (x - mean) * scale, outlier, sample_weight=weight
    )
    line: np.ndarray = model.coef_[0] * scale
    return line, float(model.intercept_[0] - mean @ line)


def _shape(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean, inverse deviations, leading directions with their spread, and the mean squared length of the rest."""
    weight = weight / weight.sum()
    centre = weight @ x
    scale = 1 / (np.sqrt(weight @ (x - centre) ** 2) + 1e-3)
    z = (x - centre) * scale
    values, vectors = np.linalg.eigh((z * weight[:, None]).T @ z)  # ascending
    q = min(_DIRECTIONS, max(1, len(values) // 2), max(1, len(x) // 8))
    return centre, scale, vectors[:, -q:], np.sqrt(np.maximum(values[-q:], 1e-6)), float(max(values[:-q].sum(), 1e-6))
