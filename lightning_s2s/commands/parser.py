"""One parser for all commands: the parameters of a command's function are its options."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse._typehints
import jsonargparse._util
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from lightning_s2s.commands import COMMANDS
from lightning_s2s.commands.messages import CommandError, Names, check_words, explain, refuse_unknown_options
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.support.ranges import check_arguments
from lightning_s2s.support.wording import unknown_name

Command = Callable[..., int | None]


def call(words: Sequence[str]) -> int:
    """Run the command that a command line names.

    Args:
        words: The command line without the program's name; the command's own name is one or two words.

    Returns:
        The exit status.

    Raises:
        CommandError: There is no such command, or a mistake in its options.
    """
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
    if name is None:
        is_kind = any(known.startswith(f"{words[0]} ") for known in COMMANDS)
        given = " ".join(words[: 1 + is_kind])
        raise CommandError(unknown_name("option" if given.startswith("-") else "command", given, COMMANDS))
    module, _, function = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(f"lightning_s2s.commands.{module}"), function)
    return run(command, f"lightning-s2s {name}", words[len(name.split()) :])


def run(command: Command, program: str, words: Sequence[str]) -> int:
    """Call a command with the values of its options.

    Args:
        command: A function that is annotated and documented. Parameters without a default are positional, or must be
            given by name where they are keyword-only; a bool that is False is a flag; an underscore at the end of a
            name is left out. `*options` takes the words of all options that the function does not name. A single
            parameter that is a dataclass stands for its fields.
        program: The command's name in its help.
        words: The command line behind the name.

    Raises:
        CommandError: A mistake in the options.
    """
    parameters = inspect.signature(command).parameters
    open_ended = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    if open_ended and len(parameters) == 1:
        return command(*words) or 0
    parser = CommandParser(command, program, takes_config=not open_ended)
    own, others = parser.divide(words) if open_ended else (parser.with_underscores(words), [])
    check_words(own)
    values = parser.values_of(own)
    if parser.settings_class is not None:
        return command(parser.settings_class(**values)) or 0
    given = {name: values[name.removesuffix("_")] for name in parameters if name.removesuffix("_") in values}
    by_name = {name: value for name, value in given.items() if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY}
    return command(*(value for name, value in given.items() if name not in by_name), *others, **by_name) or 0


def restrict_parsing() -> None:
    """Let no parser build a class that stands where any value may, as in a component's `config`.

    Class paths that run commands (`os.system`, ...) are on jsonargparse's list of what is never imported, which is
    enforced from here on.
    """
    set_parsing_settings(
        omegaconf_absolute_to_relative_paths=True, instantiate_subclass_spec_in_any=False, import_path_denylist=[]
    )
    for module in (jsonargparse._typehints, jsonargparse._util):
        setattr(module, "NestedArg", _NestedOption)  # noqa: B010 (mypy forbids plain assignment)


class _NestedOption(jsonargparse._util.NestedArg):
    """The value of an option that is nested in another, such as `--model.encoder.checkpoint null`.

    jsonargparse reads the value at each level and hands it to the next one as Python would print it, so that null
    arrives as the text "None". Here values that hold a null are handed on as JSON.
    """

    def __new__(cls, key: str, val: Any) -> _NestedOption:
        return super().__new__(cls, key, json.dumps(val) if _holds_null(val) else val)


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    return value is None or (isinstance(value, list) and any(map(_holds_null, value)))


class OneLineErrors(ArgumentParser if typing.TYPE_CHECKING else object):  # type: ignore[misc]
    """Mixin of parsers that raise each mistake as one line with near names, unknown options first.

    Attributes:
        names: What stands behind keys whose classes are chosen by name, see `explain`.
        root: The function or class whose parameters the keys are.
    """

    names: Names = {}
    root: Callable[..., Any] | None = None

    def options(self) -> set[str]:
        """The options of this parser and of its subcommands, as on the command line."""
        return set(_options_of(self))

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        if self.exit_on_error and args is not None:
            refuse_unknown_options(args, self.options())
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries alternatives with parsers of its own
            super().error(message, ex)
        raise CommandError(explain(message, self.options(), self.names, self.root)) from ex


def _options_of(parser: ArgumentParser) -> Iterable[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                yield from _options_of(subparser)


class CommandParser(OneLineErrors, ArgumentParser):
    """The parser of one command.

    Args:
        command: See `run`. None leaves the parser empty: jsonargparse makes such ones for nested options.
        program: The command's name in its help.
        takes_config: Add `--config`.
    """

    def __init__(
        self, command: Command | None = None, program: str | None = None, takes_config: bool = True, **options: Any
    ):
        self.settings_class: type | None = None
        self.hints: dict[str, Any] = {}
        self.adds_flags = False
        restrict_parsing()
        if command is None:
            super().__init__(prog=program, **options)
            return
        text = inspect.getdoc(command) or ""
        super().__init__(prog=program, description=text.partition("\n\nArgs:")[0].partition("\n\nRaises:")[0])
        if takes_config:
            self.add_argument("--config", action=ActionConfigFile, help="YAML with the options below; may be repeated")
        self.hints = typing.get_type_hints(command, include_extras=True)
        settings = [hint for name, hint in self.hints.items() if name != "return" and dataclasses.is_dataclass(hint)]
        self.root = command
        if settings:
            self.root = self.settings_class = typing.cast(type, settings[0])
            self.add_class_arguments(self.settings_class, as_group=False)
        else:
            self.adds_flags = True
            self.add_function_arguments(command, as_group=False, as_positional=True, sub_configs=True)
            self.adds_flags = False
        if "lightning_s2s.components.contracts" in sys.modules:  # a component is chosen by its name
            REGISTRY.load()

    def add_argument(self, *names: str, **options: Any) -> Any:
        if getattr(self, "adds_flags", False):  # jsonargparse gives this method to its groups, too
            names = tuple(name.removesuffix("_") for name in names)
            if options.get("type") is bool and options.get("default") is False:
                options = {"action": "store_true", "help": options.get("help")}
        return super().add_argument(*names, **options)

    def with_underscores(self, words: Sequence[str]) -> list[str]:
        """The words, options spelled as the parameters are: `--dry-run` is `--dry_run`."""
        options, spelled = self.options(), []
        for word in words:
            name, equals, value = word.partition("=")
            other = f"--{name[2:].replace('-', '_')}"
            spelled.append(f"{other}{equals}{value}" if word.startswith("--") and other in options else word)
        return spelled

    def divide(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """The words that belong to this parser's options, and those of all other options with their values."""
        options = self.options()
        flags = {name for action in self._actions if action.nargs == 0 for name in action.option_strings}
        own: list[str] = []
        others: list[str] = []
        into, needs_value = own, False
        for word in self.with_underscores(words):
            if word.startswith("-") and not needs_value:
                name, equals, _ = word.partition("=")
                into = own if name in options else others
                needs_value = into is own and not equals and name not in flags
            else:
                needs_value = False
            into.append(word)
        return own, others

    def values_of(self, words: Sequence[str]) -> dict[str, Any]:
        """The value of each option, components built.

        Raises:
            CommandError: A value is missing or not allowed.
        """
        parsed = self.parse_args(list(words))
        for name, hint in self.hints.items() if self.settings_class is None else ():
            value = parsed.get(name.removesuffix("_"))
            if hint is bool and not isinstance(value, bool):
                raise CommandError(f"{name}: got {value!r}; allowed: true or false")
            if value == Path() and not {"", f"--{name.removesuffix('_')}="}.isdisjoint(words):
                raise CommandError(f"{name.removesuffix('_')}: got ''; a path is needed")
        values = {key: value for key, value in self.instantiate(parsed).items() if key != "config"}
        if self.settings_class is None and self.root is not None:
            try:
                check_arguments(self.root, values, "--")
            except ValueError as error:
                raise CommandError(str(error)) from error
        return values
