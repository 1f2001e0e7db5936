"""What may go wrong around cxrlib: processes killed at the worst moment, names that are no text, no home, no disk, no permission, libraries that are absent.

`benchmarks/faults.py` does the same at random moments, many times.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cxrlib import Predictor, TrainConfig, data, evaluate, phantom
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


# --- a training that is killed ---

TINY = TrainConfig(image_size=32, epochs=2, views=1, head_epochs=1, hidden=8, batch_size=8, fine_tune_from="block_16_project", average=2, validation=0.25)


@pytest.mark.slow
def test_a_training_killed_between_its_checkpoint_and_its_state_trains_no_epoch_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("keras", reason="needs the [train] extra")
    from cxrlib import fitting, train

    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))
    films = phantom.write(tmp_path / "films", n=12, seed=3, size=64)
    options: dict[str, Any] = {"config": TINY, "init": None, "progress": False}
    whole = train(films, output=tmp_path / "whole", **options)
    write = fitting._write

    def stop_before_the_state(path: Path, state: dict[str, Any]) -> None:
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_write", stop_before_the_state)
        with pytest.raises(KeyboardInterrupt):
            train(films, output=tmp_path / "broken", **options)
    record = (tmp_path / "broken.partial" / "run.json").read_text()
    resumed = train(films, output=tmp_path / "broken", **options)
    for name in ("loss", "val_auroc"):
        assert resumed.history[name] == pytest.approx(whole.history[name], rel=1e-3)

    left = tmp_path / "broken.partial"  # as when it is killed while it clears up
    left.mkdir()
    (left / "run.json").write_text(record)
    (left / "last-0.weights.h5").write_bytes(b"half of it is gone")
    train(films, output=tmp_path / "broken", **options)
    assert not left.exists()
    left.mkdir()
    (left / "run.json").write_text("{}")  # another training's, which may want to go on
    train(films, output=tmp_path / "broken", **options)
    assert left.exists()


def test_a_training_killed_at_its_first_step_can_begin_anew(tmp_path: Path) -> None:
    from cxrlib import training

    for name in ("lock", "part-run.json"):  # before the record is whole there is none
        work = tmp_path / f"killed after {name}.partial"
        work.mkdir()
        (work / name).write_text("")
        with training._alone(work, {"seed": 1}):
            assert json.loads((work / "run.json").read_text()) == {"seed": 1}
        with training._alone(work, {"seed": 1}):
            pass
        with pytest.raises(FileExistsError, match="holds an unfinished run of other data or another recipe"), training._alone(work, {"seed": 2}):
            pass
        shutil.rmtree(work)
