"""`lightning-s2s components`: what can stand in each slot."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from lightning_s2s.commands.messages import CommandError
from lightning_s2s.components.registry import REGISTRY, ComponentInfo
from lightning_s2s.support.extras import install_command, missing_packages

WIDTH = 120
BLOCK = re.compile(r"(<!-- components -->\n).*?(<!-- /components -->)", re.DOTALL)
"""Where a Markdown file has the table."""


def components(*, json_: bool = False, markdown: str | None = None) -> None:
    """List the encoders, adapters, LLMs, speech decoders and vocoders.

    Args:
        json_: Print a list with one object for each component, for machines.
        markdown: Write the built-in components as a table into this file, between <!-- components --> and
            <!-- /components -->; a dash prints the table.

    Raises:
        CommandError: The file has no place for the table.
    """
    if json_ and markdown is not None:
        raise CommandError("--json and --markdown exclude each other: give one")
    infos = REGISTRY.list()
    if json_:
        print(json.dumps([as_json(info) for info in infos], indent=2))
    elif markdown is None:
        print(as_text(infos), end="")
    elif markdown == "-":
        print(as_table(infos), end="")
    else:
        put_table(Path(markdown), infos)


def as_text(infos: Sequence[ComponentInfo]) -> str:
    """One paragraph for each component below the name of its slot, in lines of at most `WIDTH` characters."""
    name_width = max((len(info.name) for info in infos), default=0)
    indent = " " * (name_width + 4)
    lines = []
    for kind, group in groupby(infos, key=lambda info: info.kind):
        lines.append(kind)
        for info in group:
            needs = f"needs {install_command(info.extra)}" if missing_packages(info.extra) else f"extra {info.extra}"
            facts = [info.rates, info.licence and f"weights: {info.licence}", info.extra and needs]
            facts_and_summary = (" | ".join(fact for fact in facts if fact), info.summary)
            paragraph = [line for text in facts_and_summary for line in textwrap.wrap(text, WIDTH - len(indent))]
            lines += [f"{indent}{line}".rstrip() for line in paragraph]
            lines[-len(paragraph)] = f"  {info.name:<{name_width}}  {paragraph[0]}"
    return "".join(f"{line}\n" for line in lines)


def as_json(info: ComponentInfo) -> dict[str, object]:
    """All that is known about a component; `install` is the command for its extra, "" if nothing is missing."""
    missing = missing_packages(info.extra)
    return asdict(info) | {"missing_packages": missing, "install": install_command(info.extra) if missing else ""}


def as_table(infos: Sequence[ComponentInfo]) -> str:
    """The built-in components as a Markdown table, the same on every machine."""
    rows = ["| slot | name | what it is | paper | rates | size | licence | extra |", f"|{' --- |' * 8}"]
    for info in infos:
        if info.is_built_in:
            name, extra = f"`{info.name}`", info.extra and f"`{info.extra}`"
            cells = [info.kind, name, info.summary, _link(info.paper), info.rates, info.size, info.licence, extra]
            rows.append("".join(f"| {cell.replace('|', chr(92) + '|')} " if cell else "| " for cell in cells) + "|")
    return "".join(f"{row}\n" for row in rows)


def put_table(path: Path, infos: Sequence[ComponentInfo]) -> None:
    """Write the table between the marks of a Markdown file.

    Raises:
        CommandError: There is no such file, or one of the marks is missing.
    """
    if not path.is_file():
        raise CommandError(f"--markdown {path}: no such file")
    text = path.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise CommandError(f"--markdown {path}: needs a line <!-- components --> and, below it, <!-- /components -->")
    table = as_table(infos)
    path.write_text(BLOCK.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", text), encoding="utf-8")


def _link(paper: str) -> str:
    """Papers on arXiv become links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[\1](https://arxiv.org/abs/\1)", paper)
