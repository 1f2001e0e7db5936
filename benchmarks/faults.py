"""Kill cxrlib at random moments and see what is lost: `python benchmarks/faults.py [--kills 100] [--only cache,save]
[--seed 0]`.

Six kinds of work are killed with SIGKILL, each `--kills` times, half of them at a random time and half before a random
step on the file system or the network: filling the cache, training (a tiny network on drawn images), saving a bundle,
pushing to and downloading from a Hub (of tests/hub_server.py), and predicting a batch. After every kill a
reader looks at what is there; then the work is started again in the same place, and killed again or left to end.
Printed as JSON for each kind: what was lost (there before, not there now), corrupt (read, and not what it should be),
left over after an undisturbed end, and what could not be resumed. The exit status is 0 where all four are empty.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import tiny_network
from hub_server import HubServer, environment, serving
from PIL import Image

from cxrlib import Predictor, bundle, cli
from cxrlib.config import BundleError, DefaultRecipe
from cxrlib.data import cache
from cxrlib.data import scan as data
from cxrlib.images import decode as images
from cxrlib.images import phantom

TOKEN = "hf_faults"
SIZE = 32
RECIPE = DefaultRecipe(image_size=32, epochs=3, batch_size=8, validation=0.25)
STEPS = {
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "shutil.rmtree",
    "shutil.copyfile",
    "socket.connect",
    "ctypes.dlsym",
}

Found = dict[str, list[str]]  # what is wrong, by kind


class Work:
    """One kind of work: how to begin it, what it does (in a child), what a reader must find after a kill, and what at
    the end."""

    def __init__(self, shared: Path, hub: HubServer) -> None:
        self.shared, self.hub, self.reference = shared, hub, None

    def prepare(self, place: Path) -> None:
        """Make what the work starts from."""

    @staticmethod
    def run(place: Path, shared: Path) -> None:
        """Do the work."""
        raise NotImplementedError

    def look(self, place: Path, found: Found) -> None:
        """Read what a kill has left."""

    def end(self, place: Path, found: Found) -> Any:
        """Check what an undisturbed end has left; what it gives must be the same each time."""
        raise NotImplementedError


class Cache(Work):
    def prepare(self, place: Path) -> None:
        self.images = _noise(self.shared / "noise")
        self.pixels = np.stack(
            [np.rint(images.fit(images.read(path), SIZE)[..., 0] * 255).astype(np.uint8) for path in self.images.paths]
        )

    @staticmethod
    def run(place: Path, shared: Path) -> None:
        os.environ["CXRLIB_CACHE"] = str(place / "cache")
        cache.decode(data.scan(shared / "noise"), size=SIZE, progress=False)

    def look(self, place: Path, found: Found) -> None:
        for file in place.glob("cache/*.npy"):
            if file.with_suffix(".json").exists() and np.load(file).shape != self.pixels.shape:
                found["corrupt"].append(f"{file.name} has another shape")

    def end(self, place: Path, found: Found) -> Any:
        os.environ["CXRLIB_CACHE"] = str(place / "cache")
        if not np.array_equal(np.asarray(cache.decode(self.images, size=SIZE, progress=False).images), self.pixels):
            found["corrupt"].append("the cache has other pixels")
        found["left over"] += [path.name for path in place.rglob("*.part")]


class Save(Work):
    @staticmethod
    def run(place: Path, shared: Path) -> None:
        if (place / "bundles" / "made").exists():  # whole, by a process that was killed after its last step
            return
        content = tiny_network.files()
        config = bundle.read_config(content["config.json"])
        bundle.save(place / "bundles" / "made", dataclasses.replace(config, files={}), content["model.tflite"])

    def look(self, place: Path, found: Found) -> None:
        if (place / "bundles" / "made").exists():
            bundle.load(place / "bundles" / "made", threads=1)

    def end(self, place: Path, found: Found) -> Any:
        # an empty draft may stay, until the next save there
        drafts = place / "bundles" / ".made.part" / "bundle"
        found["left over"] += [path.name for path in drafts.rglob("*")]
        return bundle.load(place / "bundles" / "made", threads=1).config.temperature


class Train(Work):
    def prepare(self, place: Path) -> None:
        if not (self.shared / "phantoms").exists():
            phantom.write(self.shared / "phantoms", n=14, seed=3, size=64)

    @staticmethod
    def run(place: Path, shared: Path) -> None:
        from cxrlib.training import train

        os.environ["CXRLIB_CACHE"] = str(place / "cache")
        train(shared / "phantoms", output=place / "runs" / "first", recipe=RECIPE, init=None, progress=False)

    def look(self, place: Path, found: Found) -> None:
        if (place / "runs" / "first").exists():
            bundle.load(place / "runs" / "first", threads=1)

    def end(self, place: Path, found: Found) -> Any:
        loaded = bundle.load(place / "runs" / "first", threads=1)
        found["left over"] += [name for name in os.listdir(place / "runs") if name != "first"]
        found["left over"] += [path.name for path in (place / "runs").rglob("*") if "part" in path.name]
        if loaded.report is None:
            found["lost"].append("the report")
        history = json.loads((place / "runs" / "first" / "run" / "run.json").read_text())["history"]
        files = sorted(path.relative_to(place).as_posix() for path in (place / "runs" / "first").rglob("*"))
        return files, [round(loss, 2) for loss in history["loss"]]


class Push(Work):
    def prepare(self, place: Path) -> None:
        for i, name in enumerate(("first", "second")):
            tiny_network.write(
                place / name, tiny_network.files(seed=i, notes=[name], extra={"figures/roc.png": bytes([i]) * 1000})
            )
        Predictor(place / "first", threads=1).push_to_hub(_repo(place), token=TOKEN)

    @staticmethod
    def run(place: Path, shared: Path) -> None:
        Predictor(place / "second", threads=1).push_to_hub(_repo(place), token=TOKEN)

    def look(self, place: Path, found: Found) -> None:
        with tempfile.TemporaryDirectory() as fresh:
            notes = Predictor.from_hub(_repo(place), cache_dir=fresh, threads=1).config.notes
        if notes not in (("first",), ("second",)):
            found["corrupt"].append(f"the repository says {notes}")

    def end(self, place: Path, found: Found) -> Any:
        self.look(place, found)
        repo = self.hub.repos["model", _repo(place)]
        if set(repo.tags) != {"v1", "v2"} or repo.tags["v2"] != repo.branches["main"] or len(repo.commits) != 3:
            found["left over"].append(f"{len(repo.commits)} commits, tags {sorted(repo.tags)}")
        return sorted(self.hub.files(_repo(place)))


class Download(Work):
    def prepare(self, place: Path) -> None:
        self.hub.plant(_repo(place), tiny_network.files(seed=0, notes=["first"]))
        Predictor.from_hub(_repo(place), cache_dir=place / "cache", threads=1)
        self.hub.plant(
            _repo(place), tiny_network.files(seed=1, notes=["second"], extra={"figures/roc.png": bytes(3_000_000)})
        )

    @staticmethod
    def run(place: Path, shared: Path) -> None:
        Predictor.from_hub(_repo(place), cache_dir=place / "cache", threads=1)

    def look(self, place: Path, found: Found) -> None:
        try:
            notes = Predictor.from_hub(
                _repo(place), cache_dir=place / "cache", local_files_only=True, threads=1
            ).config.notes
        except FileNotFoundError as error:
            found["lost"].append(f"the version that was there: {error}")
            return
        if notes not in (("first",), ("second",)):
            found["corrupt"].append(f"the cache says {notes}")

    def end(self, place: Path, found: Found) -> Any:
        found["left over"] += [
            path.name for path in place.rglob("*") if path.name.endswith((".incomplete", ".tmp", ".part"))
        ]
        return Predictor.from_hub(
            _repo(place), cache_dir=place / "cache", local_files_only=True, threads=1
        ).config.notes


class Predict(Work):
    def prepare(self, place: Path) -> None:
        if not (self.shared / "batch").exists():
            phantom.write(self.shared / "batch", n=8, seed=9, size=128)
            tiny_network.write(self.shared / "tiny", tiny_network.files())

    @staticmethod
    def run(place: Path, shared: Path) -> None:
        words = [
            "predict",
            str(shared / "batch"),
            "--model",
            str(shared / "tiny"),
            "--csv",
            str(place / "out.csv"),
            "--heatmaps",
            str(place / "maps"),
        ]
        if cli.main(words) != 0:
            raise RuntimeError("cxrlib predict failed")

    def look(self, place: Path, found: Found) -> None:
        if (place / "out.csv").exists():
            text = (place / "out.csv").read_text("utf-8").replace(str(place), "")
            whole = self.reference[0] if self.reference else ""
            if not text.endswith("\n") and text:
                found["corrupt"].append("half a row in the table")
            elif whole and not whole.startswith(text):
                other = next(
                    ((a, b) for a, b in zip(text.splitlines(), whole.splitlines(), strict=False) if a != b), None
                )
                found["corrupt"].append(f"rows that are none of the batch's: {other}")
        for path in place.glob("maps/*.png"):
            try:
                pixels = hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest()
            except OSError as error:
                found["corrupt"].append(f"half a picture: {path.name} ({error})")
            else:
                if self.reference and pixels != self.reference[1][path.name]:
                    found["corrupt"].append(f"another picture: {path.name}")

    def end(self, place: Path, found: Found) -> Any:
        self.look(place, found)
        found["left over"] += [path.name for path in place.glob("maps/*") if path.suffix != ".png"]
        text = (place / "out.csv").read_text("utf-8").replace(str(place), "")
        if len(list(csv.reader(text.splitlines()))) != 17:
            found["lost"].append("rows of the table")
        return text, {
            path.name: hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest()
            for path in place.glob("maps/*.png")
        }


WORKS: dict[str, type[Work]] = {work.__name__.lower(): work for work in (Cache, Save, Push, Download, Predict, Train)}


def _repo(place: Path) -> str:
    return f"faults/{place.name}"


def _noise(folder: Path) -> data.Dataset:
    if not folder.exists():
        draw = np.random.default_rng(0)
        for i in range(60):
            path = folder / ("NORMAL", "PNEUMONIA")[i % 2] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (48, 56), np.uint8)).save(path)
            os.utime(path, (1e9, 1e9 + i))
    return data.scan(folder)


# --- a process that forks victims: libraries are loaded once ---


def serve(names: list[str]) -> None:
    """Read tasks from stdin, one JSON object a line; fork, kill as asked, and say how it ended."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache  # noqa: F401

    if "train" in names:
        pass
    for line in sys.stdin:
        task = json.loads(line)
        sys.stdout.flush()
        start, killed = time.monotonic(), False
        pid = os.fork()
        if pid == 0:
            _be_victim(task)
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if task["delay"] is not None and not killed and time.monotonic() - start > task["delay"]:
                os.kill(pid, signal.SIGKILL)
                killed = True
            time.sleep(0.002)
        print(
            json.dumps({"code": os.waitstatus_to_exitcode(ended[1]), "seconds": time.monotonic() - start}), flush=True
        )


