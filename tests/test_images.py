"""Any bytes, image or array -> an image, alike whatever it came from, and its fit; everything else a named error."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import random
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrlib.images import phantom
from cxrlib.images.decode import Radiograph, _once, fit, read
from cxrlib.images.sources import ImageError, find

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))
GREY = phantom.draw(1, size=320)[:, :300]  # (320, 300) uint8


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def tiff(
    pixels: np.ndarray,
    *,
    bits: int,
    photometric: int = 1,
    sample_format: int = 1,
    order: str = "<",
    raw: bytes | None = None,
) -> bytes:
    """A minimal uncompressed TIFF, for the kinds that Pillow reads and does not write."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if raw is None else raw
    h, w = pixels.shape
    tags = {
        256: w,
        257: h,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: h,
        279: len(data),
        339: sample_format,
    }
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return start + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def tiled(pixels: np.ndarray, *sides: tuple[int, int, int]) -> bytes:
    """A deflated TIFF of one tile, black beyond the pixels; the tags of its sides are given as tag, type and value."""
    width, length = (next((side for tag, _, side in sides if tag == wanted), 64) for wanted in (322, 323))
    black = np.zeros((length, width), np.uint8)
    black[: pixels.shape[0], : pixels.shape[1]] = pixels
    data = zlib.compress(black.tobytes())
    tags = [
        (256, 4, pixels.shape[1]),
        (257, 4, pixels.shape[0]),
        (258, 4, 8),
        (259, 4, 8),
        (262, 4, 1),
        (277, 4, 1),
        *sides,
        (324, 4, 8),
        (325, 4, len(data)),
    ]
    long = {16: 8, 17: 8}  # bytes of values that stand elsewhere
    after = 8 + len(data)
    values, entries = b"", b""
    for tag, kind, value in tags:
        entries += struct.pack("<HHII", tag, kind, 1, after + len(values) if kind in long else value)
        values += struct.pack("<Q", value) if kind in long else b""
    return (
        struct.pack("<2sHI", b"II", 42, after + len(values))
        + data
        + values
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def run_length_encoded() -> bytes:
    """A BMP of 40 x 30 pixels, each a run of its own."""
    data = (b"\1\x80" * 40 + b"\0\0") * 30 + b"\0\1"
    palette = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
    return (
        b"BM"
        + struct.pack(
            "<IIIIiiHHIIiiII", 1078 + len(data), 0, 1078, 40, 40, 30, 1, 8, 1, len(data), 2835, 2835, 256, 256
        )
        + palette
        + data
    )


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = zlib.compress(bytes(10))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


# --- one image ---


def test_jpeg_is_the_same_from_path_bytes_image_and_array(tmp_path: Path) -> None:
    for kind in ("L", "RGB"):
        path = tmp_path / f"{kind}.jpg"
        path.write_bytes(encode(Image.fromarray(phantom.draw(2, size=1000)).convert(kind), "JPEG"))
        with Image.open(path) as image:
            pixels = np.asarray(image)
            fitted = [fit(read(source)) for source in (path, path.read_bytes(), image, pixels)]
        assert all((other == fitted[0]).all() for other in fitted)


def test_an_image_cannot_be_changed_through_what_it_came_from() -> None:
    array = GREY.copy()
    image = read(array)
    array[:] = 0
    assert (image.pixels == GREY).all()
    assert array.flags.writeable
    assert not image.pixels.flags.writeable
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.white = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("white", [0.0, -1.0, float("inf"), float("nan")])
def test_white_is_a_positive_number(white: float) -> None:
    with pytest.raises(ValueError, match="white must be a positive number"):
        dataclasses.replace(read(GREY), white=white)


def test_many_threads_read_alike_and_leave_no_file_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(encode(phantom.draw(i, size=200), "JPEG"))
    alone = [fit(read(path)) for path in paths]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda path: fit(read(path)), paths * 8))
    assert all((a == b).all() for a, b in zip(together, alone * 8, strict=True))
    assert before == (len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)


def test_pillow_is_left_as_it_was() -> None:
    before = (Image.MAX_IMAGE_PIXELS, list(Image.ID))
    read(encode(GREY))
    with pytest.raises(ImageError):
        read(png_header(40_000, 40_000))  # Pillow's own opening would warn or raise another error here
    assert before == (Image.MAX_IMAGE_PIXELS, list(Image.ID))


# --- depth ---


