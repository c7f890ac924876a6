"""Pictures of a study: quality against latency, and every measure by variant, with the spread over seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_s2s.evaluation.ablation.results import Spread, Values, spread_of
from lightning_s2s.evaluation.ablation.study import Measure, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d1f")
"""Okabe and Ito's, which colour-blind readers can tell apart; the markers differ as well."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLUMNS = 3


def draw_trade_off(study: Study, values: Values) -> Figure | None:
    """A panel for each pair of a quality and a latency; None where the study has no such pair, or no values yet."""
    from matplotlib.figure import Figure

    pairs = [
        (latency, quality)
        for quality in study.measures
        for latency in study.measures
        if (quality.kind, latency.kind) == ("quality", "latency")
        and any(len(found.keys() & {quality.name, latency.name}) == 2 for found in values.values())
    ]
    if not pairs:
        return None
    columns, rows = min(len(pairs), COLUMNS), math.ceil(len(pairs) / COLUMNS)
    drawing = Figure(figsize=(1.2 + 4.4 * columns, 0.9 + 3.6 * rows), dpi=110, layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False).flatten()
    for axes, (latency, quality) in zip(panels, pairs, strict=False):
        for number, variant in enumerate(study.variants):
            across, up = spread_of(values, variant, latency), spread_of(values, variant, quality)
            if across.values and up.values:
                _point(axes, _scaled(across, latency), _scaled(up, quality), number, variant)
        axes.set_xlabel(axis_label(latency))
        axes.set_ylabel(axis_label(quality))
        _plain(axes)
        axes.grid(color="0.9", linewidth=0.8)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False)
    drawing.suptitle(f"{study.title}\n{_seeds(study)}", fontsize=11)
    return drawing


def draw_measures(study: Study, values: Values) -> Figure | None:
    """A panel for each measure, a line for each variant; None without values."""
    from matplotlib.figure import Figure

    measures = [measure for measure in study.measures if any(measure.name in found for found in values.values())]
    if not measures:
        return None
    columns, rows = min(len(measures), COLUMNS), math.ceil(len(measures) / COLUMNS)
    height = 1.2 + 0.38 * len(study.variants)
    drawing = Figure(figsize=(1.4 + 3.5 * columns, 0.7 + height * rows), dpi=110, layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axes, measure in zip(panels, measures, strict=False):
        for number, variant in enumerate(study.variants):
            spread = _scaled(spread_of(values, variant, measure), measure)
            if spread.values:
                row = Spread((float(number),))
                _point(axes, spread, row, number, variant)
        axes.set_xlabel(axis_label(measure))
        axes.set_yticks(range(len(study.variants)), list(study.variants))
        axes.set_ylim(len(study.variants) - 0.5, -0.5)
        _plain(axes)
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.margins(x=0.1)
    for axes in panels[len(measures) :]:
        axes.set_visible(False)
    drawing.suptitle(f"{study.title}\n{_seeds(study)}", fontsize=11)
    return drawing


def axis_label(measure: Measure) -> str:
    """Name, unit and direction: "first audio, seconds (lower is better)"."""
    unit = f", {measure.unit}" if measure.unit else ""
    return f"{measure.name}{unit}\n({'higher' if measure.better == 'up' else 'lower'} is better)"


def _point(axes: Axes, across: Spread, up: Spread, number: int, label: str) -> None:
    """Small marks for the seeds, a large one for the mean, bars of one standard deviation."""
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    if len(across.values) > 1:
        seeds = up.values if len(up.values) == len(across.values) else up.values * len(across.values)
        axes.scatter(across.values, seeds[: len(across.values)], s=14, color=color, alpha=0.45, linewidths=0, zorder=2)
    bars = [None if math.isnan(spread.deviation) else spread.deviation for spread in (across, up)]
    axes.errorbar(
        across.mean,
        up.mean,
        xerr=bars[0],
        yerr=bars[1],
        fmt=marker,
        color=color,
        markersize=8,
        markeredgecolor="white",
        elinewidth=1.4,
        capsize=3,
        label=label,
        zorder=3,
    )


def _scaled(spread: Spread, measure: Measure) -> Spread:
    """Shares as percent."""
    factor = 100.0 if measure.unit == "percent" else 1.0
    return Spread(tuple(factor * value for value in spread.values))


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _seeds(study: Study) -> str:
    count = len(study.seeds)
    if count == 1:
        return f"one seed ({study.seeds[0]})"
    return f"mean and standard deviation over {count} seeds; small: each seed"
