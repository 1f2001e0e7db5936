"""DICOM: the same bits as a picture of the same image; the standard's steps in the standard's order."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrlib.images import dicom, phantom
from cxrlib.images.decode import fit, read
from cxrlib.images.sources import ImageError, name_of

pydicom = pytest.importorskip("pydicom")
imagecodecs = pytest.importorskip("imagecodecs")
from drawn_dicom import dataset, saved  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

GREY = np.ascontiguousarray(phantom.draw(1, size=160)[:, :150])  # (160, 150) uint8
DEEP = (GREY.astype(np.uint16) * 16 + np.arange(150, dtype=np.uint16) % 16).astype(np.uint16)  # 12 bits


def jpeg(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def lut(first: int, depth: int, entries: list[int], *, packed: bool = False) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, depth]
    item.LUTData = struct.pack(f"<{len(entries)}{'B' if packed else 'H'}", *entries)
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US" if first >= 0 else "SS", "OW"
    return item


# --- the same image ---


def test_eight_bits_give_the_bits_of_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(saved(dataset(GREY)))
    expected = fit(read(GREY))
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), dataset(GREY), pydicom.dcmread(path)):
        image = read(source)
        assert (image.pixels == GREY).all()
        assert image.pixels.dtype == np.uint8
        assert image.white == 255
        assert not image.pixels.flags.writeable
        assert (fit(image) == expected).all()


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("pixels", [GREY, DEEP * np.uint16(16)])
def test_plain_transfer_syntaxes(syntax: str, pixels: np.ndarray) -> None:
    image = read(saved(dataset(pixels, syntax=syntax)))
    assert (image.pixels == pixels).all()
    assert image.white == np.iinfo(pixels.dtype).max


def test_compressed_transfer_syntaxes() -> None:
    coded = jpeg(GREY, quality=90)
    image = read(saved(dataset(GREY, syntax=JPEGBaseline8Bit, coded=coded)))
    assert (image.pixels == read(coded).pixels).all()
    image = read(saved(dataset(GREY, syntax=JPEG2000Lossless, coded=jpeg(GREY, "JPEG2000", no_jp2=True))))
    assert (image.pixels == GREY).all()
    run_lengths = dataset(DEEP, BitsStored=12)
    run_lengths.compress(RLELossless, generate_instance_uid=False)
    assert np.abs(read(saved(run_lengths)).pixels / 65535 - DEEP / 4095).max() < 1e-5


def lossless(pixels: np.ndarray, bits: int, kind: str) -> bytes:
    if kind == "j2k":
        return imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, bitspersample=bits)
    codes = pixels.view(f"u{pixels.dtype.itemsize}") & np.array(2**bits - 1, f"u{pixels.dtype.itemsize}")
    return (
        imagecodecs.jpegls_encode(codes)
        if kind == "jls"
        else imagecodecs.jpeg8_encode(codes, lossless=True, predictor=int(kind), bitspersample=bits)
    )


@pytest.mark.parametrize(
    ("syntax", "kind"),
    [
        (JPEGLosslessSV1, "1"),
        *((JPEGLossless, str(k)) for k in range(1, 8)),
        (JPEGLSLossless, "jls"),
        (JPEG2000Lossless, "j2k"),
    ],
)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_syntaxes_give_back_each_pixel(syntax: str, kind: str, bits: int, signed: bool) -> None:
    rng = np.random.default_rng(bits)
    codes = GREY.astype(np.int64) << bits >> 8 | rng.integers(0, 2 ** (bits - 8), GREY.shape)
    codes[:2, :2] = [[0, 2**bits - 1], [2**bits - 1, 0]]
    pixels = (codes - signed * 2 ** (bits - 1)).astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    image = read(saved(dataset(pixels, syntax=syntax, coded=lossless(pixels, bits, kind), BitsStored=bits)))
    assert (image.pixels == read(dataset(pixels, BitsStored=bits)).pixels).all()
    assert len(np.unique(image.pixels)) > 200


def test_lossy_syntaxes() -> None:
    plain = read(dataset(DEEP, BitsStored=12)).pixels.astype(np.int64)
    for syntax, coded, most in (
        (JPEGExtended12Bit, imagecodecs.jpeg8_encode(DEEP, 98, bitspersample=12), 200),
        (JPEGLSNearLossless, imagecodecs.jpegls_encode(DEEP, level=3), 3),
        (JPEG2000, imagecodecs.jpeg2k_encode(DEEP, level=60, codecformat="j2k", bitspersample=12), 60),
    ):
        image = read(saved(dataset(DEEP, syntax=syntax, coded=coded, BitsStored=12)))
        assert 0 < np.abs(image.pixels - plain).max() <= 17 * most
    image = read(
        saved(dataset(GREY, syntax=JPEGExtended12Bit, coded=jpeg(GREY, quality=90)))
    )  # it may hold 8 bits, too
    assert (image.pixels == read(jpeg(GREY, quality=90)).pixels).all()


@pytest.mark.parametrize("signed", [False, True])
def test_white_that_was_rounded_beyond_the_bits_stored_is_white(signed: bool) -> None:
    """Ten bits in JPEG's twelve: about a burnt-in letter the coded values overshoot."""
    letter = np.zeros((64, 64), np.uint16)
    letter[20:41, 22:39] = 1023
    if signed:
        pixels, syntax = letter.astype(np.int16) - 512, JPEG2000
        coded = imagecodecs.jpeg2k_encode(pixels, level=72, codecformat="j2k", reversible=False, bitspersample=16)
        assert imagecodecs.jpeg2k_decode(coded).max() > 511
    else:
        pixels, syntax, coded = letter, JPEGExtended12Bit, imagecodecs.jpeg8_encode(letter, 60, bitspersample=12)
        assert imagecodecs.jpeg8_decode(coded).max() > 1023
    image = read(saved(dataset(pixels, syntax=syntax, coded=coded, BitsStored=10)))
    assert image.pixels[letter > 0].min() > 50_000
    assert image.pixels[letter == 0].max() < 15_000


