"""A callback by which a training tells where it is, and waits there until it is told to go on."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from lightning_s2s.support.files import write_text
from parts.waiting import wait_for


class PauseOnce(Callback):
    """Pauses after a step until the file `FOLDER/go` exists; the file `FOLDER/paused`, with its process id, says so.

    A run that finds `paused` already doesn't pause: it is the resumed one, or another.

    Args:
        folder: where the two files lie; it must exist.
        after_step: number of the step.
    """

    def __init__(self, folder: str, after_step: int):
        self.folder, self.after_step = Path(folder), after_step

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        paused = self.folder / "paused"
        if trainer.global_step == self.after_step and not paused.exists():
            write_text(paused, str(os.getpid()))
            wait_for((self.folder / "go").exists, "the word to go on")
