"""`lightning-s2s`: runs a command and turns its errors into one line. Heavy libraries load with the command."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version

from lightning_s2s.commands import COMMANDS
from lightning_s2s.commands.messages import CommandError
from lightning_s2s.support.extras import how_to_install
from lightning_s2s.support.reading import InputError, one_line, raised_here

DEBUG_VARIABLE = "LIGHTNING_S2S_DEBUG"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells: 128 + SIGINT."""

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
        arguments: The command line without the program's name; None takes the process's own.

    Returns:
        The exit status: 0, 1 for an error while running, 2 for a mistake on the command line, 130 after Ctrl-C.
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


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(commands=_summaries(COMMANDS), debug=DEBUG_VARIABLE), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"lightning-s2s {installed_version()}")
        return 0
    kinds = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if kinds and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(f"usage: lightning-s2s {words[0]} KIND [options]\n\nkinds:\n{_summaries(kinds)}")
        return 0 if len(words) > 1 else 2
    from lightning_s2s.commands.parser import call

    return call(words)


def _summaries(names: Collection[str]) -> str:
    width = max(map(len, names))
    return "\n".join(f"  {name:<{width}}  {COMMANDS[name][1]}" for name in names)


def installed_version() -> str:
    """The installed package's version; `unknown` in a source tree that isn't installed."""
    try:
        return version("lightning-s2s")
    except PackageNotFoundError:
        return "unknown"


def _report(error: Exception | None, message: str, code: int, debug: bool) -> int:
    if debug and error is not None:
        traceback.print_exception(error)
    sys.stderr.write(f"error: {message}\n")  # in one piece: several processes may write at once
    sys.stderr.flush()
    return code


def _root(error: BaseException) -> BaseException:
    """The first error of a chain: jsonargparse wraps the errors of the constructors that it calls.

    An `InputError` explains its own cause, and ends the search.
    """
    while error.__cause__ is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


if __name__ == "__main__":
    sys.exit(main())
