"""Block conformer encoder of GLM-4-Voice's decoder: units attend to all earlier units and to their own block.

The convolution and macaron parts of a conformer (Gulati et al., arXiv:2005.08100) are switched off in the published
model, so a layer is relative self-attention (Dai et al., arXiv:1901.02860, App. B) and a feed-forward network.
B batch, U units, D width. Attribute names are those of the published state dict.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers in sequence, under the names that they have in the published state dict."""
    return nn.Sequential(OrderedDict(layers))


def block_causal_mask(length: int, block_size: int, device: torch.device | None = None) -> Tensor:
    """(U, U) bool, True where the row may attend to the column: earlier positions and the row's own block."""
    place = torch.arange(length, device=device)
    block = place // block_size
    return (place.unsqueeze(1) >= place) | (block.unsqueeze(1) == block)


def relative_positions(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """(2 U - 1, D) sinusoids of the distances U - 1 .. -(U - 1) between query and key."""
    distance = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * -(math.log(10_000.0) / width))
    return torch.stack([(distance * rate).sin(), (distance * rate).cos()], dim=-1).flatten(1)


class BlockRelativeAttention(nn.Module):
    """Self-attention with relative positions inside a block-causal mask."""

    def __init__(self, width: int, num_heads: int, block_size: int):
        super().__init__()
        self.num_heads, self.block_size = num_heads, block_size
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(num_heads, width // num_heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(num_heads, width // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, U, D) -> (B, U, D)."""
        batch, length, width = x.shape

        def heads(values: Tensor) -> Tensor:
            return values.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

        query, key, value = heads(self.linear_q(x)), heads(self.linear_k(x)), heads(self.linear_v(x))
        position = heads(self.linear_pos(relative_positions(length, width, x.device).to(x.dtype)))
        by_distance = (query + self.pos_bias_v.unsqueeze(1)) @ position.transpose(-2, -1)  # (B, H, U, 2 U - 1)
        place = torch.arange(length, device=x.device)
        column = (length - 1 - place.unsqueeze(1) + place).expand(batch, self.num_heads, -1, -1)
        bias = by_distance.gather(-1, column) / math.sqrt(width // self.num_heads)
        hidden = ~block_causal_mask(length, self.block_size, x.device)
        bias = bias.masked_fill(hidden, -math.inf)
        mixed = F.scaled_dot_product_attention(query + self.pos_bias_u.unsqueeze(1), key, value, attn_mask=bias)
        return self.linear_out(mixed.transpose(1, 2).flatten(2))


class ConformerLayer(nn.Module):
    """Pre-norm attention and feed-forward network, each with a residual connection."""

    def __init__(self, width: int, num_heads: int, inner: int, block_size: int):
        super().__init__()
        self.self_attn = BlockRelativeAttention(width, num_heads, block_size)
        self.feed_forward = named(w_1=nn.Linear(width, inner), silu=nn.SiLU(), w_2=nn.Linear(inner, width))
        self.norm_ff = nn.LayerNorm(width)
        self.norm_mha = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, U, D) -> (B, U, D)."""
        x = x + self.self_attn(self.norm_mha(x))
        return x + self.feed_forward(self.norm_ff(x))


class BlockConformerEncoder(nn.Module):
    """Unit embeddings -> hidden states at the same rate.

    A block's output depends only on its own and earlier blocks, and on relative, not absolute, positions.

    Args:
        input_width: Width of the embeddings.
        width: Width of the hidden states.
        num_heads: Number of attention heads.
        inner: Width of the feed-forward network.
        num_layers: Number of layers.
        block_size: Units in a block.
    """

    def __init__(self, input_width: int, width: int, num_heads: int, inner: int, num_layers: int, block_size: int):
        super().__init__()
        self.width = width
        self.embed = named(out=nn.Sequential(nn.Linear(input_width, width), nn.LayerNorm(width)))
        self.encoders = nn.ModuleList(ConformerLayer(width, num_heads, inner, block_size) for _ in range(num_layers))
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, U, D_in) -> (B, U, D)."""
        x = self.embed(x) * math.sqrt(self.width)
        for layer in self.encoders:
            x = layer(x)
        return self.after_norm(x)
