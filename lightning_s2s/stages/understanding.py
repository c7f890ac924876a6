"""Stage 1: speech understanding pre-training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_s2s.model import ModelOutput
from lightning_s2s.stages.base import Stage
from lightning_s2s.stages.free_answers import FreeAnswerMetrics, heard_text


class SpeechUnderstandingPretraining(Stage):
    """Aligns speech with text and learns to recognise emotion, while the LLM is frozen.

    The targets are what the LLM itself says to the transcript (with the emotion in words), and the emotion's name
    (OpenS2S, arXiv:2507.05177, Sec. 3.1). Published: only the adapter is trained.

    Args:
        ctc_weight: of an additional CTC loss that reads emotion and words from the adapter's output by its similarity
            to the LLM's own input embeddings. It aligns an encoder that starts from nothing within minutes; 0 trains
            as published.
        num_generated: validation rows of each task that are answered freely, for emotion and word accuracy.
        stage_options: see `Stage`.
    """

    def __init__(self, *args: Any, ctc_weight: float = 0.0, num_generated: int = 48, **stage_options: Any):
        super().__init__(*args, **stage_options)
        if self.model.encoder is None:
            raise ValueError("SpeechUnderstandingPretraining needs encoder and adapter")
        self.ctc_weight = ctc_weight
        self.ctc_blank = torch.nn.Parameter(torch.randn(self.model.llm.width)) if ctc_weight else None
        self.free_answers = FreeAnswerMetrics(num_generated)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        output = self.model(batch, speak=False)
        loss = self.log_loss("train", "text", output.text_logits, output.text_labels)
        if self.ctc_weight:
            ctc_loss = self._ctc_loss(batch["rows"], output)
            self.log("train/ctc_loss", ctc_loss, prog_bar=True, batch_size=len(batch["rows"]))
            loss = loss + self.ctc_weight * ctc_loss
        return loss

    def _ctc_loss(self, rows: list[dict[str, Any]], output: ModelOutput) -> Tensor:
        """CTC (Graves et al., 2006) between the adapter's positions and the text form of what was heard."""
        tokenizer, llm = self.model.llm.tokenizer, self.model.llm
        targets = [torch.tensor(tokenizer.encode_text(text)) for row in rows for text in heard_text(row)]
        vocabulary = llm.embed(torch.arange(llm.vocabulary, device=self.device)).detach()
        classes = F.normalize(torch.cat([self.ctc_blank.unsqueeze(0), vocabulary]), dim=-1)
        logits = 16.0 * F.normalize(output.audio_embeds, dim=-1) @ classes.T
        return F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            torch.cat(targets).to(self.device) + 1,
            output.audio_lengths,
            torch.tensor([len(target) for target in targets]),
            zero_infinity=True,
        )

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        output = self.model(batch, speak=False)
        self.log_loss("val", "text", output.text_logits, output.text_labels)
        self.free_answers.update(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.free_answers.compute(), prog_bar=True)
