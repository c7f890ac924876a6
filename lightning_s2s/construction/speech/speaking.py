"""The steps that make sound: questions with their emotion, and replies."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr

from lightning_s2s.construction.running import ItemFailure, PipelineStep
from lightning_s2s.construction.running.base import fingerprint
from lightning_s2s.construction.speech import SpeechError, SpeechSynthesizer
from lightning_s2s.construction.speech.opus import encode_opus
from lightning_s2s.construction.speech.prosody import Analysis, Prosody, analyse, render
from lightning_s2s.construction.speech.renderings import Renderings
from lightning_s2s.construction.usage import track_usage
from lightning_s2s.data.augmentation import ClipAugmentation, CorpusAugmentation, augment
from lightning_s2s.support.files import write_bytes

QUESTION_RATE = 16_000
QUESTION_LEVEL = 0.05
"""Root mean square of a question before prosody; leaves room for an angry one."""


@dataclass(frozen=True)
class Line:
    """One recording of a user.

    Attributes:
        id: Name of the clip; with the seed, it draws prosody and augmentation.
        text: The words.
        voice: Voice of the engine.
        emotion: Emotion that they are said with.
        style: How they are said, in words.
        split: Either train, validation or test.
    """

    id: str
    text: str
    voice: str
    emotion: str
    style: str
    split: str


@dataclass(frozen=True)
class Delivery:
    """How users' lines get their emotion, and what happens to their recordings; see `CorpusConfig`."""

    speed: float
    prosody: dict[str, Prosody] | None
    jitter: float
    augmentation: CorpusAugmentation | None
    seed: int

    def draw_prosody(self, line: Line) -> Prosody | None:
        """How a line is said: its emotion's prosody, with the variation that its id and the seed draw."""
        if self.prosody is None:
            return None
        return self.prosody[line.emotion].jitter(random.Random(f"{self.seed}-{line.id}"), self.jitter)

    def draw_augmentation(self, line: Line) -> ClipAugmentation | None:
        """What happens to a line's recording, drawn by its id and the seed; None leaves it clean."""
        if self.augmentation is None or line.split not in self.augmentation.splits:
            return None
        return self.augmentation.draw(random.Random(f"{self.seed}-{line.id}-augmentation"))


class SpeakLines(PipelineStep[list[Line]]):
    """Records groups of lines that share words and voice: in the engine's own emotions, by prosody, or both.

    A result says for each line's id: `clip`, its recording in `folder`; `clean`, the same before augmentation; `sec`;
    and `augmentation`, what happened to it, as far as its level allowed. `usage` counts what was retried.

    Args:
        tts: Engine that speaks.
        delivery: How lines get their emotion.
        folder: Folder for renderings (`tts`) and clips (`questions`).
    """

    name, unit = "questions", "line"

    def __init__(self, tts: SpeechSynthesizer, delivery: Delivery, folder: Path):
        self.tts, self.delivery, self.folder = tts, delivery, folder
        self.threads = tts.concurrency

    @cached_property
    def renderings(self) -> Renderings:
        """What was spoken before."""
        return Renderings(self.tts, self.folder / "tts")

    def key(self, item: list[Line]) -> str:
        return fingerprint([(line.id, self._clip_name(line, self.delivery.draw_augmentation(line))) for line in item])

    def run(self, batch: Sequence[list[Line]]) -> list[Any | ItemFailure]:
        results: list[Any | ItemFailure] = []
        for group in batch:
            with track_usage() as usage:
                try:
                    results.append({"clips": self.speak(group), "usage": usage.as_json()})
                except SpeechError as error:
                    results.append(ItemFailure(str(error), usage))
        return results

    def is_there(self, result: Any) -> bool:
        clips = result["clips"].values()
        return all((self.folder / name).is_file() for clip in clips for name in (clip["clip"], clip["clean"]))

    def speak(self, group: Sequence[Line]) -> dict[str, Any]:
        """The clips of a group; one neutral rendering and its analysis serve them all.

        Raises:
            SpeechError: one could not be spoken.
        """
        analyses: dict[str, Analysis] = {}
        clips = {}
        for line in group:
            emotion = line.emotion if self.tts.has_emotions else "neutral"
            prosody, drawn = self.delivery.draw_prosody(line), self.delivery.draw_augmentation(line)
            if prosody is None:
                waveform = self._render(line, emotion)
            else:
                if emotion not in analyses:
                    analyses[emotion] = analyse(self._render(line, emotion), QUESTION_RATE)
                waveform = render(analyses[emotion], QUESTION_RATE, prosody)
            clean = clip = self._write(line, None, waveform)
            applied = None
            if drawn:
                waveform, applied = augment(waveform, QUESTION_RATE, drawn)
                clip = self._write(line, drawn, waveform)
            clips[line.id] = {
                "clip": clip,
                "clean": clean,
                "sec": round(len(waveform) / QUESTION_RATE, 3),
                "augmentation": applied.figures() if applied else None,
            }
        return clips

    def _write(self, line: Line, drawn: ClipAugmentation | None, waveform: np.ndarray) -> str:
        name = self._clip_name(line, drawn)
        write_bytes(self.folder / name, encode_opus(waveform, QUESTION_RATE))
        return name

    def _clip_name(self, line: Line, drawn: ClipAugmentation | None) -> str:
        """Changes whenever the sound does: a clip that was kept is never taken for other words."""
        prosody = self.delivery.draw_prosody(line)
        sound = [
            self.tts.identity,
            [line.emotion, line.style] if self.tts.has_emotions else None,
            line.text,
            line.voice,
            self.delivery.speed,
            asdict(prosody) if prosody else None,
            asdict(drawn) if drawn else None,
        ]
        return f"questions/{fingerprint(*sound, QUESTION_RATE, QUESTION_LEVEL)}.opus"

    def _render(self, line: Line, emotion: str) -> np.ndarray:
        """The line's words at QUESTION_RATE; a neutral engine at QUESTION_LEVEL, one with emotions at its own."""
        spoken = self.renderings.speak(line.text, line.voice, self.delivery.speed, emotion, line.style)
        waveform = soxr.resample(*spoken, QUESTION_RATE)
        if self.tts.has_emotions:
            return waveform
        return waveform * (QUESTION_LEVEL / max(1e-4, float(np.sqrt((waveform**2).mean()))))