def _be_victim(task: dict[str, Any]) -> None:
    code = 1
    try:
        log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        steps = [0]

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            if event in STEPS or (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            ):
                if steps[0] == task["step"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                steps[0] += 1

        sys.addaudithook(count)
        WORKS[task["work"]].run(Path(task["place"]), Path(task["shared"]))
        Path(task["log"]).with_suffix(".steps").write_text(str(steps[0]))
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must not return
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Victims:
    """The process that forks them."""

    def __init__(self, names: list[str], top: Path) -> None:
        self.top = top
        command = [sys.executable, __file__, "--serve", *names]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def run(
        self, name: str, place: Path, *, delay: float | None = None, step: int | None = None
    ) -> tuple[int, float, int]:
        """Give the exit status, the seconds, and the number of steps of one that was left to end."""
        log = self.top / f"{name}.log"
        task = {
            "work": name,
            "place": str(place),
            "shared": str(self.top / "shared"),
            "log": str(log),
            "delay": delay,
            "step": step,
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if answer["code"] not in (0, -signal.SIGKILL):
            return answer["code"], answer["seconds"], 0
        return (
            answer["code"],
            answer["seconds"],
            int(log.with_suffix(".steps").read_text()) if answer["code"] == 0 else 0,
        )


def kill(name: str, kills: int, victims: Victims, hub: HubServer, draw: random.Random) -> dict[str, Any]:
    """Kill one kind of work so many times."""
    work = WORKS[name](victims.top / "shared", hub)
    found: Found = {"lost": [], "corrupt": [], "left over": [], "not resumed": []}
    number = 0

    def begin() -> Path:
        nonlocal number
        number += 1
        place = victims.top / f"{name}{number}"
        place.mkdir(parents=True)
        work.prepare(place)
        return place

    def safely(check: Any, place: Path) -> Any:
        try:
            return check(place, found)
        except (BundleError, OSError, ValueError, KeyError) as error:
            found["corrupt"].append(f"{type(error).__name__}: {error}")

    def finish(place: Path) -> Any:
        code, seconds, steps = victims.run(name, place)
        if code != 0:
            found["not resumed"].append((victims.top / f"{name}.log").read_text()[-600:])
            return None, seconds, steps
        return safely(work.end, place), seconds, steps

    finish(begin())
    work.reference, seconds, steps = finish(begin())
    done = {"by time": 0, "by step": 0, "finished": 2, "seconds unbroken": round(seconds, 2), "steps unbroken": steps}
    place, tries = begin(), 0
    while done["by time"] + done["by step"] < kills and len(found["not resumed"]) < 5 and tries < 4 * kills:
        tries += 1
        by_time = draw.random() < max(0.5, 1 - steps / 20)
        how = {"delay": draw.uniform(0, 1.02 * seconds)} if by_time else {"step": draw.randrange(max(steps, 1))}
        code, _, _ = victims.run(name, place, **how)  # type: ignore[arg-type]
        if code == -signal.SIGKILL:
            done["by time" if by_time else "by step"] += 1
            safely(work.look, place)
        elif code != 0:
            found["not resumed"].append((victims.top / f"{name}.log").read_text()[-600:])
        if code == 0 or draw.random() < 0.4:
            result, _, _ = finish(place)
            done["finished"] += 1
            if result != work.reference:
                found["corrupt"].append(f"it ends otherwise than an unbroken run: {str(result)[:300]}")
            place = begin()
    return {
        **done,
        **{kind: sorted(set(problems))[:10] for kind, problems in found.items()},
        "problems": sum(map(len, found.values())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each kind of work")
    parser.add_argument("--only", default=",".join(WORKS), help="kinds of work, between commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    names = options.only.split(",")
    if unknown := set(names) - set(WORKS):
        parser.error(f"--only knows {', '.join(WORKS)}, not {', '.join(sorted(unknown))}")
    problems = 0
    with tempfile.TemporaryDirectory(prefix="cxrlib-faults-") as top, serving() as hub:
        hub.add_user(TOKEN, "faults")
        os.environ.update(environment(hub, Path(top, "home")))
        Path(top, "shared").mkdir()
        victims = Victims(names, Path(top))
        try:
            for name in names:
                result = kill(name, options.kills, victims, hub, random.Random(f"{options.seed}/{name}"))
                problems += result["problems"]
                print(json.dumps({name: result}, indent=1), flush=True)
        finally:
            victims.process.kill()
            victims.process.wait()
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
