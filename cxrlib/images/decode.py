"""Any source of an image -> pixels by declared bit depth -> the input of the network."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from cxrlib.images import bars, colormaps
from cxrlib.images.dicom import MAX_SCANS
from cxrlib.images.sources import ImageError, Source, bytes_of, is_dataset, name_of

DECODER = 4  # version of the path from bytes to model input; part of every cache key
MAX_PIXELS = 30_000_000  # a 43 x 43 cm detector with 0.1 mm pixels has 18.5 million
_MAX_ASPECT = 20  # longer strips are not pictures
_PADDING = 4 / 3  # of the pixels that are read: the tiles of a TIFF may reach beyond its edge
_TILE_SIDES = 322, 323  # the tags of a TIFF with the width and the length of its tiles
_STRANGERS = {
    b"PK\3\4": "a zip archive",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "a gzip archive",
    b"ftyp": "HEIC, AVIF or video",
    b"<": "a web page or XML",
}
_KINDS = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image)
_DRAFT = 6  # a JPEG is decoded at a reduced scale only where this many times the model's side remain

T = TypeVar("T")


class _once(Generic[T]):
    """`functools.cached_property` without the lock that, before Python 3.12, all objects share."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __get__(self, image: Any, kind: type | None = None) -> T:
        if image is None:  # asked of the class, as documentation does
            return self  # type: ignore[return-value]
        value = image.__dict__[self._compute.__name__] = self._compute(image)
        return value


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A decoded image: grey, upright, bright where bones are bright.

    Args:
        picture: What was decoded: ndarray of shape (H, W), uint8, uint16 or float32, in [0, white], or a PIL image of
            mode "L" that nobody changes.
        white: The value that means 1.0: 255, 65535, 1.0.
        name: What messages and reports call it.
        size: Height and width in pixels at full size, as displayed; `picture` may be smaller, where a JPEG was decoded
            at a reduced scale.
        colour: 0 for a grey source; else the mean of max(R, G, B) - min(R, G, B), in [0, 1].
        view: What the file declares as its view position, such as "PA", "AP" or "LL"; None where it says nothing.
        notes: Warnings in plain words.
        modality: What a DICOM file declares, such as "CR", "DX" or "CT"; None where it says nothing.

    Raises:
        ValueError: If `picture` or `white` are not as above.

    Example:
        >>> read(np.zeros((8, 6), np.uint8)).size
        (8, 6)
    """

    picture: np.ndarray | Image.Image
    white: float
    name: str
    size: tuple[int, int]
    colour: float = 0.0
    view: str | None = None
    notes: tuple[str, ...] = ()
    modality: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.picture, Image.Image):
            if self.picture.mode != "L":
                raise ValueError(f"picture must be a PIL image of mode 'L'. Received: mode={self.picture.mode!r}")
        elif (
            self.picture.ndim != 2
            or not self.picture.size
            or self.picture.dtype not in (np.uint8, np.uint16, np.float32)
        ):
            raise ValueError(
                "picture must be (H, W) of uint8, uint16 or float32. "
                f"Received: shape={self.picture.shape}, dtype={self.picture.dtype}"
            )
        if not 0 < self.white < float("inf"):
            raise ValueError(f"white must be a positive number. Received: white={self.white!r}")

    @_once
    def pixels(self) -> np.ndarray:
        """ndarray of shape (H, W), uint8, uint16 or float32, in [0, white], not writeable."""
        return np.asarray(self.picture)

    @_once
    def content(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom, in pixels of the full size, of what lies within empty bars such as padding.

        None where there are no bars, or they take less than a seventh of the image, or more than three quarters.
        """
        return bars.content(self.picture, self.white, self.size)


