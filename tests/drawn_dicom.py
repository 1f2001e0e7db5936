"""DICOM images made of pixels, for whatever reads them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian


def dataset(
    pixels: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, coded: bytes | None = None, **tags: Any
) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.PatientName = "Secret^Name"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    big = syntax == ExplicitVRBigEndian
    data.PixelData = (
        encapsulate([coded]) if coded else pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    )
    data["PixelData"].VR = "OB" if coded or pixels.dtype.itemsize == 1 else "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    data.HighBit = tags.get("HighBit", data.BitsStored - 1)
    return data


def saved(data: Dataset) -> bytes:
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()
