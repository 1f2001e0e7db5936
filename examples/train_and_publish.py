"""Train on images of several hospitals, measure on one that was left out, and publish if it is good enough there.

python examples/train_and_publish.py user/repo hospital-a hospital-b --unseen hospital-c
"""

import argparse
from collections.abc import Sequence

from cxrlib import evaluate, train
from cxrlib.config import Recipe

GOOD_ENOUGH = 0.90  # lower end of the AUROC's 95 % interval, in a hospital that had no part in training


def main(
    arguments: Sequence[str] | None = None, recipe: str | Recipe = "default", good_enough: float = GOOD_ENOUGH
) -> str:
    """Returns the address of the published model, or why there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--output", default="runs/published")
    options = parser.parse_args(arguments)

    run = train(options.data, output=options.output, recipe=recipe)  # stopped? the same command goes on
    report = evaluate(run.predictor, options.unseen, output=f"{options.output}-unseen")
    if not report.auroc.low >= good_enough:
        return f"not published: AUROC {report.auroc} in {options.unseen}"
    return run.predictor.push_to_hub(options.repo, commit_message=f"AUROC {report.auroc} in an unseen hospital").url


if __name__ == "__main__":
    print(main())
