"""Train the model that comes with cxrlib: the paediatric set, NIH and RSNA, with the default recipe.

python examples/train_default.py DATA OUTPUT

DATA holds chest_xray/train, nih and rsna, each with folders of NORMAL and PNEUMONIA; docs/how-to/get-the-data.md says where they come from. The file
views.csv beside this one says how the adults were filmed (benchmarks/views.py makes it), so that lying in bed cannot stand for being ill.
"""

import sys
from pathlib import Path

from cxrlib import TrainConfig, bundle, train
from cxrlib.data.scan import add_columns, scan

VIEWS = Path(__file__).with_name("views.csv")

POPULATION = (
    "children of one to five years of one hospital in Guangzhou (Kermany et al. 2018), and adults of the NIH Clinical Center in Bethesda "
    "(ChestX-ray14, and the RSNA Pneumonia Detection Challenge, which drew its films from there)"
)
LICENSE = "other"  # the RSNA's films are for research


def main(data: str, output: str, config: TrainConfig | None = None) -> Path:
    """Give the bundle's folder; started again after it was stopped, it goes on."""
    films = add_columns(scan([Path(data, name) for name in ("chest_xray/train", "nih", "rsna")]), VIEWS)
    run = train(films, output=output, config=config or TrainConfig())
    return bundle.update(run.bundle, population=POPULATION, license=LICENSE)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(main(*sys.argv[1:]))
