"""`${...}` in a configuration: how much there is once all of them are written out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_s2s.support.reading import InputError

MAX_CHARACTERS = 1_000_000
REFERENCE = re.compile(r"\$\{\s*(\.*)([^${}:]+?)\s*\}")
"""The innermost `${a.b}` or `${.b}`; those with a resolver, such as `${oc.env:HOME}`, stand for little."""

Place = tuple[str, ...]


def check_interpolations(content: Any, source: Path) -> None:
    """Refuse a configuration whose references refer to references without end, or as in a bomb.

    Raises:
        InputError: the message names the key.
    """
    sizes: dict[Place, int | None] = {}

    def size(place: Place) -> int:
        """Characters of what stands at a place."""
        if place not in sizes:
            sizes[place] = None
            total = _measure(_at(content, place), place)
            if total > MAX_CHARACTERS:
                refuse(place, f"stands for more than {MAX_CHARACTERS:,} characters, references written out")
            sizes[place] = total
        found = sizes[place]
        if found is None:
            refuse(place, "refers to itself")
        return found or 0

    def _measure(value: Any, place: Place) -> int:
        if isinstance(value, dict):
            return 1 + sum(size((*place, str(key))) for key in value)
        if isinstance(value, list):
            return 1 + sum(size((*place, str(number))) for number in range(len(value)))
        if not isinstance(value, str):
            return 1
        targets = (_target(found, place) for found in REFERENCE.finditer(value))
        return len(value) + sum(size(target) for target in targets if _at(content, target) is not None)

    def refuse(place: Place, what: str) -> None:
        raise InputError(f"{source}: {'.'.join(place)}: {what}", str(source))

    size(())


def _target(reference: re.Match[str], place: Place) -> Place:
    """Where a reference leads; each dot in front goes up from the value's own place."""
    dots = len(reference[1])
    home = place[: max(len(place) - dots, 0)] if dots else ()
    return (*home, *re.findall(r"[^.\[\]]+", reference[2]))


def _at(content: Any, place: Place) -> Any:
    for key in place:
        if isinstance(content, dict):
            content = next((value for name, value in content.items() if str(name) == key), None)
        elif isinstance(content, list) and key.isdigit() and int(key) < len(content):
            content = content[int(key)]
        else:
            return None
    return content
