"""What dialogues are written from: speaker, topic, situation, language and emotions; given, or sampled for coverage."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lightning_s2s.construction.writing.base import WritingJob
from lightning_s2s.data.tasks import EMOTIONS, SPLITS
from lightning_s2s.support.ranges import Count, Natural, checked
from lightning_s2s.support.reading import parse_json
from lightning_s2s.support.wording import unknown_name

Value = TypeVar("Value")

TRAITS = ("gender", "age", "language")
"""Of a given seed, these must be the voice's, where its traits name them."""


@dataclass(frozen=True)
class Seed:
    """What one line, said with one or several emotions, is written from.

    Attributes:
        id: Unique name.
        split: Split of its voice.
        speaker: The voice.
        emotions: Emotions that the line is said with; several make a minimal pair.
        about: Topic, situation, language and the voice's traits.
    """

    id: str
    split: str
    speaker: str
    emotions: tuple[str, ...]
    about: dict[str, str]


@checked
@dataclass
class Seeds:
    """Sampled seeds cover their lists evenly: every topic comes once before one comes twice, and so do the others.

    Args:
        lines: Number of lines by split; must be left out where `file` is given.
        emotions_per_line: Number of emotions that each line is said with: 1, or more for minimal pairs.
        emotions: Emotions that are drawn from.
        topics: Topics that are drawn from; by default those of `topics.txt` among the prompts.
        situations: Situations that are drawn from; by default those of `situations.txt`.
        languages: Languages in which the lines are written.
        file: File of given seeds, JSONL or CSV, in place of sampled ones. Columns: `emotion` (several joined by `|`),
            and by choice `split` (train), `topic`, `situation`, `speaker` or `gender`, `age` and `language`, by which a
            voice is chosen, and any others that your prompts name.

    Raises:
        ValueError: a number is wrong, or both or neither of `lines` and `file` are there.
    """

    lines: dict[str, Natural] = field(default_factory=dict)
    emotions_per_line: Count = 1
    emotions: list[str] = field(default_factory=lambda: list(EMOTIONS))
    topics: list[str] = field(default_factory=list)
    situations: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=lambda: ["English"])
    file: str | None = None

    def __post_init__(self) -> None:
        if bool(self.lines) == (self.file is not None):
            raise ValueError("seeds: give either lines (how many, by split) or file")
        if unknown := sorted(set(self.lines) - set(SPLITS)):
            raise ValueError(f"seeds: lines: {unknown_name('split', unknown[0], SPLITS)}")
        if not 1 <= self.emotions_per_line <= len(self.emotions):
            raise ValueError(
                f"seeds: emotions_per_line must be 1 to {len(self.emotions)}, the number of emotions; got "
                f"{self.emotions_per_line}"
            )

    def make(self, job: WritingJob) -> list[Seed]:
        """All seeds, by split; the same order gives the same, and more lines keep those that were there.

        Raises:
            ValueError: the file is broken, or no voice fits a seed.
        """
        if self.file is not None:
            return list(self._read(Path(self.file), job))
        return [seed for split in SPLITS for seed in self._sample(split, self.lines.get(split, 0), job)]

    def _sample(self, split: str, count: int, job: WritingJob) -> Iterator[Seed]:
        if count and not job.voices[split]:
            raise ValueError(f"user_voices: {split} has none, but seeds asks for {count} lines of it")

        def deal(name: str, values: Sequence[Value]) -> Iterator[Value]:
            return dealt(values, random.Random(f"{job.seed}-{split}-{name}"))

        voices, emotions = deal("voices", job.voices[split]), deal("emotions", self.emotions)
        about = {"topic": self.topics, "situation": self.situations, "language": self.languages}
        decks = {name: deal(name, values) for name, values in about.items() if values}
        held: list[str] = []
        for number in range(count):
            voice = next(voices)
            said = _take(self.emotions_per_line, emotions, held)
            drawn = {name: next(deck) for name, deck in decks.items()}
            yield Seed(f"{split}-{number:05d}", split, voice, tuple(said), drawn | job.traits_of(voice))

    def _read(self, path: Path, job: WritingJob) -> Iterator[Seed]:
        counts = dict.fromkeys(SPLITS, 0)
        for line, row in _rows(path):
            where = f"{path}:{line}: "
            emotions = tuple(word for word in row.pop("emotion", "").split("|") if word)
            if not emotions:
                raise ValueError(f"{where}emotion is missing")
            for emotion in emotions:
                if emotion not in self.emotions:
                    raise ValueError(where + unknown_name("emotion", emotion, self.emotions))
            split = row.pop("split", "train")
            if split not in SPLITS:
                raise ValueError(where + unknown_name("split", split, SPLITS))
            speaker = row.pop("speaker", None)
            voices = job.voices[split]
            if speaker is not None and speaker not in voices:
                raise ValueError(where + unknown_name(f"speaker among the {split} voices", speaker, voices))
            fitting = [speaker] if speaker else [voice for voice in voices if _fits(row, job.traits_of(voice))]
            if not fitting:
                wanted = ", ".join(f"{name} {row[name]}" for name in TRAITS if row.get(name))
                raise ValueError(f"{where}no voice of {split} has {wanted}; see voice_traits")
            voice = fitting[counts[split] % len(fitting)]
            about = {"language": self.languages[0]} | job.traits_of(voice) | row
            yield Seed(f"{split}-{counts[split]:05d}", split, voice, emotions, about)
            counts[split] += 1


def dealt(values: Sequence[Value], rng: random.Random) -> Iterator[Value]:
    """Values without end, all of them in a new order before any comes again."""
    while True:
        deck = list(values)
        rng.shuffle(deck)
        yield from deck


def _take(count: int, deck: Iterator[str], held: list[str]) -> list[str]:
    """`count` different cards; one that is there already is held back for the next hand."""
    hand: list[str] = []
    while len(hand) < count:
        card = next((card for card in held if card not in hand), None)
        if card is not None:
            held.remove(card)
        elif (card := next(deck)) in hand:
            held.append(card)
            continue
        hand.append(card)
    return hand


def _fits(wanted: dict[str, str], traits: dict[str, str]) -> bool:
    return all(not wanted.get(name) or traits.get(name, wanted[name]) == wanted[name] for name in TRAITS)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and columns of a JSONL or CSV file; empty columns are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    rows: Iterable[tuple[int, dict[Any, Any]]]
    if path.suffix == ".csv":
        rows = enumerate(csv.DictReader(text.splitlines()), start=2)
    elif path.suffix == ".jsonl":
        rows = ((number, _parse(path, number, line)) for number, line in enumerate(text.splitlines(), 1) if line)
    else:
        raise ValueError(f"{path}: seeds must be a .jsonl or a .csv file")
    for number, row in rows:
        yield number, {str(key): str(value) for key, value in row.items() if value not in (None, "")}


def _parse(path: Path, number: int, line: str) -> dict:
    row = parse_json(line, f"{path}:{number}")
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: must be an object")
    return row
