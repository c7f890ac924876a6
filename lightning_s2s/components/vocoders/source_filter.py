"""Speech as pitch, envelope and aperiodicity: analysis, and a synthesis that streams.

The model of speech that WORLD uses (Morise et al., IEICE Trans. 2016): a pulse train and a noise, each shaped by a
filter that changes in time. The synthesis has no look-ahead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_PITCH_HZ, MAX_PITCH_HZ = 70.0, 500.0
REFERENCE_PITCH_HZ = 200.0


class SpeechParameters(NamedTuple):
    """Speech parameters at the end of each frame.

    Attributes:
        log_pitch: (B, F) natural logarithm of the pitch over 200 Hz, also in unvoiced frames.
        log_envelope: (B, F, num_bands) natural logarithm of the amplitude density.
        aperiodicity: (B, F, num_noise_bands) amplitude share of the noise, 0 to 1.
    """

    log_pitch: Tensor
    log_envelope: Tensor
    aperiodicity: Tensor


@dataclass
class SynthesisState:
    """State of a stream: the phase of the pulses, the last parameters, and the tail of the filters.

    `phase` and `cycles` (per sample) are float64 and stay on the CPU.
    """

    phase: Tensor | None = None
    cycles: Tensor | None = None
    filters: tuple[Tensor, Tensor] | None = None
    tail: Tensor | None = None
    num_frames: int = 0


class HarmonicNoiseSynthesizer(nn.Module):
    """`SpeechParameters` -> waveform.

    Within a frame the pitch moves linearly, and the filters of the previous and of this frame are cross-faded.

    Args:
        sample_rate: Sample rate in Hz.
        hop_length: Samples per frame.
        num_bands: Points of the envelope, equally spaced in mel.
        num_noise_bands: Points of the aperiodicity, equally spaced in mel.
        fft_size: FFT size of the filters; minimum-phase responses are at most `fft_size - hop_length` samples long.
    """

    bands: Tensor
    noise_bands: Tensor
    rise: Tensor
    noise: Tensor
    fold: Tensor

    def __init__(
        self,
        sample_rate: int = 16_000,
        hop_length: int = 160,
        num_bands: int = 80,
        num_noise_bands: int = 24,
        fft_size: int = 1024,
    ):
        super().__init__()
        self.sample_rate, self.hop_length, self.fft_size = sample_rate, hop_length, fft_size
        self.num_bands, self.num_noise_bands = num_bands, num_noise_bands
        self.register_buffer("bands", mel_interpolation(num_bands, fft_size, sample_rate), persistent=False)
        self.register_buffer("noise_bands", mel_interpolation(num_noise_bands, fft_size, sample_rate), persistent=False)
        rise = (torch.arange(hop_length) + 0.5) / hop_length
        self.register_buffer("rise", torch.sin(0.5 * math.pi * rise) ** 2, persistent=False)
        # The same ten seconds of noise for every stream: chunks join, and a batch equals its members.
        noise = torch.randn(1000 * hop_length, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise.reshape(1000, hop_length), persistent=False)
        # Cepstrum -> minimum phase: the anticausal half is folded onto the causal one.
        fold = torch.zeros(fft_size)
        fold[0] = fold[fft_size // 2] = 1.0
        fold[1 : fft_size // 2] = 2.0
        self.register_buffer("fold", fold, persistent=False)

    def forward(self, parameters: SpeechParameters, state: SynthesisState) -> Tensor:
        """Synthesise F frames -> (B, F * hop_length); the stream's `state` is updated in place."""
        log_pitch, log_envelope, aperiodicity = parameters
        batch, num_frames = log_pitch.shape
        if not num_frames:
            return log_pitch.new_zeros(batch, 0)
        pulses = self._pulses(log_pitch, state)
        index = (state.num_frames + torch.arange(num_frames, device=log_pitch.device)) % len(self.noise)
        noise = self.noise[index].expand(batch, -1, -1)
        state.num_frames += num_frames

        envelope = log_envelope @ self.bands
        share = (aperiodicity @ self.noise_bands).clamp(1e-3, 1 - 1e-3)
        filters = (
            self._minimum_phase(envelope + 0.5 * torch.log1p(-(share**2))),
            self._minimum_phase(envelope + share.log()),
        )
        if state.filters is None:
            state.filters = (filters[0][:, :1], filters[1][:, :1])
        spectrum = torch.zeros((), device=log_pitch.device)
        for source, current, last in zip((pulses, noise), filters, state.filters, strict=True):
            before = torch.cat([last, current[:, :-1]], dim=1)
            spectrum = (
                spectrum
                + torch.fft.rfft(source * self.rise, self.fft_size) * current
                + torch.fft.rfft(source * self.rise.flip(0), self.fft_size) * before
            )
        state.filters = (filters[0][:, -1:], filters[1][:, -1:])
        return self._overlap_add(torch.fft.irfft(spectrum, self.fft_size), state)

    def _pulses(self, log_pitch: Tensor, state: SynthesisState) -> Tensor:
        """(B, F) log pitch -> (B, F, hop_length) band-limited pulses of unit power density."""
        hop = self.hop_length
        # Frame by frame in float64, so that rounding doesn't depend on the chunks; on the CPU, since some accelerators
        # lack float64.
        cycles = log_pitch.cpu().double().exp() * (REFERENCE_PITCH_HZ / self.sample_rate)
        before = torch.cat([cycles[:, :1] if state.cycles is None else state.cycles, cycles[:, :-1]], dim=1)
        start = cycles.new_zeros(len(cycles), 1) if state.phase is None else state.phase
        starts = torch.cat([start, start + (before * hop + (cycles - before) * (hop + 1) / 2).cumsum(1)], dim=1) % 1.0
        state.cycles, state.phase = cycles[:, -1:], starts[:, -1:]

        def per_sample(x: Tensor) -> Tensor:
            return x.to(log_pitch.device, self.rise.dtype).unsqueeze(-1)

        # Sample n of a frame lies n steps of `before`, plus the share of a linear rise, after the frame's start.
        n = torch.arange(1, hop + 1, device=log_pitch.device)
        phase = (
            per_sample(starts[:, :-1]) + per_sample(before) * n + per_sample(cycles - before) * n * (n + 1) / 2 / hop
        )
        step = per_sample(before) + per_sample(cycles - before) * n / hop
        angle = 2 * math.pi * (phase - phase.round())
        # Harmonics up to the Nyquist rate; the highest one fades in and out, or it would click as the pitch changes.
        room = (0.5 / step).clamp(min=1)
        full = room.floor() - 1
        half = torch.sin(angle / 2)
        near = half.abs() < 1e-5
        ratio = torch.where(near, 2 * full + 1, torch.sin((full + 0.5) * angle) / half.masked_fill(near, 1.0))
        return (ratio - 1 + 2 * (room - room.floor()) * torch.cos((full + 1) * angle)) * step.sqrt()

    def _minimum_phase(self, log_magnitude: Tensor) -> Tensor:
        """(..., bins) natural log magnitude -> complex response of the minimum-phase filter."""
        cepstrum = torch.fft.irfft(log_magnitude, self.fft_size) * self.fold
        return torch.fft.rfft(cepstrum, self.fft_size).exp()

    def _overlap_add(self, blocks: Tensor, state: SynthesisState) -> Tensor:
        """(B, F, fft_size) at a distance of hop_length -> (B, F * hop_length); the tail is kept in the state."""
        batch, num_frames, size = blocks.shape
        length = (num_frames - 1) * self.hop_length + size
        signal = F.fold(blocks.transpose(1, 2), (1, length), (1, size), stride=(1, self.hop_length))[:, 0, 0]
        if state.tail is not None:
            signal = torch.cat([signal[:, : state.tail.shape[1]] + state.tail, signal[:, state.tail.shape[1] :]], dim=1)
        state.tail = signal[:, num_frames * self.hop_length :]
        return signal[:, : num_frames * self.hop_length]

    def analyse(self, waveform: np.ndarray) -> tuple[SpeechParameters, Tensor]:
        """Speech parameters of a recording, by WORLD (package pyworld).

        Args:
            waveform: (T,) float32 at the synthesiser's rate.

        Returns:
            Parameters with B = 1 and F = T // hop_length, and (1, F) bool, True where voiced. The pitch is interpolated
            in unvoiced frames.
        """
        try:
            import pyworld
        except ImportError:
            raise ValueError("speech analysis needs pyworld: pip install 'lightning-s2s[construction]'") from None

        num_frames = len(waveform) // self.hop_length
        # Digital silence has no envelope: it is replaced by noise at -100 dB.
        signal = waveform + 1e-5 * np.random.default_rng(0).standard_normal(len(waveform))
        period_ms = 1000.0 * self.hop_length / self.sample_rate
        # Harvest: with the faster DIO the same synthesis sounds worse (DistillMOS 3.4 instead of 4.0).
        pitch, times = pyworld.harvest(
            signal, self.sample_rate, f0_floor=MIN_PITCH_HZ, f0_ceil=MAX_PITCH_HZ, frame_period=period_ms
        )
        pitch, times = pitch[1 : num_frames + 1], times[1 : num_frames + 1]
        pitch = pyworld.stonemask(signal, pitch, times, self.sample_rate)
        density = pyworld.cheaptrick(signal, pitch, times, self.sample_rate, fft_size=self.fft_size)
        noise = pyworld.d4c(signal, pitch, times, self.sample_rate, fft_size=self.fft_size)
        voiced = pitch > 0
        log_pitch = np.zeros(num_frames)
        if voiced.any():
            known = np.log(pitch[voiced] / REFERENCE_PITCH_HZ)
            log_pitch = np.interp(np.arange(num_frames), np.flatnonzero(voiced), known)
        parameters = SpeechParameters(
            torch.from_numpy(log_pitch).float()[None],
            torch.from_numpy(at_mel_points(0.5 * np.log(density), self.num_bands, self.sample_rate)).float()[None],
            torch.from_numpy(at_mel_points(noise, self.num_noise_bands, self.sample_rate)).float()[None],
        )
        return parameters, torch.from_numpy(voiced)[None]


def mel_interpolation(num_bands: int, fft_size: int, sample_rate: int) -> Tensor:
    """(num_bands, bins): values at points equally spaced in mel -> values at the bins, linear in between."""
    bins = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1)
    mel = 2595 * torch.log10(1 + bins / 700)
    position = mel / mel[-1] * (num_bands - 1)
    points = torch.arange(num_bands)
    return (1 - (position.unsqueeze(0) - points.unsqueeze(1)).abs()).clamp(min=0)


def at_mel_points(spectrum: np.ndarray, num_bands: int, sample_rate: int) -> np.ndarray:
    """(F, bins) -> (F, num_bands): values at points equally spaced in mel."""
    mel = np.linspace(0, 2595 * np.log10(1 + 0.5 * sample_rate / 700), num_bands)
    position = 700 * (10 ** (mel / 2595) - 1) / (0.5 * sample_rate) * (spectrum.shape[1] - 1)
    below = np.minimum(position.astype(int), spectrum.shape[1] - 2)
    share = position - below
    return spectrum[:, below] * (1 - share) + spectrum[:, below + 1] * share