def test_jpeg_2000_out_of_its_boxes_and_in_tiles() -> None:
    for options in (
        {},
        {"no_jp2": True, "tile_size": (64, 64)},
        {"no_jp2": True, "precinct_size": (64, 64), "codeblock_size": (16, 16)},
    ):
        assert (
            read(saved(dataset(GREY, syntax=JPEG2000Lossless, coded=jpeg(GREY, "JPEG2000", **options)))).pixels == GREY
        ).all()


def test_all_of_pydicoms_own_images() -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not (folder / "MR_small.dcm").is_file():
        pytest.skip("this pydicom comes without its test files")
    plain = read(folder / "MR_small.dcm").pixels
    for name in (
        "MR_small_RLE",
        "MR_small_implicit",
        "MR_small_padded",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
    ):
        assert (read(folder / f"{name}.dcm").pixels == plain).all()
    for name in (
        "693_J2KI",
        "J2K_pixelrep_mismatch",
        "JPEG-lossy",
        "JPEG2000",
        "JPEGLSNearLossless_08",
        "JPEGLSNearLossless_16",
        "JPGExtended",
    ):
        assert read(folder / f"{name}.dcm").pixels.std() > 0


def test_without_preamble_or_transfer_syntax() -> None:
    whole = saved(dataset(GREY))
    assert (read(whole[132:]).pixels == GREY).all()
    bare = dataset(GREY)
    del bare.file_meta
    assert (read(bare).pixels == GREY).all()
    implicit = saved(dataset(GREY, syntax=ImplicitVRLittleEndian))
    body = implicit[implicit.index(b"\x08\0\x16\0") :]
    assert (read(body).pixels == GREY).all()


def test_a_dataset_is_left_as_it_is() -> None:
    data = dataset(DEEP, BitsStored=12, PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=1000)
    before = data.to_json()
    read(data)
    assert data.to_json() == before


# --- stored value -> grey ---


def test_bits_stored_is_the_declared_depth() -> None:
    image = read(dataset(DEEP, BitsStored=12))
    assert image.white == 65535
    assert np.abs(image.pixels / 65535 - DEEP / 4095).max() < 1e-5
    assert np.abs(fit(image) - fit(read(GREY))).max() < 2 / 255
    six = GREY // 4
    image = read(dataset(six, BitsStored=6))
    assert image.white == 255
    assert np.abs(image.pixels / 255 - six / 63).max() <= 0.5 / 255


