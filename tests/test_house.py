"""The rules of the house that no tool checks: who imports whom, what an import costs, docstrings that agree with signatures, examples that run."""

from __future__ import annotations

import ast
import doctest
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
ORDER = (
    *(
        "progress",
        "cores",
        "config",
        "dicom",
        "sources",
        "images",
        "phantom",
        "lungs",
        "estimates",
        "resampling",
        "calibration",
        "reports",
        "curves",
        "comparison",
        "metrics",
        "hub",
        "remote",
        "data",
        "cache",
        "sampling",
        "graph",
        "augmentation",
        "layers",
        "model",
        "runtime",
        "framing",
        "audit",
        "drawings",
        "outliers",
        "gate",
    ),
    *(
        "explain",
        "plots",
        "html_report",
        "card",
        "bundle",
        "predictor",
        "bulk",
        "evaluation",
        "export",
        "operating_points",
        "machines",
        "head",
        "fitting",
        "training",
        "cli",
    ),
)  # each imports only from those before it
LATER = {("reports", "html_report"), ("reports", "plots")}  # inside a function: Report.save draws what it holds
OWNERS = {  # an outside library, and the modules that may import it
    "PIL": {"cli", "drawings", "evaluation", "explain", "framing", "images", "outliers", "phantom", "sources"},
    "ai_edge_litert": {"graph", "runtime"},
    "fsspec": {"bulk"},
    "gradio": {"cli"},
    "huggingface_hub": {"hub"},
    "imagecodecs": {"dicom"},
    "jax": {"machines"},
    "keras": {"augmentation", "export", "fitting", "head", "layers", "machines", "model", "training"},
    "matplotlib": {"plots"},
    "pydicom": {"dicom"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "pyarrow": {"bulk", "remote"},
    "ray": {"bulk"},
    "sklearn": {"framing", "gate", "head"},
    "tensorflow": {"export"},
    "tf2onnx": {"export"},
}
CORE = {
    "numpy",
    "PIL",
}  # what a module may import outside its functions; Keras too where the module is Keras throughout
KERAS = {"augmentation", "fitting", "head", "layers", "model"}


class Import(NamedTuple):
    name: str
    place: str  # "top", "function", or "types" for those under TYPE_CHECKING


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("[!_]*.py"))


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imports(node: ast.AST, place: str = "top") -> Iterator[Import]:
    """Every import of a module, `from cxrlib import x` as cxrlib.x."""
    for child in ast.iter_child_nodes(node):
        inside = place
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = "function"
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            yield from (
                found._replace(place="types") for branch in child.body for found in imports(ast.Module([branch], []))
            )
            yield from (found for branch in child.orelse for found in imports(branch, place))
            continue
        elif isinstance(child, ast.Import):
            yield from (Import(alias.name, place) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module == "cxrlib":
            yield from (
                Import("cxrlib" if alias.name.startswith("__") else f"cxrlib.{alias.name}", place)
                for alias in child.names
            )
        elif isinstance(child, ast.ImportFrom):
            yield Import(child.module or "", place)
        yield from imports(child, inside)


def own_imports(module: str, *places: str) -> set[str]:
    return {
        name.split(".")[1] for name, place in imports(tree(module)) if name.startswith("cxrlib.") and place in places
    }


def import_graph() -> dict[str, set[str]]:
    """Who imports whom, when it is loaded or later, without the exceptions."""
    return {
        module: own_imports(module, "top", "function") - {module} - {late for early, late in LATER if early == module}
        for module in modules()
    }


# --- imports ---


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == modules()


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_those_before_it(module: str) -> None:
    before = set(ORDER[: ORDER.index(module)])
    assert own_imports(module, "top") <= before
    assert own_imports(module, "function") <= before | {module} | {late for early, late in LATER if early == module}


@pytest.mark.parametrize("module", ORDER)
def test_an_outside_library_has_its_owners(module: str) -> None:
    found = {
        (name.split(".")[0], place)
        for name, place in imports(tree(module))
        if name.split(".")[0] not in {*sys.stdlib_module_names, "cxrlib"}
    }
    assert {name for name, place in found if place == "top"} <= CORE | ({"keras"} if module in KERAS else set())
    for name, place in found:
        assert name in {*OWNERS, "numpy"}, f"say in OWNERS who may import {name}"
        assert place == "types" or name == "numpy" or module in OWNERS[name], f"{module} must not import {name}"


def drawn_graph() -> str:
    """The import graph in Mermaid, without the arrows that a longer path implies."""
    graph = import_graph()

    def reach(module: str) -> set[str]:
        return {module}.union(*(reach(other) for other in graph[module]))

    arrows = [
        f"  {module} --> {other}"
        for module in ORDER
        for other in ORDER
        if other in graph[module] and not any(other in reach(x) for x in graph[module] - {other})
    ]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```"])


def test_the_architecture_page_is_true() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{module}`" for module in ORDER) in page
    assert drawn_graph() in page
    for library, owners in OWNERS.items():
        if library != "PIL":
            assert f"| {library} | {', '.join(f'`{owner}`' for owner in sorted(owners))} |" in page
    assert set(re.findall(r"`(\w+)`", page.partition("## Modules")[2].partition("## Who")[0])) == set(ORDER)


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
    assert not loaded & {"tensorflow", "keras", "sklearn", "matplotlib", "gradio", "pydicom"}


def test_public_names_come_from_where_they_are_said_to() -> None:
    assert sorted(cxrlib.__all__) == cxrlib.__all__ == sorted(cxrlib._HOMES)
    assert set(cxrlib.__all__) <= set(dir(cxrlib))
    assert [
        name
        for name, home in cxrlib._HOMES.items()
        if name not in {getattr(node, "name", None) for node in tree(home).body}
    ] == []
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
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def section(docstring: str, name: str) -> str:
    found = re.search(rf"^{name}:\n((?: {{4}}.*\n?|\n)+)", docstring, re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.parametrize("module", ORDER)
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
    assert [module for module in modules() if not re.match(r".+[.?]", ast.get_docstring(tree(module)) or "")] == []


@pytest.mark.parametrize("module", ORDER)
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if module in KERAS:
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
    for module in modules():
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
    assert [
        path.name for path in PACKAGE.glob("*.py") if f'"{cxrlib.__version__}"' in path.read_text(encoding="utf-8")
    ] == ["__init__.py"]
