"""What makes a run survive: `checkpoints/last.ckpt`, written every minute, at the end, and when it is told to stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

INTERVAL_SEC = 60.0


def last_checkpoint(trainer: Trainer) -> Path:
    """Where a run keeps its state, and where `--resume` looks."""
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


class RunCheckpoint(Checkpoint):
    """Keeps `DEFAULT_ROOT_DIR/checkpoints/last.ckpt` up to date and ends the run on Ctrl-C or SIGTERM.

    A signal takes effect after the batch it falls into: what is saved lies between two batches, so that a run that was
    stopped and resumed equals one that was not. A second signal ends the run at once, unsaved.

    Args:
        interval_sec: time between two savings.

    Attributes:
        signal: that was received, None before.
    """

    def __init__(self, interval_sec: float = INTERVAL_SEC):
        self.interval_sec = interval_sec
        self.signal: int | None = None
        self._saved_at = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._receive)
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this batch (again: at once)", file=sys.stderr, flush=True)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save_and_stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._save_and_stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save_and_stop(self, trainer: Trainer) -> None:
        due = time.monotonic() - self._saved_at > self.interval_sec
        if not _any_process(trainer, due or self.signal is not None):
            return
        self._save(trainer)
        if _any_process(trainer, self.signal is not None):
            rank_zero_info(f"stopped; {last_checkpoint(trainer)} is saved, --resume goes on from there")
            raise KeyboardInterrupt

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(last_checkpoint(trainer))
        self._saved_at = time.monotonic()


def _any_process(trainer: Trainer, decision: bool) -> bool:
    """Whether any process says yes: saving takes all of them."""
    return decision if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(decision, all=False)
