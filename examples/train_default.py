"""Train the model that comes with cxrlib: `python examples/train_default.py DATA OUTPUT`.

DATA holds the folders `chest_xray`, `nih` and `rsna`; docs/how-to/get-the-data.md says where they come from. Of
ChestX-ray14, `nih_radiologists.csv` beside this file names the images whose label radiologists bear out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cxrlib import train
from cxrlib.config import DefaultRecipe, Recipe
from cxrlib.data.scan import Dataset, add_columns, scan

HERE = Path(__file__).parent
ABOUT = {
    "population": (
        "children of one to five years at one hospital in Guangzhou (Kermany et al. 2018), and adults of the NIH "
        "Clinical Center in Bethesda (ChestX-ray14, and the RSNA Pneumonia Detection Challenge, drawn from it)"
    ),
    "license": "other",  # the images of the RSNA are for research
}


def images(data: str | Path) -> Dataset:
    """List the three sources, with the patients that two of them share."""
    data = Path(data)
    places = [str(data / "chest_xray/train"), f"{HERE / 'nih_radiologists.csv'}@{data / 'nih'}", str(data / "rsna")]
    return add_columns(scan(places, labels=("NORMAL", "PNEUMONIA")), HERE / "rsna_patients.csv")


def main(data: str, output: str, recipe: Recipe | None = None) -> Path:
    """Train, or go on with a training that was stopped; returns the bundle's folder."""
    return train(images(data), output=output, recipe=recipe or DefaultRecipe(), about=ABOUT, leaks="drop").bundle


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(main(*sys.argv[1:]))
