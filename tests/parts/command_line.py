"""What a command has printed."""

from __future__ import annotations


def last_line(text: str) -> str:
    """The last line with something on it."""
    return text.rstrip().splitlines()[-1]