def test_other_bits_are_masked_and_high_bits_shifted() -> None:
    expected = read(dataset(DEEP, BitsStored=12)).pixels
    overlay = DEEP | (np.uint16(1) << 15)
    assert (read(dataset(overlay, BitsStored=12)).pixels == expected).all()
    assert (read(dataset(DEEP << 4, BitsStored=12, HighBit=15)).pixels == expected).all()
    assert (read(dataset(DEEP, BitsStored=12, HighBit=99)).pixels == expected).all()  # nonsense is left aside


def test_signed_values() -> None:
    signed = DEEP.astype(np.int16) - 2048
    assert (read(dataset(signed, BitsStored=12)).pixels == read(dataset(DEEP, BitsStored=12)).pixels).all()


def test_monochrome1_is_inverted() -> None:
    assert (read(dataset(255 - GREY, PhotometricInterpretation="MONOCHROME1")).pixels == GREY).all()


def test_window_comes_before_inversion() -> None:
    narrow = {"WindowCenter": 1000, "WindowWidth": 501}
    plain = read(dataset(DEEP, BitsStored=12, **narrow)).pixels
    inverted = read(dataset(DEEP, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **narrow)).pixels
    assert (inverted == 65535 - plain).all()
    assert plain[DEEP < 749].max() == 0
    assert plain[DEEP > 1250].min() == 65535


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT"])
@pytest.mark.parametrize("slope", [1, 0.5, -2])
def test_windows_agree_with_pydicom(function: str, slope: float) -> None:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    codes = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    data = dataset(
        codes,
        BitsStored=12,
        RescaleSlope=slope,
        RescaleIntercept=-100,
        WindowCenter=[slope * 2000, 1],
        WindowWidth=[900, 1],
        VOILUTFunction=function,
    )
    theirs = apply_voi_lut(apply_modality_lut(codes, data), data)
    low, high = sorted(np.array([0, 4095]) * slope - 100)
    expected = (
        (theirs - low) / (high - low) if slope > 0 else (high - theirs) / (high - low)
    )  # pydicom turns its range over where the slope is negative
    assert np.abs(read(data).pixels / 65535 - expected).max() < 1e-4


def test_a_full_window_changes_nothing() -> None:
    assert (read(dataset(GREY, WindowCenter=128, WindowWidth=256)).pixels == GREY).all()
    assert (
        read(dataset(GREY, WindowCenter=127.5, WindowWidth=255, VOILUTFunction="LINEAR_EXACT")).pixels == GREY
    ).all()
    assert (read(dataset(GREY, RescaleSlope=3, RescaleIntercept=-7)).pixels == GREY).all()
    assert (read(dataset(GREY, RescaleSlope=-1, RescaleIntercept=255)).pixels == 255 - GREY).all()


def test_a_window_of_one_is_a_threshold() -> None:
    pixels = read(dataset(GREY, WindowCenter=101, WindowWidth=1)).pixels
    assert (pixels == np.where(GREY > 100, 255, 0)).all()


@pytest.mark.parametrize("packed", [False, True])
def test_luts(packed: bool) -> None:
    entries = [int(255 * (i / 255) ** 2) for i in range(256)]
    squared = np.array(entries, np.uint8)[GREY]
    assert (
        read(
            saved(dataset(GREY, VOILUTSequence=[lut(0, 8, entries, packed=packed)], WindowCenter=1, WindowWidth=2))
        ).pixels
        == squared
    ).all()
    image = read(
        dataset(GREY, ModalityLUTSequence=[lut(0, 8, entries, packed=packed)], WindowCenter=128, WindowWidth=256)
    )
    assert (image.pixels == squared).all()


