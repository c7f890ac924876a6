"""The locked files: at the versions of the constraints, each with hashes, and all that pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from parts.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "base": [],
    "dev": ["codecs", "ssl", "construction", "ray", "piper", "serve", "evaluation", "dev"],
    "docs": ["docs"],
}


def pinned(path: Path) -> dict[str, str]:
    """Name -> version, of lines `name==version`."""
    found = re.findall(r"^([\w.-]+)==([^ \n]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.mark.parametrize("name", EXTRAS)
def test_each_package_has_the_version_of_the_constraints_and_hashes(name):
    path = ROOT / "requirements" / f"{name}.txt"
    constraints = pinned(ROOT / "constraints.txt")
    locked = pinned(path)
    assert locked.items() >= {package: version for package, version in constraints.items() if package in locked}.items()
    entries = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)).splitlines()
    assert len(entries) == len(locked)
    assert [entry for entry in entries if not re.search(r" --hash=sha256:[0-9a-f]{64}\b", entry)] == []


@pytest.mark.parametrize(("name", "extras"), EXTRAS.items())
def test_what_the_project_asks_for_is_locked(name, extras):
    asked = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    locked = pinned(ROOT / "requirements" / f"{name}.txt")
    for requirement in map(Requirement, asked):
        if requirement.name == "torch":  # installed beforehand, in the build that fits the machine
            assert "torch" not in locked
        else:
            assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)], prereleases=True), name


def test_every_extra_is_locked():
    assert {extra for extras in EXTRAS.values() for extra in extras} == set(PROJECT["optional-dependencies"])


def test_nothing_of_the_cuda_build_is_locked():
    for name in EXTRAS:
        assert [package for package in pinned(ROOT / "requirements" / f"{name}.txt") if "nvidia" in package] == []
