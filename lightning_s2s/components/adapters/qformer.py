"""`qformer`: learnt queries attend to one window of audio after another."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.contracts import Adapter, lengths_to_mask
from lightning_s2s.components.registry import ADAPTERS
from lightning_s2s.support.ranges import Count, Layers, Range, Share


@ADAPTERS.register("qformer")
class QformerAdapter(Adapter):
    """Window-level Q-Former: a fixed number of learnt queries for each second of audio, 6 Hz by default.

    The frames are cut into windows; in each, the same queries attend to each other and to the window's frames, in
    Transformer layers, and become the LLM's positions. A partial window has as many positions as a full one.
    Source: SALMONN, Tang et al., arXiv:2310.13289, Sec. 3.1 (windows of 1/3 s with one query each, two layers).
    Departures: trained from scratch, not from BERT; the frames of a window have learnt positions.

    Args:
        window_sec: Length of a window in seconds, rounded to whole frames of the encoder.
        num_queries: Number of queries, which is the number of positions for a window.
        width: Width of the queries.
        num_layers: Number of Transformer layers.
        num_heads: Number of attention heads.
        dropout: Dropout in the Transformer.

    Raises:
        ValueError: `width` is no multiple of `num_heads`.
    """

    paper = "arXiv:2310.13289"
    rates = "any -> 6 Hz"
    size = "23M (1280 -> 4096)"

    def __init__(
        self,
        window_sec: Annotated[float, Range(0, 3_600, above=True)] = 1.0,
        num_queries: Count = 6,
        width: Count = 768,
        num_layers: Layers = 2,
        num_heads: Count = 12,
        dropout: Share = 0.0,
    ):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"adapter qformer: width must be a multiple of num_heads ({num_heads}); got {width}")
        self.window_sec, self.num_queries, self.width = window_sec, num_queries, width
        layer = nn.TransformerDecoderLayer(
            width, num_heads, 4 * width, dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, num_layers, nn.LayerNorm(width))
        self.queries = nn.Parameter(torch.randn(num_queries, width) * 0.02)

    def connect(self, input_width: int, output_width: int, frame_rate_hz: float | None = None) -> None:
        """Build the layers between the widths, for windows at the encoder's frame rate.

        Raises:
            ValueError: The frame rate is missing, or a window holds no frame.
        """
        if frame_rate_hz is None:
            raise ValueError("adapter qformer: needs the encoder's frame_rate_hz, to cut windows of window_sec")
        self.window_frames = round(self.window_sec * frame_rate_hz)
        if self.window_frames < 1:
            raise ValueError(
                f"adapter qformer: window_sec {self.window_sec} holds no frame of the encoder's {frame_rate_hz} Hz"
            )
        self.downsampling = self.window_frames / self.num_queries
        self.input = nn.Linear(input_width, self.width)
        self.input_norm = nn.LayerNorm(self.width)
        self.positions = nn.Parameter(torch.randn(self.window_frames, self.width) * 0.02)
        self.output = nn.Linear(self.width, output_width)

    def forward(self, hidden_states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        batch, frames, _ = hidden_states.shape
        x = self.input_norm(self.input(hidden_states.to(self.input.weight.dtype)))
        x = F.pad(x, (0, 0, 0, -frames % self.window_frames))
        windows = x.unflatten(1, (-1, self.window_frames)) + self.positions  # (B, W, frames of a window, width)
        valid = lengths_to_mask(lengths, x.shape[1]).unflatten(1, (-1, self.window_frames))
        used = valid.any(-1)  # windows of padding are skipped: attention to nothing gives NaN
        queries = self.queries.expand(int(used.sum()), -1, -1)
        outputs = self.output(self.layers(queries, windows[used], memory_key_padding_mask=~valid[used]))
        joined = outputs.new_zeros(batch, windows.shape[1], self.num_queries, outputs.shape[-1])
        joined[used] = outputs
        return joined.flatten(1, 2), -(-lengths // self.window_frames) * self.num_queries
