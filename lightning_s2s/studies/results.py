"""The results of a study: values read from its trials, one table, and TensorBoard's HParams."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.evaluation.results import Metric
from lightning_s2s.evaluation.runs import read_training_run
from lightning_s2s.studies.running import is_finished
from lightning_s2s.studies.study import Measure, Settings, StepCommand, Study, Trial, as_text
from lightning_s2s.support.reading import read_json, reading
from lightning_s2s.support.wording import unknown_name

TABLE = "results.md"
Values = Mapping[tuple[str, int], Mapping[str, float]]
"""Variant and seed -> measure -> value, for finished steps."""


@dataclass(frozen=True)
class Spread:
    """One measure of one variant over its seeds.

    Attributes:
        values: One value for each finished seed.
        mean: NaN without values.
        deviation: Standard deviation over the seeds (n - 1); NaN with fewer than two.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


def spread_of(values: Values, variant: str, measure: Measure) -> Spread:
    """The values of a variant over the seeds; NaNs are left out."""
    found = (by_name.get(measure.name, math.nan) for (name, _), by_name in values.items() if name == variant)
    return Spread(tuple(value for value in found if not math.isnan(value)))


def collect(study: Study, trials: Sequence[Trial]) -> tuple[Values, list[str]]:
    """The values of all finished steps, and a line for each that can't be read."""
    values: dict[tuple[str, int], dict[str, float]] = {}
    problems: dict[str, None] = {}
    for trial in trials:
        found = values[trial.variant, trial.seed] = {}
        for measure in study.measures:
            command = trial.commands[measure.step]
            if is_finished(command):
                try:
                    found[measure.name] = read_value(measure, command)
                except ValueError as error:
                    problems[f"{study.path}: measures.{measure.name}: {error}"] = None
    return values, list(problems)


def read_value(measure: Measure, command: StepCommand) -> float:
    """One measure of a finished command.

    Raises:
        ValueError: The command left no such figure.
    """
    if measure.scalar is not None:
        points = read_training_run(command.folder, curves=[measure.scalar]).curves.get(measure.scalar)
        if not points:
            raise ValueError(f"{command.folder}: logged no scalar {measure.scalar!r}")
        return points[-1][1]
    path = command.folder / "figures.json"
    figures = read_json(path)
    if measure.figure not in figures:
        raise ValueError(f"{path}: {unknown_name('figure', str(measure.figure), figures)}")
    with reading(path, f"figure {measure.figure}"):
        return float(figures[measure.figure])


# --- the table ------------------------------------------------------------------------------------------------------


def to_markdown(
    study: Study, trials: Sequence[Trial], values: Values, pictures: Iterable[Path] = (), problems: Iterable[str] = ()
) -> str:
    """The page: means and spread of every variant, the pictures, each trial, the changed options, and the machine.

    Args:
        study: The study.
        trials: Its trials, from `plan`.
        values: The values, from `collect`.
        pictures: Pictures beside the page.
        problems: One line for each failure.
    """
    lines = [f"# {study.title}", "", f"`lightning-s2s ablate {study.path}`", ""]
    if problems := list(problems):
        lines += ["Not complete:", "", *(f"- {problem}" for problem in problems), ""]
    header = [f"{measure.name} ({measure.better})" for measure in study.measures]
    lines += [*_table(["variant", *header], _means(study, values)), ""]
    lines += [
        f"Mean \N{PLUS-MINUS SIGN} standard deviation over {len(study.seeds)} seeds"
        if len(study.seeds) > 1
        else f"One seed ({study.seeds[0]}): no spread is known",
        "(up, down: which way is better; the best mean is bold).",
        "",
    ]
    lines += [part for picture in pictures for part in (f"![{picture.stem.replace('_', ' ')}]({picture.name})", "")]
    each = [
        [
            trial.variant,
            str(trial.seed),
            *(_shown(m, values[trial.variant, trial.seed].get(m.name, math.nan)) for m in study.measures),
        ]
        for trial in trials
    ]
    lines += ["## Runs", "", *_table(["variant", "seed", *(measure.name for measure in study.measures)], each), ""]
    changed = [
        [name, step, "<br>".join(f"`{key}: {as_text(value)}`" for key, value in _given(settings).items())]
        for name, changes in study.variants.items()
        for step, settings in changes.items()
    ]
    lines += ["## What the variants change", "", *_table(["variant", "step", "options"], changed), ""]
    facts = [[key, value] for key, value in describe_hardware().items()]
    lines += ["## Machine", "", "On which this page was written:", "", *_table(["", ""], facts)]
    return "\n".join(lines) + "\n"


