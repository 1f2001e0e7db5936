"""Folders, names and data as people have them, each of a kind that some library was reported to get wrong."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrlib import Predictor, phantom
from cxrlib.data.scan import scan
from cxrlib.data.split import sides


def command(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "cxrlib", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_of_any_script_are_printed_and_written(tiny: Path, tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "Röntgen 影像"
    folder.mkdir()
    phantom.save(folder / "胸部 é.png", size=64)
    done = command(
        "predict", folder, "--model", tiny, "--csv", "out.csv", cwd=tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="1"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.decode(encoding).splitlines()) >= 1
    [row] = csv.DictReader((tmp_path / "out.csv").read_text("utf-8-sig").splitlines())
    assert Path(row["source"]).name == "胸部 é.png"
    assert row["status"] == "ok"


def test_class_folders_in_any_order_of_the_alphabet(tmp_path: Path) -> None:
    for label, opacity in (("Z_CLEAR", False), ("A_PNEUMONIA", True)):
        (tmp_path / "set" / label).mkdir(parents=True)
        phantom.save(tmp_path / "set" / label / "x.png", size=64, opacity=opacity)
    found = scan(tmp_path / "set", labels=("Z_CLEAR", "A_PNEUMONIA"))
    by_folder = {Path(path).parent.name: found.labels[k] for path, k in zip(found.paths, found.targets, strict=True)}
    assert by_folder == {"Z_CLEAR": "Z_CLEAR", "A_PNEUMONIA": "A_PNEUMONIA"}
    assert found.labels == ("Z_CLEAR", "A_PNEUMONIA")
    turned = scan(tmp_path / "set", labels=("A_PNEUMONIA", "Z_CLEAR"))
    assert turned.targets.tolist() == [1 - k for k in found.targets]


def test_what_file_managers_leave_in_class_folders(tmp_path: Path) -> None:
    folder = phantom.write(tmp_path / "set", n=2, size=64)
    for label in ("NORMAL", "PNEUMONIA"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._x.png", ".hidden.png"):
            (folder / label / name).write_bytes(b"\0\5\x16\7")
        (folder / label / ".thumbnails").mkdir()
        phantom.save(folder / label / ".thumbnails" / "x.png", size=64)
    found = scan(folder)
    assert len(found) == 4
    assert not any(Path(path).name.startswith(".") for path in found.paths)


def test_one_patient_in_two_sources_of_a_manifest_stays_on_one_side(tmp_path: Path) -> None:
    lines = ["path,label,source,patient"]
    for i in range(60):
        name = f"{i}.png"
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / name)
        lines.append(f"{name},{('NORMAL', 'PNEUMONIA')[i % 2]},{('a', 'b')[i // 2 % 2]},{i // 4}")
    (tmp_path / "all.csv").write_text("\n".join(lines), "utf-8")
    data = scan(tmp_path / "all.csv")
    for seed in range(5):
        split, _ = sides(data, fraction=0.3, seed=seed)
        train, validation = ({data.patients[i] for i in side} for side in (split.train, split.validation))
        assert train
        assert validation
        assert not train & validation


def test_a_read_only_folder_is_no_obstacle(tiny: Path, tmp_path: Path) -> None:
    phantom.save(tmp_path / "x.png", size=64)
    model = shutil.copytree(tiny, tmp_path / "model")
    for path in (*model.rglob("*"), model, tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert Predictor(model)(tmp_path / "x.png").status == "ok"
        assert command("predict", "x.png", "--model", model, cwd=tmp_path).returncode == 0
    finally:
        for path in (tmp_path, model):
            path.chmod(0o755)


def test_two_thousand_answers_need_no_more_memory_than_two_hundred(tiny: Path) -> None:
    resource = pytest.importorskip("resource")
    predictor, image = Predictor(tiny), phantom.draw(size=64)
    sizes = []
    for n in (300, 2000):
        for _ in range(n):
            predictor(image)
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20))
    assert sizes[1] - sizes[0] < 16, "MiB"
