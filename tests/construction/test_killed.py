"""`construct` killed at random places by SIGKILL, and on Ray: every time the same corpus, byte by byte."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_s2s.commands.construct import make_corpus
from lightning_s2s.construction.running import Local, Ray
from parts.killed_construction import configuration

for package in ("json_repair", "datasketch"):
    pytest.importorskip(package, reason=f"the package {package} (extra: construction) is not installed")

KILLS = 5


def contents(folder: Path) -> dict[str, bytes]:
    """All files of the corpus, and the report of what was left out."""
    files = [*(folder / "corpus").rglob("*"), folder / "work" / "report.html"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[str, Path, int], tuple[int, int]]]:
    """Run `construct` in a process of its own: kind, folder, place to die at (0: none) -> exit status, places passed.

    All come from one process that has imported everything, since that takes far longer than a run.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "parts.killed_construction"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(kind: str, folder: Path, dies_at: int = 0) -> tuple[int, int]:
        print(json.dumps([kind, str(folder), dies_at]), file=process.stdin, flush=True)
        status, places = json.loads(process.stdout.readline())
        return status, places

    yield run
    process.stdin.close()
    assert process.wait() == 0


@pytest.mark.parametrize(
    "kind", ["grammar", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("threads", "processes"))]
)
def test_a_run_that_is_killed_five_times_equals_one_that_is_not(kind, tmp_path, run):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    status, places = run(kind, tmp_path / "whole")
    assert status == 0 and places > 12 * KILLS
    rng = random.Random(kind)
    for _ in range(KILLS):  # together they get through less than five sixths of the work, so none is left undone
        assert run(kind, tmp_path / "killed", rng.randint(1, places // (KILLS + 1)))[0] == -signal.SIGKILL
    assert run(kind, tmp_path / "killed")[0] == 0
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys() and len(whole) > 12
    assert [name for name in whole if whole[name] != killed[name]] == []


@pytest.mark.slow
def test_ray_and_processes_make_the_same_corpus(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the package ray (extra: ray) is not installed")
    found = []
    for name, runner in (("here", Local()), ("two", Local(2)), ("ray", Ray(workers=2))):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        outcome = make_corpus(configuration("prompted", runner))
        assert 10 < len(outcome.kept) < len(outcome.candidates)
        found.append(contents(folder))
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert [name for name in found[0] if not found[0][name] == found[1][name] == found[2][name]] == []
