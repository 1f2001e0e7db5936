"""What the gate refuses: `python benchmarks/gate.py DATA [--model MODEL] [--others FOLDER] [--every N]`.

DATA holds the sources, the external development set, `not_chest`, and beside it `cases`. `--others` is a folder with a
folder for each further kind that must be refused (`benchmarks/pictures.py` collects some). Prints, for each kind, how
many images there are, the part that is refused and the part that is answered with a warning, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from cxrlib import Predictor
from cxrlib.data.outliers import outliers
from cxrlib.images.decode import fit, read
from cxrlib.images.sources import find
from cxrlib.metrics.intervals import wilson

CHESTS = ("chest_xray/test", "native", "nih", "rsna", "cohen", "shenzhen", "../cases/monitor")
OTHERS = ("not_chest/bone", "../cases/lateral", "../cases/ct", "../cases/geometry")


def show(name: str, answers: Counter[str]) -> None:
    """Print a line."""
    n = answers.total()
    print(
        f"{name:20} {n:5}  refused {wilson(answers['refused'], n)}  warned {wilson(answers['warned'], n)}", flush=True
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--others", type=Path)
    parser.add_argument("--every", type=int, default=1, help="of the larger sources, every so many images")
    options = parser.parse_args()
    predictor = Predictor(options.model)
    folders = [options.data / name for name in (*CHESTS, *OTHERS)]
    folders += sorted(path for path in options.others.iterdir() if path.is_dir()) if options.others else []
    for folder in folders:
        paths = find(folder)
        paths = paths[:: options.every] if len(paths) > 200 else paths
        answers: Counter[str] = Counter()
        for p in predictor.stream(paths, errors="return"):
            answers["warned" if p.status == "ok" and p.reasons else p.status] += 1
        show(folder.name if folder.name != "test" else "chest_xray/test", answers)
    size = predictor.config.image_size
    pool = np.stack([fit(read(path), size)[..., 0] for path in find(options.data / "nih")[:100]])
    made, kinds = outliers((pool * 255).astype(np.uint8), 400, seed=10**6)
    for kind in sorted(set(kinds.tolist())):
        statuses = Counter(
            "warned" if p.status == "ok" and p.reasons else p.status for p in predictor.stream(made[kinds == kind])
        )
        show(f"made: {kind}", statuses)


if __name__ == "__main__":
    main()
