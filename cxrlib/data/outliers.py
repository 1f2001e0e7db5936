"""Images to fit the gate with: chest radiographs as other hospitals would show them, and images to be refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cxrlib.data.drawings import DRAWINGS, axes, clouds, tones
from cxrlib.images.phantom import draw

Maker: TypeAlias = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # from radiographs (m, s, s): (s, s), uint8
_BICUBIC = Image.Resampling.BICUBIC


def variants(images: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """Change chest radiographs as other machines, hospitals and cameras would; a gate must accept them.

    Every tenth is a drawn phantom, so that examples work without a patient's image.

    Args:
        images: ndarray of shape (m, s, s), uint8.
        n: How many to make.
        seed: Of the choice of images and of all changes.

    Returns:
        ndarray of shape (n, s, s), uint8.

    Example:
        >>> variants(np.zeros((2, 32, 32), np.uint8), 3).shape
        (3, 32, 32)
    """
    rng = np.random.default_rng((seed, 1))
    size = images.shape[1]
    return np.stack([_phantom(rng, size) if i % 10 == 9 else _vary(_pick(images, rng), rng) for i in range(n)])


def outliers(images: np.ndarray, n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make images that a gate must refuse: changed chest radiographs, and drawings.

    Args:
        images: ndarray of shape (m, s, s), uint8: chest radiographs.
        n: How many to make.
        seed: Of the choice of images and of all that is drawn.

    Returns:
        The images, ndarray of shape (n, s, s), uint8; and their kinds, ndarray of shape (n,) of str: `"lateral"`,
        `"scan"`, `"sideways"`, `"upside down"`, `"negative"`, `"several"`, `"screen"`, `"part"` or `"other"`.

    Example:
        >>> made, kinds = outliers(np.zeros((2, 32, 32), np.uint8), 4)
        >>> made.shape, kinds.shape
        ((4, 32, 32), (4,))
    """
    rng = np.random.default_rng((seed, 2))
    makers = [(kind, make) for kind, several in _KINDS for make in several]
    chosen = [makers[i % len(makers)] for i in range(n)]
    made = np.stack([make(images, rng) for _, make in chosen])
    return made, np.array([kind for kind, _ in chosen])


