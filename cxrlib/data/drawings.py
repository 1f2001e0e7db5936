"""Drawings of what is no frontal chest film: other body parts, scans, scenes, text and noise, for the gate to learn from.

Absorption adds up along a ray, as on a film. All is computed in single precision, which takes half the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Drawing: TypeAlias = Callable[[np.random.Generator, int], np.ndarray]


def clouds(rng: np.random.Generator, size: int, power: float) -> np.ndarray:
    """Draw noise with a spectrum of 1 / f^power: natural images have a power of about 1.

    Args:
        rng: Where the draws come from.
        size: Side in pixels.
        power: 0 for white noise; the higher, the smoother.

    Returns:
        ndarray of shape (size, size), float32 in [0, 1].

    Example:
        >>> clouds(np.random.default_rng(0), 32, 1.0).shape
        (32, 32)
    """
    f = _frequencies(size)
    f[0, 0] = 1 / size
    x = _waves(np.fft.rfft2(_grain(rng, size)) / f**power, size)
    low, high = tones(x, 0.01, 0.99)
    drawn: np.ndarray = np.clip((x - low) / max(high - low, 1e-9), 0, 1)
    return drawn


def tones(x: np.ndarray, *parts: float) -> list[float]:
    """Find the tones below which given parts of a picture lie, from every ninth of its pixels.

    Args:
        x: ndarray of shape (h, w).
        *parts: In [0, 1].

    Returns:
        A tone for each part.

    Example:
        >>> tones(np.eye(32), 0.0, 1.0)
        [0.0, 1.0]
    """
    found: list[float] = np.quantile(x[::3, ::3], parts).tolist()
    return found


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise with mean 0 and deviation 1 at every pixel."""
    return rng.standard_normal((size, size), np.float32)


def _frequencies(size: int) -> np.ndarray:
    """How many waves a pixel each coefficient of `numpy.fft.rfft2` stands for."""
    frequencies: np.ndarray = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]).astype(np.float32)
    return frequencies


def _waves(coefficients: np.ndarray, size: int) -> np.ndarray:
    """The picture (size, size) that has these coefficients."""
    picture: np.ndarray = np.fft.irfft2(coefficients, (size, size)).astype(
        np.float32, copy=False
    )  # NumPy 1 computes it in double precision
    return picture


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x to the right, (1, size), and y down, (size, 1), both from -1 to 1."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return axis[None], axis[:, None]


