"""A trained model to talk to: loaded from whatever a training or somebody else left, streaming its replies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_s2s.checkpoints.model_folder import save_model
from lightning_s2s.checkpoints.sources import open_model
from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import Event, Reply
from lightning_s2s.streaming.session import StreamingSession, respond, stream_reply


class SpeechToSpeech:
    """A model that answers speech with speech.

        model = SpeechToSpeech.load("runs/tiny/3_tuning")
        reply = model.respond(waveform, sample_rate)

    Args:
        model: that computes.
        engine: runs its sessions; None makes one for each of them.
    """

    def __init__(self, model: SpeechToSpeechModel, engine: StreamingEngine | None = None):
        self.model, self.engine = model.eval(), engine

    @classmethod
    def load(cls, source: str | Path, vocoder: Vocoder | None = None, trust_sources: bool = False) -> SpeechToSpeech:
        """From a model folder, a run's folder, a `.ckpt`, or a published OpenS2S folder; weights keep their dtype.

        Args:
            source: see `lightning_s2s.checkpoints.sources.find_model`.
            vocoder: attached in place of the model's own; a published folder has none.
            trust_sources: also load what the source names outside of itself (hub ids, URLs, files), and run code where
                it says so; for models of people you trust.

        Raises:
            ValueError: there is no model, or its parts don't fit; the message names the file.
        """
        model = open_model(source, trust_sources)
        if vocoder is not None:
            model.attach_vocoder(vocoder)
        return cls(model)

    def stream(self, waveform: Any, sample_rate: int, **options: Any) -> Iterator[Event]:
        """Answer a spoken question, event by event.

        Args:
            waveform: (T,) float32 in [-1, 1].
            sample_rate: Hz.
            options: of `lightning_s2s.streaming.session.StreamingSession`: `greedy`, `speak`, `seed`, `history`, ...

        Raises:
            ValueError: the question or an option can't be used.
        """
        return stream_reply(self.model, waveform, sample_rate, **{"engine": self.engine, **options})

    def respond(self, waveform: Any, sample_rate: int, **options: Any) -> Reply:
        """`stream` to its end -> the reply: text, waveform, latency marks."""
        return respond(self.model, waveform, sample_rate, **{"engine": self.engine, **options})

    def session(self, sample_rate: int, **options: Any) -> StreamingSession:
        """For a question that comes in pieces: `push` them, then `finish`; arguments as those of `stream`."""
        return StreamingSession(self.model, sample_rate, **{"engine": self.engine, **options})

    def save(self, folder: str | Path) -> None:
        """Write a model folder: `config.json`, `model.safetensors` and the tokenizer."""
        save_model(self.model, folder)
