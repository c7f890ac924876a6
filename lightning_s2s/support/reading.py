"""Reading input that others wrote: any mistake in a file or an option becomes one line that names it.

`reading` is the one place that turns the errors of bad input into such a line; JSON and YAML are read here, with bounds
on their size, depth and aliases. Imports the standard library only, until a YAML is read.
"""

from __future__ import annotations

import json
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_s2s.support.extras import how_to_install

if TYPE_CHECKING:
    import yaml

LONGEST_MESSAGE = 800
MAX_BYTES = {"JSON": 64 << 20, "YAML": 256 << 10}
"""Size of the largest file that is read; a YAML is parsed thousands of times slower than a JSON."""
MAX_DEPTH = 64
"""Levels of nested lists and mappings."""
MAX_VALUES = 20_000
"""Values of a YAML once its aliases are written out: ten lines of aliases to aliases can stand for billions."""
CIRCLE = "an alias stands inside what it is an alias of"
TOO_DEEP, TOO_MANY = f"more than {MAX_DEPTH} levels deep", f"more than {MAX_VALUES:,} values, aliases written out"

BUGS = (AssertionError, NameError, NotImplementedError)
"""Errors that mean a bug when this project's own code raises them: they keep their traceback."""


class InputError(ValueError):
    """A file or an option holds something unusable; the message is one line for its author.

    Args:
        message: Names the file or the key, the value and what is allowed.
        source: The file that the message names, if `reading` has put it in front.
    """

    def __init__(self, message: str, source: str | None = None):
        super().__init__(message)
        self.source = source


class YamlBombError(InputError):
    """A YAML that is small as a file and exceeds all bounds once its aliases are written out."""


@contextmanager
def reading(source: str | Path, what: str = "file") -> Iterator[None]:
    """Turn any error raised while something is parsed or built from `source` into an `InputError`.

    The original error is its cause, so that debugging shows where it was raised. Errors that already name a file (an
    `InputError` of an inner `reading`, an OSError with its file, a ValueError whose message holds `source`), missing
    packages, Ctrl-C, a GPU out of memory, and this project's own bugs (`BUGS`) pass unchanged.

    Args:
        source: The file, folder or option, for the message.
        what: The expected content, such as `tokenizer`, for the message.

    Raises:
        InputError: One line that begins with `source`.
    """
    try:
        yield
    except BaseException as error:
        message = _explain(error, str(source), what)
        if message is None:
            raise
        raise InputError(message, str(source)) from error


def _explain(error: BaseException, source: str, what: str) -> str | None:
    """The line for an error; None if the error must pass unchanged."""
    kind, ours = type(error).__name__, isinstance(error, InputError) or raised_here(error)
    if not isinstance(error, Exception) and kind != "PanicException":  # from Rust; it is no Exception
        return None
    if isinstance(error, InputError) and error.source is not None:
        return None
    if isinstance(error, OSError) and error.filename is not None:
        return None
    if kind == "OutOfMemoryError" or how_to_install(error) or (ours and isinstance(error, BUGS)):
        return None
    text = one_line(error)
    if isinstance(error, ValueError) and ours:
        return None if source in text else f"{source}: {text}"
    if isinstance(error, RecursionError):
        return f"{source}: not a readable {what}: nested too deeply"
    if isinstance(error, MemoryError):
        return f"{source}: not a readable {what}: it needs more memory than there is"
    if isinstance(error, KeyError):
        return f"{source}: not a readable {what}: key {text} is missing"
    if not text or not isinstance(error, ValueError | OSError | RuntimeError):
        text = f"{kind}: {text}" if text else kind
    return f"{source}: not a readable {what} ({text})"


def raised_here(error: BaseException) -> bool:
    """Whether the error comes from this project's code, whose messages are written for users."""
    package = Path(__file__).resolve().parents[1]
    homes = (package, package.parent / "callbacks")
    frames = list(traceback.walk_tb(error.__traceback__))
    last = Path(frames[-1][0].f_code.co_filename).resolve() if frames else package
    return any(home in last.parents for home in homes)


def one_line(message: object) -> str:
    """The message without line breaks and runs of spaces, shortened if it is too long to read."""
    return textwrap.shorten(str(message), LONGEST_MESSAGE, placeholder=" ...")


def _first_twice(keys: Iterable[Any]) -> Any:
    """The first duplicate key; None if all differ."""
    seen = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None


