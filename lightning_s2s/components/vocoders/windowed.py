"""Streaming for decoders that need the whole reply: a sliding window of bounded cost, cross-faded at its boundaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Sizes of the window, in frames.

    Attributes:
        chunk: Frames that are decoded together.
        left: Past frames before the chunk.
        right: Frames of look-ahead after the chunk; the first of them is decoded twice, and cross-faded.
    """

    chunk: int
    left: int
    right: int


@dataclass
class WindowState:
    """State of a stream.

    Attributes:
        codes: (B, K, F) codes of the window and pending codes.
        num_past: How many of these frames were decoded.
        faded: (B, T) continuation of the last chunk, to be cross-faded with the next.
    """

    codes: Tensor | None = None
    num_past: int = 0
    faded: Tensor | None = None


def stream_window(
    decode: Callable[[Tensor], Tensor],
    codes: Tensor,
    state: WindowState,
    last: bool,
    window: Window,
    samples_per_frame: int,
) -> Tensor:
    """Append codes (B, K, F) and return the samples (B, T) that are final now, however codes are split into calls.

    Args:
        decode: Maps codes (B, K, F) to (B, F * samples_per_frame).
        codes: The next codes; may have no frames.
        state: State of the stream, updated in place.
        last: Whether no codes follow.
        window: Sizes of the window.
        samples_per_frame: Samples that `decode` returns for a frame.
    """
    state.codes = codes if state.codes is None else torch.cat([state.codes, codes], dim=-1)
    pieces = [torch.zeros(len(codes), 0, device=codes.device)]
    while True:
        waiting = state.codes.shape[-1] - state.num_past
        if not waiting or (waiting < window.chunk + window.right and not last):
            return torch.cat(pieces, dim=1)
        size = min(window.chunk, waiting)
        seen = state.num_past + min(size + window.right, waiting)
        sound = decode(state.codes[..., :seen])[:, state.num_past * samples_per_frame :]
        if state.faded is not None:
            sound = cross_fade(state.faded, sound)
        end = size * samples_per_frame
        pieces.append(sound[:, :end])
        state.faded = sound[:, end : end + samples_per_frame]
        dropped = max(0, state.num_past + size - window.left)
        state.codes = state.codes[..., dropped:]
        state.num_past += size - dropped


def cross_fade(before: Tensor, after: Tensor) -> Tensor:
    """(..., n) and (..., N) -> (..., N): the first n positions fade linearly from `before` to `after`."""
    overlap = before.shape[-1]
    weight = torch.arange(1, overlap + 1, device=after.device, dtype=after.dtype) / (overlap + 1)
    return torch.cat([torch.lerp(before, after[..., :overlap], weight), after[..., overlap:]], dim=-1)
