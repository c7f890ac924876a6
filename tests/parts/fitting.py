"""Short trainings in this process, and which of a model's parts they changed."""

from __future__ import annotations

import lightning as L
import torch

from lightning_s2s.data.datamodule import SpeechDialogueData


def fit(stage: L.LightningModule, corpus, folder, steps: int = 2) -> dict[str, torch.Tensor]:
    """Train for a few steps; the model's tensors from before."""
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1, num_sanity_val_steps=0,
    )  # fmt: skip
    data = SpeechDialogueData(train=str(corpus.train), validation=str(corpus.validation), max_batch_size=4)
    trainer.fit(stage, data)
    return before


def changed_parts(stage: L.LightningModule, before: dict[str, torch.Tensor]) -> set[str]:
    after = stage.model.state_dict()
    return {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
