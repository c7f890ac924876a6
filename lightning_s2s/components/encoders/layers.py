"""The choice of a pretrained encoder's layer: one, or a weighted sum of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LayerSum(nn.Module):
    """Sum of all layers' hidden states with learnable softmax weights, initially equal.

    Source: SUPERB, Yang et al., arXiv:2105.01051, Sec. 3 (after ELMo).
    """

    def __init__(self, num_layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """`num_layers` hidden states (B, F, D) -> (B, F, D)."""
        shares = self.weights.softmax(0)
        return sum(share * layer for share, layer in zip(shares, hidden_states, strict=True))


def find_layer(layers: int | str, num_hidden_states: int, encoder: str) -> int | None:
    """Index of the hidden state that the option `layers` selects; None for the sum of all.

    Hidden states are numbered as in transformers: 0 is the input of the first layer, 1 the first layer's output, -1 the
    last layer's.

    Args:
        layers: A number, or `weighted`.
        num_hidden_states: Number of hidden states, one more than there are layers.
        encoder: Name of the encoder, for the message.

    Raises:
        ValueError: There is no such hidden state.
    """
    if layers == "weighted":
        return None
    if isinstance(layers, str) or not -num_hidden_states <= layers < num_hidden_states:
        raise ValueError(
            f"{encoder}: layers must be 'weighted' or a number from {-num_hidden_states} to "
            f"{num_hidden_states - 1}; got {layers!r}"
        )
    return layers % num_hidden_states
