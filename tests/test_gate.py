"""The gate: films of every source pass, everything else is refused with a reason in plain words."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrlib import Predictor
from cxrlib.config import Array, from_dict, to_dict
from cxrlib.images import phantom
from cxrlib.images.decode import fit as fit_film
from cxrlib.images.decode import read
from cxrlib.runtime.gate import Gate, GateConfig, Sight, Verdict, fit, inspect, layout_of

SIDE = 64


def embed(films: np.ndarray) -> np.ndarray:
    """Stands for a network: grey levels and edges of a coarse grid."""
    cells = films[..., 0].reshape(len(films), 16, SIDE // 16, 16, SIDE // 16)
    return np.concatenate([cells.mean((2, 4)).reshape(len(films), -1), cells.std((2, 4)).reshape(len(films), -1)], 1)


def drawn(n: int, seed: int = 0) -> np.ndarray:
    return np.stack([phantom.draw(seed + i, opacity=i % 2 == 1, size=SIDE) for i in range(n)])


@pytest.fixture(scope="module")
def config() -> GateConfig:
    pytest.importorskip("sklearn", reason="needs the [train] extra")
    return fit(drawn(40), sources=["a"] * 20 + ["b"] * 20, embed=embed, made=160)


def verdict(gate: Gate, pixels: np.ndarray) -> Verdict:
    film = read(pixels)
    fitted = fit_film(film, SIDE)
    return gate.check(inspect(film, fitted), embed(fitted[None])[0])


# --- pixels and header ---


def seen(pixels: np.ndarray, **said: Any) -> Sight:
    film = dataclasses.replace(read(pixels), **said)
    return inspect(film, fit_film(film, 224))


def checked(pixels: np.ndarray, **said: Any) -> tuple[list[str], list[str]]:
    sight = seen(pixels, **said)
    return list(sight.refusals), list(sight.warnings)


def test_a_film_without_fault() -> None:
    assert checked(phantom.draw(1, size=300)) == ([], [])
    assert checked(phantom.draw(1, size=300), view="PA", modality="CR") == ([], [])


def test_headers() -> None:
    film = phantom.draw(1, size=300)
    assert checked(film, modality="MR")[0] == ["its header says that it is no plain radiograph (modality MR)"]
    assert checked(film, view="LL")[0] == ["its header says that it is a lateral or oblique view (LL)"]
    assert checked(film, view="ZZ") == ([], ["its header names a view that is neither PA nor AP (ZZ)"])


def test_sizes() -> None:
    assert checked(phantom.draw(1, size=60))[0] == ["it is too small: 60 x 60 pixels, at least 64 x 64 are needed"]
    assert checked(phantom.draw(1, size=100)) == ([], ["it is small: 100 x 100 pixels, the network uses 224 x 224"])
    long = np.asarray(Image.fromarray(phantom.draw(1, size=300)).resize((300, 1300)))
    assert checked(long)[0] == ["it is too long and narrow: 300 x 1300 pixels"]
    assert checked(long[:800])[1] == ["it is unusually long and narrow: 300 x 800 pixels"]


def test_grey_levels() -> None:
    film = phantom.draw(1, size=300)
    assert checked(np.full((300, 300), 130, np.uint8))[0] == ["it is almost blank"]
    assert checked((100 + film // 5).astype(np.uint8))[1] == ["it has very little contrast"]
    cut = film.copy()
    cut[:200, 30:270] = 255
    (warning,) = checked(cut)[1]
    assert warning.endswith("% of it is pure white: it may be badly exposed or cut off")
    cut[:275] = 0
    (refusal,) = checked(cut)[0]
    assert refusal.endswith("% of it is pure black")
    colour = np.stack([film, film // 2, film], 2)
    assert checked(colour)[1] == ["it is a colour picture; only its brightness was used"]


# --- what the network sees ---


def test_a_fitted_gate(config: GateConfig) -> None:
    assert set(config.refused) == {"a", "b"}
    assert max(config.refused.values()) < 0.1
    assert config.outliers_refused > 0.8
    gate = Gate(config)
    accepted = [verdict(gate, film).accepted for film in drawn(40, seed=1000)]
    assert np.mean(accepted) > 0.9
    noise = np.random.default_rng(0).integers(0, 256, (20, 100, 100), dtype=np.uint8)
    assert not any(verdict(gate, film).accepted for film in noise)
    refused = verdict(gate, noise[0])
    assert refused.reasons[0].startswith("it does not look like a frontal chest film")


def test_films_that_lie_on_their_side_or_are_inverted(config: GateConfig) -> None:
    strict = Gate(dataclasses.replace(config, refuse=-1, warn=-1))
    reasons = {k: {verdict(strict, np.rot90(film, k)).reasons[0] for film in drawn(8, seed=50)} for k in range(4)}
    start = "it does not look like a frontal chest film"
    assert reasons[0] == {start}
    assert f"{start}: it seems to lie on its side" in reasons[1] | reasons[3]
    assert {verdict(strict, 255 - film).reasons[0] for film in drawn(8, seed=50)} == {
        f"{start}: its intensities look inverted, bone should be bright and air dark"
    }


def test_a_borderline_film_gets_an_answer_and_a_warning(config: GateConfig) -> None:
    wary = Gate(dataclasses.replace(config, warn=-1, refuse=1e9))
    assert verdict(wary, drawn(1)[0]) == Verdict(
        True, ("it is unlike most chest films that the model was trained on: take its probability with care",)
    )
    open_ = Gate(dataclasses.replace(config, warn=1e9, refuse=1e9))
    assert verdict(open_, drawn(1)[0]) == Verdict(True, ())


@pytest.mark.parametrize(
    ("score", "distance", "accepted"),
    [(0.9, 0, True), (-5, 0.9, True), (0.9, 0.9, False), (1.1, -5, False), (-5, 1.1, False)],
)
def test_a_little_strange_to_both_is_strange(score: float, distance: float, accepted: bool) -> None:
    one, plane = Array.pack(np.ones(1)), Array.pack(np.zeros(256))
    # The only feature lies at its centre, a deviation of 0 and hence a logarithm of 1e-12: usual and reach make the
    # wanted distance of it.
    config = GateConfig(
        Array.pack(np.zeros(257)),
        score,
        plane,
        one,
        one,
        Array.pack(np.ones((1, 1))),
        one,
        1,
        math.log(1e-12) - distance,
        1,
        1,
        1,
    )
    assert Gate(config).check(seen(phantom.draw(1, size=300)), np.ones(1, np.float32)).accepted is accepted


def test_what_is_no_number_is_refused(config: GateConfig) -> None:
    nothing = np.full(512, np.nan, np.float32)
    assert not Gate(config).check(seen(drawn(1)[0]), nothing).accepted


def test_an_embedding_of_another_network(config: GateConfig) -> None:
    with pytest.raises(ValueError, match=r"this gate was fitted for embeddings of length 512\. Received: 7"):
        Gate(config).check(seen(drawn(1)[0]), np.zeros(7, np.float32))


def test_a_layout_does_not_depend_on_contrast() -> None:
    film = drawn(1)[0].astype(np.float32)
    assert np.array_equal(layout_of(film[None]), layout_of((film * 2 + 20)[None]))
    assert layout_of(film[None]).shape == (1, 256)
    assert layout_of(film[None]).std() == pytest.approx(1, abs=0.01)


# --- fitting ---


def test_a_fit_can_be_repeated(config: GateConfig) -> None:
    again = fit(drawn(40), sources=["a"] * 20 + ["b"] * 20, embed=embed, made=160)
    assert again == config


@pytest.mark.parametrize(
    ("films", "message"),
    [
        (
            np.zeros((7, 32, 32), np.uint8),
            r"films must be 8 or more of shape \(s, s\), uint8, s at least 16\. "
            r"Received: shape=\(7, 32, 32\), dtype=uint8",
        ),
        (np.zeros((9, 32, 32)), "Received: shape=.*, dtype=float64"),
        (np.zeros((9, 8, 8), np.uint8), r"Received: shape=\(9, 8, 8\)"),
        (np.zeros((9, 32, 32, 1), np.uint8), r"Received: shape=\(9, 32, 32, 1\)"),
    ],
)
def test_films_that_do_not_fit(films: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(films, sources=["a"] * len(films), embed=embed)


def test_sources_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"sources must name the source of each film\. Received: 3 for 9 films"):
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
    films = drawn(5)
    first, second = (
        Gate(c).measure(embed(films[..., None] / np.float32(255)), layout_of(films)) for c in (config, again)
    )
    assert np.array_equal(first, second)


def test_films_are_measured_one_by_one_as_together(config: GateConfig) -> None:
    films = drawn(5)
    embeddings, layouts = embed(films[..., None] / np.float32(255)), layout_of(films)
    gate = Gate(config)
    together = gate.measure(embeddings, layouts)
    assert together.shape == (5,)
    assert [gate.measure(*film).item() for film in zip(embeddings, layouts, strict=True)] == pytest.approx(
        together.tolist(), rel=1e-4, abs=1e-6
    )


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
    with pytest.raises(ValueError, match="a gate's arrays do not belong together: weights "):
        dataclasses.replace(config, layout=Array.pack(np.zeros(3)))
    with pytest.raises(ValueError, match="a gate's arrays do not belong together: weights "):
        dataclasses.replace(config, weights=Array.pack(np.zeros(300)))


# --- the gate of the model that comes with cxrlib ---


@pytest.fixture(scope="module")
def guard() -> Predictor:
    return Predictor(threads=2)


@pytest.mark.parametrize("size", [64, 150, 224, 600])
def test_drawn_phantoms_pass(guard: Predictor, size: int) -> None:
    answers = [guard(phantom.draw(seed, opacity=seed % 2 == 1, size=size)) for seed in range(6)]
    assert all(p.accepted for p in answers), [p.reasons for p in answers if not p.accepted]


def test_other_pictures_are_refused(guard: Predictor) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:300, :300]
    film = phantom.draw(3, size=300)
    pictures = {
        "noise": rng.integers(0, 256, (300, 300), dtype=np.uint8),
        "a ramp": (x * 0.8).astype(np.uint8),
        "rings": (127 + 100 * np.sin(np.hypot(x - 150, y - 150) / 9)).astype(np.uint8),
        "a disc": (200 * (np.hypot(x - 150, y - 150) < 100)).astype(np.uint8),
        "checks": (255 * ((x // 30 + y // 30) % 2)).astype(np.uint8),
        "an inverted film": 255 - film,
        "a film on its side": np.rot90(film).copy(),
        "blank": np.zeros((300, 300), np.uint8),
    }
    answers = {name: guard(pixels) for name, pixels in pictures.items()}
    assert [name for name, p in answers.items() if p.accepted] == []
    assert all(p.reasons for p in answers.values())


def test_bones_are_refused_and_films_are_not(guard: Predictor, shared: Path) -> None:
    bones = sorted((shared / "data" / "not_chest").rglob("*.jpg"))[::5]
    films = [
        path
        for source in ("nih", "rsna", "chest_xray/test")
        for path in sorted((shared / "data" / source).rglob("*.*"))[::90]
    ]
    assert np.mean([p.accepted for p in guard.predict(bones)]) <= 0.05 + 1 / len(bones)
    assert np.mean([p.accepted for p in guard.predict(films)]) >= 0.97
