"""Write the manifests beside this file from `films.csv` tables: `python examples/make_nih_manifests.py [DATA]`.

DATA (default: `$CXRLIB_SHARED/data`) holds the folders `nih` and `rsna` with their tables. Labels of ChestX-ray14 were
mined from reports; of some images radiologists of the RSNA said later what they see. This takes their word:

- `nih_radiologists.csv`: images called Normal are NORMAL and those with Lung Opacity PNEUMONIA, whatever was mined;
  images mined as No Finding that no radiologist read are NORMAL; all others are left out.
- `nih_other.csv`: images called No Lung Opacity / Not Normal, as OTHER.
- `rsna_patients.csv`: the known patients of the RSNA images, two of whom are in ChestX-ray14's folder, too.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
READ = {"Normal": "NORMAL", "Lung Opacity": "PNEUMONIA", "No Lung Opacity / Not Normal": "OTHER"}
KNOWN = ("age", "sex", "view")


def rows_of(table: Path) -> Iterator[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def write(name: str, columns: Sequence[str], rows: list[dict[str, str]]) -> None:
    with (HERE / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row[columns[0]]))
    print(f"{name}: {len(rows)} images")


def main(data: Path) -> None:
    nih = []
    for row in rows_of(data / "nih" / "films.csv"):
        unread = "NORMAL" if row["findings"] == "No Finding" else ""
        label = READ[row["radiologists"]] if row["radiologists"] else unread
        if label:
            nih.append({**row, "label": label})
    columns = ("path", "label", "patient", *KNOWN, "radiologists")
    write("nih_radiologists.csv", columns, [row for row in nih if row["label"] != "OTHER"])
    write("nih_other.csv", columns, [row for row in nih if row["label"] == "OTHER"])
    rsna = [row for row in rows_of(data / "rsna" / "films.csv") if row["patient"]]
    rsna = [{**row, "image": f"rsna/{row['path']}", "patient": f":{row['patient']}"} for row in rsna]
    write("rsna_patients.csv", ("image", "patient", *KNOWN), rsna)


if __name__ == "__main__":
    shared = Path(os.environ.get("CXRLIB_SHARED", HERE.parents[1] / "shared"))
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else shared / "data")
