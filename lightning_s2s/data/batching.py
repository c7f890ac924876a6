"""Batches of bounded duration, in an order that depends only on seed and epoch and can be resumed mid-epoch.

torchdata's StatefulDataLoader keeps the state of each rank and worker, so that it can't resume on another number of
them; `ResumableLoader` can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Sampler


class Note(NamedTuple):
    """A problem of one row or file.

    Attributes:
        reason: Short name of the problem for counting.
        place: `MANIFEST:LINE` or the audio; each place counts once.
        message: Message for the user.
    """

    reason: str
    place: str
    message: str


class DurationBatchSampler(Sampler[list[int]]):
    """Batches of examples of similar duration.

    Examples are sorted by duration and split into buckets of equal count. A bucket's batches have as many examples as
    fit into `batch_duration_sec` if all were as long as its longest, so padding is included. Each epoch shuffles within
    the buckets and then the batches; their number is the same in every epoch.

    Args:
        durations: Duration of each example in seconds.
        batch_duration_sec: Upper bound of (number of examples) x (longest duration) in a batch.
        max_batch_size: Upper bound of the number of examples in a batch.
        num_buckets: Maximum number of buckets; there are fewer if they would hold less than two batches each.
        seed: Seed of the order, together with the epoch.
        shuffle: Whether to shuffle; False uses the order of the buckets in every epoch.
        num_replicas: Number of data-parallel replicas; if batches don't divide evenly, a few are repeated.
        rank: This replica's rank.

    Raises:
        ValueError: A single example is longer than `batch_duration_sec`, or a bound is not positive.
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
        """Itself: Lightning calls `set_epoch` of a loader's `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Select the order; Lightning calls this before each epoch."""
        self.epoch = epoch

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of this rank in an epoch, in order."""
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
        """Batches of this rank in a whole epoch."""
        return -(-sum(-(-len(bucket) // size) for bucket, size in self._buckets) // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.epoch)


class ResumableLoader:
    """A DataLoader whose position in the epoch is saved in checkpoints, by Lightning's stateful-loader protocol.

    It counts the batches that it yielded, not those that workers prefetched, over all ranks, which are in step: with
    another number of ranks, the epoch resumes at the same position.

    Args:
        dataset: Map-style dataset.
        batch_sampler: Sampler that determines the order.
        collate: Maps items of the dataset to a batch and notes on problems of the items.
        on_notes: Called with the notes, in the main process.
        in_epoch: Maps the number of an epoch to the dataset as it is in that epoch, for the workers of that epoch; None
            uses `dataset` in every epoch.
        loader_options: Options of torch's DataLoader.

    Attributes:
        batch_sampler: Sampler that determines the order.
        waited_sec: Total time spent waiting for batches, including the start of workers.
    """

    def __init__(
        self,
        dataset: Any,
        batch_sampler: DurationBatchSampler,
        collate: Callable[[list[Any]], tuple[Any, list[Note]]],
        on_notes: Callable[[list[Note]], None],
        in_epoch: Callable[[int], Any] | None = None,
        **loader_options: Any,
    ):
        self.batch_sampler = batch_sampler
        self.dataset = dataset
        self.waited_sec = 0.0
        self._on_notes, self._in_epoch = on_notes, in_epoch
        self._options = {"collate_fn": collate, **loader_options}
        self._place = {"epoch": 0, "trainer_epoch": 0, "batches": 0}
        self._resume_from: dict[str, int] | None = None
        self._ahead = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator starts at its first batch, when Lightning has set the epoch. Lightning's epoch runs ahead of ours
        # when a run limited by steps resumes from the end of an epoch, so the order has its own count.
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
        dataset = self.dataset if self._in_epoch is None else self._in_epoch(epoch)
        for batch, notes in self._timed(DataLoader(dataset, batch_sampler=batches, **self._options)):
            if notes:
                self._on_notes(notes)
            done += 1
            on_all_ranks = done * self.batch_sampler.num_replicas
            self._place = {"epoch": epoch, "trainer_epoch": trainer_epoch, "batches": on_all_ranks}
            yield batch

    def _timed(self, loader: DataLoader) -> Iterator[Any]:
        start = time.perf_counter()
        for item in loader:
            self.waited_sec += time.perf_counter() - start
            yield item
            start = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """The epoch, by our count and the trainer's, and how many of its batches were yielded on all ranks."""
        return dict(self._place)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume at that position, or in the next epoch if the trainer has finished that epoch."""
        self._resume_from = dict(state_dict)
