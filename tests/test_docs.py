"""The documentation does what it says: its code runs, its pages are complete, its links lead somewhere.

Every page runs in a folder of its own, from its first block to its last, with the images and bundles that the pages
name. Python blocks are executed, doctests are compared, `cxrlib …` lines of bash blocks go through `cxrlib.cli.main`.
Lines that install, train, serve or open something else are not run (but those of cxrlib must be valid), nor are blocks
that say `# not run under test: why`.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import doctest
import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_network
from hub_server import client_of, serving
from PIL import Image
from test_house import MODULES

import cxrlib
from cxrlib import bundle, cli
from cxrlib.config import BundleConfig
from cxrlib.images import phantom

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*DOCS.rglob("*.md"), *ROOT.glob("README.md")])
TRAINING = {"docs/getting-started.md"}  # the page whose training is run
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's own, while it uploads
NOT_RUN = "# not run under test: "
INTERNAL = {
    "__main__",
    "_cli_predict",
    "data",
    "images",
    "metrics",
    "network",
    "runtime",
    "runtime.quiet",
    "reporting.style",
}
CHECKED = {"demo", "export", "train"}  # commands that take minutes, or never end: only their options are checked


class Block(NamedTuple):
    line: int
    language: str
    code: str


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, those in lists and boxes too."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        yield Block(text.count("\n", 0, found.start(3)) + 1, found[2], textwrap.dedent(found[3]))


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that the pages name."""
    pytest.importorskip("pydicom")
    from drawn_dicom import dataset, saved

    folder = tmp_path_factory.mktemp("things")
    image = Image.fromarray(phantom.draw(seed=1, opacity=True))
    for name in ("image.png", "image.jpeg"):
        image.save(folder / name)
    (folder / "study").mkdir()
    for name in ("image.dcm", "study/IM0001"):
        made = dataset(np.asarray(image), Modality="DX", ViewPosition="PA", BodyPartExamined="CHEST")
        (folder / name).write_bytes(saved(made))
    for i, name in enumerate(("hospital-a", "hospital-b", "hospital-c")):
        phantom.write(folder / name, n=6, seed=100 * i, size=128)
    images = sorted(path.relative_to(folder).as_posix() for path in folder.glob("hospital-*/*/*.*"))
    rows = [f"{image},{'AP' if i % 2 else 'PA'}\n" for i, image in enumerate(images)]
    (folder / "views.csv").write_text("image,view\n" + "".join(rows))
    (folder / "recipe.json").write_text('{"epochs": 20}')
    return folder


@pytest.fixture
def place(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with images and bundles, and a Hub on loopback that holds user/repo."""
    home = tmp_path / "work"
    shutil.copytree(things, home)
    monkeypatch.chdir(home)
    monkeypatch.setenv("CXRLIB_CACHE", str(tmp_path / "cache"))
    if not bundle.DEFAULT.is_dir():
        monkeypatch.setattr(bundle, "DEFAULT", tiny_network.write(tmp_path / "default", tiny_network.files()))
    for name in ("runs/first", "runs/second"):
        shutil.copytree(bundle.DEFAULT, home / name)
    with serving() as hub, client_of(hub, tmp_path / "home"):
        hub.add_user("hf_user", "user")
        monkeypatch.setenv("HF_TOKEN", "hf_user")
        files = [path for path in bundle.DEFAULT.rglob("*") if path.is_file()]
        hub.plant("user/repo", {path.relative_to(bundle.DEFAULT).as_posix(): path.read_bytes() for path in files})
        repo = hub.repos["model", "user/repo"]
        repo.tags["v1"] = repo.branches["main"]
        yield home


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(
    page: str, place: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    if page in TRAINING:
        pytest.importorskip("tensorflow")
        request.getfixturevalue("small_backbone")
    run_page(page, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(TRAINING))
def test_a_training_page_runs_with_its_own_backbone(page: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorflow")
    if not _has_imagenet_weights():
        pytest.skip("needs the ImageNet weights in $KERAS_HOME/models, which CI puts there")
    run_page(page, capsys)


def run_page(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if NOT_RUN in block.code:
            if block.language == "python":
                ast.parse(block.code)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, str(ROOT / page), "exec"), names)
        elif block.language == "pycon":
            test = doctest.DocTestParser().get_doctest(block.code, names, where, str(ROOT / page), block.line - 1)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(test, clear_globs=False)
            names.update(test.globs)
            assert runner.failures == 0, capsys.readouterr().out
        elif block.language == "bash":
            for line in re.split(r"\n|&&", block.code.replace("\\\n", " ")):
                _run(shlex.split(line, comments=True), page, where, capsys)


def _run(words: list[str], page: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of a bash block."""
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
    if words[:1] != ["cxrlib"]:
        return
    arguments = [str(path) for word in words[1:] for path in (sorted(Path.cwd().glob(word)) if "*" in word else [word])]
    if arguments[0] in CHECKED and page not in TRAINING:
        cli._parser().parse_args(arguments)
    else:
        capsys.readouterr()
        code = cli.main(arguments)
        assert code == 0, f"{where}: {capsys.readouterr().err}"


def _has_imagenet_weights() -> bool:
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return any((home / "models").glob("mobilenet_v2_weights_*_1.0_224_no_top.h5"))


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page: str) -> None:
    for block in blocks(page):
        if block.language in ("python", "bash") and "not run" in block.code:
            assert re.search(rf"^{NOT_RUN}\w.{{5,}}", block.code, re.MULTILINE), f"{page}, line {block.line}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [
        link.partition("#")[0]
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if not re.match(r"https?:|mailto:|#", link)
    ]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
    named = re.findall(r"`((?:docs|examples|tests|benchmarks|space|cxrlib)/[\w/.-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == [], "files that the text names"


# --- completeness ---


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_the_reference_has_every_module_and_name() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")}
    shown = [module for text in pages.values() for module in re.findall(r"^::: cxrlib\.([\w.]+)$", text, re.MULTILINE)]
    assert sorted(shown) == sorted({re.sub(r"^config\..*", "config", m) for m in MODULES} - INTERNAL)
    for name in cxrlib.__all__:
        home = cxrlib._HOMES[name]
        anchor = f"cxrlib.{home}" if home.endswith(f".{name}") else f"cxrlib.{home}.{name}"  # `phantom` is a module
        [page] = re.findall(rf"\[`{name}`\]\((\w+\.md)#{anchor}\)", pages["index.md"])
        assert f"::: cxrlib.{home}\n" in pages[page]


def test_the_command_line_page_has_every_option() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    [commands] = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    sections = dict(re.findall(r"^## cxrlib (\w+)\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))
    assert sections.keys() == commands.choices.keys()
    for name, parser in commands.choices.items():
        shown = {
            word
            for row in re.findall(r"^\| (`[^|]+) \|", sections[name], re.MULTILINE)
            for word in re.findall(r"--[\w-]+", row)
        }
        options = {
            o for action in parser._actions for o in action.option_strings if action.help != argparse.SUPPRESS
        } - {"-h", "--help"}
        assert shown == options, f"cxrlib {name}"


def test_the_bundle_page_has_every_field() -> None:
    page = (DOCS / "reference" / "bundle.md").read_text(encoding="utf-8")
    fields = [field.name for field in dataclasses.fields(BundleConfig)]
    assert sorted(re.findall(r"^\| `(\w+)` \|", page.partition("## config.json")[2], re.MULTILINE)) == sorted(fields)
    for name in (bundle.RUNTIME, bundle.KERAS, bundle.H5, bundle.REPORT, bundle.CARD, bundle.CONFIG):
        assert f"`{name}`" in page
