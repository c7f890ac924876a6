"""Reads a data card back: its metadata, tables and bullets."""

from __future__ import annotations

import re

import yaml


def metadata_of(text: str) -> dict:
    start, head, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head)


def plain(text: str) -> str:
    """Markdown without the backslashes that keep its signs from being markup."""
    return re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", text)


def table(text: str, first_column: str) -> list[list[str]]:
    """The table whose first column has this heading, without its rule: cells by line."""
    found = text[text.index(f"| {first_column} |") :].partition("\n\n")[0].splitlines()
    lines = [[plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found]
    assert set(lines[1]) == {"---"} and len({len(line) for line in lines}) == 1
    return [lines[0], *lines[2:]]


def bullet(text: str, label: str) -> str:
    """What the bullet of this label says."""
    (found,) = re.findall(rf"^- \*\*{re.escape(label)}\*\*: (.*)$", text, re.MULTILINE)
    return plain(found)
