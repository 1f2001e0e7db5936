"""Drawn chest films, for tests and for trying without data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image


def draw(seed: int = 0, *, opacity: bool = False, size: int = 512) -> np.ndarray:
    """Draw a frontal chest film that passes for one at a glance.

    The film is a sum of thicknesses: body, lungs of air, heart, great vessels, diaphragm, spine, ribs, clavicles and shoulder blades, with noise. Every seed gives another
    person; the same seed with and without the opacity gives the same person.

    Args:
        seed: Which person.
        opacity: Whether a consolidation lies in one lung.
        size: Side of the film in pixels.

    Returns:
        ndarray of shape (size, size), uint8.

    Raises:
        ValueError: If `size` is below 16.

    Example:
        >>> draw(3, size=64).shape
        (64, 64)
    """
    if size < 16:
        raise ValueError(f"size must be at least 16. Received: size={size}")
    rng = np.random.default_rng(seed)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[:, None], axis[None, :]
    x = x - rng.uniform(-0.04, 0.04)

    def jitter(value: float, part: float = 0.06) -> float:
        return value * (1 + rng.uniform(-part, part))

    def inside(cx: float, cy: float, rx: float, ry: float, soft: float, power: float = 2.0) -> np.ndarray:
        """A soft-edged superellipse: 1 inside, 0 outside."""
        r = (np.abs((x - cx) / rx) ** power + np.abs((y - cy) / ry) ** power) ** (1 / power)
        return 1 / (1 + np.exp(np.clip((r - 1) * min(rx, ry) / soft, -30, 30)))

    # body: trunk, shoulders, neck and, lower, the arms' edge
    trunk = inside(0, 0.5, jitter(0.86), 1.5, 0.02, 4)
    shoulders = inside(0, 0.62, jitter(1.1), jitter(1.3), 0.03, 2.6)
    neck = inside(0, -1.05, jitter(0.2), 0.55, 0.03)
    body = np.maximum(np.maximum(trunk, shoulders) * (y > -2), neck)
    density = 0.62 * body * (0.85 + 0.15 * np.clip(y, -1, 1))

    # lungs: seen from the front the left of the picture is the right lung, a little wider and shorter
    lungs = np.zeros((size, size))
    top, base = jitter(-0.72, 0.05), jitter(0.56, 0.08)
    for side in (-1, 1):
        centre, width = side * jitter(0.4, 0.04), jitter(0.335 if side < 0 else 0.31, 0.05)
        bottom = base - (0.05 if side < 0 else 0.0)
        middle, half = (top + bottom) / 2, (bottom - top) / 2
        taper = 1 - 0.42 * np.clip((middle - y) / half, 0, 1) ** 2  # narrower towards the apex
        lean = centre - side * 0.1 * np.clip((middle - y) / half, 0, 1) ** 2
        r = (np.abs((x - lean) / (width * taper)) ** 2.5 + np.abs((y - middle) / half) ** 2.8) ** (1 / 2.6)
        lung = 1 / (1 + np.exp(np.clip((r - 1) * 0.3 / 0.018, -30, 30)))
        dome = bottom - 0.14 + 0.22 * np.abs((x - centre) / width) ** 2.2  # diaphragm, with a sharp outer angle
        lung = lung / (1 + np.exp(np.clip((y - dome - 0.08) / 0.014, -30, 30)))
        lungs = np.maximum(lungs, lung)

    heart = np.maximum(
        inside(jitter(0.13, 0.2), base - 0.26, jitter(0.31, 0.1), jitter(0.27, 0.1), 0.022, 2.2),
        inside(-0.06, base - 0.3, 0.17, 0.26, 0.022),
    )
    mediastinum = inside(0, -0.2, jitter(0.12, 0.15), 0.9, 0.03, 4)
    knuckle = inside(jitter(0.13), jitter(-0.33), 0.075, 0.08, 0.015)
    air = lungs * (1 - 0.93 * np.maximum(np.maximum(heart, mediastinum), 0.8 * knuckle))
    density = density - 0.47 * air

    # hilar vessels: dark-to-bright branches that thin out from each hilum
    for side in (-1, 1):
        for _ in range(16):
            angle, length = rng.uniform(-1.25, 1.25), rng.uniform(0.14, 0.36)
            hx, hy = side * 0.17, -0.05 + rng.uniform(-0.08, 0.08)
            dx, dy = side * np.cos(angle), np.sin(angle) + 0.25
            along = np.clip(((x - hx) * dx + (y - hy) * dy) / (dx * dx + dy * dy) / length, 0, 1)
            far = np.hypot(x - hx - along * dx * length, y - hy - along * dy * length)
            wide = 0.017 * (1 - 0.75 * along)
            density = density + 0.05 * air * (1 - along) * np.exp(-((far / wide) ** 2))

    # bones: vertebrae, ribs (rear ones bend down outwards, front ones inwards), clavicles, shoulder blades
    spine = inside(0, 0, jitter(0.085), 1.6, 0.012, 6)
    density = density + 0.1 * spine * (0.75 + 0.25 * np.cos(y * np.pi / 0.075))
    chest = inside(0, -0.02, jitter(0.79), jitter(0.98), 0.03, 2.6)
    gap = jitter(0.145)
    for i in range(9):
        rear = top + 0.03 + i * gap + 0.5 * (np.abs(x) - 0.3) ** 2 + (0.1 + 0.03 * i) * np.abs(x)
        edge = np.abs(y - rear) / 0.03
        cortex = np.exp(-(edge**4)) * (0.5 + 0.5 * np.clip(edge, 0, 1) ** 2)
        density = density + 0.085 * chest * (np.abs(x) > 0.07) * cortex
        front = top + 0.2 + i * gap + 0.75 * (0.75 - np.abs(x)) * (0.45 + 0.02 * i)
        density = density + 0.05 * chest * (np.abs(x) > 0.3) * np.exp(-(((y - front) / 0.034) ** 4))
    tilt = rng.uniform(-0.05, 0.05)
    for side in (-1, 1):
        bar = -0.66 + tilt * side - 0.3 * (np.abs(x) - 0.12) + 0.12 * np.sin((np.abs(x) - 0.1) * 5)
        reach = (side * x > 0.07) & (side * x < 0.78)
        density = density + 0.1 * reach * np.exp(-(((y - bar) / 0.034) ** 4))
        blade = inside(side * jitter(0.78, 0.03), jitter(-0.3, 0.1), 0.12, 0.36, 0.02)
        density = density + 0.07 * blade * body

    # a consolidation: a ragged bright area in one lung, with air bronchograms left to the noise
    person = rng.spawn(1)[0]
    if opacity:
        side = person.choice((-1, 1))
        cx, cy = side * person.uniform(0.36, 0.5), person.uniform(-0.25, 0.3)
        cloud = np.zeros((size, size))
        for _ in range(14):
            px, py = cx + person.normal(0, 0.08), cy + person.normal(0, 0.09)
            cloud = cloud + person.uniform(0.25, 0.6) * np.exp(-(((x - px) / 0.09) ** 2) - ((y - py) / 0.085) ** 2)
        density = density + 0.3 * air * np.clip(cloud, 0, 1.1)

    # scatter and exposure, a detector's curve, grain of two sizes
    fine = rng.normal(0, 0.012, (size, size))
    coarse = np.asarray(Image.fromarray(rng.normal(0, 0.012, (48, 48)).astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
    density = (density + 0.03 * inside(0, 0.2, 0.8, 0.9, 0.2) + coarse * body + fine * (0.4 + 0.6 * body)) * jitter(1.0) + 0.05
    pixels = 255 * np.clip(density, 0, 1) ** jitter(0.85, 0.1)
    film: np.ndarray = np.clip(pixels, 0, 255).astype(np.uint8)
    return film


def write(folder: str | os.PathLike[str], n: int = 8, *, seed: int = 0, size: int = 256) -> Path:
    """Write drawn films as two class folders.

    Args:
        folder: Where `NORMAL/` and `PNEUMONIA/` are made; the latter hold films with an opacity.
        n: Films per class, each of another person.
        seed: Of the first person.
        size: Side of the films in pixels.

    Returns:
        The folder.

    Raises:
        ValueError: If `n` is below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in write(folder, 1, size=32).iterdir())
        ['NORMAL', 'PNEUMONIA']
    """
    if n < 1:
        raise ValueError(f"n must be at least 1. Received: n={n}")
    folder = Path(folder)
    for k, label in enumerate(("NORMAL", "PNEUMONIA")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            person = seed + k * n + i
            Image.fromarray(draw(person, opacity=bool(k), size=size)).save(folder / label / f"phantom{person:05d}.png")
    return folder
