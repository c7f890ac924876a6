"""The events of a streaming session, and the reply that they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Ending = Literal["end", "max_text_tokens", "position_limit", "max_units"]
"""Why a reply ended: a closing token of the model; the session's `max_text_tokens`; the position limit of the engine's
caches or of the model; or the speech decoder's `max_units`, with decoders that end the text along with the speech."""


@dataclass
class Reply:
    """A complete reply and its latency.

    Attributes:
        text: Text of the reply.
        text_ids: Every token that the LLM produced, including those that `text` omits, such as the closing one.
        ended_by: Why the reply ended; with anything but "end" it may have been cut short.
        unit_ids: Speech units, without the closing one; empty when nothing was spoken. The decoder of a published
            model also outputs its special tokens, as negative units or as units beyond the last.
        waveform: (T,) float32; None when nothing was spoken.
        sample_rate: Sample rate of the waveform in Hz; None when nothing was spoken.
        marks: Seconds since the end of the question's audio, for each mark that was reached: `encoder_done`,
            `first_text_token`, `first_hidden_states` (the N that open speech), `first_units` (those of the first
            audio chunk), `first_audio`, `last_audio`.
        chunk_gaps_sec: Time between each audio chunk and the next.
        audio_sec: Duration of the waveform.
        real_time_factor: Time until the last audio, divided by `audio_sec`; None when nothing was spoken.
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
    """Base class of the events.

    Attributes:
        time_sec: When it happened, on the monotonic clock `time.perf_counter`.
    """

    time_sec: float


@dataclass(frozen=True)
class TextDelta(Event):
    """More text. `text` is empty while a character is incomplete; `token_ids` may be empty at the end of the reply."""

    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class Units(Event):
    """More speech units."""

    units: list[int]


@dataclass(frozen=True)
class AudioChunk(Event):
    """More audio, (T,) float32 at `sample_rate` Hz."""

    waveform: Tensor
    sample_rate: int


@dataclass(frozen=True)
class Done(Event):
    """The last event, with the complete reply."""

    reply: Reply
