"""Incremental decoding of a reply's tokens, at a cost that doesn't grow with the reply."""

from __future__ import annotations

from collections.abc import Callable

MAX_PENDING_TOKENS = 16
"""Tokens that may be held back for a complete character; a character has at most four bytes, so more can't help."""


class Detokenizer:
    """Called with each token, returns the text that the token adds; `flush` returns the rest at the end.

    A character may need several tokens, and an incomplete character is held back. Each call decodes only the tokens
    since the last complete text, together with those of the text before it, since a tokenizer may drop the space in
    front of the first token.

    Args:
        decode: Maps token ids to text.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode = decode
        self._emitted: list[int] = []
        self._pending: list[int] = []

    def __call__(self, token: int) -> str:
        self._pending.append(token)
        before, text = self.decode(self._emitted), self.decode(self._emitted + self._pending)
        incomplete = text.endswith("\ufffd") or text == before
        if incomplete and len(self._pending) < MAX_PENDING_TOKENS:
            return ""
        return self._emit(before, text)

    def flush(self) -> str:
        """The text of the pending tokens; an incomplete character comes out as the tokenizer decodes it."""
        return self._emit(self.decode(self._emitted), self.decode(self._emitted + self._pending))

    def _emit(self, before: str, text: str) -> str:
        if self._pending:
            self._emitted, self._pending = self._pending, []
        return text[len(before) :]
