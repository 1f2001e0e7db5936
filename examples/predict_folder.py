"""Predict every image of a folder into a table, and say at the end what needs a look.

python examples/predict_folder.py FOLDER answers.csv [MODEL]
"""

import csv
import sys
from collections import Counter
from pathlib import Path

from cxrlib import Predictor
from cxrlib.images import sources


def main(folder: str, table: str, model: str | None = None) -> Counter[str]:
    """Write one row per image, also for one that was refused or cannot be read; returns how many got which answer."""
    predictor = Predictor(model)
    images = sources.find(folder)
    counts: Counter[str] = Counter()
    with Path(table).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "answer", "probability", "remarks"])
        for image, p in zip(
            images, predictor.stream(images, errors="return"), strict=True
        ):  # in order, several at once
            probability = f"{p.probability:.4f}" if p.status == "ok" else ""
            writer.writerow([image, p.label or p.status, probability, "; ".join(p.reasons)])
            counts[p.label or p.status] += 1
    return counts


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    for answer, number in main(*sys.argv[1:]).most_common():
        print(f"{number:6} {answer}")
