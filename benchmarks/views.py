"""Who was filmed lying: the view positions of the NIH's and the RSNA's films, as `examples/views.csv` holds them.

    python benchmarks/views.py Data_Entry_2017_v2020.csv nih rsna examples/views.csv

The NIH publishes the view of each of its films (AP is mostly a portable machine at the bedside, PA a patient who stands), in ChestX-ray14's table
`Data_Entry_2017_v2020.csv`. The RSNA's films, as copies without their DICOM headers, say nothing: theirs is estimated by a logistic regression on frozen
features, trained on the NIH's. Prints, as JSON, how well that does in cross-validation by patients, and how views and classes go together.
"""

from __future__ import annotations

import csv
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxrlib.data.cache import open_cache
from cxrlib.data.scan import Dataset, scan
from cxrlib.network.model import build_model, serving_graph

STRENGTH = 0.01


def features(films: Dataset) -> np.ndarray:
    """What the frozen network makes of the whole film: (n, d)."""
    network, pixels = serving_graph(build_model()), open_cache(films)
    starts = range(0, len(films), 64)
    return np.concatenate(
        [
            np.asarray(
                network.predict_on_batch(pixels[np.arange(i, min(i + 64, len(films)))][..., None] / np.float32(255))[
                    "embedding"
                ]
            )
            for i in starts
        ]
    )


def parts(films: Dataset, lying: np.ndarray) -> dict[str, float]:
    """The part of each class that was filmed AP."""
    return {label: round(float(lying[films.targets == k].mean()), 3) for k, label in enumerate(films.labels)}


def main(table: str, nih: str, rsna: str, target: str) -> None:
    with open(table, encoding="utf-8", newline="") as file:
        known = {os.path.splitext(row["Image Index"])[0]: row["View Position"] for row in csv.DictReader(file)}
    told, asked = scan(nih), scan(rsna)
    lying = np.array([known[os.path.splitext(os.path.basename(path))[0]] == "AP" for path in told.paths])
    x, model = features(told), make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    p = cross_val_predict(model, x, lying, groups=told.patients, cv=folds, method="decision_function")
    estimated = model.fit(x, lying).predict(features(asked))
    with open(target, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("film", "view"))
        for films, answers in ((told, lying), (asked, estimated)):
            writer.writerows(
                (name, "AP" if answer else "PA") for name, answer in zip(films.names, answers.tolist(), strict=True)
            )
    found = {
        "AUROC of the estimate": float(roc_auc_score(lying, p)),
        "its accuracy": float(((p > 0) == lying).mean()),
        "films AP, NIH": parts(told, lying),
        "films AP, RSNA, estimated": parts(asked, estimated),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
