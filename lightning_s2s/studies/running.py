"""Runs commands one after the other, each in a process of its own; a stopped run resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s2s.studies.study import StepCommand
from lightning_s2s.support.files import write_text
from lightning_s2s.support.reading import read_json

COMMAND = "command.json"
"""File in a step's folder with the command that was run, and the digests of its YAML files."""
LOG = "output.log"
RESULTS = {
    "fit": ("model/config.json", "pocket/model.safetensors"),  # the latter of VocoderTraining
    "evaluate": ("figures.json",),
}
"""Files that a command writes when it is finished; one of them is enough."""


@dataclass(frozen=True)
class FailedStep:
    """A command that failed, or that was left out since it needs one that failed."""

    command: StepCommand
    reason: str

    def __str__(self) -> str:
        return f"{self.command.label}: {self.reason}"


def is_finished(command: StepCommand) -> bool:
    """Whether the command's result exists, whoever ran it."""
    return any((command.folder / result).is_file() for result in RESULTS[command.arguments[0]])


def check_folders(commands: Sequence[StepCommand], by_hand: bool = True) -> None:
    """Check that the content of the folders was made by these commands with these YAML files.

    Args:
        commands: The commands that are run.
        by_hand: Also accept results of commands that somebody ran alone, which leave no record.

    Raises:
        ValueError: It was made in another way.
    """
    for command in commands:
        path = command.folder / COMMAND
        if path.is_file() and (then := read_json(path)) != (now := _record(command)):
            raise ValueError(
                f"{command.folder}: was made with other options or YAML files ({_difference(then, now)}); remove the "
                "folder, or give another output_dir"
            )
        if not by_hand and not path.is_file() and is_finished(command):
            raise ValueError(
                f"{command.folder}: holds a result that was made in another way (no {COMMAND}); remove the folder, or "
                "give another output_dir"
            )


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first difference between two records, in words."""
    for file, digest in now["configs"].items():
        if file not in then.get("configs", {}):
            return f"now with {file}"
        if then["configs"][file] != digest:
            return f"{file} has changed"
    before, after = _options(then.get("arguments", [])), _options(now["arguments"])
    for option in [*after, *before]:
        if before.get(option) != after.get(option):
            return f"{option}: was {before.get(option, 'not given')}, is now {after.get(option, 'not given')}"
    return f"{COMMAND} names fewer files" if then.get("configs") != now["configs"] else "their order"


def _options(arguments: Iterable[str]) -> dict[str, str]:
    """Option -> its values in their order."""
    options: dict[str, list[str]] = {}
    values: list[str] = []
    for word in arguments:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            values = options.setdefault(option, [])
            values += [value] if equals else []
        else:
            values.append(word)
    return {option: " ".join(values) for option, values in options.items()}


def run_commands(commands: Sequence[StepCommand], lock: int) -> list[FailedStep]:
    """Run what is not finished; the output of each goes to `output.log` in its folder.

    A command that fails is left out, with those that need it, and the others run. On Ctrl-C and SIGTERM the running
    command saves its state.

    Args:
        commands: The commands in order.
        lock: File descriptor of the lock on the study's folder, see `lightning_s2s.support.locks`.

    Returns:
        The failures.

    Raises:
        KeyboardInterrupt: After such a signal, once the running command has ended.
    """
    from tqdm import tqdm

    failures: dict[Path, FailedStep] = {}
    num_finished = sum(map(is_finished, commands))
    with tqdm(total=len(commands), initial=num_finished, unit="step") as bar:
        for command in commands:
            if is_finished(command):
                continue
            bar.set_description(command.label)
            if missing := [folder for folder in command.needs if folder in failures]:
                failures[command.folder] = FailedStep(command, f"left out: it needs {missing[0]}")
            elif status := run_command(command, lock):
                failures[command.folder] = FailedStep(command, f"failed with exit status {status}{_log_end(command)}")
            if command.folder in failures:
                bar.write(str(failures[command.folder]), file=sys.stderr)
            bar.update()
    return list(failures.values())


def _log_end(command: StepCommand) -> str:
    """The place of the log, and its last line if that is the error."""
    path = command.folder / LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    told = f" ({lines[-1]})" if lines and lines[-1].startswith("error: ") else ""
    return f"{told}; see {path}"


def run_command(command: StepCommand, lock: int, shown: bool = False) -> int:
    """Run one command in a process of its own.

    Args:
        command: The command to run.
        lock: File descriptor of the lock on the folder of all commands.
        shown: Print its output instead of writing it into `output.log`.

    Returns:
        Its exit status; not 0 if it leaves no result.
    """
    write_text(command.folder / COMMAND, json.dumps(_record(command), indent=2) + "\n")
    with open(command.folder / LOG, "a", encoding="utf-8") if not shown else contextlib.nullcontext() as log:
        print(f"$ {command}", file=log, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_s2s.cli", *command.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=None if shown else subprocess.STDOUT,
            start_new_session=True,  # else the terminal's Ctrl-C would reach it twice, and the second ends it unsaved
            pass_fds=[lock],
        )
        with _signals_to(process):
            status = process.wait()
    return status or int(not is_finished(command))


@contextlib.contextmanager
def _signals_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process on SIGINT and SIGTERM; once it has ended, raise KeyboardInterrupt.

    The process gets SIGTERM, on which a training saves its state: in the background SIGINT is ignored until a command
    sets a handler, so a signal during its start would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def hand_over(number: int, frame: object) -> None:
        received.append(number)
        process.terminate()

    before = {number: signal.signal(number, hand_over) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _record(command: StepCommand) -> dict[str, object]:
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in command.configs}
    return {"arguments": list(command.arguments), "configs": digests}
