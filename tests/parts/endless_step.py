"""A run of `construction` whose two workers never end; started by the tests: `-m parts.endless_step FOLDER`."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from pathlib import Path

from lightning_s2s.construction.running import Local, PipelineStep, run_step


class Endless(PipelineStep):
    """Locks a file of its process and never ends."""

    name = "endless"

    def __init__(self, folder: Path):
        self.folder = folder

    def key(self, item):
        return str(item)

    def run(self, batch):
        with (self.folder / f"{os.getpid()}.locked").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            Path(file.name).rename(self.folder / f"{os.getpid()}.worker")
            threading.Event().wait()
        return [0 for _ in batch]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_step(Endless(folder), list(range(4)), Local(processes=2), folder)
