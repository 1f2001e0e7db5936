"""Would a third class, or age, sex and view, help? Heads on the features of a network that has not seen the source.

    python benchmarks/other_disease.py DATA BUNDLE

DATA holds `nih`; BUNDLE was trained without it (`benchmarks/generalisation.py --leave-out nih`). Images that
radiologists read as not normal and without opacity are the third class, OTHER. Heads are penalised logistic models,
fitted on nine tenths of the patients and measured on the rest, in turn; intervals are a clustered bootstrap's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from cxrlib import bundle
from cxrlib.data.scan import scan
from cxrlib.images.decode import fit, read
from cxrlib.metrics.compute import auroc
from cxrlib.metrics.intervals import clusters, resamples

HERE = Path(__file__).parents[1] / "examples"
LABELS = ("NORMAL", "PNEUMONIA", "OTHER")
SENSITIVITY = 0.85
FOLDS, BOOTSTRAP = 10, 1000
Array = np.ndarray


def out_of_fold(x: Array, y: Array, patients: Array, *, c: float, others: int | None = None, seed: int = 0) -> Array:
    """Class probabilities (n, k) of models that have not seen the patient; `others` bounds class 2 in fitting."""
    rng = np.random.default_rng(seed)
    found = np.zeros((len(y), len(set(y.tolist()))))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, y, patients):
        third = rng.permutation(train[y[train] == 2])
        rows = np.concatenate([train[y[train] != 2], third[:others]])
        mean, deviation = x[rows].mean(0), x[rows].std(0) + 1e-3
        model = LogisticRegression(C=c, class_weight="balanced", max_iter=2000)
        model.fit((x[rows] - mean) / deviation, y[rows])
        found[np.ix_(test, model.classes_)] = model.predict_proba((x[test] - mean) / deviation)
    return found


def measured(y: Array, score: Array, patients: Array) -> dict[str, Any]:
    """AUROC of pneumonia against all others and against normal; how often OTHER is positive at the sensitivity."""

    def of(weights: Array) -> list[float]:
        positive, w = y == 1, weights.astype(float)
        order = np.argsort(-score[positive])
        share = np.cumsum(w[positive][order]) / w[positive].sum()
        threshold = score[positive][order][int(np.searchsorted(share, SENSITIVITY))]
        called = np.average(score[y == 2] >= threshold, weights=w[y == 2]) if (y == 2).any() else np.nan
        two = y != 2
        return [auroc(positive, score, w), auroc(positive[two], score[two], w[two]), float(called)]

    names = ("auroc_against_all", "auroc_against_normal", "other_called_positive")
    blocks = resamples(clusters(patients.tolist()), BOOTSTRAP, 0)
    draws = np.array([of(w) for block in blocks for w in block])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    values = zip(names, of(np.ones(len(y))), low, high, strict=True)
    return {name: [round(float(v), 3) for v in row] for name, *row in values if np.isfinite(row[0])}


def main(data: Path, folder: Path) -> None:
    """Print one line per head."""
    manifests = [f"{HERE / name}@{data / 'nih'}" for name in ("nih_radiologists.csv", "nih_other.csv")]
    parts = [scan(manifests[0], labels=LABELS[:2]), scan(manifests[1], labels=("NORMAL", "OTHER"))]
    y = np.concatenate([parts[0].targets, np.full(len(parts[1]), 2)])
    patients = np.array([patient for part in parts for patient in part.patients])
    columns = {name: np.array([v for part in parts for v in part.columns[name]]) for name in ("age", "sex", "view")}
    loaded = bundle.load(folder)
    size, runtime = loaded.config.image_size, loaded.runtime
    outputs = [runtime.run(fit(read(p, model_size=size), size)[None]) for part in parts for p in part.paths]
    p = np.concatenate([output.probabilities for output in outputs])[:, 1].astype(float)
    logit = np.log(p / (1 - p))[:, None]  # (n, 1)
    features = np.concatenate([output.embedding for output in outputs])[:, -1280:]  # pooled, as the head has them
    told = np.stack(
        [columns["age"].astype(float) / 10, columns["sex"] == "F", columns["view"] == "AP"], axis=1
    )  # (n, 3)
    view = told[:, 2:]

    def show(name: str, score: Array, rows: Array | slice = slice(None)) -> None:
        print(json.dumps({"head": name, **measured(y[rows], score[rows], patients[rows])}), flush=True)

    show("the network as it is", logit[:, 0])
    binary = (y == 1).astype(int)
    for n in (10, 20, 40, None):
        three = out_of_fold(features, y, patients, c=1e-3, others=n)
        show(f"three classes, {n or 'all'} of OTHER to fit", three[:, 1])
    show("two classes, OTHER among the normal", out_of_fold(features, binary, patients, c=1e-3)[:, 1])
    two = np.flatnonzero(y != 2)
    for name, x in (
        ("logit", logit),
        ("logit, age, sex, view", np.hstack([logit, told])),
        ("age, sex, view", told),
        ("view", view),
    ):
        score = np.full(len(y), np.nan)
        score[two] = out_of_fold(x[two], y[two], patients[two], c=1.0)[:, 1]
        show(f"normal or pneumonia from {name}", score, two)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
