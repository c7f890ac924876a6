"""Waiting for conditions instead of seconds, so that no test depends on how fast a machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

SAFETY_LIMIT_SEC = 1800.0
"""Only ends a test that would hang for ever: a loaded machine may take many minutes for what takes seconds."""


def wait_for(condition: Callable[[], Value], what: str) -> Value:
    """The value of `condition` once it is true; `what` says what is awaited, for the error at the safety limit."""
    end = time.monotonic() + SAFETY_LIMIT_SEC
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {SAFETY_LIMIT_SEC:g} s for {what}"
        time.sleep(0.01)
    return value
