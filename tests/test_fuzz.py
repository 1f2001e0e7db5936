"""Some seconds of fuzzing for every parser of foreign bytes, and what fuzzing has found. Longer: tests/fuzz/run.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from cxrlib import BundleError
from cxrlib.bundle import read_config
from cxrlib.data import scan as data
from cxrlib.metrics.report import Report

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

from run import fuzz
from targets import TARGETS

SECONDS = 2


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_crash_nothing(name: str) -> None:
    if name == "dicom":
        pytest.importorskip("pydicom")
    assert fuzz(name, seconds=SECONDS, engine="random") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_inputs_guided_by_coverage_crash_nothing(name: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris, which not every Python has: pip install atheris")
    if name == "dicom":
        pytest.importorskip("pydicom")
    assert fuzz(name, seconds=SECONDS, engine="atheris") == ""


def test_the_seeds_are_sound() -> None:
    """What each parser takes without complaint: otherwise only the first check of each would be fuzzed."""
    from cxrlib.images.decode import read

    for name in ("images", "dicom"):
        if name == "dicom":
            pytest.importorskip("pydicom")
        for content in TARGETS[name].seeds():
            assert read(content).pixels.size > 0
            assert read(TARGETS[name].repair(content)).pixels.size > 0
    for content in TARGETS["config"].seeds()[:2]:
        assert read_config(content).labels == ("NORMAL", "PNEUMONIA")
    for content in TARGETS["report"].seeds():
        assert Report.from_json(content.decode()).n == 4


# --- found by fuzzing ---


def test_a_path_that_is_too_long_is_a_missing_image(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("path,label\n" + "x" * 300 + ",NORMAL\n")
    with pytest.raises(FileNotFoundError, match=r"lists 1 image that cannot be found below .*: xxx"):
        data.scan(tmp_path / "images.csv")
    with pytest.raises(FileNotFoundError, match="there is no folder or manifest 'xxx"):
        data.scan("x" * 300)


def test_numbers_beyond_floating_point_are_neither_a_config_nor_a_report() -> None:
    huge = 10**400
    whole = json.loads(TARGETS["config"].seeds()[0])
    with pytest.raises(BundleError, match="is not the config of a cxrlib bundle: int too large to convert to float"):
        read_config(json.dumps({**whole, "temperature": huge}).encode())
    whole = json.loads(TARGETS["report"].seeds()[0])
    for name, value in (("confusion_matrix", [[huge, 0], [0, 0]]), ("auroc", {"value": huge, "low": 0, "high": 1})):
        with pytest.raises(ValueError, match=r"this is not a cxrlib report of schema 2: .*too large"):
            Report.from_json(json.dumps({**whole, name: value}))
