"""The recipe, and its first phase alone, against the usual notebook loop: time, images a second, memory, and what each
is worth on images that none has seen.

    python benchmarks/training.py ../shared/data/chest_xray/train ../shared/data/chest_xray/test \
        [--images 2000] [--epochs 12]

The notebook decodes, augments and pushes every image through the frozen backbone in every epoch: `ImageDataGenerator`
as most public notebooks use it, MobileNetV2 without its top, a dense head, 0.5 as threshold. cxrlib's times include
what the notebook leaves out: audit, decoding, calibration, operating points, gate, report and export; how long
features and head take by themselves is said below the table. Each way has a process of its own, one after the other,
on the same images; "images a second" counts an image as often as the network learns from it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("notebook loop", "phase 1 alone", "the whole recipe")
METRICS = ("auroc", "accuracy", "recall", "specificity", "ece")


def notebook(images: Path, test: str, epochs: int) -> dict[str, object]:
    """Train as notebooks do, and measure."""
    import keras

    from cxrlib.data.scan import scan
    from cxrlib.images.decode import fit, read
    from cxrlib.metrics import compute as metrics

    start = time.perf_counter()
    base = keras.applications.MobileNetV2(input_shape=(224, 224, 3), include_top=False, weights="imagenet")
    base.trainable = False
    head = [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.3),
    ]
    model = keras.Sequential([base, *head, keras.layers.Dense(1, activation="sigmoid")])
    model.compile("adam", "binary_crossentropy")
    generator = keras.src.legacy.preprocessing.image.ImageDataGenerator(
        rescale=1 / 255, rotation_range=10, zoom_range=0.1, horizontal_flip=True
    )
    flow = generator.flow_from_directory(images, target_size=(224, 224), batch_size=32, class_mode="binary", seed=0)
    model.fit(flow, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    unseen = scan(test)
    p = [float(model.predict_on_batch(np.repeat(fit(read(path))[None], 3, -1))[0, 0]) for path in unseen.paths]
    report = metrics.make_report(
        unseen.targets,
        [[1 - x, x] for x in p],
        labels=unseen.labels,
        threshold=0.5,
        names=unseen.paths,
        patients=unseen.patients,
    )
    return figures(report, seconds, len(flow.filenames) * epochs)


def ours(images: Path, test: str, epochs: int) -> dict[str, object]:
    """Train with cxrlib, and measure."""
    from cxrlib import DefaultRecipe, evaluate, train
    from cxrlib.data.scan import scan
    from cxrlib.network import fit as fitting

    took: list[float] = []
    fit_head = fitting.fit_head

    def timed(*arguments: Any) -> Any:
        begun = time.perf_counter()
        result = fit_head(*arguments)
        took.append(time.perf_counter() - begun)
        return result

    fitting.fit_head = timed
    config = DefaultRecipe(epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CXRLIB_CACHE"] = f"{folder}/cache"  # decoding counts
        start = time.perf_counter()
        run = train(images, output=f"{folder}/run", recipe=config, progress=False)
        seconds = time.perf_counter() - start
        learnt = len(scan(images)) - run.report.n
        return figures(evaluate(run.bundle, test, progress=False), seconds, learnt * (config.views + epochs)) | {
            "head": took[0]
        }


def figures(report: Any, seconds: float, images: int) -> dict[str, object]:
    """What a row of the table says."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "rate": images / seconds, "memory": memory} | {
        name: str(getattr(report, name)) for name in METRICS
    }


def main() -> None:
    """Measure all ways, in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--images", type=int, default=2000, help="how many of the images to train on")
    parser.add_argument("--epochs", type=int, default=12, help="of the notebook loop")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        from cxrlib import DefaultRecipe

        work, epochs = (
            (notebook, options.epochs)
            if options.way == WAYS[0]
            else (ours, 0 if options.way == WAYS[1] else DefaultRecipe().epochs)
        )
        print(json.dumps(work(Path(options.train), options.test, epochs)))
        return
    from cxrlib.data.scan import scan

    images = scan(options.train)
    with tempfile.TemporaryDirectory() as folder:
        for i in np.random.default_rng(0).permutation(len(images))[: options.images]:
            place = Path(folder, images.labels[images.targets[i]], Path(images.paths[i]).name)
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(Path(images.paths[i]).resolve())
        print(f"| {options.images:,} images | time | images a second | peak memory | {' | '.join(METRICS)} |")
        print("|---" * (4 + len(METRICS)) + "|", flush=True)
        heads = []
        for way in WAYS:
            command = [sys.executable, __file__, folder, options.test, "--epochs", str(options.epochs), "--way", way]
            row = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            )
            if "head" in row:
                heads.append(row["head"])
            shown = " | ".join(row[name] for name in METRICS)
            print(
                f"| {way} | {row['seconds']:.0f} s | {row['rate']:.0f} | {row['memory']:.1f} GB | {shown} |", flush=True
            )
        print(f"\nFeatures and head by themselves: {' s, '.join(f'{seconds:.0f}' for seconds in heads)} s", flush=True)


if __name__ == "__main__":
    main()
