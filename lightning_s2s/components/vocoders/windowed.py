"""Streams of decoders that look at a whole reply: a window of bounded cost instead, cross-faded at its seams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """What a chunk sees, in frames.

    Attributes:
        chunk: frames that become sound together.
        left: past frames in front of them.
        right: frames behind them that must be known; the first of them is spoken twice, and cross-faded.
    """

    chunk: int
    left: int
    right: int


@dataclass
class WindowState:
    """A running stream.

    Attributes:
        codes: (B, K, F) of the window and those that wait.
        num_past: frames of them that were spoken.
        faded: (B, T) how the last window would have gone on.
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
    """The next codes (B, K, F) -> the samples (B, T) that are final now; how codes are cut into calls doesn't matter.

    Args:
        decode: codes (B, K, F) -> (B, F * samples_per_frame).
        codes: may have no frames.
        state: changed in place.
        last: no codes follow.
        window: what a chunk sees.
        samples_per_frame: of `decode`.
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
            overlap = state.faded.shape[1]
            weight = torch.arange(1, overlap + 1, device=sound.device, dtype=sound.dtype) / (overlap + 1)
            sound = torch.cat([torch.lerp(state.faded, sound[:, :overlap], weight), sound[:, overlap:]], dim=1)
        end = size * samples_per_frame
        pieces.append(sound[:, :end])
        state.faded = sound[:, end : end + samples_per_frame]
        forgotten = max(0, state.num_past + size - window.left)
        state.codes = state.codes[..., forgotten:]
        state.num_past += size - forgotten
