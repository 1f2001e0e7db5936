"""Images saved in false colour, as by `matplotlib.pyplot.imsave` or `cv2.applyColorMap` -> grey."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageOps

# matplotlib's tables as knots between which they are straight to 1 / 255: position, red, green and blue, a byte each
_KNOTS = {
    "viridis": "004401541748217228453681403a528b7125828e8b1e9a899821a784a730b47ab84dc26bcc79d151ebcae01ef2dce218"
    "f9eee51bfffde724",
    "plasma": "000c0786061d068d183f039c306500a73f7c02a74a8c0aa45fa8229686d14e72aeef7d4fccfca635e4fccb25f4f6e525"
    "fdf0f525ffeff821",
    "inferno": "000000030602010e110b07261f1f0c472b34095f35450a694762146e5c83206b73a72d5f8ccc4148a2e65c2eb8f68012"
    "c3fa9306cbfba208d7fbb91ee4f6d33feff1e864f8f3f689fffcfea4",
    "magma": "000000030b0504171e1a10412d30106536400f734355137d5c7c238177a7317d93d4436da4eb5660b1f56c5bbdfa825f"
    "ccfd9f6ce4fecb8efffbfcbf",
    "cividis": "0000224d14003070170031701d14366f2b2b3f6d474a536b7371727385817f78a5a09775c8c4b468e0dec957f3f3da42"
    "fcfde333fffde737",
    "jet": "0000007f1c0000fe200000ff5700dcfe5a02e8f46015ffe1a3edff08a6f7f400a8feed00e3fe1200e8e80000ff7f0000",
    "hot": "000a00005dfe0000befffe00c1ffff0affffffff",
    "bone": "000000005e525272c0a8c7c7ffffffff",
}
_FAR = 16.0  # of 255: mean distance from the map's line, above which an image is in other colours; JPEG reaches 15
_BEND = 1.25  # how many times farther a tint, the straight line that fits best, must lie; JPEG reaches 1.4
_CHROMA, _PART = 10, 0.3  # of 255: from which a pixel is coloured; and the part that must be, more than annotations
# mean of frontal chest radiographs, 8 x 8, rows one after the other: tells a map from its reverse
CHEST = np.fromstring(
    """-9 -7 -4  1  1 -4 -7 -8   -3  0 -1  1  1 -2 -1 -3   -2  1 -3  0  1 -3  0 -2   -2  0 -3  2  3 -2  0 -3
       -4  0 -1  4  6  1  0 -4   -5  0  1  6  7  3  0 -5   -5  2  6  8  8  6  1 -6   -5  4  8  9  9  7  3 -6""",
    sep=" ",
    dtype=np.float32,
)  # (64,)


def tables() -> dict[str, list[list[int]]]:
    """Give the colours of every map.

    Returns:
        By name, 256 colours: red, green and blue in [0, 255].
    """
    return {name: _table(name).astype(int).tolist() for name in _KNOTS}


@functools.cache
def _table(name: str) -> np.ndarray:
    """The colours of a map, (256, 3) float32 in [0, 255]."""
    knots = np.frombuffer(bytes.fromhex(_KNOTS[name]), np.uint8).reshape(-1, 4)
    levels = [np.interp(np.arange(256), knots[:, 0], channel) for channel in knots[:, 1:].T]
    table: np.ndarray = np.rint(np.stack(levels, 1)).astype(np.float32)
    return table


def recognise(colours: np.ndarray) -> str | None:
    """Tell whether colours lie along a known map: viridis, plasma, inferno, magma, cividis, jet, hot or bone.

    Args:
        colours: A sample of an image's pixels: ndarray of shape (n, 3), in [0, 255].

    Returns:
        The map's name; None for grey, tinted, annotated and other colour images.

    Example:
        >>> grey = np.arange(256)
        >>> recognise(np.stack([grey, grey, grey], 1))
    """
    colours = np.asarray(colours, np.float32)
    colours = colours[(colours.max(1) > 5) & (colours.min(1) < 250)]  # margins and letters are black or white
    if len(colours) < 64 or np.mean(np.ptp(colours, axis=1) >= _CHROMA) < _PART:
        return None
    centred = colours - colours.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, 2]  # (3,): along which the colours vary most
    tint = np.linalg.norm(centred - np.outer(centred @ axis, axis), axis=1).mean()
    best, far = None, min(_FAR, float(tint) / _BEND)
    for name in _KNOTS:
        table = _table(name)
        squares = (table**2).sum(1) - 2 * colours @ table.T  # (n, 256): of the distances, less |colour|^2
        distance = float(np.sqrt(np.maximum(squares.min(1) + (colours**2).sum(1), 0)).mean())
        if distance < far:
            best, far = name, distance
    return best


def decode(image: Image.Image, name: str) -> tuple[Image.Image, str]:
    """Undo a colour map.

    A map whose brightness rises steadily is undone by brightness, which JPEG keeps better than colour; jet by the
    nearest colour. A map and its reverse have the same colours: the image is turned so that it looks more like a chest
    radiograph than like the negative of one.

    Args:
        image: The image, of mode "RGB".
        name: The map, from `recognise`.

    Returns:
        The grey image, of mode "L", and the map's name, with "_r" where it is reversed.

    Example:
        >>> decode(Image.new("RGB", (64, 64), "#fde724"), "viridis")[0].getpixel((0, 0))
        255
    """
    table = _table(name)
    luma = table @ np.array([0.299, 0.587, 0.114], np.float32)  # (256,)
    if luma[-1] - luma[0] > 128:
        rising = np.maximum.accumulate(luma) + np.arange(256) * 1e-4
        grey = image.convert("L").point(np.rint(np.interp(np.arange(256), rising, np.arange(256))).tolist())
    else:
        palette = Image.new("P", (1, 1))
        palette.putpalette(table.astype(np.uint8).tobytes())
        grey = Image.frombytes("L", image.size, image.quantize(palette=palette, dither=Image.Dither.NONE).tobytes())
    small = np.asarray(grey.resize((8, 8), Image.Resampling.BOX), np.float32).ravel()
    if (small - small.mean()) @ CHEST < 0:
        return ImageOps.invert(grey), f"{name}_r"
    return grey, name
