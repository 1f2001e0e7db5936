"""Every awkward file of the list in CXRLIB_SHARED, through the bundled model: answered, warned of, refused or named."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from cxrlib import Predictor
from cxrlib.images.sources import ImageError

CASES = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared")) / "cases"
LISTED = CASES / "cases.csv"
pytestmark = pytest.mark.skipif(not LISTED.is_file(), reason="needs the cases of CXRLIB_SHARED")
ROWS = list(csv.DictReader(LISTED.read_text("utf-8").splitlines())) if LISTED.is_file() else []
FEW = {"lateral": 0.05, "ct": 0.05, "monitor": 0.25}  # of these, so many may come out otherwise


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor()


def outcome(predictor: Predictor, path: str) -> str:
    try:
        prediction = predictor(CASES / path)
    except ImageError:
        return "error"
    if prediction.status == "refused":
        return "refuse"
    return "warn" if prediction.reasons else "answer"


def right(found: str, expected: str) -> bool:
    return found in expected.split(" or ") or (expected == "answer" and found == "warn")


@pytest.mark.parametrize("row", [row for row in ROWS if row["path"].split("/")[0] not in FEW], ids=lambda r: r["path"])
def test_a_case(predictor: Predictor, row: dict[str, str]) -> None:
    if not row["expected"].startswith("as "):
        assert right(outcome(predictor, row["path"]), row["expected"]), row["what"]
        return
    expected, found = predictor(CASES / row["expected"][3:]), predictor(CASES / row["path"])
    assert (found.label, found.status) == (expected.label, expected.status), row["what"]
    lossy = row["path"].endswith(".jpg")
    assert found.probability == pytest.approx(expected.probability, abs=0.03 if lossy else 0.02)


@pytest.mark.parametrize(("kind", "share"), FEW.items())
def test_a_kind(predictor: Predictor, kind: str, share: float) -> None:
    rows = [row for row in ROWS if row["path"].startswith(f"{kind}/")]
    assert len(rows) >= 8
    wrong = [row["path"] for row in rows if not right(outcome(predictor, row["path"]), row["expected"])]
    assert len(wrong) <= share * len(rows), wrong
