"""What encoders of Whisper's kind share: log-mel, windows of 30 s encoded alone, frames joined in order."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_s2s.interfaces import AudioEncoder, lengths_to_mask

HOP_SAMPLES = 160
"""Samples between mel frames, which come at 100 Hz."""
WINDOW_FRAMES = 3_000
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES


class WindowedAudioEncoder(AudioEncoder):
    """Encoders of transformers with Whisper's shape: two convolutions, 1,500 positions for 30 s, Transformer layers.

    As published with OpenS2S: the log-mel of a whole clip, zero-padded to a multiple of 30 s, is cut into windows, each
    is encoded alone, without an attention mask (so the padding takes part), and the frames with audio are joined. What
    stands behind a clip's frames in a batch is what the encoder made of its padding.

    A subclass sets `encoder`, `features` (a WhisperFeatureExtractor) and `real_frames_only`. With the latter, windows
    are cut to their frames with audio before they are encoded: faster, batched equals single, and other numbers than
    published, since the attention sees no padding.
    """

    sample_rate = 16_000
    encoder: Any
    features: Any
    real_frames_only: bool

    @abstractmethod
    def finish(self, hidden_states: Tensor) -> Tensor:
        """What follows the layers: final norm and pooling, (P, S, D) at 50 Hz -> (P, F, D)."""

    @abstractmethod
    def encode_padded(self, features: Tensor) -> Tensor:
        """Whole windows (P, mels, 3000) -> (P, F, D)."""

    @abstractmethod
    def count_frames(self, positions: Tensor) -> Tensor:
        """Positions at 50 Hz -> frames that `finish` leaves."""

    def build_features(self) -> Any:
        """The feature extractor for the encoder's number of mel bands."""
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=self.encoder.config.num_mel_bins)

    def log_mel(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) and (B,) samples -> (B, mels, 3000 W), W windows for the longest clip."""
        size = -(-max(1, int(lengths.max())) // WINDOW_SAMPLES) * WINDOW_SAMPLES
        clips = [row[:length].float().cpu().numpy() for row, length in zip(waveform, lengths.tolist(), strict=True)]
        features = self.features(clips, sampling_rate=self.sample_rate, max_length=size, return_tensors="pt")
        return features.input_features.to(waveform.device, self.encoder.conv1.weight.dtype)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        windows = self.log_mel(waveform, lengths).unflatten(-1, (-1, WINDOW_FRAMES)).transpose(1, 2)
        starts = torch.arange(windows.shape[1], device=lengths.device) * WINDOW_FRAMES
        mel_frames = (-(-lengths // HOP_SAMPLES)).unsqueeze(1)
        valid = (mel_frames - starts).clamp(0, WINDOW_FRAMES)  # (B, W) mel frames with audio
        used = valid > 0
        used[:, 0] = True
        encode = self._encode_real_frames if self.real_frames_only else self._encode_windows
        hidden = encode(windows[used], valid[used])
        counts = self.count_frames((valid + 1) // 2)
        lengths = counts.sum(1)
        # All but a clip's last window are full, so joining whole windows leaves no gap between frames with audio.
        joined = [torch.cat(list(row)) for row in hidden.split(used.sum(1).tolist())]
        frames = torch.nn.utils.rnn.pad_sequence(joined, batch_first=True)
        return frames[:, : int(lengths.max())], lengths

    def _encode_windows(self, features: Tensor, valid: Tensor) -> Tensor:
        return self.encode_padded(features)

    def _encode_real_frames(self, features: Tensor, valid: Tensor) -> Tensor:
        """Windows of different lengths at once, each as if it were encoded alone; zeros behind its frames."""
        encoder = self.encoder
        x = features[..., : max(1, int(valid.max()))]
        x = F.gelu(encoder.conv1(x * lengths_to_mask(valid, x.shape[-1]).unsqueeze(1)))
        x = F.gelu(encoder.conv2(x * lengths_to_mask(valid, x.shape[-1]).unsqueeze(1))).transpose(1, 2)
        positions = (valid + 1) // 2
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        x = F.dropout(x, encoder.dropout, self.training)
        mask = None
        if int(positions.min()) < x.shape[1]:
            mask = torch.zeros(len(x), 1, 1, x.shape[1], dtype=x.dtype, device=x.device)
            hidden_ones = ~lengths_to_mask(positions, x.shape[1]).view(len(x), 1, 1, -1)
            mask = mask.masked_fill(hidden_ones, torch.finfo(x.dtype).min)
        for layer in encoder.layers:
            x = layer(x, mask)
        x = self.finish(x)
        return x * lengths_to_mask(self.count_frames(positions), x.shape[1]).unsqueeze(-1)
