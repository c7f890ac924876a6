"""Base of Whisper-style encoders: log-mel, windows of 30 s encoded separately, frames joined in order."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.contracts import AudioEncoder, lengths_to_mask
from lightning_s2s.components.encoders.layers import find_layer
from lightning_s2s.components.encoders.specaugment import SpecAugment
from lightning_s2s.components.pretrained import without_code

HOP_SAMPLES = 160
"""Samples between mel frames, at 100 Hz."""
WINDOW_FRAMES = 3_000
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES
WINDOWS_AT_ONCE = 2
"""Full windows that a CPU encodes together; with more, activations no longer fit into its caches."""


def normalise(hidden_states: Tensor) -> Tensor:
    """(..., D) -> (..., D) with mean 0 and variance 1."""
    return F.layer_norm(hidden_states, hidden_states.shape[-1:])


class WindowedAudioEncoder(AudioEncoder):
    """Encoders of transformers with Whisper's shape: two convolutions, 1,500 positions for 30 s, Transformer layers.

    As published with OpenS2S: the log-mel of a clip, zero-padded to a multiple of 30 s, is cut into windows, each is
    encoded separately, without an attention mask (so the padding takes part), and the audio frames are joined. In a
    batch, a clip's frames are followed by encoded padding. The last layer computes only positions with audio in any of
    the windows; they attend to all positions.

    A subclass builds `encoder`, then calls `set_up`.
    """

    sample_rate = 16_000
    encoder: Any
    features: Any
    real_frames_only: bool
    beside: list[int]
    """Layers whose hidden states are used beside those of the topmost one."""
    last_layer_alone: bool
    separate_queries = False
    """Whether the attention accepts queries for a part of the positions."""

    def set_up(
        self,
        layers: int | list[int],
        real_frames_only: bool,
        time_masks: int,
        mel_masks: int,
        time_mask_sec: float,
        mel_mask_bands: int,
    ) -> None:
        """Finish the construction, once `encoder` is built.

        Args:
            layers: Index of the hidden state, as in `find_layer`; layers above it are dropped, together with the norm
                after the last layer. The hidden states of a list are normalised to mean 0 and variance 1 (the last
                layer's by its own norm) and concatenated.
            real_frames_only: Whether to cut windows to their audio frames before encoding: faster, batched equals
                single, but different from the published numbers, since the attention sees no padding.
            time_masks: SpecAugment masks over time; they span the whole clip, before it is cut into windows.
            mel_masks: SpecAugment masks over mel bands.
            time_mask_sec: Longest mask over time, in seconds.
            mel_mask_bands: Widest mask over mel bands.
        """
        from transformers import WhisperFeatureExtractor

        name, num_layers = type(self).__name__, len(self.encoder.layers)
        wanted = layers if isinstance(layers, list) else [layers]
        places = [find_layer(number, num_layers + 1, name) for number in wanted]
        if None in places:
            raise ValueError(f"{name}: layers must be numbers; a sum of all layers is for ssl and s3prl")
        chosen = sorted({place for place in places if place is not None})
        if not chosen or len(chosen) < len(wanted):
            raise ValueError(f"{name}: layers must be a number, or a list of different ones; got {layers!r}")
        *self.beside, top = chosen
        self.last_layer_alone = chosen == [num_layers]
        width = self.encoder.config.d_model
        if top < num_layers:
            self.encoder.layers = self.encoder.layers[:top]
            self.encoder.layer_norm = nn.LayerNorm(width, elementwise_affine=False) if self.beside else nn.Identity()
        self.real_frames_only = real_frames_only
        if self.separate_queries and len(self.encoder.layers):
            last = self.encoder.layers[-1]
            last.forward = functools.partial(_first_positions, last)
        self.width = width * len(chosen)
        self.features = WhisperFeatureExtractor(feature_size=self.encoder.config.num_mel_bins)
        self.spec_augment = SpecAugment(time_masks, mel_masks, round(100 * time_mask_sec), mel_mask_bands)

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        return {**self.init_args, "checkpoint": None, "config": without_code(self.encoder.config)}

    @abstractmethod
    def finish(self, hidden_states: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """Norm and pooling after the layers: (P, S, D) at 50 Hz -> (P, F, D)."""

    @abstractmethod
    def count_frames(self, positions: Tensor) -> Tensor:
        """Number of positions at 50 Hz -> number of frames after `finish`."""

    def log_mel(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) and (B,) samples -> (B, mels, 3000 W), W windows for the longest clip."""
        size = -(-max(1, int(lengths.max())) // WINDOW_SAMPLES) * WINDOW_SAMPLES
        clips = [row[:length].float().cpu().numpy() for row, length in zip(waveform, lengths.tolist(), strict=True)]
        with torch.autocast("cpu", enabled=False):  # the extractor uses torch, and returns numpy
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
        windows, valid_of_used = windows[used], valid[used]
        if self.real_frames_only:
            hidden = self._encode(windows, valid_of_used)
        else:
            num_positions = max(1, (int(valid_of_used.max()) + 1) // 2)
            at_once = WINDOWS_AT_ONCE if windows.device.type == "cpu" else len(windows)
            pieces = (self._encode(piece, None, num_positions) for piece in windows.split(at_once))
            hidden = torch.cat(list(pieces))
        counts = self.count_frames((valid + 1) // 2)
        lengths = counts.sum(1)
        # All but a clip's last window are full, so joining whole windows leaves no gaps between audio frames.
        joined = [torch.cat(list(row)) for row in hidden.split(used.sum(1).tolist())]
        frames = torch.nn.utils.rnn.pad_sequence(joined, batch_first=True)
        return frames[:, : int(lengths.max())], lengths

    def _encode(self, features: Tensor, valid: Tensor | None, num_positions: int | None = None) -> Tensor:
        """Windows (P, mels, 3000) -> (P, F, D).

        Args:
            features: Log-mel.
            valid: (P,) mel frames with audio; each window is encoded as if it were cut to them, with zeros after its
                frames. None encodes whole windows.
            num_positions: How many of the first positions at 50 Hz to compute; None computes all.
        """
        encoder = self.encoder
        if valid is None:
            valid = torch.full((len(features),), WINDOW_FRAMES, device=features.device)
        x = features[..., : max(1, int(valid.max()))]
        x = F.gelu(encoder.conv1(x * lengths_to_mask(valid, x.shape[-1]).unsqueeze(1)))
        x = F.gelu(encoder.conv2(x * lengths_to_mask(valid, x.shape[-1]).unsqueeze(1))).transpose(1, 2)
        positions = (valid + 1) // 2
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        x = F.dropout(x, encoder.dropout, self.training)
        mask = None
        if int(positions.min()) < x.shape[1]:
            mask = torch.zeros(len(x), 1, 1, x.shape[1], dtype=x.dtype, device=x.device)
            padding = ~lengths_to_mask(positions, x.shape[1]).view(len(x), 1, 1, -1)
            mask = mask.masked_fill(padding, torch.finfo(x.dtype).min)
        lower = []
        for number, layer in enumerate(encoder.layers):
            if number in self.beside:
                lower.append(self.finish(x[:, :num_positions], normalise))
            is_last = self.separate_queries and number == len(encoder.layers) - 1
            x = layer(x, mask, num_positions=num_positions) if is_last else layer(x, mask)
        x = torch.cat([*lower, self.finish(x[:, :num_positions], encoder.layer_norm)], dim=-1)
        return x * lengths_to_mask(self.count_frames(positions), x.shape[1]).unsqueeze(-1)


def _first_positions(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None, num_positions: int | None = None, **options: Any
) -> Tensor:
    """The first positions of a Whisper layer's output: (P, S, D) -> (P, num_positions, D), or all if None."""
    if num_positions is None or layer.training:  # dropout needs the whole layer
        return type(layer).forward(layer, hidden_states, attention_mask, **options)[:, :num_positions]
    normed = layer.self_attn_layer_norm(hidden_states)
    attended, _ = layer.self_attn(normed[:, :num_positions], key_value_states=normed, attention_mask=attention_mask)
    x = hidden_states[:, :num_positions] + attended
    return x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
