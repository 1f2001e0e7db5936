"""Predict every film of a folder into a table, and say at the end what needs a look.

python examples/predict_folder.py FOLDER answers.csv [MODEL]
"""

import csv
import sys
from collections import Counter
from pathlib import Path

from cxrlib import ImageError, Predictor
from cxrlib.images import sources


def main(folder: str, table: str, model: str | None = None) -> Counter[str]:
    """Write one row per film; a film that cannot be read gets a row too, and spoils nothing."""
    predictor = Predictor(model)
    films = sources.find(folder)
    counts: Counter[str] = Counter()
    with Path(table).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["film", "answer", "probability", "remarks"])
        for film, answer in zip(
            films, predictor.stream(films, errors="return"), strict=True
        ):  # in order, several at once
            if isinstance(answer, ImageError):
                row = ["unreadable", "", str(answer)]
            elif not answer.accepted:
                row = ["refused", "", "; ".join(answer.reasons)]
            else:
                row = [answer.label, f"{answer.probability:.4f}", "; ".join(answer.reasons)]
            writer.writerow([film, *row])
            counts[str(row[0])] += 1
    return counts


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    for answer, number in main(*sys.argv[1:]).most_common():
        print(f"{number:6} {answer}")
