"""What travels to a hospital that was never seen, at a minute a row: linear heads on frozen features, each source left out in turn.

    python benchmarks/probe.py SOURCE SOURCE [SOURCE ...] [--films 1000] [--only depth,window,scale,levelling,half,resolution,data]
        [--regularisation 0.0005]

A row is one way of making features: another depth of MobileNetV2 with ImageNet weights, another part of the film that is pooled, another size at which the
network is shown the film, another preparation of the film, a film that was reduced to fewer pixels, fewer films. Its columns are AUROCs: of each source from a
head that was trained on all others, with sensitivity and specificity at the threshold that is best for a quarter of those others' patients; their mean; and,
last, of a quarter of each source's own patients from a head trained on the rest of all sources. Heads are
logistic regressions on standardised features in which classes count alike and a source by its size; at most `--films` films of each source are used.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from cxrlib.data.cache import open_cache
from cxrlib.data.scan import scan
from cxrlib.data.split import split
from cxrlib.network.layers import LevelBands, Standardise
from cxrlib.network.model import BACKBONES, LUNGS, build_model


class Equalise(keras.layers.Layer):  # type: ignore[misc]
    """Histogram equalisation of each film by itself, to mean 0 and deviation 1; with a strength below 1 a mixture of that and of the standardised film.

    The distribution is read off the central three quarters, at 64 levels with lines between them.
    """

    def __init__(self, strength: float = 1.0, levels: int = 64) -> None:
        super().__init__()
        self.strength, self.levels = strength, levels

    def call(self, films: Any) -> Any:
        """Equalise films (n, s, s, 1) in [0, 1]."""
        size = films.shape[1]
        edge, step = size // 8, max(1, round(size / 56))
        seen = ops.reshape(
            films[:, edge : size - edge : step, edge : size - edge : step],
            (-1, len(range(edge, size - edge, step)) ** 2, 1),
        )  # (n, m, 1)
        low, high = ops.min(seen, axis=1), ops.max(seen, axis=1)  # (n, 1)
        span = ops.maximum(high - low, 1e-3)
        cuts = low + span * ops.linspace(0.0, 1.0, self.levels + 1)[None]  # (n, levels + 1)
        below = ops.mean(
            ops.cast(seen <= cuts[:, None] + 1e-5, films.dtype), axis=1
        )  # (n, levels + 1): the distribution
        at = ops.clip((ops.reshape(films, (-1, size * size)) - low) / span, 0.0, 1.0) * self.levels  # (n, s * s)
        left = ops.minimum(ops.floor(at), self.levels - 1.0)
        a, b = (ops.take_along_axis(below, ops.cast(left + i, "int32"), axis=1) for i in (0, 1))
        equal = (a + (at - left) * (b - a) - 0.5) * math.sqrt(12.0)
        return self.strength * ops.reshape(equal, (-1, size, size, 1)) + (1 - self.strength) * Standardise()(films)


SIZE = 224
WHOLE, CENTRE = ((0, 1), (0, 1)), ((1 / 7, 6 / 7), (1 / 7, 6 / 7))
DEPTHS = (
    "block_3_expand_relu",
    "block_6_expand_relu",
    "block_7_expand_relu",
    "block_10_expand_relu",
    "block_12_expand_relu",
    "block_13_expand_relu",
    "block_14_expand_relu",
    "out_relu",
)
CHOSEN = "block_13_expand_relu"
ALL_BANDS = (0.07, 0.11, 0.17)  # mean contrasts over the paediatric set, NIH and RSNA
PREPARATIONS: dict[str, list[keras.layers.Layer]] = {
    "standardised": [Standardise()],
    "equalised": [Equalise()],
    "half equalised": [Equalise(strength=0.5)],
    "standardised, bands levelled": [Standardise(), LevelBands(ALL_BANDS)],
    "equalised, bands levelled": [Equalise(), LevelBands(ALL_BANDS)],
    "half equalised, bands levelled": [Equalise(strength=0.5), LevelBands(ALL_BANDS)],
    "half equalised, bands levelled without the finest": [Equalise(strength=0.5), LevelBands((0.0, 0.08, 0.17))],
}
OURS = "half equalised, bands levelled"  # when depth and window were chosen
SMALLER = "half equalised, bands levelled without the finest"  # when the looks were chosen
AT_HALF: dict[str, list[keras.layers.Layer]] = {  # of films of 112 pixels, whose octaves begin with the second
    "half equalised, bands 0.08 and 0.17": [Equalise(strength=0.5), LevelBands((0.08, 0.17))],
    "half equalised, bands 0.05 and 0.17": [Equalise(strength=0.5), LevelBands((0.05, 0.17))],
    "equalised, bands 0.05 and 0.17": [Equalise(), LevelBands((0.05, 0.17))],
    "a quarter equalised, bands 0.05 and 0.17": [Equalise(strength=0.25), LevelBands((0.05, 0.17))],
    "standardised, bands 0.05 and 0.17": [Standardise(), LevelBands((0.05, 0.17))],
    "standardised, bands 0.08 and 0.17": [Standardise(), LevelBands((0.08, 0.17))],
    "standardised": [Standardise()],
}
SIDES = (56, 64, 80, 96, 112, 160, SIZE)


@dataclass(frozen=True, eq=False)
class Source:
    """Films of one source: pixels (n, s, s, 1) in [0, 1], truths (n,), which of them are held back (n,), and how many the source has."""

    name: str
    pixels: np.ndarray
    truth: np.ndarray
    aside: np.ndarray
    size: int


def load(address: str, most: int) -> Source:
    films = scan(address)
    chosen = np.random.default_rng(0).permutation(len(films))[:most]
    some = films.take(chosen)
    aside = np.zeros(len(some), bool)
    aside[split(some, fraction=0.25).validation] = True
    pixels = np.array(open_cache(some, size=SIZE))[..., None].astype(np.float32) / np.float32(255)
    return Source(some.sources[0], pixels, some.targets, aside, len(films))


def features(
    sources: list[Source],
    preparation: list[keras.layers.Layer],
    change: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    *,
    prepared_at: int = SIZE,
    side: int = SIZE,
) -> dict[tuple[str, str], list[np.ndarray]]:
    """For each depth and window, the pooled features (n, c) of each source, whose films are prepared at one size and shown to the network at another."""
    films = keras.Input((SIZE, SIZE, 1))
    x = films if prepared_at == SIZE else ops.average_pool(films, SIZE // prepared_at)
    for layer in preparation:
        x = layer(x)
    if side != prepared_at:
        x = ops.average_pool(ops.image.resize(x, (2 * side, 2 * side), interpolation="bilinear"), 2)
    x = keras.layers.Rescaling(*BACKBONES["mobilenet_v2"].scaling)(x)
    body = keras.applications.MobileNetV2(
        input_tensor=ops.concatenate([x] * 3, axis=-1), include_top=False, weights="imagenet"
    )
    pooled = {}
    for depth in DEPTHS:
        for name, window in (("the whole film", WHOLE), ("the middle", CENTRE), ("the lungs", LUNGS)):
            t = body.get_layer(depth).output
            (top, bottom), (left, right) = (
                [round(part * side) for part in parts] for parts, side in zip(window, t.shape[1:3], strict=True)
            )
            pooled[depth, name] = ops.mean(t[:, top:bottom, left:right], axis=(1, 2))
    net = keras.Model(films, list(pooled.values()))
    found: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in pooled}
    for source in sources:
        batches = [net.predict_on_batch(change(source.pixels[i : i + 32])) for i in range(0, len(source.pixels), 32)]
        for key, parts in zip(pooled, zip(*batches, strict=True), strict=True):
            found[key].append(np.concatenate(parts))
    return found


def as_built(source: Source) -> np.ndarray:
    """The features (n, c) of the network that cxrlib builds."""
    net = build_model()
    pooled = keras.Model(net.input, net.get_layer("dropout").input)
    return np.concatenate(
        [pooled.predict_on_batch(source.pixels[i : i + 32]) for i in range(0, len(source.pixels), 32)]
    )


def head(
    x: list[np.ndarray], y: list[np.ndarray], sizes: list[int], strength: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Train on features (n, c) and truths (n,) of several sources; gives what scores features."""
    w = np.concatenate(
        [
            size * np.where(t == 1, 0.5 / max(t.sum(), 1), 0.5 / max((1 - t).sum(), 1))
            for t, size in zip(y, sizes, strict=True)
        ]
    )
    scaler = StandardScaler().fit(np.concatenate(x))
    model = LogisticRegression(C=strength, max_iter=300).fit(
        scaler.transform(np.concatenate(x)), np.concatenate(y), sample_weight=w / w.mean()
    )
    return lambda films: model.decision_function(scaler.transform(films))


