"""What an evaluation keeps of one answered question, and what the report says about all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lightning_s2s.streaming.events import Reply

MARKS = ("encoder_done", "first_text_token", "first_hidden_states", "first_units", "first_audio")
"""The marks of a reply's clock in the order in which they happen; each is in seconds since the question's end."""


@dataclass(frozen=True)
class Answer:
    """One spoken question, what the model heard in it, and its reply.

    Attributes:
        id: of the question in its manifest.
        speaker: who asks.
        pair: questions of one pair share words and voice and differ in emotion alone.
        ambiguous: the words fit any emotion, only the voice tells which.
        said: the question's words.
        emotion_spoken: the emotion it was said with.
        emotion_heard: the emotion the model named; None when it named none.
        reply: of the streaming session; `text`, `marks`, `real_time_factor`, `waveform` and `sample_rate` are read.
        reply_emotion: the emotion that the reply's text belongs to; None when it is not well-formed.
        fits: the reply is well-formed and of the emotion that was spoken.
        waveform: (T,) float32 in [-1, 1], the question's audio.
        sample_rate: of `waveform`, in Hz.
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


@dataclass(frozen=True)
class Figure:
    """One number of the summary, with the target it is held against.

    Attributes:
        name: in plain words, e.g. "emotion recognised, held-out speakers".
        value: a share (0..1) when `unit` is "percent", else in the unit itself.
        target: the bound that counts as met; None when there is none.
        at_most: the target is an upper bound (latency, word error); otherwise a lower one.
        unit: "percent", "seconds", or "" for a bare number.
        note: what the number should be read beside, e.g. the level of chance.
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
        """Whether the target is met; None without a target. A value that is not a number meets none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def format(self, value: float) -> str:
        """`value` in the figure's unit: "87.5 %", "0.312 s", "0.21"."""
        if value != value:
            return "no value"
        if self.unit == "percent":
            return f"{100 * value:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"
        number = f"{value:.3f}".rstrip("0").rstrip(".")
        return f"{number}\N{NO-BREAK SPACE}s" if self.unit == "seconds" else number

    def format_target(self) -> str:
        """ "at least 85 %", "at most 0.5 s", or nothing."""
        if self.target is None:
            return ""
        return f"at {'most' if self.at_most else 'least'} {self.format(self.target)}"


@dataclass(frozen=True)
class Run:
    """One training run behind the answers.

    Attributes:
        name: e.g. "1 speech understanding".
        facts: short label -> text, e.g. {"steps": "600", "took": "3 min 20 s"}.
        curves: metric -> (step, value) points, drawn as small lines.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)


def stage_durations(marks: Mapping[str, float]) -> list[tuple[str, float]]:
    """The marks of one reply -> (mark, seconds since the mark before it), in order; missing marks are left out."""
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
    """The percentile with linear interpolation between order statistics; nan without values."""
    import numpy as np

    values = list(values)
    return float(np.percentile(values, percent)) if values else float("nan")
