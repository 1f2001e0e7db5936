"""How far an image's answer depends on its copy: `python benchmarks/agreement.py [--model M]`.

Compares the answers for the images of `data/native` in CXRLIB_SHARED with those for their copies of 224 pixels in
`data/chest_xray`, for JPEG copies of that size made here, and for the same pixels as 16-bit arrays, which are not
rounded between the filter's two passes. Prints JSON: the part of images whose probability changes by no more than 0.02,
the part that stays on its side of the threshold, the largest change and the median one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from cxrlib import Predictor
from cxrlib.images.sources import find

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared")) / "data"


def compressed(path: Path, quality: int) -> bytes:
    """An image squashed to 224 pixels, as JPEG."""
    file = io.BytesIO()
    with Image.open(path) as image:
        image.convert("L").resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()


def deep(path: Path) -> np.ndarray:
    """The pixels of an image, uint16."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L")).astype(np.uint16) * 257


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    predictor = Predictor(parser.parse_args().model, gate=False)
    native = find(SHARED / "native")
    copies = {Path(path).stem: path for path in find(SHARED / "chest_xray")}
    kinds = {
        "the data set's copy": [copies[Path(path).stem] for path in native],
        **{f"JPEG of quality {quality}": [compressed(path, quality) for path in native] for quality in (95, 75, 50)},
        "16 bits": [deep(path) for path in native],
    }
    images = np.array([answer.probability for answer in predictor.predict(native)])
    for kind, sources in kinds.items():
        others = np.array([answer.probability for answer in predictor.predict(sources)])
        change = np.abs(images - others)
        found = {
            "within 0.02": float((change <= 0.02).mean()),
            "same side": float(((images >= predictor.threshold) == (others >= predictor.threshold)).mean()),
            "largest": float(change.max()),
            "median": float(np.median(change)),
        }
        print(json.dumps({kind: {name: round(value, 4) for name, value in found.items()}}), flush=True)


if __name__ == "__main__":
    main()
