"""Try inputs outside pytest: `python tests/fuzz/run.py [KIND[:NUMBER[-NUMBER]] ...] [--seed N] [--keep FOLDER]`.

Prints what failed, and the table of kinds and outcomes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parts.fuzzing.kinds import KINDS, SEED, make  # noqa: E402
from parts.fuzzing.oracle import HANDLED, Worker, report, table  # noqa: E402


def numbers(what: list[str]) -> Iterator[tuple[str, int]]:
    """Kind and number of every input that is asked for."""
    for word in what or KINDS:
        kind, _, span = word.partition(":")
        first, _, last = span.partition("-")
        start = int(first or 0)
        end = int(last or first) + 1 if span else KINDS[kind][1]
        yield from ((kind, number) for number in range(start, end))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--keep", type=Path, help="new folder for all inputs and what they printed")
    parser.add_argument("--all", action="store_true", help="print what was handled, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        worker = Worker((options.keep or Path(temporary)).resolve())
        verdicts = []
        for kind, number in numbers(options.what):
            verdict = worker.judge(make(kind, number, worker.seeds, options.seed), f"{kind}-{number}")
            verdicts.append((kind, verdict))
            if options.all or verdict.outcome not in HANDLED:
                print(report(kind, number, verdict).encode(errors="backslashreplace").decode(), flush=True)
        worker.close()
    print(table(verdicts))
    print(f"{sum(verdict.cpu_sec for _, verdict in verdicts):.0f} s of processor time")


if __name__ == "__main__":
    main()
