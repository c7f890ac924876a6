"""`conv`: OpenS2S's adapter, strided convolutions and a bottleneck."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.contracts import Adapter, lengths_to_mask
from lightning_s2s.components.registry import ADAPTERS
from lightning_s2s.support.ranges import Count


@ADAPTERS.register("conv")
class ConvAdapter(Adapter):
    """Convolutions of stride 2 with GLU, a residual bottleneck and LayerNorm: 25 Hz -> 6.25 Hz by default.

    Source: OpenS2S, arXiv:2507.05177, Sec. 2.2, after fairseq's Conv1dSubsampler. Departure by default: padding is set
    to zero; in the published code it leaks into the last positions of the shorter clips of a batch.

    Args:
        kernel_sizes: Kernel size of each convolution; each halves the rate.
        inner_width: Width of the bottleneck.
        silence_padding: Whether to set padding to zero, so that batched equals single; False is as published.
    """

    paper = "arXiv:2507.05177"
    rates = "25 Hz -> 6.25 Hz"
    size = "73M (1280 -> 4096)"

    def __init__(
        self, kernel_sizes: tuple[Count, ...] = (5, 5), inner_width: Count = 512, silence_padding: bool = True
    ):
        super().__init__()
        if not kernel_sizes or any(size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f"adapter conv: kernel_sizes must be odd and at least one; got {list(kernel_sizes)}")
        self.kernel_sizes, self.inner_width = tuple(kernel_sizes), inner_width
        self.silence_padding, self.reads_padding = silence_padding, not silence_padding
        self.downsampling = 2 ** len(kernel_sizes)

    def connect(self, input_width: int, output_width: int, frame_rate_hz: float | None = None) -> None:
        widths = [*[input_width] * (len(self.kernel_sizes) - 1), output_width]
        self.convs = nn.ModuleList(
            nn.Conv1d(input_width, 2 * width, size, stride=2, padding=size // 2)
            for width, size in zip(widths, self.kernel_sizes, strict=True)
        )
        self.fc1 = nn.Linear(output_width, self.inner_width, bias=False)
        self.fc2 = nn.Linear(self.inner_width, output_width, bias=False)
        self.norm = nn.LayerNorm(output_width)

    def forward(self, hidden_states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = hidden_states.to(self.norm.weight.dtype).transpose(1, 2)
        for conv in self.convs:
            if self.silence_padding:
                x = x * lengths_to_mask(lengths, x.shape[-1]).unsqueeze(1)
            x = F.glu(conv(x), dim=1)
            lengths = (lengths - 1) // 2 + 1
        x = x.transpose(1, 2)
        return self.norm(x + self.fc2(F.gelu(self.fc1(x)))), lengths
