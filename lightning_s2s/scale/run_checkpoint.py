"""`checkpoints/last.ckpt`, from which a run resumes: written every minute, at the end, and on Ctrl-C or SIGTERM."""

from __future__ import annotations

import functools
import math
import os
import random
import secrets
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_s2s.scale.interrupts import StopSignal
from lightning_s2s.scale.sharded_checkpoint import is_sharded_checkpoint, read_consolidated, remove_folders
from lightning_s2s.scale.strategies import FSDP2Strategy
from lightning_s2s.support.files import remove_leftovers, replacing
from lightning_s2s.support.plain import load_plain, save_plain
from lightning_s2s.support.ranges import NonNegative, checked


def last_checkpoint(trainer: Trainer) -> Path:
    """Path of the checkpoint that `--resume` looks for."""
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


@checked
class RunCheckpoint(Checkpoint):
    """Keeps `DEFAULT_ROOT_DIR/checkpoints/last.ckpt` up to date, and stops the run on Ctrl-C or SIGTERM.

    A run that was stopped and resumed equals one that was not. A signal takes effect after the current batch, so what
    is saved lies between two batches; and what a batch draws (dropout, masks) depends only on the seed and the batch's
    number. This also holds after SIGKILL, from the last saved checkpoint on, since checkpoints are written atomically,
    and on another number of replicas. A second signal stops the run at once, unsaved.

    `best.ckpt` beside it has the weights, without the optimiser, of the best validation so far.

    Args:
        every_sec: Time between two checkpoints.
        asynchronous: Continue training while a checkpoint is written; takes the memory of a copy.
        monitor: Metric that decides which weights are best; null takes the stage's own, such as `val/text_loss`.
        mode: Whether a smaller (`min`) or a larger (`max`) value of the metric is better.
        keep_best: Write `best.ckpt`.

    Attributes:
        stop_signal: The signal that stops the run.
        options: Options of the run, recorded in the checkpoint for runs that resume from it.
        resets_best: Ignore the best validation in the checkpoint that is resumed.
    """

    def __init__(
        self,
        every_sec: NonNegative = 60.0,
        asynchronous: bool = False,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep_best: bool = True,
    ):
        self.every_sec, self.asynchronous = every_sec, asynchronous
        self.monitor, self.mode, self.keep_best = monitor, mode, keep_best
        self.stop_signal = StopSignal()
        self.options: dict[str, Any] | None = None
        self.resets_best = False
        self._best = math.inf
        self._unlogged: dict[str, Any] | None = None
        self._seed: int | None = None
        self._replicas = self._accumulate = 1
        self._saved_at = time.monotonic()
        self._last_step = 0
        self._accumulating = self._stopping = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        strategy = trainer.strategy
        if isinstance(strategy, FSDP2Strategy):
            strategy.asynchronous = self.asynchronous
        elif type(strategy.checkpoint_io) in (TorchCheckpointIO, AtomicCheckpointIO):
            io = AtomicCheckpointIO()
            strategy.checkpoint_io = AsyncCheckpointIO(io) if self.asynchronous else io

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._stopping = time.monotonic(), False
        self._replicas, self._accumulate = _replicas_and_rank(trainer)[0], trainer.accumulate_grad_batches
        if self._seed is None:  # else it is the resumed checkpoint's
            self._seed = int(os.environ.get("PL_GLOBAL_SEED") or secrets.randbits(32))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Later than Lightning's own handlers, see `RestoreHandlers`.
        self.stop_signal.stop_after_batch()
        self.stop_signal.outcome = "at once; --resume continues from the last saved checkpoint"
        self._last_step = trainer.global_step  # restored from the checkpoint only now
        if self._unlogged is not None:  # the run was killed after saving a step, but before logging it
            for logger in trainer.loggers:
                logger.log_metrics(self._unlogged["metrics"], self._unlogged["step"])
                logger.save()
            self._unlogged = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "best": self._best,
            "replicas": self._replicas,
            "accumulate": self._accumulate,
            "options": self.options,
            "unlogged": self._unlogged,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seed = int(state_dict["seed"])
        if self._seed < 0:
            raise ValueError(f"its seed is {self._seed}; at least 0 is needed")
        if not self.resets_best:
            self._best = float(state_dict.get("best", math.inf))
        if unlogged := state_dict.get("unlogged"):
            metrics = {str(name): float(value) for name, value in unlogged["metrics"].items()}
            self._unlogged = {"step": int(unlogged["step"]), "metrics": metrics}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Convert the number of batches per replica to the present number of replicas."""
        state = checkpoint["callbacks"].get(self.state_key, {})
        before, now = state.get("replicas", 1), _replicas_and_rank(trainer)[0]
        batches = [before * state.get("accumulate", trainer.accumulate_grad_batches), now * self._accumulate]
        if batches[0] != batches[1] and "accumulate" in state:
            rank_zero_warn(
                f"batches per step (replicas x trainer.accumulate_grad_batches): was {batches[0]}, is now {batches[1]} "
                "from here"
            )
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            shift = counts["ready"] * before // now - counts["ready"]  # keeps batches that are ready but not completed
            counts.update({name: count + shift for name, count in counts.items()})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stop_if_saved(trainer)
        replicas, rank = _replicas_and_rank(trainer)
        entropy = [self._seed or 0, trainer.current_epoch, batch_idx * replicas + rank]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Partially accumulated gradients are never saved, so a checkpoint must follow a step.
        self._accumulating, self._last_step = trainer.global_step == self._last_step, trainer.global_step
        if not self._accumulating:
            self._unlogged = _metrics_to_log(trainer)
            self._save_if_due(trainer)
            self._unlogged = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_saved(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_saved(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Ranks may have different numbers of validation batches, so several can't make a decision together here.
        if not trainer.sanity_checking and not self._accumulating and trainer.world_size == 1:
            self._save_if_due(trainer)
            self._stop_if_saved(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.keep_best or trainer.sanity_checking or getattr(trainer, "fast_dev_run", False):
            return
        monitor = self.monitor or getattr(pl_module, "monitor", None)
        if monitor is None:
            return
        if monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            rank_zero_warn(f"checkpoint.monitor: {monitor!r} was not logged, so there is no best.ckpt; logged: {known}")
            return
        value = float(trainer.callback_metrics[monitor]) * (1 if self.mode == "min" else -1)
        if trainer.strategy.reduce_boolean_decision(value < self._best, all=False):  # all ranks must save together
            self._best = value
            trainer.save_checkpoint(last_checkpoint(trainer).with_name("best.ckpt"), weights_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        self.stop_signal.stop_at_once()
        self.stop_signal.outcome = "before the model was written; the training is saved, --resume writes the model"

    def _save_if_due(self, trainer: Trainer) -> None:
        """Save where any rank asks for it: all must save together."""
        any_rank = functools.partial(trainer.strategy.reduce_boolean_decision, all=False)
        due = time.monotonic() - self._saved_at > self.every_sec
        if any_rank(due or bool(self.stop_signal.signal)):
            self._save(trainer)
            self._stopping = any_rank(bool(self.stop_signal.signal))

    def _stop_if_saved(self, trainer: Trainer) -> None:
        """Stop the run; not right after saving, but once the last batch's losses have been logged."""
        if self._stopping:
            _finish_saving(trainer)
            self.stop_signal.reported = True
            rank_zero_info(f"stopped and saved to {last_checkpoint(trainer)}; --resume continues from there")
            raise KeyboardInterrupt

    def _save(self, trainer: Trainer) -> None:
        if not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(last_checkpoint(trainer), weights_only=False)
        self._saved_at = time.monotonic()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and without a second copy in memory; writes and reads only plain values.

    Raises:
        OSError: The disk is full; the previous checkpoint stays.
        ValueError: A checkpoint is broken, or holds code, which is not run.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__}: storage_options are not supported")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        with replacing(path) as temporary:
            save_plain(checkpoint, temporary)
        remove_folders(path)  # left by the same run on several ranks

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        path = Path(path)
        return read_consolidated(path) if is_sharded_checkpoint(path) else load_plain(path)


def _metrics_to_log(trainer: Trainer) -> dict[str, Any] | None:
    """What Lightning will log of this batch after its end; None if nothing."""
    connector = trainer._logger_connector
    if not trainer.loggers or not connector.should_update_logs:
        return None
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    step = metrics.pop("step", trainer.fit_loop.epoch_loop._batches_that_stepped)
    return {"step": int(step), "metrics": {"epoch": trainer.current_epoch, **metrics}}


def _finish_saving(trainer: Trainer) -> None:
    """Wait for checkpoints that are being written."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDP2Strategy):
        strategy.finish_saving()
    elif isinstance(strategy.checkpoint_io, AsyncCheckpointIO):
        strategy.checkpoint_io.teardown()


def _replicas_and_rank(trainer: Trainer) -> tuple[int, int]:
    """Number of data-parallel replicas, and this replica's rank."""
    shares = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
    return shares["num_replicas"], shares["rank"]
