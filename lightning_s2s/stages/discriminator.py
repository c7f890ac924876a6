"""The discriminator of the codec's adversarial training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpectrogramDiscriminator(nn.Module):
    """Judges complex spectrograms at several resolutions, after EnCodec (Défossez et al., arXiv:2210.13438, Sec. 3.4).

    Departures: compressed spectra, fewer channels and layers, for training on a CPU.
    """

    def __init__(self, fft_sizes: tuple[int, ...] = (320, 800), channels: int = 12):
        super().__init__()
        self.fft_sizes = fft_sizes
        norm = nn.utils.parametrizations.weight_norm
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                [
                    norm(nn.Conv2d(2, channels, (7, 3), stride=(2, 1), padding=(3, 1))),
                    norm(nn.Conv2d(channels, 2 * channels, (7, 3), stride=(3, 1), padding=(3, 1))),
                    norm(nn.Conv2d(2 * channels, 2 * channels, (5, 3), stride=(3, 1), padding=(2, 1), dilation=(1, 1))),
                    norm(nn.Conv2d(2 * channels, 2 * channels, (3, 3), stride=(2, 1), padding=(1, 1))),
                    norm(nn.Conv2d(2 * channels, 1, (3, 3), padding=(1, 1))),
                ]
            )
            for _ in fft_sizes
        )
        for size in fft_sizes:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, waveform: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, T) -> one map of scores for each resolution, and all inner features."""
        scores, features = [], []
        for size, stack in zip(self.fft_sizes, self.stacks, strict=True):
            spectrum = torch.stft(
                waveform, size, size // 4, window=getattr(self, f"window_{size}"), return_complex=True
            )
            # Compressed to |X| ** 0.3: quiet parts weigh as they do for the ear, and values are of the order of one.
            spectrum = spectrum * (spectrum.abs() + 1e-4) ** -0.7
            x = torch.stack([spectrum.real, spectrum.imag], dim=1)
            for layer in stack[:-1]:
                x = F.leaky_relu(layer(x), 0.2)
                features.append(x)
            scores.append(stack[-1](x))
        return scores, features
