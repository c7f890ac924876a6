"""Streaming synthesis at a constant cost per chunk: a bounded window of past mel is the flow's prompt.

The published worker prompts the flow with ALL past mel. Here the prompt is the mel of the last `left_context_units`, so
the flow always runs over prompt + chunk. The mel of a chunk's last `overlap_units` is held back, recomputed with the
units that follow, and cross-faded. HiFT's window is exact: the streamed waveform is HiFT's waveform of the streamed
mel, so there are no clicks at the chunk boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lightning_s2s.components.vocoders.glm4_voice.flow import UnitToMel
from lightning_s2s.components.vocoders.glm4_voice.hift import HiftGenerator, HiftStreamState
from lightning_s2s.components.vocoders.windowed import cross_fade


class Decoder(Protocol):
    """The parts of `Glm4VoiceVocoder` that streaming uses."""

    flow: UnitToMel
    hift: HiftGenerator
    first_chunk_units: int
    chunk_units: int
    left_context_units: int
    overlap_units: int
    num_steps: int
    guidance: float
    seed: int


@dataclass
class Glm4VoiceStreamState:
    """State of a stream; its size is bounded by the window.

    Attributes:
        generator: Draws the flow's noise frame by frame, so that it doesn't depend on how the units are chunked.
        units: (B, U) units of the window and pending units, from `first_unit` on.
        first_unit: Index of the first of these units.
        num_spoken: Units that went through the flow.
        noise: (1, C, F) noise from the window's first frame on.
        mel: (B, C, F) final mel from the window's first frame on.
        held: (B, C, F) mel after it that the next chunk recomputes.
        hift: State of HiFT.
        closed: Whether the last units were given.
    """

    generator: torch.Generator
    units: Tensor | None = None
    first_unit: int = 0
    num_spoken: int = 0
    noise: Tensor | None = None
    mel: Tensor | None = None
    held: Tensor | None = None
    hift: HiftStreamState = field(default_factory=HiftStreamState)
    closed: bool = False


def stream_units(vocoder: Decoder, units: Tensor, state: Glm4VoiceStreamState, last: bool) -> Tensor:
    """Append units (B, U) and return the samples (B, T) that are final now, however the units are split into calls."""
    mel = stream_mel(vocoder, units, state, last)
    if not mel.shape[-1] and state.hift.mel is None:
        return mel.new_zeros(len(units), 0, dtype=torch.float32)
    return vocoder.hift.stream(mel, state.hift, vocoder.seed, last)


def stream_mel(vocoder: Decoder, units: Tensor, state: Glm4VoiceStreamState, last: bool) -> Tensor:
    """Append units (B, U) and return the mel (B, C, F) that is final now.

    Raises:
        ValueError: The stream was closed.
    """
    if state.closed:
        raise ValueError("this stream was closed by last=True; start a new one")
    state.units = units if state.units is None else torch.cat([state.units, units], dim=1)
    state.closed = last
    chunks: list[Tensor] = []
    while True:
        waiting = state.first_unit + state.units.shape[1] - state.num_spoken
        size = vocoder.chunk_units if state.num_spoken else vocoder.first_chunk_units
        if waiting < size and not (last and waiting):
            break
        chunks.append(_next_mel(vocoder, state, min(size, waiting)))
    if last and state.held is not None:
        chunks.append(state.held)
    if not chunks:
        return torch.zeros(len(units), vocoder.flow.config.output_size, 0, device=units.device)
    return torch.cat(chunks, dim=-1)


def frame_noise(generator: torch.Generator, num_channels: int, num_frames: int) -> Tensor:
    """(1, C, F) drawn frame by frame: the same values whether frames are drawn together or one at a time."""
    drawn = [torch.randn(1, num_channels, 1, generator=generator) for _ in range(num_frames)]
    return torch.cat(drawn, dim=-1) if drawn else torch.zeros(1, num_channels, 0)


def _next_mel(vocoder: Decoder, state: Glm4VoiceStreamState, size: int) -> Tensor:
    """Run the flow over the next `size` units after their context, and return the mel that is final now."""
    flow = vocoder.flow
    _move_window(vocoder, state)
    assert state.units is not None
    first_frame, end_unit = flow.num_frames(state.first_unit), state.num_spoken + size
    num_frames = flow.num_frames(end_unit) - first_frame
    known_noise = frame_noise(state.generator, flow.config.output_size, 0) if state.noise is None else state.noise
    more_noise = frame_noise(state.generator, flow.config.output_size, num_frames - known_noise.shape[-1])
    state.noise = torch.cat([known_noise, more_noise], dim=-1)
    hidden = flow.encode(state.units[:, : end_unit - state.first_unit])
    repeated = hidden[..., _units_of_frames(vocoder, first_frame, num_frames, hidden.device) - state.first_unit]
    prompt = repeated[..., :0] if state.mel is None else state.mel
    known = prompt.shape[-1]
    mel = flow.solve(repeated, state.noise, prompt, vocoder.num_steps, vocoder.guidance)[..., known:]
    mel = mel if state.held is None else cross_fade(state.held, mel)
    state.num_spoken = end_unit
    settled = flow.num_frames(max(0, end_unit - vocoder.overlap_units)) - first_frame - known
    settled = max(0, settled)  # a last chunk may be shorter than the overlap
    state.held = mel[..., settled:]
    state.mel = torch.cat([prompt.to(mel.dtype), mel[..., :settled]], dim=-1)
    return mel[..., :settled]


def _move_window(vocoder: Decoder, state: Glm4VoiceStreamState) -> None:
    """Drop what lies more than `left_context_units` behind the next unit; the window starts at a block boundary."""
    block = vocoder.flow.config.block_size
    start = max(0, (state.num_spoken - vocoder.left_context_units) // block * block)
    frames = vocoder.flow.num_frames(start) - vocoder.flow.num_frames(state.first_unit)
    assert state.units is not None
    state.units = state.units[:, start - state.first_unit :]
    if frames and state.mel is not None and state.noise is not None:
        state.mel, state.noise = state.mel[..., frames:], state.noise[..., frames:]
    state.first_unit = start


def _units_of_frames(vocoder: Decoder, first: int, count: int, device: torch.device) -> Tensor:
    """(F,) index of the unit that each frame belongs to in time."""
    config = vocoder.flow.config
    frames = torch.arange(first, first + count, dtype=torch.float64)
    return (frames * config.mel_hop_length * config.input_frame_rate / config.sampling_rate).long().to(device)