def test_lut_ends_and_first_value() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = read(dataset(codes, VOILUTSequence=[lut(100, 10, [0, 341, 1023])])).pixels.ravel()
    assert pixels[[0, 100, 101, 102, 255]].tolist() == [0, 0, 85, 255, 255]
    signed = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    image = read(saved(dataset(signed, VOILUTSequence=[lut(-1, 8, [0, 128, 255])])))
    assert image.pixels.ravel()[[0, 127, 128, 129, 255]].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 10, "WindowWidth": 0},
        {"WindowCenter": 10, "WindowWidth": -5, "VOILUTFunction": "SIGMOID"},
        {"VOILUTSequence": [lut(0, 20, [1, 2])]},
    ],
)
def test_an_unusable_window_is_noted(tags: dict[str, Any]) -> None:
    image = read(dataset(GREY, **tags))
    assert image.notes == ("its window or VOI LUT is unusable; the full range of values is shown",)
    assert (image.pixels == GREY).all()


def test_a_sigmoid_is_read_as_the_line_that_it_bends() -> None:
    window = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 1500}
    line, bent = (read(dataset(DEEP, VOILUTFunction=kind, **window)).pixels for kind in ("LINEAR_EXACT", "SIGMOID"))
    assert (line == bent).all()


def test_of_several_windows_the_first_is_used() -> None:
    several = read(dataset(DEEP, BitsStored=12, WindowCenter=[2000, 100], WindowWidth=[1500, 50])).pixels
    assert (several == read(dataset(DEEP, BitsStored=12, WindowCenter=2000, WindowWidth=1500)).pixels).all()


# --- what says nothing ---

EMPTY: list[dict[str, Any]] = [
    *({name: ""} for name in ("ViewPosition", "Modality", "BodyPartExamined", "VOILUTFunction")),
    *({name: None} for name in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "NumberOfFrames")),
    *({name: None} for name in ("HighBit", "PixelRepresentation", "PlanarConfiguration")),
    *({name: value} for name in ("ModalityLUTSequence", "VOILUTSequence") for value in ([], [Dataset()])),
    {"WindowCenter": None, "WindowWidth": 256},
    {"RescaleSlope": None, "RescaleIntercept": 7},
]


@pytest.mark.parametrize("tags", [*EMPTY, {k: v for tags in EMPTY for k, v in tags.items()}], ids=str)
def test_an_empty_element_says_nothing(tags: dict[str, Any]) -> None:
    image = read(saved(dataset(GREY, **tags)))
    assert image.notes == ()
    assert (image.pixels == GREY).all()


def test_empty_items_of_a_sequence_are_passed_over() -> None:
    nothing = Dataset()
    nothing.add_new("LUTDescriptor", "US", None)
    nothing.add_new("LUTData", "OW", None)
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        image = read(saved(dataset(GREY, **{name: [nothing]})))
        assert (image.pixels == GREY).all()
        assert image.notes == ()


def test_no_number_of_bits_stored_is_all_bits() -> None:
    made = dataset(GREY)
    made.BitsStored = None
    assert (read(saved(made)).pixels == GREY).all()


def test_an_empty_photometric_interpretation_is_noted() -> None:
    image = read(saved(dataset(GREY, PhotometricInterpretation="")))
    assert (image.pixels == GREY).all()
    assert image.notes == ("it does not say whether black or white is zero; black is taken",)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_values_that_use_little_of_their_depth_are_scaled(photometric: str) -> None:
    expected = DEEP / 4095 if photometric == "MONOCHROME2" else 1 - DEEP / 4095
    image = read(saved(dataset(DEEP, BitsStored=16, HighBit=15, PhotometricInterpretation=photometric)))
    assert np.abs(image.pixels / image.white - expected).max() < 1e-4
    assert image.notes == (f"its values use a small part of their range: 0 to {2**12 - 1} is shown",)
    signed = read(saved(dataset(DEEP.astype(np.int16) - 1000, BitsStored=16, HighBit=15)))
    low, high = int(DEEP.min()) - 1000, int(DEEP.max()) - 1000
    assert signed.notes == (f"its values use a small part of their range: {low} to {high} is shown",)
    windowed = read(saved(dataset(DEEP, BitsStored=16, HighBit=15, WindowCenter=32768, WindowWidth=65536)))
    assert windowed.notes == ()  # the window says what is to be seen


