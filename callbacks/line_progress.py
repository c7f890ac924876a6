"""Training progress as lines of text, for logs: a bar that redraws itself needs a terminal."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from lightning_s2s.support.ranges import NonNegative, checked


@checked
class LineProgress(ProgressBar):
    """Prints steps, remaining time and losses every `every_sec` seconds, after each validation, and at the end.

    `fit` and `validate` use it in place of Lightning's progress bar if the output is not a terminal.

    Args:
        every_sec: Minimum time between two lines during training, in seconds.

    Raises:
        ValueError: `every_sec` is negative.
    """

    def __init__(self, every_sec: NonNegative = 30.0):
        super().__init__()
        self.every_sec = every_sec
        self._enabled = True
        self._start_sec = self._last_sec = time.monotonic()
        self._start_step = 0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls this on all ranks but 0."""
        self._enabled = False

    def print(self, *parts: Any, **options: Any) -> None:
        if self._enabled:
            print(*parts, **{"file": sys.stdout, "flush": True, **options})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_sec = self._last_sec = time.monotonic()
        self._start_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._last_sec >= self.every_sec:
            self._report(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer, pl_module)

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_sec = time.monotonic()
        metrics = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        figures = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics.items()
        ]
        self.print(", ".join([*self._steps(trainer), *figures]))

    def _steps(self, trainer: L.Trainer) -> list[str]:
        """Current step, seconds per step and remaining time, as far as they are known."""
        if trainer.state.fn != "fit":
            return ["validation"]
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        parts = [f"step {step}" if math.isinf(total) else f"step {step}/{total:.0f}"]
        done, elapsed = step - self._start_step, self._last_sec - self._start_sec
        if done:
            parts.append(f"{elapsed / done:.2f} s/step")
            if not math.isinf(total) and step < total:
                parts.append(f"{timedelta(seconds=round((total - step) * elapsed / done))} left")
        return parts
