"""What is shipped, and what it stands on: `python benchmarks/supply.py [--commit HEAD] [--pythons 3.10 3.13]
[--audit]`.

Builds sdist and wheel of a commit twice, in two places and time zones, and compares them byte by byte (`--output dist`
keeps them: what is released); looks through their content; runs `twine check` and `check-wheel-contents`; installs the
wheel with the lowest direct dependencies that it allows (and that have wheels) and the newest, for every Python that is
asked for (by version or path), and predicts drawn images with a small bundle, whose golden probe must hold each time.
`--audit` looks the newest ones up in the database of known vulnerabilities. Prints JSON; needs git, uv and a package
index. The exit status is 0 where everything holds.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
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
TOOLS = ["build", "twine", "check-wheel-contents", "pip-audit", "setuptools>=77"]
WHEEL = "|".join(
    (
        r"cxrlib/(?:\w+\.py|py\.typed|\w+\.(?:md|html))",
        r"cxrlib/default/(?:figures/)?[\w.-]+",
        r"cxrlib/_space/\w+\.(?:py|md|html|css|js|txt)",
        r"cxrlib-[\w.+]+\.dist-info/(?:METADATA|WHEEL|RECORD|entry_points\.txt|top_level\.txt|licenses/LICENSE)",
    )
)
SMOKE = """
import sys
sys.path.append(sys.argv[1])
import json
from importlib import metadata
from pathlib import Path
from cxrlib import Predictor
from cxrlib.images import phantom
from cxrlib.bundle import load
bundle = load(sys.argv[2], threads=1)
images = [phantom.draw(seed=seed) for seed in range(3)]
answers = [Predictor(sys.argv[2], threads=1)(image).probability for image in images]
names = ["ai-edge-litert", "huggingface-hub", "numpy", "pillow"]
versions = {name: metadata.version(name) for name in names}
print(json.dumps({"versions": versions, "probe": bundle.config.probe, "answers": answers}))
"""


def run(*words: object, cwd: Path | None = None, **more: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env={**os.environ, **more}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))[:200]}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def build(python: Path, commit: str, place: Path, zone: str) -> dict[str, Path]:
    """Build both distributions of a commit in a place of their own, so that they depend on the commit alone."""
    place.mkdir(parents=True)
    stamp = int(run("git", "log", "-1", "--format=%ct", commit, cwd=ROOT))
    run("git", "archive", "-o", place / "source.tar", commit, cwd=ROOT)
    before = os.umask(0o022)  # wheels hold permissions
    try:
        run("tar", "-xf", place / "source.tar", "--one-top-level=source", cwd=place)
        for path in (place / "source").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        run(
            python,
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            place / "dist",
            place / "source",
            SOURCE_DATE_EPOCH=str(stamp),
            TZ=zone,
            PYTHONHASHSEED=str(len(zone)),
        )
    finally:
        os.umask(before)
    made = {"wheel" if path.suffix == ".whl" else "sdist": path for path in (place / "dist").iterdir()}
    settle(made["sdist"], stamp)
    return made


def settle(sdist: Path, stamp: int) -> None:
    """Pack an sdist anew without what setuptools puts there of the moment and the machine: times, owners, permissions,
    order."""
    with tarfile.open(sdist) as archive:
        content = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    with (
        sdist.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=stamp) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(content):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(content[name]), stamp, 0o644
            archive.addfile(member, io.BytesIO(content[name]))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def direct(wheel: Path) -> list[str]:
    """What the wheel requires without any extra."""
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    return [line for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE) if "extra ==" not in line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--pythons", nargs="*", default=[f"{sys.version_info[0]}.{sys.version_info[1]}"])
    parser.add_argument("--audit", action="store_true", help="look for known vulnerabilities")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep sdist and wheel here")
    options = parser.parse_args()
    result: dict[str, object] = {"commit": run("git", "rev-parse", options.commit, cwd=ROOT).strip()}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cxrlib-supply-") as top:
        tools = Path(top, "tools")
        run("uv", "venv", "--quiet", "--python", sys.executable, tools)
        python = tools / "bin" / "python"
        run("uv", "pip", "install", "--quiet", "--python", python, *TOOLS)
        first, second = (
            build(python, options.commit, Path(top, name), zone)
            for name, zone in (("first", "UTC"), ("second/deeper", "Asia/Tokyo"))
        )
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            for path in first.values():
                shutil.copy2(path, options.output)
        for kind in ("sdist", "wheel"):
            same = sha(first[kind]) == sha(second[kind])
            result[kind] = {
                "name": first[kind].name,
                "bytes": first[kind].stat().st_size,
                "sha256": sha(first[kind]),
                "built twice alike": same,
            }
            wrong += [] if same else [f"the {kind} differs from build to build"]
        inside = zipfile.ZipFile(first["wheel"]).namelist()
        wrong += [f"the wheel holds {name}" for name in inside if not re.fullmatch(WHEEL, name)]
        listed = run("git", "ls-tree", "-r", "--name-only", options.commit, "cxrlib", cwd=ROOT).splitlines()
        wrong += [f"the wheel lacks {name}" for name in listed if name not in inside]
        with tarfile.open(first["sdist"]) as archive:
            sources = {name.partition("/")[2] for name in archive.getnames()}
        wrong += [f"the sdist lacks {name}" for name in listed if name not in sources]
        wrong += [
            f"the sdist holds {name}"
            for name in sorted(sources)
            if re.match(r"tests/fuzz/found|.*\.(?:dcm|tflite|jpe?g)$", name) and "default/" not in name
        ]
        for words in (("twine", "check", "--strict", *first.values()), ("check-wheel-contents", first["wheel"])):
            try:
                result[words[0]] = run(tools / "bin" / words[0], *words[1:]).strip().splitlines()[-1]
            except RuntimeError as error:
                wrong.append(str(error))
        folder = Path(top, "tiny")
        sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
        import tiny_network

        tiny_network.write(folder, tiny_network.files())
        answers = []
        for version in options.pythons:
            for which in ("lowest-direct", "highest"):
                venv = Path(top, f"{version}-{which}")
                try:
                    run("uv", "venv", "--quiet", "--python", version, venv)
                    run(
                        "uv",
                        "pip",
                        "install",
                        "--quiet",
                        "--python",
                        venv / "bin" / "python",
                        "--resolution",
                        which,
                        "--only-binary",
                        ":all:",
                        first["wheel"],
                        *direct(first["wheel"]),
                    )
                    said = json.loads(
                        run(venv / "bin" / "python", "-I", "-c", SMOKE, "", folder, cwd=Path(top)).splitlines()[-1]
                    )
                except RuntimeError as error:
                    wrong.append(f"Python {version}, {which}: {error}")
                    continue
                result[f"Python {version}, {which}"] = said["versions"]
                answers.append(said["answers"])
                if options.audit and which == "highest":
                    frozen = Path(top, "frozen.txt")
                    frozen.write_text(
                        "".join(
                            line
                            for line in run("uv", "pip", "freeze", "--python", venv / "bin" / "python").splitlines(True)
                            if "cxrlib" not in line
                        )
                    )
                    try:
                        result["pip-audit"] = run(
                            tools / "bin" / "pip-audit", "--no-deps", "--disable-pip", "-r", frozen
                        ).strip()
                        if "could not be audited" in str(result["pip-audit"]):
                            result["pip-audit"] = (
                                "its database cannot be reached from here: it knows none of the packages"
                            )
                    except RuntimeError as error:
                        reached = (
                            "onnection" not in str(error)
                            and "resolve" not in str(error)
                            and "timed out" not in str(error)
                        )
                        result["pip-audit"] = (
                            str(error)[-1000:] if reached else "its database cannot be reached from here"
                        )
                        wrong += ["pip-audit found something"] if reached else []
        spread = max((abs(a - b) for one in answers for a, b in zip(one, answers[0], strict=True)), default=0.0)
        result["largest difference of an answer between these"] = spread
        wrong += [f"answers differ by {spread:g}"] if spread > 1e-3 else []
    print(json.dumps({**result, "wrong": wrong}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
