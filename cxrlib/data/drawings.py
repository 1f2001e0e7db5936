"""Drawings of images that are not frontal chest radiographs, from which the gate learns.

Attenuation adds up along a ray, as in a radiograph. All is computed in single precision, which takes half the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def clouds(rng: np.random.Generator, size: int, power: float) -> np.ndarray:
    """Draw noise with a spectrum of 1 / f^power; natural images have a power of about 1.

    Args:
        rng: Generator of the draws.
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
    x = _filtered(rng, size, 1 / f**power)
    low, high = tones(x, 0.01, 0.99)
    drawn: np.ndarray = np.clip((x - low) / max(high - low, 1e-9), 0, 1)
    return drawn


def tones(x: np.ndarray, *parts: float) -> list[float]:
    """Find quantiles of an image's values, from every ninth of its pixels.

    Args:
        x: ndarray of shape (h, w).
        *parts: In [0, 1].

    Returns:
        A value for each part.

    Example:
        >>> tones(np.eye(32), 0.0, 1.0)
        [0.0, 1.0]
    """
    found: list[float] = np.quantile(x[::3, ::3], parts).tolist()
    return found


def axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x to the right, (1, size), and y down, (size, 1), both from -1 to 1, float32.

    Args:
        size: Side in pixels.

    Returns:
        Both axes.

    Example:
        >>> axes(3)[0].tolist()
        [[-1.0, 0.0, 1.0]]
    """
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    return axis[None], axis[:, None]


def _frequencies(size: int) -> np.ndarray:
    """Cycles per pixel of each coefficient of `numpy.fft.rfft2`."""
    frequencies: np.ndarray = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]).astype(np.float32)
    return frequencies


def _filtered(rng: np.random.Generator, size: int, response: np.ndarray) -> np.ndarray:
    """White noise behind a filter, (size, size)."""
    noise = np.fft.rfft2(rng.standard_normal((size, size), np.float32))
    filtered: np.ndarray = np.fft.irfft2(noise * response, (size, size)).astype(np.float32, copy=False)
    return filtered


def _ring_noise(rng: np.random.Generator, size: int, waves: float) -> np.ndarray:
    """Noise of about so many waves per side, with mean 0 and standard deviation 1; its zeros are winding lines."""
    f = _frequencies(size) * size
    x = _filtered(rng, size, np.exp(-(((f - waves) / (0.25 * waves)) ** 2)))
    noise: np.ndarray = (x - x.mean()) / max(float(x.std()), 1e-9)
    return noise


def _grid(size: int, rng: np.random.Generator, turn: float = 0.15, zoom: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """x to the right and y down, both in [-1, 1]; turned, shifted, scaled and slightly bent."""
    x, y = axes(size)
    angle, scale = rng.normal(0, turn), math.exp(rng.normal(0, zoom))
    bent = [
        a + 0.04 * np.sin(rng.uniform(1, 4) * b + rng.uniform(0, 6)) + rng.normal(0, 0.1) for a, b in ((x, y), (y, x))
    ]
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    return bent[0] * c - bent[1] * s, bent[0] * s + bent[1] * c


def _radius(x: np.ndarray, y: np.ndarray, cx: float, cy: float, a: float, b: float, power: float = 2.0) -> np.ndarray:
    """1 on the edge of an ellipse, 0 in its centre."""
    cx, cy, a, b, power = map(float, (cx, cy, a, b, power))  # NumPy's own scalars would make it double precision
    return (np.abs((x - cx) / a) ** power + np.abs((y - cy) / b) ** power) ** (1 / power)


def _filled(r: np.ndarray, soft: float = 0.03) -> np.ndarray:
    """1 where r < 1 and 0 where r > 1, with a soft edge."""
    return 1 / (1 + np.exp(np.clip((r - 1) / soft, -40, 40)))


def _above(y: np.ndarray, line: np.ndarray | float, soft: float = 0.03) -> np.ndarray:
    return _filled(1 + (y - line), soft)


def _thick(r: np.ndarray) -> np.ndarray:
    """How much of a ball or a cylinder a ray crosses."""
    drawn: np.ndarray = np.sqrt(np.clip(1 - r * r, 0, 1))
    return drawn


def _rod(x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float]) -> list[np.ndarray]:
    """Position along a rod, 0 to 1, and distance from it."""
    right, down = float(end[0] - start[0]), float(end[1] - start[1])
    x, y = x - float(start[0]), y - float(start[1])
    t = np.clip((x * right + y * down) / max(right * right + down * down, 1e-6), 0, 1)
    return [t, np.hypot(x - t * right, y - t * down)]


def _bone(
    x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float], wide: float
) -> np.ndarray:
    """A tube with spongy ends."""
    t, far = _rod(x, y, start, end)
    ends = np.exp(-((t / 0.14) ** 2)) + np.exp(-(((1 - t) / 0.14) ** 2))
    r = far / (wide * (1 + 0.7 * ends))
    drawn: np.ndarray = _thick(r) - 0.6 * (1 - 0.8 * np.clip(ends, 0, 1)) * _thick(r / 0.62)
    return drawn


def _spine(x: np.ndarray, y: np.ndarray, centre: np.ndarray, wide: float, step: float) -> np.ndarray:
    """Vertebrae with their discs along a line."""
    column = _filled(np.abs(x - centre) / wide, 0.12)
    edges = np.exp(-(((np.abs(x - centre) - wide) / (0.25 * wide)) ** 2))
    drawn: np.ndarray = column * (0.65 + 0.35 * np.cos(2 * math.pi * y / step)) + 0.3 * edges
    return drawn


def _lateral(rng: np.random.Generator, size: int) -> np.ndarray:
    """A chest from the side: one lung field between sternum and spine, heart in front, diaphragm below."""
    x, y = _grid(size, rng)
    x = x * int(rng.choice((-1, 1)))  # front to the left or to the right
    deep = rng.uniform(0.6, 0.9)
    body = _thick(_radius(x, y, 0, 0.2, deep + 0.12, 2.0, 3))
    image = rng.uniform(0.6, 0.9) * body
    dome = 0.62 - 0.25 * np.cos(1.6 * x) + rng.normal(0, 0.1)
    lung = _filled(_radius(x, y, -0.04, -0.12, deep * 0.8, rng.uniform(0.75, 0.95), 2.6), 0.06) * _above(y, dome)
    image -= rng.uniform(0.3, 0.55) * lung * body
    image += lung * rng.uniform(0.15, 0.4) * _filled(_radius(x, y, -0.28, 0.22, 0.34, 0.36), 0.15)
    image += lung * rng.uniform(0.1, 0.3) * _filled(_radius(x, y, 0.0, -0.25, 0.16, 0.3), 0.3)
    image += rng.uniform(0.1, 0.35) * body * _spine(x, y, deep * 0.72 + 0.12 * y + 0.1 * y * y, 0.13, 0.2)
    sternum = np.exp(-(((x + deep * 0.85 - 0.1 * y) / 0.04) ** 2))
    image += rng.uniform(0.1, 0.3) * sternum * (y > -0.6) * (y < 0.5)
    for k in range(8):
        rib = -0.75 + 0.18 * k + 0.45 * (0.5 * deep - x) - 0.15 * x * x
        image += rng.uniform(0.02, 0.07) * body * np.exp(-(((y - rib) / 0.025) ** 2))
    return image + rng.uniform(0, 0.3) * _thick(_rod(x, y, (-1.2, -0.7), (0.5, -1.2))[1] / 0.3)  # an arm


def _ct(rng: np.random.Generator, size: int) -> np.ndarray:
    """A CT slice of a chest, coronal or axial: dark lungs with vessels, even tissue, bright bones, black air."""
    x, y = _grid(size, rng, turn=0.06, zoom=0.18)
    coronal = rng.random() < 0.65
    tissue, air = rng.uniform(0.45, 1.0), float(rng.choice((rng.uniform(0, 0.08), rng.uniform(0.1, 0.35))))
    if coronal:
        r = _radius(x, y, 0, rng.uniform(0, 0.5), rng.uniform(0.75, 1.05), rng.uniform(1.1, 2.5), rng.uniform(2.5, 5))
        shoulders = _filled(_radius(x, y, 0, -1.25, 2, 0.35), 0.02)
        body = _filled(r, 0.015) * (1 - shoulders * (rng.random() < 0.5))
    else:
        r = _radius(x, y, 0, 0, rng.uniform(0.8, 1.0), rng.uniform(0.55, 0.85), rng.uniform(2, 2.8))
        body = _filled(r, 0.015)
    image = body * tissue * (1 + 0.12 * (clouds(rng, size, 1.2) - 0.5))
    image = image - body * rng.uniform(0, 0.35) * _filled(np.abs(r - 0.96) / 0.05, 0.3)  # fat

    lungs = np.zeros_like(image)
    for side in (-1, 1):
        if coronal:
            cx, wide, power = side * rng.uniform(0.36, 0.46), rng.uniform(0.26, 0.36), rng.uniform(2, 3)
            lung = _filled(_radius(x - 0.12 * side * y, y, cx, -0.05, wide, rng.uniform(0.75, 1.0), power), 0.015)
            dome = rng.uniform(0.25, 0.75) - rng.uniform(0.1, 0.35) * np.cos(3.2 * (x - cx))
            lung = lung * _above(y, dome, 0.008)
        else:
            cx, wide, power = side * rng.uniform(0.38, 0.46), rng.uniform(0.28, 0.38), rng.uniform(2, 2.8)
            lung = _filled(_radius(x, y, cx, rng.uniform(-0.05, 0.08), wide, rng.uniform(0.4, 0.6), power), 0.015)
        lungs = np.maximum(lungs, lung)
    cy = rng.uniform(0, 0.35) if coronal else -0.15
    heart = _filled(_radius(x, y, rng.uniform(-0.1, 0.2), cy, rng.uniform(0.12, 0.3), rng.uniform(0.2, 0.45)), 0.02)
    lungs = lungs * (1 - heart * (rng.random() < 0.7))
    waves = rng.uniform(10, 26)
    vessels = np.exp(-((_ring_noise(rng, size, waves) / rng.uniform(0.1, 0.3)) ** 2))
    vessels = vessels * (_ring_noise(rng, size, waves / 3) > rng.uniform(-0.5, 0.8)) * rng.uniform(0.3, 1)
    nodes = np.clip((_ring_noise(rng, size, rng.uniform(12, 26)) - 1.5) * 3, 0, 1) * rng.uniform(0.3, 1)
    inside = air * (1 + 0.3 * (clouds(rng, size, 0.8) - 0.5)) + (tissue - air) * (vessels + nodes)
    if rng.random() < 0.5:  # consolidation
        patches = np.clip((clouds(rng, size, 1.6) - rng.uniform(0.5, 0.75)) * 6, 0, 1)
        inside = inside + rng.uniform(0.2, 0.6) * patches * (0.6 + 0.4 * clouds(rng, size, 0.8))
    image = image * (1 - lungs) + lungs * inside

    bone, ribs = rng.uniform(0.1, 0.6), int(rng.integers(5, 11))
    for k in range(2 * ribs):  # ribs in section
        side, angle = (-1, 1)[k % 2], math.pi * k / ribs + 0.2
        if coronal:
            rx, ry = side * (0.76 + 0.06 * math.sin(k)), -0.85 + 1.5 * (k // 2) / ribs
            at = _radius(x - 0.12 * side * y, y, rx, ry, rng.uniform(0.03, 0.06), rng.uniform(0.025, 0.05))
        else:
            at = _radius(x, y, 0.84 * math.cos(angle), 0.68 * math.sin(angle), 0.05, 0.025)
        image = image + bone * _filled(at, 0.12) * body
    if not coronal:
        image = image + bone * _filled(_radius(x, y, 0, 0.45, 0.13, 0.13), 0.1)  # vertebra
        image = image + rng.uniform(0, 0.3) * _filled(np.abs(y - 0.9 - 0.1 * x * x) / 0.015, 0.3)  # table
    elif rng.random() < 0.6:
        step = rng.uniform(0.12, 0.25)
        image = image + 0.8 * bone * body * _spine(x, y, 0.03 * np.sin(2 * y), rng.uniform(0.06, 0.12), step)
    else:
        image = image - 0.6 * tissue * _filled(_radius(x, y, 0, -0.8, 0.045, 0.5), 0.1)  # trachea
    drawn: np.ndarray = np.maximum(image, float(rng.choice((0, 0, rng.uniform(0, 0.4)))))
    return drawn


def _head(rng: np.random.Generator, size: int) -> np.ndarray:
    """A slice of a head, by CT or MR: folds, ventricles, skull; on black."""
    x, y = _grid(size, rng, turn=0.3)
    r = _radius(x, y, 0, 0, rng.uniform(0.55, 0.9), rng.uniform(0.65, 0.95), rng.uniform(2, 2.5))
    white, grey = rng.uniform(0.2, 1), rng.uniform(0.2, 0.9)
    fluid = float(rng.choice((rng.uniform(0, 0.2), rng.uniform(0.7, 1))))
    folds, cortex = _ring_noise(rng, size, rng.uniform(7, 16)), np.clip(3 * r - rng.uniform(0.3, 1), 0, 1)
    sulci = (fluid - grey) * np.exp(-((folds / rng.uniform(0.1, 0.4)) ** 2))
    image = white + cortex * ((grey - white) * np.exp(-(folds**2)) + sulci) * (rng.random() < 0.8)
    for side in (-1, 1):
        ventricle = _radius(x - rng.uniform(-0.6, 0.6) * y * side, y, 0.12 * side, 0, *rng.uniform(0.03, 0.16, 2))
        image += (fluid - image) * _filled(ventricle, 0.15)
    image *= _filled(r / rng.uniform(0.78, 0.95), 0.02)
    skull: np.ndarray = rng.uniform(0, 1) * _filled(np.abs(r - 0.97) / 0.05, 0.2)
    return np.asarray(image + skull)


def _limb(rng: np.random.Generator, size: int) -> np.ndarray:
    """An arm, a leg or a finger, straight or bent, with one to three bones in each part."""
    x, y = _grid(size, rng, turn=1.5)
    joint, bend, wide = rng.normal(0, 0.25, 2), rng.normal(0, 0.8), rng.uniform(0.07, 0.2)
    image = np.zeros_like(x)
    for part, angle in enumerate((-math.pi / 2, math.pi / 2 + bend)):
        way = np.array((math.cos(angle), math.sin(angle)))
        across = np.array((-way[1], way[0]))
        bones = rng.integers(1, 4)
        w = wide / bones**0.4
        flesh = _rod(x, y, tuple(joint), tuple(joint + 2.2 * way))[1] / (wide * rng.uniform(1.8, 3.5))
        image += rng.uniform(0.3, 0.6) * _thick(flesh)
        for k in range(bones):
            aside = joint + across * (k - (bones - 1) / 2) * w * 3
            start, end = aside + way * (w * 1.1 + 0.02 * part), aside + way * rng.uniform(1, 2.4)
            image += rng.uniform(0.5, 0.9) * _bone(x, y, tuple(start), tuple(end), w)
    return image


def _abdomen(rng: np.random.Generator, size: int) -> np.ndarray:
    """A trunk without lungs: spine, pelvis and gas."""
    x, y = _grid(size, rng)
    trunk = _thick(_radius(x, y, 0, 0, rng.uniform(0.75, 1.1), 2.5, 3))
    image = 0.7 * trunk + rng.uniform(0.15, 0.4) * _spine(x, y, 0.05 * np.sin(2 * y), 0.11, 0.25) * trunk
    low = rng.uniform(0.2, 1.3)
    ring = np.abs(_radius(x, y, 0, low + 0.2, 0.42, 0.38) - 1)
    image += 0.3 * np.exp(-((ring / 0.2) ** 2)) * (y > low - 0.3)
    for side in (-1, 1):
        image += 0.3 * _filled(_radius(x, y, 0.5 * side, low - 0.15, 0.3, 0.38), 0.08)
        image += 0.4 * _bone(x, y, (0.65 * side, low + 0.45), (0.75 * side, low + 2), 0.1)
    for _ in range(rng.integers(0, 14)):
        gas = _radius(x, y, rng.uniform(-0.6, 0.6), rng.uniform(-0.9, 0.8), *rng.uniform(0.04, 0.2, 2))
        image -= rng.uniform(0.1, 0.3) * _thick(gas)
    drawn: np.ndarray = image
    return drawn


def _photograph(rng: np.random.Generator, size: int) -> np.ndarray:
    """Objects in front of each other, each with its own tone and grain: a photograph (doi:10.1023/A:1011109015675)."""
    x, y = axes(size)
    image, grain = clouds(rng, size, rng.uniform(0.5, 2)), clouds(rng, size, 1.0) - 0.5
    for _ in range(rng.integers(0, 60)):
        a, b = np.minimum(0.04 / rng.random(2) ** 0.7, 1).tolist()
        cx, cy, angle = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0, 3)
        far = 1.5 * math.hypot(a, b)  # nothing of the object is left beyond
        rows, columns = (slice(*np.searchsorted(y[:, 0], (c - far, c + far))) for c in (cy, cx))
        dx, dy = x[:, columns] - cx, y[rows] - cy
        u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        r = _radius(u, v, 0, 0, a, b, rng.choice((1, 2, 2, 8)))
        tone = rng.random() + rng.uniform(-0.3, 0.3) * u / a + rng.uniform(0, 0.5) * grain[rows, columns]
        image[rows, columns] += _filled(r, 0.01) * (tone - image[rows, columns])
    return image


DRAWINGS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "lateral": _lateral,
    "ct": _ct,
    "head": _head,
    "limb": _limb,
    "abdomen": _abdomen,
    "photograph": _photograph,
}
"""Each draws an image from a generator and a side in pixels: ndarray of shape (side, side), float32 of any range."""
