"""What holds for any image at all: the decoder and the fit, on drawn arrays, files and headers."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrlib.images.decode import Radiograph, fit, read
from cxrlib.images.sources import ImageError, name_of

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

bounded = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

SIDES = st.integers(1, 40)
SHAPES = st.tuples(SIDES, SIDES).filter(lambda shape: max(shape) <= 20 * min(shape))
GREY = SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape))
DEEP = SHAPES.flatmap(lambda shape: hnp.arrays(np.uint16, shape))
BRIGHT = DEEP.map(lambda pixels: np.clip(pixels, 4096, 65535 - 4096))  # enough of the range, inverted too
UNIT = SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
COLOUR = st.tuples(SHAPES, st.sampled_from([3, 4])).flatmap(lambda s: hnp.arrays(np.uint8, (*s[0], s[1])))


def sound(image: Radiograph, size: int = 24) -> np.ndarray:
    """Check what every image promises, and give what the network sees of it."""
    assert image.pixels.ndim == 2
    assert image.pixels.dtype in (np.uint8, np.uint16, np.float32)
    assert not image.pixels.flags.writeable
    assert image.pixels.min() >= 0
    assert image.pixels.max() <= image.white
    assert 0 <= image.colour <= 1
    fitted = fit(image, size)
    assert fitted.shape == (size, size, 1)
    assert fitted.dtype == np.float32
    assert fitted.min() >= 0
    assert fitted.max() <= 1
    return fitted


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@bounded
@given(st.one_of(GREY, DEEP, UNIT, COLOUR), st.integers(1, 50))
def test_every_array_of_the_kinds_that_are_read_makes_a_sound_image(pixels: np.ndarray, size: int) -> None:
    image = read(pixels)
    assert image.size == pixels.shape[:2]
    sound(image, size)


@bounded
@given(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes()),
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
    )
)
def test_any_array_at_all_makes_an_image_or_an_image_error(pixels: np.ndarray) -> None:
    with contextlib.suppress(ImageError), np.errstate(all="ignore"):
        sound(read(pixels))


@bounded
@given(GREY, st.sampled_from(["PNG", "BMP", "TIFF", "TIFF lzw", "TIFF deflate", "WEBP"]))
def test_lossless_files_give_back_the_array(pixels: np.ndarray, kind: str) -> None:
    kind, _, packing = kind.partition(" ")
    options: dict[str, Any] = {
        "WEBP": {"lossless": True},
        "TIFF": {"compression": f"tiff_{packing}" if packing else "raw"},
    }.get(kind, {})
    if packing == "deflate":
        options = {"compression": "tiff_adobe_deflate"}
    image = read(encode(Image.fromarray(pixels).convert("RGB" if kind == "WEBP" else "L"), kind, **options))
    assert np.array_equal(image.pixels, pixels)
    assert (image.white, image.size, image.colour) == (255.0, pixels.shape, 0.0)


@bounded
@given(BRIGHT, st.sampled_from(["PNG", "TIFF"]))
def test_sixteen_bit_files_give_back_the_array(pixels: np.ndarray, kind: str) -> None:
    image = read(encode(Image.fromarray(pixels), kind))
    assert np.array_equal(image.pixels, pixels)
    assert image.white == 65535.0


@bounded
@given(GREY, st.integers(4, 32))
def test_depth_does_not_matter(pixels: np.ndarray, size: int) -> None:
    pixels = (
        pixels // 5 + 100
    )  # the filter overshoots at edges, and 8 bits cannot hold what lies beyond black and white
    eight = fit(read(pixels), size)
    for deep in (pixels.astype(np.uint16) * np.uint16(257), pixels.astype(np.float32) / np.float32(255)):
        assert np.abs(fit(read(deep), size) - eight).max() <= 1.6 / 255  # 8 bits are rounded after either axis


@bounded
@given(GREY, st.integers(4, 32))
def test_eight_bit_images_land_on_multiples_of_1_255(pixels: np.ndarray, size: int) -> None:
    steps = fit(read(pixels), size) * np.float32(255)
    assert np.abs(steps - np.rint(steps)).max() < 1e-4


@bounded
@given(st.integers(4096, 65535), SHAPES, st.integers(1, 40))
def test_an_even_image_stays_even(level: int, shape: tuple[int, int], size: int) -> None:
    fitted = fit(read(np.full(shape, level, np.uint16)), size)
    assert np.abs(fitted - level / 65535).max() < 1e-5


@bounded
@given(BRIGHT, st.integers(1, 32))
def test_inverting_before_or_after_is_the_same(pixels: np.ndarray, size: int) -> None:
    once = fit(read(pixels), size)
    assert np.abs((1 - fit(read(65535 - pixels), size)) - once).max() < 1e-4


@bounded
@given(GREY, st.integers(1, 8))
def test_orientation_turns_without_loss(pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = read(encode(Image.fromarray(pixels), "PNG", exif=exif))
    assert turned.size == turned.pixels.shape == (pixels.shape if orientation < 5 else pixels.shape[::-1])
    assert np.array_equal(np.sort(turned.pixels, axis=None), np.sort(pixels, axis=None))


@bounded
@given(COLOUR)
def test_grey_stored_as_colour_is_the_same_image(pixels: np.ndarray) -> None:
    grey = np.ascontiguousarray(pixels[..., 0])
    image = read(np.stack([grey] * 3, axis=2))
    assert np.array_equal(image.pixels, grey)
    assert image.colour == 0


@bounded
@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"BM", b"RIFF\0\0\0\0WEBP"]
    ),
)
def test_any_bytes_make_an_image_or_an_image_error(data: bytes, start: bytes) -> None:
    with contextlib.suppress(ImageError):
        sound(read(start + data))


@bounded
@given(st.text(max_size=80))
def test_any_text_is_a_path_that_is_read_or_named(text: str) -> None:
    if text.partition("://")[0].lower() not in ("http", "https", "file"):
        with pytest.raises(ImageError) as caught:
            read(f"no-such-folder/{text}")
        assert "\n" not in str(caught.value).removeprefix(f"no-such-folder/{text}")


@bounded
@given(
    *[st.text("abcXYZ09-_.%", min_size=1, max_size=12)] * 2,
    st.text("abc/XYZ09-_.@", max_size=30),
    st.text("abc=&@/:", max_size=12),
)
def test_no_secret_of_an_address_is_named(user: str, word: str, path: str, query: str) -> None:
    named = name_of(f"https://{user}:S3CRET{word}@example.org/{path}?S3CRET{query}#S3CRET")
    assert "S3CRET" not in named
    assert named.startswith("https://")


# --- DICOM ---


def dicom(pixels: np.ndarray, bits: int, **tags: Any) -> Any:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
    data.PixelData = pixels.astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    return data


DEPTHS = st.integers(1, 16)
WINDOWS = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"WindowCenter": st.integers(-70000, 70000), "WindowWidth": st.integers(1, 70000)},
        optional={"VOILUTFunction": st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"])},
    ),
)


@bounded
@given(DEEP, DEPTHS, WINDOWS, st.booleans())
def test_a_radiograph_is_sound_and_keeps_the_order_of_its_values(
    pixels: np.ndarray, bits: int, window: dict[str, Any], signed: bool
) -> None:
    image = read(dicom(pixels, bits, PixelRepresentation=int(signed), **window))
    sound(image)
    stored = (pixels & (2**bits - 1)).astype(np.int64).ravel()
    stored = np.where(stored >= 2 ** (bits - 1), stored - 2**bits, stored) if signed else stored
    order = np.argsort(stored, kind="stable")
    assert (np.diff(image.pixels.ravel()[order].astype(np.int64)) >= 0).all()
    assert image.white == (255 if bits <= 8 else 65535)


@bounded
@given(DEEP, DEPTHS, WINDOWS)
def test_monochrome1_is_the_negative_of_monochrome2(pixels: np.ndarray, bits: int, window: dict[str, Any]) -> None:
    one, two = (read(dicom(pixels, bits, PhotometricInterpretation=f"MONOCHROME{k}", **window)) for k in (1, 2))
    assert (
        np.abs(one.pixels.astype(np.int64) + two.pixels - int(two.white)).max() <= 1
    )  # halves are rounded to even on either side


@bounded
@given(
    GREY,
    st.floats(allow_nan=False, width=32),
    st.floats(allow_nan=False, width=32),
    st.floats(width=32),
    st.floats(width=32),
)
def test_any_numbers_in_a_header_make_an_image_or_an_image_error(
    pixels: np.ndarray, slope: float, intercept: float, centre: float, width: float
) -> None:
    data = dicom(pixels, 12)
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    for tag, value in ((0x00281053, slope), (0x00281052, intercept), (0x00281050, centre), (0x00281051, width)):
        text = f"{value:g}"[:16].encode()
        data[tag] = RawDataElement(Tag(tag), "DS", len(text), text, 0, False, True)
    with contextlib.suppress(ImageError):
        sound(read(data))
