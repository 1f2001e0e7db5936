"""Drawn chest radiographs, for tests and for trying without data."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

_DRAWN = 256  # largest side at which the anatomy is worked out; the grain is always drawn at full size


def draw(seed: int = 0, *, opacity: bool = False, size: int = 512) -> np.ndarray:
    """Draw a frontal chest radiograph that passes for one at a glance.

    The image is a sum of what the rays pass (body, lungs, heart, great vessels, diaphragm, bones), then scatter,
    exposure and grain. Every seed is another person; the same seed with and without the opacity is the same person.

    Args:
        seed: Which person, 0 or above.
        opacity: Whether both lungs hold a severe pneumonia.
        size: Side of the image in pixels.

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
    side = min(size, _DRAWN)
    axis = ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)  # -1 to 1, right and down
    near, slim, lean = (
        math.exp(rng.uniform(-0.04, 0.2)),
        math.exp(rng.uniform(-0.07, 0.07)),
        rng.normal(0, 0.04),
    )  # before the image
    down, right = (
        axis[:, None] / np.float32(near) + np.float32(rng.uniform(-0.07, 0.07)),
        axis[None, :] / np.float32(near * slim),
    )
    y = down + np.float32(lean) * right  # (side, side), as x: the person's own frame, leaning and a little bent
    x = (
        right
        - np.float32(lean) * down
        + np.float32(rng.uniform(-0.07, 0.07))
        + np.float32(rng.normal(0, 0.025)) * np.sin(3 * y + np.float32(rng.uniform(0, 6)))
    )
    across = np.abs(x)  # how far from the midline

    def about(value: float, part: float = 0.06) -> float:
        return float(value * (1 + rng.uniform(-part, part)))

    def below(r: np.ndarray, soft: float) -> np.ndarray:
        """1 where r is negative, 0 where it is positive, with an edge as wide as `soft`."""
        return 1 / (1 + np.exp(np.clip(r / soft, -30, 30)))

    def oval(cx: float, cy: float, rx: float, ry: float, soft: float, *, turn: float = 0.0) -> np.ndarray:
        u, v = (
            (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn),
            (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn),
        )
        return below((np.hypot(u / rx, v / ry) - 1) * min(rx, ry), soft)  # (side, side)

    def band(distance: np.ndarray, half: float) -> np.ndarray:
        square = (distance / half) ** 2
        return np.exp(-square * square)

    # body: the shoulders slope down from the neck and narrow to the trunk; the belly is denser than the chest
    waist, shoulder = about(0.84), about(1.08, 0.05)
    flank = waist + (shoulder - waist) * below(y + 0.28, 0.06) + 0.03 * (y - 0.2) ** 2
    slope = -about(0.93, 0.02) + 0.34 * np.clip(across - 0.17, 0, None) ** 0.8
    body = np.maximum(
        below(across - flank, 0.012) * below(slope - y, 0.012),
        below(across - about(0.18), 0.015) * below(y + 0.6, 0.05),
    )
    density = body * (0.52 + 0.08 * np.clip(y, -1, 1) - 0.12 * across**2)

    # lungs: the image's left is the person's right lung, wider and shorter; the diaphragm's dome cuts them off
    lungs = np.zeros_like(body)
    top, base = about(-0.74, 0.05), about(0.4, 0.16)
    for hand in (-1, 1):
        bottom = base - (0.06 if hand < 0 else 0.0)
        up = np.clip((0.15 - y) / (0.15 - top), 0, 1)  # 0 low, 1 at the apex
        inner, outer = 0.10 + 0.06 * up**3, about(0.7, 0.03) * np.sqrt(np.clip(1 - 0.80 * up**2.6, 0.02, 1))
        middle, half = (inner + outer) / 2, (outer - inner) / 2
        lung = below(np.abs(hand * x - middle) - half, 0.010) * below(top - y + 0.6 * (hand * x - 0.33) ** 2, 0.012)
        dome = bottom - 0.06 + 1.1 * (hand * x - 0.36) ** 2 + 0.25 * np.clip(hand * x - 0.5, 0, 1)
        lungs = np.maximum(lungs, lung * below(y - dome, 0.008))
    left = oval(
        about(0.16, 0.2), base - 0.24, about(0.33, 0.15), about(0.22, 0.12), 0.012, turn=0.55
    )  # its apex points down and outwards
    heart = np.maximum(left, oval(-0.04, base - 0.30, about(0.18, 0.1), 0.28, 0.012))
    narrowing = np.clip((y + 0.5) / 0.5, 0, 1)
    mediastinum = below(across - about(0.11, 0.15) - 0.03 * narrowing, 0.012)
    knuckle = oval(about(0.115), about(-0.34), 0.075, 0.085, 0.010)
    air = lungs * (1 - 0.92 * np.maximum(np.maximum(heart, mediastinum), 0.35 * knuckle))
    # a pneumonia takes the place of air: at the bases, around the hila, and in ragged patches
    lesion = np.random.default_rng((seed, 1))
    if opacity:
        cloud = np.zeros_like(body)
        for hand in (-1, 1):
            cloud = cloud + lesion.uniform(0.6, 1.2) * np.exp(
                -(((x - hand * 0.35) / 0.45) ** 2) - ((y - base) / 0.45) ** 2
            )
            hilar = ((x - hand * 0.22) / 0.25) ** 2 + ((y - 0.05) / 0.4) ** 2
            cloud = cloud + lesion.uniform(0.4, 1.0) * np.exp(-hilar)
            for _ in range(14):
                px, py, r = hand * lesion.uniform(0.15, 0.6), lesion.uniform(-0.55, base), lesion.uniform(0.06, 0.12)
                cloud = cloud + lesion.uniform(0.2, 0.6) * np.exp(-((x - px) ** 2 + (y - py) ** 2) / r**2)
        ragged = _grown(lesion.normal(0, 1, (48, 48)), side)
        air = air * (1 - np.clip(cloud * (1 + 0.15 * ragged), 0, 1))
    depth = 0.75 + 0.25 * np.clip(1 - ((across - 0.4) / 0.5) ** 2, 0, 1)  # less air where the lung is thin
    density = density - 0.54 * air * depth + 0.21 * np.maximum(heart, mediastinum) * body

    # vessels: branches that leave each hilum and thin out
    for hand in (-1, 1):
        for _ in range(26):
            angle, length = rng.uniform(-1.35, 1.35), rng.uniform(0.15, 0.5)
            hx, hy = hand * rng.uniform(0.13, 0.2), -0.06 + rng.uniform(-0.1, 0.12)
            dx, dy = hand * math.cos(angle) * length, (math.sin(angle) + 0.3) * length
            along = np.clip(((x - hx) * dx + (y - hy) * dy) / (dx * dx + dy * dy), 0, 1)
            wide = 0.015 * (1 - 0.75 * along)
            density = density + 0.03 * air * (1 - along) * np.exp(
                -((x - hx - along * dx) ** 2 + (y - hy - along * dy) ** 2) / wide**2
            )

    # bones: vertebrae and the dark windpipe before them, rear and front ribs, clavicles, shoulder blades
    density = density + 0.27 * below(across - about(0.085), 0.008) * (
        0.75 + 0.25 * np.cos(y * (math.pi / about(0.072, 0.1)))
    )
    density = density - 0.06 * below(across - 0.035, 0.010) * below(y + 0.3, 0.03) * body
    cage = 0.79 * np.sqrt(np.clip(1 - ((y - 0.15) / 1.12) ** 2, 0.01, 1))  # half width of the rib cage
    inside = below(across - cage, 0.010)
    first, gap, fall, steep = rng.uniform(-0.05, 0.02), about(0.135, 0.12), about(0.26, 0.4), about(0.36, 0.25)
    for i in range(10):
        reach = across / np.maximum(cage, 0.2)
        rear = y - (top + first + i * gap + fall * reach**2 - 0.05 * np.sin(reach * math.pi))
        density = density + 0.19 * inside * below(0.08 - across, 0.01) * (
            band(rear, 0.030) - 0.45 * band(rear, 0.018)
        ) * (0.6 + 0.4 * reach)
        front = y - (top + 0.2 + first + i * gap + steep * (1 - reach))
        density = density + 0.033 * inside * below(0.26 + 0.02 * i - across, 0.03) * band(front, 0.034) * (i < 7)
    density = density + 0.08 * inside * np.exp(-(((across - cage + 0.02) / 0.02) ** 2)) * below(
        y - base - 0.2, 0.05
    ) * below(-0.62 - y, 0.05)  # ribs edge on
    tilt = rng.uniform(-0.04, 0.04)
    for hand in (-1, 1):
        run = hand * x
        bar = y - (-0.66 + tilt * hand - 0.22 * (run - 0.1) + 0.05 * np.sin((run - 0.1) * 8))
        ends = below(0.09 - run, 0.010) * below(run - 0.80, 0.02)
        density = density + 0.12 * ends * (band(bar, 0.036) - 0.35 * band(bar, 0.022)) * body
        edge = run - 0.70 - 0.25 * (y + 0.35)
        density = (
            density
            + 0.05 * below(-edge, 0.008) * below(edge - 0.25, 0.02) * below(np.abs(y + 0.33) - 0.33, 0.02) * body
        )

    # scatter, the detector's curve and exposure, grain of two sizes
    strength, gamma = about(1.41, 0.2), about(1.25, 0.15)
    density = density + 0.05 * oval(0, 0.2, 0.8, 0.9, 0.2) + _grown(rng.normal(0, 0.010, (40, 40)), side) * body
    full = _grown(density, size) + rng.normal(0, 0.010, (size, size)) * (0.3 + 0.7 * _grown(body, size))
    image: np.ndarray = np.clip(262 * (1 - np.exp(-strength * np.clip(full + 0.02, 0, None) ** gamma)), 0, 255)
    return image.astype(np.uint8)


def _grown(picture: np.ndarray, size: int) -> np.ndarray:
    grown: np.ndarray = np.asarray(
        Image.fromarray(picture.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    )
    return grown


def save(file: str | os.PathLike[str], seed: int = 0, *, opacity: bool = False, size: int = 512) -> Path:
    """Write one drawn image as PNG.

    Args:
        file: Where to; a file of that name is replaced.
        seed: The person, as for `draw`.
        opacity: Whether there is one.
        size: Side of the image in pixels.

    Returns:
        The file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder, "image.png"), size=32).name
        'image.png'
    """
    Image.fromarray(draw(seed, opacity=opacity, size=size)).save(file, format="PNG")
    return Path(file)


def write(folder: str | os.PathLike[str], n: int = 8, *, seed: int = 0, size: int = 256) -> Path:
    """Write drawn images as two class folders.

    Args:
        folder: Where `NORMAL/` and `PNEUMONIA/` are made; the latter's images have an opacity.
        n: Images per class, each of another person.
        seed: Of the first person.
        size: Side of the images in pixels.

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
        for person in range(seed + k * n, seed + (k + 1) * n):
            save(folder / label / f"phantom{person:05d}.png", person, opacity=bool(k), size=size)
    return folder