def _pick(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picked: np.ndarray = images[rng.integers(len(images))]
    return picked


def _resized(image: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((max(1, round(width)), max(1, round(height))), _BICUBIC))


def _bytes(x: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = np.round(np.clip(np.nan_to_num(x), 0, 1) * 255).astype(np.uint8)
    return rounded


# --- radiographs of the same chest ---


def _vary(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = len(image)
    angle, zoom, aspect = math.radians(rng.normal(0, 4)), math.exp(rng.normal(0, 0.08)), math.exp(rng.normal(0, 0.06))
    flip = -1 if rng.random() < 0.3 else 1
    c, s = math.cos(angle) * zoom, math.sin(angle) * zoom
    linear = np.array([[flip * c * aspect, s], [-s * flip, c / aspect]])
    shift = size / 2 - linear @ np.full(2, size / 2) + rng.normal(0, 0.03, 2) * size
    matrix = (*linear[0].tolist(), float(shift[0]), *linear[1].tolist(), float(shift[1]))
    fill = int(rng.choice((0, 0, np.median(image))))
    changed = Image.fromarray(image).transform((size, size), Image.Transform.AFFINE, matrix, _BICUBIC, fillcolor=fill)
    if rng.random() < 0.35:  # a small or soft copy
        side = int(size * rng.uniform(0.35, 0.9))
        changed = changed.resize((side, side), Image.Resampling.BOX).resize((size, size), _BICUBIC)
    if rng.random() < 0.35:  # edge enhancement of the detector or the workstation
        changed = changed.filter(ImageFilter.UnsharpMask(float(rng.uniform(0.7, 12)), int(rng.uniform(30, 150)), 0))
    x = np.asarray(changed, np.float32) / 255
    if rng.random() < 0.5:  # local contrast, as multi-frequency processing changes it
        base = changed.filter(ImageFilter.GaussianBlur(float(size * rng.uniform(0.03, 0.15))))
        x = x + rng.uniform(-0.5, 0.8) * (x - np.asarray(base, np.float32) / 255)
    low, high = tones(x, rng.uniform(0, 0.05), 1 - rng.uniform(0, 0.05))
    if rng.random() < 0.7 and high > low:
        x = (x - low) / (high - low)
    x = np.clip(x, 0, 1) ** math.exp(rng.normal(0, 0.35))
    x = rng.uniform(0, 0.15) + x * rng.uniform(0.6, 0.85) if rng.random() < 0.4 else x
    x = x + rng.uniform(0, 0.03) * rng.standard_normal(x.shape, np.float32)
    if rng.random() < 0.15:  # photographed from a monitor
        x = _photographed(x, rng)
    if rng.random() < 0.35:
        _add_borders(x, rng)
    if rng.random() < 0.5:
        _add_marker(x, rng)
    return _bytes(x)


def _photographed(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uneven light, and stripes where the grids of monitor and camera interfere."""
    right, down = axes(len(x))
    light = 1 + rng.uniform(-0.25, 0.25) * right + rng.uniform(-0.25, 0.25) * down
    bent = right * rng.uniform(5, 60) + down * rng.uniform(5, 60) + rng.uniform(0, 6) * right * down
    changed: np.ndarray = x * light + rng.uniform(0, 0.04) * np.sin(bent) + rng.uniform(0, 0.1)
    return changed


def _phantom(rng: np.random.Generator, size: int) -> np.ndarray:
    """A drawn chest, changed or not."""
    side = max(16, int(size * math.exp(rng.uniform(-1.2, 0.4))))
    image = _resized(draw(int(rng.integers(2**31)), opacity=rng.random() < 0.5, size=side), size, size)
    return image if rng.random() < 0.7 else _vary(image, rng)


def _add_borders(x: np.ndarray, rng: np.random.Generator) -> None:
    """Paint borders: collimation, the edge of a cassette, a page."""
    tone, size = rng.choice((0.0, 0.0, rng.random(), 1.0)), len(x)
    for side in range(4):
        wide = int(size * rng.uniform(0, 0.08)) if rng.random() < 0.6 else 0
        if wide:
            np.rot90(x, side)[:wide] = tone


def _add_marker(x: np.ndarray, rng: np.random.Generator) -> None:
    """Write a side marker."""
    size = len(x)
    high = max(6, int(size * rng.uniform(0.04, 0.09)))
    mask = Image.new("L", (2 * high, high + 4))
    text = str(rng.choice(("R", "L", "PA", "AP")))
    ImageDraw.Draw(mask).text((1, 0), text, fill=255, font=ImageFont.load_default(high))
    j, i = int(rng.choice((rng.uniform(0, 0.15), rng.uniform(0.75, 0.9))) * size), int(rng.uniform(0, 0.85) * size)
    place = x[i : i + mask.height, j : j + mask.width]
    m = np.asarray(mask, np.float32)[: place.shape[0], : place.shape[1]] / 255
    place += m * (rng.uniform(0.8, 1) - place)


# --- images to be refused, from radiographs (m, s, s) ---


def _drawn(name: str) -> Maker:
    return lambda images, rng: _finish(DRAWINGS[name](rng, images.shape[1]), rng)


def _finish(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give a drawing the tones, sharpness, noise and borders of a real image."""
    low, high = tones(x, rng.uniform(0, 0.05), 1 - rng.uniform(0, 0.03))
    x = np.clip((x - low) / max(high - low, 1e-6), 0, 1) ** math.exp(rng.normal(0, 0.4))
    x = float(rng.choice((0.0, rng.uniform(0, 0.25)))) + x * rng.uniform(0.6, 1)
    image = Image.fromarray(_bytes(x))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.exponential(len(x) / 250))))
    x = np.asarray(image, np.float32) / 255
    x = x + float(rng.choice((0.0, rng.uniform(0, 0.06)))) * (clouds(rng, len(x), rng.uniform(0, 1)) - 0.5)
    if rng.random() < 0.3:
        _add_borders(x, rng)
    if rng.random() < 0.4:
        _add_marker(x, rng)
    return _bytes(x)


def _lateral_with_detail(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A drawn lateral view with the fine structure of a radiograph."""
    size = images.shape[1]
    drawn, image = DRAWINGS["lateral"](rng, size), _pick(images, rng).astype(np.float32) / 255
    coarse = (
        Image.fromarray(image).resize((max(2, size // 8),) * 2, Image.Resampling.BOX).resize((size, size), _BICUBIC)
    )
    detail = np.roll(image - np.asarray(coarse), rng.normal(0, (0.05 * size, 0.2 * size)).astype(int), (0, 1))
    low, high = tones(drawn, 0.02, 0.98)
    drawn = (drawn - low) / max(high - low, 1e-6)
    return _finish(drawn + rng.uniform(0.5, 1.5) * detail * (drawn > 0.02), rng)


def _projected(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Both halves of a chest over each other, as a lateral view shows the lungs, in a bent body with a drawn spine."""
    size = images.shape[1]
    image = _pick(images, rng).astype(np.float32) / 255
    middle, over = int(size * (0.5 + rng.normal(0, 0.03))), int(size * rng.uniform(0.02, 0.12))
    wide, share = int(size * rng.uniform(0.6, 1.0)), rng.uniform(0, 1)
    halves = [_resized(half, wide, size) for half in (image[:, : middle + over], image[:, middle - over :][:, ::-1])]
    both = share * halves[0] + (1 - share) * np.roll(halves[1], int(rng.normal(0, 0.03 * size)), 0)
    left, x, y = int(rng.uniform(0, size - wide + 1)), *axes(size)
    picture = np.zeros((size, size), np.float32)
    picture[:, left : left + wide] = both[:, :: int(rng.choice((-1, 1)))]
    bend, lean = rng.uniform(-0.25, 0.25) * size, rng.normal(0, 0.12) * size
    moved = np.arange(size)[None] + bend * (y * y - 0.5) + lean * y
    picture = np.take_along_axis(picture, np.clip(moved, 0, size - 1).astype(int), 1)
    x = x - (2 * left + wide) / size + 1  # 0 in the middle of the body
    deep, high = wide / size * rng.uniform(0.85, 1.1), rng.uniform(1.4, 2.2)
    body = np.sqrt(np.clip(1 - (np.abs(x / deep) ** 3 + np.abs((y - 0.2) / high) ** 3) ** (2 / 3), 0, 1))
    drawing = DRAWINGS["lateral"](rng, size)
    drawing = drawing / max(float(np.abs(drawing).max()), 1e-6)
    return _finish(picture * (0.3 + 0.7 * body) + rng.uniform(0, 0.6) * drawing * body, rng)


def _sideways(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rot90(_maybe_varied(images, rng), int(rng.choice((1, 3))))


def _upside_down(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _maybe_varied(images, rng)[::-1]


def _negative(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - _maybe_varied(images, rng)


def _maybe_varied(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _vary(_pick(images, rng), rng) if rng.random() < 0.7 else _pick(images, rng)


def _several(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two or more images in one picture, some of them of another kind; stretched to a square, or with bars."""
    size = images.shape[1]
    rows, columns = ((1, 2), (1, 2), (2, 1), (2, 1), (2, 2), (1, 3), (3, 3))[rng.integers(7)]
    gap, tone = int(rng.choice((0, rng.uniform(0, 0.04) * size))), int(rng.choice([0, 0, 255, int(rng.integers(256))]))
    height = size if rng.random() < 0.6 else int(size * min(1, rows / columns * rng.uniform(0.8, 1.3)))
    left, top = np.linspace(0, size, columns + 1).astype(int), np.linspace(0, height, rows + 1).astype(int)
    top += (size - height) // 2
    made = np.full((size, size), tone, np.uint8)
    for i in range(rows):
        for j in range(columns):
            make = (_lateral_with_detail, _projected, _drawn("limb"))[rng.integers(3)]
            image = make(images, rng) if rng.random() < 0.15 else _pick(images, rng)
            place = made[top[i] + gap // 2 : top[i + 1] - gap // 2, left[j] + gap // 2 : left[j + 1] - gap // 2]
            place[:] = _resized(image, place.shape[1], place.shape[0])
    return made


def _viewer(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image in a viewer's window, with bars, buttons, thumbnails and text."""
    size, image = images.shape[1], Image.fromarray(_pick(images, rng))
    back = int(rng.choice((0, 20, 40, 60, 235)))
    bar = int(np.clip(back + rng.integers(-30, 60), 0, 255))
    left, right = (int(size * rng.choice((0, rng.uniform(0.08, 0.25)))) for _ in range(2))
    left = left if left or right else size // 6
    top, bottom = int(size * rng.uniform(0.04, 0.12)), int(size * rng.uniform(0, 0.06))
    screen = Image.new("L", (size, size), bar)
    pen, high = ImageDraw.Draw(screen), max(6, int(size * rng.uniform(0.03, 0.05)))
    width, height = size - left - right, size - top - bottom
    pen.rectangle((left, top, left + width, top + height), fill=int(rng.choice((0, 0, back))))
    w, h = (max(8, int(side * rng.uniform(low, 1))) for side, low in ((width, 0.6), (height, 0.75)))
    screen.paste(image.resize((w, h), _BICUBIC), (left + (width - w) // 2, top + (height - h) // 2))
    for k in range(rng.integers(3, 12)):
        at = (0.03 + 0.06 * k) * size
        pen.rectangle((at, 1, at + 0.6 * top, max(2, 0.8 * top)), outline=int(rng.integers(120, 256)))
    thumb = int(left * 0.8)
    for k in range(rng.integers(2, 7) if thumb > 4 else 0):
        screen.paste(image.resize((thumb, thumb)), (left // 10, top + int((0.02 + k * 1.1 * thumb / size) * size)))
    _write(pen, rng, size, high, int(rng.integers(1, 7)))
    return np.asarray(screen)


def _page(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Text, with or without small images: a report, a slide, a web page."""
    size, paper = images.shape[1], int(rng.choice((255, 245, 20, 0)))
    page = Image.new("L", (size, size), paper)
    for _ in range(rng.integers(0, 4)):
        side = int(size * rng.uniform(0.2, 0.5))
        at = rng.integers(0, size - side + 1, 2).tolist()
        page.paste(Image.fromarray(_pick(images, rng)).resize((side, side), _BICUBIC), at)
    _write(ImageDraw.Draw(page), rng, size, max(6, int(size * rng.uniform(0.03, 0.1))), int(rng.integers(3, 30)))
    return np.asarray(page)


def _write(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: int, high: int, rows: int) -> None:
    font, letters = ImageFont.load_default(high), list("abcdefghijklmnopqrstuvwxyz     0123456789.,:/-")
    for _ in range(rows):
        at, text = rng.integers(0, size, 2) * (0.7, 1), "".join(rng.choice(letters, int(rng.integers(4, 40))))
        pen.text(tuple(at.tolist()), text, fill=int(rng.choice([int(rng.integers(256)), 255, 0])), font=font)


def _monitor(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A photograph of a monitor from some way off and aslant, with its surroundings."""
    size = images.shape[1]
    near = rng.uniform(0.06, 0.24, (4, 2)) * size  # of each corner to that of the picture
    to = np.array([(0, 0), (0, size), (size, size), (size, 0)])
    seen = np.abs(to - near)
    equations = []
    for (x, y), (u, v) in zip(seen, to, strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    way = np.linalg.solve(np.array(equations), to.ravel()).tolist()
    around = int(rng.choice([0, int(rng.integers(5, 60)), int(rng.integers(256))]))
    image = Image.fromarray(_pick(images, rng))
    photo = image.transform((size, size), Image.Transform.PERSPECTIVE, way, _BICUBIC, fillcolor=around)
    return _bytes(_photographed(np.asarray(photo, np.float32) / 255, rng) + 0.08 * (clouds(rng, size, 1.6) - 0.5))


def _crop(image: np.ndarray, left: float, top: float, width: float, height: float) -> np.ndarray:
    """Cut out a box, given in parts of the side, and stretch it to the image's size."""
    size = len(image)
    box = (left * size, top * size, (left + width) * size, (top + height) * size)
    return np.asarray(Image.fromarray(image).resize((size, size), _BICUBIC, box=box))


def _window(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    w, h = rng.uniform(0.25, 0.55, 2)
    corner = rng.random() < 0.5
    x, y = (float(rng.choice((0, 1 - s)) if corner else rng.uniform(0, 1 - s)) for s in (w, h))
    return _crop(_pick(images, rng), x, y, w, h)


def _half(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    w = rng.uniform(0.4, 0.55)
    x, image = float(rng.choice((0, 1 - w))), _pick(images, rng)
    return _crop(image, x, 0, w, 1) if rng.random() < 0.6 else _crop(image, 0, x, 1, w)


def _shuffled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tiles in another order."""
    image, k = _pick(images, rng), int(rng.choice((2, 3, 4, 7)))
    side, made = len(image) // k, image.copy()
    order = rng.permutation(k * k)
    for to, come in zip(order.tolist(), np.roll(order, 1).tolist(), strict=True):  # one cycle: no tile stays
        (i, j), (a, b) = divmod(to, k), divmod(come, k)
        tile = image[a * side : (a + 1) * side, b * side : (b + 1) * side]
        made[i * side : (i + 1) * side, j * side : (j + 1) * side] = tile
    return made


def _smeared(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    radius = float(images.shape[1] * rng.uniform(0.06, 0.15))
    return np.asarray(Image.fromarray(_pick(images, rng)).filter(ImageFilter.GaussianBlur(radius)))


def _bent(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row and column moved by a random wave."""
    image = _pick(images, rng)
    size = len(image)
    i, j = np.mgrid[:size, :size]
    swing, turns, phase = size * rng.uniform(0.12, 0.3), rng.uniform(0.7, 2, 2), rng.uniform(0, 7, 2)
    rows = i + swing * np.sin(turns[0] * 6.28 * j / size + phase[0])
    columns = j + swing * np.sin(turns[1] * 6.28 * i / size + phase[1])
    bent: np.ndarray = image[np.clip(rows, 0, size - 1).astype(int), np.clip(columns, 0, size - 1).astype(int)]
    return bent


# What makes each kind; all makers are as frequent.
_KINDS: tuple[tuple[str, tuple[Maker, ...]], ...] = (
    ("lateral", (_drawn("lateral"), _lateral_with_detail, _projected, _projected)),
    ("scan", (_drawn("ct"), _drawn("ct"), _drawn("head"))),
    ("sideways", (_sideways,)),
    ("upside down", (_upside_down, _upside_down)),
    ("negative", (_negative,)),
    ("several", (_several, _several, _several)),
    ("screen", (_viewer, _page, _monitor)),
    ("part", (_window, _half)),
    ("other", (_drawn("limb"), _drawn("abdomen"), _drawn("photograph"), _shuffled, _smeared, _bent)),
)
