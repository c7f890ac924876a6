"""`linear`: frames stacked, then an MLP."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.contracts import Adapter, lengths_to_mask
from lightning_s2s.components.registry import ADAPTERS
from lightning_s2s.support.ranges import Count


@ADAPTERS.register("linear")
class LinearAdapter(Adapter):
    """Consecutive frames stacked into one vector, then an MLP with one hidden layer: 25 Hz -> 5 Hz by default.

    Source: SLAM-LLM, Ma et al., arXiv:2402.08846, Sec. 3.1; LLaMA-Omni, Fang et al., arXiv:2409.06666, Sec. 2.3.
    Departures: GELU in place of ReLU; a partial last group is padded with zeros, not dropped, so that the end of the
    question is kept.

    Args:
        downsampling: Number of frames stacked into one vector.
        hidden_width: Width of the MLP's hidden layer.
        layer_norm: Whether to add a LayerNorm at the end, as in `conv`; the papers have none.
    """

    paper = "arXiv:2402.08846"
    rates = "25 Hz -> 5 Hz"
    size = "22M (1280 -> 4096)"

    def __init__(self, downsampling: Count = 5, hidden_width: Count = 2048, layer_norm: bool = False):
        super().__init__()
        self.downsampling = self.num_stacked = downsampling
        self.hidden_width, self.layer_norm = hidden_width, layer_norm

    def connect(self, input_width: int, output_width: int, frame_rate_hz: float | None = None) -> None:
        self.fc1 = nn.Linear(input_width * self.num_stacked, self.hidden_width)
        self.fc2 = nn.Linear(self.hidden_width, output_width)
        self.norm = nn.LayerNorm(output_width) if self.layer_norm else nn.Identity()

    def forward(self, hidden_states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = hidden_states.shape[1]
        x = hidden_states.to(self.fc1.weight.dtype) * lengths_to_mask(lengths, frames).unsqueeze(-1)
        x = F.pad(x, (0, 0, 0, -frames % self.num_stacked))
        x = x.unflatten(1, (-1, self.num_stacked)).flatten(2)
        return self.norm(self.fc2(F.gelu(self.fc1(x)))), -(-lengths // self.num_stacked)