def read(source: Source, *, model_size: int = 224, max_pixels: int = MAX_PIXELS) -> Radiograph:
    """Decode an image from any kind of source.

    Grey levels are scaled by the declared bit depth. Where an image of more than 8 bits uses less than a sixteenth of
    it, as 12-bit values stored in 16 bits do, it is scaled by the fewest bits that hold its values, and a note says so.
    MONOCHROME1 and white-is-zero images are inverted, EXIF orientation is applied, transparent parts become black and
    colours luma; known false-colour maps (see `cxrlib.images.colormaps`) are undone. Of several pictures or frames, the
    first is read. Colour of 16 bits is read at 8.

    Args:
        source: A path, a `file://` or `http(s)://` URL, the bytes of a file, a binary file object (read from its
            start), a PIL image, a pydicom dataset, or an ndarray (or what has `__array__`) of shape (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4), uint8, uint16, or float in [0, 1].
        model_size: Side in pixels of the network's input. JPEG files at least 12 times as wide and as high are decoded
            at a reduced scale; all others at full size.
        max_pixels: Images with more pixels are refused before they are decoded.

    Returns:
        The image.

    Raises:
        ImageError: If the source is missing, empty, damaged, too large, or not an image of a kind that is read.
        TypeError: If the source is none of the kinds above.
        ImportError: If a DICOM file comes and pydicom is not installed.

    Example:
        >>> read(np.full((4, 4), 65535, np.uint16)).white
        65535.0
    """
    if not isinstance(source, _KINDS) and not is_dataset(source) and hasattr(source, "__array__"):
        source = np.asarray(source)
    if not isinstance(source, _KINDS) and not is_dataset(source) and not callable(getattr(source, "read", None)):
        raise TypeError(
            "a source must be a path, a URL, bytes, a binary file object, a PIL image, a NumPy array or a pydicom "
            f"dataset. Received: {type(source).__name__}"
        )
    name = name_of(source)
    try:
        if isinstance(source, np.ndarray):
            return _from_array(source, name, max_pixels)
        if isinstance(source, Image.Image):
            return _from_pillow(source, name, max_pixels)
        if is_dataset(source):
            return _from_dicom(source, name, max_pixels)
        data = bytes_of(source)
        if data[128:132] == b"DICM" or data[:2] in (b"\x02\0", b"\x08\0"):  # or without preamble: the first group
            return _from_dicom(data, name, max_pixels)
        return _from_pillow(_open(data), name, max_pixels, model_size)
    except ImportError:
        raise
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        why = " ".join(str(error).split()) or type(error).__name__
        told = "it is cut short" if "truncated" in why else f"it is damaged or not complete ({why})"
        raise ImageError(f"{name}: {told}") from error


def fit(image: Radiograph, size: int = 224) -> np.ndarray:
    """Cut off an image's empty bars and resize it to the network's input with an antialiased bicubic filter.

    Much larger images are first averaged in whole blocks.

    Args:
        image: A decoded image.
        size: Side of the result in pixels.

    Returns:
        ndarray of shape (size, size, 1), float32 in [0, 1]; from 8-bit images every value is a multiple of 1/255.

    Example:
        >>> fit(read(np.full((300, 200), 255, np.uint8)), 4)[0, 0, 0].item()
        1.0
    """
    picture, box = image.picture, image.content
    if isinstance(picture, np.ndarray) and (box or picture.shape != (size, size)):
        picture = Image.fromarray(picture if picture.dtype == np.uint8 else picture.astype(np.float32))
    if isinstance(picture, Image.Image):
        if box:
            scale = picture.width / image.size[1]  # below 1 where it was decoded at a reduced scale
            left, top, right, bottom = (round(side * scale) for side in box)
            picture = picture.crop((left, top, right, bottom))
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=1.25)
    pixels = np.asarray(picture)  # (size, size)
    small: np.ndarray = np.divide(pixels, np.float32(image.white), dtype=np.float32)
    if pixels.dtype != np.uint8 or image.white != 255:  # others may overshoot
        np.clip(small, 0, 1, out=small)
    return small[..., None]


# --- pictures ---


def _open(data: bytes) -> Image.Image:
    """Open by content: `Image.open` would import every plugin, and warn about sizes that are checked here."""
    file = io.BytesIO(data)
    if data[:3] == b"\xff\xd8\xff":
        from PIL import JpegImagePlugin

        image = JpegImagePlugin.jpeg_factory(file)
        if (image.mode != "L" or "progressive" in image.info) and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
            raise ImageError(f"it is a JPEG of {scans} scans; at most {MAX_SCANS} are read")
        return image
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        from PIL import PngImagePlugin

        return PngImagePlugin.PngImageFile(file)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0"):
        from PIL import TiffImagePlugin

        tiff = TiffImagePlugin.TiffImageFile(file)
        _check_tags(data, tiff.tag_v2)
        return tiff
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        from PIL import WebPImagePlugin

        return WebPImagePlugin.WebPImageFile(file)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        from PIL import GifImagePlugin

        return GifImagePlugin.GifImageFile(file)
    if data[:2] == b"BM":
        from PIL import BmpImagePlugin

        return BmpImagePlugin.BmpImageFile(file)
    kind = next(
        (f"{kind}, " for start, kind in _STRANGERS.items() if data[4 * (start == b"ftyp") :].startswith(start)), ""
    )
    raise ImageError(f"it is {kind}not a JPEG, PNG, TIFF, BMP, WebP, GIF or DICOM file")


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"it has no pixels ({height} x {width})")
    if height * width > max_pixels:
        raise ImageError(f"it has {height} x {width} pixels, more than the {max_pixels:,} that are read")
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise ImageError(f"it is a strip of {height} x {width} pixels, not a radiograph")


