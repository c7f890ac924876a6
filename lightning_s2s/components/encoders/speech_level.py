"""The level of speech without its pauses, and clips brought to one such level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_s2s.components.contracts import lengths_to_mask

FRAME_SEC = 0.02
MARGIN_DB = 15.9
"""A frame counts as speech if it is at most this far below the active level (ITU-T P.56)."""
QUIETEST_DB = -70.0
"""Quieter clips count as this loud: noise is not amplified without bound (the absolute gate of ITU-R BS.1770)."""
ITERATIONS = 8


def active_level_db(waveform: Tensor, lengths: Tensor, sample_rate: int) -> Tensor:
    """Level of the active speech in dB relative to full scale, at least `QUIETEST_DB`.

    The mean power of the 20-ms frames that lie at most 15.9 dB below that mean, found by iteration from the mean of all
    frames. Source: ITU-T P.56 (12/2011), method B, whose margin it takes; instead of an envelope with a hangover of
    0.2 s, frames are gated one by one, so that short pauses don't count either.

    Args:
        waveform: (B, T) float.
        lengths: (B,) int64, samples; what lies behind them is not read.
        sample_rate: Sample rate in Hz.
    Returns:
        (B,) float32.
    """
    frame = round(FRAME_SEC * sample_rate)
    waveform = waveform.float() * lengths_to_mask(lengths, waveform.shape[-1])
    frames = nn.functional.pad(waveform, (0, -waveform.shape[-1] % frame)).unflatten(-1, (-1, frame))
    counts = (lengths.unsqueeze(1) - torch.arange(frames.shape[1], device=lengths.device) * frame).clamp(0, frame)
    energy = frames.square().sum(-1)
    power = energy / counts.clamp(min=1)
    active = counts > 0
    level = energy.new_zeros(len(energy))
    for _ in range(ITERATIONS):
        level = (energy * active).sum(1) / (counts * active).sum(1).clamp(min=1)
        active = (counts > 0) & (power >= level.unsqueeze(1) * 10 ** (-MARGIN_DB / 10))
    return (10 * level.clamp(min=1e-12).log10()).clamp(min=QUIETEST_DB)


def set_active_level(waveform: Tensor, lengths: Tensor, sample_rate: int, level_db: float) -> Tensor:
    """(B, T) -> (B, T) float32, each clip amplified so that its active speech has `level_db`; see `active_level_db`."""
    gain_db = level_db - active_level_db(waveform, lengths, sample_rate)
    return waveform.float() * (10 ** (gain_db / 20)).unsqueeze(1)
