"""The decode-once cache against bare decoding: `python benchmarks/cache.py [FOLDER]`.

Decodes the films of FOLDER (default: the paediatric training set) in turn bare, in parallel and kept nowhere, and into a cold cache; then opens the warm
cache, and reads shuffled batches from it. Prints medians and ratios as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cxrlib import cache, data, images

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))
ROUNDS = 5
BATCH = 32


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(folder: Path) -> None:
    films = data.scan(folder, labels=None)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def bare() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda path: images.fit(images.read(path)), films.paths):
                pass

    times: dict[str, list[float]] = {"bare": [], "cold": [], "warm": [], "batches": []}
    seconds(lambda: [Path(path).read_bytes() for path in films.paths])  # files from memory for both
    for _ in range(ROUNDS):
        times["bare"].append(seconds(bare))
        with tempfile.TemporaryDirectory() as place:
            times["cold"].append(seconds(lambda place=place: cache.open_cache(films, folder=place, workers=workers, progress=False)))
            times["warm"].append(seconds(lambda place=place: cache.open_cache(films, folder=place, workers=workers, progress=False)))
            opened = cache.open_cache(films, folder=place, progress=False)
            order = np.random.default_rng(0).permutation(len(films))
            times["batches"].append(seconds(lambda opened=opened, order=order: [opened[order[i : i + BATCH]] for i in range(0, len(order), BATCH)]))
    median = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "films": len(films),
        "threads": workers,
        "bare_films_per_s": round(len(films) / median["bare"]),
        "cold_films_per_s": round(len(films) / median["cold"]),
        "cold_over_bare": round(statistics.median(b / c for b, c in zip(times["bare"], times["cold"], strict=True)), 3),
        "warm_s": round(median["warm"], 3),
        "batch_films_per_s": round(len(films) / median["batches"]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED / "data" / "chest_xray" / "train")
