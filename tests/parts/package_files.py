"""The package's modules and their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from parts.paths import ROOT

PACKAGE = "lightning_s2s"


def source_files() -> Iterator[tuple[str, Path]]:
    """Module name below the package, and file."""
    for folder, prefix in ((ROOT / PACKAGE, ""), (ROOT / "callbacks", "callbacks.")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield (prefix + ".".join(part for part in parts if part != "__init__")).rstrip("."), path


FILES = dict(source_files())
