"""What a user reads after a mistake: one line that names the key, the value and what is allowed."""

from __future__ import annotations

import importlib
import itertools
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_s2s.commands.interpolations import check_interpolations
from lightning_s2s.components.registry import SLOTS
from lightning_s2s.support.ranges import hints_of
from lightning_s2s.support.reading import YamlBombError, one_line, parse_yaml, read_yaml
from lightning_s2s.support.wording import near_names, unknown_name

LIKE_AN_OPTION = re.compile(r"-(?!\d+$|\d*\.\d+$)[^ ]+$")
"""What argparse takes for an option, not for a value: a dash in front, unless it is a number or holds a space."""
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
UNEXPECTED = "unrecognized arguments: "


class CommandError(Exception):
    """A mistake in what the user gave; `main` prints it as one line and exits with `code`."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


Names = Mapping[str, tuple[str, Iterable[str]]]
"""Key of a configuration -> what it holds, in words, and the short names it takes."""


def explain(
    message: str,
    options: Iterable[str] = (),
    names: Names | None = None,
    root: Callable[..., Any] | None = None,
) -> str:
    """A message of jsonargparse as one line, with near names for what does not exist.

    Its exceptions carry text alone, nested over many lines: the keys that lead to the value, the classes that were
    tried, and what each of them refused.

    Args:
        message: The text.
        options: All options of the command, such as `--trainer.max_epochs`.
        names: The names for keys that neither hold a component nor are annotated with a class.
        root: The function or class whose parameters are the outermost keys.
    """
    options = [option.lstrip("-") for option in options]
    if message.startswith(UNEXPECTED):
        word = message.removeprefix(UNEXPECTED)
        if word.startswith("-"):  # nested in an option that exists
            return unknown_option(word.split()[0], options)
        return f"unexpected argument {word!r:.200}; --help tells what is allowed"
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
    where = f"{'.'.join(keys)}: " if keys else ""

    for leaf in leaves:
        if found := re.match(r"the following arguments are required: (.*)", leaf):
            missing = re.sub(r"\b(fit|validate)\.", "", found[1])
            return f"missing: {missing}; give it as an option or in a --config file"
        if leaf.startswith(f"{UNEXPECTED}-") and class_path is not None:  # nested in a group of a component's options
            option = leaf.removeprefix(UNEXPECTED).lstrip("-").partition("=")[0]
            return where + unknown_name(f"option of {_short(class_path)}", option, _parameters_of(class_path))
        if found := re.match(r"Expected a dot import path string: (.*)", leaf):
            what, allowed = _names_of(keys, class_path, names or {}, root)
            return where + unknown_name(what, found[1], allowed)
        if found := re.match(r"(?:\w+ '[^']*' does not accept option|Option) '(.+?)'(?: is not accepted.*)?$", leaf):
            if class_path is None:
                return unknown_option(found[1], options)
            known = _parameters_of(class_path)
            return where + unknown_name(f"option of {_short(class_path)}", found[1], known)
    expected = [found[1] for leaf in leaves if (found := re.match(r"Expected a (?:<class ')?(.*?)(?:'>|\. |$)", leaf))]
    given = [found[1] for leaf in leaves if (found := re.search(r"(?:Given|Got) value: (.*)", leaf))]
    if expected and given:
        return f"{where}got {given[0]!r}; allowed: {' or '.join(map(_type_in_words, expected))}"
    return where + one_line("; ".join(leaves)) if leaves else one_line(message)


def unknown_option(given: str, options: Iterable[str]) -> str:
    """The wording for an option that a command doesn't have; `given` may carry dashes and a value."""
    option = given.partition("=")[0]
    dashes = option[: len(option) - len(option.lstrip("-"))]
    near = near_names(option, sorted({dashes + known for known in options}))
    return f"unknown option {option!r}" + (f"; did you mean {near}?" if near else "; --help lists all options")


def _type_in_words(name: str) -> str:
    """The name of a type in jsonargparse's messages; of a Literal its values."""
    return name.removeprefix("typing.Literal[").removesuffix("]") if name.startswith("typing.Literal[") else name


def _names_of(
    keys: Sequence[str], class_path: str | None, names: Names, root: Callable[..., Any] | None
) -> tuple[str, Iterable[str]]:
    """What the innermost key holds, in words, and the names that it takes."""
    key = keys[-1].rpartition(".")[2] if keys else ""
    if key in SLOTS:
        return key, SLOTS[key].names()
    if key in names:
        return names[key]
    owner: Any = _import(class_path) if class_path else root
    init = getattr(owner, "__init__", None) if isinstance(owner, type) else owner
    for base in _classes_in(hints_of(init).get(key) if init is not None else None):
        return re.split(r"(?=[A-Z])", base.__name__)[-1].lower(), subclasses(base)
    return "class", ()


