"""Every parser of foreign bytes, as a function of bytes that raises only on a defect; and seeds for it, made here."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np
import tiny_network
from PIL import Image

from cxrlib import bundle
from cxrlib.config import BundleError, DefaultRecipe, TextbookRecipe, from_dict, recipe_of, to_dict
from cxrlib.data import scan as data
from cxrlib.data.split import split
from cxrlib.images import phantom
from cxrlib.images.decode import fit, read
from cxrlib.images.sources import ImageError
from cxrlib.metrics.compute import make_report
from cxrlib.metrics.report import Report
from cxrlib.runtime.gate import Gate, GateConfig, inspect
from cxrlib.runtime.litert import Runtime


@dataclass(frozen=True)
class Target:
    """A parser: `run` raises only on a defect, `seeds` gives sound inputs, `repair` corrects a mutant's checksums."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    repair: Callable[[bytes], bytes] = bytes


# --- images ---


def images(content: bytes) -> None:
    with contextlib.suppress(ImageError):
        image = read(content, model_size=32)
        fitted = fit(image, 32)
        if not (
            fitted.shape == (32, 32, 1)
            and 0 <= fitted.min() <= fitted.max() <= 1
            and 0 <= image.pixels.min() <= image.pixels.max() <= image.white
        ):
            raise AssertionError(f"not a sound image: {image}")


