"""Four sessions of one model, each with a question, a seed and a length of its own."""

from __future__ import annotations

from lightning_s2s.streaming.session import StreamingSession
from parts.sounds import sweep

QUESTIONS = [sweep(0.5 + 0.1 * number, 150 + 70 * number) for number in range(4)]
LENGTHS = (9, 4, 12, 7)


def session(model, number: int, engine=None, **options) -> StreamingSession:
    """Drawn, with a seed of its own: a random model's most likely replies are all the same."""
    options = {"greedy": False, "seed": number, "max_text_tokens": LENGTHS[number]} | options
    started = StreamingSession(model, 16_000, engine=engine, **options)
    started.push(QUESTIONS[number])
    return started


def alone(model, number: int):
    *_, done = session(model, number).finish()
    return done.reply
