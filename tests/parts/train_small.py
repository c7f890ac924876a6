"""Trains small stages on one or several processes and writes their losses: `-m parts.train_small JOBS.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.scale.run_checkpoint import RunCheckpoint
from lightning_s2s.scale.strategies import FSDP2Strategy, weights_on_rank_zero
from lightning_s2s.stages import (
    EmpatheticInstructionTuning,
    SpeechGenerationPretraining,
    SpeechUnderstandingPretraining,
)
from lightning_s2s.stages.base import Stage
from lightning_s2s.stages.optim import OptimizerOptions
from parts.small_sizes import SMALL_LM

STAGES = {
    "1": (SpeechUnderstandingPretraining, {"freeze": ["encoder.*", "llm.*"]}),
    "1 with ctc": (SpeechUnderstandingPretraining, {"freeze": ["llm.*"], "ctc_weight": 1.0}),
    "2a": (SpeechGenerationPretraining, {"freeze": ["encoder.*", "adapter.*", "llm.*"], "condition": "text"}),
    "2b": (SpeechGenerationPretraining, {"freeze": ["encoder.*", "adapter.*", "llm.*"]}),
    "3": (EmpatheticInstructionTuning, {"freeze": ["encoder.*"]}),
}


def build(name: str, tokenizer: str) -> Stage:
    """A stage with small random components, the same in every process."""
    torch.manual_seed(0)
    parts = {
        "llm": CausalLanguageModel(config=SMALL_LM, tokenizer=tokenizer),
        "encoder": MelEncoder(width=16, num_layers=1, num_heads=2),
        "adapter": ConvAdapter(inner_width=8),
    }
    if not name.startswith("1"):
        parts["speech_decoder"] = InterleavedSpeechDecoder("2:3", SMALL_LM)
        parts["vocoder"] = PocketVocoder(encoder_width=8, decoder_width=8)
    kind, options = STAGES[name]
    return kind(**parts, optimizer=OptimizerOptions(lr=1e-2, warmup_steps=1), **options)


class Losses(L.Callback):
    """The loss of every batch that this process has seen."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


def train(job: dict[str, Any]) -> None:
    """Write the losses to `OUT/losses-RANK.json`, the model beside them.

    Args:
        job: `stage`, `strategy`, `manifest`, `tokenizer` and `out`, and what differs from the defaults.
    """
    job = {"processes": 1, "accumulate": 1, "batch": 2, "clip": None} | job
    L.seed_everything(1)  # dropout and masks
    tensor_parallel = job["strategy"] == "tensor parallel"
    strategy = FSDP2Strategy(tensor_parallel_size=2) if tensor_parallel else job["strategy"]
    with weights_on_rank_zero(strategy):
        stage = build(job["stage"], job["tokenizer"])
    losses, folder = Losses(), Path(job["out"])
    trainer = L.Trainer(
        accelerator="cpu", devices=job["processes"], strategy=strategy, max_steps=4,
        callbacks=[losses, RunCheckpoint()], accumulate_grad_batches=job["accumulate"], gradient_clip_val=job["clip"],
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=1, num_sanity_val_steps=1,
    )  # fmt: skip
    data = SpeechDialogueData(train=job["manifest"], validation=job["manifest"], max_batch_size=job["batch"])
    trainer.fit(stage, data)
    (folder / f"losses-{trainer.global_rank}.json").write_text(json.dumps(losses.losses))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for given in json.loads(Path(sys.argv[1]).read_text()):  # to start processes takes longer than to train
        train(given)