# --- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """A JSON file that holds a mapping; `hint` is added to the message if it holds something else.

    Raises:
        ValueError: It is missing, no JSON or no mapping, has a key twice or NaN, or exceeds `MAX_BYTES` or `MAX_DEPTH`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", str(path))
    content = parse_json(_read_bytes(path, "JSON"), path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, found {type(content).__name__}{hint}", str(path))
    return content


def parse_json(text: str | bytes, source: str | Path, allow_nan: bool = False) -> Any:
    """The content of a JSON text; raises as `read_json`, in the name of `source`.

    Args:
        text: The JSON.
        source: Its origin, for messages.
        allow_nan: Accept NaN as a number: measurements may hold it, settings may not.
    """
    constant = float if allow_nan else _constant
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=constant)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not valid JSON ({error})", str(source)) from None
    except RecursionError:
        raise InputError(f"{source}: not valid JSON: {TOO_DEEP}", str(source)) from None
    except ValueError as error:
        raise InputError(f"{source}: not valid JSON ({one_line(error)})", str(source)) from None
    if _depth(content) > MAX_DEPTH:
        raise InputError(f"{source}: not valid JSON: {TOO_DEEP}", str(source))
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := _first_twice(key for key, _ in pairs):
        raise ValueError(f"key {twice!r} stands twice in one mapping")
    return dict(pairs)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number that anything can be set to")
    return float(name)  # some configurations of transformers hold Infinity


def _depth(content: Any) -> int:
    """Levels of nested lists and mappings; 0 for a number or a text."""
    level, depth = [content], 0
    while level := [
        child for value in level if isinstance(value, dict | list)
        for child in (value.values() if isinstance(value, dict) else value)
    ]:  # fmt: skip
        depth += 1
    return depth


# --- YAML ------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path, loader_class: type[yaml.SafeLoader] | None = None) -> Any:
    """The content of a YAML file.

    Args:
        path: The file.
        loader_class: See `parse_yaml`.

    Raises:
        OSError: It can't be read.
        ValueError: It is no YAML, a mapping has a key twice, aliases form a circle, or it is larger than `MAX_BYTES`,
            `MAX_DEPTH` and `MAX_VALUES` allow; the message names the file, and the line where it is known.
    """
    try:
        text = _read_bytes(path, "YAML").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid YAML: {error}", str(path)) from None
    return parse_yaml(text, path, loader_class)


def parse_yaml(text: str, source: str | Path, loader_class: type[yaml.SafeLoader] | None = None) -> Any:
    """The content of a YAML text; raises as `read_yaml`, in the name of `source`.

    Args:
        text: The YAML.
        source: Its origin, for messages.
        loader_class: A SafeLoader that knows more tags; None takes SafeLoader itself.
    """
    import yaml

    if len(text) > MAX_BYTES["YAML"]:
        raise InputError(f"{source}: not valid YAML: more than {MAX_BYTES['YAML'] >> 10:,} KiB", str(source))
    try:
        loader = _stopping_early(loader_class or yaml.SafeLoader)(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        problem = getattr(error, "problem", None) or one_line(error)
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        kind = YamlBombError if problem in (TOO_DEEP, TOO_MANY, CIRCLE) else InputError
        raise kind(f"{source}:{line} not valid YAML: {problem}", str(source)) from None


def _stopping_early(loader_class: type[yaml.SafeLoader]) -> type[yaml.SafeLoader]:
    """The loader, stopping at the first value that is too many or too deep instead of at the end."""
    from yaml.composer import ComposerError

    class Loader(loader_class):  # type: ignore[valid-type, misc]
        values = levels = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.values, self.levels = self.values + 1, self.levels + 1
            for too_much, problem in ((self.values > MAX_VALUES, TOO_MANY), (self.levels > MAX_DEPTH + 1, TOO_DEEP)):
                if too_much:
                    raise ComposerError(None, None, problem, self.peek_event().start_mark)
            node = super().compose_node(parent, index)
            self.levels -= 1
            return node

    return Loader


def _check_node(node: yaml.Node, seen: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """The number of values and of levels below a node, aliases written out.

    Args:
        node: A node of the graph that a YAML describes.
        seen: The counts of finished nodes by identity, and None for those that are being counted.
    """
    from yaml import MappingNode, SequenceNode
    from yaml.composer import ComposerError

    def refuse(problem: str) -> NoReturn:
        raise ComposerError(None, None, problem, node.start_mark)

    if id(node) in seen:
        counted = seen[id(node)]
        if counted is None:
            refuse(CIRCLE)
        return counted
    seen[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node.value, str) and any("\ud800" <= letter <= "\udfff" for letter in node.value):
        refuse("half a character (a lone surrogate)")
    if isinstance(node, MappingNode):
        if twice := _first_twice((key.tag, key.value) for key, _ in node.value if isinstance(key.value, str)):
            refuse(f"key {twice[1]!r} stands twice in one mapping")
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, SequenceNode):
        children = node.value
    values, levels = 1, 0
    for child in children:
        below, deep = _check_node(child, seen)
        values, levels = values + below, max(levels, deep + 1)
    if values > MAX_VALUES:
        refuse(TOO_MANY)
    if levels > MAX_DEPTH:
        refuse(TOO_DEEP)
    seen[id(node)] = values, levels
    return values, levels


def _read_bytes(path: Path, what: str) -> bytes:
    """The file's content, unless it is larger than `MAX_BYTES`."""
    most = MAX_BYTES[what]
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path}: not valid {what}: more than {most >> 10:,} KiB", str(path))
    return content
