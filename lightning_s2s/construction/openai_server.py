"""Requests to a server of OpenAI's protocol: transient faults are retried, and every one of them is counted.

The client of the package openai retries what it sees: 408, 409, 429, 5xx, timeouts and broken connections, after
`Retry-After` or growing pauses. Around it, answers that arrive but can't be used are asked for again.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_s2s.construction.usage import count_problem

Result = TypeVar("Result")

Json = str | int | float | bool | list | dict | None
"""A field of a request; words stay words, whatever they look like."""
FIRST_PAUSE_SEC, LONGEST_PAUSE_SEC = 0.5, 8.0
"""Pauses before an unusable answer is asked for again, doubled each time, as the client's own."""


class TransientError(Exception):
    """One request did not succeed; another, or the same later, may."""


@dataclass
class OpenAIServer:
    """A server of OpenAI's protocol.

    Args:
        base_url: URL of its API, such as `http://localhost:8000/v1`.
        api_key_variable: Environment variable that holds the key; a server that wants none needs none.
        timeout_sec: Time limit of one request.
        max_retries: How often a request is retried.
    """

    base_url: str
    api_key_variable: str
    timeout_sec: float
    max_retries: int

    def request(self, ask: Callable[[Any], Any], read: Callable[[Any], Result]) -> Result:
        """Ask until there is an answer that can be read.

        Args:
            ask: Makes the request with the client of the package openai.
            read: Takes what is wanted from its answer, or raises TransientError.

        Raises:
            TransientError: There was no usable answer after all retries.
            ValueError: The server can't be reached from the start, or refuses (a wrong model, voice or key).
        """
        import openai

        for attempt in range(1 + self.max_retries):
            if attempt:
                time.sleep(min(FIRST_PAUSE_SEC * 2 ** (attempt - 1), LONGEST_PAUSE_SEC))
            try:
                return read(ask(self._client))
            except openai.APIStatusError as error:
                if is_transient(error.status_code):
                    raise TransientError(f"the server answered {error.status_code}") from None
                raise ValueError(f"{self.base_url}: {error.status_code}: {_reason(error)}") from None
            except openai.APIConnectionError as error:
                raise TransientError(self._fault(error.__cause__ or error)) from None
            except TransientError as error:
                failure = error
            except (openai.APIError, ValueError) as error:  # an answer that is not the protocol's
                failure = TransientError(f"got an answer that can't be read ({_first_line(error)})")
            except openai.OpenAIError as error:
                raise ValueError(f"{self.base_url}: {error}") from None
            count_problem(str(failure))
        raise failure

    @functools.cached_property
    def _client(self) -> Any:
        import openai

        server = self

        class CountingClient(openai.DefaultHttpxClient):
            """Counts what goes wrong in each attempt: the client retries without telling."""

            has_answered = False

            def send(self, request: Any, **options: Any) -> Any:
                try:
                    response = super().send(request, **options)
                except Exception as error:
                    if not self.has_answered and type(error).__name__ == "ConnectError":
                        raise openai.OpenAIError(f"no answer ({error})") from None  # which is not retried
                    count_problem(server._fault(error))
                    raise
                self.has_answered = True
                if is_transient(response.status_code):
                    count_problem(f"the server answered {response.status_code}")
                return response

        return openai.OpenAI(
            base_url=self.base_url,
            api_key=os.environ.get(self.api_key_variable) or "none",
            timeout=self.timeout_sec,
            max_retries=self.max_retries,
            http_client=CountingClient(),
        )

    def _fault(self, error: BaseException) -> str:
        """What happened to a request that got no answer; the libraries that openai sends by name their errors alike."""
        late = type(error).__name__.endswith("Timeout")
        return f"got no answer within {self.timeout_sec:g} s" if late else "the connection broke off"


def is_transient(status: int) -> bool:
    """Whether a request with this status may succeed later, as the package openai decides it."""
    return status in (408, 409, 429) or status >= 500


def _reason(error: Any) -> str:
    """What the server said, in one line."""
    body = error.body if isinstance(error.body, dict) else {}
    return " ".join(str(body.get("message") or error.message).split())[:200]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
