"""The N:M schedule of the speech decoder: one object for the training layout and for streaming.

The decoder reads `[speaker][N conditions][M units][N conditions][M units]...`; when one side runs out, the rest of the
other follows. Source: OpenS2S, arXiv:2507.05177, Sec. 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_s2s.data.batch import IGNORE_INDEX


@dataclass(frozen=True)
class InterleaveLayout:
    """The order of the inputs in a batch of interleaved sequences.

    Attributes:
        source: (M, L) int64, index into the concatenation `[speaker, units..., conditions...]`; 0 in the padding.
        labels: (M, L) int64, the unit at each position; -100 at positions without one.
        mask: (M, L) bool, True where valid.
    """

    source: Tensor
    labels: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Interleave:
    """The schedule N:M: N conditions, then M units, and so on.

    Args:
        num_conditions: N.
        num_units: M.
    """

    num_conditions: int
    num_units: int

    def __post_init__(self) -> None:
        if self.num_conditions < 1 or self.num_units < 1:
            raise ValueError(f"interleave {self}: both numbers must be at least 1")

    @classmethod
    def parse(cls, text: str) -> Interleave:
        """'4:8' -> N = 4, M = 8."""
        match = re.fullmatch(r"(\d+):(\d+)", text.strip())
        if not match:
            raise ValueError(f"interleave {text!r}: expected 'N:M', for example '4:8'")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.num_conditions}:{self.num_units}"

    def layout(self, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor) -> InterleaveLayout:
        """The training layout.

        Args:
            condition_lengths: (M,) int64.
            units: (M, U) int64, right-padded, including eos.
            unit_lengths: (M,) int64, including eos.
        """
        device, batch = units.device, units.shape[0]
        conditions, total = condition_lengths.unsqueeze(1), unit_lengths.unsqueeze(1)
        length = int((1 + condition_lengths + unit_lengths).max()) if batch else 1
        max_conditions = int(condition_lengths.max()) if batch else 0

        index = torch.arange(max_conditions, device=device).expand(batch, -1)
        before = (index // self.num_conditions * self.num_units).minimum(total)
        condition_positions = torch.where(index < conditions, 1 + index + before, length)

        unit_index = torch.arange(units.shape[1], device=device).expand(batch, -1)
        before = ((unit_index // self.num_units + 1) * self.num_conditions).minimum(conditions)
        unit_positions = torch.where(unit_index < total, 1 + unit_index + before, length)

        # Padding is scattered into an extra column, which is cut off.
        source = torch.zeros(batch, length + 1, dtype=torch.long, device=device)
        source.scatter_(1, condition_positions, 1 + units.shape[1] + index)
        source.scatter_(1, unit_positions, 1 + unit_index)
        labels = torch.full((batch, length + 1), IGNORE_INDEX, dtype=torch.long, device=device)
        labels.scatter_(1, unit_positions, units)
        lengths = 1 + condition_lengths + unit_lengths
        mask = torch.arange(length, device=device) < lengths.unsqueeze(1)
        return InterleaveLayout(source[:, :length], labels[:, :length], mask)

    def units_due(self, num_conditions: int, num_units: int, last: bool) -> int | None:
        """In streaming: number of units to draw now, after so many conditions and units; None means until eos."""
        if last:
            return None
        return num_conditions // self.num_conditions * self.num_units - num_units