# --- colour ---


def colour_dataset(pixels: np.ndarray, photometric: str, data: bytes | None = None, **tags: Any) -> Dataset:
    made = dataset(GREY, PhotometricInterpretation=photometric, SamplesPerPixel=3, PlanarConfiguration=0, **tags)
    made.PixelData = pixels.tobytes() if data is None else data
    return made


def test_grey_stored_as_colour() -> None:
    rgb = np.stack([GREY] * 3, 2)
    ybr = np.stack([GREY, np.full_like(GREY, 128), np.full_like(GREY, 128)], 2)
    halved = np.empty((*GREY.shape, 2), np.uint8)  # Y and, in turn, Cb and Cr
    halved[..., 0], halved[..., 1] = GREY, 128
    pairs = halved.reshape(-1, 2, 2)
    packed = np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 1, 1]], 1)
    for made in (
        colour_dataset(rgb, "RGB"),
        colour_dataset(ybr, "YBR_FULL"),
        colour_dataset(rgb, "YBR_FULL_422", packed.tobytes()),
    ):
        image = read(saved(made))
        assert (image.pixels == GREY).all()
        assert image.colour == 0
        assert image.white == 255
    planar = colour_dataset(rgb, "RGB", np.ascontiguousarray(np.moveaxis(rgb, 2, 0)).tobytes())
    planar.PlanarConfiguration = 1
    assert (read(saved(planar)).pixels == GREY).all()


def test_compressed_colour() -> None:
    rgb = np.stack([GREY, GREY, GREY], 2)
    for syntax, photometric, coded in (
        (JPEGBaseline8Bit, "YBR_FULL_422", jpeg(rgb, quality=95)),
        (JPEG2000Lossless, "YBR_RCT", jpeg(rgb, "JPEG2000", no_jp2=True)),
        (JPEGLosslessSV1, "RGB", imagecodecs.jpeg8_encode(rgb, lossless=True)),
    ):
        made = dataset(GREY, syntax=syntax, coded=coded, PhotometricInterpretation=photometric, SamplesPerPixel=3)
        made.PlanarConfiguration = 0
        image = read(saved(made))
        assert np.abs(image.pixels.astype(int) - GREY).mean() < 2
        assert image.colour < 0.01


