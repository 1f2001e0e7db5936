"""DICOM: stored values -> modality LUT -> VOI LUT or window -> MONOCHROME1 inversion. Imports pydicom, imagecodecs."""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

# all that is read: no tag here says who the patient is
_TAGS = [
    *("Modality", "BodyPartExamined", "ViewPosition", "SamplesPerPixel", "PhotometricInterpretation"),
    *("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PlanarConfiguration", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
MAX_SCANS = 32  # of a JPEG; progressive ones have about ten, a bomb thousands
_MAX_BYTES = 2**28  # of an inflated file
_CODECS = {  # transfer syntax -> decoder of imagecodecs, whether it is lossy
    "1.2.840.10008.1.2.4.51": ("jpeg8", True),
    "1.2.840.10008.1.2.4.57": ("jpeg8", False),
    "1.2.840.10008.1.2.4.70": ("jpeg8", False),
    "1.2.840.10008.1.2.4.80": ("jpegls", False),
    "1.2.840.10008.1.2.4.81": ("jpegls", True),
    "1.2.840.10008.1.2.4.90": ("jpeg2k", False),
    "1.2.840.10008.1.2.4.91": ("jpeg2k", True),
    "1.2.840.10008.1.2.5": ("packbits", False),
}
# decoder -> the start-of-frame markers of its streams
_FRAMES = {"": b"\xc0\xc1", "jpeg8": b"\xc0\xc1\xc3", "jpegls": b"\xf7"}
# markers, and the filling, that may come before it: the decoder would read others differently
_BEFORE_FRAME = b"\xc4\xcc\xdb\xdd\xf8\xfe\xff"
_SEGMENTS = b"\x51\x52\x53\x55\x57\x58\x5c\x5d\x5e\x5f\x60\x61\x63\x64"  # all that JPEG 2000 headers are made of
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PADDING = 64  # bytes that some writers add to a run-length encoded segment
_MAX_TILES, _MAX_PRECINCTS = 2**13, 2**17  # of a JPEG 2000 stream: OpenJPEG keeps 9 kB for each tile, 2 kB for each


def decode(source: Any, *, check_size: Callable[[int, int], None]) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Decode the first frame of a radiograph, to grey.

    All steps between stored values and grey levels are functions of one value: they are worked out once for every
    possible value and looked up. An element that is empty says nothing, and the image is decoded as without it. A
    colour image, as screens and secondary captures are, becomes its luma.

    Args:
        source: The bytes of a file, or a pydicom dataset, which is left as it is.
        check_size: Called with height and width before pixels are decoded; raises where the image is too large.

    Returns:
        Pixels, an ndarray of shape (H, W), uint8 where at most 8 bits are stored, else uint16; the value that means
        1.0; and what else there is to say: `view` and `modality` (each a string or None), `notes` (a tuple of plain
        words), `colour` (in [0, 1]).

    Raises:
        ImportError: If pydicom is not installed.
        ValueError: If the file does not hold a radiograph that can be decoded.

    Example:
        >>> decode(b"", check_size=lambda height, width: None)
        Traceback (most recent call last):
        ValueError: it holds no DICOM picture

    References:
        DICOM PS3.3, C.11.1 (modality LUT), C.11.2 (VOI LUT) and C.7.6.3.1.2 (photometric interpretation).
    """
    try:
        from pydicom import Dataset
    except ImportError as error:
        raise ImportError('reading DICOM needs pydicom: pip install "cxrlib[dicom]"') from error
    data = source if isinstance(source, Dataset) else _parse(source)
    if "PixelData" not in data:
        raise ValueError("it holds no DICOM picture")
    photometric, samples = "".join(_strings(data, "PhotometricInterpretation")), _whole(data, "SamplesPerPixel", 1)
    notes, colour = [], 0.0
    if not photometric and samples == 1:
        photometric = "MONOCHROME2"
        notes.append("it does not say whether black or white is zero; black is taken")
    if (photometric, samples) not in {(name, 1) for name in _GREY} | {(name, 3) for name in _COLOUR}:
        raise ValueError(
            f"its photometric interpretation is {photometric or 'missing'}, with {samples} samples per pixel; "
            f"{', '.join(_GREY)}, {', '.join(_COLOUR)} are read"
        )
    height, width, allocated = (_whole(data, tag) for tag in ("Rows", "Columns", "BitsAllocated"))
    bits = _whole(data, "BitsStored") or allocated
    check_size(height, width)
    if not 1 <= bits <= allocated or allocated not in ((8, 16) if samples == 1 else (8,)):
        raise ValueError(f"it stores {bits} bits in {allocated}; grey is read from 8 or 16, colour from 8")
    if (frames := _whole(data, "NumberOfFrames", 1)) > 1:
        notes.append(f"it holds {frames} frames; the first is used")
    part = "".join(_strings(data, "BodyPartExamined")).upper()
    if part and not any(word in part for word in ("CHEST", "THORAX", "LUNG", "RIB", "TORSO")):
        notes.append("its header names another body part than the chest")
    stored = _frame(data, height, width, bits, allocated)
    if samples == 3:
        pixels, colour = _luma(stored, "RGB" if _syntax(data) in _CODECS else photometric)  # imagecodecs gives RGB
        white = 255
    else:
        high = _whole(data, "HighBit", bits - 1)
        shift = high + 1 - bits if bits <= high + 1 <= allocated else 0
        table = _table(data, bits, photometric, notes, lambda signed: _extremes(stored, shift, bits, signed))
        white = 255 if bits <= 8 else 65535
        pixels = np.empty((height, width), table.dtype)
        for top in range(0, height, 256):  # in strips, for NumPy widens indices to 64 bits; overlays may use other bits
            pixels[top : top + 256] = table[stored[top : top + 256] >> shift & (2**bits - 1)]
    said = {
        name: "".join(_strings(data, tag)[:1]).upper() or None
        for name, tag in (("view", "ViewPosition"), ("modality", "Modality"))
    }
    return pixels, float(white), {**said, "notes": tuple(notes), "colour": colour}


def _table(
    data: Any, bits: int, photometric: str, notes: list[str], extremes: Callable[[bool], tuple[int, int]]
) -> np.ndarray:
    """The grey level of every code (2 ** bits,), uint8 or uint16; `extremes` finds the codes that the image uses."""
    codes = np.arange(2**bits)
    signed = _whole(data, "PixelRepresentation") == 1
    values = np.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes) if signed else codes
    with np.errstate(all="ignore"):
        values = _modality(values, data)
        try:
            grey = _voi(values, data)
        except (ValueError, TypeError, IndexError, AttributeError):
            grey = None
            notes.append("its window or VOI LUT is unusable; the full range of values is shown")
    if grey is None:
        low, high = float(values.min()), float(values.max())
        if not 0 < high - low < np.inf:
            raise ValueError("its modality LUT or rescale slope gives no range of values")
        if bits > 8:
            used = sorted(float(values[code]) for code in extremes(signed))
            if 0 < used[1] - used[0] <= (high - low) / 16:
                low, high = used
                if not signed and low >= 0 and values[0] == 0 and values[-1] == 2**bits - 1:
                    low, high = 0.0, float(2 ** int(high).bit_length() - 1)
                notes.append(f"its values use a small part of their range: {low:g} to {high:g} is shown")
        grey = np.clip((values - low) / (high - low), 0, 1)
    if photometric == "MONOCHROME1":
        grey = 1 - grey
    white = 255 if bits <= 8 else 65535
    table: np.ndarray = np.rint(grey * white).astype(np.uint8 if bits <= 8 else np.uint16)
    return table


def _extremes(stored: np.ndarray, shift: int, bits: int, signed: bool) -> tuple[int, int]:
    """The codes of the lowest and the highest value of an image."""
    mask, half = 2**bits - 1, 2 ** (bits - 1) if signed else 0
    ordered = ((stored >> shift) + np.uint32(half)) & mask
    return (int(ordered.min()) - half) & mask, (int(ordered.max()) - half) & mask


def _luma(stored: np.ndarray, photometric: str) -> tuple[np.ndarray, float]:
    """Luma (H, W), uint8, and how coloured it is, of (H, W, 3), uint8."""
    sample = stored[:: max(1, len(stored) // 64), :: max(1, stored.shape[1] // 64)].astype(np.float32)
    if photometric == "RGB":
        colour = float(np.ptp(sample, axis=2).mean() / 255)
        return np.asarray(Image.fromarray(stored).convert("L")), colour
    colour = float(np.abs(sample[..., 1:] - 128).sum(axis=2).mean() / 255)
    return np.ascontiguousarray(stored[..., 0]), colour  # Y is the luma


def _strings(data: Any, tag: str) -> list[str]:
    """The values of an element, unchecked: pydicom would warn, and log the value, where one is not as it should be."""
    value = getattr(data.get_item(tag), "value", None)
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").split("\\")
    if value is None or isinstance(value, (str, int, float)):
        value = [value]
    return [text for item in value if item is not None and (text := str(item).strip(" \0"))]


def _number(data: Any, tag: str) -> float | None:
    texts = _strings(data, tag)
    try:
        number = float(texts[0]) if texts else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise ValueError(f"its {tag} is not a usable number")
    return number


def _whole(data: Any, tag: str, default: int = 0) -> int:
    value = data.get(tag)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return int(value) if isinstance(value, (int, str)) and str(value).strip() else default


def _parse(source: bytes) -> Any:
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    try:
        if DeflatedExplicitVRLittleEndian.encode() in source:  # inflated here, to a limit
            end = 144 + int.from_bytes(source[140:144], "little")  # of the file meta information
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            plain = inflater.decompress(source[end:], _MAX_BYTES)
            if not inflater.eof:
                raise ValueError(f"it is cut short, or inflates to more than {_MAX_BYTES // 2**20} MiB")
            uid = ExplicitVRLittleEndian.encode() + b"\0"
            source = source[:132] + b"\2\0\x10\0UI" + len(uid).to_bytes(2, "little") + uid + plain
        return dcmread(io.BytesIO(source), specific_tags=_TAGS, force=source[128:132] != b"DICM")
    except Exception as error:  # pydicom raises nearly anything on damaged bytes
        raise ValueError(f"it is a damaged DICOM file ({error})") from error


def _modality(values: np.ndarray, data: Any) -> np.ndarray:
    """Stored values (2 ** bits,) -> what the device measured."""
    if item := _lut_of(data, "ModalityLUTSequence"):
        return _lut(item, values, data)[0]
    slope, intercept = _number(data, "RescaleSlope"), _number(data, "RescaleIntercept")
    return values if slope is None or intercept is None else values * slope + intercept


def _voi(values: np.ndarray, data: Any) -> np.ndarray | None:
    """Measured values -> grey levels in [0, 1] by the first VOI LUT, else the first window; None without either."""
    if item := _lut_of(data, "VOILUTSequence"):
        entries, white = _lut(item, values, data)
        return np.clip(entries / white, 0, 1)
    centre, width, function = (
        _number(data, "WindowCenter"),
        _number(data, "WindowWidth"),
        "".join(_strings(data, "VOILUTFunction")) or "LINEAR",
    )
    if centre is None or width is None:
        return None
    if function == "LINEAR":  # the standard's off-by-one: a window of 256 about 128 shows 0 to 255
        centre, width = centre - 0.5, width - 1
    if width < 0 or (width == 0 and function != "LINEAR"):
        raise ValueError(f"its window is {width:g} wide")
    return np.clip((values - centre) / width + 0.5, 0, 1) if width else (values > centre).astype(np.float64)


def _lut_of(data: Any, tag: str) -> Any:
    """The first LUT of a sequence that is not empty; None without one."""
    for item in data.get(tag) or ():
        if item.get("LUTDescriptor") is not None and item.get("LUTData") is not None:
            return item
    return None


def _lut(item: Any, values: np.ndarray, data: Any) -> tuple[np.ndarray, float]:
    """Look values up in a LUT of the file: its entries, and the largest that its declared depth allows."""
    count, first, depth = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16
    if first > 2**15 and data.get("PixelRepresentation") == 1:
        first -= 2**16  # written signed, read unsigned
    raw = item.LUTData
    if isinstance(raw, bytes):
        little = data.original_encoding[1] is not False
        raw = np.frombuffer(raw, np.uint8 if len(raw) < 2 * count else "<u2" if little else ">u2")
    entries = np.asarray(raw)[:count]  # (count,)
    if len(entries) < count or not 8 <= depth <= 16:
        raise ValueError(f"its LUT has {len(entries)} of {count} entries of {depth} bits")
    index = np.clip(np.rint(values) - first, 0, count - 1).astype(np.int64)
    return entries[index].astype(np.float64), 2.0**depth - 1


def _syntax(data: Any) -> Any:
    """The transfer syntax that the file declares, else the one it was read with."""
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

    read_as = ExplicitVRBigEndian if data.original_encoding[1] is False else ExplicitVRLittleEndian
    return UID(getattr(data, "file_meta", {}).get("TransferSyntaxUID") or read_as)


def _frame(data: Any, height: int, width: int, bits: int, allocated: int) -> np.ndarray:
    """The first frame as it is stored: (H, W), uint8 or uint16 whatever the sign; of colour (H, W, 3), uint8."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import JPEGBaseline8Bit

    syntax = _syntax(data)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ValueError(f"its transfer syntax is not supported: {syntax.name}") from None
    samples = _whole(data, "SamplesPerPixel", 1)
    if not syntax.is_encapsulated:
        dtype = np.dtype(np.uint8 if allocated == 8 else "<u2" if syntax.is_little_endian else ">u2")
        halved = "".join(_strings(data, "PhotometricInterpretation")) == "YBR_FULL_422"
        count = height * width * (2 if halved else samples)
        if len(data.PixelData) < count * dtype.itemsize:
            there = f"{len(data.PixelData)} of {count * dtype.itemsize} bytes of pixels are there"
            raise ValueError(f"it is not complete: {there}")
        flat = np.frombuffer(data.PixelData, dtype, count)
        if halved:  # two values of Y, then one each of Cb and Cr
            pairs = flat[: count // 4 * 4].reshape(-1, 4)
            return np.stack([pairs[:, :2].ravel(), *(pairs[:, k].repeat(2) for k in (2, 3))], 1).reshape(
                height, width, 3
            )
        if samples == 1:
            return flat.reshape(height, width)
        planar = _whole(data, "PlanarConfiguration") == 1
        return np.moveaxis(flat.reshape(3, height, width), 0, 2) if planar else flat.reshape(height, width, 3)
    codec, lossy = _CODECS.get(syntax, ("", False))
    if not codec and syntax != JPEGBaseline8Bit:
        raise ValueError(f"its transfer syntax is not supported: {syntax.name}")
    try:
        options = as_pixel_options(data)
        if codec:
            import imagecodecs
        frame = get_frame(
            data.PixelData,
            0,
            number_of_frames=options["number_of_frames"],
            extended_offsets=options.get("extended_offsets"),
        )
        if codec == "packbits":
            if samples != 1:
                raise ValueError("run-length encoded colour is not read")
            stored: np.ndarray = _from_run_lengths(frame, imagecodecs.packbits_decode, height, width, allocated)
        else:
            frame = _stream(frame, codec, (height, width, samples), allocated)
            if codec:
                stored = getattr(imagecodecs, f"{codec}_decode")(frame)
            else:  # Pillow is the decoder of JPEG files, too
                stored = decoder.as_array(data, index=0, raw=True, decoding_plugin="pillow", **options)[0]
        if stored.shape != ((height, width) if samples == 1 else (height, width, samples)):
            coded = " x ".join(map(str, stored.shape))
            raise ValueError(f"the header says {height} x {width} pixels, the compressed picture {coded}")
    except ImportError as error:
        raise ValueError(f'its transfer syntax, {syntax.name}, needs a decoder: pip install "cxrlib[dicom]"') from error
    except Exception as error:  # decoders raise nearly anything; each one's own words come on a line
        raise ValueError(
            f"its pixels, {syntax.name}, cannot be decoded ({'; '.join(map(str.strip, str(error).splitlines()))})"
        ) from error
    signed = _whole(data, "PixelRepresentation") == 1
    if lossy and signed == (stored.dtype.kind == "i") and _whole(data, "HighBit", bits - 1) == bits - 1:
        # a value that rounding led beyond the bits stored would turn over
        low, most = -(2 ** (bits - 1)) if signed else 0, np.iinfo(stored.dtype)
        stored = stored.clip(max(low, most.min), min(low + 2**bits - 1, most.max))
    return stored.view(f"u{stored.dtype.itemsize}")


def _from_run_lengths(frame: bytes, unpack: Callable[..., Any], height: int, width: int, allocated: int) -> np.ndarray:
    """Bytes of one significance after the other, the highest first, each run-length encoded -> stored values (H, W).

    References:
        DICOM PS3.5, annex G.
    """
    if len(frame) < 64:
        raise ValueError("it is cut short")
    count, *starts = struct.unpack_from("<16I", frame)
    if count != allocated // 8:
        raise ValueError(
            f"the header says 1 value of {allocated} bits, the compressed picture has {count} segments of 8"
        )
    places = np.empty((height * width, count), np.uint8)
    for k, (start, end) in enumerate(itertools.pairwise([*starts[:count], len(frame)])):
        out = np.empty(height * width + _PADDING, np.uint8)  # no more than that is unpacked
        segment: np.ndarray = unpack(frame[start:end], out=out)
        if len(segment) < height * width:
            raise ValueError(f"it is not complete: {len(segment)} of {height * width} values are there")
        places[:, count - 1 - k] = segment[: height * width]
    return places.view(f"<u{count}").reshape(height, width)


def _stream(frame: bytes, codec: str, shape: tuple[int, int, int], allocated: int) -> bytes:
    """The JPEG, JPEG-LS or JPEG 2000 stream in a frame, if it declares height, width and samples as the header does.

    Decoders allocate for what the stream declares.
    """
    height, width, samples = shape
    if codec == "jpeg2k":
        frame = frame[max(0, frame.find(b"\xff\x4f\xff\x51", 0, 4096)) :]  # out of its boxes, if it has any
        if frame[:4] != b"\xff\x4f\xff\x51" or len(frame) < 45 or frame[43:45] != b"\1\1":
            raise ValueError("it is not a JPEG 2000 stream, or a subsampled one")
        right, bottom, left, top, components, depth = struct.unpack_from(">IIII16xHB", frame, 8)
        coded_height, coded_width, precision = bottom - top, right - left, (depth & 127) + 1
    else:
        at = 2
        while (
            at + 10 <= len(frame)
            and frame[at] == 0xFF
            and (frame[at + 1] in _BEFORE_FRAME or 0xE0 <= frame[at + 1] <= 0xEF)
        ):
            at += 1 if frame[at + 1] == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        if frame[:2] != b"\xff\xd8" or len(frame) < at + 10 or frame[at] != 0xFF or frame[at + 1] not in _FRAMES[codec]:
            raise ValueError("it is not a JPEG stream of this kind")
        if (scans := frame.count(b"\xff\xda")) > MAX_SCANS:
            raise ValueError(f"it is a JPEG of {scans} scans; at most {MAX_SCANS} are read")
        precision, coded_height, coded_width, components = struct.unpack_from(">BHHB", frame, at + 4)
        if codec:  # beyond the end libjpeg-turbo makes up the rest, and CharLS counts for seconds
            frame = frame[: frame.rfind(b"\xff\xd9") + 2]
            if len(frame) < at:
                raise ValueError("it is cut short")
    if (coded_height, coded_width) != (height, width):
        raise ValueError(
            f"the header says {height} x {width} pixels, the compressed picture {coded_height} x {coded_width}"
        )
    if components != samples or precision > allocated:
        raise ValueError(
            f"the header says {samples} x {allocated} bits a pixel, the compressed picture {components} x {precision}"
        )
    if codec == "jpeg2k":
        _check_divisions(frame, height, width)
    return frame


def _check_divisions(stream: bytes, height: int, width: int) -> None:
    """Refuse a JPEG 2000 stream that divides the picture so finely that a few bytes of it take gigabytes.

    References:
        ISO/IEC 15444-1, A.5 (SIZ), A.6.1 (COD) and A.6.2 (COC).
    """
    right, bottom, tile_width, tile_height, tile_left, tile_top = struct.unpack_from(">II8xIIII", stream, 8)
    if (
        not tile_width * tile_height
        or -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height) > _MAX_TILES
    ):
        raise ValueError(f"it has no tiles, or more than {_MAX_TILES}")
    layers = precincts = 1
    # of tile parts' headers: such bytes cannot occur in their data
    starts = [found.end() + 8 for found in re.finditer(rb"\xff\x90\0\x0a", stream)]
    for at in (2, *starts):
        while stream[at : at + 2] not in (b"\xff\x90", b"\xff\x93"):
            marker, end = stream[at : at + 2], at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
            segment, at = stream[at + 4 : end], end
            if len(marker) < 2 or marker[0] != 0xFF or marker[1] not in _SEGMENTS:
                raise ValueError("its header is damaged")
            if marker[1] in b"\x52\x53" and len(segment) >= 7:
                if marker[1] == 0x52:
                    flags, style = segment[0], segment[5:]
                    layers = max(layers, int.from_bytes(segment[2:4], "big"))
                else:
                    flags, style = segment[1], segment[2:]
                # exponents of height and width, from the smallest resolution
                sizes = style[5 : 6 + style[0]] if flags & 1 else b"\xff" * (style[0] + 1)
                levels = zip(range(style[0], -1, -1), sizes, strict=False)
                divided = ((-height >> k + (e >> 4)) * (-width >> k + (e & 15)) for k, e in levels)
                precincts = max(precincts, sum(divided))
    if layers * precincts > _MAX_PRECINCTS:
        raise ValueError(f"it has {layers} layers of {precincts} precincts, more than {_MAX_PRECINCTS} together")
