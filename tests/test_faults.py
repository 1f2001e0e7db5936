"""What may go wrong around cxrlib: processes killed at the worst moment, names that are no text, no home, no disk, no permission, libraries that are absent.

`benchmarks/faults.py` does the same at random moments, many times.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from cxrlib import Predictor, data, evaluate, phantom
from cxrlib.metrics import Report

# --- names that are no UTF-8 ---


def test_names_that_are_no_text_go_all_the_way(tmp_path: Path, tiny: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [train] extra")
    for i in range(8):
        place = os.fsencode(tmp_path) + b"/M\xfcnchen/" + (b"NORMAL", b"PNEUMONIA")[i % 2] + b"/K\xf6hler%d.png" % i
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            Image.fromarray(phantom.draw(i, size=64)).save(os.fsdecode(place))
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
    Path(os.fsdecode(place)).write_bytes(b"no film")  # its path stands in the reason, too
    films = data.scan(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcnchen"))
    assert films.sources[0] == "M\\xfcnchen"
    assert films.names[0] == "M\\xfcnchen/NORMAL/K\\xf6hler0.png"
    sides = data.split(films, fraction=0.3)
    data.write_manifest(films, tmp_path / "films.csv", sides=sides)
    assert "K\\udcf6hler0.png" in (tmp_path / "films.csv").read_text("utf-8")
    report = evaluate(Predictor(tiny, gate=False, threads=1), films, output=tmp_path / "report", progress=False)
    assert Report.from_json((tmp_path / "report" / "report.json").read_text("utf-8")).to_json() == report.to_json()
    assert report.n_refused == 1
    assert "K\\udcf6hler7.png" in (tmp_path / "report" / "report.html").read_text("utf-8")
