"""Pre-training of a small LLM on dialogues as text."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_s2s.data.batch import DialogueBatch
from lightning_s2s.stages.base import Stage
from lightning_s2s.stages.losses import text_loss


class LanguageModelPretraining(Stage):
    """Next-token training of the LLM on the assistant's turns, with transcripts in place of audio.

    OpenS2S starts from a pretrained chat LLM; this stage trains one where none can be downloaded.

    The arguments are those of `Stage`; only `llm` is used.
    """

    def training_step(self, batch: DialogueBatch, batch_index: int) -> Tensor:
        output = self.model(self.with_cached_audio(batch), speak=False)
        return self.log_loss("train", "text", text_loss(self.model.llm, output))

    def validation_step(self, batch: DialogueBatch, batch_index: int) -> None:
        output = self.model(self.with_cached_audio(batch), speak=False)
        self.log_loss("val", "text", text_loss(self.model.llm, output))

    def export(self, folder: Path) -> None:
        """Write the LLM as an ordinary transformers folder, `language_model`, in float16."""
        target, temporary = folder / "language_model", folder / ".language_model"
        shutil.rmtree(temporary, ignore_errors=True)
        transformer: Any = copy.deepcopy(self.model.llm.model)
        transformer.half().save_pretrained(temporary)
        self.model.llm.tokenizer.save_pretrained(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
