"""Imports run downwards only, heavy and optional libraries stay where they belong, and the package list is complete."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lightning_s2s"
LONGEST_FILE = 430

FOUNDATIONS = [
    "building", "cache_rows", "checks", "checkpoints.lora", "checkpoints.weights", "component", "ctc", "data.audio",
    "data.chat", "data.chat_template", "data.downmix", "data.lines", "data.manifest", "data.mp3", "data.paths",
    "data.row_checks", "data.sound_files", "data.template_renderer", "extras", "features", "files",
    "interfaces", "interleave", "journal", "kv_cache", "locks", "pretrained", "ranges", "reading", "registry",
    "sampling", "sharding", "specaugment", "splice", "tensor_parallel",
]  # fmt: skip
LEVELS = {
    # Contracts, names, and pure functions over tensors and text.
    **dict.fromkeys(FOUNDATIONS, 0),
    # Components.
    "encoders": 1, "adapters": 1, "llms": 1, "speech_decoders": 1, "vocoders": 1,
    "compatibility": 1, "encoder_cache": 1,
    "model": 2,
    "streaming": 3, "data": 3, "checkpoints": 3,
    "stages": 4, "construction": 4, "evaluation": 4, "serving": 4, "callbacks": 4,
    "commands": 5,
    "cli": 6,
}  # fmt: skip
"""Module or package -> level; a module may import its own level and those below. The longest match counts."""

CALLS_UPWARDS = {("model", "streaming.session"), ("model", "checkpoints.folder")}
"""Imports inside a function that hand a call over to the layer above: the model's `stream`, `save_pretrained`, ..."""
LIGHT = {
    "cli", "commands.components", "commands.interpolations", "commands.messages", "extras", "files", "reading",
    "registry",
}  # fmt: skip
"""What `--help` and `components` load: the standard library alone."""

WITHOUT_LIGHTNING = 3
"""Up to this level only `data`, for its LightningDataModule, may import Lightning."""
OPTIONAL = {
    "aiohttp", "datasketch", "distillmos", "encodec", "fastapi", "json_repair", "librosa", "llguidance", "mkdocs",
    "onnxruntime", "openai", "piper", "pyworld", "ray", "s3prl", "sanotts", "torchaudio",
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


def source_files() -> Iterator[tuple[str, Path]]:
    """Module name below the package, and file."""
    for folder, prefix in ((ROOT / PACKAGE, ""), (ROOT / "callbacks", "callbacks.")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield (prefix + ".".join(part for part in parts if part != "__init__")).rstrip("."), path


def find_imports(module: str, tree: ast.AST, names: set[str]) -> Iterator[Import]:
    """All imports of a module, those for type checkers alone left out; `names` are the package's modules."""

    def visit(node: ast.AST, at_module_level: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
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
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_module_level and not inside)

    return visit(tree, True)


def level_of(module: str, levels: dict[str, int] = LEVELS) -> int | None:
    """The level of the longest listed prefix of a module below the package; None when none is listed."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (level := levels.get(".".join(parts[:length]))) is not None:
            return level
    return None


FILES = dict(source_files())
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


def test_every_module_has_a_level():
    missing = [module for module in FILES if module and level_of(module) is None]
    assert not missing, f"give these modules a level in {Path(__file__).name}: {missing}"


def test_imports_run_downwards_only():
    upwards = [
        str(found)
        for found in IMPORTS
        if found.importer and (imported := inside(found)) is not None
        and (level_of(imported) or 0) > (level_of(found.importer) or 0)
        and (found.at_module_level or (found.importer, imported) not in CALLS_UPWARDS)
    ]  # fmt: skip
    assert not upwards, upwards


def test_lightning_is_imported_by_stages_data_callbacks_and_commands_alone():
    wrong = [
        str(found)
        for found in IMPORTS
        if library(found) in ("lightning", "pytorch_lightning", "lightning_fabric")
        and (level_of(found.importer) or 0) <= WITHOUT_LIGHTNING
        and not found.importer.startswith("data.")
    ]
    assert not wrong, wrong


def test_optional_libraries_are_never_imported_with_a_module():
    wrong = [str(found) for found in IMPORTS if found.at_module_level and library(found) in OPTIONAL]
    assert not wrong, wrong


def test_components_import_heavy_libraries_inside():
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_module_level and level_of(found.importer) in (0, 1) and library(found) in HEAVY
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
    assert [name for name in used if name not in named.replace("-", "_")] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", [("torch", True)]),
        ("def f():\n    import torch.nn as nn", [("torch.nn", False)]),
        ("class A:\n    from os import path", [("os", True)]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", [("typing", True)]),
        ("try:\n    import torch\nexcept ImportError:\n    pass", [("torch", True)]),
        ("from lightning_s2s import model", [("lightning_s2s.model", True)]),
        ("from lightning_s2s.model import ModelOutput", [("lightning_s2s.model", True)]),
    ],
)
def test_how_imports_are_found(source, expected):
    found = find_imports("somewhere", ast.parse(source), {"model"})
    assert [(item.imported, item.at_module_level) for item in found] == expected


def test_the_longest_listed_name_decides_the_level():
    levels = {"data": 3, "data.chat": 0}
    assert [level_of(name, levels) for name in ("data", "data.chat", "data.audio", "model")] == [3, 0, 3, None]
