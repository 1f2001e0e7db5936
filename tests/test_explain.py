"""Heatmaps: where the evidence is, at the image's own size, on a scale that does not exaggerate."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny_network
from PIL import Image

from cxrlib import Predictor, bundle
from cxrlib.config import Array, BundleError, to_dict
from cxrlib.images import phantom
from cxrlib.images.decode import Radiograph, fit, read
from cxrlib.runtime import explain
from cxrlib.runtime.explain import Explanation, heatmap


@pytest.fixture(scope="module")
def predictor(tiny: Path) -> Predictor:
    return Predictor(tiny, threads=2)


def explained(heat: np.ndarray, image: Radiograph) -> Explanation:
    prediction = None
    return Explanation(heat, image, "PNEUMONIA", prediction)  # type: ignore[arg-type]


def test_a_heatmap_has_the_size_of_the_image(predictor: Predictor) -> None:
    image = phantom.draw(1, size=200)[:120]
    e = predictor.explain(image)
    assert (e.heatmap.shape, e.heatmap.dtype) == ((120, 200), np.float32)
    assert 0 <= e.heatmap.min() <= e.heatmap.max() <= 1
    assert e.prediction == predictor(image)
    assert e.label == "PNEUMONIA"
    assert (e.image.pixels == image).all()
    picture = e.overlay()
    assert (picture.mode, picture.size) == ("RGB", (200, 120))


def test_another_label(predictor: Predictor) -> None:
    image = phantom.draw(1, size=96)
    positive, normal = predictor.explain(image), predictor.explain(image, label="NORMAL")
    assert normal.label == "NORMAL"
    assert not np.array_equal(positive.heatmap, normal.heatmap)
    with pytest.raises(ValueError, match=r"label must be one of NORMAL, PNEUMONIA\. Received: label='TUBERCULOSIS'"):
        predictor.explain(image, label="TUBERCULOSIS")


def test_what_normal_images_show_too_is_left_out(tiny: Path, tmp_path: Path) -> None:
    image = phantom.draw(1, size=96)
    loaded = bundle.load(tiny)
    evidence = loaded.runtime.run(fit(read(image), loaded.config.image_size)[None]).evidence[0]  # (h, w, k)

    def with_normal(values: np.ndarray) -> Predictor:
        content = tiny_network.files(normal_evidence=to_dict(Array.pack(values)))
        return Predictor(tiny_network.write(tmp_path / str(len(list(tmp_path.iterdir()))), content), gate=False)

    assert with_normal(evidence).explain(image).heatmap.max() == 0
    assert with_normal(evidence).explain(image).empty
    left = with_normal(evidence - 2).explain(image)
    assert left.heatmap == pytest.approx(2 / explain._FULL, rel=1e-5)
    assert not left.empty
    with pytest.raises(BundleError, match=r"cannot be trusted: its normal_evidence has shape \(1, "):
        with_normal(evidence[:1])


def test_the_peak_lies_where_the_evidence_is() -> None:
    evidence = np.zeros((7, 7))
    evidence[1, 5] = 3.0
    heat = heatmap(evidence, read(np.zeros((70, 140), np.uint8)))
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (row // 10, column // 20) == (1, 5)


def test_the_scale_is_absolute() -> None:
    image = read(np.zeros((14, 14), np.uint8))
    weak, strong, stronger = (heatmap(np.full((7, 7), value * explain._FULL), image).max() for value in (0.1, 1.0, 3.0))
    assert weak == pytest.approx(0.1)
    assert strong == stronger == 1
    assert heatmap(np.full((7, 7), -3.0), image).max() == 0


def test_an_overlay_leaves_the_image_alone_where_nothing_is_found() -> None:
    image = read(phantom.draw(1, size=64))
    heat = np.zeros((64, 64), np.float32)
    heat[:32] = 1
    e = explained(heat, image)
    for alpha in (0.0, 0.5, 1.0):
        painted = np.asarray(e.overlay(alpha=alpha))
        assert (painted[32:] == image.pixels[32:, :, None]).all()
        assert (painted[:32] == image.pixels[:32, :, None]).all() == (alpha == 0)
    assert np.asarray(e.overlay(alpha=1.0))[0, 0].tolist() == [252, 255, 164]
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]\. Received: alpha="):
            e.overlay(alpha=wrong)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, "JPEG"])
def test_strips_of_columns_make_the_same_picture_as_the_whole_at_once(kind: type | str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (310, 2 * explain._STRIP + 31), dtype=np.uint8)
    if kind == "JPEG":  # decoded at a reduced scale
        file = io.BytesIO()
        Image.fromarray(np.tile(pixels, (2, 2))).save(file, "JPEG")
        image = read(file.getvalue(), model_size=20)
        assert image.pixels.shape != image.size
    else:
        image = read(
            {np.uint8: pixels, np.uint16: pixels.astype(np.uint16) * 257, np.float32: pixels / np.float32(255)}[kind]
        )  # type: ignore[index]
    height, width = image.size
    evidence = rng.normal(3, 4, (7, 9))
    positive = np.maximum(evidence, 0).astype(np.float32)
    heat = np.clip(
        np.asarray(
            Image.fromarray(positive / max(8, positive.max())).resize((width, height), Image.Resampling.BICUBIC)
        ),
        0,
        1,
    )
    assert np.array_equal(heatmap(evidence, image), heat)
    grey = np.clip(image.pixels.astype(np.float32) * np.float32(255 / image.white), 0, 255)
    grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
    levels = np.linspace(0, 1, len(explain._STOPS))
    colours = np.stack(
        [np.interp(np.arange(256) / 255, levels, explain._STOPS[:, c]) for c in range(3)], axis=1
    ).astype(np.float32)
    opacity = (np.float32(0.4) * heat)[..., None]
    painted = grey[..., None] * (1 - opacity) + colours[(heat * 255).astype(np.uint8)] * opacity
    assert np.array_equal(np.asarray(explained(heat, image).overlay(alpha=0.4)), painted.round().astype(np.uint8))


def test_no_copies_of_the_image_in_floating_point_are_made() -> None:
    image = read(phantom.draw(1, size=1500))
    tracemalloc.start()
    try:
        heat = heatmap(np.ones((7, 7)), image)
        most = [tracemalloc.get_traced_memory()[1] / heat.size]
        tracemalloc.reset_peak()
        explained(heat, image).overlay()
        most.append(tracemalloc.get_traced_memory()[1] / heat.size - 4)
    finally:
        tracemalloc.stop()
    assert most[0] < 6  # bytes per pixel, of which the heatmap itself takes four
    assert most[1] < 4


def test_colours_become_brighter_with_the_evidence() -> None:
    image = read(np.zeros((16, 256), np.uint8))
    heat = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (16, 1))
    painted = np.asarray(explained(heat, image).overlay(alpha=1.0).convert("L"), float)[0]
    assert (np.diff(painted) >= 0).all()


def test_an_image_decoded_at_a_reduced_scale(tmp_path: Path, predictor: Predictor) -> None:
    path = tmp_path / "large.jpeg"
    Image.fromarray(phantom.draw(2, size=1600)).save(path)
    e = predictor.explain(path)
    assert max(e.image.pixels.shape) < 1600
    assert e.heatmap.shape == e.image.size == (1600, 1600)
    assert e.overlay().size == (1600, 1600)


def test_deep_images() -> None:
    deep = phantom.draw(1, size=64).astype(np.uint16) * 257
    assert (
        np.asarray(explained(np.zeros((64, 64), np.float32), read(deep)).overlay())[..., 0] == phantom.draw(1, size=64)
    ).all()


def test_a_refused_image_is_explained_all_the_same(gated: Path) -> None:
    e = Predictor(gated).explain(np.zeros((80, 80), np.uint8))
    assert e.prediction.status == "refused"
    assert e.heatmap.shape == (80, 80)


def test_heat_where_no_lung_is() -> None:
    image = read(phantom.draw(1, size=70))

    def heat(*places: tuple[int, int], value: float = 9.0) -> Explanation:
        evidence = np.zeros((7, 7))
        for place in places:
            evidence[place] = value
        return explained(heatmap(evidence, image), image)

    corner, middle = heat((0, 0), (6, 6)), heat((3, 2), (4, 5))
    assert corner.border > 0.7
    assert middle.border < 0.1
    assert middle.warnings == ()
    assert corner.warnings == (
        f"{corner.border:.0%} of the evidence for PNEUMONIA lies at the border, where there is hardly any lung",
    )
    assert heat((0, 0), value=1.0).warnings == ()  # too faint to matter
    assert (heat().border, heat().warnings) == (0.0, ())


def test_empty_bars_have_no_heat() -> None:
    image = read(np.pad(phantom.draw(1, size=70), ((0, 0), (35, 35))))
    evidence = np.zeros((7, 7))
    evidence[0, 0] = evidence[3, 2] = 9.0
    heat = heatmap(evidence, image)
    assert heat.shape == image.size == (70, 140)
    assert not heat[:, :35].any()
    assert not heat[:, 105:].any()
    assert heat[:, 35:105] == pytest.approx(heatmap(evidence, read(phantom.draw(1, size=70))))
    assert explained(heat, image).border > 0.3  # the corner of what the image shows, not of the image
    assert explained(heat, image).overlay().size == (140, 70)


def test_the_command_line_says_where_the_heat_lies(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cxrlib.cli import main

    monkeypatch.setattr(Explanation, "warnings", ("it lies elsewhere",))
    image = str(phantom.save(tmp_path / "image.png", size=80))
    assert main(["predict", image, "--model", str(tiny), "--heatmaps", str(tmp_path / "heat")]) == 0
    assert "  note: it lies elsewhere\n" in capsys.readouterr().out


def test_real_images(shared: Path) -> None:
    predictor = Predictor(gate=False)
    peaks = {}
    for label in predictor.labels:
        heat = [predictor.explain(path).heatmap for path in sorted((shared / "data" / "native" / label).iterdir())[::4]]
        peaks[label] = [float(h.max()) for h in heat]
    assert np.median(peaks["NORMAL"]) < 0.25  # nearly dark
    assert np.median(peaks["PNEUMONIA"]) > 0.7
