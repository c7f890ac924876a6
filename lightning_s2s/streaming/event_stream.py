"""The iterator over a turn's events, whose end, however it comes, is the turn's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_s2s.streaming.events import Event

if TYPE_CHECKING:
    from lightning_s2s.streaming.engine import StreamingEngine
    from lightning_s2s.streaming.turn import Turn


class EventStream(Iterator[Event]):
    """The events of a turn, made while they are iterated over.

    A turn lives as long as somebody can read its events: `close`, an error where they are read, and the garbage
    collector, which finds a stream that was dropped, read or not, cancel it. No part of the engine refers to a stream.

    Args:
        engine: that runs the turn.
        turn: whose events.
    """

    def __init__(self, engine: StreamingEngine, turn: Turn):
        self._engine, self._turn, self._closed = engine, turn, False

    def __next__(self) -> Event:
        if self._closed:
            raise StopIteration
        try:
            event = self._engine.next_event(self._turn)
        except BaseException:
            self.close()
            raise
        if event is None:
            self._closed = True
            raise StopIteration
        return event

    def close(self) -> None:
        """No more events are wanted."""
        if not self._closed:
            self._closed = True
            self._engine.cancel(self._turn)

    def __del__(self) -> None:
        if not self._closed:
            self._engine.abandon(self._turn)
