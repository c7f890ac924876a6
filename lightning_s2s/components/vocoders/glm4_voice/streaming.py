"""Units in, sound out, at a cost per chunk that doesn't grow: a window of past mel leads the flow.

The published worker hands ALL past mel to the flow as its prompt. Here the prompt is the mel of the last
`left_context_units`, so the flow always sees prompt + chunk. The last `overlap_units` of a chunk's mel are held back,
made again with the units that follow, and cross-faded. Mel becomes sound through HiFT's window, which is exact: the
streamed waveform is HiFT's waveform of the streamed mel, so its seams can't click.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lightning_s2s.components.vocoders.glm4_voice.flow import UnitToMel
from lightning_s2s.components.vocoders.glm4_voice.hift import HiftGenerator, HiftStreamState


class Decoder(Protocol):
    """What streaming reads of the vocoder; see `Glm4VoiceVocoder`."""

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
    """What a running stream keeps; bounded by the window, whatever was said before.

    Attributes:
        generator: draws the flow's noise frame by frame, so that a frame's noise doesn't depend on chunks.
        units: (B, U) of the window and those that wait, from `first_unit` on.
        first_unit: number of the first of them.
        num_spoken: units that went through the flow.
        noise: (1, C, F) from the window's first frame on.
        mel: (B, C, F) final mel from the window's first frame on.
        held: (B, C, F) mel after it that the next chunk makes again.
        hift: of the mel that became sound.
        closed: nothing may follow.
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
    """The next units (B, U) -> the samples (B, T) that are final now; how units are cut into calls doesn't matter."""
    mel = stream_mel(vocoder, units, state, last)
    if not mel.shape[-1] and state.hift.mel is None:
        return mel.new_zeros(len(units), 0, dtype=torch.float32)
    return vocoder.hift.stream(mel, state.hift, vocoder.seed, last)


def stream_mel(vocoder: Decoder, units: Tensor, state: Glm4VoiceStreamState, last: bool) -> Tensor:
    """The next units (B, U) -> the mel (B, C, F) that is final now.

    Raises:
        ValueError: the stream was closed.
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
    """(1, C, F) drawn frame by frame: the same numbers whether frames are drawn together or one after the other."""
    drawn = [torch.randn(1, num_channels, 1, generator=generator) for _ in range(num_frames)]
    return torch.cat(drawn, dim=-1) if drawn else torch.zeros(1, num_channels, 0)


def _next_mel(vocoder: Decoder, state: Glm4VoiceStreamState, size: int) -> Tensor:
    """Run the flow over the next `size` units behind their context; gives the mel that is final by that."""
    flow = vocoder.flow
    _move_window(vocoder, state)
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
    if state.held is not None and (overlap := state.held.shape[-1]):
        weight = torch.arange(1, overlap + 1, device=mel.device, dtype=mel.dtype) / (overlap + 1)
        blended = weight * mel[..., :overlap] + (1 - weight) * state.held
        mel = torch.cat([blended, mel[..., overlap:]], dim=-1)
    state.num_spoken = end_unit
    settled = flow.num_frames(max(0, end_unit - vocoder.overlap_units)) - first_frame - known
    settled = max(0, settled)  # a last chunk may be shorter than the overlap
    state.held = mel[..., settled:]
    state.mel = torch.cat([prompt.to(mel.dtype), mel[..., :settled]], dim=-1)
    return mel[..., :settled]


def _move_window(vocoder: Decoder, state: Glm4VoiceStreamState) -> None:
    """Forget what lies more than `left_context_units` behind the next unit; the window starts with a block."""
    block = vocoder.flow.config.block_size
    start = max(0, (state.num_spoken - vocoder.left_context_units) // block * block)
    frames = vocoder.flow.num_frames(start) - vocoder.flow.num_frames(state.first_unit)
    state.units = state.units[:, start - state.first_unit :]
    if frames and state.mel is not None and state.noise is not None:
        state.mel, state.noise = state.mel[..., frames:], state.noise[..., frames:]
    state.first_unit = start


def _units_of_frames(vocoder: Decoder, first: int, count: int, device: torch.device) -> Tensor:
    """(F,) the unit that each frame belongs to by its place in time."""
    config = vocoder.flow.config
    frames = torch.arange(first, first + count, dtype=torch.float64)
    return (frames * config.mel_hop_length * config.input_frame_rate / config.sampling_rate).long().to(device)
