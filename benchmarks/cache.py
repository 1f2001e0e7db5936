"""The decode-once cache against bare decoding: `python benchmarks/cache.py [FOLDER [FILMS]]`.

Decodes the films of FOLDER (default: the paediatric training set) in turn bare, in parallel and kept nowhere, and into
a cold cache; then opens the warm cache, and reads shuffled batches from it. Prints medians and ratios as JSON.
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

from cxrlib.data import cache
from cxrlib.data import scan as data
from cxrlib.images import decode as images
from cxrlib.runtime.litert import usable_cores

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))
ROUNDS = 3
BATCH = 32


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of all threads' processor time: the latter hardly depends on what else the machine
    does."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def main(folder: Path, most: int) -> None:
    films = data.scan(folder)
    films = films.take(range(0, len(films), -(-len(films) // most)))
    workers = usable_cores()
    order = np.random.default_rng(0).permutation(len(films))

    def bare() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda path: images.fit(images.read(path)), films.paths):
                pass

    times: dict[str, list[tuple[float, float]]] = {"bare": [], "cold": [], "warm": [], "batches": []}
    for path in films.paths:  # files from memory for both
        Path(path).read_bytes()
    for _ in range(ROUNDS):
        times["bare"].append(spent(bare))
        with tempfile.TemporaryDirectory() as place:

            def fill(place: str = place) -> cache.Films:
                return cache.open_cache(films, folder=place, workers=workers, progress=False)

            times["cold"].append(spent(fill))
            times["warm"].append(spent(fill))
            opened = fill()
            times["batches"].append(
                spent(lambda opened=opened: [opened[order[i : i + BATCH]] for i in range(0, len(order), BATCH)])
            )

    def ratio(which: int) -> float:
        return round(
            statistics.median(b[which] / c[which] for b, c in zip(times["bare"], times["cold"], strict=True)), 3
        )

    def rate(name: str) -> int:
        return round(len(films) / statistics.median(clock for clock, _ in times[name]))

    result = {
        "films": len(films),
        "threads": workers,
        "bare_films_per_s": rate("bare"),
        "cold_films_per_s": rate("cold"),
        "cold_over_bare": ratio(0),
        "cold_over_bare_by_processor_time": ratio(1),
        "warm_s": round(statistics.median(clock for clock, _ in times["warm"]), 3),
        "warm_processor_s": round(statistics.median(processor for _, processor in times["warm"]), 3),
        "batch_films_per_s": rate("batches"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED / "data" / "chest_xray" / "train"
    main(place, int(sys.argv[2]) if len(sys.argv) > 2 else 10**9)
