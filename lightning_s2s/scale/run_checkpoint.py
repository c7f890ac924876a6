"""What makes a run survive: `checkpoints/last.ckpt`, written every minute, at the end, and when it is told to stop."""

from __future__ import annotations

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

from lightning_s2s.scale.interrupts import Received
from lightning_s2s.scale.sharded_checkpoint import is_sharded_checkpoint, read_whole_run, remove_folders
from lightning_s2s.scale.strategies import FSDP2Strategy
from lightning_s2s.support.files import remove_leftovers, replacing
from lightning_s2s.support.plain import load_plain, save_plain
from lightning_s2s.support.ranges import NonNegative, checked


def last_checkpoint(trainer: Trainer) -> Path:
    """Where a run keeps its state, and where `--resume` looks."""
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


def best_checkpoint(trainer: Trainer) -> Path:
    """Where a run keeps the weights that validated best."""
    return last_checkpoint(trainer).with_name("best.ckpt")


@checked
class RunCheckpoint(Checkpoint):
    """Keeps `DEFAULT_ROOT_DIR/checkpoints/last.ckpt` up to date and ends the run on Ctrl-C or SIGTERM.

    A run that was stopped and resumed equals one that was not: a signal takes effect after the batch it falls into, so
    that what is saved lies between two batches, and what a batch draws (dropout, masks) depends on the seed and the
    batch's number alone. That also holds after SIGKILL, from the last saving on, since a file takes its place when it
    is complete, and on another number of processes. A second signal ends the run at once, unsaved.

    Beside it `best.ckpt` has the weights, without the optimiser, that were best in validation so far.

    Args:
        every_sec: time between two savings.
        asynchronous: go on with the training while a checkpoint is written; takes memory for a copy of it.
        monitor: the metric that says which weights are best; null takes the stage's own, such as `val/text_loss`.
        mode: whether a smaller (`min`) or a larger (`max`) value of it is better.
        keep_best: write `best.ckpt`.

    Attributes:
        received: the signal that ends the run.
        options: what the run was told, kept in the checkpoint for those that go on from it.
        chooses_anew: the best validation of the checkpoint that it goes on from doesn't count.
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
        self.received = Received()
        self.options: dict[str, Any] | None = None
        self.chooses_anew = False
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
        elif type(strategy.checkpoint_io) in (TorchCheckpointIO, WholeFileIO):
            io = WholeFileIO()
            strategy.checkpoint_io = AsyncCheckpointIO(io) if self.asynchronous else io

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._stopping = time.monotonic(), False
        self._replicas, self._accumulate = _place(trainer)[0], trainer.accumulate_grad_batches
        if self._seed is None:  # else it comes from the checkpoint that the run goes on from
            self._seed = int(os.environ.get("PL_GLOBAL_SEED") or secrets.randbits(32))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Later than Lightning's own handler, which talks to the other processes in the middle of whatever they do.
        self.received.end_after_batch()
        self._last_step = trainer.global_step  # not before: the checkpoint's is known from here on
        self.received.what_is_lost = "at once; --resume goes on from the last saving"
        if self._unlogged is not None:  # where a kill fell between a checkpoint and the point that belongs to it
            _log(trainer, self._unlogged)
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
            raise ValueError(f"its seed is {self._seed}; 0 or more is needed")
        if not self.chooses_anew:
            self._best = float(state_dict.get("best", math.inf))
        if point := state_dict.get("unlogged"):
            metrics = {str(name): float(value) for name, value in point["metrics"].items()}
            self._unlogged = {"step": int(point["step"]), "metrics": metrics}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """On another number of processes, each has done as large a part of its share of the epoch."""
        state = checkpoint["callbacks"].get(self.state_key, {})
        before, now = state.get("replicas", 1), _place(trainer)[0]
        batches = [before * state.get("accumulate", trainer.accumulate_grad_batches), now * self._accumulate]
        if batches[0] != batches[1] and "accumulate" in state:
            rank_zero_warn(
                f"processes x trainer.accumulate_grad_batches: was {batches[0]}, is now {batches[1]}: a step has the "
                "gradients of so many batches from here"
            )
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            shift = counts["ready"] * before // now - counts["ready"]  # what is ready and not completed stays so
            counts.update({name: count + shift for name, count in counts.items()})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stop_if_saved(trainer)
        replicas, rank = _place(trainer)
        place = [self._seed or 0, trainer.current_epoch, batch_idx * replicas + rank]
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Gradients that are being accumulated aren't saved, so a batch counts with the one that ends in a step.
        self._accumulating, self._last_step = trainer.global_step == self._last_step, trainer.global_step
        if not self._accumulating:
            self._unlogged = _point(trainer)
            self._save_where_due(trainer)
            self._unlogged = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_saved(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_saved(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Processes may have different numbers of validation batches, so several can't agree on anything here.
        if not trainer.sanity_checking and not self._accumulating and trainer.world_size == 1:
            self._save_where_due(trainer)
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
        if _any_process(trainer, value < self._best):
            self._best = value
            trainer.save_checkpoint(best_checkpoint(trainer), weights_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        self.received.end_at_once()
        self.received.what_is_lost = "before the model was written; the training is saved, --resume writes the model"

    def _save_where_due(self, trainer: Trainer) -> None:
        due = time.monotonic() - self._saved_at > self.every_sec
        if _any_process(trainer, due or bool(self.received.signal)):
            self._save(trainer)
            self._stopping = _any_process(trainer, bool(self.received.signal))

    def _stop_if_saved(self, trainer: Trainer) -> None:
        """End the run; a little later than it was saved, when the last batch's losses have been logged."""
        if self._stopping:
            _finish_saving(trainer)
            self.received.told = True
            rank_zero_info(f"stopped; {last_checkpoint(trainer)} is saved, --resume goes on from there")
            raise KeyboardInterrupt

    def _save(self, trainer: Trainer) -> None:
        if not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(last_checkpoint(trainer), weights_only=False)  # the whole state
        self._saved_at = time.monotonic()


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it, without a second copy in memory; reads plain values.

    Raises:
        OSError: the disk is full; what was there before stays.
        ValueError: a checkpoint is broken, or holds code, which is not run.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__}: storage_options are not supported")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        with replacing(path) as temporary:
            save_plain(checkpoint, temporary)
        remove_folders(path)  # of a run that had several processes before

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        path = Path(path)
        return read_whole_run(path) if is_sharded_checkpoint(path) else load_plain(path)


