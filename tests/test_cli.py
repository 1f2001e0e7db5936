"""The command line: every image has its row, every error its sentence and its exit status."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_network
from PIL import Image

from cxrlib import Predictor, __version__
from cxrlib.cli import main
from cxrlib.config import DISCLAIMER
from cxrlib.images import phantom

ROOT = Path(__file__).parents[1]
KEYS = ["source", "status", "label", "probability", "threshold", "probabilities", "reasons"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two images, below which lie a blank one and one that is damaged."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for seed in (1, 2):
        phantom.save(folder / f"image{seed}.png", seed, size=96)
    Image.new("L", (96, 96)).save(folder / "more" / "blank.png")
    (folder / "more" / "damaged.png").write_bytes((folder / "image1.png").read_bytes()[:500])
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def usage(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a wrong call says; its status must be 2."""
    assert run(*arguments) == 2
    return capsys.readouterr().err


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- predict ---


def test_sentences(gated: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", images / "image1.png", images / "more" / "blank.png", "--model", gated) == 0
    out, err = capsys.readouterr()
    first, refused = out.splitlines()
    p = Predictor(gated)(images / "image1.png")
    assert first == f"{images / 'image1.png'}: {p.label} (probability {p.probability:.3f}, threshold {p.threshold:.3f})"
    assert refused == f"{images / 'more' / 'blank.png'}: refused: it is almost blank"
    assert DISCLAIMER in err
    assert run("predict", images / "image1.png", "--model", gated, "--no-gate") == 0
    assert (
        capsys.readouterr().out.splitlines()[1]
        == "  note: the gate is off: nothing checked that this is a frontal chest radiograph"
    )


def test_a_folder_in_json(gated: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", images, "--model", gated, "--json") == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["source"]).name for line in lines] == ["image1.png", "image2.png", "blank.png", "damaged.png"]
    assert all(list(line) == KEYS for line in lines)
    assert [line["status"] for line in lines] == ["ok", "ok", "refused", "unreadable"]
    assert lines[0] == Predictor(gated)(images / "image1.png").to_dict()
    assert lines[3]["reasons"][0].startswith(f"{images / 'more' / 'damaged.png'}: it is cut short")
    assert (lines[3]["label"], lines[3]["probability"]) == (None, None)
    assert err.startswith(f"cxrlib: {images / 'more' / 'damaged.png'}: it is cut short")
    assert DISCLAIMER not in out


@pytest.mark.parametrize("heatmaps", [False, True])
def test_a_table_has_a_row_for_every_image(
    gated: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], heatmaps: bool
) -> None:
    (tmp_path / "empty").mkdir()
    table = tmp_path / "table.csv"
    more = ("--heatmaps", tmp_path / "heat") if heatmaps else ()
    assert (
        run(
            "predict",
            images,
            "nowhere.png",
            tmp_path / "empty",
            images / "image1.png",
            "--model",
            gated,
            "--csv",
            table,
            *more,
        )
        == 1
    )
    found = rows(table)
    columns = ["source", "status", "label", "probability", "threshold"]
    columns += ["probability_NORMAL", "probability_PNEUMONIA", "reasons"]
    assert list(found[0]) == columns + ["heatmap"] * heatmaps
    painted = [str(tmp_path / "heat" / name) for name in ("image1.png", "image2.png", "image1-2.png")]
    assert [row.pop("heatmap", "") for row in found] == (
        [*painted[:2], "", "", "", "", painted[2]] if heatmaps else [""] * 7
    )
    names = [str(images / name) for name in ("image1.png", "image2.png", "more/blank.png", "more/damaged.png")]
    assert [row["source"] for row in found] == [*names, "nowhere.png", str(tmp_path / "empty"), names[0]]
    assert found[0] == found[6]
    p = Predictor(gated)(names[0])
    assert (float(found[0]["probability"]), found[0]["label"]) == (p.probability, p.label)
    assert [row["probability"] == "" for row in found] == [False, False, True, True, True, True, False]
    assert found[2]["reasons"] == "it is almost blank"
    assert found[4]["reasons"] == "nowhere.png: no such file"
    assert found[5]["reasons"] == f"{tmp_path / 'empty'}: there are no images in this folder"
    err = capsys.readouterr().err
    assert "cxrlib: nowhere.png: no such file\n" in err
    assert "there are no images in this folder" in err


def test_heatmaps(gated: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    shutil.copytree(images, again)
    folder = tmp_path / "heat"
    assert run("predict", images, again / "image1.png", "--model", gated, "--heatmaps", folder) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if "heatmap:" in line] == [
        f"  heatmap: {folder / name}" for name in ("image1.png", "image2.png", "image1-2.png")
    ]
    long = shutil.copy(images / "image1.png", tmp_path / f"{'ä' * 120}.png")
    assert run("predict", long, images / "image1.png", "--model", gated, "--json", "--heatmaps", tmp_path / "new") == 0
    assert all(list(json.loads(line)) == KEYS for line in capsys.readouterr().out.splitlines())
    assert sorted(os.listdir(tmp_path / "new")) == ["image1.png", f"{'ä' * 100}.png"]
    assert sorted(os.listdir(folder)) == ["image1-2.png", "image1.png", "image2.png"]
    with Image.open(folder / "image1.png") as painted:
        assert (painted.mode, painted.size) == ("RGB", (96, 96))
    message = usage(capsys, "predict", images, "--model", gated, "--heatmaps", images)
    assert f"--heatmaps must name a folder of its own: {images} holds {images / 'image1.png'}" in message
    assert (images / "image1.png").read_bytes() == (again / "image1.png").read_bytes()


def test_a_summary(gated: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "more.txt", "README", ".hidden"):
        (images / name).touch()
    assert run("predict", images, "--model", gated) == 1
    err = capsys.readouterr().err.splitlines()
    counts = re.fullmatch(
        r"4 images: (\d) normal, (\d) pneumonia, 1 refused, 1 unreadable; "
        r"skipped 3 files that are not images \(2 \.txt, 1 without extension\)",
        err[-2],
    )
    assert counts
    assert sum(map(int, counts.groups())) == 2
    assert err[-1] == DISCLAIMER
    assert run("predict", images, "--model", gated, "--quiet") == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert "damaged.png" in err[0]


def test_a_bar_on_a_terminal(
    gated: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("predict", images, "--model", gated) == 1
    out, err = capsys.readouterr()
    assert "4/4" in err
    assert "<" in err, "with the time left"
    assert len(out.splitlines()) == 3
    assert run("predict", images, "--model", gated, "--quiet") == 1
    assert "4/4" not in capsys.readouterr().err


def test_patterns(gated: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "odd[1].png").write_bytes((images / "image1.png").read_bytes())
    words = (images / "image?.png", images / "odd[1].png", tmp_path / "im*", "none*.png")
    assert run("predict", *words, "--model", gated, "--json") == 1
    out, err = capsys.readouterr()
    found = [Path(json.loads(line)["source"]).name for line in out.splitlines()]
    whole = ["image1.png", "image2.png", "blank.png", "damaged.png", "odd[1].png"]
    assert found == ["image1.png", "image2.png", "odd[1].png", *whole, "none*.png"]
    assert "none*.png: no such file" in err


def test_a_table_that_cannot_be_written(
    tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "nowhere" / "table.csv"
    assert run("predict", images, "--model", tiny, "--csv", table) == 1
    said = f"cxrlib: --csv {table} cannot be written (No such file or directory): choose another place\n"
    assert capsys.readouterr().err == said
    assert run("train", tmp_path, "--output", tmp_path / "out", "--config", table) == 1
    assert capsys.readouterr().err == f"cxrlib: {table}: no such file or directory\n"


@pytest.mark.parametrize("more", [(), ("--heatmaps",)])
def test_a_missing_extra_costs_one_row(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: Sequence[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (images / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    table = tmp_path / "table.csv"
    assert (
        run(
            "predict",
            images / "a.dcm",
            images / "image1.png",
            "--model",
            tiny,
            "--csv",
            table,
            *more,
            *([tmp_path / "heat"] if more else []),
        )
        == 1
    )
    first, second = rows(table)
    assert 'pip install "cxrlib[dicom]"' in first["reasons"]
    assert second["label"]


def test_a_folder_that_cannot_be_listed_gets_a_row(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "image1.png").rename(images / "zoo.png")
    list_folder = os.scandir

    def scandir(folder: str) -> Any:
        if Path(folder).name == "more":
            raise PermissionError(13, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run("predict", images, "--model", tiny, "--csv", tmp_path / "table.csv") == 1
    found = rows(tmp_path / "table.csv")
    assert [Path(row["source"]).name for row in found] == ["image2.png", "more", "zoo.png"]
    assert [bool(row["label"]) for row in found] == [True, False, True]
    assert (
        found[1]["reasons"]
        == f"the folder {images / 'more'} cannot be listed (Permission denied): make it readable, or move it away"
    )


def test_decisions(tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def threshold(*options: str) -> Any:
        assert run("predict", images / "image1.png", "--model", tiny, "--json", *options) == 0
        return json.loads(capsys.readouterr().out)["threshold"]

    assert threshold() == 0.3
    assert threshold("--operating-point", "balanced") == 0.6
    assert threshold("--threshold", "0.45") == 0.45
    for wrong in ("1.5", "nan", "half"):
        assert f"argument --threshold: must be a number in [0, 1], not '{wrong}'" in usage(
            capsys, "predict", "x.png", "--threshold", wrong
        )
    both = ("--threshold", "0.5", "--operating-point", "balanced")
    assert "give an operating point or a threshold, not both" in usage(
        capsys, "predict", "x.png", "--model", tiny, *both
    )
    message = usage(capsys, "predict", images / "image1.png", "--model", tiny, "--operating-point", "best")
    assert "operating_point must be one of screening, balanced. Received: 'best'" in message
    point = {"threshold": 0.35, "sensitivity": 0.9, "specificity": 0.8, "by_source": {}}
    tiny = tiny_network.write(
        tmp_path / "ours", tiny_network.files(operating_points={"our ward": point}, default_point="our ward")
    )
    assert threshold("--operating-point", "our ward") == 0.35


def test_a_table_never_takes_the_place_of_an_image(
    tiny: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = shutil.copy(images / "image1.png", tmp_path / "image")
    before = {path: path.read_bytes() for path in (images / "image1.png", odd)}
    for words in (("--csv", images / "image1.png", images / "image2.png"), (odd, "--csv", odd)):
        assert "--csv must name a file that is not an image, such as table.csv" in usage(
            capsys, "predict", "--model", tiny, *words
        )
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_still_gives_a_table(tiny: Path, images: Path, tmp_path: Path, closed: str) -> None:
    words = shlex.join(
        ["predict", *map(str, (images / "image1.png", "--model", tiny, "--csv", tmp_path / "table.csv"))]
    )
    words = f"{shlex.quote(sys.executable)} -m cxrlib {words} {closed}"
    assert subprocess.run(["sh", "-c", words], check=False, capture_output=True).returncode == 0
    assert [row["source"] for row in rows(tmp_path / "table.csv")] == [str(images / "image1.png")]


def test_no_gate(gated: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", images / "more" / "blank.png", "--model", gated, "--no-gate", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"]
    assert answer["reasons"] == ["the gate is off: nothing checked that this is a frontal chest radiograph"]


def test_names_that_no_terminal_shows(
    tiny: Path, images: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    odd = os.fsdecode(os.fsencode(images) + b"/caf\xe9 \xf0\x9f\xab\x81.png")
    try:
        shutil.copy(images / "image1.png", odd)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    table = tmp_path / "table.csv"
    assert run("predict", odd, "--model", tiny, "--json", "--csv", table) == 0
    assert json.loads(capsysbinary.readouterr().out)["source"] == odd
    assert len(rows(table)) == 1


def test_an_interruption_leaves_what_was_done(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(self: Predictor, paths: Sequence[str], **_: Any) -> Iterator[Any]:
        for path in paths[:2]:
            yield self(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "stream", stream)
    assert run("predict", images, "--model", tiny, "--csv", tmp_path / "table.csv") == 130
    assert [Path(row["source"]).name for row in rows(tmp_path / "table.csv")] == ["image1.png", "image2.png"]


def test_an_interruption_while_a_compiled_module_is_loaded(
    tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise ImportError("initialization failed") from KeyboardInterrupt()  # as pybind11 does

    monkeypatch.setattr("cxrlib.runtime.litert.Runtime.__init__", load)
    assert run("predict", images / "image1.png", "--model", tiny) == 130
    assert capsys.readouterr().err == "cxrlib: stopped\n"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_in_a_process_of_its_own(tiny: Path, images: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    many = [str(images / "image1.png")] * 10_000
    words = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "cxrlib",
        "predict",
        *many,
        "--model",
        str(tiny),
        "--csv",
        str(table),
        "--json",
    ]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (table.exists() and table.stat().st_size > 500):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        err = process.communicate()[1]
    assert (process.returncode, err.splitlines()[-1]) == (130, "cxrlib: stopped")
    found = rows(table)
    assert 1 < len(found) < len(many)
    assert all(row["label"] for row in found)  # no half row


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_does_not_wait_for_a_silent_server(tiny: Path, images: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/image.png"
        words = [
            sys.executable,
            "-m",
            "cxrlib",
            "predict",
            str(images / "image1.png"),
            address,
            "--model",
            str(tiny),
            "--csv",
            str(tmp_path / "table.csv"),
        ]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            line, _ = silent.accept()
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            err = process.communicate()[1]
        assert time.monotonic() - start < 10
        line.close()
    assert (process.returncode, err.splitlines()[-1]) == (130, "cxrlib: stopped")


def test_a_reader_that_has_gone(tiny: Path, images: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "cxrlib",
        "predict",
        *[str(images / "image1.png")] * 3000,
        "--model",
        str(tiny),
        "--json",
    ]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["label"]
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_first_command_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("phantom", "image.png", "--opacity") == 0
    assert capsys.readouterr().out == "image.png: a drawn chest with an opacity\n"
    assert run("predict", "image.png") == 0
    out, err = capsys.readouterr()
    assert re.match(r"image\.png: (NORMAL|PNEUMONIA) \(probability \d\.\d{3}, threshold \d\.\d{3}\)\n", out)
    assert err == f"{DISCLAIMER}\n"


def test_nothing_else_is_loaded_or_said(tmp_path: Path) -> None:
    phantom.save(tmp_path / "image.png", size=64)
    program = f"""
import sys
from cxrlib.cli import main
from cxrlib.config import DISCLAIMER
code = main(["predict", {str(tmp_path / "image.png")!r}, "--json"])
unwanted = "tensorflow keras sklearn matplotlib scipy pydicom gradio huggingface_hub ray tqdm".split()
print(code, [m for m in unwanted if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["0 []"]


# --- the other commands ---


def test_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("phantom", tmp_path / "image.png", "--seed", 5) == 0
    with Image.open(tmp_path / "image.png") as image:
        assert np.array_equal(np.asarray(image), phantom.draw(5))
    assert "argument FILE: must end with .png, not 'image.jpg'" in usage(capsys, "phantom", "image.jpg")


def test_info(gated: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tiny, "--prevalence", "0.1") == 0
    out = capsys.readouterr().out
    assert f"bundle       {tiny}" in out
    assert "labels       NORMAL, PNEUMONIA" in out
    assert "gate         none" in out
    assert "screening    threshold 0.300: sensitivity 0.900, specificity 0.800 in validation (default)" in out
    assert "where 10.0% are positive: positive predictive value 33.3%, negative predictive value 98.6%" in out
    assert DISCLAIMER in out
    assert run("info", "--model", gated, "--json") == 0
    config = json.loads(capsys.readouterr().out)
    assert config["labels"] == ["NORMAL", "PNEUMONIA"]
    assert config["gate"]["weights"]["shape"] == [tiny_network.FEATURES + 256, 1]
    assert "argument --prevalence: must be a number in [0, 1], not '2'" in usage(
        capsys, "info", tiny, "--prevalence", "2"
    )


def test_the_bundled_model_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "default", "--json") == 0
    named = capsys.readouterr().out
    assert run("info", "--json") == 0
    assert named == capsys.readouterr().out


def test_evaluate(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = phantom.write(tmp_path / "data", n=4, size=64)
    (folder / "NORMAL" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run("evaluate", tiny, folder, "--operating-point", "balanced", "--output", tmp_path / "report") == 1
    out, err = capsys.readouterr()
    assert "9 images, 1 unreadable" in out.splitlines()[0]
    assert re.search(r"^AUROC +\d\.\d+", out, re.MULTILINE)
    assert re.search(r"^true NORMAL +\d+ +\d+$", out, re.MULTILINE)
    assert out.endswith(f"{tmp_path / 'report' / 'report.html'}\n")
    assert "damaged.png: it is damaged or not complete" in err
    assert {"report.json", "predictions.csv", "report.html"} <= set(os.listdir(tmp_path / "report"))
    phantom.save(folder / "NORMAL" / "damaged.png", size=64)
    phantom.write(tmp_path / "sick" / "OTHER", n=1, size=64)
    shutil.copytree(tmp_path / "sick" / "OTHER" / "NORMAL", folder / "OTHER")
    assert run("evaluate", tiny, folder, "--other", "OTHER", "--quiet") == 0
    out, err = capsys.readouterr()
    assert re.search(r"^OTHER +1 ", out, re.MULTILINE)
    assert err == ""
    assert run("evaluate", tiny, tmp_path / "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


def test_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))
    folder = phantom.write(tmp_path / "data", n=3, size=64)
    assert run("audit", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["exact_duplicates"] == []
    command = [sys.executable, "-m", "cxrlib", "audit", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "INFO" in line]) == (
        0,
        [],
    )  # what finds the lungs does not greet
    (folder / "NORMAL" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run("audit", folder) == 1
    assert "damaged.png" in capsys.readouterr().out
    assert run("clean") == 0
    assert re.fullmatch(r"[\d,]+ MiB freed\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "best"], "recipe must be one of default, textbook"),
        (["--set", "epoch=3"], "the default recipe has unknown fields: epoch. Known: backbone, "),
        (["--set", "epochs"], "--set must be NAME=VALUE, such as epochs=8. Received: 'epochs'"),
        (["--set", "epochs=many"], "epochs must be int. Received: 'many'"),
        (["--set", "augmentation.spin=3"], "augmentation has unknown fields: spin. Known: rotation, "),
        (["--set", "epochs.x=3"], "unknown fields: epochs.x"),
        (["--recipe", "textbook", "--set", "label_smoothing=0.1"], "the textbook recipe has unknown fields"),
        (["--config", b"{"], "recipe.json is not JSON: "),
        (["--config", b"\xff"], "recipe.json is not JSON: "),
        (["--config", b"3"], "recipe.json must hold an object with named settings"),
        (["--config", b'{"epoch": 3}'], "the default recipe has unknown fields: epoch"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[Any], message: str
) -> None:
    if options[0] == "--config":
        (tmp_path / "recipe.json").write_bytes(options[1])
        options = ["--config", tmp_path / "recipe.json"]
    assert message in usage(capsys, "train", tmp_path, "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_train(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = phantom.write(tmp_path / "data", n=2, size=32)
    (tmp_path / "recipe.json").write_text('{"name": "textbook", "epochs": 5, "seed": 3}')
    asked: dict[str, Any] = {}

    def train(dataset: Any, **options: Any) -> Any:
        asked.update(options, labels=dataset.labels)
        return SimpleNamespace(bundle=options["output"], report="4 images")

    monkeypatch.setattr("cxrlib.training.train", train)
    config = ["--config", tmp_path / "recipe.json", "--set", "epochs=2", "--set", "augmentation.rotation=3"]
    assert run("train", data, "--output", tmp_path / "new model", *config, "--init", "none", "--quiet") == 0
    recipe = asked.pop("recipe")
    assert (recipe.name, recipe.epochs, recipe.seed, recipe.augmentation.rotation) == ("textbook", 2, 3, 3.0)
    assert asked == {
        "labels": ("NORMAL", "PNEUMONIA"),
        "output": tmp_path / "new model",
        "init": None,
        "leaks": "error",
        "formats": ["keras"],
        "progress": False,
    }
    out = capsys.readouterr().out
    assert "Validation: 4 images" in out
    assert f"cxrlib evaluate '{tmp_path / 'new model'}' {data}\n" in out
    assert "the following arguments are required: --output" in usage(capsys, "train", tmp_path)


def test_export_says_what_it_needs(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", tiny, "--format", "onnx", "--output", tmp_path / "model.txt") == 1
    assert "cxrlib: output must end with '.onnx' for onnx. Received: " in capsys.readouterr().err
    assert "invalid choice: 'pickle'" in usage(capsys, "export", tiny, "--format", "pickle", "--output", "x")


def test_the_demo_says_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert run("demo") == 1
    assert capsys.readouterr().err == 'cxrlib: the demo needs gradio: pip install "cxrlib[demo]"\n'


def test_a_lost_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cxrlib import web

    monkeypatch.setattr(web, "__file__", str(tmp_path / "cxrlib" / "web.py"))
    with pytest.raises(
        FileNotFoundError, match="the demo is missing from this installation of cxrlib: install it again"
    ):
        web.space_folder()


def test_no_such_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "x.png", "--model", "nowhere") == 1
    assert capsys.readouterr().err == "cxrlib: there is no bundle at nowhere\n"
    assert run("predict", "x.png", "--model", "hf://x") == 2
    assert "hf://" in capsys.readouterr().err


def test_help_and_wrong_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'guess'" in usage(capsys, "guess")
    assert run("--version") == 0
    assert capsys.readouterr().out == f"cxrlib {__version__}\n"
    assert run("--help") == 0
    told = capsys.readouterr().out
    assert DISCLAIMER.split(".")[0] in " ".join(told.split())
    assert run() == 0
    assert capsys.readouterr().out == told


def test_an_error_without_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(Predictor, "__init__", fail)
    assert run("info") == 1
    assert capsys.readouterr().err == "cxrlib: RuntimeError\n"
