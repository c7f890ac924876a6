"""Validation with free answers: emotion and word accuracy of the model's own greedy answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torchmetrics import MeanMetric
from torchmetrics.text import WordErrorRate

from lightning_s2s.components.weights import is_sharded
from lightning_s2s.data.batch import DialogueBatch
from lightning_s2s.data.chat import content_items
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.session import respond


def audio_items(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The content items with audio in the user turns of a manifest row, in order."""
    return [
        dict(item)
        for message in row["messages"]
        if message["role"] == "user"
        for item in content_items(message["content"])
        if item.get("audio")
    ]


def ctc_texts(row: dict[str, Any]) -> list[str]:
    """The text that the LLM would read in place of each clip of a row: '(emotion) words'.

    Raises:
        ValueError: A clip has no transcript.
    """
    texts = []
    for item in audio_items(row):
        if not item.get("transcript"):
            raise ValueError(f"row {row.get('id', '?')}: the CTC loss needs `transcript` beside `audio`")
        texts.append(f"({item['emotion']}) {item['transcript']}" if item.get("emotion") else item["transcript"])
    return texts


class FreeAnswerMetrics(nn.Module):
    """Compares greedy answers to rows whose `task` is `emotion` or `transcribe` with the answers in the rows.

    Each rank answers its own rows, and the metrics cover those of all ranks. Nothing is measured while the weights are
    sharded.

    Args:
        num_rows: Number of rows of each task that a rank answers in one validation.
    """

    def __init__(self, num_rows: int):
        super().__init__()
        self.num_rows = num_rows
        self.emotion, self.word_errors = MeanMetric(), WordErrorRate()
        self.seen: Counter[str] = Counter()

    def update(self, model: SpeechToSpeechModel, batch: DialogueBatch) -> None:
        """Answer rows of the batch, up to `num_rows` of each task per validation."""
        if is_sharded(model):
            rank_zero_warn("the weights are sharded: emotion and word accuracy are not measured")
            return
        clip = 0
        for row in batch.rows:
            items = audio_items(row)
            task = row.get("task")
            if len(items) == 1 and task in ("emotion", "transcribe") and self.seen[task] < self.num_rows:
                self.seen[task] += 1
                waveform = batch.waveform[clip, : int(batch.waveform_lengths[clip])].float().cpu()
                reply = respond(
                    model,
                    waveform,
                    model.require_encoder()[0].sample_rate,
                    instruction=items[0].get("text") or "",
                    speak=False,
                    max_text_tokens=48,
                )
                expected = "".join(item.get("text") or "" for item in content_items(row["messages"][-1]["content"]))
                if task == "emotion":
                    self.emotion.update(torch.tensor(float(reply.text.lower() == expected.strip().lower())))
                else:
                    self.word_errors.update(reply.text.lower(), expected.strip().lower())
            clip += len(items)

    def compute(self) -> dict[str, torch.Tensor]:
        """The metrics of the tasks that any rank has answered; resets them."""
        metrics = {}
        seen = torch.tensor([self.seen["emotion"], self.seen["transcribe"]], device=self.emotion.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(seen)
        if seen[0]:
            metrics["val/emotion_accuracy"] = self.emotion.compute()
        if seen[1]:
            metrics["val/word_accuracy"] = 1 - self.word_errors.compute()
        self.emotion.reset()
        self.word_errors.reset()
        self.seen.clear()
        return metrics
