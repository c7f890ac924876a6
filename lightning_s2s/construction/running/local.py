"""Steps on this machine."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from lightning_s2s.construction.running.base import ItemFailure, PipelineStep, Runner
from lightning_s2s.support.ranges import Processes, checked

AHEAD = 2
"""Batches that are handed over for each worker, so that none waits for its next."""


@checked
@dataclass
class Local(Runner):
    """This machine. A step that waits for a server runs in threads, any other in `processes`.

    Args:
        processes: Number of processes; 1 runs everything in this one, more share the cores among them.
    """

    processes: Processes = 1

    def run(
        self, step: PipelineStep, batches: Sequence[Sequence[Any]]
    ) -> Iterator[tuple[int, list[Any | ItemFailure]]]:
        workers = min(self.processes, len(batches))
        if workers < 2 or step.threads > 1 or step.light:
            yield from as_completed(ThreadPoolExecutor(step.threads), step.run, batches, step.threads)
            return
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _begin, (step, max(1, (os.cpu_count() or 1) // workers))
        )
        try:
            yield from as_completed(pool, _run_batch, batches, workers)
        except BrokenProcessPool:
            raise ValueError(
                f"{step.name}: a process died, perhaps for want of memory; what was done is kept: call again, with "
                "fewer processes"
            ) from None


def as_completed(
    pool: Executor, work: Callable[[Sequence[Any]], list[Any]], batches: Sequence[Sequence[Any]], workers: int
) -> Iterator[tuple[int, list[Any]]]:
    """Each batch's number and results as they get ready; after an error, what has not started is dropped."""
    futures: dict[Future, int] = {}
    rest = iter(enumerate(batches))
    try:
        while True:
            while len(futures) < AHEAD * workers and (following := next(rest, None)):
                futures[pool.submit(work, following[1])] = following[0]
            if not futures:
                return
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                yield futures.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_step: PipelineStep | None = None


def _begin(step: PipelineStep, threads: int) -> None:
    """Called once in each process. One whose parent was killed ends too, and Ctrl-C is the parent's affair."""
    global _step
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch, where the step imports it, and numpy's libraries
    _step = step


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _run_batch(batch: Sequence[Any]) -> list[Any | ItemFailure]:
    assert _step is not None
    return _step.run(batch)
