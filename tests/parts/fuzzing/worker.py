"""A process that loads the package once and then runs each input in a fork of itself: watched, and under limits.

It reads a request a line from standard input, and answers each with a line of JSON; see `oracle.Worker`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts.paths import ROOT

CPU_SEC = 20
WALL_SEC = 300
"""For what waits without computing; far above what an input takes where other programs have the cores."""
MEMORY_BYTES = 4 * 2**30
SPARE_BYTES = 2 * 2**30
"""Address space above the limit, so that growing memory passes the limit and shows before it is refused."""
FILE_BYTES = 2**30
IMPORTED = (
    "datasets", "lightning.pytorch", "matplotlib.pyplot", "omegaconf", "peft", "safetensors.torch", "soundfile", "soxr",
    "tensorboard", "torchmetrics", "transformers", "lightning_s2s.cli", "lightning_s2s.stages",
    *(f"lightning_s2s.commands.{name}" for name in (
        "ablate", "construct", "consolidate", "convert", "emotion_classifier", "evaluate", "fit", "manifest", "plan",
        "respond", "train", "units",
    )),
    "lightning_s2s.construction.pipeline", "lightning_s2s.evaluation.answers", "parts.construction",
    "parts.fuzzing.judged_calls",
)  # fmt: skip
STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
RENDERER = str(ROOT / "lightning_s2s" / "data" / "template_renderer.py")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
DANGEROUS = ("os", "posix", "nt", "subprocess", "builtins", "runpy", "shutil", "importlib", "socket", "stranger")
"""Modules of which nothing is unpickled in good faith."""


def watch(file: int) -> None:
    """Write what starts programs, reaches for the network or unpickles something dangerous as JSON lines to `file`.

    The network is refused: an input may be tried on any machine.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and RENDERER in arguments[1]:
            return  # this package's own process for chat templates, in which they can do nothing else
        if event in STARTED or event in NETWORK or (event == "pickle.find_class" and arguments[0] in DANGEROUS):
            local = event in NETWORK and isinstance(arguments[-1], str | bytes)  # a socket of this machine's own
            if not local or event != "socket.connect":
                os.write(file, (json.dumps([event, repr(arguments)[:300]]) + "\n").encode())
            if event in NETWORK and not local:
                raise PermissionError(13, f"{event} is refused by the fuzzer")

    sys.addaudithook(hook)


def limit() -> None:
    """Processor time, memory and size of files, for this process and what it starts."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    space = used + MEMORY_BYTES + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SEC, CPU_SEC + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_here(request: dict[str, Any]) -> int:
    """Run the call as the command does: what it raises ends as Python's traceback."""
    from parts.fuzzing import judged_calls

    kind, *arguments = request["call"]
    call: Callable[..., int]
    if kind == "cli":
        from lightning_s2s.cli import main

        call, arguments = main, [arguments]
    else:
        call = getattr(judged_calls, kind)
    try:
        return int(call(*arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: B902 (whatever it is: a user would see it)
        traceback.print_exc()
        return 1


def child(request: dict[str, Any]) -> None:
    """Never returns: the fork ends here."""
    status = 70
    try:
        os.setsid()
        folder = Path(request["folder"])
        os.chdir(folder / "work")
        (folder / "answers").write_text("y\n" * 1000)  # somebody who agrees to whatever is asked
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        for number, name, flags in ((0, "answers", os.O_RDONLY), (1, "stdout", append), (2, "stderr", append)):
            os.dup2(os.open(folder / name, flags, 0o644), number)
        os.environ.update(request["environment"])
        if request["limited"]:
            watch(os.open(folder / "events", append, 0o644))
            limit()
        status = run_here(request)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status & 255)


def wait(process: int, seconds: float) -> bool:
    """Whether the process ended in time."""
    handle = os.pidfd_open(process)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and say how it ended; what it left running is ended too."""
    start = time.monotonic()
    process = os.fork()
    if not process:
        child(request)
    in_time = wait(process, WALL_SEC)
    if not in_time:
        os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return {
        "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "in_time": in_time,
        "cpu_sec": usage.ru_utime + usage.ru_stime,
        "wall_sec": time.monotonic() - start,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def main() -> None:
    """Load everything, say so, and serve."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints at import is no answer
    import torch

    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