@pytest.mark.parametrize(
    ("source", "white"),
    [
        (np.array([[0, 65535], [257, 514]], np.uint16), 65535),
        (np.array([[0, 65535], [257, 514]], ">u2"), 65535),
        (encode(np.array([[0, 65535], [257, 514]], np.uint16)), 65535),
        (encode(np.array([[0, 65535], [257, 514]], np.uint16), "TIFF"), 65535),
        (tiff(np.array([[0, 65535], [257, 514]], np.uint16), bits=16, order=">"), 65535),
        (tiff(np.array([[65535, 0], [65278, 65021]], np.uint16), bits=16, photometric=0), 65535),
        (tiff(np.array([[-32768, 32767], [-32511, -32254]], np.int16), bits=16, sample_format=2), 65535),
        (Image.fromarray(np.array([[0, 65535], [257, 514]], np.int32)), 65535),
    ],
)
def test_sixteen_bits_keep_their_depth(source: object, white: float) -> None:
    image = read(source)
    assert image.white == white
    assert image.pixels.dtype == np.uint16
    assert image.pixels.tolist() == [[0, 65535], [257, 514]]


def test_twelve_declared_bits() -> None:
    image = read(tiff(np.zeros((2, 2)), bits=12, raw=bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x01])))
    assert image.white == 4095
    assert image.pixels.tolist() == [[0, 4095], [2048, 1]]


@pytest.mark.parametrize(
    "source",
    [
        tiff(np.array([[0, 2**32 - 1], [2**31, 2**30]], np.uint32), bits=32),
        tiff(np.array([[-(2**31), 2**31 - 1], [0, -(2**30)]], np.int32), bits=32, sample_format=2),
        encode(np.array([[0, 1], [0.5, 0.25]], np.float32), "TIFF"),
        tiff(np.array([[1, 0], [0.5, 0.75]], np.float32), bits=32, sample_format=3, photometric=0),
        np.array([[0, 1], [0.5, 0.25]], np.float64),
        np.array([[0, 1], [0.5, 0.25]], np.float16),
        np.array([[-1e-7, 1 + 1e-7], [0.5, 0.25]]),
    ],
)
def test_deeper_and_floating_point_sources(source: object) -> None:
    image = read(source)
    assert image.white == 1
    assert image.pixels.dtype == np.float32
    np.testing.assert_allclose(image.pixels, [[0, 1], [0.5, 0.25]], atol=1e-6)
    assert image.pixels.min() >= 0
    assert image.pixels.max() <= 1


def test_sixteen_bits_fit_like_eight() -> None:
    eight = fit(read(GREY))
    for deep in (GREY.astype(np.uint16) * 257, GREY / 255):
        assert np.abs(fit(read(deep)) - eight).max() < 1.5 / 255


@pytest.mark.parametrize(
    ("most", "bits", "source"),
    [
        (4095, 12, np.uint16),
        (1000, 10, np.uint16),
        (4080, 12, "PNG"),
        (3000, 12, "TIFF"),
        (255, 8, "32 bits"),
        (16383, 14, "32 bits"),
    ],
)
def test_values_far_below_white_are_scaled_by_the_bits_that_hold_them(most: int, bits: int, source: object) -> None:
    pixels = (phantom.draw(2, size=60) / 255 * most).astype(np.uint32)
    pixels[0, 0] = most
    if source == "32 bits":
        found = read(tiff(pixels, bits=32))
    else:
        deep = pixels.astype(np.uint16)
        found = read(encode(deep, str(source)) if isinstance(source, str) else deep)
    (note,) = found.notes
    assert note.startswith(f"no value is above {most} where white is ")
    assert note.endswith(f"it was scaled by {2**bits - 1} instead")
    assert np.abs(found.pixels / found.white - pixels / (2**bits - 1)).max() < 1e-5


def test_what_is_scaled_by_its_declared_depth() -> None:
    for pixels in (np.array([[0, 5000]], np.uint16), np.array([[0, 9]], np.uint8), np.zeros((1, 2), np.uint16)):
        found = read(pixels)
        assert found.notes == ()
        assert found.white == np.iinfo(pixels.dtype).max
    dark = tiff(np.array([[65535, 65000]], np.uint16), bits=16, photometric=0)  # white is zero: nearly black
    assert read(dark).white == 65535
    assert read(np.array([[0, 0.05]])).pixels.max() == pytest.approx(0.05)
    assert read(np.array([[0, 0.05]])).white == 0.0625


