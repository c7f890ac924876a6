"""SpecAugment: parts of what an encoder hears are hidden while it is trained (Park et al., arXiv:1904.08779)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_s2s.components.contracts import lengths_to_mask


class SpecAugment(nn.Module):
    """Hides stretches of time and of mel bands; in evaluation mode nothing happens.

    Each mask has a length drawn from 0 up to its limit, never more than the clip or the bands have, and a place drawn
    inside the clip. What it hides becomes the clip's mean. Time warping, the paper's third operation and its least
    effective, is left out. Everything is drawn by torch's global generator.

    Args:
        time_masks: masks over time.
        mel_masks: masks over mel bands.
        time_mask_frames: longest mask over time.
        mel_mask_bands: widest mask over bands.

    Raises:
        ValueError: one of them is negative.
    """

    def __init__(self, time_masks: int = 0, mel_masks: int = 0, time_mask_frames: int = 20, mel_mask_bands: int = 12):
        super().__init__()
        options = {
            "time_masks": time_masks,
            "mel_masks": mel_masks,
            "time_mask_frames": time_mask_frames,
            "mel_mask_bands": mel_mask_bands,
        }
        for name, value in options.items():
            if value < 0:
                raise ValueError(f"SpecAugment: {name} must not be negative; got {value}")
        self.time_masks, self.mel_masks = time_masks, mel_masks
        self.time_mask_frames, self.mel_mask_bands = time_mask_frames, mel_mask_bands

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, mels, F) log-mel and (B,) frames -> the same with parts hidden."""
        if not self.training or self.time_masks + self.mel_masks == 0:
            return features
        num_mels, num_frames = features.shape[1:]
        valid = lengths_to_mask(lengths, num_frames).unsqueeze(1)
        mean = (features * valid).sum((1, 2), keepdim=True) / (lengths.clamp(min=1) * num_mels).view(-1, 1, 1)
        hidden = torch.zeros_like(features, dtype=torch.bool)
        for _ in range(self.time_masks):
            hidden = hidden | draw_mask(lengths, num_frames, self.time_mask_frames).unsqueeze(1)
        for _ in range(self.mel_masks):
            hidden = hidden | draw_mask(torch.full_like(lengths, num_mels), num_mels, self.mel_mask_bands).unsqueeze(2)
        return torch.where(hidden & valid, mean.to(features.dtype), features)


def draw_mask(lengths: Tensor, size: int, limit: int) -> Tensor:
    """One stretch for each row: (B,) positions to place it in -> (B, size) bool, True where it lies.

    Args:
        lengths: of the rows.
        size: of the longest row.
        limit: the stretch covers 0 to so many positions, each as likely, and never more than the row has.
    """
    stretch = torch.randint(0, limit + 1, (len(lengths), 1), device=lengths.device)
    room = (lengths.unsqueeze(1) - stretch).clamp(min=1)
    start = (torch.rand(len(lengths), 1, device=lengths.device) * room).long()
    end = torch.minimum(start + stretch, lengths.unsqueeze(1))
    positions = torch.arange(size, device=lengths.device)
    return (positions >= start) & (positions < end)


def draw_spans(lengths: Tensor, size: int, share: float, span: int) -> Tensor:
    """Spans of one length that start anywhere, as wav2vec 2.0 is fine-tuned: (B,) frames -> (B, size) bool.

    Every frame from which a whole span fits into its clip starts one with probability `share / span`; spans may
    overlap, so that a little less than `share` of the frames is hidden. A clip shorter than a span has none.
    Source: Baevski et al., arXiv:2006.11477, Sec. 3.1 (there, starts are sampled without replacement).

    Args:
        lengths: frames of the clips.
        size: frames of the longest clip.
        share: of the frames that is to be hidden, 0 to 1.
        span: frames of one span.
    """
    starts = torch.rand(len(lengths), size, device=lengths.device) < share / span
    starts &= torch.arange(size, device=lengths.device) + span <= lengths.unsqueeze(1)
    started = starts.cumsum(1)
    ended = nn.functional.pad(started, (span, 0))[:, :size]
    return started > ended
