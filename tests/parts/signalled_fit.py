"""`lightning-s2s` that sends itself a signal at one of its own moments; started by the tests.

A moment is a call of something that a training or a saving consists of: a batch, a step of the optimiser, a record
written into a file, a file synchronised or renamed. Their number says when, so no clock does.

usage: -m parts.signalled_fit RANK MOMENT SIGNAL COMMAND [options]
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_s2s.cli import main

COUNTED = "LIGHTNING_S2S_TEST_MOMENTS"
"""Names a folder; each process writes the number of its moments into a file of its rank there."""
rank, moment, number = int(sys.argv[1]), int(sys.argv[2]), signal.Signals[sys.argv[3]]
own_rank = int(os.environ.get("LOCAL_RANK", 0))
passed, lock = 0, threading.Lock()


def tick() -> None:
    """One more moment has come; at the chosen one all processes of the run get the signal."""
    global passed
    with lock:
        passed += 1
        chosen = passed == moment
    if chosen and rank == own_rank:
        os.killpg(os.getpgrp(), number)


def ticking(owner: Any, name: str) -> None:
    """Count the calls of a function, before it does anything."""
    function: Callable[..., Any] = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        tick()
        return function(*args, **options)

    setattr(owner, name, counted)


class TickingArchive:
    """torch's archive; each record that is written counts, with those before it in the file."""

    def __init__(self, archive: Any):
        self._archive = archive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._archive, name)

    def write_record(self, *args: Any) -> None:
        tick()
        self._archive.write_record(*args)


def save_ticking(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda content, archive, *rest: function(content, TickingArchive(archive), *rest)


if __name__ == "__main__":
    from lightning_s2s.scale.run_checkpoint import RunCheckpoint

    torch.serialization._save = save_ticking(torch.serialization._save)
    for owner, name in (
        (RunCheckpoint, "on_train_batch_start"), (RunCheckpoint, "on_train_batch_end"), (torch.optim.AdamW, "step"),
        (RunCheckpoint, "on_validation_batch_end"), (torch.Tensor, "backward"), (os, "fsync"), (os, "replace"),
        (os, "rename"), (os, "symlink"), (Path, "replace"), (shutil, "rmtree"),
    ):  # fmt: skip
        ticking(owner, name)
    status = main(sys.argv[4:])
    if COUNTED in os.environ:
        Path(os.environ[COUNTED], str(own_rank)).write_text(str(passed))
    sys.exit(status)
