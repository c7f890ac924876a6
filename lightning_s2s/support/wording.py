"""The wording of messages about unknown names: near names, then all names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def near_names(name: str, allowed: Iterable[str]) -> str:
    """The allowed names with the most similar spelling, joined by "or"; empty if none is similar.

    A name inside a group, such as `optimizer.lr`, is also found by its last part.
    """
    likeness = {
        other: max(difflib.SequenceMatcher(None, name, known).ratio() for known in (other, other.rpartition(".")[2]))
        for other in allowed
    }
    best = max(likeness.values(), default=0.0)
    near = [other for other, ratio in likeness.items() if ratio >= max(0.6, best - 0.03)]
    return " or ".join(sorted(near, key=lambda other: (-likeness[other], other))[:3])


def unknown_name(what: str, name: str, allowed: Iterable[str]) -> str:
    """The wording for a name that does not exist: what it is, near names, then all names."""
    names = sorted(allowed)
    near = near_names(name, names)
    hint = f"did you mean {near}? " if near else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(names) or 'none'}"


def counted(counts: Mapping[str, int]) -> str:
    """The wording for what was counted by reason: `3 x no such file; 1 x another split`."""
    return "; ".join(f"{count} x {reason}" for reason, count in sorted(counts.items()))


def unknown_suffix(option: str, path: object, allowed: Iterable[str]) -> str:
    """The wording for a file name whose suffix names no format that can be written."""
    return f"{option} {path}: the name must end in {' or '.join(allowed)}"
