"""The interface of the filters, and the step that measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_s2s.construction.dialogue import Dialogue, Limit
from lightning_s2s.construction.running import ItemFailure, PipelineStep
from lightning_s2s.construction.running.base import Portable, fingerprint
from lightning_s2s.construction.speech.renderings import read_recording
from lightning_s2s.construction.usage import Usage, track_usage

Figures = dict[str, Any]
RATE = 16_000
"""Hz of what filters hear."""


@dataclass(frozen=True)
class RecordedDialogue:
    """A dialogue and its recordings, as a filter gets it.

    Attributes:
        dialogue: The dialogue in words.
        questions: The user's recordings, one for each turn, without augmentation; none before anything is spoken.
        replies: The assistant's recordings.
        voices: A recording of other words in the user's voice, and one in the assistant's.
    """

    dialogue: Dialogue
    questions: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    voices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejection:
    """Why a dialogue is left out.

    Attributes:
        reason: The reason in words.
        limit: The limit that a figure is beyond, where there is one.
    """

    reason: str
    limit: Limit | None = None


class Filter(Portable, ABC):
    """Measures dialogues, and says which are good enough.

    What is measured is kept: another threshold measures nothing again. A subclass is chosen by its name, and goes to
    other processes, as `SpeechSynthesizer`'s.
    """

    name: str
    """Name of its step, under which the report counts what it rejects."""
    hears: bool = False
    """Whether it needs recordings; those that don't come first, so that nothing is spoken in vain."""
    compares_voices: bool = False
    """Whether it needs `RecordedDialogue.voices`."""
    light: bool = False
    """Whether it takes next to no time, see `PipelineStep`."""
    compares_dialogues: bool = False
    """Whether it looks at all dialogues at once, those that were rejected before left out."""
    concurrency: int = 1
    """Number of batches that it may be given at the same time, from as many threads."""
    batch_size: int = 1
    """Dialogues in a batch."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What decides its figures: models and settings, but no threshold."""

    @abstractmethod
    def measure(self, batch: Sequence[RecordedDialogue]) -> list[Figures | ItemFailure]:
        """The figures of each dialogue, plain values by names that no other filter uses.

        Raises:
            ValueError: No dialogue can be measured.
        """

    @abstractmethod
    def verdict(self, figures: Figures) -> Rejection | None:
        """Why a dialogue with these figures is left out; None keeps it."""


class FilterStep(PipelineStep[RecordedDialogue]):
    """Measures by a filter: `figures`, and `usage`, what was asked for.

    Args:
        kind: The filter.
        folder: Folder of the recordings.
    """

    unit = "dialogue"

    def __init__(self, kind: Filter, folder: Path):
        self.kind, self.folder, self.name, self.identity = kind, folder, kind.name, kind.identity
        self.batch_size, self.threads, self.light = kind.batch_size, kind.concurrency, kind.light

    def key(self, item: RecordedDialogue) -> str:
        turns = [asdict(turn) for turn in item.dialogue.turns]
        return fingerprint(self.identity, turns, item.questions, item.replies, item.voices, item.dialogue.seed)

    def run(self, batch: Sequence[RecordedDialogue]) -> list[Any | ItemFailure]:
        def place(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(str(self.folder / name) for name in names)

        there = [RecordedDialogue(h.dialogue, place(h.questions), place(h.replies), place(h.voices)) for h in batch]
        with track_usage() as usage:
            measured = self.kind.measure(there)
        usages = [usage, *(Usage() for _ in batch[1:])]  # a batch's tokens are counted once, with its first dialogue
        return [
            ItemFailure(found.reason, used)
            if isinstance(found, ItemFailure)
            else {"figures": found, "usage": used.as_json()}
            for found, used in zip(measured, usages, strict=True)
        ]


def load(path: str) -> np.ndarray:
    """A recording of `work_dir` -> (T,) float32 at RATE."""
    import soxr

    return soxr.resample(*read_recording(path), RATE)


def over(figures: Figures, name: str, highest: float) -> Rejection | None:
    """Why a figure is too high; None where it is not."""
    return _beyond(figures[name], Limit(name, "above", highest)) if figures[name] > highest else None


def under(figures: Figures, name: str, lowest: float) -> Rejection | None:
    """Why a figure is too low; None where it is not."""
    return _beyond(figures[name], Limit(name, "below", lowest)) if figures[name] < lowest else None


def _beyond(value: float, limit: Limit) -> Rejection:
    return Rejection(f"{limit.figure} {value:.3g} is {limit.side} {limit.value:g}", limit)