def test_colours_become_luma() -> None:
    rgb = np.stack([GREY, GREY // 2, 255 - GREY], 2)
    image = read(saved(colour_dataset(rgb, "RGB")))
    assert (image.pixels == np.asarray(Image.fromarray(rgb).convert("L"))).all()
    assert image.colour > 0.1


# --- the header ---


def test_view_modality_and_notes() -> None:
    image = read(saved(dataset(GREY, ViewPosition="PA", Modality="DX", BodyPartExamined="CHEST")))
    assert (image.view, image.modality, image.notes) == ("PA", "DX", ())
    loose = saved(dataset(GREY, ViewPosition="XXXX", WindowCenter="1111111111", WindowWidth="256"))
    image = read(loose.replace(b"XXXX", b"l l ").replace(b"1111111111", b"128.000000"))
    assert image.view == "L L"
    assert (image.pixels == GREY).all()
    image = read(dataset(GREY, ViewPosition="", BodyPartExamined="HAND"))
    assert (image.view, image.modality, image.notes) == (
        None,
        None,
        ("its header names another body part than the chest",),
    )


def test_first_of_several_frames() -> None:
    image = read(saved(dataset(np.stack([GREY, GREY // 2]), NumberOfFrames=2)))
    assert (image.pixels == GREY).all()
    assert image.notes == ("it holds 2 frames; the first is used",)


def test_no_name_of_a_patient_is_read_or_said() -> None:
    data = saved(dataset(GREY))
    assert b"Secret" in data
    assert "Secret" not in repr(read(data))
    assert name_of(dataset(GREY)) == "DICOM dataset"
    with pytest.raises(ImageError) as caught:
        read(data[:-100])
    assert "Secret" not in str(caught.value)


# --- what is refused ---


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            dataset(GREY, PhotometricInterpretation="RGB"),
            "DICOM dataset: its photometric interpretation is RGB, with 1 samples per pixel; MONOCHROME1",
        ),
        (dataset(GREY, PhotometricInterpretation="PALETTE COLOR"), "its photometric interpretation is PALETTE COLOR"),
        (dataset(GREY, SamplesPerPixel=3), "is MONOCHROME2, with 3 samples per pixel"),
        (
            dataset(GREY, BitsAllocated=32, BitsStored=32),
            "it stores 32 bits in 32; grey is read from 8 or 16, colour from 8",
        ),
        (dataset(GREY, Rows=0), "it has no pixels (0 x 150)"),
        (
            dataset(GREY, Rows=30_000, Columns=30_000),
            "it has 30000 x 30000 pixels, more than the 30,000,000 that are read",
        ),
        (
            dataset(GREY, RescaleSlope=0, RescaleIntercept=1),
            "its modality LUT or rescale slope gives no range of values",
        ),
        (
            dataset(GREY, RescaleSlope="1e308", RescaleIntercept="1e308"),
            "its modality LUT or rescale slope gives no range of values",
        ),
        (
            saved(dataset(GREY, RescaleSlope="1234", RescaleIntercept="0")).replace(b"1234", b"12,5"),
            "bytes: its RescaleSlope is not a usable number",
        ),
        (
            saved(dataset(GREY)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0"),
            "its transfer syntax is not supported: 1.2.840.10008.1.2.7",
        ),
        (dataset(GREY, BitsStored=12), "it stores 12 bits in 8; grey is read from 8 or 16"),
        (dataset(GREY, ModalityLUTSequence=[lut(0, 20, [1, 2])]), "its LUT has 2 of 2 entries of 20 bits"),
        (
            dataset(GREY, syntax=JPEGBaseline8Bit, coded=jpeg(GREY[:100])),
            "the header says 160 x 150 pixels, the compressed picture 100 x 150",
        ),
        (
            dataset(GREY, syntax=JPEG2000Lossless, coded=jpeg(GREY[:100], "JPEG2000")),
            "the compressed picture 100 x 150",
        ),
        *(
            (
                dataset(GREY, syntax=syntax, coded=coded[: len(coded) // 2]),
                f"its pixels, {syntax.name}, cannot be decoded ({reason}",
            )
            for syntax, coded, reason in (
                (JPEGLosslessSV1, imagecodecs.jpeg8_encode(GREY, lossless=True), "it is cut short)"),
                (JPEGExtended12Bit, jpeg(GREY), "it is cut short)"),
                (JPEGLSLossless, imagecodecs.jpegls_encode(GREY), "it is cut short)"),
                (JPEG2000Lossless, jpeg(GREY, "JPEG2000", no_jp2=True), ""),
                (JPEG2000Lossless, b"", ""),
                (
                    JPEG2000Lossless,
                    jpeg(GREY, "JPEG2000", no_jp2=True)[:80],
                    "it is not a JPEG 2000 stream, or a subsampled one)",
                ),
                (JPEGLSLossless, jpeg(GREY), "it is not a JPEG stream of this kind)"),
                (JPEGLosslessSV1, imagecodecs.jpegls_encode(GREY), "it is not a JPEG stream of this kind)"),
                (JPEGExtended12Bit, jpeg(GREY, progressive=True), "it is not a JPEG stream of this kind)"),
                (JPEGBaseline8Bit, jpeg(GREY, progressive=True), "it is not a JPEG stream of this kind)"),
            )
        ),
        (
            dataset(
                GREY, syntax=JPEGLosslessSV1, coded=imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=12)
            ),
            "the header says 1 x 8 bits a pixel, the compressed picture 1 x 12",
        ),
        (
            dataset(GREY, syntax=JPEG2000, coded=jpeg(np.stack([GREY] * 3, 2), "JPEG2000")),
            "the header says 1 x 8 bits a pixel, the compressed picture 3 x 8",
        ),
        (
            dataset(GREY, syntax=JPEGBaseline8Bit, coded=jpeg(GREY)[:400]),
            "its pixels, JPEG Baseline (Process 1), cannot be decoded (",
        ),
        (dataset(GREY, syntax=RLELossless, coded=bytes(200)), "its pixels, RLE Lossless, cannot be decoded ("),
        (
            dataset(GREY, syntax="1.2.840.10008.1.2.4.100", coded=b"MPEG"),
            "its transfer syntax is not supported: MPEG2 Main Profile",
        ),
        (
            dataset(GREY, syntax="1.2.840.10008.1.2.4.201", coded=b"HTJ2K"),
            "its transfer syntax is not supported: High-Throughput JPEG 2000",
        ),
        (saved(dataset(GREY))[:-1000], "bytes: it is not complete: 23000 of 24000 bytes of pixels are there"),
        (bytes(128) + b"DICM", "bytes: it holds no DICOM picture"),
        (bytes(128) + b"DICM" + b"\xff" * 50, "bytes: it "),
        (b"\x08\0" + bytes(200), "bytes: it "),
        (Dataset(), "DICOM dataset: it holds no DICOM picture"),
    ],
)
def test_what_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        read(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1])
def test_many_scans(syntax: str) -> None:
    coded = jpeg(GREY)
    with pytest.raises(ImageError, match="it is a JPEG of 33 scans; at most 32 are read"):
        read(dataset(GREY, syntax=syntax, coded=coded[:-2] + b"\xff\xda" * 32 + coded[-2:]))


def run_lengths(*segments: bytes) -> bytes:
    starts = [64 + sum(map(len, segments[:k])) for k in range(len(segments))]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def test_run_lengths() -> None:
    pixels = np.array([[-2, 300], [300, 300]], np.int16)
    high, low = b"\0\xff\xfe\1", b"\0\xfe\xfe\x2c"
    for padding in (b"", b"\0", b"\0\0", b"\x80", b"\xd0\0"):
        coded = dataset(pixels, syntax=RLELossless, coded=run_lengths(high, low + padding))
        assert (read(saved(coded)).pixels == read(dataset(pixels)).pixels).all()
    grey = np.full((2, 2), 7, np.uint8)
    assert (read(dataset(grey, syntax=RLELossless, coded=run_lengths(b"\xfd\7"))).pixels == 7).all()
    for wrong, reason in (
        (
            run_lengths(b"\xfd\7", b"\xfd\7"),
            "the header says 1 value of 8 bits, the compressed picture has 2 segments of 8",
        ),
        (run_lengths(b"\xfe\7"), "it is not complete: 3 of 4 values are there"),
        (run_lengths(b"\x81\7" * 100), "imcd_packbits_decode returned IMCD_OUTPUT_TOO_SMALL"),  # a bomb is not unpacked
        (b"\1\0\0\0", "it is cut short"),
    ):
        with pytest.raises(ImageError) as caught:
            read(dataset(grey, syntax=RLELossless, coded=wrong))
        assert str(caught.value) == f"DICOM dataset: its pixels, RLE Lossless, cannot be decoded ({reason})"


def test_a_deflated_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(dataset(GREY, syntax=DeflatedExplicitVRLittleEndian))
    monkeypatch.setattr(dicom, "_MAX_BYTES", 20_000)
    with pytest.raises(
        ImageError, match=r"it is a damaged DICOM file \(it is cut short, or inflates to more than 0 MiB"
    ):
        read(data)
    end = 144 + int.from_bytes(data[140:144], "little")
    with pytest.raises(ImageError, match=r"incorrect|invalid"):
        read(data[:end] + b"\xff" * 100)
    assert zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[end:])[:4] == b"\x08\0\x16\0"


def divided(*, tile: int = 0, precinct: int = 15, layers: int = 1, in_tile: bool = False, height: int = 2048) -> bytes:
    """A JPEG 2000 stream divided as told, its header whole and its data missing."""
    coded = bytearray(
        imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8), level=0, codecformat="j2k", reversible=True)
    )
    struct.pack_into(">II", coded, 8, 2048, height)
    struct.pack_into(">II", coded, 24, tile or 2048, tile or 2048)
    at = coded.index(b"\xff\x52")
    style = bytearray(coded[at + 4 : at + 14])
    style[0], style[2:4] = 1, layers.to_bytes(2, "big")
    style += bytes([17 * precinct] * (style[5] + 1))
    style[:0] = b"\xff\x52" + (len(style) + 2).to_bytes(2, "big")
    if not in_tile:
        coded[at : at + 14] = style
        return bytes(coded)
    start = coded.index(b"\xff\x90")
    return bytes(
        coded[: start + 6]
        + (len(coded) + len(style) - start - 2).to_bytes(4, "big")
        + coded[start + 10 : start + 12]
        + style
        + coded[start + 12 :]
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"tile": 16}, "it has no tiles, or more than 8192"),
        ({"tile": 0x7FFFFFFF, "precinct": 1}, "it has 1 layers of "),
        ({"precinct": 2}, "it has 1 layers of "),
        ({"precinct": 6, "layers": 500}, "it has 500 layers of 1360 precincts, more than 131072 together"),
        ({"precinct": 2, "in_tile": True}, "it has 1 layers of "),
    ],
)
def test_jpeg_2000_bombs(how: dict[str, Any], message: str) -> None:
    pixels = np.zeros((2048, 2048), np.uint8)
    with pytest.raises(ImageError) as caught:
        read(dataset(pixels, syntax=JPEG2000, coded=divided(**how)))
    assert message in str(caught.value)
    with contextlib.suppress(ImageError):
        read(dataset(pixels, syntax=JPEG2000, coded=divided(tile=256, precinct=7, layers=4)))


