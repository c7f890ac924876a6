"""Pickled code, which must never run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class PickledCode:
    """Makes a folder where it is unpickled; a reader that refuses it names `posix.mkdir`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)
