"""`lightning-s2s`: finds the subcommand and runs it. Torch, Lightning and the parsers load with the command."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version

from lightning_s2s.commands.messages import CommandError
from lightning_s2s.support.extras import how_to_install
from lightning_s2s.support.reading import InputError, one_line, raised_here
from lightning_s2s.support.wording import unknown_name

DEBUG_VARIABLE = "LIGHTNING_S2S_DEBUG"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""

COMMANDS = {
    "train": (
        "train",
        "a recipe, stage after stage: RECIPE.yaml [overrides] [--output_dir DIR] [--from STEP] [--to STEP]",
    ),
    "fit": ("fit", "train a stage: --config YAML [--config YAML ...] [overrides] [--resume]"),
    "validate": ("fit", "measure a stage on its validation data: --config YAML [--ckpt_path FILE]"),
    "plan": (
        "plan",
        "parameters and memory per GPU before training: --config YAML [--gpus N] [--strategy ddp|fsdp2|one]",
    ),
    "respond": ("respond", "answer a spoken question: MODEL question.wav --out reply.wav --json reply.json"),
    "evaluate": ("evaluate", "figures of a trained model on held-out data: answers | speech, --help tells more"),
    "ablate": ("ablate", "run and compare the variants of a study: STUDY.yaml [--dry-run]; goes on where it stopped"),
    "construct": ("construct", "make a corpus of spoken dialogues: --config YAML [overrides]"),
    "emotion-classifier": ("emotion_classifier", "train a judge of the emotion in a voice: --config YAML [overrides]"),
    "convert": (
        "convert",
        "published OpenS2S checkpoints: --from opens2s | --to opens2s MODEL OUT [--lora merge|keep]",
    ),
    "consolidate": ("consolidate", "a checkpoint of any number of processes as a model folder: RUN OUT [--best]"),
    "manifest": ("manifest", "a corpus on disk as a manifest: --corpus librispeech --folder DIR --out OUT.jsonl"),
    "units": (
        "units",
        "add speech units to a manifest: --vocoder NAME IN.jsonl OUT.jsonl; goes on where it was stopped",
    ),
    "components": ("components", "list the encoders, adapters, LLMs, speech decoders and vocoders"),
}
"""Name -> (module in `lightning_s2s.commands`, line of help). A module has `run(name, arguments) -> exit status`."""

HELP = """usage: lightning-s2s COMMAND [options]

Train, run and measure speech-to-speech models. `lightning-s2s COMMAND --help` tells more.

commands:
{commands}

options:
  --help       show this text
  --version    show the version
  --debug      show the traceback of an error (or set {debug}=1)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line, without the program's name; None takes the process's own.

    Returns:
        The exit status: 0, 1 for a ValueError while running, 2 for a mistake on the command line, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in given:
        given.remove("--debug")
        os.environ[DEBUG_VARIABLE] = "1"
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    try:
        return _dispatch(given)
    except CommandError as error:
        return _report(error, str(error), error.code, debug)
    except KeyboardInterrupt:
        return _report(None, "interrupted", INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if remedy := how_to_install(error):
            return _report(error, remedy, 1, debug)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _report(error, f"out of memory: {one_line(error) or 'there is no more on this machine'}", 1, debug)
        if not isinstance(error, ValueError | OSError) and type(error).__name__ != "MisconfigurationException":
            raise
        root = _root(error)
        if isinstance(root, OSError) and root.filename is not None and root.strerror:
            return _report(error, f"{root.filename}: {root.strerror.lower()}", 1, debug)
        written_for_users = (
            isinstance(root, InputError) or raised_here(root) or type(root).__name__ == "MisconfigurationException"
        )
        hint = "" if written_for_users else f" ({DEBUG_VARIABLE}=1 shows where)"
        return _report(error, one_line(root) + hint, 1, debug)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
        print(HELP.format(commands=lines, debug=DEBUG_VARIABLE), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"lightning-s2s {installed_version()}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise CommandError(unknown_name("option" if name.startswith("-") else "command", name, COMMANDS))
    module = importlib.import_module(f"lightning_s2s.commands.{COMMANDS[name][0]}")
    return module.run(name, rest)


def installed_version() -> str:
    """The installed package's version; `unknown` when it runs from a source tree that isn't installed."""
    try:
        return version("lightning-s2s")
    except PackageNotFoundError:
        return "unknown"


def _report(error: Exception | None, message: str, code: int, debug: bool) -> int:
    if debug and error is not None:
        traceback.print_exception(error)
    sys.stderr.write(f"error: {message}\n")  # in one piece: several processes may say it at once
    sys.stderr.flush()
    return code


def _root(error: BaseException) -> BaseException:
    """What an error was raised from, and so on: jsonargparse wraps the errors of the constructors that it calls.

    An `InputError` says what its cause means, and is not looked behind.
    """
    while error.__cause__ is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


if __name__ == "__main__":
    sys.exit(main())