class SpeakTexts(PipelineStep[tuple[str, str, str]]):
    """Records (voice, words, emotion) -> `clip` in `folder`, `sec`, and `usage`, what was retried.

    Args:
        name: Name of the step.
        tts: Engine that speaks.
        speed: Speaking rate of all texts.
        folder: Folder for the renderings (`tts`), and for what prosody made of them (`replies`).
        prosody: Emotion -> how the voice is changed; missing emotions leave it as it is.
    """

    unit = "text"

    def __init__(
        self,
        name: str,
        tts: SpeechSynthesizer,
        speed: float,
        folder: Path,
        prosody: dict[str, Prosody] | None = None,
    ):
        self.name, self.tts, self.speed, self.folder, self.prosody = name, tts, speed, folder, prosody or {}
        self.threads = tts.concurrency

    @cached_property
    def renderings(self) -> Renderings:
        """What was spoken before."""
        return Renderings(self.tts, self.folder / "tts")

    def key(self, item: tuple[str, str, str]) -> str:
        return self._path(item).stem

    def run(self, batch: Sequence[tuple[str, str, str]]) -> list[Any | ItemFailure]:
        results: list[Any | ItemFailure] = []
        for item in batch:
            voice, text, emotion = item
            path = self._path(item)
            with track_usage() as usage:
                try:
                    waveform, rate = self.renderings.speak(text, voice, self.speed, emotion)
                    if emotion in self.prosody:
                        waveform = render(analyse(waveform, rate), rate, self.prosody[emotion])
                        write_bytes(path, encode_flac(waveform, rate))
                except SpeechError as error:
                    results.append(ItemFailure(str(error), usage))
                    continue
            clip = path.relative_to(self.folder).as_posix()
            results.append({"clip": clip, "sec": round(len(waveform) / rate, 3), "usage": usage.as_json()})
        return results

    def is_there(self, result: Any) -> bool:
        return (self.folder / result["clip"]).is_file()

    def _path(self, item: tuple[str, str, str]) -> Path:
        voice, text, emotion = item
        spoken = self.renderings.path(text, voice, self.speed, emotion)
        if emotion not in self.prosody:
            return spoken
        return self.folder / "replies" / f"{fingerprint(spoken.stem, asdict(self.prosody[emotion]))}.flac"


def encode_flac(waveform: np.ndarray, sample_rate: int) -> bytes:
    """(T,) -> a FLAC file."""
    buffer = io.BytesIO()
    sf.write(buffer, waveform, sample_rate, format="FLAC")
    return buffer.getvalue()
