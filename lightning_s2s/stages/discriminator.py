"""The discriminator of the codec's training, on spectral envelopes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EnvelopeDiscriminator(nn.Module):
    """Convolutions over the log envelope as an image of time and frequency (as in Saito et al., arXiv:1709.08041).

    A second input channel holds the deviation of each frame from its smoothed spectrum: the detail that regression
    blurs first.

    Args:
        channels: Number of channels of the first layer.
    """

    def __init__(self, channels: int = 20):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(
            [
                norm(nn.Conv2d(2, channels, 5, stride=(1, 2), padding=2)),
                norm(nn.Conv2d(channels, 2 * channels, 5, stride=(2, 2), padding=2)),
                norm(nn.Conv2d(2 * channels, 4 * channels, 3, stride=(2, 2), padding=1)),
                norm(nn.Conv2d(4 * channels, 4 * channels, 3, padding=1)),
            ]
        )
        self.score = norm(nn.Conv2d(4 * channels, 1, 3, padding=1))

    def forward(self, log_envelope: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Envelopes (B, F, bands) -> scores (B, 1, F', bands'), high for real speech, and features of each layer."""
        detail = log_envelope - F.avg_pool1d(log_envelope, 15, stride=1, padding=7)
        x = torch.stack([(log_envelope + 5) / 2.5, 2 * detail], dim=1)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features
