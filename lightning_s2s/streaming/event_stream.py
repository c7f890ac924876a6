"""The iterator over a turn's events; however the iterator ends, the turn ends with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lightning_s2s.streaming.events import Event


class EventStream(Iterator[Event]):
    """The events of a turn, computed while they are iterated over.

    A turn lives as long as its events can be read: it is cancelled by `close`, by an error while reading, and by the
    garbage collector once the stream is dropped, read or not. The engine therefore holds no reference to a stream.

    Args:
        next_event: Returns the turn's next event, None after the last one.
        cancel: Ends the turn.
        abandon: The same for the garbage collector, which may run anywhere, even in a thread that holds the lock.
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
        """Cancel the turn; iteration ends."""
        if not self._closed:
            self._closed = True
            self._cancel()

    def __del__(self) -> None:
        if not self._closed:
            self._abandon()
