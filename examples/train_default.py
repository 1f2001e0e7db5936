"""Train the model that comes with cxrlib: the paediatric set, NIH and RSNA, with the default recipe.

python examples/train_default.py DATA OUTPUT

DATA holds chest_xray/train, nih and rsna, each with folders of NORMAL and PNEUMONIA; docs/how-to/get-the-data.md says where they come from.
"""

import sys
from pathlib import Path

from cxrlib import TrainConfig, bundle, train

POPULATION = (
    "children of one to five years of one hospital in Guangzhou (Kermany et al. 2018), and adults of the NIH Clinical Center in Bethesda "
    "(ChestX-ray14, and the RSNA Pneumonia Detection Challenge, which drew its films from there)"
)
LICENSE = "other"  # the RSNA's films are for research


def main(data: str, output: str, config: TrainConfig | None = None) -> Path:
    """Give the bundle's folder; started again after it was stopped, it goes on."""
    sources = [Path(data, name) for name in ("chest_xray/train", "nih", "rsna")]
    run = train(sources, output=output, config=config or TrainConfig())
    return bundle.update(run.bundle, population=POPULATION, license=LICENSE)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
