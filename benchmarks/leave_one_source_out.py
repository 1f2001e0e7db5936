"""How a recipe does in a hospital it has never seen: train without one source, measure on it, for each source in turn.

    python benchmarks/leave_one_source_out.py runs/loso SOURCE SOURCE [SOURCE ...] [--columns examples/views.csv] [--config recipe.json] [--only NAME]

The threshold is the one that the bundle stores, chosen on validation patients of the other sources: nothing of the held-out source touches it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cxrlib import TrainConfig, evaluate, train
from cxrlib.config import from_dict
from cxrlib.data.scan import add_columns, scan


def main() -> None:
    """Train, measure, print one line per held-out source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--columns", type=Path, help="a table of what is known of the films, such as their views")
    parser.add_argument("--config", type=Path, help="a recipe as JSON, with fields of TrainConfig")
    parser.add_argument("--only", help="hold out this source alone")
    options = parser.parse_args()
    config = from_dict(TrainConfig, json.loads(options.config.read_text("utf-8"))) if options.config else TrainConfig()
    films = scan(options.sources)
    films = add_columns(films, options.columns) if options.columns else films
    for name in dict.fromkeys(films.sources):
        if options.only not in (None, name):
            continue
        held_out = np.array([source == name for source in films.sources])
        run = train(films.take(~held_out), output=options.output / f"without-{name}", config=config)
        report = evaluate(run.bundle, films.take(held_out), output=options.output / f"without-{name}-on-{name}")
        figures = ", ".join(
            f"{metric} {getattr(report, metric)}" for metric in ("auroc", "recall", "specificity", "accuracy", "ece")
        )
        print(
            f"{name}, never seen: {figures}; {report.n_refused} of {report.n} refused; threshold {report.threshold:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