def _point(trainer: Trainer) -> dict[str, Any] | None:
    """What Lightning will log of the batch that ends here, which is after its end; None where it logs nothing."""
    connector = trainer._logger_connector
    if not trainer.loggers or not connector.should_update_logs:
        return None
    metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
    step = metrics.pop("step", trainer.fit_loop.epoch_loop._batches_that_stepped)
    return {"step": int(step), "metrics": {"epoch": trainer.current_epoch, **metrics}}


def _log(trainer: Trainer, point: dict[str, Any]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(point["metrics"], point["step"])
        logger.save()


def _finish_saving(trainer: Trainer) -> None:
    """Wait until nothing is being written any more."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDP2Strategy):
        strategy.finish_saving()
    elif isinstance(strategy.checkpoint_io, AsyncCheckpointIO):
        strategy.checkpoint_io.teardown()


def _place(trainer: Trainer) -> tuple[int, int]:
    """Among how many processes batches are shared, and which of them this one is."""
    if trainer.world_size == 1:
        return 1, 0
    shares: dict[str, Any] = dict(trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0})
    return shares["num_replicas"], shares["rank"]


def _any_process(trainer: Trainer, decision: bool) -> bool:
    """Whether any process says yes: saving takes all of them."""
    return decision if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(decision, all=False)
