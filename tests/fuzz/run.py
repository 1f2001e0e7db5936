"""Fuzz one parser, or all in turn: `python tests/fuzz/run.py images --seconds 600`.

With atheris installed the search is guided by the coverage of the Python code of cxrlib and Pillow; without, or with
`--engine random`, sound inputs are damaged at random. It ends with status 1 at the first input that crashes, raises
what nobody promised, takes more than a second of processor time, or lets the process grow above 1 GB; that input is
then written to `--found` (default: the current folder).

    for target in images dicom manifest config gate report network
    do python tests/fuzz/run.py $target --seconds 600; done
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
SLOW = 1.0  # seconds of processor time for one input
MOST = 2**30  # bytes that the process may grow to
LONGEST = 4096  # bytes that an input grows to


def mutate(sound: list[bytes], draw: random.Random) -> bytes:
    """Damage a sound input: a few bytes, a piece cut, doubled, moved, or taken from another one."""
    made = bytearray(draw.choice(sound))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at, length = draw.randrange(len(made) + 1), draw.choice((1, 1, 2, 4, 8, 64))
        kind = draw.randrange(7)
        if kind == 0:
            made[at : at + length] = draw.randbytes(length)
        elif kind == 1:
            made[at : at + length] = draw.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * length
        elif kind == 2:
            del made[at : at + length]
        elif kind == 3:
            made[at:at] = made[at : at + length] * draw.choice((1, 2, 50))
        elif kind == 4:
            other = draw.choice(sound)
            start = draw.randrange(len(other) + 1)
            made[at : at + length] = other[start : start + draw.choice((4, 16, 200))]
        elif kind == 5 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 6 and draw.random() < 0.1:
            del made[at:]
    return bytes(made[: 8 * LONGEST])


class Watch:
    """A target that notices time and memory, and keeps the input at hand for whoever asks what it was."""

    def __init__(self, run: object, last: Path) -> None:
        self.run, self.calls, self.slowest = run, 0, 0.0
        self.file = os.open(last, os.O_RDWR | os.O_CREAT)

    def __call__(self, content: bytes) -> None:
        os.pwrite(self.file, len(content).to_bytes(8, "little") + content, 0)  # a crash cannot tell any more
        start = time.process_time()
        self.run(content)  # type: ignore[operator]
        spent = time.process_time() - start
        self.calls, self.slowest = self.calls + 1, max(self.slowest, spent)
        if spent > SLOW:
            raise TimeoutError(f"{spent:.1f} s for one input of {len(content):,} bytes")
        if self.calls % 256 == 0 and (grown := 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) > MOST:
            raise MemoryError(f"the process has grown to {grown / 1e6:,.0f} MB")


def child(name: str, seconds: float, seed: int, engine: str, last: Path) -> None:
    warnings.simplefilter("ignore")
    os.dup2(
        os.open(os.devnull, os.O_WRONLY), 2
    ) if engine == "random" and name == "network" else None  # LiteRT greets anew for each model
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["cxrlib", "PIL"]):  # it cannot trace pydicom
            from targets import TARGETS
    else:
        from targets import TARGETS
    target = TARGETS[name]
    sound, watch = target.seeds(), Watch(target.run, last)
    for content in sound:
        watch(content)
    watch.slowest = 0.0  # the first calls import what they need
    if engine == "atheris":
        corpus = last.with_name("corpus")
        corpus.mkdir()
        for i, content in enumerate(sound):
            (corpus / str(i)).write_bytes(content)

        def mutator(content: bytes, most: int, seed: int) -> bytes:
            return target.repair(atheris.Mutate(content, most))[:most]

        words = [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={seconds:.0f}",
            f"-max_len={max(LONGEST, *map(len, sound))}",
            "-timeout=60",
            "-rss_limit_mb=2048",
            f"-seed={seed + 1}",
            f"-artifact_prefix={last.parent}/",
            "-print_final_stats=1",
        ]
        atheris.Setup(words, watch, custom_mutator=mutator)
        atheris.Fuzz()
        return
    draw, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        watch(target.repair(mutate(sound, draw)))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name}: {watch.calls:,} inputs, slowest {watch.slowest:.3f} s, at most {grown:,.0f} MB", flush=True)


def fuzz(name: str, *, seconds: float, seed: int = 0, engine: str = "", found: Path | None = None) -> str:
    """Fuzz one parser in a process of its own, which may crash.

    Returns:
        What went wrong, empty if nothing did.
    """
    if not engine:
        try:
            import atheris  # noqa: F401

            engine = "atheris"
        except ImportError:
            engine = "random"
    with tempfile.TemporaryDirectory() as place:
        last = Path(place, "last")
        words = [
            "sh",
            "-c",
            '"$@"; exit $?',
            "sh",
        ]  # a process that is started by a large one counts that one's memory as its own
        words += [
            sys.executable,
            __file__,
            name,
            "--child",
            str(last),
            "--seconds",
            str(seconds),
            "--seed",
            str(seed),
            "--engine",
            engine,
        ]
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "TMPDIR": place},
        )
        lines = [
            line
            for line in done.stdout.splitlines()
            if line.startswith((name, "Done", "stat::number", "stat::peak", "#"))
        ]
        print("\n".join(lines[-4:]), flush=True)
        if done.returncode == 0:
            return ""
        content = last.read_bytes()
        if found:
            (found / f"found-{name}").write_bytes(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return f"{name} ended with status {done.returncode}: {done.stdout[-3000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("atheris", "random"), default="")
    parser.add_argument("--found", type=Path, default=Path())
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.target, options.seconds, options.seed, options.engine, options.child)
        return 0
    problem = fuzz(
        options.target, seconds=options.seconds, seed=options.seed, engine=options.engine, found=options.found
    )
    if problem:
        print(problem)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
