"""What padding does to an answer: `python benchmarks/padding.py [--model M]`.

Films of every source are padded to a square, and 20 and 40 % beyond, with black, grey and white, as they are and as
JPEG of 512 pixels and quality 75, as many collections are made; and answered again. Prints JSON: the part that is
refused, bare and padded; of those answered both times, the part whose probability changes by no more than 0.02 and the
part that stays on its side of the threshold.
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
from cxrlib.images import sources

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared")) / "data"
SOURCES = ("native", "nih", "rsna")
MOST = 120


def padded(film: Image.Image, beyond: float, grey: int) -> Image.Image:
    """A film in the middle of a square."""
    side = round(max(film.size) * (1 + beyond))
    square = Image.new("L", (side, side), grey)
    square.paste(film, ((side - film.width) // 2, (side - film.height) // 2))
    return square


def stored(film: Image.Image) -> bytes:
    """A film as small collections store it."""
    file = io.BytesIO()
    film.resize((512, 512), Image.Resampling.BICUBIC).save(file, "JPEG", quality=75)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    predictor = Predictor(parser.parse_args().model)
    for source in SOURCES:
        paths = sources.find(SHARED / source)
        films = [Image.open(path).convert("L") for path in paths[:: -(-len(paths) // MOST)]]
        bare = predictor.predict(films)
        refused = float(np.mean([not answer.accepted for answer in bare]))
        for beyond in (0.0, 0.2, 0.4):
            for grey in (0, 128, 255):
                squares = [padded(film, beyond, grey) for film in films]
                for kind, made in (("as they are", squares), ("JPEG", [stored(square) for square in squares])):
                    both = [(a, b) for a, b in zip(bare, predictor.predict(made), strict=True) if b.accepted]
                    pairs = [(a, b) for a, b in both if a.accepted]
                    found = {"refused bare": refused, "refused": 1 - len(both) / len(films)}
                    if pairs:
                        found["within 0.02"] = float(
                            np.mean([abs(a.probability - b.probability) <= 0.02 for a, b in pairs])
                        )
                        found["same side"] = float(np.mean([a.label == b.label for a, b in pairs]))
                    print(
                        json.dumps(
                            {
                                f"{source}, {beyond:.0%} beyond, grey {grey}, {kind}": {
                                    k: round(v, 4) for k, v in found.items()
                                }
                            }
                        ),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
