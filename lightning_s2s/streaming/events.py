"""What a streaming session gives out, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Ending = Literal["end", "max_text_tokens", "position_limit", "max_units"]
"""What ended a reply: the model itself, by a closing token; the session's `max_text_tokens`; the limit of the engine's
caches or of the model; or the speech decoder's `max_units`, where these end the text, too."""


@dataclass
class Reply:
    """A whole answer and its latency.

    Attributes:
        text: what was answered.
        text_ids: every token that the LLM gave, with those that `text` leaves out, such as the closing one.
        ended_by: what ended it; all but "end" may have cut it short.
        unit_ids: the speech units, without the closing one; empty when nothing was spoken. A decoder of a published
            model gives its special tokens, too, as negative units or units behind the last.
        waveform: (T,) float32, None when nothing was spoken.
        sample_rate: Hz of the waveform, None likewise.
        marks: seconds since the end of the question's audio: `encoder_done`, `first_text_token`,
            `first_hidden_states` (the N that open speech), `first_units` (M of them), `first_audio`, `last_audio`;
            those that were reached.
        chunk_gaps_sec: time between one audio chunk and the next.
        audio_sec: length of the waveform.
        real_time_factor: time until the last audio over `audio_sec`; None when nothing was spoken.
    """

    text: str = ""
    text_ids: list[int] = field(default_factory=list)
    ended_by: Ending = "end"
    unit_ids: list[int] = field(default_factory=list)
    waveform: Tensor | None = None
    sample_rate: int | None = None
    marks: dict[str, float] = field(default_factory=dict)
    chunk_gaps_sec: list[float] = field(default_factory=list)
    audio_sec: float = 0.0
    real_time_factor: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        time_sec: of `time.perf_counter`, monotonic.
    """

    time_sec: float


@dataclass(frozen=True)
class TextDelta(Event):
    """More of the reply's text. `text` may be empty while a character is incomplete, and `token_ids` where it ends."""

    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class Units(Event):
    """More speech units."""

    units: list[int]


@dataclass(frozen=True)
class AudioChunk(Event):
    """More sound, (T,) float32 at `sample_rate` Hz."""

    waveform: Tensor
    sample_rate: int


@dataclass(frozen=True)
class Done(Event):
    """The last event."""

    reply: Reply
