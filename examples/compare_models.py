"""Which of two models has the higher AUROC on the images of a hospital, and is the difference more than chance?

python examples/compare_models.py default runs/second hospital-c
"""

import sys

from cxrlib import Estimate, Predictor, evaluate
from cxrlib.metrics.comparison import compare


def main(first: str, second: str, data: str) -> Estimate:
    """Measure both on the same images, without gates; returns the first AUROC minus the second."""
    reports = [evaluate(Predictor(model, gate=False), data) for model in (first, second)]
    for model, r in zip((first, second), reports, strict=True):
        print(f"{model}: AUROC {r.auroc}; at its threshold sensitivity {r.recall}, specificity {r.specificity}")
    return compare(*reports)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    difference = main(*sys.argv[1:])
    low, high = difference.low, difference.high
    print(f"difference of the AUROCs: {difference.value:+.3f} ({low:+.3f} to {high:+.3f})")
    print("no difference is shown" if low <= 0 <= high else "the difference is more than chance")
