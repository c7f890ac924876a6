"""Runs inputs in a worker process and judges what became of each."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.fuzzing.judged_calls import WRONG
from parts.fuzzing.mutations import CANARY, STRANGER, Case, Seeds
from parts.fuzzing.worker import CPU_SEC, MEMORY_BYTES, NETWORK, WALL_SEC
from parts.paths import TESTS

HANDLED = ("accepted", "refused")
FAILURES = ("code", "network", "crash", "time", "memory", "traceback", "lines", "unnamed", "silent", "strict")
"""
- code: something ran, or was about to; network: something was fetched that nobody asked for.
- crash: the process died; time, memory: over the limits; traceback: Python's, on standard error.
- lines: a refusal that isn't one line `error: ...` at the end; unnamed: that names neither file nor key.
- silent: accepted where it must not be, or without a word; strict: refused where it is good.
"""
STUBS = "import sys, json; print(json.dumps(sys.path))"
"""What jsonargparse starts to look for type stubs."""
OURS = f"'{sys.executable}', '-m', 'lightning_s2s.cli', '"
"""How a study starts its steps."""
CODE_MODULE = f"open({CANARY!r}, 'w').close()\nclass Anything: ...\ndef anything(**_): ...\n"


@dataclass(frozen=True)
class Verdict:
    """What became of one input.

    Attributes:
        outcome: one of `HANDLED` or `FAILURES`.
        detail: why, in a line.
        folder: holds the input in `work`, and what the command printed.
        cpu_sec: processor time.
        peak_bytes: memory that was resident.
    """

    case: Case
    outcome: str
    detail: str
    folder: Path
    cpu_sec: float
    peak_bytes: int


class Worker:
    """A process of `worker.py`, started again where it dies.

    Args:
        folder: gets the seeds, and a folder for each input.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._cache = tempfile.TemporaryDirectory(prefix="lightning-s2s-fuzz-")
        self.run(folder / "building", ["build_seeds", str(folder / "seeds")], limited=False)
        if not (folder / "seeds" / "opens2s").is_dir():
            raise RuntimeError(f"no seeds: see {folder / 'building' / 'stderr'}")
        self.seeds = Seeds(folder / "seeds")

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE",)}
        cache = self._cache.name
        environment |= {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": cache, "HF_HOME": cache, "COLUMNS": "120"}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "parts.fuzzing.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the fuzzer's worker did not start")
        return process

    def run(self, folder: Path, call: Iterable[str], limited: bool = True) -> dict[str, Any]:
        """Run a call in `folder/work`; gives how it ended."""
        (folder / "work").mkdir(parents=True, exist_ok=True)
        if self._process is None:
            self._process = self._start()
        request = {"folder": str(folder), "call": list(call), "limited": limited, "environment": {}}
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self.close()
            return {"status": None, "signal": 0, "in_time": True, "cpu_sec": 0.0, "wall_sec": 0.0, "peak_bytes": 0}
        return json.loads(answer)

    def judge(self, case: Case, name: str) -> Verdict:
        """Write the input's files into a new folder of that name, run it, and judge."""
        folder = self.folder / name
        write(case, folder / "work", self.seeds)
        ended = self.run(folder, case.call)
        outcome, detail = judge(case, folder, ended)
        return Verdict(case, outcome, detail, folder, ended["cpu_sec"], ended["peak_bytes"])

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None


def write(case: Case, work: Path, seeds: Seeds) -> None:
    """Lay the input's files out."""
    shutil.rmtree(work.parent, ignore_errors=True)
    work.mkdir(parents=True)
    (work / STRANGER).write_text(CODE_MODULE, encoding="utf-8")
    for name, seed in case.copies.items():
        source, target = Path(seeds.path(seed)), work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    for name, content in case.files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content)


