"""Progress as lines, for logs and pipes."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_s2s.callbacks import LineProgress


class OneWeight(L.LightningModule):
    """A loss of 0.5 in every step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_index):
        loss = 0 * self.layer(torch.zeros(1, 1)).sum() + 0.5
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_index):
        self.log("val/loss", 0.25, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_progress_as_lines(tmp_path, capsys, monkeypatch):
    """Two seconds a step by a clock that only steps move: lines every 4 s, after the validation and at the end."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("lightning_s2s.callbacks.line_progress.time.monotonic", lambda: clock.now)

    class Ticking(OneWeight):
        def training_step(self, batch, batch_index):
            clock.now += 2.0
            return super().training_step(batch, batch_index)

    loader = DataLoader([0.0] * 5)
    trainer = L.Trainer(
        max_steps=5, default_root_dir=tmp_path, logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[LineProgress(every_sec=4.0)], accelerator="cpu", log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Ticking(), loader, loader)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")] == [
        "step 2/5, 2.00 s/step, 0:00:06 left, train/loss 0.5",
        "step 4/5, 2.00 s/step, 0:00:02 left, train/loss 0.5",
        "step 5/5, 2.00 s/step, train/loss 0.5, val/loss 0.25",
        "step 5/5, 2.00 s/step, train/loss 0.5, val/loss 0.25",
    ]


def test_progress_lines_need_a_time():
    with pytest.raises(ValueError, match="every_sec must be at least 0; got -1"):
        LineProgress(-1)
