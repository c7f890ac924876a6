"""Small parts for tests of construction: a grammar, an engine, a codec, and a reader of manifests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch

from lightning_s2s.construction.chat import ChatModel, ChatReply
from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.construction.speech import SpeechError, SpeechSynthesizer
from lightning_s2s.data.tasks import EMOTIONS

RULES = {
    "topics": ["job", "house", "exam", "trip", "car", "party", "school", "garden"],
    "people": ["sister", "boss"],
    "times": ["today", "yesterday"],
    "lines": {
        "ambiguous": ["I heard about the {topic}.", "My {who} called about the {topic} {when}.", "It was the {topic}."],
        **{emotion: [f"I am {emotion} about the {{topic}}.", f"The {{topic}} is {emotion}."] for emotion in EMOTIONS},
    },
    "replies": {
        emotion: {
            "openings": [f"So {emotion}!", f"How {emotion}.", f"Truly {emotion}."],
            "sentences": ["Tell me of the {topic}.", "The {topic}, again?", "Is it the {topic}?"],
        }
        for emotion in EMOTIONS
    },
    "continuations": {emotion: [f"and I feel {emotion}"] for emotion in EMOTIONS},
}  # fmt: skip


class Tone(SpeechSynthesizer):
    """Says everything by the same tone, except what is in `mute`."""

    identity, concurrency = "tone", 3

    def __init__(self, has_emotions: bool = False):
        self.has_emotions, self.mute, self.asked = has_emotions, set(), []

    def check(self, voices):
        self.voices = list(voices)

    def synthesise(self, text, voice, emotion="neutral", style="", speed=1.0):
        self.asked.append((text, voice, emotion))
        if text in self.mute:
            raise SpeechError("a sore throat")
        return np.sin(np.arange(24_000 * 6 // 10) * 0.05).astype(np.float32), 24_000


class FakeCodec(torch.nn.Module):
    """Units that count up."""

    sample_rate = tokenizer_sample_rate = 16_000
    unit_rate_hz, codebooks_per_frame, num_units, licence = 25, 1, 1000, ""

    def tokenize(self, waveform, lengths):
        return torch.arange(waveform.shape[1] // 640).unsqueeze(0), lengths // 640


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


class Writer(ChatModel):
    """Says what it was asked; `spoil` names words of prompts that are answered in another way."""

    identity = "writer"

    def __init__(self, batch_size: int = 1, concurrency: int = 1, **spoil: str | Exception):
        self.batch_size, self.concurrency, self.spoil, self.prompts = batch_size, concurrency, spoil, []

    def ask(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        self.prompts.append(request.prompt)
        for word, text in self.spoil.items():
            if word in request.prompt:
                return text if isinstance(text, TransientError) else ChatReply(text, False, 1, 1)
        fields = request.schema["properties"]
        last = [line for line in request.prompt.splitlines() if line.startswith("User (")]
        answer = {"line": f"Line {len(last)}.", "reply": f"Reply to {last[-1] if last else ''}".replace("User ", "")}
        answer |= {"emotion": fields["emotion"]["enum"][-1]} if "emotion" in fields else {}
        return ChatReply(json.dumps({name: answer[name] for name in fields}), False, 10, 2)
