"""Results of a study: the table, and plots of quality against latency and of every measure by variant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lightning_s2s.studies.results import TABLE, Spread, Values, collect, to_markdown, write_hparams
from lightning_s2s.studies.study import Measure, Study, Trial
from lightning_s2s.support.files import replacing, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d1f")
"""The palette of Okabe and Ito, which colour-blind readers can tell apart; the markers differ as well."""
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "*")
COLUMNS = 3


def write_results(study: Study, trials: Sequence[Trial], failures: Iterable[str] = ()) -> list[str]:
    """Write the table, plots and HParams of all finished trials.

    Args:
        study: The study.
        trials: Its trials, from `plan`.
        failures: One line per command that failed.
    Returns:
        One line per failed command or unreadable value.
    """
    values, unread = collect(study, trials)
    problems = [*failures, *unread]
    pictures = []
    for name, draw in (("quality_and_latency.png", draw_trade_off), ("measures.png", draw_measures)):
        drawing = draw(study, values)
        if drawing is not None:
            pictures.append(study.output_dir / name)
            with replacing(pictures[-1]) as temporary:
                drawing.savefig(temporary)
    write_hparams(study, trials, values)
    page = to_markdown(study, trials, values, pictures, problems)
    write_text(study.output_dir / TABLE, page)
    return problems


def draw_trade_off(study: Study, values: Values) -> Figure | None:
    """A panel for each pair of a quality and a latency; None if the study has no such pair, or no values yet."""
    from matplotlib.figure import Figure

    pairs = [
        (latency, quality)
        for quality in study.measures
        for latency in study.measures
        if (quality.kind, latency.kind) == ("quality", "latency")
        and any(points_of(values, variant, latency, quality) for variant in study.variants)
    ]
    if not pairs:
        return None
    columns, rows = min(len(pairs), COLUMNS), math.ceil(len(pairs) / COLUMNS)
    drawing = Figure(figsize=(1.2 + 4.4 * columns, 0.9 + 3.6 * rows), dpi=110, layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False).flatten()
    for axes, (latency, quality) in zip(panels, pairs, strict=False):
        for number, variant in enumerate(study.variants):
            _point(axes, points_of(values, variant, latency, quality), number, variant)
        axes.set_xlabel(axis_label(latency))
        axes.set_ylabel(axis_label(quality))
        _plain(axes)
        axes.grid(color="0.9", linewidth=0.8)
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[1]))
    drawing.legend(handles, labels, loc="outside right center", frameon=False)
    drawing.suptitle(f"{study.title}\n{_seeds(study)}", fontsize=11)
    return drawing


def draw_measures(study: Study, values: Values) -> Figure | None:
    """A panel for each measure with a row for each variant; None without values."""
    from matplotlib.figure import Figure

    measures = [m for m in study.measures if any(points_of(values, variant, m) for variant in study.variants)]
    if not measures:
        return None
    columns, rows = min(len(measures), COLUMNS), math.ceil(len(measures) / COLUMNS)
    height = 1.2 + 0.38 * len(study.variants)
    drawing = Figure(figsize=(1.4 + 3.5 * columns, 0.7 + height * rows), dpi=110, layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axes, measure in zip(panels, measures, strict=False):
        for number, variant in enumerate(study.variants):
            _point(axes, [(x, number) for (x,) in points_of(values, variant, measure)], number, variant)
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


def points_of(values: Values, variant: str, *measures: Measure) -> list[tuple[float, ...]]:
    """One point per seed of a variant that has all of these measures; shares become percentages."""
    scale = [100.0 if measure.unit == "percent" else 1.0 for measure in measures]
    found = [
        tuple(factor * by_name.get(measure.name, math.nan) for factor, measure in zip(scale, measures, strict=True))
        for (name, _), by_name in values.items()
        if name == variant
    ]
    return [point for point in found if not any(map(math.isnan, point))]


def _point(axes: Axes, points: Sequence[tuple[float, ...]], number: int, label: str) -> None:
    """Draw small marks for the seeds, a large one for their mean, and bars of one standard deviation."""
    if not points:
        return
    across, up = (Spread(values) for values in zip(*points, strict=True))
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    if len(points) > 1:
        axes.scatter(across.values, up.values, s=16, color=color, alpha=0.5, linewidths=0, zorder=2)
    bars = [spread.deviation if spread.deviation > 0 else None for spread in (across, up)]
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


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.locator_params(axis="x", nbins=5)


def _seeds(study: Study) -> str:
    count = len(study.seeds)
    if count == 1:
        return f"one seed ({study.seeds[0]})"
    return f"mean and standard deviation over {count} seeds; small marks: single seeds"
