"""What a user reads after a mistake: one line that names the key, the value and what is allowed."""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from lightning_s2s.commands.interpolations import check_interpolations
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.support.reading import YamlBombError, one_line, parse_yaml, read_yaml
from lightning_s2s.support.wording import near_names, unknown_name

LIKE_AN_OPTION = re.compile(r"-(?!\d+$|\d*\.\d+$)[^ ]+$")
"""What argparse takes for an option, not for a value: all with a dash in front but numbers, and texts with a space."""
NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value: NestedArg",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
)
"""Lines of jsonargparse's nested messages that say how it searched, not what is wrong."""


class CommandError(Exception):
    """A mistake in what the user gave; `main` prints it as one line and exits with `code`."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `CommandError`, with near names for unknown options."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As usual, but an unknown option is told before what is missing, which it may have been meant for."""
        words = sys.argv[1:] if args is None else list(args)
        refuse_unknown_options(words, self._option_string_actions)
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise CommandError(explain(message, self._option_string_actions))


def a_path(text: str) -> Path:
    """The type of an option that names a file or folder; `Path` would take nothing for the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}; a path is needed")
    return Path(text)


Names = dict[str, tuple[str, Iterable[str]]]
"""Key of a configuration -> what it holds, in words, and the short names it takes."""


def explain(message: str, options: Iterable[str] = (), names: Names | None = None) -> str:
    """A parser's message as one line, with near names for what does not exist.

    Args:
        message: of argparse or jsonargparse; the latter's are nested over many lines.
        options: all options of the command, such as `--trainer.max_epochs`.
        names: of keys that hold no component.
    """
    options = sorted({option.lstrip("-") for option in options if option.startswith("--")})
    if found := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
        if found[1].startswith("-"):
            return _unknown_option(found[1].split()[0], options)
        return f"unexpected argument {found[1]!r:.200}; --help tells what is allowed"
    not_accepted = r"(?:Subcommand '\w+' does not accept option|Option) '(.+?)'(?: is not accepted)?"
    if found := re.fullmatch(not_accepted, message):
        return _unknown_option(found[1], options)
    if found := re.fullmatch(r"the following arguments are required: (.*)", message):
        missing = re.sub(r"\b(fit|validate)\.", "", found[1])
        return f"missing: {missing}; give it as an option or in a --config file"
    if found := re.fullmatch(r"argument \S+: invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return unknown_name("command", found[1], re.findall(r"[\w-]+", found[2]))

    keys, leaves, class_path = [], [], None
    for raw in message.splitlines():
        line = raw.strip().removeprefix("- ")
        while found := re.match(r'Parser key "([^"]+)":\s*', line):
            keys.append(found[1])
            line = line[found.end() :]
        if found := re.match(r"Problem with given class_path '([^']+)':", line):
            class_path = found[1]
        elif line and not line.startswith(NOISE) and line not in leaves:
            leaves.append(line)
    key = ".".join(keys)
    where = f"{key}: " if key else ""

    for leaf in leaves:
        if found := re.match(r"Expected a dot import path string: (.*)", leaf):
            kind, known = _names_of(keys[-1] if keys else "", names or {})
            return where + unknown_name(kind, found[1], known)
        if (found := re.match(r"Option '(.*)' is not accepted", leaf)) and class_path:
            known = _options_of(class_path)
            return where + unknown_name(f"option of {class_path.rpartition('.')[2]}", found[1], known)
    expected = [found[1] for leaf in leaves if (found := re.match(r"Expected a <class '(.*?)'>", leaf))]
    given = [found[1] for leaf in leaves if (found := re.search(r"(?:Given|Got) value: (.*)", leaf))]
    if expected and given:
        return f"{where}got {given[0]!r}; allowed: {' or '.join(expected)}"
    return where + one_line("; ".join(leaves)) if leaves else one_line(message)


def refuse_unknown_options(arguments: Iterable[str], options: Iterable[str]) -> None:
    """Refuse an option that a command doesn't have before its parser tells what else is amiss for want of it.

    Raises:
        CommandError: it is none of `options`, nor nested in one of them.
    """
    options = set(options)
    for word in itertools.takewhile(lambda word: word != "--", arguments):
        name = word.partition("=")[0]
        if word.startswith("--") and not {name, name.partition(".")[0].rstrip("+")} & options:
            raise CommandError(_unknown_option(word, sorted(option.lstrip("-") for option in options)))


def check_configs(arguments: list[str]) -> None:
    """See that every `--config` file is there and holds a YAML mapping; the parsers' own messages don't name the file.

    The values of other options are read as YAML, too: here they are held against the same bounds.

    Raises:
        CommandError: one doesn't.
    """
    for option, value in zip(arguments, [*arguments[1:], None], strict=False):
        name, equals, joined = option.partition("=")
        if name not in ("--config", "-c"):
            _check_value(name, joined if equals else value or "")
            if _takes_a_value(name) and not equals and (value is None or LIKE_AN_OPTION.match(value)):
                hint = (
                    "" if value is None or value.startswith("--") else f"; a value like this is given by {name}={value}"
                )
                raise CommandError(f"{name}: needs a value; got {value or 'nothing'}{hint}")
            continue
        path = Path(joined if equals else value or "")
        if not path.is_file():
            near = near_names(path.stem, (other.stem for other in path.parent.glob("*.yaml")))
            hint = f"; did you mean {near.replace(' or ', '.yaml or ')}.yaml?" if near else ""
            raise CommandError(f"{name} {path}: no such file{hint}")
        try:
            content = read_yaml(path)
        except ValueError as error:
            raise CommandError(str(error)) from None
        if not isinstance(content, dict):
            raise CommandError(f"{path}: needs keys and values; found {type(content).__name__}")
        if "config" in content:
            raise CommandError(f"{path}: config: can't stand in a YAML; give each file by a --config of its own")
        _check_keys(content, path)
        check_interpolations(content, path)


def _check_keys(content: Any, path: Path, where: str = "") -> None:
    """Refuse keys that no parser takes, before one says so without the file."""
    if isinstance(content, list):
        for item in content:
            _check_keys(item, path, where)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key is None or key == "":
                place = f"under {where}" if where else "at the top"
                raise CommandError(f"{path}: the key {key!r} {place}: a key must be a name")
            _check_keys(value, path, f"{where}.{key}".lstrip("."))


def _takes_a_value(option: str) -> bool:
    """Whether it is one of a nested option, all of which do; jsonargparse would name the option it is nested in."""
    return re.fullmatch(r"--model\..+|--[\w-]+\..+(?<!\.help)", option) is not None


def _check_value(option: str, value: str) -> None:
    """Refuse a bomb; whether a value is what the option takes is the parser's affair."""
    if option.startswith("-") and any(letter in value for letter in "[{&*-"):
        try:
            parse_yaml(value, option)
        except YamlBombError as error:
            raise CommandError(str(error)) from None
        except ValueError:
            return


def _unknown_option(given: str, options: list[str]) -> str:
    option = given.partition("=")[0]
    dashes = option[: len(option) - len(option.lstrip("-"))]
    near = near_names(option, [dashes + known for known in options])
    hint = f"; did you mean {near}?" if near else "; --help lists all options"
    return f"unknown option {option!r}{hint}"


def _names_of(key: str, names: Names) -> tuple[str, Iterable[str]]:
    """What a key holds, in words, and the short names it takes."""
    last = key.rpartition(".")[2]
    for registry in REGISTRY:
        if registry.kind == last:
            return registry.kind, registry.names()
    return names.get(last, ("class", ()))


def _options_of(class_path: str) -> list[str]:
    """The parameters of a class, those that it passes on to its bases included."""
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    try:
        return ArgumentParser().add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
    except Exception:  # only a hint; the message stands without it
        return []
