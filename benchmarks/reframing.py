"""What another framing does to an answer: `python benchmarks/reframing.py [--model M] SOURCE [SOURCE ...]`.

Another hospital's films begin lower, end higher, or are narrower. At most 800 films of each class of every source are cut so, and answered without the gate.
Prints a Markdown
table: AUROC, sensitivity and specificity at the model's threshold, and how far the median film moves, in the logit.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

from cxrlib import Predictor
from cxrlib.data import scan
from cxrlib.metrics import make_report

MOST = 800
CUTS = {  # left, top, right and bottom of what is left
    "as they are": (0.0, 0.0, 1.0, 1.0),
    "8 % less above": (0.0, 0.08, 1.0, 1.0),
    "15 % less above": (0.0, 0.15, 1.0, 1.0),
    "8 % less below": (0.0, 0.0, 1.0, 0.92),
    "15 % less below": (0.0, 0.0, 1.0, 0.85),
    "6 % less on every side": (0.06, 0.06, 0.94, 0.94),
}


def cut(path: str, box: tuple[float, float, float, float]) -> Image.Image:
    """A part of a film."""
    with Image.open(path) as film:
        return film.convert("L").crop(tuple(round(part * side) for part, side in zip(box, film.size * 2, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--model")
    options = parser.parse_args()
    predictor, random = Predictor(options.model, gate=False), np.random.default_rng(0)
    print("| films | framed | AUROC | sensitivity | specificity | median film moves by |\n" + "|---" * 6 + "|", flush=True)
    for address in options.sources:
        every = scan(address)
        films = every.take(np.concatenate([np.sort(random.permutation(np.flatnonzero(every.targets == k))[:MOST]) for k in range(2)]))
        bare: np.ndarray | None = None
        for name, box in CUTS.items():
            p = np.array([answer.probability for answer in predictor.predict(cut(path, box) for path in films.paths)])
            logit = np.log(p.clip(1e-6, 1 - 1e-6)) - np.log1p(-p.clip(1e-6, 1 - 1e-6))
            bare = logit if bare is None else bare
            report = make_report(films.targets, np.stack([1 - p, p], 1), labels=films.labels, threshold=predictor.threshold, names=films.names)
            figures = f"{report.auroc.value:.3f} | {report.recall.value:.3f} | {report.specificity.value:.3f}"
            print(f"| {films.sources[0]} | {name} | {figures} | {np.median(logit - bare):+.2f} |", flush=True)


if __name__ == "__main__":
    main()
