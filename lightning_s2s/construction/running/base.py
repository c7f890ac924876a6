"""Steps are functions on batches; a runner says where they run; what they found is kept row by row."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning_s2s.construction.usage import Usage
from lightning_s2s.support.journal import Journal

Item = TypeVar("Item")


class Portable:
    """Goes to other processes without its attributes that begin with `_`, which are loaded again where needed."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


@dataclass(frozen=True)
class ItemFailure:
    """A step failed for one item, for a transient reason: the next run tries it again.

    Attributes:
        reason: Reason of the last attempt.
        usage: What all attempts took.
    """

    reason: str
    usage: Usage = field(default_factory=Usage)


class PipelineStep(ABC, Generic[Item]):
    """What is done to many items, one batch at a time; heavy things load where it is first called.

    A step goes to other processes by pickle, before it has been called.
    """

    name: str
    """Name of its bar and its journal."""
    unit: str = "row"
    batch_size: int = 1
    """Items in a batch. Batches are cut from all items in their order, so that a run that was killed has the same."""
    threads: int = 1
    """Batches at the same time in one process, for a step that waits for a server."""
    light: bool = False
    """Whether it takes next to no time: it then runs in this process, wherever the others do."""

    @abstractmethod
    def key(self, item: Item) -> str:
        """What tells the item's result from others: everything that decides it, see `fingerprint`."""

    @abstractmethod
    def run(self, batch: Sequence[Item]) -> list[Any | ItemFailure]:
        """The result of each item, as JSON has it, or why there is none.

        Raises:
            ValueError: no item of this step can succeed.
        """

    def is_there(self, result: Any) -> bool:
        """Whether what a kept result names still exists."""
        return True


class Runner(ABC):
    """Runs batches somewhere. Chosen by its name: `runner: {class_path: Local, init_args: {processes: 4}}`."""

    @abstractmethod
    def run(
        self, step: PipelineStep, batches: Sequence[Sequence[Any]]
    ) -> Iterator[tuple[int, list[Any | ItemFailure]]]:
        """Each batch's number and results, as they get ready, in any order.

        Raises:
            ValueError: what `step.run` raised, or a process died.
        """


def fingerprint(*parts: Any) -> str:
    """A short name for plain values; equal ones have the same."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def run_step(
    step: PipelineStep[Item],
    items: Sequence[Item],
    runner: Runner,
    folder: Path,
    timed: Callable[[str, int, float], Any] = lambda *_: None,
) -> list[Any | ItemFailure]:
    """The result of each item; those of an earlier run are taken from `folder`.

    A batch's results are on disk before the next one's are waited for. Of a batch that lacks any, all are found again.

    Args:
        step: What is done.
        items: What it is done to; items with the same key are done once.
        runner: Where it runs.
        folder: Folder of the journals.
        timed: Called with the step's name, the number of items done now, and the seconds that this took.

    Raises:
        ValueError: no item can succeed.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    keys = [step.key(item) for item in items]
    unique = dict(zip(keys, items, strict=True))
    found: dict[str, Any] = {}
    with Journal(folder / f"{step.name}.jsonl", {"step": step.name}, "construct") as journal:
        for key in unique:
            if key in journal and step.is_there(result := journal[key]):
                found[key] = result
        order = list(unique)
        batches = [order[start : start + step.batch_size] for start in range(0, len(order), step.batch_size)]
        waiting = [batch for batch in batches if not all(key in found for key in batch)]
        start = time.monotonic()
        done = len(order) - sum(map(len, waiting))
        with tqdm(total=len(order), initial=done, desc=step.name, unit=step.unit) as bar:
            results = runner.run(step, [[unique[key] for key in batch] for batch in waiting])
            for number, outcomes in results:
                of_batch = dict(zip(waiting[number], outcomes, strict=True))
                journal.add((key, value) for key, value in of_batch.items() if not isinstance(value, ItemFailure))
                found |= of_batch
                bar.update(len(of_batch))
        if waiting:
            timed(step.name, sum(map(len, waiting)), time.monotonic() - start)
    return [found[key] for key in keys]
