"""Ctrl-C and SIGTERM: at once before the first batch and after the last, after the batch in between."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lightning.pytorch import Callback

ENDING = (signal.SIGINT, signal.SIGTERM)
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Received:
    """The signal that ends a run.

    Attributes:
        signal: its number; 0 before there is one.
        what_is_lost: told when the run ends at once.
        told: whether somebody has said already how the run ended.
    """

    def __init__(self, what_is_lost: str = "before the first batch; nothing was saved") -> None:
        self.signal = 0
        self.what_is_lost = what_is_lost
        self.told = False
        self._process = os.getpid()

    @property
    def status(self) -> int:
        """The exit status, as shells have it."""
        return 128 + self.signal

    @property
    def message(self) -> str:
        """How the run ended, in one line."""
        return f"ended by {NAMES[signal.Signals(self.signal)]} {self.what_is_lost}".strip()

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        """End at once on these signals; afterwards they mean what they meant before, which Lightning forgets."""
        before = {number: signal.getsignal(number) for number in ENDING}
        self.end_at_once()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def end_at_once(self) -> None:
        """From now on a signal raises KeyboardInterrupt where it falls into."""
        self._install(self._raise)

    def end_after_batch(self) -> None:
        """From now on a signal is noted alone; a second one ends at once."""
        self._install(self._note)

    def _install(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                signal.signal(number, handler)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal or os.getpid() != self._process:  # a loader's worker, which its parent will end
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this batch (again: at once)", file=sys.stderr, flush=True)


class EndsAtOnce(Callback):
    """Takes the signals back from Lightning, which sets a handler of its own before a sanity check or validation.

    That one talks to the other processes in the middle of whatever they do.

    Args:
        received: told of the signal that ends a run.
    """

    def __init__(self, received: Received):
        self.received = received

    def on_sanity_check_start(self, *_: Any) -> None:
        self.received.end_at_once()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "validate":
            self.received.end_at_once()
