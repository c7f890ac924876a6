"""Piper, small neural voices for many languages, by its own package."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_s2s.construction.speech.base import SpeechError, SpeechSynthesizer
from lightning_s2s.support.extras import MissingPackageError, install_command
from lightning_s2s.support.ranges import NonNegative, checked
from lightning_s2s.support.wording import unknown_name


@checked
@dataclass
class Piper(SpeechSynthesizer):
    """Piper (package piper-tts, GPL-3.0): a network for each voice, some with many speakers. No emotions.

    A voice is a file's name without `.onnx`, and `NAME#SPEAKER` where it has several, by name or number. Piper draws
    noise inside its network: the same text sounds a little different each time, unless both scales are 0.

    Args:
        folder: Folder with `NAME.onnx` and `NAME.onnx.json` for each voice.
        noise_scale: How much pitch and timbre vary; None takes the voice's own value.
        noise_w_scale: How much durations vary; None takes the voice's own value.
    """

    folder: str
    noise_scale: NonNegative | None = None
    noise_w_scale: NonNegative | None = None

    def __post_init__(self) -> None:
        self.__setstate__({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._voices: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        return f"piper {self.noise_scale} {self.noise_w_scale}"

    def check(self, voices: Iterable[str]) -> None:
        for voice in voices:
            self._find(voice)

    def synthesise(
        self, text: str, voice: str, emotion: str = "neutral", style: str = "", speed: float = 1.0
    ) -> tuple[np.ndarray, int]:
        from piper import SynthesisConfig

        network, speaker = self._find(voice)
        settings = SynthesisConfig(
            speaker_id=speaker,
            length_scale=network.config.length_scale / speed,
            noise_scale=self.noise_scale,
            noise_w_scale=self.noise_w_scale,
        )
        chunks = [chunk.audio_float_array for chunk in network.synthesize(text, settings)]
        if not chunks:
            raise SpeechError("there is nothing to say in it")
        return np.concatenate(chunks), network.config.sample_rate

    def _find(self, voice: str) -> tuple[Any, int | None]:
        """A voice's network, and its speaker's number."""
        name, _, speaker = voice.partition("#")
        with self._lock:
            if name not in self._voices:
                self._voices[name] = self._load(name)
        network = self._voices[name]
        if not speaker:
            return network, None
        numbers = dict(network.config.speaker_id_map or {})
        numbers |= {str(number): number for number in range(network.config.num_speakers)}
        if speaker not in numbers:
            raise ValueError(f"voice {name}: {unknown_name('speaker', speaker, numbers)}")
        return network, numbers[speaker]

    def _load(self, name: str) -> Any:
        try:
            from piper import PiperVoice
        except ModuleNotFoundError:
            raise MissingPackageError(
                f"the package piper-tts is missing; install it with {install_command('piper')}"
            ) from None
        known = {path.stem for path in Path(self.folder).glob("*.onnx")}
        if name not in known:
            raise ValueError(f"{self.folder}: {unknown_name('voice', name, known)}")
        path = Path(self.folder, f"{name}.onnx")
        if not path.with_suffix(".onnx.json").is_file():
            raise ValueError(f"{path}: its configuration {path.name}.json is missing")
        return PiperVoice.load(path)
