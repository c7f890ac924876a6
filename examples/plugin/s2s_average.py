"""`average`: an adapter without convolutions, in a package of its own."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_s2s.components.contracts import Adapter, lengths_to_mask
from lightning_s2s.components.registry import ADAPTERS


@ADAPTERS.register("average")
class AverageAdapter(Adapter):
    """Mean of every few frames, then a linear layer and LayerNorm: 25 Hz -> 6.25 Hz by default.

    The last position of a clip is the mean of the frames that are left.

    Args:
        downsampling: frames averaged into one position.
    """

    rates = "25 Hz -> 6.25 Hz"

    def __init__(self, downsampling: int = 4):
        super().__init__()
        if downsampling < 1:
            raise ValueError(f"adapter average: downsampling must be at least 1; got {downsampling}")
        self.downsampling = downsampling

    def connect(self, input_width: int, output_width: int, frame_rate_hz: float | None = None) -> None:
        self.linear = nn.Linear(input_width, output_width)
        self.norm = nn.LayerNorm(output_width)

    def forward(self, hidden_states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        valid = lengths_to_mask(lengths, hidden_states.shape[1]).unsqueeze(-1).to(hidden_states.dtype)
        padding = (0, 0, 0, -hidden_states.shape[1] % self.downsampling)
        sums = nn.functional.pad(hidden_states * valid, padding).unflatten(1, (-1, self.downsampling)).sum(2)
        counts = nn.functional.pad(valid, padding).unflatten(1, (-1, self.downsampling)).sum(2).clamp(min=1)
        return self.norm(self.linear(sums / counts)), (lengths + self.downsampling - 1) // self.downsampling
