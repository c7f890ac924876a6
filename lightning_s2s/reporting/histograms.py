"""Histograms of what filters measured, as values of the macro `histogram`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = {"kept": "kept", "lost": "left out for this figure", "other": "left out for something else"}
"""What became of a dialogue: CSS class -> legend."""
MAX_BINS = 24
WIDTH, HEIGHT = 240, 60


def histogram(name: str, values: Mapping[str, Sequence[float]], limits: Mapping[str, float]) -> dict[str, Any]:
    """Stacked bars of one figure, by what became of the dialogues.

    Args:
        name: Name of the figure.
        values: Each of KINDS -> values of its dialogues.
        limits: `above` or `below` -> the limit beyond which a dialogue is left out.
    """
    everything = [value for group in values.values() for value in group]
    whole = all(value == int(value) for value in everything)
    edges = _edges([*everything, *limits.values()], whole)
    # Bars of whole numbers are centred on them, so that a limit lies between two bars.
    shift = {"above": 0.5, "below": -0.5} if whole else {"above": 0.0, "below": 0.0}
    facts = [f"{len(values[kind])} {words}" for kind, words in KINDS.items() if len(values[kind])]
    facts += [f"limit: {side} {limit:g}" for side, limit in limits.items()]
    facts += [f"median of those kept {np.median(values['kept']):.3g}"] if len(values["kept"]) else []
    ends = (edges[0] + 0.5, edges[-1] - 0.5) if whole else (edges[0], edges[-1])
    return {
        "name": name,
        "width": WIDTH,
        "height": HEIGHT,
        "range": f"{min(everything):.3g} to {max(everything):.3g}",
        "ends": [f"{end:.3g}" for end in ends],
        "facts": facts,
        "bars": _bars(edges, {kind: np.histogram(group, edges)[0] for kind, group in values.items()}),
        "limits": [WIDTH * (limit + shift[side] - edges[0]) / (edges[-1] - edges[0]) for side, limit in limits.items()],
    }


def _bars(edges: np.ndarray, counts: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Rectangles of all bins, those of one bin on top of each other."""
    scale = (HEIGHT - 2) / max(1, np.sum(list(counts.values()), axis=0).max())
    width = WIDTH / (len(edges) - 1)
    bars = []
    for number in range(len(edges) - 1):
        base = float(HEIGHT)
        for kind, words in KINDS.items():
            count = int(counts[kind][number])
            if not count:
                continue
            height = max(1.5, count * scale)  # one among thousands must remain visible
            base = max(0.0, base - height)
            title = f"{edges[number]:.3g} to {edges[number + 1]:.3g}: {count} {words}"
            bar = {"kind": kind, "x": number * width, "y": base, "width": max(1.0, width - 1), "height": height}
            bars.append({**bar, "title": title})
    return bars


def _edges(values: Sequence[float], whole: bool) -> np.ndarray:
    """Edges of the bins: they start from 0 if it is near, and lie between whole numbers if all values are whole."""
    low, high = min(values), max(values)
    if 0 <= low <= high / 2:
        low = 0.0
    if whole:
        step = math.ceil((high - low + 1) / MAX_BINS)
        return np.arange(math.floor(low) - 0.5, math.ceil(high) + 0.5 + step, step)
    return np.linspace(low, high if high > low else low + 1, MAX_BINS + 1)
