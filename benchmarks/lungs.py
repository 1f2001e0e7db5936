"""Where the lungs lie on a film: trains the small network of `cxrlib/lungs.npz`, by which networks, training and audit know how films are framed.

    python benchmarks/lungs.py examples/lungs.csv cxrlib/lungs.npz chest_xray/train nih rsna [--steps 4000]

`examples/lungs.csv` holds, for 480 films (80 of each class of each source), where their lungs end, read off by eye with a grid of ten lines drawn over each
film: the outermost edges of the lungs on the left and on the right of the picture, the midline, the apices, the dome of the diaphragm on the left of the
picture, and the lower costophrenic angle, in per cent of the film's width or height. The network sees films of 56 pixels, cut, padded, mirrored and lightened
at random. Trains on all of them and writes the network; then leaves out each source in turn and prints, as JSON, the mean error of each of the six in the
source that was not seen, beside the error of always giving the others' mean.
"""

from __future__ import annotations

import argparse
import csv
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

from cxrlib.data.cache import open_cache
from cxrlib.data.scan import scan
from cxrlib.network.framing import cells
from cxrlib.network.layers import Standardise
from cxrlib.network.lungs import EDGES, SIDE, STRIDES

USUAL = (0.13, 0.87, 0.50, 0.15, 0.70, 0.82)  # of adults and children, in the order of EDGES
ACROSS = 3  # the first three are measured across, the others down


def build() -> keras.Model:
    """A network from films (n, 56, 56, 1) in [0, 1] to the six edges (n, 6), in parts of the film's side."""
    film = x = keras.Input((SIDE, SIDE, 1), name="film")
    x = Standardise()(x)
    for filters, stride in zip((16, 24, 32, 48, 48), STRIDES, strict=True):
        x = layers.Conv2D(filters, 3, strides=stride, padding="same", activation="relu")(x)
    x = layers.Dropout(0.1, seed=0)(layers.Flatten()(x))
    usual = keras.initializers.Constant(np.array(USUAL, np.float32))
    return keras.Model(film, layers.Dense(len(EDGES), bias_initializer=usual, name="edges")(x))


def window(films: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """What of films (n, s, s) lies between two corners (n, 2), in parts of the side, across and down: (n, 56, 56); beyond the film its edge goes on."""

    def weights(
        start: np.ndarray, end: np.ndarray
    ) -> np.ndarray:  # (n, 56, s): triangles, as wide as a step of the result where that is wider than a pixel
        side = films.shape[1]
        centre = (start[:, None] + (end - start)[:, None] * (np.arange(SIDE) + 0.5) / SIDE) * side - 0.5
        width = np.maximum((end - start) * side / SIDE, 1.0)[:, None, None]
        k = np.maximum(0.0, 1 - np.abs(centre.clip(0, side - 1)[:, :, None] - np.arange(side)) / width)
        return (k / k.sum(axis=2, keepdims=True)).astype(np.float32)

    return weights(low[:, 1], high[:, 1]) @ films @ weights(low[:, 0], high[:, 0]).transpose(0, 2, 1)


def augmented(films: np.ndarray, edges: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Films (n, s, s) in [0, 1] and their edges (n, 6), framed and exposed otherwise."""
    n = len(films)
    size = random.uniform(0.65, 1.25, (n, 2))
    centre = 0.5 + random.uniform(-0.6, 0.6, (n, 2)) * np.abs(1 - size) + random.normal(0, 0.03, (n, 2))
    plain = random.random(n) < 0.15
    size[plain], centre[plain] = 1.0, 0.5
    low = centre - size / 2
    x = window(films ** np.exp(random.normal(0, 0.3, n))[:, None, None].astype(np.float32), low, low + size)
    at = low[:, None] + size[:, None] * ((np.arange(SIDE) + 0.5) / SIDE)[:, None]  # (n, 56, 2)
    beyond = (at < 0) | (at > 1)
    beyond = beyond[:, :, 1][:, :, None] | beyond[:, :, 0][:, None, :]
    goes_on = random.random(n) < 0.3
    x = np.where(beyond & ~goes_on[:, None, None], random.choice([0, 0, 0, 0.5, 1], n)[:, None, None], x)
    y = np.concatenate(
        [(edges[:, :ACROSS] - low[:, :1]) / size[:, :1], (edges[:, ACROSS:] - low[:, 1:]) / size[:, 1:]], axis=1
    )
    mirrored = random.random(n) < 0.3
    x[mirrored] = x[mirrored, :, ::-1]
    y[mirrored, :ACROSS] = 1 - y[mirrored][:, [1, 0, 2]]
    x = x + random.normal(0, 1, x.shape) * random.uniform(0, 0.01, n)[:, None, None]
    return x[..., None].astype(np.float32), y.clip(-0.05, 1.05).astype(np.float32)


def fit(films: np.ndarray, edges: np.ndarray, steps: int) -> keras.Model:
    """Train on films (n, s, s) in [0, 1] and their edges (n, 6)."""
    keras.utils.set_random_seed(0)
    network, random = build(), np.random.default_rng(0)
    network.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, steps), weight_decay=1e-3),
        keras.losses.Huber(0.05),
    )
    for _ in range(steps):
        i = random.integers(0, len(films), 32)
        network.train_on_batch(*augmented(films[i], edges[i], random))
    return network


def main() -> None:
    """Measure, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("target")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--steps", type=int, default=4000)
    options = parser.parse_args()
    with open(options.table, encoding="utf-8", newline="") as file:
        told = {row["film"]: [float(row[edge]) / 100 for edge in EDGES] for row in csv.DictReader(file)}
    every = scan(options.sources)
    films = every.take([i for i, name in enumerate(every.names) if name in told])
    pixels, edges = np.array(open_cache(films)), np.array([told[name] for name in films.names])
    x, sources = pixels.astype(np.float32) / 255, np.array(films.sources)
    network = fit(x, edges, options.steps)
    arrays = [np.asarray(weight, np.float32) for weight in network.weights]  # kernel and bias of each layer
    np.savez(options.target, **{f"{'bias' if i % 2 else 'kernel'}_{i // 2}": array for i, array in enumerate(arrays)})

    for source in dict.fromkeys(films.sources):
        seen = sources != source
        found = fit(x[seen], edges[seen], options.steps).predict(cells(pixels[~seen], SIDE)[..., None] / 255, verbose=0)
        error, guess = np.abs(found - edges[~seen]), np.abs(edges[seen].mean(axis=0) - edges[~seen])
        shown = {
            edge: [round(float(e), 3) for e in pair]
            for edge, *pair in zip(EDGES, error.mean(axis=0), guess.mean(axis=0), strict=True)
        }
        print(json.dumps({"never seen": source, "mean error, of the network and of the mean": shown}), flush=True)


if __name__ == "__main__":
    main()
