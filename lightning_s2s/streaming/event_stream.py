"""The iterator over a turn's events, whose end, however it comes, is the turn's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lightning_s2s.streaming.events import Event


class EventStream(Iterator[Event]):
    """The events of a turn, made while they are iterated over.

    A turn lives as long as somebody can read its events: `close`, an error where they are read, and the garbage
    collector, which finds a stream that was dropped, read or not, cancel it. No part of the engine refers to a stream.

    Args:
        next_event: gives the turn's next event, None after the last one.
        cancel: ends the turn.
        abandon: the same for the garbage collector, which may run anywhere, also in a thread that has the lock.
    """

    def __init__(self, next_event: Callable[[], Event | None], cancel: Callable[[], None], abandon: Callable[[], None]):
        self._next_event, self._cancel, self._abandon = next_event, cancel, abandon
        self._closed = False

    def __next__(self) -> Event:
        if self._closed:
            raise StopIteration
        try:
            event = self._next_event()
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
            self._cancel()

    def __del__(self) -> None:
        if not self._closed:
            self._abandon()
