"""Pictures to fit the gate with: chest films as other hospitals would show them, and drawn or spoilt ones that are no frontal chest films."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cxrlib.data.drawings import KINDS, clouds, tones
from cxrlib.images.phantom import draw


def variants(films: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """Make new films of the same chests as other machines, other hospitals and hurried hands would show them; a gate must let them pass.

    Every tenth is a drawn phantom, so that things can be tried without a patient's film.

    Args:
        films: ndarray of shape (m, s, s), uint8.
        n: How many to make.
        seed: Of the choice of films and of all that is changed.

    Returns:
        ndarray of shape (n, s, s), uint8.

    Example:
        >>> variants(np.zeros((2, 32, 32), np.uint8), 3).shape
        (3, 32, 32)
    """
    rng = np.random.default_rng((seed, 1))
    return np.stack(
        [_vary(films[rng.integers(len(films))], rng) if i % 10 else _phantom(rng, films.shape[1]) for i in range(n)]
    )


def outliers(films: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """Make pictures that are no frontal chest films: spoilt films, and drawings of other body parts, scans, scenes, text and noise, in equal parts.

    Args:
        films: ndarray of shape (m, s, s), uint8.
        n: How many to make.
        seed: Of the choice of films and of all that is drawn.

    Returns:
        ndarray of shape (n, s, s), uint8.

    Example:
        >>> outliers(np.zeros((2, 32, 32), np.uint8), 4).dtype
        dtype('uint8')
    """
    rng = np.random.default_rng((seed, 2))
    made = []
    for i in range(n):
        if i % 2:
            made.append(_SPOIL[i // 2 % len(_SPOIL)](films[rng.integers(len(films))], rng))
        else:
            made.append(_finish(KINDS[i // 2 % len(KINDS)](rng, films.shape[1]), rng))
    return np.stack(made)


# --- films of the same chest ---


def _vary(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = len(film)
    image = Image.fromarray(film)
    angle, zoom, aspect = math.radians(rng.normal(0, 4)), math.exp(rng.normal(0, 0.08)), math.exp(rng.normal(0, 0.06))
    shift = rng.normal(0, 0.03, 2) * size
    c, s, m = math.cos(angle) * zoom, math.sin(angle) * zoom, size / 2
    flip = -1 if rng.random() < 0.3 else 1
    matrix = (
        flip * c * aspect,
        s,
        m - flip * c * aspect * m - s * m + shift[0],
        -s * flip,
        c / aspect,
        m + s * flip * m - c / aspect * m + shift[1],
    )
    image = image.transform(
        (size, size),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BICUBIC,
        fillcolor=int(rng.choice((0, 0, np.median(film)))),
    )
    if rng.random() < 0.35:
        side = int(size * rng.uniform(0.35, 0.9))  # a small or soft copy
        image = image.resize((side, side), Image.Resampling.BOX).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.35:  # the detector's or the workstation's edge enhancement
        image = image.filter(ImageFilter.UnsharpMask(float(rng.uniform(0.7, 12)), int(rng.uniform(30, 150)), 0))
    x = np.asarray(image, np.float32) / 255
    if rng.random() < 0.5:  # local contrast, as multi-frequency processing gives it
        base = (
            np.asarray(image.filter(ImageFilter.GaussianBlur(float(size * rng.uniform(0.03, 0.15)))), np.float32) / 255
        )
        x = x + rng.uniform(-0.5, 0.8) * (x - base)
    low, high = tones(x, rng.uniform(0, 0.05), 1 - rng.uniform(0, 0.05))
    if rng.random() < 0.7 and high > low:
        x = (x - low) / (high - low)
    x = np.clip(x, 0, 1) ** math.exp(rng.normal(0, 0.35))
    x = rng.uniform(0, 0.15) + x * rng.uniform(0.6, 0.85) if rng.random() < 0.4 else x
    x = x + rng.uniform(0, 0.03) * rng.standard_normal(x.shape, np.float32)
    if rng.random() < 0.35:
        _frame(x, rng)
    if rng.random() < 0.5:
        _mark(x, rng)
    return _bytes(x)


def _phantom(rng: np.random.Generator, size: int) -> np.ndarray:
    """A drawn chest, as it is or varied like a film."""
    drawn = draw(
        int(rng.integers(2**31)), opacity=rng.random() < 0.5, size=max(16, int(size * math.exp(rng.uniform(-1.2, 0.4))))
    )
    film = np.asarray(Image.fromarray(drawn).resize((size, size), Image.Resampling.BICUBIC))
    return film if rng.random() < 0.7 else _vary(film, rng)


def _frame(x: np.ndarray, rng: np.random.Generator) -> None:
    """Paint borders: collimation, the edge of a cassette, a page."""
    tone, size = rng.choice((0.0, 0.0, rng.random(), 1.0)), len(x)
    for side in range(4):
        wide = int(size * rng.uniform(0, 0.08)) if rng.random() < 0.6 else 0
        if wide:
            np.rot90(x, side)[:wide] = tone


def _mark(x: np.ndarray, rng: np.random.Generator) -> None:
    """Write a side marker."""
    size = len(x)
    high = max(6, int(size * rng.uniform(0.04, 0.09)))
    mask = Image.new("L", (2 * high, high + 4))
    ImageDraw.Draw(mask).text(
        (1, 0), str(rng.choice(("R", "L", "PA", "AP"))), fill=255, font=ImageFont.load_default(high)
    )
    j, i = int(rng.choice((rng.uniform(0, 0.15), rng.uniform(0.75, 0.9))) * size), int(rng.uniform(0, 0.85) * size)
    place = x[i : i + mask.height, j : j + mask.width]
    m = np.asarray(mask, np.float32)[: place.shape[0], : place.shape[1]] / 255
    place += m * (rng.uniform(0.8, 1) - place)


def _bytes(x: np.ndarray) -> np.ndarray:
    drawn: np.ndarray = np.round(np.clip(np.nan_to_num(x), 0, 1) * 255).astype(np.uint8)
    return drawn


# --- films that are spoilt ---


def _crop(film: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Cut out a box, given in parts of the side, and stretch it to the film's size."""
    size = len(film)
    image = Image.fromarray(film).resize(
        (size, size), Image.Resampling.BICUBIC, box=(left * size, top * size, right * size, bottom * size)
    )
    return np.asarray(image)


