"""Stage 3: empathetic speech instruction tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_s2s.data.batch import DialogueBatch
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.stages.base import Stage
from lightning_s2s.stages.free_answers import FreeAnswerMetrics
from lightning_s2s.stages.losses import text_loss, unit_loss
from lightning_s2s.support.ranges import Natural, NonNegative, checked


@checked
class EmpatheticInstructionTuning(Stage):
    """Trains everything but the encoder to understand words and emotion and to answer with empathy, in speech.

    Source: OpenS2S, arXiv:2507.05177, Sec. 3.3. LoRA is an option of the LLM (`model.llm.init_args.lora`).

    Args:
        unit_weight: Weight of the unit loss, relative to the text loss.
        num_generated: Number of validation rows of each task that are answered freely, for emotion and word accuracy.
        stage_options: See `Stage`.
    """

    monitor = "val/loss"

    def __init__(self, *args: Any, unit_weight: NonNegative = 1.0, num_generated: Natural = 48, **stage_options: Any):
        super().__init__(*args, **stage_options)
        if self.model.encoder is None or self.model.speech_decoder is None:
            raise ValueError("EmpatheticInstructionTuning needs encoder, adapter, speech_decoder and vocoder")
        self.unit_weight = unit_weight
        self.model.speech_decoder.freeze_idle("hidden_states")
        self.free_answers = FreeAnswerMetrics(num_generated)

    def data_requirements(self) -> DataRequirements:
        """What the data module must provide; if the speech decoder is trained, some rows must have units."""
        trained = any(parameter.requires_grad for parameter in self.model.require_speech_decoder().parameters())
        return replace(super().data_requirements(), trains_speech=trained and self.unit_weight != 0)

    def _step(self, split: str, batch: DialogueBatch) -> Tensor:
        output = self.model(self.with_cached_audio(batch), every_part=split == "train")
        loss = self.log_loss(split, "text", text_loss(self.model.llm, output))
        if output.units is not None:
            loss = loss + self.unit_weight * self.log_loss(split, "unit", unit_loss(output.units))
        self.log_mean(split, "loss", loss, len(batch.rows))
        return loss

    def training_step(self, batch: DialogueBatch, batch_index: int) -> Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: DialogueBatch, batch_index: int) -> None:
        self._step("val", batch)
        self.free_answers.update(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.free_answers.compute(), prog_bar=True)
