"""Stage 2: speech generation pre-training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_s2s.components.weights import save_weights
from lightning_s2s.data.batch import DialogueBatch
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.stages.base import Stage
from lightning_s2s.stages.losses import unit_loss


class SpeechGenerationPretraining(Stage):
    """Trains the speech decoder: first alone, then on the hidden states of the frozen LLM.

    `condition: text` is stage 2a: text tokens -> units, without the LLM. `condition: hidden_states` is stage 2b: the
    LLM's hidden states replace the tokens. Source: OpenS2S, arXiv:2507.05177, Sec. 3.2.

    Args:
        condition: Input of the speech decoder.
        stage_options: See `Stage`. Freeze `llm.*` in stage 2b; encoder and adapter are not used.
    """

    monitor = "val/unit_loss"

    def __init__(self, *args: Any, condition: Literal["text", "hidden_states"] = "hidden_states", **stage_options: Any):
        super().__init__(*args, **stage_options)
        decoder = self.model.speech_decoder
        if decoder is None:
            raise ValueError("SpeechGenerationPretraining needs speech_decoder and vocoder")
        if condition == "text" and not decoder.text_conditions:
            raise ValueError(
                "condition: text (stage 2a) needs a speech_decoder with text_conditions, which a published one lacks: "
                "set text_conditions to true and train from scratch, or continue with condition: hidden_states"
            )
        self.condition = condition
        decoder.freeze_idle(condition)

    def data_requirements(self) -> DataRequirements:
        """What the data module must provide; every row needs units."""
        return replace(super().data_requirements(), needs_units=True)

    def _step(self, split: str, batch: DialogueBatch) -> Tensor:
        if not batch.num_spoken:
            raise ValueError("stage 2 needs rows with speech_units in the assistant's turns; this batch has none")
        if self.condition == "text":
            units = self.model.forward_text_to_units(batch)
        else:
            units = self.model(self.with_cached_audio(batch)).units
        return self.log_loss(split, "unit", unit_loss(units))

    def training_step(self, batch: DialogueBatch, batch_index: int) -> Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: DialogueBatch, batch_index: int) -> None:
        self._step("val", batch)

    def export(self, folder: Path) -> None:
        """After stage 2a, write the decoder's weights into `speech_decoder`, in float16."""
        if self.condition == "text":
            save_weights(self.model.require_speech_decoder(), folder / "speech_decoder", torch.float16)
