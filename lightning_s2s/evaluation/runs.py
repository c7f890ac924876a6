"""Training runs as the report shows them, read from TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CURVES = ("train/loss", "val/text_loss", "val/unit_loss", "val/loss")
MAX_POINTS = 200


@dataclass(frozen=True)
class TrainingRun:
    """One training run behind an evaluated model.

    Attributes:
        name: Heading, such as "1_understanding".
        facts: Label -> text, such as {"last step": "600", "logged over": "3 min 20 s"}.
        curves: Metric -> its (step, value) points.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)


def read_training_run(folder: str | Path, name: str | None = None, curves: Sequence[str] = CURVES) -> TrainingRun:
    """Steps, duration and curves of a run; the parts of a run that was stopped and resumed are joined.

    Args:
        folder: Folder of the run; its event files may lie anywhere below.
        name: Heading; None takes the folder's name.
        curves: Metrics to read if the run logged them, thinned to 200 points each.

    Raises:
        ValueError: `folder` has no event files below it.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(folder)
    files = sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.name)
    if not files:
        raise ValueError(f"run: there are no TensorBoard files (events.out.tfevents.*) below {str(folder)!r}")
    points: dict[str, dict[int, float]] = {}
    seconds, last_step = 0.0, 0
    for path in files:
        # Only scalars are read in full: audio and images may be large.
        part = EventAccumulator(str(path), {"scalars": 0, "audio": 1, "images": 1, "histograms": 1, "tensors": 1})
        part.Reload()
        times = []
        for tag in part.Tags()["scalars"]:
            events = part.Scalars(tag)
            times += [event.wall_time for event in events]
            last_step = max(last_step, *(event.step for event in events))
            if tag in curves:
                points.setdefault(tag, {}).update({event.step: event.value for event in events})
        seconds += max(times) - min(times) if times else 0.0
    facts = {"last step": f"{last_step:,}", "logged over": _duration(seconds)}
    thinned = {tag: _thin(sorted(points[tag].items())) for tag in curves if tag in points}
    return TrainingRun(name or folder.name, facts, thinned)


def _thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most MAX_POINTS of the points, always including the last."""
    stride = -(-len(points) // MAX_POINTS)
    return points[::-1][::stride][::-1] if points else points


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
