"""Memory: `python benchmarks/memory.py [--predictions 10000] [--model BUNDLE] [--images N] [--limit MB]`.

Predicts many images with one predictor, one after another and in streams, and prints how much the process has grown
after the first tenth. Then reads an epoch of a training set in a control group that allows less memory than the set's
decoded images take, as training does; needs root on Linux, and says so otherwise.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import numpy as np
from PIL import Image

from cxrlib import Predictor, bundle
from cxrlib.data import cache
from cxrlib.data import scan as data
from cxrlib.images import phantom

GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
SIDE = 1024  # of the decoded images of the training set: 1 MB each


def resident() -> float:
    """MB that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def predictions(model: Path, n: int) -> dict[str, object]:
    """Predict images of every kind of source."""
    predictor = Predictor(model)
    with tempfile.TemporaryDirectory() as folder:
        phantom.write(folder, n=16, seed=1, size=512)
        paths = sorted(Path(folder).rglob("*.png"))
        arrays = [np.asarray(Image.open(path)) for path in paths]
        held, done = [], 0
        while done < n:
            for path, pixels in zip(paths, arrays, strict=True):
                predictor(path)
                predictor(path.read_bytes())
                predictor(pixels)
            answers = list(predictor.stream([*paths, b"no image"], errors="return"))
            predictor.explain(paths[0])
            done += 3 * len(paths) + len(answers) + 1
            if done >= len(held) * n / 10:
                gc.collect()
                held.append(round(resident(), 1))
    files = len(os.listdir("/proc/self/fd"))
    return {
        "model": str(model.name),
        "predictions": done,
        "MB after each tenth": held,
        "grown by MB after the first tenth": round(held[-1] - held[1], 1),
        "open files": files,
    }


def epoch(folder: Path, images: int) -> dict[str, object]:
    """Decode a training set, and read it as an epoch does: in shuffled batches."""
    start = time.monotonic()
    found = data.scan(folder / "images")
    pixels = cache.open_cache(found, size=SIDE, folder=folder / "cache", progress=False)
    total = 0
    for part in np.array_split(np.random.default_rng(0).permutation(images), images // 32):
        total += int(pixels[part].sum())
    return {
        "images": images,
        "MB of decoded images": round(images * SIDE**2 / 1e6),
        "checksum": total,
        "seconds": round(time.monotonic() - start, 1),
    }


def limited(images: int, megabytes: int) -> dict[str, object]:
    """Run `epoch` in a control group."""
    top = next(
        (place for place in GROUPS if (place / "cgroup.procs").exists() and os.access(place / "cgroup.procs", os.W_OK)),
        None,
    )
    if top is None:
        return {"skipped": "needs root, on a Linux with control groups"}
    group = top / f"cxrlib-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        return {"skipped": f"no control group can be made: {error}"}
    try:
        name = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
        (group / name).write_text(str(megabytes * 10**6))
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
            draw = np.random.default_rng(0)
            for i in range(images):
                path = Path(folder, "images", ("NORMAL", "PNEUMONIA")[i % 2], f"{i}.bmp")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (64, 64), np.uint8)).save(path)
            enter = (
                f"echo $$ > {group}/cgroup.procs && exec {sys.executable} {__file__} --epoch {folder} --images {images}"
            )
            done = subprocess.run(["bash", "-c", enter], capture_output=True, text=True)
            if done.returncode:
                return {"limit MB": megabytes, "ended with status": done.returncode, "said": done.stderr[-500:]}
            peak = next(
                (group / name for name in ("memory.max_usage_in_bytes", "memory.peak") if (group / name).exists()), None
            )
            return {
                "limit MB": megabytes,
                **json.loads(done.stdout),
                "largest use in MB, the system's cache included": round(int(peak.read_text()) / 1e6) if peak else None,
            }
    finally:
        time.sleep(0.2)
        group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        help="a bundle, several times if need be; a tiny one and the default one if not given",
    )
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--limit", type=int, default=300, metavar="MB")
    parser.add_argument("--epoch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epoch:
        print(json.dumps(epoch(options.epoch, options.images)))
        return
    import tiny_network

    with tempfile.TemporaryDirectory() as place:
        models = options.model or [
            tiny_network.write(Path(place, "tiny"), tiny_network.files()),
            *([bundle.DEFAULT] if bundle.DEFAULT.is_dir() else []),
        ]
        for model in models:
            print(json.dumps(predictions(model, options.predictions), indent=1), flush=True)
    print(json.dumps(limited(options.images, options.limit), indent=1))


if __name__ == "__main__":
    main()
