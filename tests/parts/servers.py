"""What clients meet at servers: answers that come too late, and nobody at all. Nothing here waits for a clock."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from lightning_s2s.construction import openai_server

LATE = "X-Late"
"""Header by which a server marks an answer that its client must treat as too late."""


def treat_marked_answers_as_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a request whose answer is marked end with the error that it has when its time is over.

    A short time limit in its place would make timely answers late on a slow machine.
    """
    try:
        import httpx2 as httpx  # of openai 3
    except ImportError:
        import httpx

    handle = httpx.HTTPTransport.handle_request

    def handle_request(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        response = handle(transport, request)
        if LATE in response.headers:
            response.close()
            raise httpx.ReadTimeout("too late", request=request)
        return response

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle_request)


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let retries follow each other at once."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(openai_server, "FIRST_PAUSE_SEC", 0.001)


@contextlib.contextmanager
def url_of_nobody() -> Iterator[str]:
    """The URL of a port that is taken, so that no other program gets it meanwhile, and refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
