"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to fill; it takes the place of `path` at the end, and is deleted after an error.

    Its name ends as that of `path`, since many writers take the format from it.
    """
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, in a folder that is made if it isn't there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def make_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `folder` and rename it.

    Raises:
        ValueError: `folder` exists and isn't empty, or lies in no folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists already; give a folder that is new or empty")
    if not folder.resolve().parent.is_dir():
        raise ValueError(f"{folder}: the folder {folder.resolve().parent} does not exist")
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.resolve().parent))
    try:
        write(temporary)
        temporary.chmod(0o755)  # mkdtemp leaves it to its owner alone
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