def _window(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    w, h = rng.uniform(0.25, 0.5, 2)
    x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    return _crop(film, x, y, x + w, y + h)


def _corner(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    w, h = rng.uniform(0.35, 0.55, 2)
    x, y = rng.choice((0, 1 - w)), rng.choice((0, 1 - h))
    return _crop(film, x, y, x + w, y + h)


def _half(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    w = rng.uniform(0.4, 0.55)
    x = rng.choice((0, 1 - w))
    return _crop(film, x, 0, x + w, 1) if rng.random() < 0.6 else _crop(film, 0, x, 1, x + w)


def _turned(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rot90(film, int(rng.integers(1, 4)))


def _negative(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - _vary(film, rng)


def _shuffled(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    k, size = int(rng.choice((2, 3, 4, 7))), len(film)
    side = size // k
    x = film.copy()
    order = rng.permutation(k * k)
    for to, come in zip(order.tolist(), np.roll(order, 1).tolist(), strict=True):  # one cycle: no tile stays
        (i, j), (a, b) = divmod(to, k), divmod(come, k)
        x[i * side : (i + 1) * side, j * side : (j + 1) * side] = film[
            a * side : (a + 1) * side, b * side : (b + 1) * side
        ]
    return x


def _page(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A film as a small part of a page, a screen or a table of films."""
    size = len(film)
    x = np.full((size, size), rng.choice((0, 255, int(rng.integers(256)))), np.uint8)
    side = int(size * rng.uniform(0.25, 0.5))
    small = np.asarray(Image.fromarray(film).resize((side, side), Image.Resampling.BICUBIC))
    for _ in range(rng.integers(1, 4)):
        i, j = rng.integers(0, size - side + 1, 2)
        x[i : i + side, j : j + side] = small
    return x


def _smeared(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(
        Image.fromarray(film).filter(ImageFilter.GaussianBlur(float(len(film) * rng.uniform(0.06, 0.15))))
    )


def _bent(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row and column moved by a random wave."""
    size = len(film)
    i, j = np.mgrid[:size, :size]
    swing, turns, phase = size * rng.uniform(0.12, 0.3), rng.uniform(0.7, 2, 2), rng.uniform(0, 7, 2)
    i2 = i + swing * np.sin(turns[0] * 6.28 * j / size + phase[0])
    j2 = j + swing * np.sin(turns[1] * 6.28 * i / size + phase[1])
    drawn: np.ndarray = film[np.clip(i2, 0, size - 1).astype(int), np.clip(j2, 0, size - 1).astype(int)]
    return drawn


_SPOIL: tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], ...] = (
    _window, _corner, _half, _turned, _negative, _shuffled, _page, _smeared, _bent, _corner, _turned,
)  # fmt: skip


# --- drawings, finished ---


def _finish(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give a drawing the tone, softness, grain and frame of a picture that came from somewhere."""
    low, high = tones(x, rng.uniform(0, 0.05), 1 - rng.uniform(0, 0.03))
    x = np.clip((x - low) / max(high - low, 1e-6), 0, 1) ** math.exp(rng.normal(0, 0.4))
    x = float(rng.choice((0.0, rng.uniform(0, 0.25)))) + x * rng.uniform(0.6, 1)
    image = Image.fromarray(_bytes(x))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.exponential(len(x) / 250))))
    x = np.asarray(image, np.float32) / 255
    x = x + float(rng.choice((0.0, rng.uniform(0, 0.06)))) * (clouds(rng, len(x), rng.uniform(0, 1)) - 0.5)
    if rng.random() < 0.3:
        _frame(x, rng)
    if rng.random() < 0.4:
        _mark(x, rng)
    return _bytes(x)
