"""What every filter has in common, and the step that measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_s2s.construction.dialogue import Dialogue, Usage
from lightning_s2s.construction.renderings import read_recording
from lightning_s2s.construction.running import Failure, Step
from lightning_s2s.construction.running.base import fingerprint
from lightning_s2s.construction.server import metered

Figures = dict[str, Any]
RATE = 16_000
"""Hz of what filters hear."""


@dataclass(frozen=True)
class Heard:
    """What a filter looks at.

    Attributes:
        dialogue: its words.
        questions: the user's recordings, one for each turn, without augmentation; none before anything is spoken.
        replies: the assistant's.
        voices: a recording of other words in the user's voice, and one in the assistant's.
    """

    dialogue: Dialogue
    questions: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    voices: tuple[str, ...] = field(default=())


class Filter(ABC):
    """Measures dialogues, and says which are good enough.

    What is measured is kept: another threshold measures nothing again. A subclass is chosen by its name, and goes to
    other processes, as `SpeechSynthesizer`'s.
    """

    name: str
    """Of its step, and of the dialogues that it rejects in the report."""
    hears: bool = False
    """Whether it needs recordings; those that don't come first, so that nothing is spoken in vain."""
    compares_voices: bool = False
    """Whether it needs `Heard.voices`."""
    light: bool = False
    """Whether it measures in no time, see `Step`."""
    whole_set: bool = False
    """Whether it looks at all dialogues at once, those that were rejected before left out."""
    concurrency: int = 1
    """Batches that it may be asked for at the same time, from as many threads."""
    batch_size: int = 1
    """Dialogues in a batch."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What decides its figures: models and settings, but no threshold."""

    @abstractmethod
    def measure(self, batch: Sequence[Heard]) -> list[Figures | Failure]:
        """The figures of each dialogue, plain values by names that no other filter uses.

        Raises:
            ValueError: none can be measured.
        """

    @abstractmethod
    def verdict(self, figures: Figures) -> str:
        """Why a dialogue with these figures is left out; "" keeps it."""

    def __getstate__(self) -> dict[str, Any]:
        """For another process."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


class FilterStep(Step[Heard]):
    """Measures by a filter: `figures`, and `usage`, what was asked for.

    Args:
        kind: the filter.
        folder: of the recordings.
    """

    unit = "dialogue"

    def __init__(self, kind: Filter, folder: Path):
        self.kind, self.folder, self.name, self.identity = kind, folder, kind.name, kind.identity
        self.batch_size, self.threads, self.light = kind.batch_size, kind.concurrency, kind.light

    def key(self, item: Heard) -> str:
        turns = [asdict(turn) for turn in item.dialogue.turns]
        return fingerprint(self.identity, turns, item.questions, item.replies, item.voices, item.dialogue.seed)

    def run(self, batch: Sequence[Heard]) -> list[Any | Failure]:
        def place(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(str(self.folder / name) for name in names)

        there = [Heard(h.dialogue, place(h.questions), place(h.replies), place(h.voices)) for h in batch]
        with metered() as usage:
            measured = self.kind.measure(there)
        usages = [usage, *(Usage() for _ in batch[1:])]  # a batch's tokens are counted once, with its first dialogue
        return [
            Failure(found.reason, used) if isinstance(found, Failure) else {"figures": found, "usage": used.as_json()}
            for found, used in zip(measured, usages, strict=True)
        ]


def load(path: str) -> np.ndarray:
    """A recording of `work_dir` -> (T,) float32 at RATE."""
    import soxr

    return soxr.resample(*read_recording(path), RATE)


def over(figures: Figures, name: str, highest: float) -> str:
    """Why a figure is too high; "" where it is not."""
    return f"{name} {figures[name]:.3g} is above {highest:g}" if figures[name] > highest else ""


def under(figures: Figures, name: str, lowest: float) -> str:
    """Why a figure is too low; "" where it is not."""
    return f"{name} {figures[name]:.3g} is below {lowest:g}" if figures[name] < lowest else ""
