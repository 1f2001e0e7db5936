"""How many small errors, put into the code one at a time, do the tests find?

    pip install cosmic-ray && python benchmarks/mutants.py [--number 60] [--seed 0] [MODULE …]

Draws mutants of each module where a silent error would hurt most, runs the module's tests on each in a copy of the
repository, and prints the part that was found and a difference for every one that was not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "images/decode": "tests/test_images.py",
    "metrics/calibration": "tests/test_calibration.py tests/test_curves.py",
    "metrics/thresholds": "tests/test_thresholds.py",
    "metrics/compute": "tests/test_metrics.py",
    "metrics/intervals": "tests/test_metrics.py tests/test_properties_metrics.py",
    "data/split": "tests/test_split.py",
    "runtime/gate": "tests/test_gate.py",
}
CONFIG = """[cosmic-ray]
module-path = "cxrlib/{module}.py"
timeout = 120.0
excluded-modules = []
test-command = "env PYTHONPATH=. OMP_NUM_THREADS=1 {python} -m pytest -x -q -p no:cacheprovider -p no:randomly {tests}"
[cosmic-ray.distributor]
name = "local"
"""
SKIPPED = ("core/RemoveDecorator", "core/ReplaceBinaryOperator_BitOr")  # dataclasses, and types such as `int | None`


def check(module: str, number: int, seed: int) -> tuple[str, int, int, list[str]]:
    """Module, mutants found, mutants tried, and the differences of those not found."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "site", "node_modules", "__pycache__"))
        config, session = copy / "mutants.toml", copy / "mutants.sqlite"
        config.write_text(CONFIG.format(module=module, tests=TESTS[module], python=sys.executable))

        def run(*words: str | Path) -> str:
            return subprocess.run(
                [sys.executable, "-m", "cosmic_ray.cli", *map(str, words)],
                cwd=copy,
                check=True,
                capture_output=True,
                text=True,
            ).stdout

        run("init", config, session)
        with sqlite3.connect(session) as database:
            rows = database.execute("select job_id, operator_name from mutation_specs").fetchall()
            jobs = sorted(job for job, operator in rows if not operator.startswith(SKIPPED))
            kept = set(random.Random(seed).sample(jobs, min(number, len(jobs))))
            for table in ("mutation_specs", "work_items"):
                column = "job_id"
                gone = [(job,) for job, _ in rows if job not in kept]
                database.executemany(f"delete from {table} where {column} = ?", gone)
        run("exec", config, session)
        with sqlite3.connect(session) as database:
            results = database.execute("select test_outcome, diff from work_results").fetchall()
        missed = [diff for outcome, diff in results if "SURVIVED" in str(outcome).upper()]
        return module, len(results) - len(missed), len(results), missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(check, module, options.number, options.seed) for module in options.modules or TESTS]
        for job in jobs:
            module, found, tried, missed = job.result()
            print(f"{module}: {found} of {tried} found", flush=True)
            for difference in missed:
                print(
                    *(line for line in difference.splitlines() if line[:1] in "+-@" and line[:3] not in ("+++", "---")),
                    sep="\n",
                )


if __name__ == "__main__":
    main()