def judge(case: Case, folder: Path, ended: dict[str, Any]) -> tuple[str, str]:
    """Outcome and detail of an input that was run."""
    errors = _text(folder / "stderr")
    events = [json.loads(line) for line in _text(folder / "events").splitlines()]
    started = [event for event in events if event[0] not in NETWORK and not (STUBS in event[1] or OURS in event[1])]
    reached = [event for event in events if event[0] in NETWORK]
    if (folder / "work" / CANARY).exists():
        return "code", f"it made the file {CANARY}"
    if started:
        return "code", f"{started[0][0]} {started[0][1]}"
    if not ended["in_time"]:
        return "time", f"not over after {WALL_SEC} s"
    if ended["cpu_sec"] > CPU_SEC or ended["signal"] == signal.SIGXCPU:
        return "time", f"{ended['cpu_sec']:.0f} s of processor time"
    if ended["peak_bytes"] > MEMORY_BYTES:
        return "memory", f"{ended['peak_bytes'] / 2**30:.1f} GiB"
    if ended["signal"] is not None:
        return "crash", f"signal {ended['signal']}"
    if "Traceback (most recent call last)" in errors and "--debug" not in case.call:
        return "traceback", _last_line(errors)
    outcome, detail = _judge_words(case, ended["status"], errors, _text(folder / "stdout"))
    if reached and not case.online and outcome in HANDLED:
        return "network", f"{reached[0][0]} {reached[0][1]}"
    return outcome, detail


def _judge_words(case: Case, status: int, errors: str, printed: str) -> tuple[str, str]:
    """Whether what was said is what must be said."""
    last, names = _last_line(errors), [*case.names, *case.files, *case.call[1:]]
    named = [name for name in case.names if name and name in errors + printed]
    if status == WRONG and case.call[0] != "cli":
        return "silent", last
    if status == 0:
        if case.expect == "refused":
            return "silent", "accepted; it must be refused"
        if case.expect == "said" and not named:
            return "silent", f"accepted without a word of {' or '.join(case.names)}"
        return "accepted", ""
    if case.expect == "accepted":
        return "strict", last
    starts = [line for line in errors.splitlines() if line.startswith("error: ")]
    if len(starts) != 1 or starts[0] != last:
        return "lines", " | ".join(errors.strip().splitlines()[-3:]) or f"status {status} without a word"
    if not any(_is_named(name, last) for name in names):
        return "unnamed", f"{last} (expected one of {', '.join(names)[:300]})"
    return "refused", last


def _is_named(name: str, line: str) -> bool:
    """Whether a line says a name: as it is, with its white space as one, as Python writes it, or between its quotes."""
    ways = {name, " ".join(name.split()), repr(name)[1:-1]} if name.strip() else set()
    return any(way in line for way in (*ways, repr(name)))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def report(kind: str, number: int, verdict: Verdict) -> str:
    """A failure with what it takes to try it again."""
    call = shlex.join(verdict.case.call).encode(errors="backslashreplace").decode()
    return (
        f"{verdict.outcome}: {kind}:{number} {verdict.case.what}\n    {verdict.detail[:600]}\n"
        f"    in {verdict.folder / 'work'}: {call[:400]}"
    )


def table(verdicts: Iterable[tuple[str, Verdict]]) -> str:
    """Kinds and outcomes as a Markdown table; failures that didn't occur have no column."""
    counts: dict[str, Counter[str]] = {}
    for kind, verdict in verdicts:
        counts.setdefault(kind, Counter())[verdict.outcome] += 1
    seen = [*HANDLED, *(failure for failure in FAILURES if any(count[failure] for count in counts.values()))]
    lines = [f"| kind | inputs | {' | '.join(seen)} |", "| --- |" + " ---: |" * (len(seen) + 1)]
    rows = [*counts.items(), ("all", sum(counts.values(), Counter()))]
    for kind, count in rows:
        lines.append(f"| {kind} | {count.total()} | {' | '.join(str(count[outcome]) for outcome in seen)} |")
    return "\n".join(lines)
