"""The optional dependencies of this package (`extras`): which are installed, and how to install the others.

Imports the standard library only, and no package to find out whether it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires

DISTRIBUTION = "lightning-s2s"
CPU_TORCHAUDIO = "python tools/cpu_torchaudio.py"
IMPORT_NAMES = {"scikit-learn": "sklearn"}
"""Packages that are imported by another name than their own."""


class MissingPackageError(ImportError):
    """A package must be installed first; the message is one line with the command for it."""


def extras() -> dict[str, list[str]]:
    """Extra -> the packages that it installs; empty in a source tree that isn't installed."""
    try:
        requirements = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*[\"']([^\"']+)[\"']", requirement)
        if name and extra:
            found.setdefault(extra[1], []).append(name[0])
    return found


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed; nothing is imported."""
    return [package for package in extras().get(extra, []) if not _is_installed(package)]


def extra_with(package: str, preferred: str = "") -> str | None:
    """The extra that installs a package; None when none does.

    Args:
        package: Name by which it is imported, or a module inside it.
        preferred: The extra to choose if several have the package.
    """
    name = _import_name(package.partition(".")[0])
    with_it = [extra for extra, packages in extras().items() if name in map(_import_name, packages)]
    return preferred if preferred in with_it else next(iter(with_it), None)


def install_command(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def how_to_install(error: BaseException, preferred: str = "") -> str | None:
    """One line on how to fix an error that a missing or unusable optional package has raised.

    Args:
        error: An ImportError, or an error that was raised from one.
        preferred: The extra to name if several have the package.

    Returns:
        None if the error has another cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        if remedy := _remedy(cause, preferred):
            return remedy
        cause = cause.__cause__
    return None


def _remedy(error: BaseException, preferred: str) -> str | None:
    message = str(error)
    if isinstance(error, MissingPackageError):
        return message
    if isinstance(error, ImportError):
        # transformers names the missing package only in its message
        in_words = re.search(r"requires the (\w+) library", message)
        package = in_words[1] if in_words else error.name or ""
        extra = extra_with(package, preferred) if in_words or isinstance(error, ModuleNotFoundError) else None
        if extra:
            return f"the package {package} is missing; install it with {install_command(extra)}"
    if isinstance(error, ImportError | OSError) and re.search(r"_torchaudio\S*\.(so|pyd)", message):
        return (
            "torchaudio can't be loaded: it was built for another torch than the one installed here; beside a CPU-only "
            f"torch, {CPU_TORCHAUDIO} (in the repository) takes out the part that needs CUDA"
        )
    return None


def _import_name(package: str) -> str:
    return IMPORT_NAMES.get(package, package.lower().replace("-", "_"))


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(_import_name(package)) is not None
    except (ImportError, ValueError):
        return False


def has_cpp_compiler() -> bool:
    """Whether torch can compile for a CPU here."""
    return any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
