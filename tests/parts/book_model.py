"""A model that answers by the book, in a training whose loss hangs on the random state."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

RATE, REPLY_RATE = 16_000, 24_000
NUM_STEPS = 3


class BookVocoder(nn.Module):
    """Unit u is ten samples of u / 10."""

    sample_rate, num_units = REPLY_RATE, 10

    def synthesize(self, units):
        return units.repeat_interleave(10, dim=1).float() / 10


class BookModel(nn.Module):
    """Answers question `seed` with marks that are (seed + 1) times 10, 20, ... ms, and draws a random number."""

    can_answer = True

    def __init__(self, speaks: bool = True):
        super().__init__()
        self.vocoder = BookVocoder() if speaks else None
        self.speaks, self.asked = speaks, []

    def respond(self, waveform, sample_rate, greedy=True, seed=None):
        torch.rand(3)
        self.asked.append((len(waveform), sample_rate, greedy, seed))
        n = seed + 1
        marks = {"encoder_done": 0.01 * n, "first_text_token": 0.02 * n}
        reply = SimpleNamespace(
            text=f"answer | {seed}",
            marks=marks,
            chunk_gaps_sec=[],
            real_time_factor=None,
            waveform=None,
            sample_rate=None,
        )
        if self.speaks:
            marks |= {"first_hidden_states": 0.03 * n, "first_units": 0.04 * n, "first_audio": 0.05 * n}
            marks["last_audio"] = 0.1 * n
            reply.chunk_gaps_sec, reply.real_time_factor = [0.001 * n, 0.003 * n], 0.1 * n
            reply.waveform, reply.sample_rate = torch.linspace(-0.5, 0.5, REPLY_RATE // 2), REPLY_RATE
        return reply


class BookStage(L.LightningModule):
    """A training whose loss hangs on the random state."""

    def __init__(self, model: nn.Module | None):
        super().__init__()
        self.model, self.layer, self.drawn = model, nn.Linear(1, 1), []

    def training_step(self, batch, index):
        self.drawn.append(torch.rand(()).item())
        return self.layer(batch).mean()

    def validation_step(self, batch, index):
        self.log("val/loss", self.layer(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit_book(folder, module, callbacks, num_epochs=2, logger=None, **options):
    """Train `NUM_STEPS` steps per epoch with a validation after each; -> the trainer."""
    data = DataLoader(torch.ones(NUM_STEPS, 1))
    logger = TensorBoardLogger(folder, name="", version="run") if logger is None else logger
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=num_epochs,
        callbacks=callbacks,
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=1,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.fit(module, data, data)
    return trainer
