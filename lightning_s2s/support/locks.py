"""One owner at a time for a folder: a lock that the operating system releases when its holders have ended."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"
"""The file in the folder; it holds the owner's process id and host, and stays, empty, afterwards."""
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextlib.contextmanager
def holding(folder: Path, what: str, wait: bool = False) -> Iterator[int]:
    """Hold a folder until this ends, however it ends: a killed process loses its lock.

    The lock is the operating system's (`flock`); on a file system that several machines share it works between
    them only if that file system shares locks. Where locking is impossible, a warning says so.

    Args:
        folder: The folder; created if it is missing.
        what: The likely owner, for messages, such as "another run".
        wait: Wait for the owner to end, with a message, instead of raising an error.

    Yields:
        The lock's file descriptor. Child processes that inherit it hold the lock until the last of them ends.

    Raises:
        ValueError: Another process holds it, and `wait` is false.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise ValueError(
                    f"{folder}: {what}{_holder(folder)} is at work there; wait for its end, or give another folder"
                ) from None
            print(f"{folder}: {what}{_holder(folder)} is at work; waiting", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            print(f"{folder}: no lock ({error.strerror}); see that nothing else writes there", file=sys.stderr)
        _tell_of_another_machine(folder, what)
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        # A loader's worker may outlive a killed run for a while: a forked child must not hold the lock.
        os.register_at_fork(after_in_child=file.close)
        try:
            yield file.fileno()
        finally:
            file.truncate(0)


def _read(folder: Path) -> tuple[str, str]:
    """Process and host of the owner; empty if unknown."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        process, _, host = (folder / LOCK).read_text(encoding="utf-8").strip().partition(" ")
        if process.isdigit():
            return process, host
    return "", ""


def _holder(folder: Path) -> str:
    process, host = _read(folder)
    if not process:
        return ""
    return f" (process {process}{'' if host == socket.gethostname() else f' on {host}'})"


def _tell_of_another_machine(folder: Path, what: str) -> None:
    """Warn about an owner on another machine: it was killed, or still runs where locks are not shared."""
    process, host = _read(folder)
    if process and host != socket.gethostname():
        print(
            f"{folder}: {what} (process {process} on {host}) did not give this folder back; if it is still at work "
            "there, stop one of the two",
            file=sys.stderr,
            flush=True,
        )
