"""Unfinished work of `units` and `construct`, and files that one command leaves for another, spoilt."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from parts.fuzzing.mutations import Case, Seeds, change_bytes, change_tree, deep_json, nonsense
from parts.fuzzing.seeds import units_options

UNITS = "journals/units.jsonl.partial"
CONSTRUCTION = "journals/construction"


def _changed(content: bytes, random: Random) -> tuple[bytes, str, tuple[str, ...]]:
    """A journal with one line spoilt, or lines missing, twice or cut."""
    lines = content.splitlines(keepends=True)
    number = random.randrange(len(lines))
    way = random.choice(["tree", "tree", "tree", "value", "cut", "missing", "twice", "deep", "bytes"])
    names: tuple[str, ...] = ()
    if way == "tree":
        change = change_tree(json.loads(lines[number]), random)
        lines[number], way, names = json.dumps(change.tree).encode() + b"\n", change.what, change.names
    elif way == "value":
        value: Any = nonsense(random)
        lines[number], way = json.dumps(value).encode() + b"\n", repr(value)[:60]
    elif way == "cut":
        lines[number] = lines[number][: random.randrange(len(lines[number]))] + random.choice([b"", b"\n"])
    elif way == "missing":
        del lines[number]
    elif way == "twice":
        lines.insert(number, lines[number])
    elif way == "deep":
        lines[number] = deep_json(random) + b"\n"
    else:
        lines[number], way = change_bytes(lines[number], random)
    return b"".join(lines), f"line {number + 1}: {way}", names


def journal_of_units(seeds: Seeds, random: Random) -> Case:
    content, what, names = _changed(seeds.bytes(UNITS), random)
    call = ("cli", "units", *units_options(seeds.folder), seeds.path("speech.jsonl"), "units.jsonl")
    return Case(call, f"journal of units, {what}", {"units.jsonl.partial": content}, names=names)


def journal_of_construction(seeds: Seeds, random: Random) -> Case:
    journals = [name for name in seeds.files(CONSTRUCTION) if name.endswith(".jsonl")]
    name = random.choice(journals)
    content, what, names = _changed(seeds.bytes(f"{CONSTRUCTION}/{name}"), random)
    call = ("cli", "construct", "--config", seeds.path("construction.yaml"))
    return Case(
        call, f"journal {name}, {what}", {f"construction/{name}": content}, {"construction": CONSTRUCTION},
        names=(*names, name),
    )  # fmt: skip


def other_file_of_construction(seeds: Seeds, random: Random) -> Case:
    others = [name for name in seeds.files(CONSTRUCTION) if seeds.bytes(f"{CONSTRUCTION}/{name}")]
    name = random.choice(others)
    content, what = change_bytes(seeds.bytes(f"{CONSTRUCTION}/{name}"), random)
    call = ("cli", "construct", "--config", seeds.path("construction.yaml"))
    return Case(
        call, f"{name} of construct: {what}", {f"construction/{name}": content}, {"construction": CONSTRUCTION},
        names=(name,),
    )  # fmt: skip


JOURNALS = (journal_of_units, journal_of_units, journal_of_units, journal_of_construction, other_file_of_construction)