def test_a_stream_that_hides_what_it_declares() -> None:
    """Markers without a length, of which decoders and a plain reading of the header make different things."""
    coded = jpeg(GREY)
    at = coded.index(b"\xff\xc0")
    for hiding in (b"\xff\x01", b"\xff\xd0", b"\xff\xd8", b"\0\0", b"\xff\xda\0\2"):
        with pytest.raises(ImageError, match="it is not a JPEG stream of this kind"):
            read(dataset(GREY, syntax=JPEGExtended12Bit, coded=coded[:at] + hiding + coded[at:]))
    filled = read(dataset(GREY, syntax=JPEGExtended12Bit, coded=coded[:at] + b"\xff\xff\xff" + coded[at:]))
    assert (filled.pixels == read(coded).pixels).all()
    wavelet = jpeg(GREY, "JPEG2000", no_jp2=True)
    at = wavelet.index(b"\xff\x52")
    with pytest.raises(ImageError, match="its header is damaged"):
        read(dataset(GREY, syntax=JPEG2000, coded=wavelet[:at] + b"\xff\x30\0\2" + wavelet[at:]))
    with pytest.raises(ImageError, match="it is not a JPEG 2000 stream, or a subsampled one"):
        read(dataset(GREY, syntax=JPEG2000, coded=wavelet[:43] + b"\2\2" + wavelet[45:]))


