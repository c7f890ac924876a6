"""What an engine has spoken, kept on disk: a stopped run resumes, and nothing is spoken twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import soundfile as sf

from lightning_s2s.construction.speech import SpeechError, SpeechSynthesizer
from lightning_s2s.support.files import replacing
from lightning_s2s.support.reading import reading

SILENCE = 1e-4
"""A rendering whose peak is below this is silent."""


class Renderings:
    """An engine's renderings as FLAC files, one for each text, voice, speed, and, where it has them, emotion and style.

    Args:
        synthesizer: The engine.
        folder: Folder in which they are kept.
    """

    def __init__(self, synthesizer: SpeechSynthesizer, folder: Path):
        self.synthesizer, self.folder = synthesizer, folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, text: str, voice: str, speed: float = 1.0, emotion: str = "neutral", style: str = "") -> Path:
        """Where this rendering is kept."""
        how = f"|{emotion}|{style}" if self.synthesizer.has_emotions else ""
        key = f"{self.synthesizer.identity}|{voice}|{speed:.3f}{how}|{text}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.flac"

    def speak(
        self, text: str, voice: str, speed: float = 1.0, emotion: str = "neutral", style: str = ""
    ) -> tuple[np.ndarray, int]:
        """(T,) float32 and its sample rate, silence at both ends cut to 50 ms; read where it was spoken before.

        Raises:
            SpeechError: the text could not be spoken; the message names it.
            ValueError: nothing can.
        """
        path = self.path(text, voice, speed, emotion, style)
        if not path.exists():
            try:
                waveform, sample_rate = self.synthesizer.synthesise(text, voice, emotion, style, speed)
                if not np.abs(waveform).max(initial=0.0) > SILENCE:
                    raise SpeechError("got silence")
            except SpeechError as error:
                raise SpeechError(f"{text!r} in the voice {voice}: {error}") from None
            with replacing(path) as temporary:
                sf.write(temporary, trim_silence(waveform, sample_rate), sample_rate)
        return read_recording(path)


def read_recording(path: str | Path) -> tuple[np.ndarray, int]:
    """A recording that this package wrote: (T,) float32, and its sample rate.

    Raises:
        ValueError: it is broken; removed, it is made again.
    """
    with reading(path, "recording; remove it, and it is made again"):
        return sf.read(path, dtype="float32")


def trim_silence(waveform: np.ndarray, sample_rate: int, threshold_db: float = -45.0, margin_sec: float = 0.05):
    """Cut what lies below `threshold_db` of the peak at both ends, down to `margin_sec`. (T,) -> (T',)."""
    hop = sample_rate // 100
    levels = np.abs(waveform[: len(waveform) // hop * hop]).reshape(-1, hop).max(1)
    loud = np.flatnonzero(levels > levels.max(initial=0) * 10 ** (threshold_db / 20))
    if not len(loud):
        return waveform
    margin = round(margin_sec * sample_rate)
    return waveform[max(0, loud[0] * hop - margin) : (loud[-1] + 1) * hop + margin]
