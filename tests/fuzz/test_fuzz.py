"""Bad input of every kind: nothing runs, nothing hangs, and what is refused is refused in one line by its name.

`python tests/fuzz/run.py KIND:NUMBER --keep FOLDER` tries a single input again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable

import pytest

from parts.fuzzing.kinds import KINDS, SEED, make, short
from parts.fuzzing.oracle import HANDLED, Worker, report, table
from parts.fuzzing.settings_inputs import good


@pytest.fixture(scope="module")
def worker(tmp_path_factory) -> Iterable[Worker]:
    worker = Worker(tmp_path_factory.mktemp("fuzz"))
    yield worker
    worker.close()


def try_all(worker: Worker, kind: str, numbers: Iterable[int]) -> None:
    """Fails with all inputs that are not handled; those stay on disk."""
    verdicts, failures = [], []
    for number in numbers:
        verdict = worker.judge(make(kind, number, worker.seeds), f"{kind}-{number}")
        verdicts.append((kind, verdict))
        if verdict.outcome in HANDLED:
            shutil.rmtree(verdict.folder)
        else:
            failures.append(report(kind, number, verdict))
    print(table(verdicts))
    assert not failures, f"{len(failures)} of {len(verdicts)} inputs (seed {SEED})\n" + "\n".join(failures)


@pytest.mark.slow
def test_what_is_spoilt_was_good(worker):
    """Else nothing would be learnt from its refusal."""
    for number, case in enumerate(good(worker.seeds)):
        verdict = worker.judge(case, f"good-{number}")
        assert verdict.outcome == "accepted", report("good", number, verdict)


@pytest.mark.parametrize("kind", KINDS)
def test_some_bad_inputs(worker, kind):
    try_all(worker, kind, short(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_bad_inputs(worker, kind):
    try_all(worker, kind, range(KINDS[kind][1]))
