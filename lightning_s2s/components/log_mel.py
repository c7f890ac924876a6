"""The log-mel spectrogram of encoders, the pocket codec and the audio logger."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LogMelSpectrogram(nn.Module):
    """Natural-log mel spectrogram of 16 kHz speech, one frame for each full hop.

    Frame f is centred on hop f: the waveform is padded by (win - hop) / 2 samples at both ends, so that
    F = T // hop_length, and mel frames, units and samples are aligned without an offset.

    Args:
        sample_rate: Sample rate in Hz.
        num_mels: Number of bands, from 0 Hz to half the sample rate (Slaney scale and norm).
        hop_length: Samples between frames.
        win_length: Samples of the Hann window, also the FFT size.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, sample_rate: int = 16_000, num_mels: int = 80, hop_length: int = 160, win_length: int = 640):
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.hop_length, self.win_length = hop_length, win_length
        filters = mel_filter_bank(
            win_length // 2 + 1, num_mels, 0.0, sample_rate / 2, sample_rate, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32).T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, T) -> (B, num_mels, T // hop_length), always float32."""
        pad = (self.win_length - self.hop_length) // 2
        padded = nn.functional.pad(waveform.float(), (pad, pad))
        spectrum = torch.stft(
            padded, self.win_length, self.hop_length, window=self.window.float(), center=False, return_complex=True
        )
        with torch.autocast(waveform.device.type, enabled=False):
            return (self.filters.float() @ spectrum.abs()).clamp(min=1e-5).log()
