"""Training runs as the report shows them, read from TensorBoard's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_s2s.evaluation.answer import Run

CURVES = ("train/loss", "val/text_loss", "val/unit_loss", "val/loss")
MAX_POINTS = 200


def read_run(folder: str | Path, name: str | None = None, curves: Sequence[str] = CURVES) -> Run:
    """The steps, the time and the curves of a run, joined over the parts of one that was stopped and resumed.

    Args:
        folder: a run's folder; TensorBoard's files lie anywhere below it.
        name: shown as the heading; the folder's name when None.
        curves: metrics to keep where the run has them, thinned to 200 points.

    Raises:
        ValueError: there are no TensorBoard files below `folder`.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(folder)
    files = sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.name)
    if not files:
        raise ValueError(f"run: there are no TensorBoard files (events.out.tfevents.*) below {str(folder)!r}")
    points: dict[str, dict[int, float]] = {}
    seconds, last_step = 0.0, 0
    for path in files:
        # Scalars alone: audio and pictures may be large.
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
    return Run(name or folder.name, facts, {tag: _thin(sorted(points[tag].items())) for tag in curves if tag in points})


def _thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most MAX_POINTS of the points, the last one among them."""
    stride = -(-len(points) // MAX_POINTS)
    return points[::-1][::stride][::-1] if points else points


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
