"""TensorBoard's files, read back."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events(folder: Path) -> EventAccumulator:
    """All that a `TensorBoardLogger(folder, name="", version="run")` has written."""
    kinds = ("scalars", "images", "audio", "histograms", "tensors")
    accumulator = EventAccumulator(str(folder / "run"), size_guidance=dict.fromkeys(kinds, 0))
    accumulator.Reload()
    return accumulator


def text_of(accumulator: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    """Steps and texts."""
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in accumulator.Tensors(f"{tag}/text_summary")]
