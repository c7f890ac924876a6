"""Which layer of a pretrained encoder is heard: one, or a learnt sum of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LayerSum(nn.Module):
    """Sum of all layers' hidden states with learnable weights, a softmax that begins equal.

    Source: SUPERB, Yang et al., arXiv:2105.01051, Sec. 3 (after ELMo).

    Args:
        num_layers: hidden states to sum.
    """

    def __init__(self, num_layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """As many (B, F, D) as there are weights -> (B, F, D)."""
        shares = self.weights.softmax(0)
        return sum(share * layer for share, layer in zip(shares, hidden_states, strict=True))


def find_layer(layers: int | str, num_hidden_states: int, encoder: str) -> int | None:
    """The option `layers` -> the place among the hidden states; None for the sum of all.

    Hidden states count as transformers has them: 0 is the input of the first layer, 1 the first layer's output, -1 the
    last layer's.

    Args:
        layers: a number, or `weighted`.
        num_hidden_states: one more than there are layers.
        encoder: who asks, for the message.

    Raises:
        ValueError: there is no such layer.
    """
    if layers == "weighted":
        return None
    if isinstance(layers, str) or not -num_hidden_states <= layers < num_hidden_states:
        raise ValueError(
            f"{encoder}: layers must be 'weighted' or a number from {-num_hidden_states} to "
            f"{num_hidden_states - 1}; got {layers!r}"
        )
    return layers % num_hidden_states
