"""Filters that listen: durations, words, voices and quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np

from lightning_s2s.construction.filters.base import (
    RATE,
    Figures,
    Filter,
    RecordedDialogue,
    Rejection,
    load,
    over,
    under,
)
from lightning_s2s.construction.running import ItemFailure
from lightning_s2s.support.ranges import Count, NonNegative, Positive, Range, Share, checked, device_of

FRAME = RATE // 50
SILENCE_DB = -40.0
"""A frame this far below the loudest is silent."""


@checked
@dataclass
class Duration(Filter):
    """Recordings must have a length that fits, and be no silence for the most part.

    Args:
        min_sec: Seconds that the shortest must last.
        max_sec: Seconds that the longest may last.
        max_silence_share: Highest share of 20 ms frames that lie 40 dB below the loudest.
        max_sec_per_word: Highest number of seconds for a word; a voice that takes longer got lost.
    """

    min_sec: NonNegative = 0.5
    max_sec: Positive = 20.0
    max_silence_share: Share = 0.5
    max_sec_per_word: Positive = 1.2

    name = "duration"
    hears = True
    identity = "duration"

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        measured: list[Figures | ItemFailure] = []
        for item in batch:
            waveforms = [load(path) for path in (*item.questions, *item.replies)]
            turns = item.dialogue.turns
            words = [len(text.split()) for text in (*(t.text for t in turns), *(t.reply for t in turns))]
            seconds = [len(waveform) / RATE for waveform in waveforms]
            measured.append(
                {
                    "shortest_sec": round(min(seconds), 3),
                    "longest_sec": round(max(seconds), 3),
                    "silence_share": round(max(map(silence_share, waveforms)), 3),
                    "sec_per_word": round(max(s / max(1, w) for s, w in zip(seconds, words, strict=True)), 3),
                }
            )
        return measured

    def verdict(self, figures: Figures) -> Rejection | None:
        return (
            under(figures, "shortest_sec", self.min_sec)
            or over(figures, "longest_sec", self.max_sec)
            or over(figures, "silence_share", self.max_silence_share)
            or over(figures, "sec_per_word", self.max_sec_per_word)
        )


def silence_share(waveform: np.ndarray) -> float:
    """(T,) -> share of frames that lie SILENCE_DB below the loudest; 1 for one that is too short to have a frame."""
    frames = waveform[: len(waveform) // FRAME * FRAME].reshape(-1, FRAME)
    levels = np.sqrt((frames**2).mean(1))
    return float((levels <= levels.max(initial=0) * 10 ** (SILENCE_DB / 20)).mean()) if len(levels) else 1.0


@checked
@dataclass
class WordError(Filter):
    """What a Whisper model hears must be what was to be said.

    Args:
        asr: Hub id or folder of the model.
        max_word_error: Highest share of wrong words in the worst recording (of characters, in Chinese and Japanese).
        device: Device on which the model runs: cpu, cuda, ...
    """

    asr: str = "openai/whisper-base"
    max_word_error: NonNegative = 0.2
    device: str = "cpu"
    batch_size: Count = 4

    name = "word_error"
    hears = True

    @property
    def identity(self) -> str:
        return f"asr {self.asr}"

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        from torchmetrics.functional.text import word_error_rate

        from lightning_s2s.evaluation.speech import normalise

        texts, waveforms, languages = [], [], []
        for item in batch:
            turns = item.dialogue.turns
            texts += [*(turn.text for turn in turns), *(turn.reply for turn in turns)]
            waveforms += [load(path) for path in (*item.questions, *item.replies)]
            languages += [item.dialogue.seed.get("language", "English")] * 2 * len(turns)
        found = iter(self._transcriber.transcribe(waveforms, languages))
        said = iter(texts)
        measured: list[Figures | ItemFailure] = []
        for item in batch:
            figures: Figures = {}
            for kind in ("question", "reply"):
                pairs = [(next(found), next(said)) for _ in item.dialogue.turns]
                errors = [float(word_error_rate([normalise(h)], [normalise(text)])) for h, text in pairs]
                figures[f"{kind}_word_error"] = round(max(errors), 4)
                figures[f"{kind}_heard"] = [words.strip() for words, _ in pairs]
            measured.append(figures)
        return measured

    def verdict(self, figures: Figures) -> Rejection | None:
        return over(figures, "question_word_error", self.max_word_error) or over(
            figures, "reply_word_error", self.max_word_error
        )

    @cached_property
    def _transcriber(self) -> Any:
        from lightning_s2s.evaluation.speech import Transcriber

        return Transcriber(self.asr, str(device_of(self)))


@checked
@dataclass
class SpeakerSimilarity(Filter):
    """Recordings must sound like their voice: like another recording of it, by a speaker verification model.

    Args:
        model: Hub id or folder of a model with x-vectors (WavLM, UniSpeech-SAT, Wav2Vec2, Data2Vec).
        min_similarity: Lowest cosine of the least similar recording; 0.86 is what `microsoft/wavlm-base-plus-sv` names.
        device: Device on which the model runs: cpu, cuda, ...
    """

    model: str = "microsoft/wavlm-base-plus-sv"
    min_similarity: Annotated[float, Range(-1, 1)] = 0.86
    device: str = "cpu"

    name = "speaker_similarity"
    hears = compares_voices = True

    @property
    def identity(self) -> str:
        return f"x-vectors {self.model}"

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        measured: list[Figures | ItemFailure] = []
        for item in batch:
            user, assistant = item.voices
            questions = [self._similarity(path, user) for path in item.questions]
            replies = [self._similarity(path, assistant) for path in item.replies]
            measured.append(
                {
                    "question_voice_similarity": round(min(questions), 4),
                    "reply_voice_similarity": round(min(replies), 4),
                }
            )
        return measured

    def verdict(self, figures: Figures) -> Rejection | None:
        return under(figures, "question_voice_similarity", self.min_similarity) or under(
            figures, "reply_voice_similarity", self.min_similarity
        )

    def _similarity(self, path: str, other: str) -> float:
        return float(self._vector(path) @ self._vector(other, keep=True))

    def _vector(self, path: str, keep: bool = False) -> np.ndarray:
        """A recording's x-vector, of length 1; those of the voices are kept in memory."""
        import torch

        if path in self._kept:
            return self._kept[path]
        extractor, network = self._network
        inputs = extractor(load(path), sampling_rate=RATE, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            vector = network(**inputs).embeddings[0].float().cpu().numpy()
        vector = vector / max(1e-9, float(np.linalg.norm(vector)))
        if keep:
            self._kept[path] = vector
        return vector

    @cached_property
    def _kept(self) -> dict[str, np.ndarray]:
        return {}

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        from lightning_s2s.components.pretrained import load_model, load_pretrained

        extractor = load_pretrained("AutoFeatureExtractor", self.model)
        return extractor, load_model("AutoModelForAudioXVector", self.model).eval().to(device_of(self))


@checked
@dataclass
class Quality(Filter):
    """The opinion score that DistillMOS expects (1 to 5; extra `evaluation`) must be high enough.

    Args:
        min_mos: Lowest score of the user's recordings, which prosody may have roughened.
        min_reply_mos: Lowest score of the assistant's recordings.
        device: Device on which the model runs: cpu, cuda, ...
    """

    min_mos: Annotated[float, Range(0, 5)] = 2.5
    min_reply_mos: Annotated[float, Range(0, 5)] = 3.5
    device: str = "cpu"

    name = "quality"
    hears = True
    identity = "distillmos"

    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        return [
            {
                "question_mos": round(min(map(self._score, item.questions)), 3),
                "reply_mos": round(min(map(self._score, item.replies)), 3),
            }
            for item in batch
        ]

    def verdict(self, figures: Figures) -> Rejection | None:
        return under(figures, "question_mos", self.min_mos) or under(figures, "reply_mos", self.min_reply_mos)

    def _score(self, path: str) -> float:
        import torch

        with torch.inference_mode():
            return float(self._network(torch.from_numpy(load(path)).unsqueeze(0).to(self.device)))

    @cached_property
    def _network(self) -> Any:
        from lightning_s2s.evaluation.speech import load_distillmos

        return load_distillmos().to(device_of(self))
