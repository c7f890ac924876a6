"""GLM-4-Voice's tokenizer: the first layers of a Whisper encoder, causal in blocks, and a codebook.

Zeng et al., arXiv:2412.02612. Departure from batched calls of the published code: each clip's features are computed
separately, so that a clip gets the same units in any batch. B batch, T samples, F mel frames, S positions, U units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.pretrained import model_config
from lightning_s2s.components.vocoders.glm4_voice.config import TokenizerConfig
from lightning_s2s.components.vocoders.glm4_voice.conformer import block_causal_mask

CONVOLUTION_STRIDE = 2
MAX_WINDOWS = 32
"""Windows of 30 s that go through the encoder together."""


class CausalConv1d(nn.Conv1d):
    """Convolution over the current and earlier positions."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F) -> (B, C', F / stride)."""
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class Glm4VoiceTokenizer(nn.Module):
    """Waveform at 16 kHz -> units at 12.5 Hz.

    Raises:
        ValueError: Two sizes of the configuration contradict each other.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

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
        layer = {"d_model": width, "encoder_attention_heads": config.encoder_attention_heads}
        layer |= {"encoder_ffn_dim": config.encoder_ffn_dim}
        options = {"model_type": "whisper", "attn_implementation": "sdpa", **layer}
        whisper = model_config(options, "vocoder glm4_voice: tokenizer")
        self.layers = nn.ModuleList(WhisperEncoderLayer(whisper) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self._extractor: Any = None

    @property
    def samples_per_unit(self) -> int:
        return self.config.hop_length * CONVOLUTION_STRIDE * self.config.pooling_kernel_size

    def _features(self, clip: Tensor) -> list[tuple[Tensor, int]]:
        """(T,) -> log-mel (F, C) and number of audio frames of each 30 s window; F is a whole number of units."""
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
        """Log-mel (B, C, F) and its audio frames (B,) -> (B, U, D) before the quantiser."""
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
        """(..., D) -> (...), the codebook row at the smallest squared distance."""
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
            batch = nn.utils.rnn.pad_sequence(list(features), batch_first=True).transpose(1, 2).to(self.conv1.weight)
            found = self.nearest(self.encode(batch, torch.tensor(counts, device=batch.device)))
            for row, count, ids in zip(rows, counts, found, strict=True):
                units[row].append(ids[: -(-count // frames_per_unit)])
        joined = [torch.cat(parts) if parts else lengths.new_zeros(0) for parts in units]
        num_units = torch.tensor([len(ids) for ids in joined], device=lengths.device)
        return nn.utils.rnn.pad_sequence(joined, batch_first=True), num_units
