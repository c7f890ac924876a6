"""The interface of the engines that speak."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import soundfile as sf

from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.construction.running.base import Portable

UNKNOWN_SIZE = 0x7FFF0000
"""From here on, the size in a WAV header says that its writer did not know it, as one that streams."""


class SpeechError(TransientError):
    """One text could not be spoken; others may."""


class SpeechSynthesizer(Portable, ABC):
    """Text -> speech.

    A subclass is chosen by its name: `tts: {class_path: Kokoro, init_args: {folder: models/kokoro}}`; one of another
    package by its import path. It is built before anything runs, so that a heavy library is imported where it is
    first needed. Other processes get it without its attributes that begin with `_`, and load these for themselves.
    """

    has_emotions: bool = False
    """Whether it speaks with the emotion and the style that it is asked for; those that don't ignore both."""
    concurrency: int = 1
    """Utterances that it may be asked for at the same time, from as many threads."""
    licence: str = ""
    """Of what it speaks, for the data card; "" where that depends on its model or voices."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells its renderings from those of others: the engine, and its model where it has several."""

    @abstractmethod
    def check(self, voices: Iterable[str]) -> None:
        """Called once, before anything is spoken.

        Args:
            voices: All voices that will be asked for.

        Raises:
            ValueError: a file is missing, or a voice unknown; the message names it.
        """

    @abstractmethod
    def synthesise(
        self, text: str, voice: str, emotion: str = "neutral", style: str = "", speed: float = 1.0
    ) -> tuple[np.ndarray, int]:
        """Speak a text.

        Args:
            text: What is said.
            voice: One of the engine's voices.
            emotion: Emotion in one word, such as `sad`.
            style: How it is said, in words.
            speed: Factor on the speaking rate.

        Returns:
            (T,) float32 in [-1, 1], and its sample rate in Hz.

        Raises:
            SpeechError: this text could not be spoken.
            ValueError: none can, as where a server is not there.
        """


def decode(content: bytes) -> tuple[np.ndarray, int]:
    """A sound file in memory -> (T,) float32 and its sample rate, channels averaged.

    Raises:
        SpeechError: it is empty, no sound file, or breaks off.
    """
    if not content:
        raise SpeechError("got no audio")
    start = content.find(b"data", 12) if content[:4] == b"RIFF" else -1
    if start > 0:  # libsndfile reads what is there, without a word on what is missing
        declared = int.from_bytes(content[start + 4 : start + 8], "little")
        if len(content) - start - 8 < declared < UNKNOWN_SIZE:
            raise SpeechError(f"got {len(content) - start - 8} of {declared} bytes of audio")
    try:
        waveform, sample_rate = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise SpeechError(f"got no audio that can be read ({error.error_string.rstrip('.').lower()})") from None
    return waveform.mean(1), sample_rate
