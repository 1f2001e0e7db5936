"""Fit the gate to a network, from chest radiographs alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cxrlib.config import Array
from cxrlib.data.outliers import outliers, variants
from cxrlib.runtime.gate import GRID, GateConfig, combined, distance, inside_weights, layout_of, score
from cxrlib.runtime.litert import usable_cores

PER_SOURCE = 1500  # most radiographs used of one source
_FOLDS = 4  # thresholds come from scores of images that the scoring fit has not seen
_ALLOWED = 0.007  # part of a source's radiographs that may be refused; 0.01 is promised
_COMPONENTS = 400  # principal components that the classifier uses
_C = 30.0  # inverse L2 strength of the classifier, for sample weights with a sum of 1
_SHALLOW = (
    0.42  # part of the embedding that the distance uses: its first values, from layers that training hardly moves
)
_DIRECTIONS = 48


def fit(
    images: np.ndarray,
    *,
    sources: Sequence[str],
    embed: Callable[[np.ndarray], np.ndarray],
    made: int = 3600,
    seed: int = 0,
) -> GateConfig:
    """Fit a gate to a network.

    Images to be refused are drawn, or made from the radiographs: turned, cropped, inverted, put side by side and so on.
    Variants of the radiographs, as other machines and cameras would show them, must be accepted. The thresholds come
    from scores of images that the scoring fit has not seen, and hold for every source.

    Args:
        images: ndarray of shape (n, s, s), uint8: frontal chest radiographs as the network sees them, s at least 16.
        sources: The hospital or collection of each; the part that is refused is bounded for each.
        embed: Returns the network's embeddings: from ndarray (m, s, s, 1), float32 in [0, 1], to ndarray (m, d), from
            shallow to deep layers.
        made: How many images to be refused are made; a third as many variants are.
        seed: Of all that is drawn.

    Returns:
        The gate's statistics.

    Raises:
        ValueError: If there are fewer than 8 images, or images and sources do not agree.
        ImportError: If scikit-learn is missing.

    Example:
        >>> from cxrlib.images.decode import fit as fit_image, read
        >>> from cxrlib.images.phantom import draw
        >>> from cxrlib.runtime.gate import Gate, inspect
        >>> def embed(images):  # in place of a network
        ...     return images.reshape(len(images), 8, 4, 8, 4).mean((2, 4)).reshape(len(images), -1)
        >>> chests = np.stack([draw(seed, size=32) for seed in range(20)])
        >>> gate = Gate(fit(chests, sources=["here"] * 20, embed=embed, made=60))
        >>> page = read(np.full((100, 100), 255, np.uint8))
        >>> gate.check(inspect(page, fit_image(page, 32)), embed(fit_image(page, 32)[None])[0])
        Verdict(accepted=False, reasons=('it is almost blank',))
    """
    if images.ndim != 3 or images.dtype != np.uint8 or len(images) < 8 or min(images.shape[1:]) < GRID:
        raise ValueError(
            f"images must be 8 or more of shape (s, s), uint8, s at least {GRID}. "
            f"Received: shape={images.shape}, dtype={images.dtype}"
        )
    if len(sources) != len(images):
        raise ValueError(
            f"sources must name the source of each image. Received: {len(sources)} for {len(images)} images"
        )
    try:
        from scipy.linalg import eigh
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError('fitting a gate needs scikit-learn: pip install "cxrlib[train]"') from error
    rng = np.random.default_rng(seed)
    names, which = np.unique(np.asarray(sources, str), return_inverse=True)
    n_sources = len(names)
    chosen = [np.sort(rng.permutation(np.flatnonzero(which == k))[:PER_SOURCE]) for k in range(n_sources)]
    images, which = np.asarray(images[np.concatenate(chosen)]), which[np.concatenate(chosen)]

    # Folds: what is made belongs to the fold of the radiographs that it was made from.
    fold = rng.permutation(len(images)) % _FOLDS
    each = -(-made // _FOLDS), -(-made // (3 * _FOLDS))  # images to be refused, and variants, from each fold

    def make(k: int) -> tuple[np.ndarray, np.ndarray]:
        own = np.flatnonzero(fold == k)
        draws = np.random.default_rng((seed, k))
        pool = images[np.concatenate([draws.choice(own[which[own] == s], 200) for s in np.unique(which[own])])]
        refused, kinds = outliers(pool, each[0], seed=seed * _FOLDS + k)
        return np.concatenate([variants(pool, each[1], seed=seed * _FOLDS + k), refused]), kinds

    with ThreadPoolExecutor(min(_FOLDS, usable_cores())) as threads:
        pictures, kinds_of = zip(*threads.map(make, range(_FOLDS)), strict=True)
    kinds, numbers = np.unique(np.concatenate(kinds_of), return_inverse=True)
    # Groups: the sources, their variants, the kinds.
    of_made = [
        np.concatenate([np.full(each[1], n_sources), part + n_sources + 1]) for part in np.split(numbers, _FOLDS)
    ]
    group = np.concatenate([which, *of_made])
    fold = np.concatenate([fold, np.repeat(np.arange(_FOLDS), sum(each))])
    x = _features([images, *pictures], embed)  # (n, d + 256)
    p = max(1, int(_SHALLOW * (x.shape[1] - GRID**2)))
    outlier, target = group > n_sources, np.maximum(group - n_sources, 0)  # 0: chest; 1 …: kinds

    # All sources weigh the same, all variants together as much as all sources, and kinds as much as chests.
    share = np.array([*[1 / n_sources] * n_sources, 1, *[2 / len(kinds)] * len(kinds)])
    weight = share[group] / np.bincount(group)[group]
    weight /= weight.sum()

    # Principal components of all images, each with a variance of 1.
    mean = weight @ x
    inverse = 1 / (np.sqrt(weight @ np.square(x - mean)) + 1e-3)
    z = (x - mean) * inverse
    q = min(_COMPONENTS, z.shape[1], max(1, len(z) // 8))
    values, vectors = eigh((z * weight[:, None]).T @ z, subset_by_index=(z.shape[1] - q, z.shape[1] - 1))
    basis = vectors / np.sqrt(np.maximum(values, 1e-6))  # (d + 256, q)
    components = z @ basis

    def classify(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits of the kinds against chests, as weights (q, k) of the components, and bias (k,)."""
        model = LogisticRegression(C=_C, max_iter=500).fit(
            components[rows], target[rows], sample_weight=weight[rows] / weight[rows].sum()
        )
        return (model.coef_[1:] - model.coef_[0]).T, model.intercept_[1:] - model.intercept_[0]

    scores, far = np.empty(len(x)), np.empty(len(x))
    for k in range(_FOLDS):
        others, mine = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        line, bias = classify(others)
        scores[mine] = score(components[mine] @ line + bias)
        chests = others[~outlier[others]]
        centre, scale, directions, spread, rest = _shape(x[chests, :p], weight[chests])
        far[mine] = distance((x[mine, :p] - centre) * scale, directions, inside_weights(spread, rest), rest)

    def worst(values: np.ndarray, allowed: float, groups: int = n_sources) -> float:
        return float(max(np.quantile(values[group == k], 1 - allowed) for k in range(groups)))

    def usual(values: np.ndarray) -> tuple[float, float]:
        """The median, and how much more one in a hundred has, in the source, or the variants, where that is most."""
        middle = float(np.mean([np.median(values[group == k]) for k in range(n_sources)]))
        return middle, max(worst(values, 0.01, n_sources + 1) - middle, 1e-3)

    of_score, of_distance = usual(scores), usual(far)
    unusual = combined(scores, of_score, far, of_distance)
    refuse = worst(unusual, _ALLOWED)
    refused = unusual > refuse
    line, bias = classify(np.arange(len(x)))
    weights = inverse[:, None] * (basis @ line)  # of the features themselves
    centre, scale, directions, spread, rest = _shape(x[~outlier, :p], weight[~outlier])
    return GateConfig(
        kinds=tuple(map(str, kinds)),
        weights=Array.pack(weights, "float16"),
        bias=Array.pack(bias - mean @ weights),
        score=of_score,
        centre=Array.pack(centre),
        scale=Array.pack(scale),
        directions=Array.pack(directions, "float16"),
        spread=Array.pack(spread),
        rest=rest,
        distance=of_distance,
        refuse=refuse,
        warn=worst(unusual, 2 * _ALLOWED),
        refused={str(name): float(refused[group == k].mean()) for k, name in enumerate(names)},
        outliers_refused={str(name): float(refused[group == n_sources + 1 + k].mean()) for k, name in enumerate(kinds)},
    )


def _features(parts: Sequence[np.ndarray], embed: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Square roots of the embedding, and the layout: (n, d + 256), float32."""
    rows = []
    for part in parts:
        for i in range(0, len(part), 256):
            chunk = part[i : i + 256]
            embedding = np.asarray(embed(chunk[..., None] / np.float32(255)), np.float32)
            rows.append(np.hstack([np.sqrt(np.maximum(embedding, 0)), layout_of(chunk)]))
    return np.concatenate(rows)


def _shape(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean, inverse deviations, leading directions with their spread, and the mean squared length of the rest."""
    weight = weight / weight.sum()
    centre = weight @ x
    scale = 1 / (np.sqrt(weight @ np.square(x - centre)) + 1e-3)
    z = (x - centre) * scale
    values, vectors = np.linalg.eigh((z * weight[:, None]).T @ z)  # ascending
    q = min(_DIRECTIONS, max(1, len(values) // 2), max(1, len(x) // 8))
    return centre, scale, vectors[:, -q:], np.sqrt(np.maximum(values[-q:], 1e-6)), float(max(values[:-q].sum(), 1e-6))
