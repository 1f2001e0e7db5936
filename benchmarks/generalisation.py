"""How a recipe does where nobody tuned it: a source left out, and the external development set.

    python benchmarks/generalisation.py DATA OUTPUT [--leave-out rsna] [--seed 0] [--set epochs=4] [--test]

DATA holds the folders of examples/train_default.py, and `cohen` and `shenzhen`, which are never trained on. The
threshold is the bundle's, chosen on validation patients of the sources that were trained on. `--test` measures the
official test split of the paediatric set, too: once, for a model that is released. One line of JSON per run is added to
`OUTPUT/generalisation.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cxrlib import Predictor, Report, evaluate, train
from cxrlib.config import recipe_of
from cxrlib.data.scan import Dataset, scan
from cxrlib.metrics.compute import auroc

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_default import ABOUT, HERE, images

LABELS = ("NORMAL", "PNEUMONIA")


def figures(report: Report) -> dict[str, Any]:
    """The figures of a report that are compared, with their intervals."""
    names = ("auroc", "recall", "specificity", "accuracy", "ece")
    values = {name: getattr(report, name) for name in names}
    return {name: [round(float(x), 4) for x in (e.value, e.low, e.high)] for name, e in values.items()} | {
        "n": report.n,
        "refused": report.n_refused,
    }


def external(predictor: Predictor, data: Path) -> dict[str, Any]:
    """Sensitivity on `cohen`, specificity on `shenzhen`, and how often other diseases are called positive."""
    cohen = scan(data / "cohen", labels=LABELS)
    shenzhen = scan(data / "shenzhen", labels=("NORMAL", "TUBERCULOSIS"))
    other = scan(f"{HERE / 'nih_other.csv'}@{data / 'nih'}", labels=("NORMAL", "OTHER"))
    normal = np.flatnonzero(shenzhen.targets == 0)
    found = {
        "cohen": probabilities(predictor, cohen),
        "shenzhen": probabilities(predictor, shenzhen.take(normal)),
        "tuberculosis": probabilities(predictor, shenzhen.take(np.flatnonzero(shenzhen.targets == 1))),
        "nih_other": probabilities(predictor, other),
    }
    positive = {name: float((p >= predictor.threshold).mean()) for name, p in found.items()}
    p = np.concatenate([found["cohen"], found["shenzhen"]])
    return {
        "external_auroc": round(auroc(np.arange(len(p)) < len(found["cohen"]), p), 4),
        "cohen_sensitivity": round(positive["cohen"], 4),
        "shenzhen_specificity": round(1 - positive["shenzhen"], 4),
        "tuberculosis_positive": round(positive["tuberculosis"], 4),
        "nih_other_positive": round(positive["nih_other"], 4),
    }


def probabilities(predictor: Predictor, dataset: Dataset) -> np.ndarray:
    """The probability of pneumonia of each image, the gate left out: (n,)."""
    return np.array([p.probabilities["PNEUMONIA"] for p in predictor.stream(dataset.paths)])


def main() -> None:
    """Train without a source, measure, add a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--leave-out", default="none", choices=("none", "chest_xray", "nih", "rsna"))
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the recipe, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    options = parser.parse_args()
    settings = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in options.set)}
    recipe = recipe_of({"name": options.recipe, "seed": options.seed, **settings})
    dataset = images(options.data)
    left_out = np.array([source == options.leave_out for source in dataset.sources])
    name = "-".join([options.recipe, "without", options.leave_out, str(options.seed), *options.set])
    run = train(
        dataset.take(np.flatnonzero(~left_out)),
        output=options.output / "".join(c if c.isalnum() or c in "-.=" else "_" for c in name),
        recipe=recipe,
        formats=("keras", "h5"),
        about=ABOUT,
        leaks="drop",
    )
    ungated = Predictor(run.bundle, gate=False)
    line: dict[str, Any] = {"leave_out": options.leave_out, "recipe": options.recipe, "seed": options.seed}
    line |= {"settings": settings, "threshold": round(float(ungated.threshold or 0), 4)}
    line["validation"] = figures(run.report)
    line |= external(ungated, options.data)
    if left_out.any():
        line[options.leave_out] = figures(evaluate(ungated, dataset.take(np.flatnonzero(left_out)), progress=False))
    if options.leave_out == "nih":  # those that radiologists have read; and with the labels mined from reports
        left = dataset.take(np.flatnonzero(left_out))
        read = left.take(np.flatnonzero([bool(read) for read in left.columns["radiologists"]]))
        line["nih_read"] = figures(evaluate(ungated, read, progress=False))
        line["nih_mined"] = figures(evaluate(ungated, scan(options.data / "nih", labels=LABELS), progress=False))
    if options.test:
        line["official_test"] = figures(evaluate(run.bundle, options.data / "chest_xray/test", progress=False))
    with (options.output / "generalisation.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))


if __name__ == "__main__":
    main()
