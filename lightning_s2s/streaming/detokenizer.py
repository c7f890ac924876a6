"""The text of a reply, token by token, at a cost that doesn't grow with it."""

from __future__ import annotations

from collections.abc import Callable

LONGEST_WAIT = 16
"""Tokens without a complete character after which none is expected: no character has more than four bytes."""


class Detokenizer:
    """Call it with each token -> the text that is new with it; `flush` at the end gives what still waits.

    A character may need several tokens: what is incomplete waits. Only the tokens since the last complete text are
    decoded, with those of the text before, since a tokenizer may drop the space in front of the first.

    Args:
        decode: token ids -> text.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode = decode
        self._before: list[int] = []
        self._fresh: list[int] = []

    def __call__(self, token: int) -> str:
        self._fresh.append(token)
        before, text = self.decode(self._before), self.decode(self._before + self._fresh)
        incomplete = text.endswith("\ufffd") or text == before
        if incomplete and len(self._fresh) < LONGEST_WAIT:
            return ""
        return self._take(before, text)

    def flush(self) -> str:
        """The text of the tokens that wait for more, as the tokenizer decodes an incomplete character."""
        return self._take(self.decode(self._before), self.decode(self._before + self._fresh))

    def _take(self, before: str, text: str) -> str:
        if self._fresh:
            self._before, self._fresh = self._fresh, []
        return text[len(before) :]
