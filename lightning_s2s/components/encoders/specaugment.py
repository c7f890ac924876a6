"""SpecAugment (Park et al., arXiv:1904.08779): parts of an encoder's input are masked in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_s2s.components.contracts import lengths_to_mask


class SpecAugment(nn.Module):
    """Masks spans of time and of mel bands in training mode.

    The length of a mask is drawn from 0 up to its limit, at most the length of the clip, and its position inside the
    clip; masked values become the clip's mean. Time warping, the paper's least effective operation, is left out.
    All draws come from torch's global generator.

    Args:
        time_masks: Number of masks over time.
        mel_masks: Number of masks over mel bands.
        time_mask_frames: Longest mask over time, in frames.
        mel_mask_bands: Widest mask over mel bands.
    """

    def __init__(self, time_masks: int = 0, mel_masks: int = 0, time_mask_frames: int = 20, mel_mask_bands: int = 12):
        super().__init__()
        self.time_masks, self.mel_masks = time_masks, mel_masks
        self.time_mask_frames, self.mel_mask_bands = time_mask_frames, mel_mask_bands

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, mels, F) log-mel and (B,) frames -> masked log-mel."""
        if not self.training or self.time_masks + self.mel_masks == 0:
            return features
        num_mels, num_frames = features.shape[1:]
        valid = lengths_to_mask(lengths, num_frames).unsqueeze(1)
        mean = (features * valid).sum((1, 2), keepdim=True) / (lengths.clamp(min=1) * num_mels).view(-1, 1, 1)
        masked = torch.zeros_like(features, dtype=torch.bool)
        for _ in range(self.time_masks):
            masked = masked | draw_mask(lengths, num_frames, self.time_mask_frames).unsqueeze(1)
        for _ in range(self.mel_masks):
            masked = masked | draw_mask(torch.full_like(lengths, num_mels), num_mels, self.mel_mask_bands).unsqueeze(2)
        return torch.where(masked & valid, mean.to(features.dtype), features)


def draw_mask(lengths: Tensor, size: int, limit: int) -> Tensor:
    """Draw one span for each row: (B,) lengths -> (B, size) bool, True inside the span.

    Args:
        lengths: (B,) lengths of the rows.
        size: Length of the longest row.
        limit: Longest span; the length is uniform in 0..limit, and cut to the length of the row.
    """
    span = torch.randint(0, limit + 1, (len(lengths), 1), device=lengths.device)
    room = (lengths.unsqueeze(1) - span).clamp(min=1)
    start = (torch.rand(len(lengths), 1, device=lengths.device) * room).long()
    end = torch.minimum(start + span, lengths.unsqueeze(1))
    positions = torch.arange(size, device=lengths.device)
    return (positions >= start) & (positions < end)


def draw_spans(lengths: Tensor, size: int, share: float, span: int) -> Tensor:
    """Draw spans of a fixed length, as for fine-tuning wav2vec 2.0: (B,) frames -> (B, size) bool, True inside a span.

    Every frame from which a whole span fits into its clip starts one with probability `share / span`. Spans may
    overlap, so slightly less than `share` of the frames is masked; a clip shorter than a span has none.
    Source: Baevski et al., arXiv:2006.11477, Sec. 3.1 (there, starts are sampled without replacement).

    Args:
        lengths: (B,) frames of the clips.
        size: Frames of the longest clip.
        share: Share of the frames to mask, 0 to 1.
        span: Frames in a span.
    """
    starts = torch.rand(len(lengths), size, device=lengths.device) < share / span
    starts &= torch.arange(size, device=lengths.device) + span <= lengths.unsqueeze(1)
    started = starts.cumsum(1)
    ended = nn.functional.pad(started, (span, 0))[:, :size]
    return started > ended
