"""The text of a reply, token by token, at a cost that doesn't grow with it."""

from __future__ import annotations

from collections.abc import Callable


class Detokenizer:
    """Call it with each token -> the text that is new with it.

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
        if text.endswith("\ufffd") or text == before:
            return ""
        self._before, self._fresh = self._fresh, []
        return text[len(before) :]