def _grid(size: int, rng: np.random.Generator, turn: float = 0.15, zoom: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """x to the right and y down, both in [-1, 1]; turned, shifted, scaled and a little bent."""
    x, y = _axes(size)
    angle, scale = rng.normal(0, turn), math.exp(rng.normal(0, zoom))
    x, y = (
        x + 0.04 * np.sin(rng.uniform(1, 4) * y + rng.uniform(0, 6)),
        y + 0.04 * np.sin(rng.uniform(1, 4) * x + rng.uniform(0, 6)),
    )
    return (x * math.cos(angle) - y * math.sin(angle)) * scale + rng.normal(0, 0.1), (
        x * math.sin(angle) + y * math.cos(angle)
    ) * scale + rng.normal(0, 0.1)


def _radius(x: np.ndarray, y: np.ndarray, cx: float, cy: float, a: float, b: float, power: float = 2.0) -> np.ndarray:
    """1 on the rim of an ellipse, 0 in its centre."""
    cx, cy, a, b, power = (
        float(cx),
        float(cy),
        float(a),
        float(b),
        float(power),
    )  # NumPy's own scalars would make it twice as wide and slow
    return (np.abs((x - cx) / a) ** power + np.abs((y - cy) / b) ** power) ** (1 / power)


def _filled(r: np.ndarray, soft: float = 0.03) -> np.ndarray:
    return 1 / (1 + np.exp(np.clip((r - 1) / soft, -40, 40)))


def _thick(r: np.ndarray) -> np.ndarray:
    """How much of a ball or a cylinder a ray meets."""
    drawn: np.ndarray = np.sqrt(np.clip(1 - r * r, 0, 1))
    return drawn


def _rod(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place along a rod, 0 to 1, and distance from it."""
    (left, top), (right, down) = start.tolist(), (end - start).tolist()
    x, y = x - left, y - top
    t = np.clip((x * right + y * down) / max(right * right + down * down, 1e-6), 0, 1)
    return t, np.hypot(x - t * right, y - t * down)


def _bone(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, wide: float) -> np.ndarray:
    t, far = _rod(x, y, start, end)
    ends = np.exp(-((t / 0.14) ** 2)) + np.exp(-(((1 - t) / 0.14) ** 2))
    r = far / (wide * (1 + 0.7 * ends))
    drawn: np.ndarray = _thick(r) - 0.6 * (1 - 0.8 * np.clip(ends, 0, 1)) * _thick(r / 0.62)  # a tube with spongy ends
    return drawn


def _flesh(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, wide: float) -> np.ndarray:
    return _thick(_rod(x, y, start, end)[1] / wide)


def _limb(rng: np.random.Generator, size: int) -> np.ndarray:
    """An arm or a leg, straight or bent, with one or two bones in each part."""
    x, y = _grid(size, rng, turn=1.5)
    joint, bend, wide = rng.normal(0, 0.25, 2), rng.normal(0, 0.8), rng.uniform(0.07, 0.2)
    film = np.zeros_like(x)
    for part, angle in enumerate((-math.pi / 2, math.pi / 2 + bend)):
        way = np.array((math.cos(angle), math.sin(angle)))
        across = np.array((-way[1], way[0]))
        bones = rng.integers(1, 3)
        w = wide / bones**0.4
        film += rng.uniform(0.3, 0.6) * _flesh(x, y, joint, joint + 2.2 * way, wide * rng.uniform(1.8, 3.5))
        for k in range(bones):
            aside = across * (k - (bones - 1) / 2) * w * 3
            film += rng.uniform(0.5, 0.9) * _bone(
                x, y, joint + way * (w * 1.1 + 0.02 * part) + aside, joint + way * rng.uniform(1, 2.4) + aside, w
            )
    return film


def _hand(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _grid(size, rng, turn=0.8, zoom=0.3)
    palm, film = np.array((0.0, 0.55)), np.zeros_like(x)
    film += 0.4 * _thick(_radius(x, y, 0, 0.6, 0.55, 0.5, 3))
    for k in range(rng.integers(4, 6)):
        angle = -math.pi / 2 + (k - 2) * rng.uniform(0.18, 0.3)
        way, at = np.array((math.cos(angle), math.sin(angle))), palm + np.array(((k - 2) * 0.14, 0))
        film += 0.3 * _flesh(x, y, at, at + way * 1.35, 0.14)
        for length in (0.5, 0.36, 0.25, 0.18):
            film += 0.6 * _bone(x, y, at, at + way * length, 0.045)
            at = at + way * (length + 0.06)
    for _ in range(8):
        film += 0.35 * _thick(_radius(x, y, rng.uniform(-0.35, 0.35), rng.uniform(0.65, 0.95), 0.12, 0.1))
    return film


def _shoulder(rng: np.random.Generator, size: int) -> np.ndarray:
    """A ball joint beside part of the trunk: shoulder or hip."""
    x, y = _grid(size, rng, turn=0.4)
    x = x * int(rng.choice((-1, 1)))
    film = 0.6 * _filled(_radius(x, y, -0.9, 0.5, 1.0, 1.4), 0.05) + 0.4 * _flesh(
        x, y, np.array((0.3, 0.0)), np.array((0.6, 2.0)), 0.45
    )
    film += 0.6 * _thick(_radius(x, y, 0.28, -0.05, 0.22, 0.22)) + 0.7 * _bone(
        x, y, np.array((0.35, 0.0)), np.array((0.6, 2.2)), 0.13
    )
    film += 0.35 * _filled(_radius(x, y, -0.15, 0.25, 0.3, 0.6), 0.08) + 0.5 * _bone(
        x, y, np.array((-1.2, rng.uniform(-0.6, -0.2))), np.array((0.2, -0.4)), 0.07
    )
    for k in range(rng.integers(0, 7)):  # ribs
        film += 0.25 * np.exp(-(((_radius(x, y, -1.0, 0.1 + 0.25 * k, 0.9, 0.5) - 1) / 0.07) ** 2)) * (x < 0)
    return film


def _spine(x: np.ndarray, y: np.ndarray, centre: np.ndarray, wide: float, step: float) -> np.ndarray:
    """Vertebrae one above the other about a line, with their discs."""
    column = _filled(np.abs(x - centre) / wide, 0.12)
    drawn: np.ndarray = column * (0.65 + 0.35 * np.cos(2 * math.pi * y / step)) + 0.3 * np.exp(
        -(((np.abs(x - centre) - wide) / (0.25 * wide)) ** 2)
    )
    return drawn


def _abdomen(rng: np.random.Generator, size: int) -> np.ndarray:
    """Spine, pelvis and gas in a trunk without lungs."""
    x, y = _grid(size, rng)
    trunk = _thick(_radius(x, y, 0, 0, rng.uniform(0.75, 1.1), 2.5, 3))
    film = 0.7 * trunk + rng.uniform(0.15, 0.4) * _spine(x, y, 0.05 * np.sin(2 * y), 0.11, 0.25) * trunk
    low = rng.uniform(0.2, 1.3)
    ring = np.abs(_radius(x, y, 0, low + 0.2, 0.42, 0.38) - 1)
    film += 0.3 * np.exp(-((ring / 0.2) ** 2)) * (y > low - 0.3)
    for side in (-1, 1):
        film += 0.3 * _filled(_radius(x, y, 0.5 * side, low - 0.15, 0.3, 0.38), 0.08)
        film += 0.4 * _thick(_radius(x, y, 0.62 * side, low + 0.42, 0.15, 0.15)) + 0.4 * _bone(
            x, y, np.array((0.65 * side, low + 0.45)), np.array((0.75 * side, low + 2)), 0.1
        )
    for _ in range(rng.integers(0, 14)):
        film -= rng.uniform(0.1, 0.3) * _thick(
            _radius(x, y, rng.uniform(-0.6, 0.6), rng.uniform(-0.9, 0.8), *rng.uniform(0.04, 0.2, 2))
        )
    drawn: np.ndarray = film
    return drawn


def _lateral(rng: np.random.Generator, size: int) -> np.ndarray:
    """A chest from the side: one field of lung between breastbone and spine, heart in front, two domes below."""
    x, y = _grid(size, rng)
    x = x * int(rng.choice((-1, 1)))  # front to the left or to the right
    deep = rng.uniform(0.6, 0.9)
    body = _thick(_radius(x, y, 0, 0.2, deep + 0.12, 2.0, 3))
    film = rng.uniform(0.6, 0.9) * body
    dome = 0.62 - 0.25 * np.cos(1.6 * x) + rng.normal(0, 0.1)
    lung = _filled(_radius(x, y, -0.04, -0.12, deep * 0.8, rng.uniform(0.75, 0.95), 2.6), 0.06) / (
        1 + np.exp(np.clip((y - dome) / 0.03, -40, 40))
    )
    film -= rng.uniform(0.3, 0.55) * lung * body
    film += lung * rng.uniform(0.15, 0.4) * _filled(_radius(x, y, -0.28, 0.22, 0.34, 0.36), 0.15)
    film += lung * rng.uniform(0.1, 0.3) * _filled(_radius(x, y, 0.0, -0.25, 0.16, 0.3), 0.3)
    behind = deep * 0.72 + 0.12 * y + 0.1 * y * y
    film += rng.uniform(0.1, 0.35) * body * _spine(x, y, behind, 0.13, 0.2)
    film += rng.uniform(0.1, 0.3) * np.exp(-(((x + deep * 0.85 - 0.1 * y) / 0.04) ** 2)) * (y > -0.6) * (y < 0.5)
    for k in range(8):
        rib = -0.75 + 0.18 * k + 0.45 * (0.5 * deep - x) - 0.15 * x * x
        film += rng.uniform(0.02, 0.07) * body * np.exp(-(((y - rib) / 0.025) ** 2))
    arm = rng.uniform(0, 0.3)
    return film + arm * _flesh(x, y, np.array((-1.2, -0.7)), np.array((0.5, -1.2)), 0.3)


def _skull(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _grid(size, rng)
    r = _radius(x, y, 0, -0.15, rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.8), 2.2)
    film = (
        0.5 * _thick(r)
        + 0.9 * (_thick(r) - 0.93 * _thick(r / 0.93))
        + 0.4 * _filled(_radius(x, y, rng.uniform(-0.3, 0.3), 0.6, 0.35, 0.35), 0.1)
    )
    eyes = rng.uniform(0.15, 0.3)
    for side in (-1, 1):
        film -= 0.25 * _filled(_radius(x, y, eyes * side, 0.15, 0.15, 0.12), 0.12)
    for k in range(rng.integers(0, 14)):
        film += 0.4 * _filled(_radius(x, y, -0.3 + 0.05 * k, 0.62, 0.02, 0.06, 4), 0.2)
    return film + 0.5 * _flesh(x, y, np.array((0, 0.8)), np.array((0, 2)), 0.3)


def _breast(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _grid(size, rng)
    x = x * int(rng.choice((-1, 1))) + 1
    body = _filled(_radius(x, y, 0, 0, rng.uniform(0.7, 1.5), rng.uniform(0.6, 1)), 0.02)
    drawn: np.ndarray = body * (0.4 + 0.5 * clouds(rng, size, 1.6) * np.clip(1.2 - x, 0, 1))
    return drawn


def _slice(rng: np.random.Generator, size: int) -> np.ndarray:
    """A cross-section: a bright rim, organs, perhaps lungs, a vertebra; on black."""
    x, y = _grid(size, rng, turn=0.4)
    r = _radius(x, y, 0, 0, rng.uniform(0.6, 0.95), rng.uniform(0.45, 0.9), rng.uniform(2, 2.6))
    flesh = rng.uniform(0.3, 0.7)
    film = flesh * _filled(r, 0.015) + rng.uniform(-0.3, 0.4) * _filled(np.abs(r - 0.94) / 0.05, 0.2)
    film += _filled(r) * 0.3 * (clouds(rng, size, rng.uniform(1, 2)) - 0.5)
    for _ in range(rng.integers(2, 12)):
        organ = _filled(_radius(x, y, *rng.uniform(-0.5, 0.5, 2), *rng.uniform(0.05, 0.3, 2)), 0.05)
        film += organ * _filled(r / 0.85) * rng.uniform(-0.35, 0.35)
    if rng.random() < 0.5:
        for side in (-1, 1):
            lung = _filled(_radius(x, y, side * 0.38, -0.05, 0.25, 0.4, 2.3), 0.04)
            film = film * (1 - lung) + lung * rng.uniform(0, 0.2)
    film += rng.uniform(0.2, 0.7) * _filled(_radius(x, y, 0, 0.45, 0.1, 0.1)) * _filled(r)
    return film + 0.3 * _filled(np.abs(y - 0.95 - 0.1 * x * x) / 0.02, 0.3) * (rng.random() < 0.4)


def _head(rng: np.random.Generator, size: int) -> np.ndarray:
    """A slice of a head: skull, folded grey matter, dark or bright ventricles."""
    x, y = _grid(size, rng, turn=0.5)
    r = _radius(x, y, 0, 0, rng.uniform(0.55, 0.8), rng.uniform(0.65, 0.95))
    folds = np.sin(30 * r + 12 * clouds(rng, size, 1.4)) * np.clip(r, 0, 1) ** 2
    film = _filled(r / 0.85) * (rng.uniform(0.4, 0.6) + 0.15 * folds) + rng.uniform(0.1, 0.9) * _filled(
        np.abs(r - 0.95) / 0.05, 0.15
    )
    for side in (-1, 1):
        film += rng.uniform(-0.4, 0.4) * _filled(_radius(x - 0.3 * y * side, y, 0.1 * side, -0.05, 0.06, 0.25), 0.1)
    drawn: np.ndarray = film
    return drawn


def _brain(rng: np.random.Generator, size: int) -> np.ndarray:
    """A head by magnetic resonance, from any side: winding folds, ventricles, perhaps a cerebellum, the skull, the neck; on black."""
    x, y = _grid(size, rng, turn=0.2, zoom=0.15)
    r = _radius(x, y, 0, rng.uniform(-0.2, 0.1), rng.uniform(0.6, 0.9), rng.uniform(0.65, 0.95), rng.uniform(2, 2.5))
    white, grey, fluid = (
        rng.uniform(0.2, 1),
        rng.uniform(0.2, 0.9),
        float(rng.choice((rng.uniform(0, 0.2), rng.uniform(0.7, 1)))),
    )
    waves, near_rim = _ring_noise(rng, size, rng.uniform(7, 16)), np.clip(3 * r - rng.uniform(0.3, 1), 0, 1)
    inside = _filled(r / rng.uniform(0.78, 0.95), 0.02)
    film = white + near_rim * (
        (grey - white) * np.exp(-(waves**2)) + (fluid - grey) * np.exp(-((waves / rng.uniform(0.1, 0.4)) ** 2))
    )
    if rng.random() < 0.6:  # from the front or from above: two halves
        film += (fluid - film) * np.exp(-((x / rng.uniform(0.01, 0.03)) ** 2)) * (np.abs(y) > rng.uniform(0, 0.4))
    for side in (-1, 1):
        film += (fluid - film) * _filled(
            _radius(x - rng.uniform(-0.6, 0.6) * y * side, y, 0.12 * side, 0, *rng.uniform(0.03, 0.16, 2)), 0.15
        )
    if rng.random() < 0.4:
        small = _filled(_radius(x, y, rng.uniform(-0.4, 0.4), 0.5, rng.uniform(0.25, 0.6), 0.25), 0.05)
        film += (
            grey + (fluid - grey) * np.exp(-((np.sin(rng.uniform(25, 50) * y + 6 * x * x) / 0.4) ** 2)) - film
        ) * small
    film *= inside
    if rng.random() < 0.7:
        film += rng.uniform(0.3, 1) * _filled(np.abs(r - 1) / 0.04, 0.3)  # scalp; the skull beneath it is dark
        if rng.random() < 0.6:
            neck = _flesh(
                x, y, np.array((rng.uniform(-0.3, 0.3), 0.6)), np.array((0.0, 2.5)), rng.uniform(0.35, 0.8)
            ) * (1 - _filled(r))
            film += neck * (0.2 + rng.uniform(0.2, 0.8) * clouds(rng, size, 1.4))
    drawn: np.ndarray = film
    return drawn


def _ring_noise(rng: np.random.Generator, size: int, waves: float) -> np.ndarray:
    """Noise of about so many waves a side, with mean 0 and deviation 1: where it crosses 0 run winding lines."""
    f = _frequencies(size) * size
    x = _waves(np.fft.rfft2(_grain(rng, size)) * np.exp(-(((f - waves) / (0.25 * waves)) ** 2)), size)
    noise: np.ndarray = (x - x.mean()) / max(float(x.std()), 1e-9)
    return noise


def _fan(rng: np.random.Generator, size: int) -> np.ndarray:
    """Ultrasound: a speckled sector on black."""
    x, y = _axes(size)
    x, y = x / 2, (y + 1) / 2
    far, angle = np.hypot(x, y + 0.15), np.arctan2(x, y + 0.15)
    inside = (np.abs(angle) < rng.uniform(0.4, 0.9)) & (far > 0.2) & (far < 1.1)
    drawn: np.ndarray = (
        inside * clouds(rng, size, rng.uniform(1, 2)) * rng.rayleigh(0.6, (size, size)).astype(np.float32)
    )
    return drawn


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    return clouds(rng, size, rng.uniform(0, 2.5))


def _leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Things in front of each other, each with its own tone and grain: what photographs are made of."""
    x, y = _axes(size)
    film = clouds(rng, size, 1.5)
    grain = clouds(rng, size, 1.0) - 0.5
    for _ in range(rng.integers(8, 90)):
        a, b = np.minimum(0.04 / rng.random(2) ** 0.7, 1).tolist()
        cx, cy, angle = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0, 3)
        far = 1.5 * math.hypot(a, b)  # beyond which nothing of the thing is left
        rows, columns = (slice(*np.searchsorted(y[:, 0], (c - far, c + far))) for c in (cy, cx))
        dx, dy = x[:, columns] - cx, y[rows] - cy
        u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        r = _radius(u, v, 0, 0, a, b, rng.choice((1, 2, 2, 8)))
        tone = (
            rng.random()
            + rng.uniform(-0.3, 0.3) * u / a
            + rng.uniform(0, 0.5) * grain[rows, columns]
            + rng.uniform(0, 0.3) * _thick(r)
        )
        film[rows, columns] += _filled(r, 0.01) * (tone - film[rows, columns])
    return film


def _scene(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sky, ridges, ground, and a few things that stand on it."""
    x, y = _axes(size)
    film = rng.random() + rng.uniform(-0.4, 0.4) * y + 0.3 * (clouds(rng, size, 1.8) - 0.5)
    for k in range(rng.integers(1, 5)):
        ridge = rng.uniform(-0.5, 0.7) + 0.3 * (clouds(rng, size, 1.6)[0] - 0.5)[None]
        film = np.where(
            y > ridge,
            rng.random() + 0.1 * k + rng.uniform(0.1, 0.7) * (clouds(rng, size, rng.uniform(0.6, 1.4)) - 0.5),
            film,
        )
    for _ in range(rng.integers(0, 8)):
        cx, w, top, foot = rng.uniform(-1, 1), rng.uniform(0.03, 0.4), rng.uniform(-0.9, 0.5), rng.uniform(0.3, 1)
        mask = (np.abs(x - cx) < w * float(rng.choice((1.0, 0.5)))) & (y > top) & (y < foot)
        panes = np.sin(x * rng.uniform(10, 60)) * np.sin(y * rng.uniform(10, 60)) > 0.2
        film = np.where(mask, np.float32(rng.random()) + np.float32(0.2) * panes, film)
    drawn: np.ndarray = film
    return drawn


def _face(rng: np.random.Generator, size: int) -> np.ndarray:
    """A face, a muzzle, a doll: a round thing with eyes and a mouth, lit from one side, before a blurred ground."""
    x, y = _grid(size, rng, turn=0.3, zoom=0.3)
    film = clouds(rng, size, 1.7)
    shade = 0.2 * x * rng.uniform(-1, 1)
    head = _filled(_radius(x, y, 0, 0, rng.uniform(0.45, 0.7), rng.uniform(0.6, 0.85)), 0.02)
    film = film * (1 - head) + head * (
        rng.uniform(0.3, 0.8) + shade + rng.uniform(0, 0.4) * (clouds(rng, size, 1.2) - 0.5)
    )
    apart, dark = rng.uniform(0.18, 0.3), rng.uniform(-0.5, 0.3)
    for side in (-1, 1):
        film += dark * _filled(_radius(x, y, apart * side, -0.15, 0.12, 0.06), 0.1) - 0.3 * _filled(
            _radius(x, y, apart * side, -0.15, 0.04, 0.04), 0.1
        )
        film += rng.uniform(-0.2, 0.2) * _filled(_radius(x, y, 0.6 * side, -0.7, 0.2, 0.3), 0.1)
    film += dark * _filled(_radius(x, y, 0, 0.35, 0.22, 0.06), 0.15) + rng.uniform(-0.2, 0.2) * _filled(
        _radius(x, y, 0, 0.1, 0.08, 0.15), 0.2
    )
    hair = _filled(_radius(x, y, 0, -0.65, 0.7, 0.35), 0.05)
    drawn: np.ndarray = film * (1 - hair) + hair * clouds(rng, size, 0.9) * rng.random()
    return drawn


def _text(rng: np.random.Generator, size: int) -> np.ndarray:
    """A page of words, perhaps with a table, a curve or boxes: letters, reports, screens."""
    paper = int(rng.choice((255, 245, 20, 0)))
    ink = 255 - paper
    image = Image.new("L", (size, size), paper)
    pen = ImageDraw.Draw(image)
    high = max(6, int(size * rng.uniform(0.03, 0.12)))
    font = ImageFont.load_default(high)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     0123456789.,"))
    for row in range(int(rng.integers(0, 5)) * high, size, int(high * rng.uniform(1.1, 2))):
        if rng.random() < 0.85:
            pen.text(
                (int(rng.integers(0, max(1, size // 8))), row),
                "".join(rng.choice(letters, rng.integers(5, 60))),
                fill=ink,
                font=font,
            )
    for _ in range(rng.integers(0, 5)):
        a, b = np.sort(rng.integers(0, size, (2, 2)), axis=0)
        if rng.random() < 0.5:
            pen.rectangle((*a.tolist(), *b.tolist()), outline=ink, fill=int(rng.integers(256)))
        else:
            heights = np.clip(np.cumsum(rng.normal(0, size * 0.03, 30)) + size / 2, 0, size).tolist()
            pen.line(
                list(zip(np.linspace(a[0], b[0], 30).tolist(), heights, strict=True)),
                fill=ink,
                width=int(rng.integers(1, 4)),
            )
    return np.asarray(image, np.float32) / 255


def _pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes, checks, rings, ramps: test pictures and blank cassettes."""
    x, y = _grid(size, rng, turn=1)
    u = x * rng.uniform(1, 30)
    v = rng.choice((y * rng.uniform(1, 30), np.hypot(x, y) * rng.uniform(1, 30), np.zeros_like(y)))
    wave = (
        np.sin(u) * np.cos(v)
        if rng.random() < 0.7
        else np.clip(x * rng.uniform(0.1, 1) + y * rng.uniform(-1, 1), -1, 1)
    )
    return 0.5 + 0.5 * (np.sign(wave) if rng.random() < 0.3 else wave) * rng.uniform(0.05, 1)


# Each draws a picture of a random generator and a side in pixels: ndarray of shape (side, side), of any range. Some come several times.
KINDS: tuple[Drawing, ...] = (
    _limb, _lateral, _leaves, _hand, _abdomen, _scene, _shoulder, _lateral, _text, _limb, _slice, _face, _skull, _lateral, _noise, _limb, _head,
    _leaves, _breast, _brain, _abdomen, _pattern, _brain, _shoulder, _fan, _brain,
)  # fmt: skip
