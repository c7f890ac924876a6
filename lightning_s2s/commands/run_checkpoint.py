"""What makes a run survive: `checkpoints/last.ckpt`, written every minute, at the end, and when it is told to stop."""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

INTERVAL_SEC = 60.0
STAGE_KEY = "lightning_s2s_stage"
"""Where a checkpoint holds the `class_path` and `init_args` of its stage."""


def last_checkpoint(trainer: Trainer) -> Path:
    """Where a run keeps its state, and where `--resume` looks."""
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


class RunCheckpoint(Checkpoint):
    """Keeps `DEFAULT_ROOT_DIR/checkpoints/last.ckpt` up to date and ends the run on Ctrl-C or SIGTERM.

    A run that was stopped and resumed equals one that was not: a signal takes effect after the batch it falls into, so
    that what is saved lies between two batches, and what a batch draws (dropout, masks) depends on the seed and the
    batch's number alone. A second signal ends the run at once, unsaved.

    Args:
        interval_sec: time between two savings.

    Attributes:
        signal: that was received, None before.
        stage: class path and arguments of the stage, stored in every checkpoint so that it can be opened alone.
    """

    def __init__(self, interval_sec: float = INTERVAL_SEC):
        self.interval_sec = interval_sec
        self.signal: int | None = None
        self.stage: dict[str, Any] | None = None
        self._seed: int | None = None
        self._saved_at = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        if self._seed is None:  # else it comes from the checkpoint that the run goes on from
            self._seed = int(os.environ.get("PL_GLOBAL_SEED") or secrets.randbits(32))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._receive)
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this batch (again: at once)", file=sys.stderr, flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seed = state_dict["seed"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.stage is not None:
            checkpoint[STAGE_KEY] = self.stage

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        place = [self._seed or 0, trainer.current_epoch, batch_idx, trainer.global_rank]
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save_and_stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Processes may have different numbers of validation batches, so several can't agree on anything here.
        if not trainer.sanity_checking and trainer.world_size == 1:
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
        if not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(last_checkpoint(trainer), weights_only=False)  # the whole state
        self._saved_at = time.monotonic()


def _any_process(trainer: Trainer, decision: bool) -> bool:
    """Whether any process says yes: saving takes all of them."""
    return decision if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(decision, all=False)
