"""Files that a user or a manifest names; the error for a missing one hints at the likely cause."""

from __future__ import annotations

import re
import stat
import unicodedata
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class MissingFileError(ValueError):
    """There is no such file."""


def regular_file(path: Path, given: str = "") -> Path:
    """Return `path` if it is a regular file, which can be read without blocking.

    Args:
        path: The file.
        given: Its name as it was written, for hints.

    Raises:
        MissingFileError: There is no file of this name.
        ValueError: It is a folder, a pipe or a device, or access is denied.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: an invalid file name
        raise MissingFileError(f"there is no file {_printable(path)}{_hint(path, given or str(path))}") from None
    except OSError as error:
        raise ValueError(f"the file {_printable(path)} can't be found ({error.strerror})") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{_printable(path)} is a folder; a file is needed")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{_printable(path)} is a pipe or a device; a file is needed")
    return path


def exists(path: Path) -> bool:
    """Whether there is a regular file of this name; False for invalid names."""
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
