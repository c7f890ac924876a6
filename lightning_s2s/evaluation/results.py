"""Results of an evaluation: what happened to each question, and the metrics over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lightning_s2s.streaming.events import Reply

MARKS = ("encoder_done", "first_text_token", "first_hidden_states", "first_units", "first_audio")
"""Marks of a reply's latency clock, in the order in which they happen; each in seconds since the question's end."""


@dataclass(frozen=True)
class AnswerResult:
    """One spoken question, the emotion that the model heard in it, and its reply.

    Attributes:
        id: Id of the question in its manifest.
        speaker: Voice that asks.
        pair: Questions of one pair share words and voice and differ only in emotion.
        ambiguous: True if the words fit any emotion, so that only the voice tells which.
        said: Words of the question.
        emotion_spoken: Emotion that the question was said with.
        emotion_heard: Emotion that the model named; None if it named none.
        reply: Reply of the streaming session; `text`, `marks`, `real_time_factor`, `waveform`, `sample_rate` are read.
            A reply whose latency was not measured has no marks.
        reply_emotion: Emotion that the reply's text belongs to; None if the text is not well-formed.
        fits: True if the reply is well-formed and has the emotion of the question.
        waveform: (T,) float32 in [-1, 1], audio of the question.
        sample_rate: Sample rate of `waveform` in Hz.
    """

    id: str
    speaker: str
    pair: str
    ambiguous: bool
    said: str
    emotion_spoken: str
    emotion_heard: str | None
    reply: Reply
    reply_emotion: str | None
    fits: bool
    waveform: np.ndarray | Tensor
    sample_rate: int

    @property
    def heard(self) -> bool:
        """True if the model named the emotion that was spoken."""
        return self.emotion_heard == self.emotion_spoken


@dataclass(frozen=True)
class ConditionScores:
    """How well the questions were answered under one condition.

    Attributes:
        title: The condition.
        num_questions: Number of questions.
        heard: Share of questions whose emotion the model named.
        recall: Emotion -> the same share of the questions that were said with it.
        chance: Best value of `heard` without listening: the share of the most frequent emotion.
        fits: Share of replies that are well-formed and have the emotion of the question.
        pairs_fit: The same share of the ambiguous questions; NaN without any.
        num_limited: Number of questions whose level was lowered, since they would have clipped.
        limited_db: Mean number of decibels by which these were lowered.
    """

    title: str
    num_questions: int
    heard: float
    recall: Mapping[str, float]
    chance: float
    fits: float
    pairs_fit: float
    num_limited: int = 0
    limited_db: float = 0.0


@dataclass(frozen=True)
class Metric:
    """One number of the summary and its target.

    Attributes:
        name: Name in plain words, such as "emotion recognised".
        value: A share (0..1) if `unit` is "percent", otherwise a number in the unit itself.
        target: Bound that the value should reach; None for a metric without a target.
        at_most: True if the target is an upper bound (latency, word error), False if it is a lower one.
        unit: "percent", "seconds", or "" for a bare number.
        note: What the value should be compared with, such as the level of chance.
    """

    name: str
    value: float
    target: float | None = None
    at_most: bool = False
    unit: str = "percent"
    note: str = ""

    def __post_init__(self) -> None:
        if self.unit not in ("percent", "seconds", ""):
            raise ValueError(f"unit: got {self.unit!r}; allowed: 'percent', 'seconds', ''")

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target. NaN meets no target."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def format(self, value: float) -> str:
        """`value` in the metric's unit: "87.5 %", "0.312 s", "0.21"; "no value" for NaN."""
        if value != value:
            return "no value"
        if self.unit == "percent":
            return f"{100 * value:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"
        number = f"{value:.3f}".rstrip("0").rstrip(".")
        return f"{number}\N{NO-BREAK SPACE}s" if self.unit == "seconds" else number

    def format_target(self) -> str:
        """ "at least 85 %", "at most 0.5 s", or "" without a target."""
        if self.target is None:
            return ""
        return f"at {'most' if self.at_most else 'least'} {self.format(self.target)}"


def stage_durations(marks: Mapping[str, float]) -> list[tuple[str, float]]:
    """Marks of one reply -> (mark, seconds since the previous mark), in order; missing marks are left out."""
    durations, previous = [], 0.0
    for mark in MARKS:
        if marks.get(mark) is not None:
            durations.append((mark, max(0.0, marks[mark] - previous)))
            previous = max(previous, marks[mark])
    return durations


def printable(text: str) -> str:
    """`text` in one line, without the control characters that an untrained model may write."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def percentile(values: Iterable[float], percent: float) -> float:
    """Percentile with linear interpolation between order statistics; NaN without values."""
    import numpy as np

    values = list(values)
    return float(np.percentile(values, percent)) if values else float("nan")