def youden(scores: np.ndarray, truth: np.ndarray) -> float:
    """The threshold with the largest sum of sensitivity and specificity."""
    thresholds = np.unique(scores)
    return float(
        thresholds[np.argmax([(scores[truth == 1] >= t).mean() + (scores[truth == 0] < t).mean() for t in thresholds])]
    )


def row(name: str, sources: list[Source], x: list[np.ndarray], strength: float, part: float = 1.0) -> str:
    """Measure one way of making features, as a line of a Markdown table; `part` of the films are trained on."""
    random = np.random.default_rng(1)
    used = [random.random(len(source.truth)) < part for source in sources]
    kept = [mask & ~source.aside for source, mask in zip(sources, used, strict=True)]
    every = range(len(sources))

    def fit(of: Iterable[int], films: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        return head(
            [x[i][films[i]] for i in of],
            [sources[i].truth[films[i]] for i in of],
            [sources[i].size for i in of],
            strength,
        )

    unseen, at = [], []
    for i, source in enumerate(sources):
        others = [j for j in every if j != i]
        unseen.append(roc_auc_score(source.truth, fit(others, used)(x[i])))
        score = fit(others, kept)
        scores, truths = zip(
            *((score(x[j][sources[j].aside]), sources[j].truth[sources[j].aside]) for j in others), strict=True
        )
        threshold = youden(np.concatenate(scores), np.concatenate(truths))
        called = score(x[i]) >= threshold
        at.append(f"{called[source.truth == 1].mean():.2f}/{1 - called[source.truth == 0].mean():.2f}")
    score = fit(every, kept)
    own = [
        roc_auc_score(source.truth[source.aside], score(a[source.aside])) for source, a in zip(sources, x, strict=True)
    ]
    figures = [f"{value:.3f}, {pair}" for value, pair in zip(unseen, at, strict=True)]
    return (
        f"| {name} | {' | '.join(figures)} | **{np.mean(unseen):.3f}** | {', '.join(f'{value:.3f}' for value in own)} |"
    )


def reduced(pixels: int) -> Callable[[np.ndarray], np.ndarray]:
    """Films as if they had been read with fewer pixels a side."""

    def change(films: np.ndarray) -> np.ndarray:
        small = ops.image.resize(films, (pixels, pixels), interpolation="bicubic", antialias=True)
        return np.clip(np.asarray(ops.image.resize(small, (SIZE, SIZE), interpolation="bicubic")), 0, 1)

    return change


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--films", type=int, default=1000)
    parser.add_argument("--only", default="depth,window,scale,levelling,half,resolution,data")
    parser.add_argument("--regularisation", type=float, default=0.0005)
    options = parser.parse_args()
    sources, wanted = [load(address, options.films) for address in options.sources], options.only.split(",")

    def show(name: str, x: list[np.ndarray], part: float = 1.0) -> None:
        print(row(name, sources, x, options.regularisation, part), flush=True)

    print(
        f"| | {' | '.join(f'others → {source.name}' for source in sources)} | mean | own: {', '.join(source.name for source in sources)} |"
    )
    print("|---" * (len(sources) + 3) + "|")
    made = features(sources, PREPARATIONS[OURS]) if {"depth", "window", "data"} & set(wanted) else {}
    for depth, window in made:
        if (window == "the lungs" and "depth" in wanted) or (depth in (CHOSEN, DEPTHS[-1]) and "window" in wanted):
            show(f"{depth}, {window}", made[depth, window])
    if "scale" in wanted:
        shown = {side: features(sources, PREPARATIONS[SMALLER], side=side) for side in SIDES}
        for side in SIDES:
            for depth in ("block_6_expand_relu", "block_10_expand_relu", CHOSEN):
                show(f"shown at {side} pixels; {depth}, the lungs", shown[side][depth, "the lungs"])
        for looks in (
            ((SIZE, CHOSEN), (64, "block_10_expand_relu")),
            ((SIZE, CHOSEN), (112, "block_6_expand_relu"), (64, "block_10_expand_relu")),
            ((112, "block_6_expand_relu"), (64, "block_10_expand_relu")),
            ((112, "block_6_expand_relu"), (112, "block_12_expand_relu"), (64, "block_10_expand_relu")),
            ((112, "block_6_expand_relu"), (112, "block_13_expand_relu"), (64, "block_10_expand_relu")),
        ):
            together = [
                np.concatenate(parts, axis=1)
                for parts in zip(*(shown[side][depth, "the lungs"] for side, depth in looks), strict=True)
            ]
            show(" and ".join(f"{depth} at {side}" for side, depth in looks), together)
        show("build_model's own", [as_built(source) for source in sources])
    if "levelling" in wanted:
        for preparation, layers in PREPARATIONS.items():
            found = features(sources, layers)
            show(f"{preparation}; {CHOSEN}, the lungs", found[CHOSEN, "the lungs"])
            show(f"{preparation}; {DEPTHS[-1]}, the whole film", found[DEPTHS[-1], "the whole film"])
    if "half" in wanted:
        for preparation, layers in AT_HALF.items():
            fine, coarse = (features(sources, layers, prepared_at=112, side=side) for side in (112, 64))
            looks = [
                fine["block_6_expand_relu", "the lungs"],
                fine["block_12_expand_relu", "the lungs"],
                coarse["block_10_expand_relu", "the lungs"],
            ]
            show(
                f"{preparation}; two looks as built",
                [np.concatenate(parts, axis=1) for parts in zip(*looks, strict=True)],
            )
    if "resolution" in wanted:
        for pixels in (28, 56, 84, 112, 160):
            show(
                f"read at {pixels} pixels", features(sources, PREPARATIONS[OURS], reduced(pixels))[CHOSEN, "the lungs"]
            )
    if "data" in wanted:
        for part in (0.05, 0.1, 0.25, 0.5, 1.0):
            show(f"{part:.0%} of the films", made[CHOSEN, "the lungs"], part)


if __name__ == "__main__":
    main()
