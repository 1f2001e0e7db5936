"""Phase 1 and the whole recipe against the usual notebook loop, on the same films in one run.

    python benchmarks/training.py ../shared/data/chest_xray/train [--films 2000] [--epochs 12]

The notebook loop decodes, augments and pushes every film through the frozen backbone in every epoch: `ImageDataGenerator` as most public notebooks use it,
MobileNetV2 without its top, a dense head, 12 epochs. Phase 1 decodes once and computes the frozen features once per augmented view. Both train the same head;
times are wall-clock, the notebook's is measured over `--measured` epochs and scaled. AUROC is that of the same validation patients, which neither trains on.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

from cxrlib import TrainConfig, build_model, fitting, images
from cxrlib.cache import open_cache
from cxrlib.data import Dataset, scan, split


def notebook(train: Dataset, validation: Dataset, epochs: int, measured: int) -> tuple[float, float]:
    """Seconds for all epochs, and the validation AUROC of a network that saw `measured` of them."""
    base = keras.applications.MobileNetV2(input_shape=(224, 224, 3), include_top=False, weights="imagenet")
    base.trainable = False
    model = keras.Sequential(
        [
            base,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("adam", "binary_crossentropy")
    generator = keras.src.legacy.preprocessing.image.ImageDataGenerator(rescale=1 / 255, rotation_range=10, zoom_range=0.1, horizontal_flip=True)
    with tempfile.TemporaryDirectory() as folder:
        for path, target in zip(train.paths, train.targets, strict=True):
            place = Path(folder) / train.labels[target] / Path(path).name
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(path)
        flow = generator.flow_from_directory(folder, target_size=(224, 224), batch_size=32, class_mode="binary", seed=0)
        start = time.perf_counter()
        model.fit(flow, epochs=measured, verbose=0)
        seconds = (time.perf_counter() - start) / measured * epochs
    p = [model.predict_on_batch(np.repeat(images.fit(images.read(path))[None], 3, -1))[0, 0] for path in validation.paths]
    return seconds, float(roc_auc_score(validation.targets, p))


def phase_one(films: Dataset, train: np.ndarray, validation: np.ndarray) -> tuple[float, float, float]:
    """Seconds of decoding, seconds of phase 1, and the validation AUROC."""
    config = TrainConfig(epochs=0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pixels = open_cache(films, folder=folder, progress=False)
        decoded = time.perf_counter()
        net = build_model()
        work = Path(folder) / "work"
        work.mkdir()
        sides = [fitting.Side(pixels, index, films.take(index)) for index in (train, validation)]
        fitting.fit(net, *sides, config, work, lambda line: None)
        seconds = time.perf_counter() - decoded
        return decoded - start, seconds, fitting.validate(net, sides[1])[0]


def main() -> None:
    """Measure both, in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--films", type=int, default=1000, help="how many of the films to use")
    parser.add_argument("--epochs", type=int, default=12, help="of the notebook loop")
    parser.add_argument("--measured", type=int, default=2, help="of these epochs, how many are really run")
    options = parser.parse_args()
    films = scan(options.data)
    chosen = np.random.default_rng(0).permutation(len(films))[: options.films]
    films = films.take(np.sort(chosen))
    sides = split(films, fraction=0.2)
    decode, head, ours = phase_one(films, sides.train, sides.validation)
    loop, theirs = notebook(films.take(sides.train), films.take(sides.validation), options.epochs, options.measured)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{len(sides.train)} films to train on, {len(sides.validation)} to validate; peak memory of this process {memory:,.0f} MB")
    print(f"notebook loop, {options.epochs} epochs  {loop:8.1f} s   AUROC {theirs:.4f} after {options.measured}")
    print(f"decode once                {decode:8.1f} s")
    print(f"phase 1, 2 views           {head:8.1f} s   AUROC {ours:.4f}")
    print(f"ratio                      {loop / (decode + head):8.1f}")


if __name__ == "__main__":
    main()
