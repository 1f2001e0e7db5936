"""Exports: files that answer as the bundle does, or none at all."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrlib import Predictor, bundle
from cxrlib.export import FORMATS, Exported, Format, export
from cxrlib.images import phantom
from cxrlib.images.decode import fit, read


def test_what_is_asked_for_is_checked_first(tmp_path: Path) -> None:
    for format, name, message in (
        (
            "pickle",
            "m.pkl",
            r"format must be one of onnx, keras, saved_model, litert, float16, int8\. Received: format='pickle'",
        ),
        ("onnx", "m.tflite", r"output must end with '\.onnx' for onnx\. Received: "),
        ("litert", "m", r"output must end with '\.tflite' for litert\. Received: "),
        (
            "int8",
            "m.tflite",
            "int8 takes the ranges of its numbers from images: give some hundred, of all sources",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export(None, tmp_path / name, format=format)
    with pytest.raises(FileExistsError, match="exists: choose another folder, nothing was written"):
        export(None, tmp_path, format="saved_model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("missing", "format", "message"),
    [
        ("tensorflow", "litert", r'exports need TensorFlow: pip install "cxrlib\[train\]"'),
        ("tf2onnx", "onnx", r'the export to ONNX needs tf2onnx: pip install "cxrlib\[onnx\]"'),
    ],
)
def test_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, format: str, message: str) -> None:
    if missing != "tensorflow":
        pytest.importorskip("tensorflow", reason="needs the [train] extra")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=message):
        export(None, tmp_path / f"m.{'onnx' if format == 'onnx' else 'tflite'}", format=format)


def test_another_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras = pytest.importorskip("keras", reason="needs the [train] extra")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(
        RuntimeError, match=r"exports need Keras on TensorFlow: set KERAS_BACKEND=tensorflow\. Received: jax"
    ):
        export(None, tmp_path / "m.tflite", format="litert")


def test_a_bundle_without_its_keras_file(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="needs the [train] extra")
    from cxrlib import BundleError

    with pytest.raises((BundleError, ValueError)):
        export(tiny, tmp_path / "m.tflite", format="litert")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Exports whose converter is replaced by one that answers as it is told; the rest is the real thing."""
    pytest.importorskip("tensorflow", reason="needs the [train] extra")
    import cxrlib.export as module

    def use(answer: Any) -> None:
        def write(net: Any, path: Path, images: np.ndarray) -> Any:
            path.write_bytes(b"network")
            return answer

        monkeypatch.setattr(module, "_served", lambda predictor: None)
        monkeypatch.setitem(module.FORMATS, "litert", Format(".tflite", 1e-4, write))

    return use


def test_a_file_that_agrees_stays(fast: Any, tiny: Path, tmp_path: Path) -> None:
    predictor = Predictor(tiny, gate=False)
    images = [phantom.draw(seed, size=64) for seed in range(3)]
    fast(lambda x: np.array([list(predictor(image[..., 0]).probabilities.values()) for image in x]) + 5e-5)
    made = export(
        tiny,
        tmp_path / "new" / "m.tflite",
        format="litert",
        images=[fit(read(image), 32)[..., 0] for image in images],
    )
    assert (made.path, made.format, made.images) == (tmp_path / "new" / "m.tflite", "litert", 3)
    assert made.difference == pytest.approx(5e-5, rel=0.01)
    assert made.path.read_bytes() == b"network"
    assert os.listdir(made.path.parent) == ["m.tflite"]
    told = "litert, compared on 3 images: probabilities differ by at most 5e-05, no label changes"
    assert str(made) == f"{made.path}: {told}"
    assert "on 1 image: probabilities differ by at most 0.03, labels of 1 image change" in str(
        Exported(Path("m"), "int8", 1, 0.03, 1)
    )


@pytest.mark.parametrize("answer", [0.9, np.nan])
def test_a_file_that_does_not_agree_goes(fast: Any, tiny: Path, tmp_path: Path, answer: float) -> None:
    fast(lambda x: np.full((len(x), 2), answer))
    (tmp_path / "m.tflite").write_bytes(b"before")
    with pytest.raises(
        RuntimeError,
        match=r"differs from the bundle's probabilities by (\d[\d.]*|nan) on 16 images, more than 0\.0001",
    ):
        export(tiny, tmp_path / "m.tflite", format="litert")
    assert (tmp_path / "m.tflite").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["m.tflite"]


@pytest.mark.slow
@pytest.mark.parametrize("format", [*FORMATS])
def test_the_real_thing(format: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="needs the [train] extra")
    if format == "onnx":
        pytest.importorskip("tf2onnx", reason="needs the [onnx] extra")
    images = [phantom.draw(seed, opacity=seed % 2 == 1, size=224) for seed in range(24)]
    output = tmp_path / f"m{FORMATS[format].suffix}"
    if format == "int8":  # on phantoms alone it may be too far off: then it says so, and leaves nothing
        with contextlib.suppress(RuntimeError):
            export(None, output, format=format, images=images)
            assert output.stat().st_size < 0.8 * (bundle.DEFAULT / bundle.RUNTIME).stat().st_size  # of 16 bits
        assert os.listdir(tmp_path) == ([output.name] if output.exists() else [])
    else:
        made = export(None, output, format=format, images=images)
        assert made.difference <= FORMATS[format].tolerance
        assert output.exists()
