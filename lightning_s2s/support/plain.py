"""Checkpoints are written and read as plain values and tensors; nothing in them is run, whoever sent them."""

from __future__ import annotations

import contextlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_s2s.support.reading import InputError, one_line

EXPECTED = "a .ckpt file or folder that `lightning-s2s fit` wrote"


def save_plain(content: dict[str, Any], path: Path) -> None:
    """`torch.save` of content that `load_plain` can read.

    Raises:
        ValueError: It holds anything else; the written file is left in place.
    """
    torch.save(content, path)
    others = sorted(get_unsafe_globals_in_checkpoint(path))
    if others:
        raise ValueError(
            f"a checkpoint would hold {', '.join(others)}, which is not read again: what callbacks and modules store "
            "in it must be plain values and tensors"
        )


def load_plain(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a file that torch saved, on the CPU.

    Args:
        path: The file.
        mmap: Leave tensors on the disk until they are used.

    Raises:
        ValueError: It is missing, empty, damaged, another kind of file, or holds code.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder without a checkpoint in it; expected {EXPECTED}", str(path))
    if not path.exists():
        raise InputError(f"{path}: no such file; expected {EXPECTED}", str(path))
    if not path.is_file():
        raise InputError(f"{path}: is no ordinary file; expected {EXPECTED}", str(path))
    size = path.stat().st_size
    if not size:
        raise InputError(f"{path}: is empty; expected {EXPECTED}", str(path))
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # also refuses torch's older format, which this project never wrote
            raise InputError(f"{path}: is no checkpoint; expected {EXPECTED}", str(path))
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: is cut off after {size} bytes; expected {EXPECTED}", str(path))
    with naming(path):
        check_sizes(path, size)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}; expected {EXPECTED}", str(path))
    return content


def check_sizes(file: Path | IO[bytes], size: int) -> None:
    """Check that the content takes no more memory than the file's `size` in bytes: torch compresses nothing.

    Raises:
        ValueError: It would take more.
    """
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > size:
        raise ValueError(f"{size} bytes claim to be {unpacked}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn any error of reading a checkpoint into one that names the checkpoint.

    Raises:
        ValueError: In place of any error but an OSError with a file name.
    """
    try:
        yield
    # A damaged or mutated file makes torch's readers raise any kind of error; the last is no Exception.
    except (Exception, CheckpointException) as error:
        cause = first_cause(error)
        if isinstance(cause, OSError) and cause.filename is not None:
            raise cause from None
        if isinstance(cause, InputError):
            raise cause from None
        detail = one_line(cause) or type(cause).__name__
        if isinstance(cause, pickle.UnpicklingError) and (found := re.search(r"GLOBAL ([\w.]+)", detail)):
            detail = f"holds pickled code ({found[1]}), none of which was run"
        else:
            detail = f"can't be read ({detail})"
        raise InputError(f"{path}: {detail}; expected {EXPECTED}", str(path)) from error


def first_cause(error: BaseException) -> BaseException:
    """The error of the first process in which reading or writing together failed; any other error itself."""
    while isinstance(error, CheckpointException) and error.failures:
        error = error.failures[min(error.failures)][0]
    return error
