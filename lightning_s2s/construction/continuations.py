"""Stage 1's targets as OpenS2S has them: what the LLM itself says to the words, with the emotion named in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lightning_s2s.construction.readers import Recording
from lightning_s2s.data.chat_template import MARK, ChatTemplate

SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)]*(?=\s|$|[^\x00-\x7f])")


def continuation_prompt(recording: Recording) -> str:
    """What the LLM reads in place of the recording (OpenS2S, arXiv:2507.05177, Sec. 3.1)."""
    tone = f" that reflects a '{recording.emotion}' emotion tone" if recording.emotion else ""
    return f"Continue the following sentence{tone} in a coherent style: {recording.text}"


class ContinuationWriter:
    """A causal LM that continues sentences: greedy, in batches, by its chat template with thinking off.

    Args:
        checkpoint: Hub id or folder of the LLM that will be trained on the answers.
        max_new_tokens: Number of tokens of an answer at most; a longer one ends with its last complete sentence.
        device: Device on which the LLM runs.

    Raises:
        ValueError: the checkpoint can't be loaded.
    """

    def __init__(self, checkpoint: str, max_new_tokens: int = 64, device: Any = "cpu"):
        from lightning_s2s.components.pretrained import load_model, load_pretrained

        self.tokenizer = load_pretrained("AutoTokenizer", checkpoint, padding_side="left")
        self.template = ChatTemplate(self.tokenizer)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = load_model("AutoModelForCausalLM", checkpoint, dtype="auto").eval().to(device)
        self.max_new_tokens = max_new_tokens

    def prompt(self, recording: Recording) -> str:
        """The whole text that the LLM reads, in its chat template."""
        before, _, after = MARK.split(self.template.render(["user"], add_generation_prompt=True))
        return f"{before}{continuation_prompt(recording)}{after}"

    def write(self, recordings: Sequence[Recording]) -> list[str]:
        """A continuation for each; "" where the LLM gave none."""
        import torch

        prompts = [self.prompt(recording) for recording in recordings]
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        batch = batch.to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self._ends(),
            )
        answers = []
        for ids in output[:, batch.input_ids.shape[1] :].tolist():
            ended = any(token in ids for token in self._ends())
            text = " ".join(self.tokenizer.decode(ids, skip_special_tokens=True).split())
            answers.append(text if ended else complete_sentences(text))
        return answers

    def _ends(self) -> list[int]:
        """Tokens that close the answer."""
        closing = self.tokenizer.convert_tokens_to_ids(self.template.turn_end)
        return [token for token in {closing, self.tokenizer.eos_token_id} if token is not None]


def complete_sentences(text: str) -> str:
    """A text that breaks off, up to its last complete sentence."""
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""
