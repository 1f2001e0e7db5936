"""The rules of the house that no tool checks: who imports whom, what an import costs, docstrings, examples, words."""

from __future__ import annotations

import ast
import doctest
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_network

import cxrlib
from cxrlib import bundle

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cxrlib"
# The rooms of the house, packages and modules: each imports only from those before it.
ORDER = (
    *("config", "images", "metrics", "runtime", "hub", "data", "reporting", "network"),
    *("bundle", "predictor", "evaluation", "export", "web", "training", "ray", "cli"),
)
PARTS = {"_cli_predict": "cli", "__main__": "cli", "hub_errors": "hub"}  # modules that are a part of another room
LATER = {("metrics.report", "reporting")}  # inside a function: `Report.save` calls what draws it
OWNERS = {  # an outside library, and the rooms that may import it; NumPy may be imported anywhere
    "PIL": {"data", "images", "runtime"},
    "ai_edge_litert": {"runtime"},
    "filelock": {"bundle", "data", "hub", "training"},
    "fsspec": {"ray"},
    "gradio": {"cli"},
    "huggingface_hub": {"hub", "reporting"},
    "imagecodecs": {"images"},
    "jax": {"network"},
    "keras": {"bundle", "evaluation", "export", "network", "training"},
    "matplotlib": {"reporting"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "pandas": {"metrics", "ray"},
    "pyarrow": {"data", "ray"},
    "pydicom": {"images"},
    "ray": {"ray"},
    "scipy": {"network"},
    "sklearn": {"metrics", "network", "reporting"},
    "tensorflow": {"export", "network"},
    "tf2onnx": {"export"},
    "tqdm": {"cli", "data", "evaluation", "network", "predictor"},
}
CORE = {"numpy", "PIL", "filelock", "tqdm"}  # what may be imported outside a function; in `network`, Keras too
MOST_LINES, MOST_LINES_OF_ALL = 450, 14_000  # and on the way to 10,000


class Import(NamedTuple):
    name: str
    place: str  # "top", "function", or "types" for those under TYPE_CHECKING


def modules() -> list[str]:
    """Dotted names below `cxrlib`; a package by its own name."""
    paths = (path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
    names = (".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths)
    return sorted(name for name in names if name)


MODULES = modules()


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def room(module: str) -> str:
    first = module.split(".")[0]
    return PARTS.get(first, first)


def imports(node: ast.AST, place: str = "top") -> Iterator[Import]:
    """Every import of a module, `from a import b` as a.b."""
    for child in ast.iter_child_nodes(node):
        inside = place
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = "function"
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for branch in child.body:
                yield from (found._replace(place="types") for found in imports(ast.Module([branch], [])))
            yield from (found for branch in child.orelse for found in imports(branch, place))
            continue
        elif isinstance(child, ast.Import):
            yield from (Import(alias.name, place) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports name their package in full"
            yield from (Import(f"{child.module}.{alias.name}", place) for alias in child.names)
        yield from imports(child, inside)


def own_imports(module: str, *places: str) -> set[str]:
    """The modules of cxrlib that one imports."""
    found = set()
    for name, place in imports(tree(module)):
        parts = name.split(".")[1:]
        if name.startswith("cxrlib.") and place in places and not parts[0].startswith("__"):
            found.add(next(".".join(parts[:n]) for n in (3, 2, 1) if ".".join(parts[:n]) in MODULES))
    return found


# --- imports ---


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in MODULES} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_those_before_it(module: str) -> None:
    allowed = set(ORDER[: ORDER.index(room(module)) + 1])
    late = {other for early, other in LATER if early == module}
    assert [
        other for other in own_imports(module, "top", "function", "types") - late if room(other) not in allowed
    ] == []
    assert not late & own_imports(module, "top")


def test_no_import_leads_back() -> None:
    graph = {module: own_imports(module, "top", "function") - {module} for module in MODULES}
    for early, other in LATER:
        graph[early].discard(other)
    assert len([*graphlib.TopologicalSorter(graph).static_order()]) == len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_an_outside_library_has_its_rooms(module: str) -> None:
    found = {
        (name.split(".")[0], place)
        for name, place in imports(tree(module))
        if name.split(".")[0] not in {*sys.stdlib_module_names, "cxrlib"}
    }
    assert {name for name, place in found if place == "top"} <= CORE | (
        {"keras"} if room(module) == "network" else set()
    )
    for name, place in found:
        assert name in {*OWNERS, "numpy"}, f"say in OWNERS which rooms may import {name}"
        assert place == "types" or name == "numpy" or room(module) in OWNERS[name], f"{module} must not import {name}"


def test_the_house_stays_small() -> None:
    lines = {module: len(path_of(module).read_text(encoding="utf-8").splitlines()) for module in MODULES}
    lines["__init__"] = len((PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines())
    assert {module: n for module, n in lines.items() if n > MOST_LINES} == {}
    assert sum(lines.values()) < MOST_LINES_OF_ALL


def test_the_architecture_page_shows_the_house() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 100
    assert " → ".join(f"`{name}`" for name in ORDER) in page.replace("\n", " ")
    picture = (ROOT / "docs" / "assets" / "house.svg").read_text(encoding="utf-8")
    assert set(ORDER) <= set(re.findall(r">(\w+)</text>", picture))
    for package in ("images", "metrics", "runtime", "data", "reporting", "network"):
        listed = re.search(rf"^\| `{package}` \|(.*)$", page, re.MULTILINE)
        assert listed, f"a row for {package}"
        own = {module.split(".")[1] for module in MODULES if module.startswith(f"{package}.")}
        assert set(re.findall(r"`(\w+)`", listed[1])) == own, package


def loaded_by(code: str) -> set[str]:
    code = (
        f"import sys; before = set(sys.modules)\n{code}\nprint(*(name for name in sys.modules if name not in before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_cxrlib_loads_nothing_heavy() -> None:
    loaded = loaded_by("import cxrlib; cxrlib.__version__; dir(cxrlib)")
    assert not loaded & {"numpy", *OWNERS}


def test_predicting_needs_no_training_library(tmp_path: Path) -> None:
    folder = tiny_network.write(tmp_path / "bundle", tiny_network.files())
    loaded = loaded_by(f"from cxrlib import Predictor, phantom; Predictor({str(folder)!r})(phantom.draw())")
    assert "ai_edge_litert" in loaded
    assert not loaded & {"tensorflow", "keras", "sklearn", "scipy", "pandas", "matplotlib", "gradio", "pydicom"}


def test_public_names_come_from_where_they_are_said_to() -> None:
    assert sorted(cxrlib.__all__) == cxrlib.__all__
    assert set(cxrlib.__all__) <= set(dir(cxrlib))
    for name in cxrlib.__all__:
        found = getattr(cxrlib, name)
        home = getattr(found, "__module__", None) or found.__name__.rpartition(".")[0]  # `phantom` is a module
        assert home.startswith("cxrlib.")
        assert getattr(importlib.import_module(home), name) is found
    with pytest.raises(AttributeError, match="module 'cxrlib' has no attribute 'tarin'"):
        cxrlib.tarin  # noqa: B018


# --- docstrings ---


class Public(NamedTuple):
    name: str
    node: ast.FunctionDef | ast.ClassDef
    docstring: str
    wanted: list[str]  # parameters, or fields of a dataclass
    inherited: bool  # whether it overrides what another library documents


def public(module: str) -> Iterator[Public]:
    classes = {node.name: node for node in tree(module).body if isinstance(node, ast.ClassDef)}
    for node in tree(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            doc = ast.get_docstring(node) or ""
            if isinstance(node, ast.FunctionDef):
                yield Public(node.name, node, doc, parameters(node), False)
                continue
            yield Public(node.name, node, doc, fields(node, classes), False)
            foreign = any(isinstance(base, ast.Attribute) for base in node.bases)
            for method in node.body:
                shown = isinstance(method, ast.FunctionDef) and (
                    not method.name.startswith("_") or method.name == "__call__"
                )
                if isinstance(method, ast.FunctionDef) and shown and "overload" not in decorators(method):
                    doc = ast.get_docstring(method) or ""
                    own = parameters(method) if "staticmethod" in decorators(method) else parameters(method)[1:]
                    yield Public(f"{node.name}.{method.name}", method, doc, own, foreign)


def decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    calls = (decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list)
    return {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}


def parameters(node: ast.FunctionDef) -> list[str]:
    a = node.args
    stars = ([f"*{a.vararg.arg}"] if a.vararg else [], [f"**{a.kwarg.arg}"] if a.kwarg else [])
    return [x.arg for x in (*a.posonlyargs, *a.args)] + stars[0] + [x.arg for x in a.kwonlyargs] + stars[1]


def fields(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Fields of a dataclass, those of its bases first; parameters of another class's __init__."""
    if "dataclass" not in decorators(node):
        made = [method for method in node.body if isinstance(method, ast.FunctionDef) and method.name == "__init__"]
        return parameters(made[0])[1:] if made else []
    bases = [
        name
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in classes
        for name in fields(classes[base.id], classes)
    ]
    return bases + [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not (item.value and "init=False" in ast.unparse(item.value))
    ]


def section(docstring: str, name: str) -> str:
    found = re.search(rf"^{name}:\n((?: {{4}}.*\n?|\n)+)", docstring, re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_agree_with_signatures(module: str) -> None:
    wrong = []
    for name, node, doc, wanted, inherited in public(module):
        told = re.findall(r"^ {4}(\*{0,2}\w+): ", section(doc, "Args"), re.MULTILINE)
        if not re.match(r".+[.:]\S*$", doc.partition("\n")[0]):
            wrong.append(f"{name}: its docstring begins with no sentence")
        if isinstance(node, ast.ClassDef) and node.bases and set(told) <= set(wanted):
            continue  # a subclass may leave its base's fields to the base
        if sorted(told) != sorted(parameter for parameter in wanted if parameter != "**kwargs") and not (
            inherited and not told
        ):
            wrong.append(f"{name}: takes {', '.join(wanted) or 'nothing'}; its Args: {', '.join(told) or 'none'}")
    assert wrong == []


def test_every_module_says_what_it_is() -> None:
    assert [module for module in MODULES if not re.match(r".+[.?]", ast.get_docstring(tree(module)) or "")] == []


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__main__"])
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if room(module) == "network":
        pytest.importorskip("keras")
    if not bundle.DEFAULT.is_dir():
        monkeypatch.setattr(bundle, "DEFAULT", tiny_network.write(tmp_path / "default", tiny_network.files()))
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(
        importlib.import_module(f"cxrlib.{module}"), optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert found.failed == 0


# --- what is said once ---


def test_no_prints_asserts_or_unfinished_business() -> None:
    found = []
    for module in MODULES:
        nodes = list(ast.walk(tree(module)))
        found += [
            f"{module}: print"
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        found += [f"{module}: assert" for node in nodes if isinstance(node, ast.Assert)]
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X{3})\b")
    paths = [
        path
        for folder in ("cxrlib", "docs", "examples", "space", "benchmarks")
        for path in (ROOT / folder).rglob("*.*")
    ]
    found += [
        str(path)
        for path in paths
        if path.suffix in {".py", ".md", ".html", ".ipynb", ".yml"} and marks.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.?(?:a|b|rc|dev)\d+)?", cxrlib.__version__)
    assert not re.search(r'^version = "', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is None or cited[1] == cxrlib.__version__
    named = [path.name for path in PACKAGE.rglob("*.py") if f'"{cxrlib.__version__}"' in path.read_text("utf-8")]
    assert named == ["__init__.py"]


# --- words ---

WORDS = (  # of a private language, and the field's word
    (r"(?<![a-z])films?(?![a-z])", "image, radiograph"),
    (r"(?<![a-z])filmed(?![a-z])", "taken, acquired"),
    (r"(?<![a-z])ill(?![a-z]|-)", "positive, with pneumonia"),
    (r"(?<![a-z])healthy(?![a-z])", "negative, normal"),
    (r"(?<![a-z])(?:believe[sd]?|believing|belief)(?![a-z])", "weight"),
    (r"(?<![a-z])(?:hears?|heard)(?![a-z])", "depends on, uses, detects"),
    (r"(?<![a-z])(?:whereof|thereof|therein|whereby|wherein)(?![a-z])", "of which, of it"),
    (r"(?<!there )(?<!there are )(?<![a-z])(?:is|are) no (?!longer|more|less|fewer|better|worse)[a-z]+", "is not a"),
)
QUOTED = re.compile(  # names of other people's files, fields and folders
    r"films?\.(?:csv|png|jpe?g|dcm|zip)|two_films_side_by_side|film_side|Film(?:Orientation|Consumption)\w*",
    re.IGNORECASE,
)
FOLDERS = {"cxrlib/data/scan.py": {"healthy"}, "tests/test_scan.py": {"healthy"}}  # what others call their normal class
AREAS = {
    "cxrlib": ["cxrlib/**/*.py", "cxrlib/**/*.html", "cxrlib/reporting/*.md"],
    "docs": ["README.md", "CONTRIBUTING.md", "docs/**/*.md"],
    "examples": ["examples/**/*.py", "examples/**/*.md", "examples/*.ipynb"],
    "space": ["space/*.py", "space/*.md", "space/*.html", "space/*.js"],
    "tests": ["tests/**/*.py"],
    "benchmarks": ["benchmarks/**/*.py"],
}


@pytest.mark.parametrize("area", AREAS)
def test_words_are_of_the_field(area: str) -> None:
    found = []
    for path in sorted({path for pattern in AREAS[area] for path in ROOT.glob(pattern)} - {Path(__file__).resolve()}):
        name = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            text = QUOTED.sub("", line)
            found += [
                f"{name}:{number}: {match[0]} (say {better})"
                for word, better in WORDS
                for match in re.finditer(word, text, re.IGNORECASE)
                if match[0].lower() not in FOLDERS.get(name, ())
            ]
    assert found == []
