"""The examples run, on drawn images; trainings with the smallest recipe there is."""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_network
from conftest import small_recipe
from hub_server import HubServer, client_of, serving

import cxrlib
from cxrlib import DefaultRecipe, Predictor, TextbookRecipe, bundle
from cxrlib.images import phantom

EXAMPLES = Path(__file__).parents[1] / "examples"


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
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving() as running, client_of(running, tmp_path / "home"):
        running.add_user("hf_user", "user")
        monkeypatch.setenv("HF_TOKEN", "hf_user")
        yield running


def test_predict_folder(place: Path) -> None:
    phantom.write(place / "images", n=2, size=64)
    (place / "images" / "broken.png").write_bytes(b"not an image")
    counts = load("predict_folder").main("images", "answers.csv")
    with open("answers.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert counts["unreadable"] == 1
    assert sum(counts.values()) == len(rows) == 5
    assert "broken.png" in next(row for row in rows if row["answer"] == "unreadable")["remarks"]
    for row in rows:
        if row["answer"] in ("NORMAL", "PNEUMONIA"):
            assert float(row["probability"]) == pytest.approx(Predictor()(row["image"]).probability, abs=1e-4)


def test_compare_models(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        tiny_network.write(place / f"model{seed}", tiny_network.files(seed))
    phantom.write(place / "images", n=10, size=64)
    main = load("compare_models").main
    forth, back = main("model1", "model2", "images"), main("model2", "model1", "images")
    assert forth.value == pytest.approx(-back.value)
    assert forth.low <= forth.value <= forth.high
    assert "model1: AUROC" in capsys.readouterr().out
    assert main("model1", "model1", "images").value == 0


@pytest.mark.usefixtures("small_backbone")
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own, while it uploads
def test_train_and_publish(place: Path, hub: HubServer) -> None:
    for seed, name in enumerate(("hospital-a", "hospital-b", "hospital-c")):
        phantom.write(place / name, n=8, seed=100 * seed, size=64)
    words = ["user/repo", "hospital-a", "hospital-b", "--unseen", "hospital-c"]
    main = functools.partial(load("train_and_publish").main, words, small_recipe(epochs=0))
    assert main(good_enough=1.01).startswith("not published: AUROC")
    assert not hub.repos
    assert main(good_enough=0.0).startswith(f"{hub.url}/user/repo")  # the finished training is not repeated
    assert hub.files("user/repo")["model.tflite"] == (place / "runs" / "published" / "model.tflite").read_bytes()


@pytest.mark.usefixtures("small_backbone")
def test_train_default(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom.write(place / "data" / "chest_xray" / "train", n=8, size=64)
    phantom.write(place / "data" / "chest_xray" / "test", n=8, seed=100, size=64)
    for seed, name in ((200, "nih"), (300, "rsna")):
        phantom.write(place / "data" / name, n=9, seed=seed, size=64)
    images = {name: sorted((place / "data" / name).glob("*/*.png")) for name in ("nih", "rsna")}
    nih, rsna = ([path.relative_to(place / "data" / name) for path in images[name]] for name in images)
    left_out = nih.pop()  # radiologists do not bear its label out
    (place / "nih_radiologists.csv").write_text(
        "path,label,patient,view\n" + "".join(f"{p.as_posix()},{p.parts[0]},{i},PA\n" for i, p in enumerate(nih))
    )
    (place / "rsna_patients.csv").write_text(
        "image,patient,view\n" + "".join(f"rsna/{p.as_posix()},:{i},AP\n" for i, p in enumerate(rsna))
    )
    example = load("train_default")
    monkeypatch.setattr(example, "HERE", place)
    listed = example.images("data")
    assert str(left_out) not in "".join(listed.names)
    folder = example.main("data", "made", small_recipe(epochs=0))
    config = bundle.load(folder).config
    assert [source.name for source in config.sources] == ["chest_xray", "nih", "rsna"]
    sides = [side for source in config.sources for side in (source.train, source.validation)]
    assert sum(sum(side.values()) for side in sides) == 16 + 17 + 18  # the test split is left alone
    assert config.population == example.ABOUT["population"]
    assert config.license == example.ABOUT["license"]
    assert config.population in " ".join((folder / "README.md").read_text(encoding="utf-8").split())


def test_train_default_names_images_that_are_listed() -> None:
    for name in ("nih_radiologists.csv", "nih_other.csv", "rsna_patients.csv"):
        with (EXAMPLES / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({row.get("path") or row["image"] for row in rows}) == len(rows) > 0


def run_notebook(name: str) -> dict[str, Any]:
    """Run the cells of a notebook, as one after the other would be."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "clear the outputs"
        assert cell.get("execution_count") is None, "clear the outputs"
        code = "".join(line for line in cell["source"] if not line.startswith("%"))  # nothing is installed here
        if cell["cell_type"] == "code":
            exec(compile(code, f"{name}, cell {cell['id']}", "exec"), names)
    return names


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, small_backbone: None) -> None:
    """Small recipes, and few drawings."""
    options = {"image_size": 32, "validation": 0.25}
    for recipe in (DefaultRecipe, TextbookRecipe):
        monkeypatch.setattr(cxrlib, recipe.__name__, functools.partial(recipe, **options))
    few, build = phantom.write, cxrlib.build_model
    monkeypatch.setattr(phantom, "write", lambda folder, n, **more: few(folder, n=min(n, 10), size=64, **more))
    book = TextbookRecipe(**options)
    monkeypatch.setattr(cxrlib, "build_model", lambda recipe: build(recipe=book))


@pytest.mark.usefixtures("small")
def test_the_quickstart(place: Path) -> None:
    names = run_notebook("quickstart.ipynb")
    assert names["prediction"].to_dict().keys() >= {"label", "probability", "reasons"}
    assert names["report"].n == 20
    assert names["figure"].width > 100
    shutil.rmtree("runs")


@pytest.mark.usefixtures("small")
def test_the_textbook(place: Path) -> None:
    names = run_notebook("textbook.ipynb")
    assert names["report"].n == 20
    assert len(names["run"].history["val_auroc"]) == 2
    assert [layer.name for layer in names["model"].layers if layer.trainable and layer.weights] == [
        "dense",
        "probability",
    ]
    shutil.rmtree("runs")
