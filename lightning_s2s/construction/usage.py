"""What servers and LLMs were asked for: tokens, and faults that were retried; counted where the work is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_usage: ContextVar[Usage | None] = ContextVar("usage", default=None)


@dataclass
class Usage:
    """What servers and models were asked for.

    Attributes:
        input_tokens: Tokens that an LLM read.
        output_tokens: Tokens that it wrote.
        problems: What went wrong and was retried -> how often.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    problems: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens, "problems": dict(self.problems)}

    def add(self, values: dict[str, Any]) -> None:
        """Add what `as_json` gave."""
        self.input_tokens += values["input_tokens"]
        self.output_tokens += values["output_tokens"]
        self.problems.update(values["problems"])


@contextmanager
def track_usage() -> Iterator[Usage]:
    """Count what this thread asks for inside the block, whether or not it succeeds in the end."""
    usage = Usage()
    token = _usage.set(usage)
    try:
        yield usage
    finally:
        _usage.reset(token)


def count_tokens(read: int, written: int) -> None:
    """Add an LLM's tokens to the innermost `track_usage`, if there is one."""
    if (usage := _usage.get()) is not None:
        usage.input_tokens += read
        usage.output_tokens += written


def count_problem(reason: str) -> None:
    """Add a problem to the innermost `track_usage`, if there is one."""
    if (usage := _usage.get()) is not None:
        usage.problems[reason] += 1