def _classes_in(hint: Any) -> list[type]:
    """The classes of ours in a type, such as `Filter` in `list[Filter] | None`."""
    if isinstance(hint, type) and hint.__module__.startswith("lightning_s2s."):
        return [hint]
    return [found for part in typing.get_args(hint) for found in _classes_in(part)]


def subclasses(base: type) -> list[str]:
    """Names of the classes that extend `base` and can be built, sorted."""
    found: set[str] = set()
    children: list[type] = base.__subclasses__()
    for child in children:
        found.update(subclasses(child), () if child.__name__.startswith("_") else (child.__name__,))
    return sorted(found)


def _parameters_of(class_path: str) -> list[str]:
    """The parameters of a class, with those that it passes on to its bases, and the fields of groups of options."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    try:
        names: list[str] = parser.add_class_arguments(_import(class_path), "of", fail_untyped=False)
    except Exception:  # only a hint; the message stands without it
        return []
    options = [option.removeprefix("--of.") for option in parser._option_string_actions]
    fields = {option for option in options if "." in option and not option.endswith((".help", "+"))}
    return sorted({name.removeprefix("of.") for name in names} - {field.split(".")[0] for field in fields} | fields)


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _import(class_path: str) -> Any:
    """The class of a path that jsonargparse has imported before."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name, None)


# --- before anything is parsed ---------------------------------------------------------------------------------------


def refuse_unknown_options(words: Iterable[str], options: Iterable[str]) -> None:
    """Refuse an option that a command doesn't have, before its parser complains about what is missing for want of it.

    Raises:
        CommandError: An option is none of `options`, nor nested in one of them.
    """
    options = set(options)
    for word in itertools.takewhile(lambda word: word != "--", words):
        name = word.partition("=")[0]
        if word.startswith("--") and not {name, name.partition(".")[0].rstrip("+")} & options:
            raise CommandError(unknown_option(word, (option.lstrip("-") for option in options)))


def check_words(words: Sequence[str]) -> None:
    """See that nested options have values and that YAML, in files and in options, stays within its bounds.

    The parsers' own messages name neither the file of a broken `--config` nor the nested option without a value.

    Raises:
        CommandError: A word is refused; the message names the option or the file.
    """
    for word, following in itertools.zip_longest(words, words[1:]):
        option, equals, joined = word.partition("=")
        value = joined if equals else following
        if option in ("--config", "-c"):
            _check_config(option, Path(value or ""))
            continue
        _check_value(option, value or "")
        nested = re.fullmatch(r"--model\..+|--[\w-]+\..+(?<!\.help)", option)
        if nested and not equals and (value is None or LIKE_AN_OPTION.match(value)):
            dashed = value is not None and not value.startswith("--")
            hint = f"; a value like this is given by {option}={value}" if dashed else ""
            raise CommandError(f"{option}: needs a value; got {value or 'nothing'}{hint}")


def _check_config(option: str, path: Path) -> None:
    """Refuse a file that is missing, is no YAML mapping, or holds keys that no parser takes."""
    if not path.is_file():
        near = near_names(path.stem, (other.stem for other in path.parent.glob("*.yaml")))
        hint = f"; did you mean {near.replace(' or ', '.yaml or ')}.yaml?" if near else ""
        raise CommandError(f"{option} {path}: no such file{hint}")
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
    """Refuse keys without a name, before a parser does so without naming the file."""
    if isinstance(content, list):
        for item in content:
            _check_keys(item, path, where)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key is None or key == "":
                place = f"under {where}" if where else "at the top"
                raise CommandError(f"{path}: the key {key!r} {place}: a key must be a name")
            _check_keys(value, path, f"{where}.{key}".lstrip("."))


def _check_value(option: str, value: str) -> None:
    """Refuse a YAML bomb, and a broken YAML file; whether the option takes the value is decided by the parser."""
    if value.endswith((".yaml", ".yml")) and Path(value).is_file():
        try:
            read_yaml(Path(value))
        except ValueError as error:
            raise CommandError(str(error)) from None
    if option.startswith("-") and any(letter in value for letter in "[{&*-"):
        try:
            parse_yaml(value, option)
        except YamlBombError as error:
            raise CommandError(str(error)) from None
        except ValueError:
            return
