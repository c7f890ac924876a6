"""`ssl`: self-supervised speech models of transformers."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import AudioEncoder, lengths_to_mask
from lightning_s2s.components.encoders.layers import LayerSum, find_layer
from lightning_s2s.components.encoders.specaugment import draw_spans
from lightning_s2s.components.pretrained import (
    build_from,
    check_model_type,
    load_pretrained,
    model_config,
    without_code,
)
from lightning_s2s.components.registry import ENCODERS
from lightning_s2s.support.ranges import Count, Share

MODEL_TYPES = ("hubert", "wav2vec2", "wav2vec2-bert", "wavlm")
SAMPLE_RATE = 16_000

_lengths: ContextVar[Tensor] = ContextVar("lengths")
"""(B,) frames after the first convolution, of the clips that this thread encodes."""


@ENCODERS.register("ssl")
class SslEncoder(AudioEncoder):
    """HuBERT, WavLM, wav2vec 2.0 or w2v-BERT 2.0: 16 kHz -> 50 Hz, one layer or a weighted sum of all.

    Sources: arXiv:2106.07447, arXiv:2110.13900, arXiv:2006.11477, arXiv:2312.05187. Batched equals single, also for
    models that normalise over time. LayerDrop is off, since a sum needs all layers; the adapter at the end of some
    checkpoints is left out.

    Args:
        checkpoint: Hub id or folder.
        config: Instead of a checkpoint, the configuration of a model with random weights, with its `model_type`.
        layers: Index of the hidden state to use, as in transformers: 0 is the input of the first layer, -1 the output
            of the last layer, with its final norm if there is one; the layers above are dropped. `weighted` is a
            learnable sum of all hidden states.
        normalize: Whether to normalise each clip's waveform to mean 0 and variance 1; None takes the setting of the
            checkpoint's feature extractor. Not for w2v-BERT, which always normalises its log-mel input.
        mask_time_prob: Share of the frames to mask in training, by the model's own mask vector; 0 masks none.
        mask_time_length: Length of a mask in frames.

    Raises:
        ValueError: Neither checkpoint nor config is given, the model type or the layer isn't supported, or the model
            doesn't have an option.
    """

    paper = "arXiv:2106.07447, arXiv:2110.13900, arXiv:2006.11477, arXiv:2312.05187"
    rates = "16 kHz -> 50 Hz"
    size = "94M (base), 315M (large), 580M (w2v-BERT 2.0)"
    licence = "Apache-2.0"
    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        checkpoint: str | None = "facebook/hubert-large-ll60k",
        config: PlainValues | None = None,
        layers: int | Literal["weighted"] = -1,
        normalize: bool | None = None,
        mask_time_prob: Share = 0.0,
        mask_time_length: Count = 10,
    ):
        super().__init__()
        self.mask_time_prob, self.mask_time_length = mask_time_prob, mask_time_length
        self.encoder = build_encoder(checkpoint, config, mask_time_prob)
        self._config = without_code(self.encoder.config)
        self.takes_log_mel = self.encoder.config.model_type == "wav2vec2-bert"
        if self.takes_log_mel and normalize is not None:
            raise ValueError("encoder ssl: normalize is for models of waveforms; w2v-BERT takes log-mel")
        self.normalize = False
        if not self.takes_log_mel:
            self.normalize = _normalizes(checkpoint if config is None else None) if normalize is None else normalize
        self.width = self.encoder.config.hidden_size
        self._choose(layers)
        if self.takes_log_mel:
            from transformers import SeamlessM4TFeatureExtractor

            num_mels = self.encoder.config.feature_projection_input_dim // 2  # frames are stacked in pairs
            self.features = SeamlessM4TFeatureExtractor(feature_size=num_mels, num_mel_bins=num_mels)
            self.min_samples, samples_per_frame = 400 + 160, 320
        else:
            self.min_samples, samples_per_frame = _receptive_field(self.encoder.config)
            first = self.encoder.feature_extractor.conv_layers[0]
            if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
                first.layer_norm = ClipNorm(first.layer_norm)
        self.frame_rate_hz = SAMPLE_RATE / samples_per_frame

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        normalize = None if self.takes_log_mel else self.normalize
        return {**self.init_args, "checkpoint": None, "config": self._config, "normalize": normalize}

    def train(self, mode: bool = True) -> SslEncoder:
        """A frozen convolutional front end stays in eval mode, so that no activations are kept for its long outputs."""
        super().train(mode)
        front = getattr(self.encoder, "feature_extractor", None)
        if front is not None and not any(parameter.requires_grad for parameter in front.parameters()):
            front.eval()
        return self

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < self.min_samples:
            raise ValueError(f"encoder ssl: a clip has {shortest} samples; at least {self.min_samples} are needed")
        inputs, counts, mask = (self._log_mel if self.takes_log_mel else self._samples)(waveform[:, :longest], lengths)
        options: dict[str, Any] = {"attention_mask": mask} if shortest < longest else {}
        if self.training and self.mask_time_prob > 0:
            size = int(counts.max())
            options["mask_time_indices"] = draw_spans(counts, size, self.mask_time_prob, self.mask_time_length)
        if self.layer_sum is None:
            return self.encoder(inputs, **options).last_hidden_state, counts
        return self.layer_sum(self.encoder(inputs, output_hidden_states=True, **options).hidden_states), counts

    def _choose(self, layers: int | str) -> None:
        """Drop the layers above the chosen one, or set up the sum of all."""
        inner = self.encoder.encoder
        num_layers = len(inner.layers)
        chosen = find_layer(layers, num_layers + 1, "encoder ssl")
        self.layer_sum = LayerSum(num_layers + 1) if chosen is None else None
        if chosen is not None and chosen < num_layers:
            inner.layers = inner.layers[:chosen]
        if chosen != num_layers and getattr(self.encoder.config, "do_stable_layer_norm", False):
            inner.layer_norm = nn.Identity()  # it follows only the last layer

    def _samples(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Waveform (B, T), number of frames (B,) and mask of the samples."""
        mask = lengths_to_mask(lengths, waveform.shape[1])
        x = waveform * mask
        if self.normalize:
            count = lengths.unsqueeze(1)
            x = (x - x.sum(1, keepdim=True) / count) * mask
            x = x / (x.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        first = self.encoder.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), ClipNorm):
            _lengths.set((lengths - first.conv.kernel_size[0]) // first.conv.stride[0] + 1)
        counts = self.encoder._get_feat_extract_output_lengths(lengths)
        return x.to(first.conv.weight.dtype), counts, mask.long()

    def _log_mel(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mel frames stacked in pairs (B, F, 2 mels), their number (B,) and mask; an odd frame is dropped."""
        clips = [row[:length].float().cpu().numpy() for row, length in zip(waveform, lengths.tolist(), strict=True)]
        features = self.features(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        counts = features.attention_mask.sum(1).to(lengths)
        size = int(counts.max())
        weight = self.encoder.feature_projection.projection.weight
        return features.input_features[:, :size].to(weight), counts, lengths_to_mask(counts, size).long()


class ClipNorm(nn.GroupNorm):
    """GroupNorm of each clip over its own frames, see `_lengths`; `nn.GroupNorm` would include the padding."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, F) -> (B, D, F), zeros after a clip's frames."""
        lengths = _lengths.get().tolist()
        if min(lengths) == x.shape[-1]:
            return super().forward(x)
        clips = [super(ClipNorm, self).forward(row[None, :, :n]) for row, n in zip(x, lengths, strict=True)]
        return torch.cat([nn.functional.pad(clip, (0, x.shape[-1] - clip.shape[-1])) for clip in clips])


def build_encoder(checkpoint: str | None, config: dict[str, Any] | None, mask_time_prob: float) -> Any:
    """The model of transformers, without LayerDrop, adapter and its own masking.

    Raises:
        ValueError: Neither is given, the checkpoint can't be loaded, or the model is of another type.
    """
    if config is not None:
        check_model_type(config.get("model_type"), MODEL_TYPES, "encoder ssl: config")
        settings = model_config(config, "encoder ssl: config")
    elif checkpoint is not None:
        settings = load_pretrained("AutoConfig", checkpoint)
        check_model_type(settings.model_type, MODEL_TYPES, f"encoder ssl: {checkpoint}")
    else:
        raise ValueError("encoder ssl: give either checkpoint or config")
    settings.layerdrop = 0.0
    settings.add_adapter = settings.use_intermediate_ffn_before_adapter = False
    # Masks are drawn by torch's generator and inside each clip; the model contributes its mask vector.
    settings.apply_spec_augment = mask_time_prob > 0
    settings.mask_time_prob, settings.mask_feature_prob = mask_time_prob, 0.0
    if checkpoint is None or config is not None:
        return build_from("AutoModel", settings, "encoder ssl: config")
    return load_pretrained("AutoModel", checkpoint, config=settings, dtype=torch.float32)


def _normalizes(checkpoint: str | None) -> bool:
    """Whether the checkpoint's feature extractor normalises waveforms; True for models with random weights."""
    if checkpoint is None:
        return True
    extractor = load_pretrained("AutoFeatureExtractor", checkpoint)
    if extractor.sampling_rate != SAMPLE_RATE:
        raise ValueError(f"encoder ssl: {checkpoint} takes {extractor.sampling_rate} Hz; expected {SAMPLE_RATE}")
    return extractor.do_normalize


def _receptive_field(config: Any) -> tuple[int, int]:
    """Receptive field of a frame of the convolutions, and samples from one frame to the next."""
    field, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field, step = field + (kernel - 1) * step, step * stride
    return field, step
