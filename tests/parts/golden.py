"""Where the golden results are: what the published code computes on tiny random weights, in float32 on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parts.paths import GOLDEN

FOLDER = Path(os.environ.get("GOLDEN_DIR") or GOLDEN)


def golden_folder(name: str, *files: str) -> tuple[Path, pytest.MarkDecorator]:
    """A golden folder, and the mark for tests that skips them, with a reason, where it or its files are missing."""
    folder = FOLDER / name
    missing = [file for file in files if not (folder / file).exists()]
    reason = f"{folder} lacks {', '.join(missing)}; set GOLDEN_DIR to the folder that holds {name}"
    return folder, pytest.mark.skipif(bool(missing), reason=reason)
