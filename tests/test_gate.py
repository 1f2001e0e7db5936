"""The gate: radiographs of every source pass, everything else is refused with a reason in plain words."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrlib import Predictor
from cxrlib.config import Array, from_dict, to_dict
from cxrlib.images import phantom
from cxrlib.images.decode import fit as fit_image
from cxrlib.images.decode import read
from cxrlib.network.gate_fit import fit
from cxrlib.runtime.gate import Gate, GateConfig, Inspection, Verdict, combined, inspect, layout_of, score

SIDE = 64


def embed(images: np.ndarray) -> np.ndarray:
    """Stands for a network: grey levels and edges of a coarse grid."""
    cells = images[..., 0].reshape(len(images), 16, SIDE // 16, 16, SIDE // 16)
    return np.concatenate([cells.mean((2, 4)).reshape(len(images), -1), cells.std((2, 4)).reshape(len(images), -1)], 1)


def drawn(n: int, seed: int = 0) -> np.ndarray:
    return np.stack([phantom.draw(seed + i, opacity=i % 2 == 1, size=SIDE) for i in range(n)])


@pytest.fixture(scope="module")
def config() -> GateConfig:
    pytest.importorskip("sklearn", reason="needs the [train] extra")
    return fit(drawn(40), sources=["a"] * 20 + ["b"] * 20, embed=embed, made=400)


def verdict(gate: Gate, pixels: np.ndarray) -> Verdict:
    image = read(pixels)
    fitted = fit_image(image, SIDE)
    return gate.check(inspect(image, fitted), embed(fitted[None])[0])


# --- pixels and header ---


def seen(pixels: np.ndarray, **said: Any) -> Inspection:
    image = dataclasses.replace(read(pixels), **said)
    return inspect(image, fit_image(image, 224))


def checked(pixels: np.ndarray, **said: Any) -> tuple[list[str], list[str]]:
    found = seen(pixels, **said)
    return list(found.refusals), list(found.warnings)


def test_an_image_without_fault() -> None:
    assert checked(phantom.draw(1, size=300)) == ([], [])
    assert checked(phantom.draw(1, size=300), view="PA", modality="CR") == ([], [])


def test_headers() -> None:
    image = phantom.draw(1, size=300)
    assert checked(image, modality="MR")[0] == ["its header says that it is not a plain radiograph (modality MR)"]
    assert checked(image, view="LL")[0] == ["its header says that it is a lateral or oblique view (LL)"]
    assert checked(image, view="ZZ") == ([], ["its header names a view that is neither PA nor AP (ZZ)"])


def test_sizes() -> None:
    assert checked(phantom.draw(1, size=60))[0] == ["it is too small: 60 x 60 pixels, at least 64 x 64 are needed"]
    assert checked(phantom.draw(1, size=100)) == ([], ["it is small: 100 x 100 pixels, the network uses 224 x 224"])
    long = np.asarray(Image.fromarray(phantom.draw(1, size=300)).resize((300, 1300)))
    assert checked(long)[0] == ["it is too long and narrow: 300 x 1300 pixels"]
    assert checked(long[:800])[1] == ["it is unusually long and narrow: 300 x 800 pixels"]


def test_grey_levels() -> None:
    image = phantom.draw(1, size=300)
    assert checked(np.full((300, 300), 130, np.uint8))[0] == ["it is almost blank"]
    assert checked((100 + image // 5).astype(np.uint8))[1] == ["it has very little contrast"]
    cut = image.copy()
    cut[:200, 30:270] = 255
    (warning,) = checked(cut)[1]
    assert warning.endswith("% of it is pure white: it may be badly exposed or cut off")
    cut[:275] = 0
    (refusal,) = checked(cut)[0]
    assert refusal.endswith("% of it is pure black")
    colour = np.stack([image, image // 2, image], 2)
    assert checked(colour)[1] == ["it is a colour image; only its brightness was used"]


@pytest.mark.parametrize(("part", "said"), [(0.5, None), (0.7, "warned"), (0.9, "refused")])
def test_how_much_may_be_black(part: float, said: str | None) -> None:
    image = np.tile(np.linspace(60, 250, 300).astype(np.uint8), (300, 1))
    dark = np.random.default_rng(0).random((300, 300)) < part
    image[np.kron(dark[::10, ::10], np.ones((10, 10), bool))] = 0
    refusals, warnings = checked(image)
    assert any("of it is pure black" in text for text in refusals) == (said == "refused")
    assert any("of it is pure black" in text for text in warnings) == (said == "warned")


def test_a_layout_has_mean_0_and_deviation_1() -> None:
    layouts = layout_of(np.random.default_rng(0).random((3, 64, 64)).astype(np.float32))
    assert layouts.shape == (3, 256)
    assert layouts.mean(1) == pytest.approx(0, abs=1e-6)
    assert layouts.std(1) == pytest.approx(1, abs=1e-4)


# --- what the network sees ---


def test_a_fitted_gate(config: GateConfig) -> None:
    assert set(config.refused) == {"a", "b"}
    assert max(config.refused.values()) < 0.1
    assert set(config.outliers_refused) == set(config.kinds)
    assert np.mean(list(config.outliers_refused.values())) > 0.6
    gate = Gate(config)
    accepted = [verdict(gate, image).accepted for image in drawn(40, seed=1000)]
    assert np.mean(accepted) > 0.9
    noise = np.random.default_rng(0).integers(0, 256, (20, 100, 100), dtype=np.uint8)
    assert not any(verdict(gate, image).accepted for image in noise)
    refused = verdict(gate, noise[0])
    assert refused.reasons[0].startswith("it does not look like a frontal chest radiograph")


def test_the_reason_names_the_kind_where_it_is_clear(config: GateConfig) -> None:
    strict = Gate(dataclasses.replace(config, refuse=-1, warn=-1))
    start = "it does not look like a frontal chest radiograph"
    reasons = {verdict(strict, 255 - image).reasons[0] for image in drawn(8, seed=50)}
    assert f"{start}: its grey levels look inverted, bone should be bright and air dark" in reasons
    on_its_side = {verdict(strict, np.rot90(image)).reasons[0] for image in drawn(8, seed=50)}
    assert f"{start}: it seems to lie on its side" in on_its_side
    turned = {verdict(strict, np.rot90(image, 2)).reasons[0] for image in drawn(8, seed=50)}
    assert f"{start}: it seems to be upside down" in turned
    assert start in {verdict(strict, image).reasons[0] for image in drawn(8, seed=50)}


def test_a_borderline_image_gets_an_answer_and_a_warning(config: GateConfig) -> None:
    wary = Gate(dataclasses.replace(config, warn=-1, refuse=1e9))
    assert verdict(wary, drawn(1)[0]) == Verdict(
        True, ("it differs from most radiographs that the model was trained on: use its probability with care",)
    )
    open_ = Gate(dataclasses.replace(config, warn=1e9, refuse=1e9))
    assert verdict(open_, drawn(1)[0]) == Verdict(True, ())


@pytest.mark.parametrize(
    ("score", "distance", "unusual"), [(0.9, -3, 0.9), (-5, 0.9, 0.9), (0.6, 0.8, 1), (-5, -3, 0), (3, 4, 5)]
)
def test_score_and_distance_add_up_as_sides_of_a_right_triangle(score: float, distance: float, unusual: float) -> None:
    measures = (np.array([2 + 3 * score]), (2.0, 3.0), np.array([5 + 0.5 * distance]), (5.0, 0.5))
    assert combined(*measures).tolist() == pytest.approx([unusual])


def test_a_score_is_the_logit_of_any_kind() -> None:
    logits = np.array([[1.0, -2.0, 0.5], [800.0, 0.0, 0.0]])
    assert score(logits).tolist() == pytest.approx([np.log(np.exp(logits[0]).sum()), 800.0])


def test_nan_is_refused(config: GateConfig) -> None:
    nothing = np.full(512, np.nan, np.float32)
    assert not Gate(config).check(seen(drawn(1)[0]), nothing).accepted


def test_an_embedding_of_another_network(config: GateConfig) -> None:
    with pytest.raises(ValueError, match=r"this gate was fitted for embeddings of length 512\. Received: 7"):
        Gate(config).check(seen(drawn(1)[0]), np.zeros(7, np.float32))


def test_a_layout_does_not_depend_on_contrast() -> None:
    image = drawn(1)[0].astype(np.float32)
    assert np.array_equal(layout_of(image[None]), layout_of((image * 2 + 20)[None]))
    assert layout_of(image[None]).shape == (1, 256)
    assert layout_of(image[None]).std() == pytest.approx(1, abs=0.01)


# --- fitting ---


def test_a_fit_can_be_repeated(config: GateConfig) -> None:
    again = fit(drawn(40), sources=["a"] * 20 + ["b"] * 20, embed=embed, made=400)
    assert again == config


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((7, 32, 32), np.uint8),
            r"images must be 8 or more of shape \(s, s\), uint8, s at least 16\. "
            r"Received: shape=\(7, 32, 32\), dtype=uint8",
        ),
        (np.zeros((9, 32, 32)), "Received: shape=.*, dtype=float64"),
        (np.zeros((9, 8, 8), np.uint8), r"Received: shape=\(9, 8, 8\)"),
        (np.zeros((9, 32, 32, 1), np.uint8), r"Received: shape=\(9, 32, 32, 1\)"),
    ],
)
def test_images_that_do_not_fit(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(images, sources=["a"] * len(images), embed=embed)


def test_sources_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"sources must name the source of each image\. Received: 3 for 9 images"):
        fit(np.zeros((9, 32, 32), np.uint8), sources=["a"] * 3, embed=embed)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'fitting a gate needs scikit-learn: pip install "cxrlib\[train\]"'):
        fit(drawn(8), sources=["a"] * 8, embed=embed, made=8)


# --- what a bundle keeps ---


def test_a_gate_goes_through_json(config: GateConfig) -> None:
    again = from_dict(GateConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config


def test_images_are_measured_one_by_one_as_together(config: GateConfig) -> None:
    images = drawn(5)
    embeddings, layouts = embed(images[..., None] / np.float32(255)), layout_of(images)
    gate = Gate(config)
    together, logits = gate.measure(embeddings, layouts)
    assert together.shape == (5,)
    assert logits.shape == (5, len(config.kinds))
    alone = [gate.measure(*pair)[0].item() for pair in zip(embeddings, layouts, strict=True)]
    assert alone == pytest.approx(together.tolist(), rel=1e-4, abs=1e-5)


def test_arrays() -> None:
    values = np.array([[1.5, -2.0, 65000.0]])
    for dtype in ("float16", "float32"):
        assert np.array_equal(Array.pack(values, dtype).numpy(), values.astype(dtype).astype(np.float32))
    data = base64.b64encode(bytes(8)).decode()
    nan = base64.b64encode(np.array([np.nan], "<f4").tobytes()).decode()
    for shape, dtype, text, message in (
        (
            (2,),
            "float64",
            data,
            r"an array must be float16 or float32 and not empty\. Received: dtype='float64', shape=\(2,\)",
        ),
        ((0,), "float32", "", r"and not empty\. Received: dtype='float32', shape=\(0,\)"),
        ((2,), "float32", "*", "an array's data must be base64"),
        (
            (3,),
            "float32",
            data,
            r"an array's data must fill its shape\. Received: 8 bytes for shape=\(3,\), dtype=float32",
        ),
        ((1,), "float32", nan, "an array's values must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            Array(shape, dtype, text)


def test_arrays_that_do_not_belong_together(config: GateConfig) -> None:
    for change in (
        {"bias": Array.pack(np.zeros(2))},
        {"weights": Array.pack(np.zeros(300))},
        {"spread": Array.pack(np.ones(1))},
    ):
        with pytest.raises(ValueError, match="a gate's arrays do not agree: weights "):
            dataclasses.replace(config, **change)
    with pytest.raises(ValueError, match="must be positive"):
        dataclasses.replace(config, rest=0.0)


# --- the gate of the model that comes with cxrlib ---


@pytest.fixture(scope="module")
def guard() -> Predictor:
    return Predictor(threads=2)


@pytest.mark.parametrize("size", [64, 150, 224, 600])
def test_drawn_phantoms_pass(guard: Predictor, size: int) -> None:
    answers = [guard(phantom.draw(seed, opacity=seed % 2 == 1, size=size)) for seed in range(6)]
    assert all(p.status == "ok" for p in answers), [p.reasons for p in answers if p.status != "ok"]


def test_other_pictures_are_refused(guard: Predictor) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:300, :300]
    image = phantom.draw(3, size=300)
    pictures = {
        "noise": rng.integers(0, 256, (300, 300), dtype=np.uint8),
        "a ramp": (x * 0.8).astype(np.uint8),
        "rings": (127 + 100 * np.sin(np.hypot(x - 150, y - 150) / 9)).astype(np.uint8),
        "a disc": (200 * (np.hypot(x - 150, y - 150) < 100)).astype(np.uint8),
        "checks": (255 * ((x // 30 + y // 30) % 2)).astype(np.uint8),
        "an inverted image": 255 - image,
        "an image on its side": np.rot90(image).copy(),
        "blank": np.zeros((300, 300), np.uint8),
    }
    answers = {name: guard(pixels) for name, pixels in pictures.items()}
    assert [name for name, p in answers.items() if p.status == "ok"] == []
    assert all(p.reasons for p in answers.values())


def test_bones_are_refused_and_images_are_not(guard: Predictor, shared: Path) -> None:
    bones = sorted((shared / "data" / "not_chest").rglob("*.jpg"))[::5]
    images = [
        path
        for source in ("nih", "rsna", "chest_xray/test")
        for path in sorted((shared / "data" / source).rglob("*.jp*g"))[::90]
    ]
    assert np.mean([p.status == "ok" for p in guard.predict(bones)]) <= 0.05 + 1 / len(bones)
    assert np.mean([p.status == "ok" for p in guard.predict(images)]) >= 0.97
