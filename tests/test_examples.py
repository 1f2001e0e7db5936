"""The examples run, on drawn films; trainings with the smallest recipe there is."""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_network
from hub_server import HubServer, client_of, serving

import cxrlib
from cxrlib import Predictor, TrainConfig, bundle
from cxrlib.images import phantom

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALLEST = {"image_size": 64, "views": 1, "epochs": 0}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))
    if not bundle.DEFAULT.is_dir():
        monkeypatch.setattr(bundle, "DEFAULT", tiny_network.write(tmp_path / "default", tiny_network.files()))
    return tmp_path


@pytest.fixture
def weights() -> None:
    """What a training needs besides films."""
    pytest.importorskip("tensorflow")
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    if not any((home / "models").glob("mobilenet_v2_weights_*_1.0_224_no_top.h5")):
        pytest.skip("needs the ImageNet weights in $KERAS_HOME/models, which CI puts there")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving() as running, client_of(running, tmp_path / "home"):
        running.add_user("hf_user", "user")
        monkeypatch.setenv("HF_TOKEN", "hf_user")
        yield running


def test_predict_folder(place: Path) -> None:
    phantom.write(place / "films", n=2, size=64)
    (place / "films" / "broken.png").write_bytes(b"no film")
    counts = load("predict_folder").main("films", "answers.csv")
    with open("answers.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert counts["unreadable"] == 1
    assert sum(counts.values()) == len(rows) == 5
    assert "broken.png" in next(row for row in rows if row["answer"] == "unreadable")["remarks"]
    for row in rows:
        if row["answer"] in ("NORMAL", "PNEUMONIA"):
            assert float(row["probability"]) == pytest.approx(Predictor()(row["film"]).probability, abs=1e-4)


def test_compare_models(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        tiny_network.write(place / f"model{seed}", tiny_network.files(seed))
    phantom.write(place / "films", n=10, size=64)
    main = load("compare_models").main
    forth, back = main("model1", "model2", "films"), main("model2", "model1", "films")
    assert forth.value == pytest.approx(-back.value)
    assert forth.low <= forth.value <= forth.high
    assert "model1: AUROC" in capsys.readouterr().out
    assert main("model1", "model1", "films").value == 0


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own, while it uploads
def test_train_and_publish(place: Path, hub: HubServer) -> None:
    for seed, name in enumerate(("hospital-a", "hospital-b", "hospital-c")):
        phantom.write(place / name, n=8, seed=100 * seed, size=64)
    main, words = load("train_and_publish").main, ["user/repo", "hospital-a", "hospital-b", "--unseen", "hospital-c"]
    assert main(words, TrainConfig(**SMALLEST), good_enough=1.01).startswith("not published: AUROC")
    assert not hub.repos
    assert main(words, TrainConfig(**SMALLEST), good_enough=0.0).startswith(
        f"{hub.url}/user/repo"
    )  # the finished training is not repeated
    assert hub.files("user/repo")["model.tflite"] == (place / "runs" / "published" / "model.tflite").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
def test_train_default(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("chest_xray/train", "chest_xray/test", "nih", "rsna")):
        phantom.write(place / "data" / name, n=8, seed=100 * seed, size=64)
    example = load("train_default")
    Path("views.csv").write_text(
        "film,view\n" + "".join(f"{film.relative_to('data')},AP\n" for film in Path("data").glob("nih/NORMAL/*")),
        encoding="utf-8",
    )
    monkeypatch.setattr(example, "VIEWS", Path("views.csv"))
    folder = example.main("data", "made", TrainConfig(**SMALLEST))
    config = bundle.load(folder).config
    assert [source.name for source in config.sources] == ["chest_xray", "nih", "rsna"]
    assert (
        sum(sum(side.values()) for source in config.sources for side in (source.train, source.validation)) == 48
    )  # the test split is left alone
    assert (config.population, config.license) == (example.POPULATION, example.LICENSE)
    assert example.POPULATION in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
def test_the_notebook(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"]), (
        "clear the outputs"
    )
    monkeypatch.setattr(cxrlib, "TrainConfig", functools.partial(TrainConfig, image_size=64, views=1))
    few = phantom.write
    monkeypatch.setattr(phantom, "write", lambda folder, n, **options: few(folder, n=min(n, 10), size=64, **options))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        code = "".join(
            line for line in cell["source"] if not line.startswith("%")
        )  # installing is the machine's business
        if cell["cell_type"] == "code":
            exec(compile(code, f"quickstart.ipynb, cell {cell['id']}", "exec"), names)
    assert names["prediction"].to_dict().keys() >= {"label", "probability", "reasons"}
    assert names["report"].n == 20
    assert names["figure"].width > 100
    shutil.rmtree("runs")
