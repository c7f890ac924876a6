"""eSpeak NG, which speaks over a hundred languages by rules, as the command `espeak-ng`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lightning_s2s.construction.speech.base import SpeechError, SpeechSynthesizer, decode
from lightning_s2s.support.ranges import Positive, checked

WORDS_PER_MINUTE = 175
"""eSpeak's own speed."""


@checked
@dataclass
class Espeak(SpeechSynthesizer):
    """eSpeak NG (GPL-3.0, a command of its own): robotic, small, fast, in many languages. No emotions.

    A voice is a language with an optional variant, such as `en-us`, `en-us+f3`, `de+m2`.

    Args:
        command: Name or path of the program.
        timeout_sec: Time limit of one utterance.
    """

    command: str = "espeak-ng"
    timeout_sec: Positive = 30.0

    identity = "espeak"
    concurrency = os.cpu_count() or 1

    def check(self, voices: Iterable[str]) -> None:
        if shutil.which(self.command) is None:
            raise ValueError(f"the program {self.command} is not installed (Debian: apt-get install espeak-ng)")
        for voice in voices:
            self._speak("a", voice, 1.0)

    def synthesise(
        self, text: str, voice: str, emotion: str = "neutral", style: str = "", speed: float = 1.0
    ) -> tuple[np.ndarray, int]:
        return decode(self._speak(text, voice, speed))

    def _speak(self, text: str, voice: str, speed: float) -> bytes:
        """A WAV file. The text goes in by standard input, where nothing in it is taken for an option."""
        rate = str(round(WORDS_PER_MINUTE * speed))
        try:
            done = subprocess.run(
                [self.command, "-v", voice, "-s", rate, "--stdin", "--stdout"],
                input=text.encode(),
                capture_output=True,
                timeout=self.timeout_sec,
            )
        except subprocess.TimeoutExpired:
            raise SpeechError(f"{self.command} took over {self.timeout_sec:g} s") from None
        if done.returncode:
            raise ValueError(f"{self.command}: voice {voice!r}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout
