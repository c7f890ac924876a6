"""Checks of a manifest's line: valid JSON, known keys, and their types."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from lightning_s2s.data.audio import LONGEST_SEC
from lightning_s2s.data.chat import ROLES, content_items
from lightning_s2s.support.reading import InputError, parse_json

# The last ones are written by `construct` and not read here.
ROW_KEYS = ("messages", "id", "speaker", "pair", "ambiguous", "task", "seed", "figures")
MESSAGE_KEYS = ("role", "content")
TEXT_KEYS = ("text", "audio", "audio_text", "transcript", "emotion")
ITEM_KEYS = (*TEXT_KEYS, "audio_sec", "speech_units", "speak", "spk_emb", "augmentation")
ADDED_KEYS = ("manifest", "line", "folder")
"""Keys that are added when a row is read, and left out when it is written; `id` is kept."""


class RowProblem(ValueError):
    """A problem of a line.

    Attributes:
        reason: Short name of the problem for counting, such as "not JSON".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class UnknownKey(NamedTuple):
    """A key that isn't read.

    Attributes:
        level: "row", "message" or "content item".
        key: The key as written.
        meant: A sentence on what may be meant.
    """

    level: str
    key: str
    meant: str


def parse_object(text: str) -> dict[str, Any]:
    """Parse the JSON object of a line.

    Raises:
        RowProblem: It is no JSON object, is nested too deeply, repeats a key, or has a lone surrogate.
    """
    try:
        row = parse_json(text, "", allow_nan=True)
    except InputError as error:
        problem = str(error).removeprefix(": not valid JSON").lstrip(": ")
        problem = problem[1:-1] if problem.startswith("(") else problem
        raise RowProblem("not JSON", f"is not JSON ({problem}); one JSON object a line is needed") from None
    if not isinstance(row, dict):
        raise RowProblem("not JSON", f"is not a JSON object but {short(row)}")
    if "\\ud" in text.lower():  # only escapes: as UTF-8 it was refused before
        for where, value in _strings(row, ""):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                code = f"\\u{ord(value[error.start]):04x}"
                message = f"{where}: has half a character ({code}, a lone surrogate), which can't be written"
                raise RowProblem("not UTF-8", message) from None
    return row


def check_row(row: Mapping[str, Any]) -> None:
    """Check the types of all values, and that each message has content; raises RowProblem."""
    for key in ("id", "speaker", "pair", "task"):
        value = row.get(key)
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            raise RowProblem("wrong type", f"{key}: got {short(value)}; a string is needed")
    if not isinstance(row.get("ambiguous"), bool | None):
        raise RowProblem("wrong type", f"ambiguous: got {short(row['ambiguous'])}; true or false is needed")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RowProblem("no messages", f"messages: got {short(messages)}; a list of at least one message is needed")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise RowProblem(
                "wrong message", f"{where}: got {short(message)}; an object with role and content is needed"
            )
        role = message.get("role")
        if role not in ROLES:
            raise RowProblem("wrong role", f"{where}.role: got {short(role)}; allowed: {', '.join(ROLES)}")
        if role == "system" and i:
            raise RowProblem("wrong role", f"{where}.role: a system message stands at the beginning alone")
        if problem := _content_problem(role, message.get("content")):
            raise RowProblem("wrong content", f"{where}.{problem}")


def _content_problem(role: str, content: Any) -> str | None:
    """The first problem of a message's content, or None."""
    if not isinstance(content, str) and not (isinstance(content, list) and all(isinstance(i, dict) for i in content)):
        return f"content: got {short(content)}; a string or a list of objects is needed"
    items = content_items(content)
    for j, item in enumerate(items):
        for key, (fits, needed) in _TYPES.items():
            value = item.get(key)
            if value is not None and not fits(value):
                return f"content[{j}].{key}: got {short(value)}; {needed} is needed"
    sources = ("text", "audio", "audio_text") if role == "user" else ("text",)
    if not any(item.get(key) for item in items for key in sources):
        return f"content: has no {' and no '.join(sources[:2])}"
    return None


def _is_seconds(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (isinstance(value, int) or math.isfinite(value)) and 0 < value <= LONGEST_SEC


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{key: (lambda value: isinstance(value, str), "a string") for key in TEXT_KEYS},
    "audio_sec": (_is_seconds, f"a positive number of seconds, at most {LONGEST_SEC},"),
    "speech_units": (lambda value: isinstance(value, str | list), "a string of <|audio_N|> or a list of integers"),
    "speak": (lambda value: isinstance(value, bool), "true or false"),
    "spk_emb": (lambda value: isinstance(value, str | list), "the path of a .npy file or a list of numbers"),
}
"""Key of a content item -> check of its value, and description of valid values. null counts as absent."""


def check_stated_sec(item: Mapping[str, Any], found_sec: float) -> None:
    """Raise RowProblem if an item's `audio_sec`, which determines batches, differs from the actual duration.

    A difference of up to a quarter of it, or of half a second, is tolerated.
    """
    stated = item.get("audio_sec")
    if stated and abs(found_sec - stated) > max(stated / 4, 0.5):
        message = (
            f"audio_sec: got {stated:g}, but {item['audio']!r} lasts {found_sec:.3f} s; correct it or leave it out"
        )
        raise RowProblem("wrong audio_sec", message)


def unknown_keys(row: Mapping[str, Any]) -> Iterator[UnknownKey]:
    """The unknown keys of a row of any shape, with hints.

    A row may have additional keys, which are passed to the batch: of those, only lookalikes of known keys are reported.
    """
    messages = row.get("messages")
    for key in row:
        if key in ADDED_KEYS:
            yield UnknownKey("row", key, "reading adds one of its own")
        elif key in ITEM_KEYS and key not in ROW_KEYS:
            yield UnknownKey("row", key, "it is a key of a content item")
        elif key in MESSAGE_KEYS:
            yield UnknownKey("row", key, "it is a key of a message")
        elif key not in ROW_KEYS and (near := difflib.get_close_matches(key.lower(), (*ROW_KEYS, *ITEM_KEYS), 1, 0.75)):
            yield UnknownKey("row", key, f"the nearest known key is {near[0]!r}")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        for key in message:
            if key in ITEM_KEYS:
                yield UnknownKey("message", key, "it is a key of a content item")
            elif key not in MESSAGE_KEYS:
                yield _unknown("message", key, MESSAGE_KEYS)
        content = message.get("content")
        for item in content if isinstance(content, list) else ():
            for key in item if isinstance(item, dict) else ():
                if key not in ITEM_KEYS:
                    yield _unknown("content item", key, ITEM_KEYS)


def _unknown(level: str, key: str, known: tuple[str, ...]) -> UnknownKey:
    (nearest,) = difflib.get_close_matches(key.strip().lower(), known, 1, 0.0)
    return UnknownKey(level, key, f"the nearest known key is {nearest!r}")


def short(value: Any) -> str:
    """A value for messages, abbreviated."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a very large number"
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """All strings of a row, including keys, and their places."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            place = f"{where}.{key}".removeprefix(".")
            yield f"the key {short(key)}", key
            yield from _strings(inner, place)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _strings(inner, f"{where}[{i}]")
