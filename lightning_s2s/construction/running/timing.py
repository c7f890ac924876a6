"""How long steps took, over all runs: a run that resumes another did little of the work itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lightning_s2s.support.reading import parse_json, reading


@dataclass(frozen=True)
class StepTimes:
    """Items and seconds of each step, appended to a JSONL file.

    Args:
        path: The file.
    """

    path: Path

    def add(self, step: str, items: int, seconds: float) -> None:
        """Append what a run did."""
        with self.path.open("a") as file:
            file.write(json.dumps([step, items, seconds]) + "\n")

    def total(self) -> dict[str, tuple[int, float]]:
        """Step -> items and seconds of all runs; a line that a kill cut off is left out.

        Raises:
            ValueError: A line is broken; the message names it.
        """
        total: dict[str, tuple[int, float]] = {}
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                where = f"{self.path}: line {number}"
                with reading(where, "step's time; remove or rename the file"):
                    step, items, seconds = parse_json(line, where)
                    before = total.get(step, (0, 0.0))
                    total[step] = (before[0] + items, before[1] + seconds)
        return total
