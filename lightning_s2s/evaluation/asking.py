"""Puts many questions to a model: their sessions share the steps of one engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from lightning_s2s.data.audio import Waveform
from lightning_s2s.data.tasks import TASKS
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.event_stream import EventStream
from lightning_s2s.streaming.events import Done, Reply
from lightning_s2s.streaming.session import stream_reply

Key = TypeVar("Key")

LONGEST_EMOTION = 8
"""Maximum number of text tokens in which the model names an emotion."""


@dataclass(frozen=True)
class Asked(Generic[Key]):
    """A question as the model hears it.

    Attributes:
        key: What the answer is returned with.
        waveform: (T,) float32 in [-1, 1].
        vocode: Whether the reply's units are turned into audio.
    """

    key: Key
    waveform: Waveform
    vocode: bool = True


@dataclass(frozen=True)
class Answered(Generic[Key]):
    """What the model said to a question.

    Attributes:
        key: Key of the question.
        named: The emotion that the model named when it was asked for it, in its own words, in lower case.
        reply: Its reply.
    """

    key: Key
    named: str
    reply: Reply


def ask_all(engine: StreamingEngine, questions: Iterable[Asked[Key]], sample_rate: int) -> Iterator[Answered[Key]]:
    """Answer questions greedily and ask which emotion each was said with, in two sessions per question.

    More sessions wait than there are slots until the questions run out, so that no slot stays free.

    Args:
        engine: Engine whose slots the sessions share.
        questions: The questions; taken one by one as earlier ones are answered.
        sample_rate: Sample rate of the waveforms in Hz.
    Returns:
        The answers in the order of the questions.
    """
    waiting: deque[tuple[Key, EventStream, EventStream]] = deque()
    for asked in questions:
        naming = stream_reply(
            engine.model,
            asked.waveform,
            sample_rate,
            engine=engine,
            greedy=True,
            instruction=TASKS["emotion"],
            speak=False,
            max_text_tokens=LONGEST_EMOTION,
        )
        replying = stream_reply(
            engine.model, asked.waveform, sample_rate, engine=engine, greedy=True, vocode=asked.vocode
        )
        waiting.append((asked.key, naming, replying))
        if len(waiting) > engine.num_slots:
            yield _answer(*waiting.popleft())
    while waiting:
        yield _answer(*waiting.popleft())


def last_reply(stream: EventStream) -> Reply:
    """Read a session's events to the end; returns its reply."""
    *_, done = stream
    assert isinstance(done, Done)
    return done.reply


def _answer(key: Key, naming: EventStream, replying: EventStream) -> Answered[Key]:
    return Answered(key, last_reply(naming).text.lower(), last_reply(replying))
