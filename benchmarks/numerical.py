"""LiteRT against Keras on many images: `python benchmarks/numerical.py [--model BUNDLE] [--images FOLDER] [--most N]`.

Images are found below the folder and decoded; no label is read and nothing is scored. The same bundle answers through
its `model.tflite` on one thread, on all threads in a batch and image by image, and through the same network in Keras.
Printed as JSON: the largest differences of a probability, and of the golden probe.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from cxrlib import bundle
from cxrlib.images import sources
from cxrlib.images.decode import fit, read
from cxrlib.runtime.litert import Runtime

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundle.DEFAULT)
    parser.add_argument("--images", type=Path, default=SHARED / "data" / "chest_xray" / "test")
    parser.add_argument("--most", type=int, default=10**9)
    options = parser.parse_args()
    loaded = bundle.load(options.model)
    size = loaded.config.image_size
    one, many = Runtime(options.model / bundle.RUNTIME, threads=1), Runtime(options.model / bundle.RUNTIME)
    from cxrlib import build_model

    network = build_model(loaded.config.labels, recipe=loaded.config.recipe, weights=None)
    bundle.load_weights(network, options.model)
    found = sources.find(options.images)[: options.most]
    worst = {"keras": 0.0, "many threads, a batch": 0.0, "many threads, image by image": 0.0}
    flips = 0
    for start in range(0, len(found), BATCH):
        images = np.stack(
            [fit(read(path, model_size=size), size) for path in found[start : start + BATCH]]
        )  # (b, s, s, 1)
        reference = one.run(images).probabilities
        kept = np.asarray(network.predict_on_batch(images), np.float64)
        kept = np.concatenate([1 - kept, kept], axis=1) if kept.shape[1] == 1 else kept  # (b, k)
        alone = np.concatenate([many.run(image[None]).probabilities for image in images])
        for name, other in (
            ("keras", kept),
            ("many threads, a batch", many.run(images).probabilities),
            ("many threads, image by image", alone),
        ):
            worst[name] = max(worst[name], float(np.abs(other - reference).max()))
        flips += int((kept.argmax(1) != reference.argmax(1)).sum())
    probe = one.run(bundle.probe_image(size)[None]).probabilities[0]
    result = {
        "images": len(found),
        "largest difference from LiteRT on one thread": worst,
        "images whose most probable label differs between Keras and LiteRT": flips,
        "golden probe": float(np.abs(probe - loaded.config.probe).max()),
        "versions": {
            name: metadata.version(name) for name in ("ai-edge-litert", "keras", "tensorflow", "numpy", "pillow")
        },
        "threads": many.threads,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
