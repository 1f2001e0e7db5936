"""Drawn chest radiographs to try the demo with. They show no patient, and only what a sketch in a textbook shows."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cxrlib import phantom

SIZE = 640
PREFIX = "Drawing: "  # so that nobody takes them for patients
_Y, _X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)  # down, and to the image's right


def drawings() -> dict[str, np.ndarray]:
    """Draw the examples: ndarrays of shape (h, 640), uint8, by what they show."""
    adult = {seed: phantom.draw(seed, size=SIZE) for seed in (0, 2, 3, 4, 7, 12)}
    return {
        "Normal adult": adult[0],
        "Normal child": _child(adult[12]),
        "Supine adult": _supine(adult[3]),
        "Lobar pneumonia": _denser(adult[4], _lobe()),
        "Interstitial pneumonia": _denser(adult[7], _lines()),
        "Pleural effusion": _denser(adult[2], _fluid()),
    }


def _below(edge: np.ndarray | float, soft: float) -> np.ndarray:
    """1 where `edge` is negative, 0 where it is positive, with a soft step between."""
    step: np.ndarray = 1 / (1 + np.exp(np.clip(edge / soft, -30, 30)))
    return step


def _oval(x: float, y: float, rx: float, ry: float, soft: float) -> np.ndarray:
    return _below(np.hypot((_X - x) / rx, (_Y - y) / ry) - 1, soft)


def _blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)), np.float32)


def _mottle(radius: float) -> np.ndarray:
    """Noise of one size, with mean 0 and standard deviation 1."""
    smooth = _blurred(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE)), radius)
    return (smooth - smooth.mean()) / smooth.std()


def _denser(pixels: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Replace part of the lungs' air by something as dense as soft tissue; the ribs still show."""
    smooth = _blurred(pixels, SIZE / 40)
    air = np.clip((110 - smooth) / 45, 0, 1) * _oval(0, 0, 0.93, 0.92, 0.02)
    dense = 135 + 0.5 * (pixels - smooth)
    return (pixels + (dense - pixels) * np.clip(part, 0, 1) * air).astype(np.uint8)


def _lobe() -> np.ndarray:
    """The right upper lobe, down to the horizontal fissure."""
    fissure = _below(_Y - 0.03 + 0.12 * (_X + 0.4), 0.01)
    return 0.97 * fissure * (_X < 0) * _oval(-0.4, -0.1, 0.6, 0.55, 0.14) * (1 + 0.13 * _mottle(SIZE / 60))


def _lines() -> np.ndarray:
    """Fine lines and haze in both lungs, most at the hila and the bases."""
    rng, canvas = np.random.default_rng(0), Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(canvas)
    for x, y, turn, length in rng.uniform((0, 0, 0, 6), (SIZE, SIZE, np.pi, 26), (5000, 4)):
        pen.line((x, y, x + length * np.cos(turn), y + length * np.sin(turn)), fill=int(rng.integers(90, 200)), width=2)
    return _oval(0, 0.12, 0.9, 0.6, 0.3) * (0.32 + 0.1 * _mottle(SIZE / 40) + _blurred(np.asarray(canvas), 1.3) / 330)


def _fluid() -> np.ndarray:
    """Fluid that rises along the chest wall on the image's right, the patient's left."""
    level = 0.2 - 0.4 * np.clip((_X - 0.12) / 0.5, 0, 1) ** 2.2
    return _below(level - _Y, 0.02) * (_X > 0) * _below(_X - 0.7, 0.012)


def _child(pixels: np.ndarray) -> np.ndarray:
    """A shorter chest with a larger heart, and a thymus."""
    shadow = np.maximum(_oval(0.08, 0.1, 0.36, 0.26, 0.07), 0.8 * _oval(0.02, -0.3, 0.2, 0.3, 0.12))
    painted = (pixels + np.clip(165.0 - pixels, 0, None) * 0.9 * shadow).astype(np.uint8)
    return np.asarray(Image.fromarray(painted).resize((SIZE, round(0.8 * SIZE)), Image.Resampling.LANCZOS))


def _supine(pixels: np.ndarray) -> np.ndarray:
    """Lungs little inflated, a wide heart, low contrast, and the leads of a monitor."""
    shadow = np.maximum(_oval(0.1, 0.16, 0.44, 0.3, 0.08), 0.8 * _oval(0, -0.3, 0.18, 0.4, 0.12))
    base = _below(0.2 + 0.5 * (np.abs(_X) - 0.4) ** 2 - _Y, 0.02) * np.clip(pixels / 40.0 - 0.5, 0, 1)
    found = pixels + np.clip(160.0 - pixels, 0, None) * np.maximum(0.85 * shadow, 0.95 * base)
    image = Image.fromarray((0.82 * found + 26).astype(np.uint8))
    pen, t = ImageDraw.Draw(image), np.linspace(0, 1, 16)
    for x, y, bend, end in ((0.18, 0.28, 0.02, 0.2), (0.8, 0.24, 1.02, 0.8), (0.76, 0.7, 0.98, 0.84)):
        curve = np.stack([x * (1 - t) ** 2 + 2 * bend * t * (1 - t) + end * t**2, y + (1 - y) * t], axis=1)
        pen.line([tuple(point) for point in (curve * SIZE).tolist()], fill=225, width=3, joint="curve")
        pen.circle((x * SIZE, y * SIZE), SIZE / 60, outline=240, width=4)
    pen.text((0.05 * SIZE, 0.03 * SIZE), "AP SUPINE", fill=240, font_size=SIZE / 30)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)))