def pictures() -> list[bytes]:
    grey = Image.fromarray(phantom.draw(1, size=48)[:, :40])
    rgb = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT), grey])
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    made = [
        (grey, "JPEG", {}),
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (grey, "PNG", {}),
        (deep, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 1}),
        (rgb.convert("RGBA"), "PNG", {"exif": exif}),
        (grey.convert("1"), "PNG", {}),
        (grey, "PNG", {"save_all": True, "append_images": [grey.rotate(180)]}),
        (grey, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (grey, "WEBP", {"lossless": True}),
        (rgb.convert("RGBA"), "WEBP", {"exif": exif}),
        (grey, "WEBP", {"save_all": True, "append_images": [grey.rotate(180)]}),
        (grey, "TIFF", {}),
        (deep, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (grey.convert("1"), "TIFF", {"compression": "group4"}),
        (grey, "TIFF", {"compression": "packbits", "big_tiff": True}),
        (grey.convert("F").point(lambda value: value * (1 / 255) + 0), "TIFF", {}),
        (grey.convert("I"), "TIFF", {"save_all": True, "append_images": [grey.convert("I")]}),
    ]
    return [_encoded(image, kind, options) for image, kind, options in made]


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def repair_png(content: bytes) -> bytes:
    """Right checksums for the chunks of a PNG: otherwise hardly a mutant gets past them."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    out, at = bytearray(content), 8
    while at + 12 <= len(out):
        length = int.from_bytes(out[at : at + 4], "big")
        if at + 12 + length > len(out):
            break
        out[at + 8 + length : at + 12 + length] = zlib.crc32(out[at + 4 : at + 8 + length]).to_bytes(4, "big")
        at += 12 + length
    return bytes(out)


def radiographs() -> list[bytes]:
    import imagecodecs
    import pydicom
    from drawn_dicom import dataset, saved
    from pydicom.uid import (
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

    grey = np.ascontiguousarray(phantom.draw(1, size=48)[:, :40])
    deep = grey.astype(np.uint16) * 16
    twelve, tiles = (
        {"BitsStored": 12},
        {
            "tile_size": (32, 32),
            "no_jp2": True,
            "progression": "RPCL",
            "precinct_size": (32, 32),
            "codeblock_size": (16, 16),
        },
    )
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], bytes(range(256))
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    kinds: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        (ExplicitVRLittleEndian, grey, {"ViewPosition": "PA", "Modality": "DX", "BodyPartExamined": "CHEST"}),
        (
            ImplicitVRLittleEndian,
            deep,
            {**twelve, "WindowCenter": 2000, "WindowWidth": 900, "PhotometricInterpretation": "MONOCHROME1"},
        ),
        (
            ExplicitVRBigEndian,
            grey.astype(np.uint16),
            {
                "RescaleSlope": 2,
                "RescaleIntercept": -100,
                "VOILUTFunction": "SIGMOID",
                "WindowCenter": 50,
                "WindowWidth": 100,
            },
        ),
        (DeflatedExplicitVRLittleEndian, grey, {"VOILUTSequence": [table]}),
        (ExplicitVRLittleEndian, np.stack([grey, grey]), {"NumberOfFrames": 2, "ModalityLUTSequence": [table]}),
        (JPEGBaseline8Bit, grey, {"coded": _encoded(Image.fromarray(grey), "JPEG", {})}),
        (JPEG2000Lossless, grey, {"coded": _encoded(Image.fromarray(grey), "JPEG2000", {"no_jp2": True})}),
        (JPEG2000Lossless, grey, {"coded": _encoded(Image.fromarray(grey), "JPEG2000", tiles)}),
        (JPEGExtended12Bit, deep, {**twelve, "coded": imagecodecs.jpeg8_encode(deep, 90, bitspersample=12)}),
        (JPEGLossless, grey, {"coded": imagecodecs.jpeg8_encode(grey, lossless=True, predictor=4)}),
        (JPEGLosslessSV1, deep, {**twelve, "coded": imagecodecs.jpeg8_encode(deep, lossless=True, bitspersample=12)}),
        (JPEGLSLossless, grey, {"coded": imagecodecs.jpegls_encode(grey)}),
        (JPEGLSNearLossless, deep, {**twelve, "coded": imagecodecs.jpegls_encode(deep, level=2)}),
        (RLELossless, grey, {}),
    ]
    made = []
    for syntax, pixels, tags in kinds:
        image = dataset(pixels, syntax=ExplicitVRLittleEndian if syntax == RLELossless else syntax, **tags)
        if syntax == RLELossless:
            image.compress(RLELossless, generate_instance_uid=False)
        made.append(saved(image))
    return [*made, made[0][132:]]


# --- manifests ---


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cxrlib-fuzz-"))
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    return folder


def manifest(content: bytes) -> None:
    file = _folder() / "images.csv"
    file.write_bytes(content)
    with contextlib.suppress(ValueError, FileNotFoundError):
        split(data.scan(file))


def manifests() -> list[bytes]:
    rows = "a.png,NORMAL,{0},train,x\nb.png,PNEUMONIA,{1},val,y\n"
    head = "path,label,patient,split,age\n"
    texts = [
        head + rows.format(1, 2),
        (head + rows.format("p", "")).replace(",", ";"),
        "\ufeff" + head.replace("path", "file_name") + rows.format('"1"', '"2, 3"'),
    ]
    texts += [
        "path,label,source\n" + "".join(f"a.png,NORMAL,{i}\nb.png,PNEUMONIA,{i}\n" for i in range(3)),
        'path,label,source\r\n"a.png","Nörmal","süd"\r\nb.png,sick,\r\n',
        "path,label\n" + "x" * 300 + ",NORMAL\n",
    ]
    return [text.encode() for text in texts]


# --- what a bundle is made of ---


def config(content: bytes) -> None:
    with contextlib.suppress(BundleError):
        found = bundle.read_config(content)
        again = bundle.read_config(json.dumps(to_dict(found)).encode())
        if repr(again) != repr(found):  # nan is not itself
            raise AssertionError("a config that is read back otherwise")
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        found = json.loads(content)
        recipe_of(found.get("recipe", found) if isinstance(found, dict) else found)


def configs() -> list[bytes]:
    points = {
        name: {"threshold": t, "sensitivity": 0.9, "specificity": 0.8, "by_source": {"a": [0.9, 0.8]}}
        for name, t in (("screening", 0.3), ("balanced", 0.6))
    }
    full = tiny_network.files(
        operating_points=points,
        default_point="screening",
        gate=tiny_network.tolerant_gate(),
        notes=["one"],
        license="mit",
        population="adults",
    )
    recipes = [json.dumps(to_dict(recipe)).encode() for recipe in (DefaultRecipe(), TextbookRecipe())]
    return [tiny_network.files()["config.json"], full["config.json"], *recipes]


def gate(content: bytes) -> None:
    """A gate's statistics: read, and used on an image."""
    with contextlib.suppress(ValueError):
        found = json.loads(content)
        made = Gate(from_dict(GateConfig, found))
        with np.errstate(all="ignore"):
            image = read(np.arange(100 * 90, dtype=np.uint16).reshape(100, 90) * np.uint16(7))
            made.check(inspect(image, fit(image)), np.ones(tiny_network.FEATURES, np.float32))


def report(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        found = Report.from_json(content.decode())
        found.to_json()


def reports() -> list[bytes]:
    p = np.array([0.1, 0.4, 0.8, 0.9])
    made = make_report(
        [0, 1, 1, 0],
        np.stack([1 - p, p], 1),
        labels=("NORMAL", "PNEUMONIA"),
        threshold=0.5,
        names="abcd",
        sources="xxyy",
        n_bootstrap=100,
    )
    return [made.to_json().encode(), made.to_json(predictions=False).encode()]


def network(content: bytes) -> None:
    """A model's file: as it comes (first byte even), or as the parts of a sound one with other numbers in them (odd),
    which gets much deeper."""
    model = content[1:] if not content or content[0] % 2 == 0 else _rebuilt(content[1:])
    with contextlib.suppress(BundleError, RuntimeError, ValueError):
        runtime = Runtime(model, threads=1)
        runtime.run(np.zeros((1, runtime.input_size, runtime.input_size, 1), np.float32))


def _rebuilt(edits: bytes) -> bytes:
    model = tiny_network.network()
    graph = model.subgraphs[0]
    for which, what, at, value in struct.iter_unpack("<BBBb", edits[: len(edits) // 4 * 4][:64]):
        tensor, operator = graph.tensors[which % len(graph.tensors)], graph.operators[which % len(graph.operators)]
        number = value if value > -100 else 2 ** (value + 128)
        try:
            if what % 8 == 0:
                tensor.shape[at % len(tensor.shape)] = number
            elif what % 8 == 1:
                tensor.type = abs(value) % 18
            elif what % 8 == 2:
                operator.inputs[at % len(operator.inputs)] = number
            elif what % 8 == 3:
                operator.outputs[0] = number
            elif what % 8 == 4:
                code = model.operatorCodes[at % len(model.operatorCodes)]
                code.builtinCode = abs(number) % 210
                code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            elif what % 8 == 5:
                graph.outputs[at % 3] = number
            elif what % 8 == 6:
                options = vars(operator.builtinOptions)
                setattr(operator.builtinOptions, sorted(options)[at % len(options)], number)
            elif model.buffers[tensor.buffer].data is not None:
                raw = model.buffers[tensor.buffer].data.copy()
                raw[at % len(raw)] = value & 255
                model.buffers[tensor.buffer].data = raw
        except (IndexError, TypeError, ZeroDivisionError):
            continue
    try:
        return tiny_network.pack(model)
    except Exception:  # noqa: BLE001 - numbers that the format cannot hold
        return b""


def networks() -> list[bytes]:
    return [
        b"\0" + tiny_network.pack(tiny_network.network()),
        *(b"\1" + bytes([i, k, 0, v]) for i in range(6) for k in range(8) for v in (0, 1, 2, 255)),
    ]


TARGETS = {
    "images": Target(images, pictures, repair_png),
    "dicom": Target(images, radiographs),
    "manifest": Target(manifest, manifests),
    "config": Target(config, configs),
    "gate": Target(gate, lambda: [json.dumps(tiny_network.tolerant_gate()).encode()]),
    "report": Target(report, reports),
    "network": Target(network, networks),
}
