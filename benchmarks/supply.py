"""What is shipped, and what it stands on: `python benchmarks/supply.py [--pythons 3.10 3.13] [--audit] [--output DIR]`.

Builds sdist and wheel of a commit twice, in two places and time zones, and compares them byte by byte; compares their
content with the repository's; installs the wheel with the lowest direct dependencies that it allows and the newest, for
every Python asked for, and predicts drawn images with a small bundle. `--audit` looks the newest dependencies up in a
database of known vulnerabilities. Prints JSON; needs git, uv and a package index. Exits with 0 where everything holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ["build", "hatchling>=1.27", "twine", "pip-audit"]
SMOKE = """
import json, sys
from importlib import metadata
from cxrlib import Predictor, phantom
predictor = Predictor(sys.argv[1], threads=1)
names = ("ai-edge-litert", "filelock", "huggingface-hub", "numpy", "pillow", "tqdm")
answers = [predictor(phantom.draw(seed=seed)).to_dict()["probabilities"] for seed in range(3)]
print(json.dumps({"versions": {name: metadata.version(name) for name in names}, "answers": answers}))
"""


def run(*words: object, cwd: Path | None = None, **more: str) -> str:
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **more}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def build(python: Path, commit: str, place: Path, zone: str) -> dict[str, Path]:
    """Build both distributions of a commit in a place of their own, so that they depend on the commit alone."""
    place.mkdir(parents=True)
    run("git", "archive", "--prefix=source/", "-o", place / "source.tar", commit, cwd=ROOT)
    run("tar", "-xf", place / "source.tar", cwd=place)
    stamp = run("git", "log", "-1", "--format=%ct", commit, cwd=ROOT).strip()
    words = ("-m", "build", "--no-isolation", "--outdir", place / "dist", place / "source")
    run(python, *words, SOURCE_DATE_EPOCH=stamp, TZ=zone, PYTHONHASHSEED=str(len(zone)))
    return {"wheel" if path.suffix == ".whl" else "sdist": path for path in (place / "dist").iterdir()}


def content(made: dict[str, Path], commit: str) -> list[str]:
    """What the distributions hold too much, and what they lack."""

    def tracked(folder: str) -> set[str]:
        return set(run("git", "ls-tree", "-r", "--name-only", commit, folder, cwd=ROOT).splitlines())

    expected = tracked("cxrlib") | {name.replace("space/", "cxrlib/_space/", 1) for name in tracked("space")}
    wheel = {name for name in zipfile.ZipFile(made["wheel"]).namelist() if ".dist-info/" not in name}
    with tarfile.open(made["sdist"]) as archive:
        sdist = {name.partition("/")[2] for name in archive.getnames()}
    wrong = [f"the wheel holds {name}" for name in sorted(wheel - expected)]
    wrong += [f"the wheel lacks {name}" for name in sorted(expected - wheel)]
    wrong += [f"the sdist lacks {name}" for name in sorted((tracked("cxrlib") | tracked("space")) - sdist)]
    images = (name for name in sorted(sdist) if re.search(r"\.(?:dcm|jpe?g)$", name))
    return wrong + [f"the sdist holds {name}" for name in images]


def direct(wheel: Path) -> list[str]:
    """What the wheel requires without any extra."""
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    return [line for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE) if "extra ==" not in line]


def audit(tools: Path, python: Path) -> str:
    """Look an environment's packages up in a database of known vulnerabilities."""
    frozen = python.parent / "frozen.txt"
    lines = run("uv", "pip", "freeze", "--python", python).splitlines(True)
    frozen.write_text("".join(line for line in lines if not line.startswith("cxrlib")))
    return run(tools / "bin" / "pip-audit", "--no-deps", "--disable-pip", "-r", frozen).strip() or "none known"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--pythons", nargs="*", default=[f"{sys.version_info[0]}.{sys.version_info[1]}"])
    parser.add_argument("--audit", action="store_true", help="look for known vulnerabilities")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep sdist and wheel here")
    options = parser.parse_args()
    result: dict[str, object] = {"commit": run("git", "rev-parse", options.commit, cwd=ROOT).strip()}
    wrong: list[str] = []
    answers: list[list[list[float]]] = []
    with tempfile.TemporaryDirectory(prefix="cxrlib-supply-") as top:
        tools = Path(top, "tools")
        run("uv", "venv", "--quiet", "--python", sys.executable, tools)
        run("uv", "pip", "install", "--quiet", "--python", tools / "bin" / "python", *TOOLS)
        made = build(tools / "bin" / "python", options.commit, Path(top, "first"), "UTC")
        again = build(tools / "bin" / "python", options.commit, Path(top, "second", "deeper"), "Asia/Tokyo")
        for kind, path in made.items():
            digests = [hashlib.sha256(one[kind].read_bytes()).hexdigest() for one in (made, again)]
            result[kind] = {"name": path.name, "bytes": path.stat().st_size, "sha256": digests[0]}
            wrong += [] if digests[0] == digests[1] else [f"the {kind} differs from build to build"]
            if options.output:
                options.output.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, options.output)
        wrong += content(made, options.commit)
        try:
            run(tools / "bin" / "twine", "check", "--strict", *made.values())
        except RuntimeError as error:
            wrong.append(str(error))
        sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
        import tiny_network

        folder = tiny_network.write(Path(top, "tiny"), tiny_network.files())
        for version in options.pythons:
            for which in ("lowest-direct", "highest"):
                python = Path(top, f"{version}-{which}", "bin", "python")
                install = ("uv", "pip", "install", "--quiet", "--only-binary", ":all:", "--resolution", which)
                try:
                    run("uv", "venv", "--quiet", "--python", version, python.parents[1])
                    run(*install, "--python", python, made["wheel"], *direct(made["wheel"]))
                    said = json.loads(run(python, "-I", "-c", SMOKE, folder, cwd=Path(top)).splitlines()[-1])
                    result[f"Python {version}, {which}"] = said["versions"]
                    answers.append([list(one.values()) for one in said["answers"]])
                    if options.audit and which == "highest":
                        result[f"Python {version}, vulnerabilities"] = audit(tools, python)
                except RuntimeError as error:
                    wrong.append(f"Python {version}, {which}: {error}")
    pairs = ((a, b) for one in answers for x, y in zip(one, answers[0], strict=True) for a, b in zip(x, y, strict=True))
    result["largest difference of an answer"] = spread = max((abs(a - b) for a, b in pairs), default=0.0)
    wrong += [f"answers differ by {spread:g}"] if spread > 1e-3 else []
    print(json.dumps({**result, "wrong": wrong}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
