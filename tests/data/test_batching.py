"""The batch sampler: bounds, once each, the same order always."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_s2s.data.batching import DurationBatchSampler, ResumableLoader

DURATIONS = np.random.default_rng(3).uniform(0.5, 12.0, 203).tolist()


def flat(batches):
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize(("bound", "size", "buckets"), [(30.0, 64, 8), (60.0, 5, 4), (12.0, 64, 1), (2000.0, 300, 8)])
def test_bounds_are_kept_and_every_row_comes_once(bound, size, buckets):
    sampler = DurationBatchSampler(DURATIONS, bound, size, buckets, seed=1)
    for epoch in range(3):
        batches = sampler.batches(epoch)
        assert sorted(flat(batches)) == list(range(203))
        assert len(batches) == len(sampler)
        for batch in batches:
            assert 0 < len(batch) <= size
            assert len(batch) * max(DURATIONS[i] for i in batch) <= bound


def test_by_hand_without_shuffling():
    durations = [1.0, 4.0, 1.0, 3.0, 1.0, 4.0, 1.0, 2.0]
    # Sorted: 0 2 4 6 (1 s each) | 7 (2 s), 3 (3 s), 1, 5 (4 s each); 17 s / 8 s = 2.1 batches make one bucket.
    sampler = DurationBatchSampler(durations, 8.0, 8, num_buckets=2, shuffle=False)
    assert sampler.batches(0) == [[0, 2], [4, 6], [7, 3], [1, 5]]
    # With 4 s there are 4.25 batches to expect, so two buckets: of 1 s (4 a batch) and of 2 to 4 s (1 a batch).
    sampler = DurationBatchSampler(durations, 4.0, 8, num_buckets=2, shuffle=False)
    assert sampler.batches(0) == [[0, 2, 4, 6], [7], [3], [1], [5]]
    assert sampler.batches(1) == sampler.batches(0)


def test_buckets_hold_similar_durations():
    sampler = DurationBatchSampler(DURATIONS, 60.0, 64, num_buckets=8, seed=0)
    batches = sampler.batches(0)
    padded = sum(len(batch) * max(DURATIONS[i] for i in batch) for batch in batches)
    assert sum(DURATIONS) / padded > 0.85


def test_the_order_depends_on_seed_and_epoch_alone():
    first, second = (DurationBatchSampler(DURATIONS, 40.0, 64, seed=5) for _ in range(2))
    assert first.batches(2) == second.batches(2)
    assert first.batches(2) != first.batches(3)
    assert first.batches(2) != DurationBatchSampler(DURATIONS, 40.0, 64, seed=6).batches(2)
    second.set_epoch(2)
    assert list(second) == first.batches(2)


def test_a_loader_goes_on_where_its_state_says():
    def loader() -> ResumableLoader:
        sampler = DurationBatchSampler(DURATIONS, 40.0, 64, seed=5)
        return ResumableLoader(range(203), sampler, lambda items: (items, []), lambda notes: None)

    first, second = loader(), loader()
    first.batch_sampler.set_epoch(2)
    whole = first.batch_sampler.batches(2)
    passing = iter(first)
    assert [next(passing) for _ in range(7)] == whole[:7]
    assert first.state_dict() == {"epoch": 2, "trainer_epoch": 2, "batches": 7}
    second.load_state_dict(first.state_dict())
    second.batch_sampler.set_epoch(2)
    assert len(second) == len(whole)
    assert list(second) == whole[7:]
    second.batch_sampler.set_epoch(3)
    assert list(second) == whole_epoch(second, 3)
    # The trainer is past that epoch: the next one begins, and later ones follow it whatever the trainer's count is.
    third = loader()
    third.load_state_dict(first.state_dict())
    for trainer_epoch, epoch in ((4, 3), (5, 4)):
        third.batch_sampler.set_epoch(trainer_epoch)
        assert list(third) == whole_epoch(third, epoch)
    assert third.state_dict() == {"epoch": 4, "trainer_epoch": 5, "batches": len(whole)}


def whole_epoch(loader: ResumableLoader, epoch: int) -> list[list[int]]:
    return loader.batch_sampler.batches(epoch)


def test_replicas_share_the_batches():
    whole = DurationBatchSampler(DURATIONS, 40.0, 64, seed=5).batches(1)
    parts = [
        DurationBatchSampler(DURATIONS, 40.0, 64, seed=5, num_replicas=3, rank=rank).batches(1) for rank in range(3)
    ]
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) == len(DurationBatchSampler(DURATIONS, 40.0, 64, seed=5, num_replicas=3))
    together = [batch for group in zip(*parts, strict=True) for batch in group]
    assert together[: len(whole)] == whole
    assert len(together) - len(whole) < 3
    assert together[len(whole) :] == whole[: len(together) - len(whole)]


def test_bad_bounds():
    with pytest.raises(ValueError, match=r"batch_duration_sec: got 5; the longest row takes 12.0 s"):
        DurationBatchSampler(DURATIONS, 5, 64)
    with pytest.raises(ValueError, match="max_batch_size: got 0; a positive number"):
        DurationBatchSampler(DURATIONS, 50, 0)
