"""GLM-4-Voice's tokenizer: the first layers of a Whisper encoder, causal in blocks, and a codebook.

Zeng et al., arXiv:2412.02612. A departure from batched calls of the published code: each clip's features are made on
their own, so that a clip gets the same units in any batch. B batch, T samples, F mel frames, S positions, U units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.vocoders.glm4_voice.config import TokenizerConfig
from lightning_s2s.components.vocoders.glm4_voice.conformer import block_causal_mask

CONVOLUTION_STRIDE = 2
MAX_WINDOWS = 32
"""Windows of 30 s that go through the encoder together."""


class CausalConv1d(nn.Conv1d):
    """Convolution over a position and those before it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F) -> (B, C', F / stride)."""
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class SelfAttention(nn.Module):
    """Whisper's attention."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, S, D) and (B, 1, S, S) -> (B, S, D)."""
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and beside a residual."""

    def __init__(self, width: int, num_heads: int, inner: int):
        super().__init__()
        self.self_attn = SelfAttention(width, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, S, D) and (B, 1, S, S) -> (B, S, D)."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class Glm4VoiceTokenizer(nn.Module):
    """Waveform at 16 kHz -> units at 12.5 Hz.

    Args:
        config: sizes.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        if config.d_model % config.encoder_attention_heads:
            raise ValueError(
                f"tokenizer: d_model {config.d_model} is no multiple of encoder_attention_heads "
                f"{config.encoder_attention_heads}"
            )
        if config.pooling_position > config.quantize_position:
            raise ValueError(
                f"tokenizer: pooling_position {config.pooling_position} lies behind quantize_position "
                f"{config.quantize_position}"
            )
        num_positions = config.chunk_length * config.sampling_rate // (config.hop_length * CONVOLUTION_STRIDE)
        if num_positions > config.max_source_positions:
            raise ValueError(
                f"tokenizer: a window of chunk_length {config.chunk_length} s has {num_positions} positions; "
                f"max_source_positions is {config.max_source_positions}"
            )
        self.config = config
        width = config.d_model
        self.conv1 = CausalConv1d(config.num_mel_bins, width, 3)
        self.conv2 = CausalConv1d(width, width, 3, stride=CONVOLUTION_STRIDE)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.encoder_attention_heads, config.encoder_ffn_dim)
            for _ in range(config.quantize_position)
        )
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self._extractor: Any = None

    @property
    def samples_per_unit(self) -> int:
        """Samples that one unit stands for."""
        return self.config.hop_length * CONVOLUTION_STRIDE * self.config.pooling_kernel_size

    def _features(self, clip: Tensor) -> list[tuple[Tensor, int]]:
        """(T,) -> log-mel (F, C) and number of frames with audio of each 30 s window; F covers whole units."""
        from transformers import WhisperFeatureExtractor

        config = self.config
        if self._extractor is None:
            self._extractor = WhisperFeatureExtractor(
                feature_size=config.num_mel_bins,
                sampling_rate=config.sampling_rate,
                hop_length=config.hop_length,
                chunk_length=config.chunk_length,
                n_fft=config.n_fft,
            )
        # Padded to the longest, as published: the last window of a long clip is as long as the others.
        windows = [window.cpu().numpy() for window in clip.float().split(config.chunk_length * config.sampling_rate)]
        features = self._extractor(
            windows,
            sampling_rate=config.sampling_rate,
            padding="longest",
            pad_to_multiple_of=self.samples_per_unit,
            return_tensors="pt",
        ).input_features
        counts = [-(-len(window) // config.hop_length) for window in windows]
        return list(zip(features.transpose(1, 2), counts, strict=True))

    def encode(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel (B, C, F) and its frames with audio (B,) -> (B, U, D) before the quantiser."""
        config = self.config
        num_positions = -(-features.shape[-1] // CONVOLUTION_STRIDE)
        seen = torch.arange(num_positions, device=features.device) * CONVOLUTION_STRIDE < lengths.unsqueeze(1)
        block = config.quantize_causal_block_size
        mask = (block_causal_mask(num_positions, block, features.device) & seen.unsqueeze(1)).unsqueeze(1)
        x = F.gelu(self.conv2(F.gelu(self.conv1(features)))).transpose(1, 2)
        x = x + self.embed_positions.weight[:num_positions]
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, mask)
            if number == config.pooling_position:
                kernel = config.pooling_kernel_size
                x = F.pad(x.transpose(1, 2), (0, -x.shape[1] % kernel))
                x = F.avg_pool1d(x, kernel).transpose(1, 2)
                seen = seen[:, ::kernel]
                mask = block_causal_mask(x.shape[1], max(1, block // kernel), features.device) & seen.unsqueeze(1)
                mask = mask.unsqueeze(1)
        return x

    def nearest(self, x: Tensor) -> Tensor:
        """(..., D) -> (...), the codebook's row with the smallest squared distance."""
        codes, flat = self.codebook.weight.float(), x.flatten(0, -2).float()
        square = codes.square().sum(1) + flat.square().sum(1, keepdim=True)
        return torch.addmm(square, flat, codes.t(), alpha=-2.0).argmin(1).view(x.shape[:-1])

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T), right-padded, and (B,) samples -> units (B, U) int64 and (B,) unit counts, U = ceil(T / 1280)."""
        windows = [
            (row, *window)
            for row, (clip, length) in enumerate(zip(waveform, lengths.tolist(), strict=True))
            if length
            for window in self._features(clip[:length])
        ]
        frames_per_unit = self.samples_per_unit // self.config.hop_length
        units: list[list[Tensor]] = [[] for _ in waveform]
        for start in range(0, len(windows), MAX_WINDOWS):
            rows, features, counts = zip(*windows[start : start + MAX_WINDOWS], strict=True)
            batch = nn.utils.rnn.pad_sequence(features, batch_first=True).transpose(1, 2).to(self.conv1.weight)
            found = self.nearest(self.encode(batch, torch.tensor(counts, device=batch.device)))
            for row, count, ids in zip(rows, counts, found, strict=True):
                units[row].append(ids[: -(-count // frames_per_unit)])
        joined = [torch.cat(parts) if parts else lengths.new_zeros(0) for parts in units]
        num_units = torch.tensor([len(ids) for ids in joined], device=lengths.device)
        return nn.utils.rnn.pad_sequence(joined, batch_first=True), num_units
