"""Bulk prediction against as many plain processes: `python benchmarks/scale.py [FOLDER] [--films 1000] [--workers 1 2]
[--rounds 3]`.

In every round, and for every number of workers, the films of FOLDER (default: the paediatric training set) are
predicted once by plain processes, each with a `Predictor` of one thread, every so-manieth film, and answers thrown
away; and once by `cxrlib.bulk`, with Parquet and all. Both are timed from when the first worker is ready until the last
film is done. Prints JSON: medians over the rounds, of rates, of the ratio within a round, and of the ratio of processor
time (all workers, and for Ray its driver), which hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

from cxrlib import Predictor
from cxrlib import ray as bulk
from cxrlib.images import decode as images

SHARED = Path(os.environ.get("CXRLIB_SHARED", Path(__file__).parents[2] / "shared"))


def plain(films: list[str], worker: int, workers: int, folder: str) -> None:
    """One plain process."""
    predictor = Predictor(threads=1)
    start, used = time.time(), time.process_time()
    for _ in predictor.stream(films[worker::workers], batch_size=2, errors="return"):
        pass
    note(folder, start, time.process_time() - used)


def note(folder: str, start: float, used: float) -> None:
    Path(folder, str(os.getpid())).write_text(json.dumps([start, time.time(), used]))


class Timed(bulk._Worker):
    """A worker of Ray's that writes down when it was ready, when it was done with its last file, and what it took."""

    def __init__(self, folder: str, *arguments: object) -> None:
        super().__init__(*arguments)
        self.place, self.start, self.used = folder, time.time(), time.process_time()

    def __call__(self, batch):
        done = super().__call__(batch)
        note(self.place, self.start, time.process_time() - self.used)
        return done


def measure(run, films: list[str]) -> dict[str, float]:
    """Rate, processor seconds a film, and seconds until the first worker was ready."""
    with tempfile.TemporaryDirectory() as folder:
        begin, used = time.time(), time.process_time()
        run(folder)
        used = time.process_time() - used
        notes = [json.loads(file.read_text()) for file in Path(folder).iterdir()]
    start = min(note[0] for note in notes)
    seconds = max(note[1] for note in notes) - start
    return {
        "rate": len(films) / seconds,
        "processor": (used + sum(note[2] for note in notes)) / len(films),
        "until_ready": start - begin,
    }


def with_processes(films: list[str], workers: int, folder: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=plain, args=(films, i, workers, folder)) for i in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def with_ray(films: list[str], workers: int, folder: str) -> None:
    worker, run = bulk._Worker, bulk._run
    bulk._Worker = Timed
    bulk._run = lambda ray, parts, n, arguments: run(ray, parts, n, (folder, *arguments))
    try:
        with tempfile.TemporaryDirectory() as output:
            done = bulk.predict(films, output, workers=workers, progress=False)
            if done.films != len(films):
                raise RuntimeError(f"{len(films) - done.films} films were lost")
    finally:
        bulk._Worker, bulk._run = worker, run


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED / "data" / "chest_xray" / "train")
    parser.add_argument("--films", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import ray

    found = bulk.find(options.folder)
    films = found[:: max(1, len(found) // options.films)][: options.films]
    for film in films:  # files from memory for both
        images.read(film)
    ray.init(num_cpus=max(options.workers), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rounds = [
        {
            workers: (
                measure(functools.partial(with_processes, films, workers), films),
                measure(functools.partial(with_ray, films, workers), films),
            )
            for workers in options.workers
        }
        for _ in range(options.rounds)
    ]
    median = statistics.median
    for workers in options.workers:
        pairs = [one[workers] for one in rounds]
        processor = median(processes["processor"] for processes, _ in pairs)
        print(
            json.dumps(
                {
                    "films": len(films),
                    "workers": workers,
                    "processes_films_per_s": round(median(processes["rate"] for processes, _ in pairs), 1),
                    "ray_films_per_s": round(median(ray["rate"] for _, ray in pairs), 1),
                    "ray_over_processes": round(median(ray["rate"] / processes["rate"] for processes, ray in pairs), 3),
                    "ray_over_processes_by_processor_time": round(
                        median(processes["processor"] / ray["processor"] for processes, ray in pairs), 3
                    ),
                    "ray_until_ready_s": round(median(ray["until_ready"] for _, ray in pairs), 1),
                    "processor_ms_per_film": round(1000 * processor, 1),
                    "films_per_core_hour": round(3600 / processor),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