# --- modes ---


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit(kind: str) -> None:
    bits = Image.fromarray(GREY).convert("1")
    assert (read(encode(bits, kind)).pixels == np.asarray(bits) * np.uint8(255)).all()


def test_white_is_zero() -> None:
    assert (read(tiff(255 - GREY, bits=8, photometric=0)).pixels == GREY).all()


def test_palette_is_resolved_and_its_transparent_parts_are_black() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    palette.putpalette([10, 10, 10, 200, 200, 200, 90, 90, 90])
    assert read(encode(palette)).pixels.tolist() == [[10, 200, 90]]
    assert read(encode(palette, transparency=1)).pixels.tolist() == [[10, 0, 90]]
    assert read(palette).pixels.tolist() == [[10, 200, 90]]


def test_alpha_lies_over_black() -> None:
    alpha = np.array([[255, 0], [128, 255]], np.uint8)
    grey = np.array([[100, 200], [200, 50]], np.uint8)
    expected = [[100, 0], [100, 50]]
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    rgba = np.dstack([grey, grey, grey, alpha])
    for source in (
        la,
        encode(la),
        Image.fromarray(rgba),
        encode(rgba),
        encode(rgba, "TIFF"),
        rgba,
        la.convert("La"),
        Image.fromarray(rgba).convert("RGBa"),
    ):
        assert np.abs(read(source).pixels.astype(int) - expected).max() <= 1
    assert np.abs(read(rgba.astype(np.uint16) * 257).pixels.astype(int) - expected).max() <= 1
    assert np.abs(read(rgba / 255).pixels.astype(int) - expected).max() <= 1
    assert read(encode(Image.fromarray(grey), transparency=200)).pixels.tolist() == [[100, 0], [0, 50]]


