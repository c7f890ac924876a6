"""Stage 1: speech understanding pre-training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_s2s.components.ctc import similarity_ctc_loss
from lightning_s2s.components.weights import save_weights
from lightning_s2s.data.batch import DialogueBatch
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.stages.base import Stage
from lightning_s2s.stages.free_answers import FreeAnswerMetrics, ctc_texts
from lightning_s2s.stages.losses import text_loss
from lightning_s2s.support.ranges import Natural, NonNegative, checked


@checked
class SpeechUnderstandingPretraining(Stage):
    """Aligns speech with text and learns to recognise emotion, while the LLM is frozen.

    The targets are the LLM's own replies to the transcript (with the emotion in words), and the name of the emotion
    (OpenS2S, arXiv:2507.05177, Sec. 3.1). The published recipe trains only the adapter.

    Args:
        text_weight: Weight of the LLM's text loss; 0 leaves out the LLM, to train an encoder by CTC alone.
        ctc_weight: Weight of an additional CTC loss, which reads emotion and words from the similarity of the adapter's
            output to the LLM's input embeddings. It aligns an encoder trained from scratch within minutes; 0 is the
            published recipe.
        num_generated: Number of validation rows of each task that are answered freely, for emotion and word accuracy.
        stage_options: See `Stage`.
    """

    ctc_blank: Tensor

    def __init__(
        self,
        *args: Any,
        text_weight: NonNegative = 1.0,
        ctc_weight: NonNegative = 0.0,
        num_generated: Natural = 48,
        **stage_options: Any,
    ):
        super().__init__(*args, **stage_options)
        if text_weight == ctc_weight == 0:
            raise ValueError("text_weight and ctc_weight are both 0: nothing is learnt")
        if self.model.encoder is None:
            raise ValueError("SpeechUnderstandingPretraining needs encoder and adapter")
        self.text_weight, self.ctc_weight = text_weight, ctc_weight
        # The same direction in every run, so that the adapter of one run fits the next.
        blank = torch.randn(self.model.llm.width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("ctc_blank", blank, persistent=False)
        self._cached_classes: Tensor | None = None
        self.free_answers = FreeAnswerMetrics(num_generated)

    def data_requirements(self) -> DataRequirements:
        """What the data module must provide; the CTC loss needs transcripts."""
        return replace(super().data_requirements(), needs_transcripts=self.ctc_weight != 0)

    def training_step(self, batch: DialogueBatch, batch_index: int) -> Tensor:
        weights = {"text": self.text_weight, "ctc": self.ctc_weight}
        return torch.stack([weights[name] * loss for name, loss in self._losses("train", batch).items()]).sum()

    def _losses(self, split: str, batch: DialogueBatch) -> dict[str, Tensor]:
        """Compute and log the losses whose weight is above 0, by name."""
        losses: dict[str, Tensor] = {}
        batch = self.with_cached_audio(batch)
        if self.text_weight:
            output = self.model(batch, speak=False, every_part=split == "train")
            losses["text"] = self.log_loss(split, "text", text_loss(self.model.llm, output))
            audio_embeds, audio_lengths = output.audio_embeds, output.audio_lengths
        else:
            audio_embeds, audio_lengths = self.model.encode_batch(batch)
        if self.ctc_weight and (audio_embeds is not None or self.trainer.world_size > 1):
            losses["ctc"] = self.ctc_blank[0] * 0
            if audio_embeds is not None and audio_lengths is not None:
                losses["ctc"] = self._ctc_loss(batch.rows, audio_embeds, audio_lengths)
            self.log_mean(split, "ctc_loss", losses["ctc"], len(batch.rows), prog_bar=True)
        return losses

    def _ctc_loss(self, rows: list[dict[str, Any]], audio_embeds: Tensor, audio_lengths: Tensor) -> Tensor:
        """CTC loss (Graves et al., 2006) between the adapter's positions and the transcripts with emotion."""
        targets = [torch.tensor(self.model.llm.tokenizer.encode_text(text)) for row in rows for text in ctc_texts(row)]
        return similarity_ctc_loss(
            audio_embeds,
            audio_lengths,
            self._ctc_classes(),
            torch.cat(targets).to(self.device) + 1,
            torch.tensor([len(target) for target in targets]),
        )

    def _ctc_classes(self) -> Tensor:
        """(1 + V, D) Directions of the blank and the LLM's input embeddings; cached if the LLM is frozen."""
        if self._cached_classes is not None:
            return self._cached_classes
        llm = self.model.llm
        vocabulary = llm.embed(torch.arange(llm.vocabulary, device=self.device)).detach()
        classes = F.normalize(torch.cat([self.ctc_blank.unsqueeze(0), vocabulary]), dim=-1)
        if not any(parameter.requires_grad for parameter in llm.parameters()):
            self._cached_classes = classes
        return classes

    def validation_step(self, batch: DialogueBatch, batch_index: int) -> None:
        self._losses("val", batch)
        if self.text_weight:
            self.free_answers.update(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.free_answers.compute(), prog_bar=True)

    def export(self, folder: Path) -> None:
        """Write an encoder that was trained without the LLM into `encoder`, in float16."""
        if not self.text_weight:
            save_weights(self.model.require_encoder()[0], folder / "encoder", torch.float16)
