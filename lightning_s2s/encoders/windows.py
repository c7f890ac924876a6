"""What encoders of Whisper's kind share: log-mel, windows of 30 s encoded alone, frames joined in order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.encoders.layers import find_layer
from lightning_s2s.interfaces import AudioEncoder, lengths_to_mask
from lightning_s2s.specaugment import SpecAugment

HOP_SAMPLES = 160
"""Samples between mel frames, which come at 100 Hz."""
WINDOW_FRAMES = 3_000
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES


def normalise(hidden_states: Tensor) -> Tensor:
    """(..., D) -> the same with mean 0 and variance 1."""
    return F.layer_norm(hidden_states, hidden_states.shape[-1:])


class WindowedAudioEncoder(AudioEncoder):
    """Encoders of transformers with Whisper's shape: two convolutions, 1,500 positions for 30 s, Transformer layers.

    As published with OpenS2S: the log-mel of a whole clip, zero-padded to a multiple of 30 s, is cut into windows, each
    is encoded alone, without an attention mask (so the padding takes part), and the frames with audio are joined. What
    stands behind a clip's frames in a batch is what the encoder made of its padding.

    A subclass builds `encoder`, then calls `set_up`.
    """

    sample_rate = 16_000
    encoder: Any
    features: Any
    real_frames_only: bool
    beside: list[int]
    """Layers that are heard beside the topmost one."""
    last_layer_alone: bool

    def set_up(
        self,
        layers: int | list[int],
        real_frames_only: bool,
        time_masks: int,
        mel_masks: int,
        time_mask_sec: float,
        mel_mask_bands: int,
    ) -> None:
        """What the encoders have in common, once `encoder` is there.

        Args:
            layers: the layer that is heard, counted as `find_layer` does; those above it are dropped, and the norm that
                follows the last layer with them. Of a list, each layer is normalised to mean 0 and variance 1 (the
                last one by its own norm), and they stand side by side.
            real_frames_only: cut windows to their frames with audio before they are encoded: faster, batched equals
                single, and other numbers than published, since the attention sees no padding.
            time_masks: of SpecAugment, over the whole clip, before it is cut into windows.
            mel_masks: of SpecAugment.
            time_mask_sec: longest mask over time.
            mel_mask_bands: widest mask over mel bands.
        """
        from transformers import WhisperFeatureExtractor

        name, num_layers = type(self).__name__, len(self.encoder.layers)
        wanted = layers if isinstance(layers, list) else [layers]
        places = [find_layer(number, num_layers + 1, name) for number in wanted]
        if None in places:
            raise ValueError(f"{name}: layers must be numbers; a sum of all layers is for ssl and s3prl")
        heard = sorted({place for place in places if place is not None})
        if not heard or len(heard) < len(wanted):
            raise ValueError(f"{name}: layers must be a number, or a list of different ones; got {layers!r}")
        *self.beside, top = heard
        self.last_layer_alone = heard == [num_layers]
        width = self.encoder.config.d_model
        if top < num_layers:
            self.encoder.layers = self.encoder.layers[:top]
            self.encoder.layer_norm = nn.LayerNorm(width, elementwise_affine=False) if self.beside else nn.Identity()
        self.real_frames_only = real_frames_only
        self.width = width * len(heard)
        self.features = WhisperFeatureExtractor(feature_size=self.encoder.config.num_mel_bins)
        self.spec_augment = SpecAugment(time_masks, mel_masks, round(100 * time_mask_sec), mel_mask_bands)

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        return {**self.init_args, "checkpoint": None, "config": self.encoder.config.to_diff_dict()}

    @abstractmethod
    def finish(self, hidden_states: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """What follows the layers: norm and pooling, (P, S, D) at 50 Hz -> (P, F, D)."""

    @abstractmethod
    def encode_padded(self, features: Tensor) -> Tensor:
        """Whole windows (P, mels, 3000) -> (P, F, D)."""

    @abstractmethod
    def count_frames(self, positions: Tensor) -> Tensor:
        """Positions at 50 Hz -> frames that `finish` leaves."""

    def log_mel(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) and (B,) samples -> (B, mels, 3000 W), W windows for the longest clip."""
        size = -(-max(1, int(lengths.max())) // WINDOW_SAMPLES) * WINDOW_SAMPLES
        clips = [row[:length].float().cpu().numpy() for row, length in zip(waveform, lengths.tolist(), strict=True)]
        with torch.autocast("cpu", enabled=False):  # the extractor computes by torch, and hands over by numpy
            features = self.features(clips, sampling_rate=self.sample_rate, max_length=size, return_tensors="pt")
        return features.input_features.to(waveform.device, self.encoder.conv1.weight.dtype)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mel_frames = -(-lengths // HOP_SAMPLES)
        features = self.spec_augment(self.log_mel(waveform, lengths), mel_frames)
        windows = features.unflatten(-1, (-1, WINDOW_FRAMES)).transpose(1, 2)
        starts = torch.arange(windows.shape[1], device=lengths.device) * WINDOW_FRAMES
        valid = (mel_frames.unsqueeze(1) - starts).clamp(0, WINDOW_FRAMES)  # (B, W) mel frames with audio
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
        if self.beside:
            return self._encode_real_frames(features, torch.full_like(valid, WINDOW_FRAMES))
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
        heard = []
        for number, layer in enumerate(encoder.layers):
            if number in self.beside:
                heard.append(self.finish(x, normalise))
            x = layer(x, mask)
        x = torch.cat([*heard, self.finish(x, encoder.layer_norm)], dim=-1)
        return x * lengths_to_mask(self.count_frames(positions), x.shape[1]).unsqueeze(-1)
