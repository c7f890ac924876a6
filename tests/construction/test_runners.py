"""Runners: the same results in one process, in several and on Ray; nothing lost, nothing done twice."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from lightning_s2s.construction.running import ItemFailure, Local, PipelineStep, Ray, run_step
from lightning_s2s.construction.usage import Usage
from parts.waiting import SAFETY_LIMIT_SEC, wait_for


class Square(PipelineStep):
    """Squares numbers; -1 fails in a way that may pass, -2 stops everything, -3 ends the process."""

    name, batch_size = "square", 3

    def __init__(self, log: Path, threads: int = 1):
        self.log, self.threads = log, threads

    def key(self, item):
        return f"square of {item}"

    def run(self, batch):
        with self.log.open("a") as file:
            file.write(" ".join(map(str, batch)) + "\n")
        if -2 in batch:
            raise ValueError("no server")
        if -3 in batch:
            os._exit(9)
        return [
            ItemFailure("a bad day", Usage(problems=Counter(rain=1))) if item == -1 else {"square": item * item}
            for item in batch
        ]


@pytest.fixture
def step(tmp_path):
    return Square(tmp_path / "log")


def batches_done(step: Square) -> list[str]:
    return sorted(step.log.read_text().splitlines())


def test_results_come_in_the_items_order_and_are_kept(step, tmp_path):
    items = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = [{"square": item * item} for item in items]
    seen = []
    assert run_step(step, items, Local(), tmp_path, lambda *told: seen.append(told[:2])) == expected
    assert batches_done(step) == ["3 1 4", "5 9 2", "6"]  # the second 1 is the first
    assert seen == [("square", 7)]
    before = batches_done(step)
    assert run_step(step, items, Local(), tmp_path) == expected and batches_done(step) == before
    assert run_step(step, [7, *items], Local(), tmp_path)[0] == {"square": 49}


def test_a_failure_stops_nothing_and_is_tried_again_with_its_batch(step, tmp_path):
    items = [1, 2, 3, 4, -1, 6, 7]
    results = run_step(step, items, Local(), tmp_path)
    assert results[4] == ItemFailure("a bad day", Usage(problems=Counter(rain=1))) and results[6] == {"square": 49}
    step.log.unlink()
    assert run_step(step, items, Local(), tmp_path) == results
    assert batches_done(step) == ["4 -1 6"]


def test_an_error_ends_the_run_and_keeps_what_was_done(step, tmp_path):
    with pytest.raises(ValueError, match="no server"):
        run_step(step, [*range(6), -2, *range(100, 4000)], Local(), tmp_path)
    assert len(batches_done(step)) < 1000
    step.log.unlink()
    assert run_step(step, list(range(6)), Local(), tmp_path)[5] == {"square": 25} and not step.log.exists()


def test_threads_work_side_by_side(tmp_path):
    """Each batch waits for another: with one thread, none would end."""
    step, meeting = Square(tmp_path / "log", threads=2), threading.Barrier(2, timeout=SAFETY_LIMIT_SEC)
    step.batch_size = 2
    step.run = lambda batch: [meeting.wait() * 0 + item for item in batch]
    assert run_step(step, [1, 2, 3, 4], Local(), tmp_path) == [1, 2, 3, 4]


def test_a_result_that_is_gone_is_made_again(step, tmp_path):
    run_step(step, [1, 2], Local(), tmp_path)
    step.is_there = lambda result: result["square"] != 4
    run_step(step, [1, 2], Local(), tmp_path)
    assert batches_done(step) == ["1 2", "1 2"]


@pytest.mark.parametrize(
    "runner",
    [pytest.param(Local(processes=2), id="processes"), pytest.param(Ray(workers=2), id="ray", marks=pytest.mark.slow)],
)
def test_other_processes_give_the_same(step, tmp_path, runner):
    if isinstance(runner, Ray):
        pytest.importorskip("ray", reason="the package ray (extra: ray) is not installed")
    items = [*range(20), -1, *range(30, 50)]
    here = run_step(Square(tmp_path / "other"), items, Local(), tmp_path / "here")
    assert run_step(step, items, runner, tmp_path / "there") == here
    assert batches_done(step) == batches_done(Square(tmp_path / "other"))
    with pytest.raises(ValueError, match="^no server$"):
        run_step(step, [60, -2, 61], runner, tmp_path / "there")


@pytest.mark.slow
def test_what_a_cluster_lacks_is_told(step, tmp_path):
    """Ray would wait for it."""
    pytest.importorskip("ray", reason="the package ray (extra: ray) is not installed")
    with pytest.raises(ValueError, match="runner: gpus 99 are wanted for each worker; the cluster has [0-9]+: Ray"):
        run_step(step, [1], Ray(gpus=99), tmp_path)


def test_a_process_that_dies_is_told_and_the_rest_kept(step, tmp_path):
    with pytest.raises(ValueError, match="square: a process died, perhaps for want of memory; what was done is kept"):
        run_step(step, [*range(30), -3, 31, 32, *range(40, 60)], Local(processes=2), tmp_path)
    done = len(batches_done(step))
    assert run_step(step, list(range(6)), Local(), tmp_path)[5] == {"square": 25} and len(batches_done(step)) == done


def test_workers_end_with_a_killed_parent(tmp_path):
    """SIGKILL leaves the parent no time to stop them."""
    child = subprocess.Popen([sys.executable, "-m", "parts.endless_step", str(tmp_path)])
    wait_for(lambda: child.poll() is not None or len(list(tmp_path.glob("*.worker"))) == 2, "two workers to begin")
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    for path in tmp_path.glob("*.worker"):
        wait_for(lambda path=path: not is_held(path), "a worker to end")


def is_held(path: Path) -> bool:
    """Whether a process lives that has locked the file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Local(processes=0), "Local: processes must be between 1 and 10,000; got 0"),
        (lambda: Ray(workers=0), "Ray: workers must be between 1 and 10,000; got 0"),
    ],
)
def test_a_broken_runner(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_line_that_was_changed_is_refused(step, tmp_path):
    run_step(step, [1, 2], Local(), tmp_path)
    path = tmp_path / "square.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert '"square": 4' in lines[2]
    path.write_text("".join([*lines[:2], lines[2].replace('"square": 4', '"square": [4]')]))
    with pytest.raises(
        ValueError, match=rf"^{path}: is no journal of .* \(line 3: was changed since it was wr"
    ):
        run_step(step, [1, 2], Local(), tmp_path)
    path.write_text("".join([*lines[:2], lines[2][:-5]]))  # cut off by a kill: made again
    assert [result["square"] for result in run_step(step, [1, 2], Local(), tmp_path)] == [1, 4]
