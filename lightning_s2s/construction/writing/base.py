"""The interface of the writers."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s2s.construction.dialogue import Script
from lightning_s2s.construction.running import Runner
from lightning_s2s.construction.usage import Usage


@dataclass(frozen=True)
class WritingJob:
    """What a writer is asked for, beside its own settings.

    Attributes:
        voices: Voices of the users by split.
        traits: Name of a voice, or a pattern such as `af_*` -> what is known of its speaker.
        seed: Seed of all random choices.
        runner: Where an LLM runs.
        folder: Folder for what is written, so that a killed run resumes.
        timed: See `run_step`.
    """

    voices: dict[str, list[str]]
    traits: dict[str, dict[str, str]]
    seed: int
    runner: Runner
    folder: Path
    timed: Callable[[str, int, float], Any] = lambda *_: None

    def traits_of(self, voice: str) -> dict[str, str]:
        """What is known of a voice's speaker; later patterns come before earlier ones."""
        found: dict[str, str] = {}
        for pattern, traits in self.traits.items():
            if fnmatch.fnmatchcase(voice, pattern):
                found |= traits
        return found


class DialogueWriter(ABC):
    """Seeds -> dialogues in words. A subclass is chosen by its name, as `SpeechSynthesizer`'s are."""

    @abstractmethod
    def write(self, job: WritingJob) -> Script:
        """Everything that will be said; the same job gives the same.

        Raises:
            ValueError: a setting doesn't fit, a file is missing, or a server is not there.
        """

    @property
    @abstractmethod
    def emotions(self) -> Sequence[str]:
        """That lines may be said with."""

    def cost(self, usage: Usage) -> float | None:
        """What LLMs cost, None where that is not known."""
        return None

    @property
    @abstractmethod
    def description(self) -> dict[str, str]:
        """What the data card says of it: label -> text."""
