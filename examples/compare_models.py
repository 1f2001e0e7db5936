"""Which of two models ranks the films of a hospital better, and is the difference more than chance?

python examples/compare_models.py default runs/second hospital-c
"""

import sys

from cxrlib import Estimate, Predictor, evaluate
from cxrlib.metrics.comparison import compare


def main(first: str, second: str, data: str) -> Estimate:
    """Measure both on the same films, ungated, so that none is spared a hard film; give the difference of their
    AUROCs."""
    reports = [evaluate(Predictor(model, gate=False), data) for model in (first, second)]
    for model, report in zip((first, second), reports, strict=True):
        print(
            f"{model}: AUROC {report.auroc}, at its threshold sensitivity {report.recall} "
            f"and specificity {report.specificity}"
        )
    return compare(*reports)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    difference = main(*sys.argv[1:])
    print(
        f"AUROC of the first less that of the second: {difference.value:+.3f} "
        f"({difference.low:+.3f} to {difference.high:+.3f})"
    )
    print("no difference is shown" if difference.low <= 0 <= difference.high else "the difference is more than chance")
