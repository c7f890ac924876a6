"""Minimal pairs, and the order in which pages show emotions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from lightning_s2s.data.tasks import EMOTIONS

Item = TypeVar("Item")


def in_order(names: Iterable[str], usual: Sequence[str] = EMOTIONS) -> list[str]:
    """The distinct names: those of `usual` in its order, then the others alphabetically."""
    found = set(names)
    return [name for name in usual if name in found] + sorted(found - set(usual))


def group_pairs(items: Sequence[Item], pair: Callable[[Item], str], emotion: Callable[[Item], str]) -> list[list[Item]]:
    """Group the items of each pair.

    Args:
        items: Items to group.
        pair: Item -> name of its pair.
        emotion: Item -> its emotion.
    Returns:
        Groups in the order of their first items, each sorted by emotion.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(pair(item), []).append(item)
    order = in_order(map(emotion, items))
    return [sorted(group, key=lambda item: order.index(emotion(item))) for group in groups.values()]
