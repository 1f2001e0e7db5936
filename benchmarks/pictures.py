"""Images that are not chest radiographs, for `benchmarks/gate.py --others FOLDER`: photographs, drawings, screens, CT
and MR slices, from packages of Debian.

    python benchmarks/pictures.py FOLDER

Downloads about a gigabyte with `apt-get download`, installs nothing, and leaves one folder of JPEG files for each kind.
Needs Debian or a relative of it.
"""

from __future__ import annotations

import gzip
import plistlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = {
    "wallpapers": (
        "gnome-backgrounds",
        "lomiri-wallpapers-16.04",
        "lomiri-wallpapers-20.04",
        "mate-backgrounds",
        "plasma-workspace-wallpapers",
        "ukui-wallpapers",
    ),
    "animals, plants, things": ("tuxpaint-stamps-default",),
    "examples of OpenCV": ("opencv-doc",),
    "planets and skies": ("stellarium-data",),
    "screens of GIMP's manual": ("gimp-help-en",),
    "examples of scikit-image": ("python-skimage-doc",),
}
MOST, SMALLEST, SIDE = 400, 200, 1024  # pictures of a kind; pixels
WINDOWS = {"lung": (-1000, 1000), "soft tissue": (-160, 240), "bone": (-500, 1500)}  # of a CT, in Hounsfield units
BRAINS = ("ch2", "ch2bet", "ch2better", "inia19-t1-brain")  # of MRIcron; the last is a monkey's
SLICES = 12  # of a volume, along each axis


def unpack(package: str, folder: Path) -> Path:
    """Download a package of Debian's and unpack it, without installing it."""
    subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
    [archive] = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg", "-x", archive.name, package], cwd=folder, check=True)
    archive.unlink()
    return folder / package


def pictures(folder: Path) -> Iterator[Image.Image]:
    """The large pictures of a folder, in an arbitrary but fixed order, without those that look like an earlier one."""
    kinds = (".jpg", ".jpeg", ".png", ".webp", ".tif")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds and not path.is_symlink())
    known = set()
    for i in np.random.default_rng(0).permutation(len(paths)):
        try:
            with Image.open(paths[i]) as image:
                if min(image.size) < SMALLEST:
                    continue
                image.draft("RGB", (SIDE, SIDE))
                opaque = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
                picture = Image.new("RGB", image.size)
                picture.paste(image, mask=opaque)
        except (OSError, Image.DecompressionBombError):
            continue
        picture.thumbnail((SIDE, SIDE))
        small = np.asarray(picture.convert("L").resize((12, 12)), float)
        if (sketch := (small > small.mean()).tobytes()) not in known:
            known.add(sketch)
            yield picture


def slices(volume: np.ndarray, low: float, high: float) -> Iterator[Image.Image]:
    """Slices of a volume along its three axes, between two values."""
    for axis in range(3):
        for part in np.linspace(0.2, 0.8, SLICES):
            plane = np.flipud(np.take(volume, int(part * volume.shape[axis]), axis=axis)).astype(float)
            grey = np.clip((plane - low) / (high - low), 0, 1) * 255
            yield Image.fromarray(grey.astype(np.uint8)).resize((512, 512))


def ct(folder: Path) -> Iterator[Image.Image]:
    """Slices of the head in InVesalius' examples, in three windows."""
    with tarfile.open(next(folder.rglob("Cranium.inv3"))) as archive:
        parts = {Path(member.name).name: member for member in archive.getmembers()}

        def read(name: str) -> bytes:
            file = archive.extractfile(parts[name])
            assert file is not None
            return file.read()

        matrix = plistlib.loads(read("main.plist"))["matrix"]
        volume = np.frombuffer(read(matrix["filename"]), matrix["dtype"]).reshape(matrix["shape"])
    for low, high in WINDOWS.values():
        yield from slices(volume, low, high)


def mr(folder: Path) -> Iterator[Image.Image]:
    """Slices of the brains of MRIcron, NIfTI files."""
    for name in BRAINS:
        data = gzip.decompress(next(folder.rglob(f"{name}.nii.gz")).read_bytes())
        shape, kind = np.frombuffer(data, "<i2", 3, 42), int(np.frombuffer(data, "<i2", 1, 70)[0])
        start, form = int(np.frombuffer(data, "<f4", 1, 108)[0]), {2: "u1", 4: "<i2", 8: "<i4", 16: "<f4"}[kind]
        volume = np.frombuffer(data, form, int(np.prod(shape)), start).reshape(shape[::-1]).T
        yield from slices(np.transpose(volume, (0, 2, 1)), 0, float(np.quantile(volume, 0.995)))


def main(target: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for kind, packages in PACKAGES.items():
            roots = work / kind
            roots.mkdir()
            for package in packages:
                unpack(package, roots)
            save(pictures(roots), Path(target, kind))
        save(ct(unpack("invesalius-examples", work)), Path(target, "CT slices"))
        save(mr(unpack("mricron-data", work)), Path(target, "MR slices"))


def save(found: Iterator[Image.Image], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    n = 0
    for n, picture in enumerate(found, 1):
        picture.save(folder / f"{n:04d}.jpg", quality=92)
        if n == MOST:
            break
    print(f"{folder}: {n}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
