"""What travels to a hospital that was never seen, at a minute a row: linear heads on frozen features, each source left out in turn.

    python benchmarks/probe.py SOURCE SOURCE [SOURCE ...] [--films 1000] [--only depth,window,scale,levelling,resolution,data]
        [--regularisation 0.0005]

A row is one way of making features: another depth of MobileNetV2 with ImageNet weights, another part of the film that is pooled, another size at which the
network is shown the film, another preparation of the film, a film that was reduced to fewer pixels, fewer films. Its columns are AUROCs: of each source from a
head that was trained on all others, their mean, and, last, of a quarter of each source's own patients from a head trained on the rest of all sources. Heads are
logistic regressions on standardised features in which classes count alike and a source by its size; at most `--films` films of each source are used.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from cxrlib.cache import open_cache
from cxrlib.data import scan, split
from cxrlib.model import BACKBONES, LUNGS, Equalise, LevelBands, build_model

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
    "standardised": [Equalise(strength=0.0)],
    "equalised": [Equalise()],
    "half equalised": [Equalise(strength=0.5)],
    "standardised, bands levelled": [Equalise(strength=0.0), LevelBands(ALL_BANDS)],
    "equalised, bands levelled": [Equalise(), LevelBands(ALL_BANDS)],
    "half equalised, bands levelled": [Equalise(strength=0.5), LevelBands(ALL_BANDS)],
    "half equalised, bands levelled without the finest": [Equalise(strength=0.5), LevelBands()],
}
OURS = "half equalised, bands levelled"
SHIPPED = "half equalised, bands levelled without the finest"
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
    sources: list[Source], preparation: str, change: Callable[[np.ndarray], np.ndarray] = lambda x: x, side: int = SIZE
) -> dict[tuple[str, str], list[np.ndarray]]:
    """For each depth and window, the pooled features of each source, (n, c) each, of films that the network is shown at `side` pixels."""
    films = keras.Input((SIZE, SIZE, 1))
    x = films
    for layer in PREPARATIONS[preparation]:
        x = layer(x)
    if side != SIZE:
        x = ops.average_pool(ops.image.resize(x, (2 * side, 2 * side), interpolation="bilinear"), 2)
    x = keras.layers.Rescaling(*BACKBONES["mobilenet_v2"].scaling)(x)
    body = keras.applications.MobileNetV2(input_tensor=ops.concatenate([x] * 3, axis=-1), include_top=False, weights="imagenet")
    pooled = {}
    for depth in DEPTHS:
        for name, window in (("the whole film", WHOLE), ("the middle", CENTRE), ("the lungs", LUNGS)):
            t = body.get_layer(depth).output
            (top, bottom), (left, right) = ([round(part * side) for part in parts] for parts, side in zip(window, t.shape[1:3], strict=True))
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
    return np.concatenate([pooled.predict_on_batch(source.pixels[i : i + 32]) for i in range(0, len(source.pixels), 32)])


def head(x: list[np.ndarray], y: list[np.ndarray], sizes: list[int], strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """Train on features (n, c) and truths (n,) of several sources; gives what scores features."""
    w = np.concatenate([size * np.where(t == 1, 0.5 / max(t.sum(), 1), 0.5 / max((1 - t).sum(), 1)) for t, size in zip(y, sizes, strict=True)])
    scaler = StandardScaler().fit(np.concatenate(x))
    model = LogisticRegression(C=strength, max_iter=300).fit(scaler.transform(np.concatenate(x)), np.concatenate(y), sample_weight=w / w.mean())
    return lambda films: model.decision_function(scaler.transform(films))


def row(name: str, sources: list[Source], x: list[np.ndarray], strength: float, part: float = 1.0) -> str:
    """Measure one way of making features, as a line of a Markdown table; `part` of the films are trained on."""
    random = np.random.default_rng(1)
    used = [random.random(len(source.truth)) < part for source in sources]
    unseen = []
    for i, source in enumerate(sources):
        others = [j for j in range(len(sources)) if j != i]
        score = head([x[j][used[j]] for j in others], [sources[j].truth[used[j]] for j in others], [sources[j].size for j in others], strength)
        unseen.append(roc_auc_score(source.truth, score(x[i])))
    kept = [mask & ~source.aside for source, mask in zip(sources, used, strict=True)]
    score = head(
        [a[mask] for a, mask in zip(x, kept, strict=True)], [s.truth[m] for s, m in zip(sources, kept, strict=True)], [s.size for s in sources], strength
    )
    own = [roc_auc_score(source.truth[source.aside], score(a[source.aside])) for source, a in zip(sources, x, strict=True)]
    figures = [*(f"{value:.3f}" for value in unseen), f"**{np.mean(unseen):.3f}**", ", ".join(f"{value:.3f}" for value in own)]
    return f"| {name} | {' | '.join(figures)} |"


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
    parser.add_argument("--only", default="depth,window,scale,levelling,resolution,data")
    parser.add_argument("--regularisation", type=float, default=0.0005)
    options = parser.parse_args()
    sources, wanted = [load(address, options.films) for address in options.sources], options.only.split(",")

    def show(name: str, x: list[np.ndarray], part: float = 1.0) -> None:
        print(row(name, sources, x, options.regularisation, part), flush=True)

    print(f"| | {' | '.join(f'others → {source.name}' for source in sources)} | mean | own: {', '.join(source.name for source in sources)} |")
    print("|---" * (len(sources) + 3) + "|")
    made = features(sources, OURS)
    for depth, window in made:
        if (window == "the lungs" and "depth" in wanted) or (depth in (CHOSEN, DEPTHS[-1]) and "window" in wanted):
            show(f"{depth}, {window}", made[depth, window])
    if "scale" in wanted:
        shown = {side: features(sources, SHIPPED, side=side) for side in SIDES}
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
            together = [np.concatenate(parts, axis=1) for parts in zip(*(shown[side][depth, "the lungs"] for side, depth in looks), strict=True)]
            show(" and ".join(f"{depth} at {side}" for side, depth in looks), together)
        show("build_model's own", [as_built(source) for source in sources])
    if "levelling" in wanted:
        for preparation in PREPARATIONS:
            found = features(sources, preparation)
            show(f"{preparation}; {CHOSEN}, the lungs", found[CHOSEN, "the lungs"])
            show(f"{preparation}; {DEPTHS[-1]}, the whole film", found[DEPTHS[-1], "the whole film"])
    if "resolution" in wanted:
        for pixels in (28, 56, 84, 112, 160):
            show(f"read at {pixels} pixels", features(sources, OURS, reduced(pixels))[CHOSEN, "the lungs"])
    if "data" in wanted:
        for part in (0.05, 0.1, 0.25, 0.5, 1.0):
            show(f"{part:.0%} of the films", made[CHOSEN, "the lungs"], part)


if __name__ == "__main__":
    main()
