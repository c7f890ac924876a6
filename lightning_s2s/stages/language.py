"""Pre-training of a small LLM on dialogues as text, before it hears."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_s2s.stages.base import Stage


class LanguageModelPretraining(Stage):
    """Next-token training of the LLM on the assistant's turns, with what is heard given in words.

    OpenS2S starts from an LLM that converses already; this makes one for where none can be downloaded.

    Its arguments are those of `Stage`; only `llm` is used.
    """

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        output = self.model(batch, speak=False)
        return self.log_text_loss("train", output)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        output = self.model(batch, speak=False)
        self.log_text_loss("val", output)

    def export(self, folder: Path) -> None:
        """The LLM as an ordinary transformers folder, `language_model`, in float16."""
        target, temporary = folder / "language_model", folder / ".language_model"
        shutil.rmtree(temporary, ignore_errors=True)
        copy.deepcopy(self.model.llm.model).half().save_pretrained(temporary)
        self.model.llm.tokenizer.save_pretrained(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
