"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = {
    errno.ENOSPC: "no space left on device",
    errno.EDQUOT: "no space left: disk quota exceeded",
    errno.EFBIG: "no space left: file too large",
}
"""Errors of the operating system when nothing more can be written."""

_TEMPORARY = re.compile(r"\.(\d+)-\d+\..+", re.DOTALL)
_PROBE = bytes(1 << 20)

_writing: set[Path] = set()
"""The temporary files and folders that this process is filling."""


@contextmanager
def replacing(path: Path, own_folder: bool = False) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces `path` at the end and is deleted after an error.

    Its name ends like that of `path`, since many writers take the format from it. Content and name are on the disk when
    this ends, so that even after a power failure `path` is either unchanged or complete.

    Args:
        path: The file to write.
        own_folder: Put the temporary file into a folder of its own, for writers that make temporary files beside it.

    Raises:
        OSError: Names `path`; also raised where the disk is full and the writer raised an error of its own.
    """
    with _temporary(path) as temporary:
        target = temporary
        if own_folder:
            temporary.mkdir()
            target = temporary / path.name
        with saying_no_space(path, target):
            yield target
            sync(target)
        target.replace(path)
        sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all; makes its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def make_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `folder` and rename it.

    Raises:
        ValueError: `folder` exists and isn't empty, or its parent is missing.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists already; give a folder that is new or empty")
    parent = folder.resolve().parent
    if not parent.is_dir():
        raise ValueError(f"{folder}: the folder {parent} does not exist")
    remove_leftovers(parent, folder.resolve().name)
    with _temporary(folder.resolve()) as temporary:
        temporary.mkdir()
        with saying_no_space(folder, temporary):
            write(temporary)
            sync_folder(temporary)
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)
        sync(parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that can't, mostly for folders
            raise
    finally:
        os.close(opened)


def sync_folder(folder: Path) -> None:
    """`sync` a folder and everything in it."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


@contextmanager
def saying_no_space(path: Path, written: Path) -> Iterator[None]:
    """Turn the error of a writer on a full disk into an OSError that names `path`.

    Writers in other languages lose the reason: torch's error mentions an unexpected position. So after any error this
    tests whether more can be written.

    Args:
        path: The name for the message.
        written: The file, or the folder of the files, that was being written.

    Raises:
        OSError: Nothing more can be written there; any other error is raised unchanged.
    """
    try:
        yield
    except Exception as error:
        number = _reason(error) or _refusal(written)
        if number is None:
            raise
        raise OSError(number, NO_SPACE[number], str(path)) from None  # a command would show the cause instead


def _reason(error: BaseException) -> int | None:
    """The number of `NO_SPACE` in an error, or in its text, as in errors from Rust."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return number if number in NO_SPACE else None


def _refusal(written: Path) -> int | None:
    """The error number with which the operating system refuses to write more there; None if it doesn't."""
    probe = written / f".{os.getpid()}-{threading.get_ident()}.probe" if written.is_dir() else written
    if not probe.parent.is_dir():
        return None
    try:
        with open(probe, "ab") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno if error.errno in NO_SPACE else None
    finally:
        if probe != written:
            probe.unlink(missing_ok=True)
    return None


# --- leftovers of killed writers -------------------------------------------------------------------------------------


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders of writers that were killed, never those of a living one.

    Args:
        folder: The folder to search.
        name: Name of the file or folder that was being written; None for any.
    """
    with contextlib.suppress(FileNotFoundError):
        for place in folder.iterdir():
            found = _TEMPORARY.fullmatch(place.name)
            if found and (name is None or place.name.partition(".")[2].partition(".")[2] == name):
                if place in _writing or (int(found[1]) != os.getpid() and _lives(int(found[1]))):
                    continue
                _remove(place)


def _lives(process: int) -> bool:
    """Whether a process with this id can still write."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    try:  # a zombie has ended, but its parent has not waited for it
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` that no other process or thread uses, and that holds the writer's process id."""
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")
    _remove(temporary)  # of a killed process that had this id
    _writing.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _writing.discard(temporary)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
