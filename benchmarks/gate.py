"""What the gate refuses: `python benchmarks/gate.py [--others FOLDER] [--model M] [--images N] [--made N]`.

Images of every source, bones, pictures of installed packages (photographs of scikit-image, scikit-learn, Matplotlib,
Gradio and others where they are installed, scans of pydicom), pictures in the folders below FOLDER, each folder a kind
that must be refused, drawn and spoilt pictures, and drawn phantoms pass the model's own gate. Then, for each source, a
gate that was fitted to the other sources alone, as if the source were a hospital never seen. Prints, for every kind,
how many pictures there are, and the parts in percent that were refused and that passed with a warning. Takes half an
hour on 2 cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cxrlib import Predictor
from cxrlib.data.cache import decode
from cxrlib.data.scan import outliers, scan
from cxrlib.images import decode as images
from cxrlib.images import phantom, sources
from cxrlib.runtime import gate

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared")) / "data"
SOURCES = ("chest_xray/train", "nih", "rsna")
FOLDERS = {  # of installed packages: photographs, drawings and screens; no radiographs
    "skimage": "data",
    "sklearn": "datasets/images",
    "matplotlib": "mpl-data/sample_data",
    "gradio": "media_assets/images",
    "imgaug": ".",
    "mahotas": "demos/data",
}
WINDOWS = 6  # cut out of each photograph


def photographs() -> Iterator[Image.Image]:
    """Photographs of installed packages."""
    for package, folder in FOLDERS.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(place, folder).glob("*")):
                if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif", ".webp") and "phantom" not in path.name:
                    with Image.open(path) as image:
                        if min(image.size) >= 100:
                            yield image.convert("RGB")


def scans() -> Iterator[images.Radiograph]:
    """CT, MR and ultrasound among pydicom's own files."""
    if importlib.util.find_spec("pydicom"):
        from pydicom.data import get_testdata_files

        for path in sorted(get_testdata_files("*.dcm")):
            try:
                image = images.read(path)
            except sources.ImageError:
                continue
            if image.modality in ("CT", "MR", "US", "NM", "PT"):
                yield image


def seen(images: Iterator[object]) -> np.ndarray:
    """What the network sees of images: (n, 224, 224) uint8."""
    fitted = [images.fit(image if isinstance(image, images.Radiograph) else images.read(image)) for image in images]  # type: ignore[arg-type]
    return np.round(np.array(fitted).reshape(-1, 224, 224) * 255).astype(np.uint8)


def collect(others: Path | None, most: int) -> dict[str, np.ndarray]:
    """Pictures by kind."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for source in (*SOURCES, "chest_xray/test", "native"):
        images = scan(SHARED / source)
        images = images.take(np.sort(rng.permutation(len(images))[:most]))
        found[f"images of {source}"] = np.array(decode(images, size=224, progress=False).images)
    found["phantoms"] = seen(
        phantom.draw(10**6 + i, opacity=i % 2 == 1, size=(64, 128, 224, 512, 1024)[i % 5]) for i in range(200)
    )
    pool = np.concatenate([found[f"images of {source}"][:100] for source in SOURCES])
    made = outliers.outliers(pool, 400, seed=10**6)
    found["drawn others"], found["spoilt images"] = made[::2], made[1::2]
    found["bones"] = seen(iter(sorted((SHARED / "not_chest").rglob("*.jpg"))))
    photos = list(photographs())
    found["photographs"] = seen(iter(photos))
    boxes = [(image, *rng.uniform(0, 0.6, 2), rng.uniform(0.35, 0.4)) for image in photos for _ in range(WINDOWS)]
    found["windows of photographs"] = seen(
        image.crop(
            (int(x * image.width), int(y * image.height), int((x + s) * image.width), int((y + s) * image.height))
        )
        for image, x, y, s in boxes
    )
    found["scans of pydicom"] = seen(scans())
    for folder in sorted(path for path in others.iterdir() if path.is_dir()) if others else []:
        found[folder.name] = seen(iter(sources.find(folder)))
    return {kind: pictures for kind, pictures in found.items() if len(pictures)}


def judge(config: gate.GateConfig, features: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, float]]:
    """By kind, how many there are, and the percentages that are refused and warned of, by what the network sees
    alone."""
    watch, table = gate.Gate(config), {}
    for kind, (embeddings, layouts) in features.items():
        strangeness = watch.measure(embeddings, layouts)
        refused = strangeness > config.refuse
        warned = ~refused & (strangeness > config.warn)
        table[kind] = {
            "n": len(strangeness),
            "refused": round(100 * float(refused.mean()), 2),
            "warned": round(100 * float(warned.mean()), 2),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--others", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--images", type=int, default=gate.PER_SOURCE, help="of each source, at most")
    parser.add_argument("--made", type=int, default=3000)
    options = parser.parse_args()
    predictor = Predictor(options.model)
    runtime, guard = predictor._bundle.runtime, predictor._gate
    if guard is None:
        raise SystemExit("the model has no gate")
    known: dict[bytes, np.ndarray] = {}

    def embed(images: np.ndarray) -> np.ndarray:
        keys = [image.tobytes() for image in np.round(images * 255).astype(np.uint8)]
        new = [i for i, key in enumerate(keys) if key not in known]
        known.update(zip([keys[i] for i in new], runtime.run(images[new]).embedding, strict=True))
        return np.stack([known[key] for key in keys])

    pictures = collect(options.others, options.images)
    features = {kind: (embed(x[..., None] / np.float32(255)), gate.layout_of(x)) for kind, x in pictures.items()}
    print(json.dumps({"the model's own gate": judge(guard.config, features)}, indent=1), flush=True)
    for unseen in SOURCES:
        others = [source for source in SOURCES if source != unseen]
        images = np.concatenate([pictures[f"images of {source}"] for source in others])
        names = [source for source in others for _ in range(len(pictures[f"images of {source}"]))]
        config = gate.fit(images, sources=names, embed=embed, made=options.made)
        print(json.dumps({f"fitted without {unseen}": judge(config, features)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
