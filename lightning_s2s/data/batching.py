"""Batches of bounded duration in an order that depends on seed and epoch alone, and that can be resumed mid-epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Sampler


class Note(NamedTuple):
    """What is wrong with one row or file.

    Attributes:
        reason: a few words to count it under.
        place: `MANIFEST:LINE` or the audio; each place counts once.
        message: what to tell the user.
    """

    reason: str
    place: str
    message: str


class DurationBatchSampler(Sampler[list[int]]):
    """Batches of examples of similar duration.

    Examples are sorted by duration and cut into buckets of equal count. A bucket's batches have as many examples as fit
    into `batch_duration_sec` if all were as long as its longest, so padding is counted too. Each epoch shuffles within
    the buckets and then the batches; their number is the same in every epoch.

    Args:
        durations: of each example, seconds.
        batch_duration_sec: upper bound of (examples in a batch) x (its longest).
        max_batch_size: upper bound of examples in a batch.
        num_buckets: at most this many; fewer when they would hold less than two batches each.
        seed: with the epoch, all that the order depends on.
        shuffle: False keeps the buckets' order in every epoch.
        num_replicas: processes that share the batches; a few batches come twice when they don't divide evenly.
        rank: of this process.

    Raises:
        ValueError: an example alone is longer than `batch_duration_sec`, or a bound is not positive.
    """

    def __init__(
        self,
        durations: Sequence[float],
        batch_duration_sec: float,
        max_batch_size: int,
        num_buckets: int = 8,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
    ):
        for name, value in (
            ("batch_duration_sec", batch_duration_sec),
            ("max_batch_size", max_batch_size),
            ("num_buckets", num_buckets),
        ):
            if value <= 0:
                raise ValueError(f"{name}: got {value}; a positive number is needed")
        longest = max(durations, default=0.0)
        if longest > batch_duration_sec:
            raise ValueError(f"batch_duration_sec: got {batch_duration_sec:g}; the longest row takes {longest:.1f} s")
        self.seed, self.shuffle, self.num_replicas, self.rank = seed, shuffle, num_replicas, rank
        self.epoch = 0
        values = np.asarray(durations, dtype=np.float64)
        order = np.argsort(values, kind="stable")
        num_batches = max(values.sum() / batch_duration_sec, len(values) / max_batch_size)
        buckets = np.array_split(order, min(num_buckets, max(1, int(num_batches // 2))))
        self._buckets = [
            (bucket, max(1, min(max_batch_size, int(batch_duration_sec / max(values[bucket[-1]], 1e-9)))))
            for bucket in buckets
            if len(bucket)
        ]

    @property
    def sampler(self) -> DurationBatchSampler:
        """Itself: Lightning looks for `set_epoch` at a loader's `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls it before each epoch."""
        self.epoch = epoch

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of this process in an epoch, in order."""
        generator = np.random.default_rng([self.seed, epoch])
        batches = []
        for bucket, size in self._buckets:
            indices = generator.permutation(bucket) if self.shuffle else bucket
            batches += [indices[i : i + size].tolist() for i in range(0, len(indices), size)]
        if self.shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        missing = -len(batches) % self.num_replicas
        batches += [batches[i % len(batches)] for i in range(missing)]
        return batches[self.rank :: self.num_replicas]

    def __len__(self) -> int:
        """Batches of a whole epoch, for this process."""
        return -(-sum(-(-len(bucket) // size) for bucket, size in self._buckets) // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.epoch)


class ResumableLoader:
    """A DataLoader whose place in the epoch goes into checkpoints, through Lightning's stateful-loader protocol.

    It counts the batches that it handed out, not those that workers prepared ahead, and those of all processes, which
    are in step: on another number of them the epoch goes on at the same place.

    Args:
        dataset: map-style.
        batch_sampler: of the order.
        collate: items of the dataset -> a batch and notes on what is wrong with the items.
        on_notes: is told the notes, in the main process.
        loader_options: of torch's DataLoader.

    Attributes:
        batch_sampler: of the order.
        waited_sec: for how long batches were waited for so far, the start of workers included.
    """

    def __init__(
        self,
        dataset: Any,
        batch_sampler: DurationBatchSampler,
        collate: Callable[[list[Any]], tuple[Any, list[Note]]],
        on_notes: Callable[[list[Note]], None],
        **loader_options: Any,
    ):
        self.batch_sampler = batch_sampler
        self.dataset = dataset
        self.waited_sec = 0.0
        self._on_notes = on_notes
        self._options = {"collate_fn": collate, **loader_options}
        self._place = {"epoch": 0, "trainer_epoch": 0, "batches": 0}
        self._resume_from: dict[str, int] | None = None
        self._ahead = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator starts at its first batch: by then Lightning has set the epoch. Its count runs ahead of the passes
        # when a run limited by steps resumes from the end of an epoch, so the order has its own.
        trainer_epoch, done = self.batch_sampler.epoch, 0
        place, self._resume_from = self._resume_from, None
        if place is None:
            epoch = trainer_epoch - self._ahead
        elif place["trainer_epoch"] == trainer_epoch:
            epoch, done = place["epoch"], place["batches"] // self.batch_sampler.num_replicas
        else:
            epoch = place["epoch"] + 1
        self._ahead = trainer_epoch - epoch
        batches = self.batch_sampler.batches(epoch)[done:]
        for batch, notes in self._timed(DataLoader(self.dataset, batch_sampler=batches, **self._options)):
            if notes:
                self._on_notes(notes)
            done += 1
            by_all = done * self.batch_sampler.num_replicas
            self._place = {"epoch": epoch, "trainer_epoch": trainer_epoch, "batches": by_all}
            yield batch

    def _timed(self, loader: DataLoader) -> Iterator[Any]:
        start = time.perf_counter()
        for item in loader:
            self.waited_sec += time.perf_counter() - start
            yield item
            start = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """The epoch, by our count and by the trainer's, and how many of its batches all processes were handed out."""
        return dict(self._place)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on at that place, or with the epoch after it if the trainer is past that epoch."""
        self._resume_from = dict(state_dict)
