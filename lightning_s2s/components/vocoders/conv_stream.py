"""Streaming for convolutional decoders: the same samples as in one shot, without recomputing anything.

A library's decoder takes a whole reply. Here its layers are called one by one, and what each needs of the past (the end
of its input, an LSTM's state) is kept apart from the weights. Layers with look-ahead return their output as soon as it
is final, so the delay is the decoder's own look-ahead and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class ConvStream:
    """State of a stream; its size depends on the layers, not on the length of the reply.

    Attributes:
        past: (B, C, F) end of each convolution's input so far.
        opening: First frames of a convolution with reflection padding, until there are enough to reflect.
        seen: Number of frames that each transposed convolution was given.
        memory: Hidden and cell state of each LSTM.
        ahead: Outputs of the two branches of a sum, as far as the other branch is behind.
    """

    past: dict[nn.Module, Tensor] = field(default_factory=dict)
    opening: dict[nn.Module, Tensor] = field(default_factory=dict)
    seen: dict[nn.Module, int] = field(default_factory=dict)
    memory: dict[nn.Module, Any] = field(default_factory=dict)
    ahead: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def conv(
        self,
        layer: nn.Conv1d,
        x: Tensor,
        last: bool,
        lookahead: int | None = None,
        mode: Literal["constant", "reflect"] = "constant",
    ) -> Tensor:
        """Pass frames (B, C, F) through a convolution of stride 1 and return the output that is final now (B, C', F').

        Args:
            layer: A layer without weight norm. One-shot, its padding or that of its wrapper keeps the number of frames.
            x: The next frames; there may be none.
            last: Whether no frames follow.
            lookahead: Future frames that an output depends on; None takes the padding of the layer itself.
            mode: Padding mode at the start of the stream; at its end, zeros are padded.
        """
        span = (layer.kernel_size[0] - 1) * layer.dilation[0]
        left = _own_padding(layer) if lookahead is None else span - lookahead
        if layer not in self.past:
            x = torch.cat([self.opening.pop(layer, x[..., :0]), x], dim=-1)
            if not x.shape[-1] or (mode == "reflect" and x.shape[-1] <= left and not last):
                self.opening[layer] = x
                return x.new_zeros(len(x), layer.out_channels, 0)
            x = pad_front(x, left, mode)
        else:
            x = torch.cat([self.past[layer], x], dim=-1)
        if last:
            x = F.pad(x, (0, span - left))
        self.past[layer] = x[..., max(0, x.shape[-1] - span) :]
        if x.shape[-1] <= span:
            return x.new_zeros(len(x), layer.out_channels, 0)
        return F.conv1d(x, layer.weight, layer.bias, dilation=layer.dilation, groups=layer.groups)

    def transposed(self, layer: nn.ConvTranspose1d, x: Tensor, last: bool, causal: bool = False) -> Tensor:
        """Pass frames (B, C, F) through a transposed convolution and return the output that is final now (B, C', F').

        Args:
            layer: The layer; its padding trims the output at both ends.
            x: The next frames; there may be none.
            last: Whether no frames follow.
            causal: Whether the layer's wrapper trims everything beyond the last frame's stride.
        """
        kernel, stride, cut = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        seen, past = self.seen.get(layer, 0), self.past.get(layer, x[..., :0])
        total = seen + x.shape[-1]
        # In untrimmed samples, frame i contributes to i * stride up to i * stride + kernel.
        start, stop = max(cut, seen * stride), total * stride
        if last and total and not causal:
            stop = (total - 1) * stride + kernel - cut
        x = torch.cat([past, x], dim=-1)
        self.seen[layer] = total
        self.past[layer] = x[..., max(0, x.shape[-1] - (kernel - 1) // stride) :]
        if stop <= start:
            return x.new_zeros(len(x), layer.out_channels, 0)
        first = (seen - past.shape[-1]) * stride + cut
        return layer(x)[..., start - first : stop - first]

    def lstm(self, layer: nn.LSTM, x: Tensor) -> Tensor:
        """Pass frames (B, C, F) through an LSTM -> (B, C', F)."""
        if not x.shape[-1]:
            return x
        y, self.memory[layer] = layer(x.permute(2, 0, 1), self.memory.get(layer))
        return y.permute(1, 2, 0)

    def add(self, block: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """The sum of two branches of `block`, as far as both are available."""
        if block in self.ahead:
            first, second = (torch.cat(pair, dim=-1) for pair in zip(self.ahead[block], (first, second), strict=True))
        ready = min(first.shape[-1], second.shape[-1])
        self.ahead[block] = first[..., ready:], second[..., ready:]
        return first[..., :ready] + second[..., :ready]


def pad_front(x: Tensor, size: int, mode: str) -> Tensor:
    """(B, C, F) -> (B, C, size + F); if there is too little to reflect, zeros take the place of future frames."""
    missing = max(0, size + 1 - x.shape[-1]) if mode == "reflect" else 0
    padded = F.pad(F.pad(x, (0, missing)), (size, 0), mode)
    return padded[..., : padded.shape[-1] - missing]


def _own_padding(layer: nn.Conv1d) -> int:
    """Frames that the layer pads at each side."""
    if layer.padding == "same":
        return (layer.kernel_size[0] - 1) * layer.dilation[0] // 2
    return int(layer.padding[0])


# --- SEANet, the decoder of EnCodec and Mimi --------------------------------------------------------------------------


def stream_seanet(layers: Any, x: Tensor, state: ConvStream, last: bool) -> Tensor:
    """Pass frames (B, C, F) through a causal SEANet decoder (Tagliasacchi et al., arXiv:2009.02095).

    Handles the layers of the package encodec and of transformers (EnCodec, Mimi): wrappers around torch's layers that
    pad and trim, and residual blocks with `block` and `shortcut`.
    """
    for layer in layers:
        x = _stream_layer(layer, x, state, last)
    return x


def _stream_layer(layer: Any, x: Tensor, state: ConvStream, last: bool) -> Tensor:
    if hasattr(layer, "block"):
        return state.add(
            layer, stream_seanet(layer.block, x, state, last), _stream_layer(layer.shortcut, x, state, last)
        )
    for inner in layer.modules():
        if isinstance(inner, nn.Conv1d):
            return state.conv(inner, x, last, lookahead=0, mode=layer.pad_mode)
        if isinstance(inner, nn.ConvTranspose1d):
            return state.transposed(inner, x, last, causal=True)
        if isinstance(inner, nn.LSTM):
            return state.lstm(inner, x) + x
    return layer(x)


def fold_weight_norms(module: nn.Module) -> None:
    """Remove weight norm from all layers of the module; the weights stay the same."""
    for layer in module.modules():
        if nn.utils.parametrize.is_parametrized(layer, "weight"):
            nn.utils.parametrize.remove_parametrizations(layer, "weight")
        elif hasattr(layer, "weight_g"):
            nn.utils.remove_weight_norm(layer)