def _means(study: Study, values: Values) -> list[list[str]]:
    spreads = {m.name: {name: spread_of(values, name, m) for name in study.variants} for m in study.measures}
    rows = []
    for variant in study.variants:
        row = [variant]
        for measure in study.measures:
            spread = spreads[measure.name][variant]
            means = [other.mean for other in spreads[measure.name].values() if other.values]
            best = means and spread.mean == (max(means) if measure.better == "up" else min(means))
            shown = f"**{_shown(measure, spread.mean)}**" if best else _shown(measure, spread.mean)
            if not math.isnan(spread.deviation):
                shown += f" \N{PLUS-MINUS SIGN} {_shown_deviation(measure, spread.deviation)}"
            if 0 < len(spread.values) < len(study.seeds):
                shown += f" ({len(spread.values)} of {len(study.seeds)} seeds)"
            row.append(shown)
        rows.append(row)
    return rows


def _shown(measure: Measure, value: float) -> str:
    return Metric(measure.name, value, unit=measure.unit).format(value)


def _shown_deviation(measure: Measure, value: float) -> str:
    """As a value, but never 0 where it is only too small to be shown."""
    shown = _shown(measure, value)
    return f"under {_shown(measure, 0.001)}" if value > 0 and shown == _shown(measure, 0.0) else shown


def _given(settings: Settings) -> dict[str, Any]:
    """Options, and the YAML files as one more."""
    return {**({"config": list(settings.configs)} if settings.configs else {}), **settings.options}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + " --- |" * len(header), *lines[1:]]


# --- TensorBoard ----------------------------------------------------------------------------------------------------


def hyperparameters(study: Study) -> dict[str, dict[str, str | float]]:
    """Variant -> step/option -> value, each option of one type in all variants: numbers, or else text."""
    given = {
        variant: {
            f"{step}/{key}": value for step, settings in changes.items() for key, value in _given(settings).items()
        }
        for variant, changes in study.variants.items()
    }
    texts = {key for options in given.values() for key, value in options.items() if type(value) not in (int, float)}
    return {
        variant: {
            "variant": variant,
            **{key: as_text(value) if key in texts else value for key, value in options.items()},
        }
        for variant, options in given.items()
    }


def write_hparams(study: Study, trials: Sequence[Trial], values: Values) -> None:
    """Options and measures of each finished trial, for TensorBoard's HParams page over the study's folder.

    TensorBoard shows the options that it finds in one experiment summary: it lies in the study's folder and names
    those of all variants. A run's own options and measures lie in the run's folder, and replace those of before.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    options = hyperparameters(study)
    every = {key: value for given in options.values() for key, value in given.items()} | {"seed": 0}
    measures = {measure.name: math.nan for measure in study.measures}
    experiment, _, _ = hparams(every, measures)
    _remove_events(study.output_dir)
    with SummaryWriter(str(study.output_dir)) as writer:
        writer.file_writer.add_summary(experiment)
    for trial in trials:
        found = values[trial.variant, trial.seed]
        if found.keys() == measures.keys():
            _remove_events(trial.folder)
            with SummaryWriter(str(trial.folder)) as writer:
                for summary in hparams({**options[trial.variant], "seed": trial.seed}, dict(found))[1:]:
                    writer.file_writer.add_summary(summary)
                for name, value in found.items():
                    writer.add_scalar(name, value, 0)


def _remove_events(folder: Path) -> None:
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
