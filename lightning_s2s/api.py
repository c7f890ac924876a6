"""The façade: load a trained model from any source, stream its replies, save it."""

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
        model: The model; it is put into eval mode.
        engine: Engine that runs its sessions; None makes one for each session.
    """

    def __init__(self, model: SpeechToSpeechModel, engine: StreamingEngine | None = None):
        self.model, self.engine = model.eval(), engine

    @classmethod
    def load(cls, source: str | Path, vocoder: Vocoder | None = None, trust_sources: bool = False) -> SpeechToSpeech:
        """Load a model folder, a run's folder, a `.ckpt` or a published OpenS2S folder; weights keep their dtype.

        Args:
            source: Path of the model, see `lightning_s2s.checkpoints.sources.find_model`.
            vocoder: Vocoder that replaces the model's own; a published folder has none.
            trust_sources: Also load what the source names outside itself (hub ids, URLs, files), and run code where it
                says so. Only for models of people you trust.

        Raises:
            ValueError: There is no model, or its parts don't fit each other; the message names the file.
        """
        model = open_model(source, trust_sources)
        if vocoder is not None:
            model.attach_vocoder(vocoder)
        return cls(model)

    def stream(self, waveform: Any, sample_rate: int, **options: Any) -> Iterator[Event]:
        """Answer a spoken question, event by event.

        Args:
            waveform: (T,) float32 in [-1, 1].
            sample_rate: Sample rate of `waveform` in Hz.
            options: Options of `lightning_s2s.streaming.session.StreamingSession`: `greedy`, `speak`, `seed`,
                `history`, and so on.

        Raises:
            ValueError: The question or an option can't be used.
        """
        return stream_reply(self.model, waveform, sample_rate, **{"engine": self.engine, **options})

    def respond(self, waveform: Any, sample_rate: int, **options: Any) -> Reply:
        """Run `stream` to its end and return the reply: text, waveform, latency marks."""
        return respond(self.model, waveform, sample_rate, **{"engine": self.engine, **options})

    def session(self, sample_rate: int, **options: Any) -> StreamingSession:
        """A session for a question that arrives in pieces: `push` them, then `finish`; options as for `stream`."""
        return StreamingSession(self.model, sample_rate, **{"engine": self.engine, **options})

    def save(self, folder: str | Path) -> None:
        """Write a model folder: `config.json`, `model.safetensors` and the tokenizer."""
        save_model(self.model, folder)
