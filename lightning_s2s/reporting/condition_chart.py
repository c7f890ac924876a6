"""The figure of robustness: what is understood under each condition, as values of the macro `condition_chart`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_s2s.evaluation.results import ConditionScores

MEASURES = {"heard": "emotion recognised", "fits": "reply fits", "pairs": "reply fits, minimal pairs"}
"""CSS class of a measure -> its legend."""
TICKS = (0, 25, 50, 75, 100)
OFFSETS = {"heard": -6, "fits": 0, "pairs": 6}
"""CSS class of a measure -> how far below the middle of its row it is drawn, so that equal values don't hide."""
LABEL_WIDTH, SCALE_WIDTH, MARGIN = 220, 400, 24
ROW_HEIGHT, AXIS_HEIGHT = 30, 22


def condition_chart(scores: Sequence[ConditionScores]) -> dict[str, Any]:
    """One row per condition with a mark for each measure, and a dash at the level of chance.

    Args:
        scores: Scores of each condition, in the order of the rows.
    """
    rows = []
    for number, of in enumerate(scores):
        middle = ROW_HEIGHT * (number + 0.5)
        values = {"heard": of.heard, "fits": of.fits, "pairs": of.pairs_fit}
        marks = [
            {
                "kind": kind,
                "x": _x(value),
                "y": middle + OFFSETS[kind],
                "title": f"{MEASURES[kind]}: {100 * value:.0f} %",
            }
            for kind, value in values.items()
            if not math.isnan(value)
        ]
        title = of.title if len(of.title) <= 34 else of.title[:33] + "\N{HORIZONTAL ELLIPSIS}"
        rows.append({"title": title, "y": middle, "chance": _x(of.chance), "marks": marks})
    height = ROW_HEIGHT * len(scores)
    return {
        "width": LABEL_WIDTH + SCALE_WIDTH + MARGIN,
        "height": height + AXIS_HEIGHT,
        "bottom": height,
        "label_x": LABEL_WIDTH - MARGIN,
        "ticks": [{"x": _x(tick / 100), "text": f"{tick} %"} for tick in TICKS],
        "rows": rows,
        "measures": MEASURES,
        "summary": "; ".join(f"{of.title}: {100 * of.heard:.0f} % of the emotions recognised" for of in scores),
    }


def _x(share: float) -> float:
    return LABEL_WIDTH + SCALE_WIDTH * share
