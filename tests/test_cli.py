"""The command line: every film has its row, every wrong word its sentence and its exit status."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
from PIL import Image

from cxrlib import ImageError, Predictor, __version__, bundle
from cxrlib.cli import main
from cxrlib.config import DISCLAIMER
from cxrlib.images import phantom

ROOT = Path(__file__).parents[1]
KEYS = ["label", "probability", "probabilities", "threshold", "accepted", "reasons", "source"]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A folder of two films, below which lie a blank one and one that is damaged."""
    folder = tmp_path / "films"
    (folder / "more").mkdir(parents=True)
    for seed in (1, 2):
        phantom.save(folder / f"film{seed}.png", seed, size=96)
    Image.new("L", (96, 96)).save(folder / "more" / "blank.png")
    (folder / "more" / "damaged.png").write_bytes((folder / "film1.png").read_bytes()[:500])
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


def test_sentences(gated: Path, films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", films / "film1.png", films / "more" / "blank.png", "--model", gated) == 0
    out, err = capsys.readouterr()
    first, refused = out.splitlines()
    p = Predictor(gated)(films / "film1.png")
    assert first == f"{films / 'film1.png'}: {p.label} (probability {p.probability:.3f}, threshold {p.threshold:.3f})"
    assert refused == f"{films / 'more' / 'blank.png'}: refused: it is almost blank"
    assert DISCLAIMER in err
    assert run("predict", films / "film1.png", "--model", gated, "--no-gate") == 0
    assert (
        capsys.readouterr().out.splitlines()[1] == "  note: the gate is off: nobody checked that this is a chest film"
    )


def test_a_folder_in_json(gated: Path, films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", films, "--model", gated, "--json") == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["source"]).name for line in lines] == ["film1.png", "film2.png", "blank.png", "damaged.png"]
    assert all(list(line) == KEYS for line in lines)
    assert [line["accepted"] for line in lines] == [True, True, False, False]
    assert lines[0] == Predictor(gated)(films / "film1.png").to_dict()
    assert lines[3]["reasons"][0].startswith(
        f"unreadable: {films / 'more' / 'damaged.png'}: it is damaged or not complete"
    )
    assert (lines[3]["label"], lines[3]["probability"]) == (None, None)
    assert err.startswith(f"cxrlib: {films / 'more' / 'damaged.png'}: it is damaged or not complete")
    assert DISCLAIMER not in out


@pytest.mark.parametrize("heatmaps", [False, True])
def test_a_table_has_a_row_for_every_film(
    gated: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], heatmaps: bool
) -> None:
    (tmp_path / "empty").mkdir()
    table = tmp_path / "table.csv"
    more = ("--heatmaps", tmp_path / "heat") if heatmaps else ()
    assert (
        run(
            "predict",
            films,
            "nowhere.png",
            tmp_path / "empty",
            films / "film1.png",
            "--model",
            gated,
            "--csv",
            table,
            *more,
        )
        == 1
    )
    found = rows(table)
    columns = [
        "source",
        "label",
        "probability",
        "threshold",
        "accepted",
        "probability_NORMAL",
        "probability_PNEUMONIA",
        "reasons",
    ]
    assert list(found[0]) == columns + ["heatmap"] * heatmaps
    painted = [str(tmp_path / "heat" / name) for name in ("film1.png", "film2.png", "film1-2.png")]
    assert [row.pop("heatmap", "") for row in found] == (
        [*painted[:2], "", "", "", "", painted[2]] if heatmaps else [""] * 7
    )
    names = [str(films / name) for name in ("film1.png", "film2.png", "more/blank.png", "more/damaged.png")]
    assert [row["source"] for row in found] == [*names, "nowhere.png", str(tmp_path / "empty"), names[0]]
    assert found[0] == found[6]
    p = Predictor(gated)(names[0])
    assert (float(found[0]["probability"]), found[0]["label"]) == (p.probability, p.label)
    assert [row["probability"] == "" for row in found] == [False, False, True, True, True, True, False]
    assert found[2]["reasons"] == "it is almost blank"
    assert found[4]["reasons"] == "unreadable: nowhere.png: no such file"
    assert found[5]["reasons"] == f"unreadable: {tmp_path / 'empty'}: there are no films in this folder"
    err = capsys.readouterr().err
    assert "cxrlib: nowhere.png: no such file\n" in err
    assert "there are no films in this folder" in err


def test_heatmaps(gated: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    shutil.copytree(films, again)
    folder = tmp_path / "heat"
    assert run("predict", films, again / "film1.png", "--model", gated, "--heatmaps", folder) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if "heatmap:" in line] == [
        f"  heatmap: {folder / name}" for name in ("film1.png", "film2.png", "film1-2.png")
    ]
    long = shutil.copy(films / "film1.png", tmp_path / f"{'ä' * 120}.png")
    assert run("predict", long, films / "film1.png", "--model", gated, "--json", "--heatmaps", tmp_path / "new") == 0
    assert all(list(json.loads(line)) == KEYS for line in capsys.readouterr().out.splitlines())
    assert sorted(os.listdir(tmp_path / "new")) == ["film1.png", f"{'ä' * 100}.png"]
    assert sorted(os.listdir(folder)) == ["film1-2.png", "film1.png", "film2.png"]
    with Image.open(folder / "film1.png") as painted:
        assert (painted.mode, painted.size) == ("RGB", (96, 96))
    message = usage(capsys, "predict", films, "--model", gated, "--heatmaps", films)
    assert (
        f"--heatmaps needs a folder of its own, so that no film is overwritten: {films} holds {films / 'film1.png'}"
        in message
    )
    assert (films / "film1.png").read_bytes() == (again / "film1.png").read_bytes()


@pytest.mark.parametrize("more", [(), ("--heatmaps",)])
def test_a_missing_extra_costs_one_row(
    tiny: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: Sequence[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (films / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    table = tmp_path / "table.csv"
    assert (
        run(
            "predict",
            films / "a.dcm",
            films / "film1.png",
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
    tiny: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (films / "film1.png").rename(films / "zoo.png")
    list_folder = os.scandir

    def scandir(folder: str) -> Any:
        if Path(folder).name == "more":
            raise PermissionError(13, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run("predict", films, "--model", tiny, "--csv", tmp_path / "table.csv") == 1
    found = rows(tmp_path / "table.csv")
    assert [Path(row["source"]).name for row in found] == ["film2.png", "more", "zoo.png"]
    assert [bool(row["label"]) for row in found] == [True, False, True]
    assert (
        found[1]["reasons"]
        == f"unreadable: the folder {films / 'more'} cannot be listed (Permission denied): make it readable, or move it away"
    )


def test_decisions(tiny: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def threshold(*options: str) -> Any:
        assert run("predict", films / "film1.png", "--model", tiny, "--json", *options) == 0
        return json.loads(capsys.readouterr().out)["threshold"]

    assert threshold() == 0.3
    assert threshold("--operating-point", "balanced") == 0.6
    assert threshold("--threshold", "0.45") == 0.45
    for wrong in ("1.5", "nan", "half"):
        assert f"argument --threshold: must be a number in [0, 1], not '{wrong}'" in usage(
            capsys, "predict", "x.png", "--threshold", wrong
        )
    assert "not allowed with argument" in usage(
        capsys, "predict", "x.png", "--threshold", "0.5", "--operating-point", "balanced"
    )
    message = usage(capsys, "predict", films / "film1.png", "--model", tiny, "--operating-point", "best")
    assert "operating_point must be one of screening, balanced. Received: 'best'" in message
    tiny = shutil.copytree(tiny, tmp_path / "ours")
    points = bundle.load(tiny).config.operating_points
    bundle.update(
        tiny, operating_points={**points, "our ward": dataclasses.replace(points["balanced"], threshold=0.35)}
    )
    assert threshold("--operating-point", "our ward") == 0.35


def test_a_table_never_takes_the_place_of_a_film(
    tiny: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = shutil.copy(films / "film1.png", tmp_path / "film")
    before = {path: path.read_bytes() for path in (films / "film1.png", odd)}
    for words in (("--csv", films / "film1.png", films / "film2.png"), (odd, "--csv", odd)):
        assert "--csv needs a file of its own, so that no film is overwritten" in usage(
            capsys, "predict", "--model", tiny, *words
        )
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_whoever_closes_a_stream_still_gets_a_table(tiny: Path, films: Path, tmp_path: Path, closed: str) -> None:
    words = f'"{sys.executable}" -m cxrlib predict "{films / "film1.png"}" --model "{tiny}" --csv "{tmp_path / "table.csv"}" {closed}'
    assert subprocess.run(["sh", "-c", words], check=False, capture_output=True).returncode == 0
    assert [row["source"] for row in rows(tmp_path / "table.csv")] == [str(films / "film1.png")]


def test_no_gate(gated: Path, films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", films / "more" / "blank.png", "--model", gated, "--no-gate", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"]
    assert answer["reasons"] == ["the gate is off: nobody checked that this is a chest film"]


def test_names_that_no_terminal_shows(
    tiny: Path, films: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    odd = os.fsdecode(os.fsencode(films) + b"/caf\xe9 \xf0\x9f\xab\x81.png")
    try:
        shutil.copy(films / "film1.png", odd)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    table = tmp_path / "table.csv"
    assert run("predict", odd, "--model", tiny, "--json", "--csv", table) == 0
    assert json.loads(capsysbinary.readouterr().out)["source"] == odd
    assert len(rows(table)) == 1


def test_an_interruption_leaves_what_was_done(
    tiny: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(self: Predictor, paths: Sequence[str], **_: Any) -> Iterator[Any]:
        for path in paths[:2]:
            yield self(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "stream", stream)
    assert run("predict", films, "--model", tiny, "--csv", tmp_path / "table.csv") == 130
    assert [Path(row["source"]).name for row in rows(tmp_path / "table.csv")] == ["film1.png", "film2.png"]


def test_an_interruption_while_a_compiled_module_is_loaded(
    tiny: Path, films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise ImportError("initialization failed") from KeyboardInterrupt()  # as pybind11 does

    monkeypatch.setattr("cxrlib.runtime.litert.Runtime.__init__", load)
    assert run("predict", films / "film1.png", "--model", tiny) == 130
    assert capsys.readouterr().err == "cxrlib: stopped\n"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_in_a_process_of_its_own(tiny: Path, films: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    many = [str(films / "film1.png")] * 10_000
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
def test_ctrl_c_does_not_wait_for_a_silent_server(tiny: Path, films: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/film.png"
        words = [
            sys.executable,
            "-m",
            "cxrlib",
            "predict",
            str(films / "film1.png"),
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


def test_a_reader_that_has_gone(tiny: Path, films: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "cxrlib",
        "predict",
        *[str(films / "film1.png")] * 3000,
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
    assert run("phantom", "film.png", "--opacity") == 0
    assert capsys.readouterr().out == "film.png: a drawn chest with an opacity, no patient's\n"
    assert run("predict", "film.png") == 0
    out, err = capsys.readouterr()
    assert re.match(r"film\.png: (NORMAL|PNEUMONIA) \(probability \d\.\d{3}, threshold \d\.\d{3}\)\n", out)
    assert err == f"{DISCLAIMER}\n"


def test_nothing_else_is_loaded_or_said(tmp_path: Path) -> None:
    phantom.save(tmp_path / "film.png", size=64)
    program = f"""
import sys
from cxrlib.cli import main
from cxrlib.config import DISCLAIMER
code = main(["predict", {str(tmp_path / "film.png")!r}, "--json"])
print(code, [m for m in ("tensorflow", "keras", "sklearn", "matplotlib", "scipy", "pydicom", "gradio", "huggingface_hub", "ray") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["0 []"]


# --- the other commands ---


def test_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("phantom", tmp_path / "film.png", "--seed", 5) == 0
    with Image.open(tmp_path / "film.png") as image:
        assert np.array_equal(np.asarray(image), phantom.draw(5))
    assert "argument FILE: must end with .png, not 'film.jpg'" in usage(capsys, "phantom", "film.jpg")


def test_info(gated: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tiny, "--prevalence", "0.1") == 0
    out = capsys.readouterr().out
    assert f"bundle       {tiny}" in out
    assert "labels       NORMAL, PNEUMONIA" in out
    assert "gate         none" in out
    assert "screening    threshold 0.300: sensitivity 0.900, specificity 0.800 on validation films (default)" in out
    assert "of 100 films 10 positive: a positive answer is right in 33.3%, a negative one in 98.6%" in out
    assert DISCLAIMER in out
    assert run("info", "--model", gated, "--json") == 0
    config = json.loads(capsys.readouterr().out)
    assert config["labels"] == ["NORMAL", "PNEUMONIA"]
    assert config["gate"]["weights"]["shape"] == [tiny_network.FEATURES + 256]
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
    assert out.startswith("9 films, 1 refused, threshold 0.600\n")
    assert re.search(r"^  auroc +\d\.\d+", out, re.MULTILINE)
    assert re.search(r"^    NORMAL +\d+ +\d+$", out, re.MULTILINE)
    assert out.endswith(f"{tmp_path / 'report' / 'report.html'}\n")
    assert "damaged.png: it is damaged or not complete" in err
    assert {"report.json", "predictions.csv", "report.html"} <= set(os.listdir(tmp_path / "report"))
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


def test_train_with_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.json"
    for content, message in (
        (b"{", f"cxrlib: {recipe} is no JSON: "),
        (b'{"epoch": 3}', f"{recipe}"),
        (b"\xff", "is no JSON"),
    ):
        recipe.write_bytes(content)
        assert run("train", tmp_path, "--output", tmp_path / "out", "--config", recipe) == 1
        assert message in capsys.readouterr().err
    assert "the following arguments are required: --output" in usage(capsys, "train", tmp_path)
    assert not (tmp_path / "out").exists()


def test_export_says_what_it_needs(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", tiny, "--format", "onnx", "--output", tmp_path / "model.txt") == 1
    assert "cxrlib: output must end with '.onnx' for onnx. Received: " in capsys.readouterr().err
    assert "invalid choice: 'pickle'" in usage(capsys, "export", tiny, "--format", "pickle", "--output", "x")


def test_the_demo_says_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert run("demo") == 1
    assert capsys.readouterr().err == 'cxrlib: the demo needs gradio: pip install "cxrlib[demo]"\n'


def test_a_lost_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cxrlib import cli

    monkeypatch.setattr(cli, "__file__", str(tmp_path / "cxrlib" / "cli.py"))
    with pytest.raises(
        FileNotFoundError, match="the demo is missing from this installation of cxrlib: install it anew"
    ):
        cli._space()


def test_no_such_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "x.png", "--model", "nowhere") == 1
    assert capsys.readouterr().err == "cxrlib: there is no bundle at nowhere\n"
    assert run("predict", "x.png", "--model", "hf://x") == 2
    assert "hf://" in capsys.readouterr().err


def test_words_that_are_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the following arguments are required: COMMAND" in usage(capsys)
    assert "invalid choice: 'guess'" in usage(capsys, "guess")
    assert run("--version") == 0
    assert capsys.readouterr().out == f"cxrlib {__version__}\n"
    assert run("--help") == 0
    assert DISCLAIMER.split(".")[0] in " ".join(capsys.readouterr().out.split())


def test_an_error_without_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrlib import cli

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(cli, "_load", fail)
    assert run("info") == 1
    assert capsys.readouterr().err == "cxrlib: RuntimeError\n"


def test_a_row_of_a_film_that_cannot_be_read(tiny: Path) -> None:
    from cxrlib.cli import _unanswered

    row = _unanswered("film.png", ImageError("film.png: it is empty"), Predictor(tiny))
    assert math.isnan(row.probability)
    assert row.to_dict()["probabilities"] == {"NORMAL": None, "PNEUMONIA": None}
    assert row.reasons == ("unreadable: film.png: it is empty",)
