"""`mel`: a small Transformer over log-mel, trained from scratch."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.contracts import AudioEncoder, lengths_to_mask
from lightning_s2s.components.encoders.specaugment import SpecAugment
from lightning_s2s.components.encoders.speech_level import set_active_level
from lightning_s2s.components.log_mel import LogMelSpectrogram
from lightning_s2s.components.registry import ENCODERS
from lightning_s2s.components.weights import load_weights
from lightning_s2s.support.ranges import Count, Layers, Natural, NonNegative, Range, Share


@ENCODERS.register("mel")
class MelEncoder(AudioEncoder):
    """Log-mel, two strided convolutions and a Transformer: 16 kHz -> 25 Hz, a few MB, for training from scratch.

    The spectrogram is not normalised, since loudness and brightness carry emotion. But a clip's level depends on the
    microphone as much as on the voice: `active_level_db` removes it, and keeps how loudness changes within the clip.

    Args:
        checkpoint: Folder with the weights of a trained encoder of the same sizes; None starts from random weights.
        width: Width of the hidden states.
        num_layers: Number of Transformer layers.
        num_heads: Number of attention heads.
        dropout: Dropout in the Transformer.
        time_masks: Number of SpecAugment masks over time in training (Park et al., arXiv:1904.08779).
        mel_masks: Number of SpecAugment masks over mel bands in training.
        time_mask_sec: Longest mask over time, in seconds.
        mel_mask_bands: Widest mask over mel bands, of 80.
        gain_db: Largest random change of a clip's level in training, in dB.
        mel_warp: Largest random stretching of a clip's mel axis in training, as a share; imitates other vocal tracts
            (Jaitly & Hinton, 2013).
        time_warp: Largest random stretching of a batch's time axis in training, as a share.
        active_level_db: Level in dB relative to full scale to which each clip's active speech is brought before the
            spectrogram, such as -26; None leaves the level as it is.
    """

    rates = "16 kHz -> 25 Hz"
    size = "2.1M"
    sample_rate = 16_000
    frame_rate_hz = 25.0

    def __init__(
        self,
        checkpoint: str | None = None,
        width: Count = 192,
        num_layers: Layers = 4,
        num_heads: Count = 4,
        dropout: Share = 0.1,
        time_masks: Natural = 2,
        mel_masks: Natural = 2,
        gain_db: Annotated[float, Range(0, 100)] = 2.0,
        mel_warp: Share = 0.12,
        time_warp: Share = 0.08,
        time_mask_sec: NonNegative = 0.2,
        mel_mask_bands: Natural = 12,
        active_level_db: Annotated[float, Range(-60, 0)] | None = None,
    ):
        super().__init__()
        self.width, self.gain_db, self.active_level_db = width, gain_db, active_level_db
        self.mel_warp, self.time_warp = mel_warp, time_warp
        self.mel = LogMelSpectrogram(self.sample_rate, 80, 160, 400)
        self.spec_augment = SpecAugment(time_masks, mel_masks, round(100 * time_mask_sec), mel_mask_bands)
        self.stem = nn.ModuleList(
            [
                nn.Conv1d(80, width, 5, stride=2, padding=2),
                nn.Conv1d(width, width, 5, stride=2, padding=2),
            ]
        )
        self.position = nn.Conv1d(width, width, 15, padding=7, groups=16)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        if checkpoint is not None:
            load_weights(self, checkpoint)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.active_level_db is not None:
            waveform = set_active_level(waveform, lengths, self.sample_rate, self.active_level_db)
        features = (self.mel(waveform) + 6.0) / 3.0
        lengths = lengths // self.mel.hop_length
        if self.training:
            features, lengths = self._warp(features, lengths)
            features = self.spec_augment(self._gain(features), lengths)
        features = features.to(self.stem[0].weight.dtype)
        for conv in self.stem:
            features = F.gelu(conv(features * lengths_to_mask(lengths, features.shape[-1]).unsqueeze(1)))
            lengths = (lengths - 1) // 2 + 1
        mask = lengths_to_mask(lengths, features.shape[-1])
        features = features * mask.unsqueeze(1)
        x = features + F.gelu(self.position(features))
        x = self.dropout(x.transpose(1, 2) + sinusoids(x.shape[-1], self.width).to(x))
        return self.layers(x, src_key_padding_mask=~mask), lengths

    def _warp(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Stretch (B, mels, F) along mel, with a factor for each clip, and along time, with a factor for the batch."""
        batch, num_mels, frames = features.shape
        draw = torch.rand(batch + 1, device=features.device) * 2 - 1
        size = max(1, round(frames * (1 + self.time_warp * float(draw[-1]))))
        mel = (torch.arange(num_mels, device=features.device) * (1 + self.mel_warp * draw[:-1, None])) / (num_mels - 1)
        time = torch.linspace(-1, 1, size, device=features.device)
        grid = torch.stack(
            [time.expand(batch, num_mels, size), (2 * mel - 1).unsqueeze(-1).expand(batch, num_mels, size)], dim=-1
        )
        warped = F.grid_sample(features.unsqueeze(1), grid, padding_mode="border", align_corners=True)[:, 0]
        return warped, (lengths * size // frames).clamp(min=1)

    def _gain(self, features: Tensor) -> Tensor:
        """Change the level of each clip at random."""
        draw = torch.rand(len(features), 1, 1, device=features.device) * 2 - 1
        return features + draw * self.gain_db * math.log(10) / 20 / 3.0


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal positions (length, width), Vaswani et al., arXiv:1706.03762, Sec. 3.5."""
    rates = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
