"""How a recipe does in a hospital it has never seen: train without one source, measure on it, for each source in turn.

    python benchmarks/leave_one_source_out.py runs/loso SOURCE SOURCE [SOURCE ...] [--config recipe.json] [--only NAME]

The threshold is the one that the bundle stores, chosen on validation patients of the other sources: nothing of the held-out source touches it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cxrlib import TrainConfig, evaluate, train
from cxrlib.config import from_dict
from cxrlib.data import scan


def main() -> None:
    """Train, measure, print one line per held-out source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--config", type=Path, help="a recipe as JSON, with fields of TrainConfig")
    parser.add_argument("--only", help="hold out this source alone")
    options = parser.parse_args()
    config = from_dict(TrainConfig, json.loads(options.config.read_text("utf-8"))) if options.config else TrainConfig()
    for held_out in options.sources:
        name = scan(held_out).sources[0]
        if options.only not in (None, name):
            continue
        run = train([s for s in options.sources if s != held_out], output=options.output / f"without-{name}", config=config)
        report = evaluate(run.bundle, held_out, output=options.output / f"without-{name}-on-{name}")
        figures = ", ".join(f"{metric} {getattr(report, metric)}" for metric in ("auroc", "recall", "specificity", "accuracy", "ece"))
        print(f"{name}, never seen: {figures}; {report.n_refused} of {report.n} refused; threshold {report.threshold:.3f}", flush=True)


if __name__ == "__main__":
    main()
