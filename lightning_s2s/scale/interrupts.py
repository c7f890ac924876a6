"""Ctrl-C and SIGTERM stop a run: after the current batch during training, at once before and after it."""

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

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopSignal:
    """The signal that stops a run, and its handlers.

    Args:
        outcome: Completes `message` for a run that is stopped at once: how far it came, and what is saved.

    Attributes:
        signal: Number of the signal; 0 until one arrives.
        outcome: As above; callers update it as the run proceeds.
        reported: Whether the user has already been told how the run ended.
    """

    def __init__(self, outcome: str = "before the first batch; nothing was saved") -> None:
        self.signal = 0
        self.outcome = outcome
        self.reported = False
        self._process = os.getpid()

    @property
    def status(self) -> int:
        """The exit status, by the convention of shells."""
        return 128 + self.signal

    @property
    def message(self) -> str:
        """How the run ended, in one line."""
        return f"stopped by {NAMES[signal.Signals(self.signal)]} {self.outcome}".strip()

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        """Stop at once on these signals, and restore the previous handlers afterwards, which Lightning does not."""
        before = {number: signal.getsignal(number) for number in NAMES}
        self.stop_at_once()
        try:
            yield
        finally:
            _install(before)

    def stop_at_once(self) -> None:
        """From now on, a signal raises KeyboardInterrupt wherever the program is."""
        _install(dict.fromkeys(NAMES, self._raise))

    def stop_after_batch(self) -> None:
        """From now on, a signal is only recorded; a second one stops at once."""
        _install(dict.fromkeys(NAMES, self._record))

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        raise KeyboardInterrupt

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal or os.getpid() != self._process:  # a data loader's worker, which its parent will end
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this batch (a second signal stops at once)", file=sys.stderr, flush=True)


def _install(handlers: dict[signal.Signals, Any]) -> None:
    """Only the main thread may set handlers; None stands for a handler that was not set from Python."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class RestoreHandlers(Callback):
    """Reinstalls our handlers after Lightning has set its own, before a sanity check or validation.

    Lightning's handlers communicate with the other ranks, whatever those are doing at that moment.

    Args:
        stop_signal: Its handlers are installed.
    """

    def __init__(self, stop_signal: StopSignal):
        self.stop_signal = stop_signal

    def on_sanity_check_start(self, *_: Any) -> None:
        self.stop_signal.stop_at_once()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "validate":
            self.stop_signal.stop_at_once()