def _check_tags(data: bytes, tags: Any) -> None:
    """Refuse a TIFF of whose tiles Pillow and libtiff would read different sizes: a tag stands twice, or is odd."""
    order, (number, step) = "<" if data[:1] == b"I" else ">", ("Q", 20) if data[2] == 43 else ("H", 12)
    start = tags.offset + struct.calcsize(number)
    (count,) = struct.unpack_from(order + number, data, tags.offset)
    found = [data[at : at + 2] for at in range(start, min(start + step * count, len(data)), step)]
    if any(found.count(struct.pack(order + "H", tag)) != (tag in tags) for tag in _TILE_SIDES):
        raise ImageError("it says in no usable way how large its tiles are")


def _check_decoder(image: Image.Image, max_pixels: int) -> None:
    """Refuse what takes far longer or far more memory to decode than its size tells."""
    for codec, extents, *_ in getattr(image, "tile", ()):
        if codec == "bmp_rle":  # byte by byte in Python
            raise ImageError("it is a run-length encoded BMP; save it uncompressed, or as PNG")
        if codec == "libtiff":  # which decodes whole tiles
            tags: Any = getattr(image, "tag_v2", {})
            width, height = extents[2:]
            wide, high = sides = [tags.get(tag, side) for tag, side in zip(_TILE_SIDES, (width, height), strict=True)]
            if not all(isinstance(side, int) and side > 0 for side in sides):
                raise ImageError("it says in no usable way how large its tiles are")
            if -(-width // wide) * wide * -(-height // high) * high > max(max_pixels, MAX_PIXELS) * _PADDING:
                raise ImageError(
                    f"its tiles of {high} x {wide} pixels are far larger than its {height} x {width} pixels"
                )


def _from_pillow(image: Image.Image, name: str, max_pixels: int, model_size: int | None = None) -> Radiograph:
    width, height = image.size
    _check_size(height, width, max_pixels)
    _check_decoder(image, max_pixels)
    notes: tuple[str, ...] = ()
    if model_size is not None:  # opened here: a caller's image keeps its scale and its frame
        if getattr(image, "is_animated", False) and image.format != "MPO":
            notes = ("the file holds several pictures; the first is used",)
        image.draft(None, (_DRAFT * model_size, _DRAFT * model_size))
    image.load()
    turn = _orientation(image)
    if turn is not None:
        image = image.transpose(turn)
        if turn not in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180):
            width, height = height, width
    picture, white, colour, said = _grey(image)
    if picture is image and model_size is None:
        picture = np.asarray(image)  # the caller may change theirs
    return _radiograph(picture, white, name, (height, width), colour, notes + said)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    t = Image.Transpose
    turns = {
        2: t.FLIP_LEFT_RIGHT,
        3: t.ROTATE_180,
        4: t.FLIP_TOP_BOTTOM,
        5: t.TRANSPOSE,
        6: t.ROTATE_270,
        7: t.TRANSVERSE,
        8: t.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(0x0112, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF says nothing about the pixels
        return None


def _grey(image: Image.Image) -> tuple[np.ndarray | Image.Image, float, float, tuple[str, ...]]:
    """Picture, white, colour and notes of a loaded image."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels, white, notes = _deep(image)
        return pixels, white, 0.0, notes
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGB", image.size)
        black.paste(image, mask=image.getchannel("A"))
        image = black
    if image.mode == "L":
        return image, 255.0, 0.0, ()
    rgb = image.convert("RGB")
    sample = np.asarray(rgb.resize((64, 64), Image.Resampling.NEAREST))  # (64, 64, 3)
    if found := colormaps.recognise(sample.reshape(-1, 3)):
        grey, found = colormaps.decode(rgb, found)
        return grey, 255.0, 0.0, (f"it was in false colour ({found}), which was undone",)
    return rgb.convert("L"), 255.0, float(np.ptp(sample, axis=2).mean() / 255), ()


def _deep(image: Image.Image) -> tuple[np.ndarray, float, tuple[str, ...]]:
    """Pixels, white and notes of an image of more than 8 bits."""
    tags: Any = getattr(image, "tag_v2", {})
    bits, signed, inverted = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2, tags.get(262, 1) == 0
    pixels = np.asarray(image)
    if image.mode == "F":
        pixels, white = _unit(pixels), 1.0
    elif bits > 16:
        pixels, white = (pixels if signed else pixels.view(np.uint32)).astype(np.float32), 2.0**bits - 1
        if signed and pixels.min() < 0:
            pixels += np.float32(2 ** (bits - 1))
    else:
        if signed and pixels.min() < 0:
            pixels = pixels + 2 ** (bits - 1)
        if pixels.min() < 0 or pixels.max() > 2**bits - 1:
            raise ImageError(f"it holds values outside {bits} bits: from {pixels.min()} to {pixels.max()}")
        pixels, white = pixels.astype(np.uint16), 2.0**bits - 1
    white, notes = _used(pixels, white)
    if pixels.dtype == np.float32:
        pixels, white = np.clip(pixels / np.float32(white), 0, 1), 1.0
    if inverted:
        pixels = (white - pixels).astype(pixels.dtype)
    return pixels, white, notes


def _used(pixels: np.ndarray, white: float) -> tuple[float, tuple[str, ...]]:
    """White, and a note: the fewest bits that hold the values where they use less than a sixteenth of its range."""
    most = float(pixels.max())
    if pixels.dtype == np.uint8 or not 0 < most <= white / 16:
        return white, ()
    used = 2.0 ** math.frexp(most)[1] - (white > 1)
    return used, (f"no value is above {most:g} where white is {white:g}: it was scaled by {used:g} instead",)


# --- arrays ---


def _unit(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    if math.isnan(low):
        raise ImageError("it holds NaN values")
    if low < -1e-6 or high > 1 + 1e-6:
        raise ImageError(
            "floating-point pixels must lie in [0, 1]; divide by the value that means white. "
            f"Received: from {low:g} to {high:g}"
        )
    unit: np.ndarray = np.clip(pixels, 0, 1).astype(np.float32, copy=False)
    return unit


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Radiograph:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"an array must have the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Received: shape={array.shape}"
        )
    _check_size(array.shape[0], array.shape[1], max_pixels)
    if array.dtype == np.uint8:
        white, pixels = 255.0, array
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        white, pixels = 65535.0, array.astype(np.uint16)
    elif array.dtype.kind == "f":
        white, pixels = 1.0, _unit(array)
    else:
        raise ImageError(f"an array must be uint8, uint16, or floating point in [0, 1]. Received: dtype={array.dtype}")
    white, notes = _used(pixels, white)
    if pixels.ndim == 3 and pixels.shape[2] > 1:  # colour, at 8 bits
        bytes_ = np.empty(pixels.shape, np.uint8)
        for top in range(0, len(pixels), 256):  # in strips, to spare memory
            bytes_[top : top + 256] = np.rint(pixels[top : top + 256] * np.float32(255 / white))
        picture, white, colour, said = _grey(Image.fromarray(bytes_))
        return _radiograph(picture, white, name, pixels.shape, colour, notes + said)
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    return _radiograph(np.array(grey, order="C"), white, name, grey.shape, notes=notes)


def _radiograph(
    picture: np.ndarray | Image.Image,
    white: float,
    name: str,
    size: tuple[int, ...],
    colour: float = 0.0,
    notes: tuple[str, ...] = (),
    **said: str | None,
) -> Radiograph:
    if isinstance(picture, np.ndarray):
        picture.flags.writeable = False
    return Radiograph(picture, white, name, (size[0], size[1]), colour, notes=notes, **said)


# --- DICOM ---


def _from_dicom(source: Any, name: str, max_pixels: int) -> Radiograph:
    from cxrlib.images import dicom

    try:
        pixels, white, said = dicom.decode(
            source, check_size=lambda height, width: _check_size(height, width, max_pixels)
        )
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(str(error)) from error
    return _radiograph(pixels, white, name, pixels.shape, **said)
