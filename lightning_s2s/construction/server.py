"""Requests to a server of OpenAI's protocol: what may pass is asked again, and all that went wrong is counted."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_s2s.construction.dialogue import Usage

Answer = TypeVar("Answer")

Json = str | int | float | bool | list | dict | None
"""A field of a request; words stay words, whatever they look like."""
LONGEST_PAUSE_SEC = 60.0

_usage: ContextVar[Usage | None] = ContextVar("usage", default=None)


class PassingError(Exception):
    """One request did not succeed; another, or the same later, may."""


@contextlib.contextmanager
def metered() -> Iterator[Usage]:
    """Counts what this thread asks for: tokens, and what went wrong, whether or not it succeeded in the end."""
    usage = Usage()
    token = _usage.set(usage)
    try:
        yield usage
    finally:
        _usage.reset(token)


def count_tokens(read: int, written: int) -> None:
    """Count an LLM's tokens where somebody does."""
    if (usage := _usage.get()) is not None:
        usage.input_tokens += read
        usage.output_tokens += written


def count_problem(reason: str) -> None:
    """Count one where somebody does."""
    if (usage := _usage.get()) is not None:
        usage.problems[reason] += 1


@dataclass
class Server:
    """A server of OpenAI's protocol.

    Args:
        base_url: such as `http://localhost:8000/v1`.
        api_key_variable: environment variable with the key; a server that wants none needs none.
        timeout_sec: for one request.
        max_retries: how often a request is made again.
        pause_sec: before the first time, then twice as long each time; a server's `Retry-After` comes first.
    """

    base_url: str
    api_key_variable: str
    timeout_sec: float
    max_retries: int
    pause_sec: float = 0.5

    def request(self, ask: Callable[[Any], Any], read: Callable[[Any], Answer]) -> Answer:
        """Ask until there is an answer that can be read.

        Args:
            ask: makes the request by the client of the package openai.
            read: takes from its answer what is wanted, or raises PassingError.

        Raises:
            PassingError: there was none, `max_retries` over.
            ValueError: the server is not there from the start, or refuses (a wrong model, voice or key).
        """
        import openai

        for attempt in range(1 + self.max_retries):
            pause = self.pause_sec * 2**attempt * (1 + random.random() / 4)
            try:
                answer = ask(self._client)
                self._has_answered = True
                return read(answer)
            except PassingError as error:
                failure = error
            except openai.APITimeoutError:
                failure = PassingError(f"got no answer within {self.timeout_sec:g} s")
            except openai.APIConnectionError as error:
                if not self._has_answered and type(error.__cause__).__name__ == "ConnectError":
                    raise ValueError(f"{self.base_url}: no answer ({error.__cause__ or error})") from None
                failure = PassingError("the connection broke off")
            except openai.APIStatusError as error:
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise ValueError(f"{self.base_url}: {error.status_code}: {_reason(error)}") from None
                failure = PassingError(f"the server answered {error.status_code}")
                pause = _retry_after_sec(error.response.headers, pause)
            except (openai.APIError, ValueError) as error:  # an answer that is not the protocol's
                failure = PassingError(f"got an answer that can't be read ({_first_line(error)})")
            count_problem(str(failure))
            if attempt < self.max_retries:
                time.sleep(min(pause, LONGEST_PAUSE_SEC))
        raise failure

    @functools.cached_property
    def _client(self) -> Any:
        import openai

        key = os.environ.get(self.api_key_variable) or "none"
        return openai.OpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout_sec, max_retries=0)

    def __post_init__(self) -> None:
        self._has_answered = False


def _retry_after_sec(headers: Any, otherwise: float) -> float:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, float(headers.get(name)) * unit)
    return otherwise


def _reason(error: Any) -> str:
    """What the server said, in one line."""
    body = error.body if isinstance(error.body, dict) else {}
    return " ".join(str(body.get("message") or error.message).split())[:200]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
