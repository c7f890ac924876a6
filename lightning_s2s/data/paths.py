"""Files that a user or a manifest names: found, or missing with a hint at what may be meant."""

from __future__ import annotations

import re
import stat
import unicodedata
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class MissingFileError(ValueError):
    """There is no such file."""


def regular_file(path: Path, given: str = "") -> Path:
    """`path` itself, if it is a file that can be opened without waiting for somebody to write to it.

    Args:
        path: the file.
        given: its name as it was written, for hints.

    Raises:
        MissingFileError: there is nothing of this name.
        ValueError: it is a folder, a pipe or a device, or may not be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        raise MissingFileError(f"there is no file {_printable(path)}{_hint(path, given or str(path))}") from None
    except OSError as error:
        raise ValueError(f"the file {_printable(path)} can't be found ({error.strerror})") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{_printable(path)} is a folder; a file is needed")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{_printable(path)} is a pipe or a device; a file is needed")
    return path


def exists(path: Path) -> bool:
    """Whether there is a regular file of this name; False for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _hint(path: Path, given: str) -> str:
    if _URL.match(given):
        return "; URLs aren't fetched: download it and name the file"
    if given.startswith("~"):
        return "; ~ isn't expanded here: write the whole path"
    for form in ("NFC", "NFD"):
        other = Path(unicodedata.normalize(form, str(path)))
        if other != path and exists(other):
            return f"; there is one whose name looks the same, in Unicode's form {form}: rename it, or write it so"
    if "\\" in given and exists(Path(str(path).replace("\\", "/"))):
        return "; folders are separated by / here"
    if path.name != path.name.strip() and exists(path.with_name(path.name.strip())):
        return "; there is one without the space around its name"
    return ""


def _printable(path: Path) -> str:
    return repr(str(path).encode(errors="backslashreplace").decode())