def test_other_colour_models_become_luma() -> None:
    rgb = Image.fromarray(np.stack([GREY, GREY // 2, 255 - GREY], 2))
    luma = np.asarray(rgb.convert("L"), int)
    for source in (rgb, encode(rgb), encode(rgb, "TIFF"), np.asarray(rgb)):
        assert (read(source).pixels == luma).all()
    for source in (rgb.convert("CMYK"), encode(rgb.convert("CMYK"), "TIFF"), rgb.convert("YCbCr"), rgb.convert("HSV")):
        assert np.abs(read(source).pixels - luma).mean() < 4
    assert np.abs(read(encode(rgb.convert("CMYK"), "JPEG", quality=100)).pixels - luma).mean() < 4
    deep = read(np.asarray(rgb).astype(np.uint16) * 257)
    assert (deep.pixels == luma).all()
    assert deep.white == 255


def test_colour_is_the_mean_chroma() -> None:
    assert read(np.repeat(GREY[..., None], 3, 2)).colour == 0
    red = np.zeros((50, 70, 3), np.uint8)
    red[..., 0] = 102
    assert read(red).colour == pytest.approx(0.4)
    assert read(red.astype(np.uint16) * 257).colour == pytest.approx(0.4)
    assert read(red / 255).colour == pytest.approx(0.4)
    half = red.copy()
    half[:25] = 60
    assert read(encode(half)).colour == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.zeros((40, 60), np.uint8)
    upright[:10, :15] = 255
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }
    stored = np.ascontiguousarray(turned[orientation])
    for kind, options in (("JPEG", {"quality": 100}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        image = read(encode(stored, kind, exif=exif, **options))
        assert image.size == (40, 60) == image.pixels.shape
        assert np.abs(image.pixels.astype(int) - upright).mean() < 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own words
def test_damaged_exif_is_left_aside() -> None:
    assert read(encode(GREY, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).size == GREY.shape


def test_first_of_several_pictures() -> None:
    first = Image.fromarray(GREY)
    for kind in ("TIFF", "PNG", "WEBP", "GIF"):
        image = read(encode(first, kind, save_all=True, append_images=[first.rotate(180)], lossless=True))
        assert image.notes == ("the file holds several pictures; the first is used",)
        assert (image.pixels == GREY).all()


class Wrapped:
    """Like an array of another library."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return GREY


def test_what_can_be_made_an_array() -> None:
    found = read(Wrapped())
    assert found.name == "array"
    assert (found.pixels == GREY).all()


# --- false colour ---

MAPS = ("viridis", "plasma", "inferno", "magma", "cividis", "jet", "hot", "bone")


@pytest.mark.parametrize("reverse", ["", "_r"])
@pytest.mark.parametrize("name", MAPS)
def test_false_colour_is_undone(name: str, reverse: str) -> None:
    colours = pytest.importorskip("matplotlib").colormaps[name + reverse]
    for seed in range(3):
        grey = phantom.draw(seed, opacity=seed == 1, size=300)
        rgba = colours(grey, bytes=True)
        for source in (
            encode(rgba),
            rgba,
            rgba / 255,
            encode(Image.fromarray(rgba).convert("RGB"), "JPEG", quality=90),
        ):
            found = read(source)
            assert found.notes == (f"it was in false colour ({name}{reverse}), which was undone",)
            assert found.colour == 0
            close = 6 if isinstance(source, bytes) and source[:2] == b"\xff\xd8" else 2
            assert np.abs(found.pixels.astype(int) - grey).mean() < close


def test_other_colours_are_not_taken_for_false_colour() -> None:
    grey = phantom.draw(4, size=300)
    tinted = np.stack([grey // 2, grey * 0.7, grey], 2).astype(np.uint8)
    marked = np.stack([grey] * 3, 2)
    marked[20:60, 20:120] = (255, 220, 0)
    photograph = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    for pixels in (tinted, marked, photograph):
        assert read(pixels).notes == ()


# --- scale ---


def test_only_far_larger_jpegs_are_decoded_at_a_reduced_scale() -> None:
    large = np.repeat(np.repeat(phantom.draw(0, size=210), 4, 0), 4, 1)  # (840, 840)
    data = encode(large, "JPEG")
    assert read(data, model_size=71).pixels.shape == (840, 840)
    image = read(data, model_size=70)
    assert image.pixels.shape == (420, 420)
    assert image.size == (840, 840)
    assert np.abs(fit(image, 70) - fit(read(large), 70)).mean() < 0.004
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(encode(large[:, :800], "JPEG", exif=exif), model_size=60)
    assert turned.pixels.shape == (400, 420)
    assert turned.size == (800, 840)
    with Image.open(io.BytesIO(data)) as image:
        assert read(image, model_size=70).pixels.shape == (840, 840)  # a caller's image is not changed


def test_fit_is_close_to_the_plain_bicubic_squash() -> None:
    large = phantom.draw(5, size=1400)[:, :1100]
    plain = np.asarray(Image.fromarray(large).resize((224, 224), Image.Resampling.BICUBIC), int)
    fitted = fit(read(large))
    assert fitted.shape == (224, 224, 1)
    assert fitted.dtype == np.float32
    steps = fitted[..., 0] * 255
    assert np.abs(steps - np.rint(steps)).max() < 1e-4  # 8-bit images land on k / 255
    assert np.abs(steps - plain).mean() < 0.4
    assert np.abs(steps - plain).max() <= 8


def test_fit_leaves_an_image_of_the_right_size_as_it_is() -> None:
    pixels = phantom.draw(1, size=64)
    assert (fit(read(pixels), 64)[..., 0] == pixels / np.float32(255)).all()


def test_fit_of_deep_images_stays_in_range() -> None:
    edge = np.zeros((40, 40), np.float32)
    edge[:, 20:] = 1
    for image in (read(edge), read((edge * 65535).astype(np.uint16))):
        fitted = fit(image, 16)
        assert fitted.min() == 0
        assert fitted.max() == 1
        assert fitted.shape == (16, 16, 1)


# --- what is not an image ---


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"just some text", "bytes: it is not a JPEG, PNG, TIFF, BMP, WebP, GIF or DICOM file"),
        (b"PK\3\4 and so on", "bytes: it is a zip archive, not a JPEG, PNG, TIFF, BMP, WebP, GIF or DICOM file"),
        (b"%PDF-1.7", "it is a PDF, not a JPEG"),
        (b"GIF89a", "it is damaged or not complete"),
        (b"\x1f\x8b\x08", "it is a gzip archive, not a JPEG"),
        (b"<!doctype html>", "it is a web page or XML, not a JPEG"),
        (b"MM\0+\0\x08\0\0", "it is not a JPEG"),  # Pillow would take its directory for another one than libtiff does
        (b"\0\0\0\x18ftypheic", "it is HEIC, AVIF or video, not a JPEG"),
        (png_header(40_000, 40_000), "it has 40000 x 40000 pixels, more than the 30,000,000 that are read"),
        (png_header(1, 100_000), "it is a strip of 100000 x 1 pixels, not a radiograph"),
        (np.zeros((1, 100_000), np.uint8), "array: it is a strip of 1 x 100000 pixels, not a radiograph"),
        (png_header(200, 200), "it is cut short"),
        (encode(GREY, "JPEG")[:2000], "it is cut short"),
        (encode(GREY)[:2000], "it is cut short"),
        (encode(GREY, "WEBP")[:500], "it is damaged or not complete ("),
        (encode(GREY, "BMP")[:500], "it is cut short"),
        (b"\xff\xd8\xff" + bytes(100), "it is damaged or not complete ("),
        (encode(GREY, "JPEG", progressive=True) + b"\xff\xda" * 30, "it is a JPEG of 36 scans; at most 32 are read"),
        (np.zeros((0, 5), np.uint8), "array: it has no pixels (0 x 5)"),
        (
            np.zeros(5, np.uint8),
            "an array must have the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Received: shape=(5,)",
        ),
        (np.zeros((5, 5, 2), np.uint8), "Received: shape=(5, 5, 2)"),
        (np.zeros((1, 5, 5, 1), np.uint8), "Received: shape=(1, 5, 5, 1)"),
        (
            np.zeros((5, 5), np.int64),
            "an array must be uint8, uint16, or floating point in [0, 1]. Received: dtype=int64",
        ),
        (np.zeros((5, 5), bool), "Received: dtype=bool"),
        (np.zeros((5, 5), complex), "Received: dtype=complex128"),
        (np.full((5, 5), None), "Received: dtype=object"),
        (np.full((5, 5), "a"), "Received: dtype=<U1"),
        (np.array([[0.5, np.nan]]), "array: it holds NaN values"),
        (
            np.array([[0.5, np.inf]]),
            "floating-point pixels must lie in [0, 1]; divide by the value that means white. Received: from 0.5 to inf",
        ),
        (np.array([[0, 255.0]]), "Received: from 0 to 255"),
        (np.array([[-1.0, 1.0]]), "Received: from -1 to 1"),
        (encode(np.full((4, 4), 7, np.float32), "TIFF"), "bytes: floating-point pixels must lie in [0, 1]"),
        (Image.fromarray(np.array([[0, 70_000]], np.int32)), "image: it holds values outside 16 bits: from 0 to 70000"),
        (Image.fromarray(np.array([[-5, 7]], np.int32)), "image: it holds values outside 16 bits: from -5 to 7"),
    ],
)
def test_what_is_no_image_is_named(source: object, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        read(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind"), [(None, "NoneType"), (3, "int"), ([GREY], "list"), (True, "bool"), ({"path": "x"}, "dict")]
)
def test_what_is_no_source_is_a_type_error(source: object, kind: str) -> None:
    with pytest.raises(TypeError) as caught:
        read(source)
    assert (
        str(caught.value)
        == "a source must be a path, a URL, bytes, a binary file object, a PIL image, a NumPy array or a pydicom "
        f"dataset. Received: {kind}"
    )


def test_limits() -> None:
    with pytest.raises(ImageError, match="it has 320 x 300 pixels, more than the 90,000 that are read"):
        read(GREY, max_pixels=90_000)


def test_tiles_far_larger_than_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    grey, unclear = GREY[100:140, 100:150], "bytes: it says in no usable way how large its tiles are"
    monkeypatch.setattr("cxrlib.images.decode.MAX_PIXELS", 10_000)
    for sides in ([(322, 4, 64), (323, 4, 64)], [(322, 3, 112), (323, 3, 112)], [(322, 16, 64), (323, 4, 64)]):
        assert (read(tiled(grey, *sides)).pixels == grey).all()
    with pytest.raises(ImageError, match="bytes: its tiles of 160 x 160 pixels are far larger than its 40 x 50 pixels"):
        read(tiled(grey, (322, 4, 160), (323, 4, 160)), max_pixels=10_000)
    with pytest.raises(ImageError, match="its tiles of 8000 x 16 pixels"):  # several of them, side by side
        read(tiled(GREY[:20, :16], (322, 4, 16), (323, 4, 8000)), max_pixels=10_000)
    with (
        Image.open(io.BytesIO(tiled(grey, (322, 4, 160), (323, 4, 160)))) as image,
        pytest.raises(ImageError, match="image: its tiles of 160 x 160"),
    ):
        read(image, max_pixels=10_000)
    read(tiled(grey, (322, 4, 112), (323, 4, 112)), max_pixels=10_000)  # 12,544 pixels: padding is allowed
    for twice in (
        [(322, 4, 160), (322, 4, 16), (323, 4, 160), (323, 4, 16)],
        [(322, 17, 160), (323, 17, 160)],
        [(322, 1, 160), (323, 4, 160)],
    ):
        # libtiff takes the first, Pillow the last; libtiff knows kinds of numbers that Pillow passes over
        with pytest.raises(ImageError, match=unclear):
            read(tiled(grey, *twice), max_pixels=10_000)


def test_what_python_would_decode_byte_by_byte() -> None:
    with pytest.raises(ImageError, match="bytes: it is a run-length encoded BMP; save it uncompressed, or as PNG"):
        read(run_length_encoded())
    with (
        Image.open(io.BytesIO(run_length_encoded())) as image,
        pytest.raises(ImageError, match="image: it is a run-length encoded BMP"),
    ):
        read(image)
    with Image.open(io.BytesIO(run_length_encoded())) as image:
        image.load()
        assert (read(image).pixels == 128).all()  # the caller has decoded it


def test_a_closed_image() -> None:
    image = Image.open(io.BytesIO(encode(GREY)))
    image.close()
    with pytest.raises(ImageError, match="image: it is damaged or not complete"):
        read(image)


def test_any_bytes_give_an_image_or_an_image_error() -> None:
    rng = random.Random(0)
    small = Image.fromarray(GREY[::8, ::8])
    seeds = [encode(small, kind) for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")] + [
        encode(small.convert("RGB"), "JPEG", progressive=True)
    ]
    seeds += [
        encode(small.convert("P")),
        encode(small.convert("RGBA")),
        encode(small, "TIFF", compression="tiff_adobe_deflate"),
    ]
    images = 0
    for _ in range(1500):
        data = bytearray(rng.choice(seeds))
        if rng.random() < 0.2:
            data = data[: rng.choice((4, 12, 40))] + rng.randbytes(200)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        with contextlib.suppress(ImageError):
            fitted = fit(read(bytes(data[: rng.choice((None, len(data) // 2))])), 32)
            images += 1
            assert fitted.shape == (32, 32, 1)
            assert 0 <= fitted.min() <= fitted.max() <= 1
    assert images > 50


# --- the image itself ---


@pytest.mark.parametrize("pixels", [np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2)), np.zeros((0, 2), np.uint8)])
def test_image_checks_its_picture(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"picture must be \(H, W\) of uint8, uint16 or float32. Received: shape="):
        Radiograph(pixels, 255.0, "image", (2, 2))
    with pytest.raises(ValueError, match=r"picture must be a PIL image of mode 'L'. Received: mode='RGB'"):
        Radiograph(Image.new("RGB", (2, 2)), 255.0, "image", (2, 2))
    with pytest.raises(ValueError, match=r"white must be a positive number\. Received: white=0"):
        Radiograph(np.zeros((2, 2), np.uint8), 0, "image", (2, 2))


def test_an_image_keeps_its_pixels_when_the_caller_changes_the_source() -> None:
    pixels = np.arange(300 * 200, dtype=np.uint32).reshape(300, 200).astype(np.uint8)
    file, image, array = io.BytesIO(), Image.fromarray(pixels.copy()), pixels.copy()
    image.save(file, "PNG")
    images = [read(source) for source in (file.getvalue(), image, array)]
    image.paste(0, (0, 0, 200, 300))
    array[:] = 0
    for image in images:
        assert (fit(image, 64) == fit(images[0], 64)).all()
        assert (image.pixels == pixels).all()
        assert not image.pixels.flags.writeable


# --- real images ---


@pytest.mark.skipif(not (SHARED / "data" / "native").is_dir(), reason="needs the images of CXRLIB_SHARED")
def test_native_images_agree_with_their_small_copies_and_across_sources() -> None:
    paths = find(SHARED / "data" / "native")[::10]
    assert len(paths) >= 10
    for path in paths:
        fitted = fit(read(path))
        with Image.open(path) as image:
            assert (fit(read(image)) == fitted).all()
            assert (fit(read(np.asarray(image))) == fitted).all()
        copy = SHARED / "data" / "chest_xray" / "train" / path.parent.name / path.name
        assert np.abs(fitted - fit(read(copy))).mean() < 4 / 255  # what JPEG compression of the copy costs


# --- empty bars ---

PADS = [((0, 0), (60, 60)), ((80, 0), (0, 0)), ((30, 40), (50, 20)), ((0, 0), (0, 70))]


@pytest.mark.parametrize("grey", [0, 40, 255])
@pytest.mark.parametrize("pad", PADS)
def test_empty_bars_are_cut_off(pad: tuple[tuple[int, int], tuple[int, int]], grey: int) -> None:
    bare = phantom.draw(3, opacity=True, size=250)
    padded = np.pad(bare, pad, constant_values=grey)
    (top, _), (left, _) = pad
    for source in (
        padded,
        padded.astype(np.uint16) * 257,
        padded / np.float32(255),
        Image.fromarray(padded),
        encode(padded),
    ):
        image = read(source)
        assert image.content == (left, top, left + 250, top + 250)
        assert image.size == padded.shape
        assert fit(image) == pytest.approx(fit(read(bare)), abs=1.5 / 255)


def test_compressed_bars_are_cut_off() -> None:
    bare = phantom.draw(3, size=250)
    image = read(encode(np.pad(bare, ((0, 0), (64, 64))), "JPEG", quality=75))
    assert image.content is not None
    assert image.content[0] == pytest.approx(64, abs=8)
    assert np.abs(fit(image) - fit(read(bare))).mean() < 0.05


def test_bars_of_an_image_that_is_decoded_at_a_reduced_scale() -> None:
    bare = np.asarray(Image.fromarray(phantom.draw(3, size=500)).resize((2000, 2000)))
    image = read(encode(np.pad(bare, ((0, 0), (400, 400))), "JPEG"), model_size=32)
    assert image.pixels.shape != image.size == (2000, 2800)
    assert image.content == pytest.approx((400, 0, 2400, 2000), abs=16)
    assert np.abs(fit(image, 32) - fit(read(bare), 32)).mean() < 0.02


def test_what_is_left_alone() -> None:
    image = phantom.draw(3, size=250)
    assert read(image).content is None
    assert read(np.pad(image, ((0, 0), (6, 6)))).content is None  # narrow bars
    assert read(np.pad(image, 200)).content is None  # hardly an image in it: that is the gate's to judge
    assert read(np.zeros((90, 90), np.uint8)).content is None
    assert read(np.zeros((1, 1), np.uint8)).content is None
    assert read(np.tile(np.arange(200, dtype=np.uint8), (90, 1))).content is None  # every column is of one grey
    shaded = np.hstack([np.tile(np.arange(80, dtype=np.uint8), (250, 1)), image])
    assert read(shaded).content is None  # air beside the patient
    marked = np.pad(image, ((0, 0), (60, 60)))
    marked[20:30, 10:20] = marked[20:30, 350:360] = 255  # letters in the bars
    assert read(marked).content is None


@pytest.mark.parametrize("seed", range(40))
def test_a_bar_ends_where_its_lines_are_not_of_one_grey(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = random.integers(1, 90, 2)
    image = np.pad(
        random.integers(0, 256, size, np.uint8),
        random.integers(0, 40, (2, 2)),
        constant_values=int(random.integers(256)),
    )
    image = np.clip(image + random.integers(0, 3, image.shape), 0, 255).astype(np.uint8)  # as compression leaves bars

    def bar(lines: np.ndarray) -> int:
        return next((n for n, _ in enumerate(lines) if np.ptp(lines[: n + 1]) > 2), len(lines))

    (top, bottom), (left, right) = ((bar(lines), len(lines) - bar(lines[::-1])) for lines in (image, image.T))
    kept = (right - left) * (bottom - top) / image.size
    wanted = (left, top, right, bottom) if left < right and top < bottom and 1 / 4 <= kept <= 6 / 7 else None
    assert read(image).content == read(Image.fromarray(image)).content == wanted


def test_what_is_computed_once_holds_up_no_other_image() -> None:
    """As `functools.cached_property` did before Python 3.12, for ever in a child forked meanwhile."""
    begun = threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.may_end, self.calls = threading.Event(), 0

        @_once
        def value(self) -> int:
            self.calls += 1
            begun.set()
            return self.calls if self.may_end.wait(10) else 0

    first, second = Slow(), Slow()
    second.may_end.set()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: first.value)
        assert begun.wait(10)
        assert second.value == 1
        assert not waiting.done()
        first.may_end.set()
        assert waiting.result() == 1
    assert (first.value, first.calls) == (1, 1)