def test_a_decoder_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(
        ImageError, match=r'its transfer syntax, JPEG Lossless.*, needs a decoder: pip install "cxrlib\[dicom\]"'
    ):
        read(dataset(GREY, syntax=JPEGLosslessSV1, coded=b"\xff\xd8\xff\xd9"))


def test_without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(dataset(GREY))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r'reading DICOM needs pydicom: pip install "cxrlib\[dicom\]"'):
        read(data)
    assert read(GREY).size == GREY.shape


def test_damaged_bytes_give_an_image_or_an_image_error() -> None:
    rng = np.random.default_rng(0)
    seeds = [
        saved(dataset(GREY[::8, ::8], VOILUTSequence=[lut(0, 8, list(range(256)))])),
        saved(dataset(DEEP[::8, ::8], WindowCenter=5, WindowWidth=9)),
    ]
    seeds += [saved(dataset(GREY[::8, ::8], syntax=JPEGBaseline8Bit, coded=jpeg(np.ascontiguousarray(GREY[::8, ::8]))))]
    images = 0
    for _ in range(300):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for at in rng.integers(132, 900, rng.choice((1, 3, 9))):
            data[min(at, len(data) - 1)] = rng.integers(256)
        with contextlib.suppress(ImageError):
            read(bytes(data))
            images += 1
    assert images > 20
