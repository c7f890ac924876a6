"""`ssl`: speech models that learnt without labels, as transformers has them."""

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
from lightning_s2s.components.pretrained import build_from, load_pretrained, model_config, without_code
from lightning_s2s.components.registry import ENCODERS
from lightning_s2s.support.ranges import Count, Share
from lightning_s2s.support.wording import unknown_name

MODEL_TYPES = ("hubert", "wav2vec2", "wav2vec2-bert", "wavlm")
SAMPLE_RATE = 16_000

_lengths: ContextVar[Tensor] = ContextVar("lengths")
"""(B,) frames, behind the first convolution, of the clips that this thread encodes beside what others do."""


@ENCODERS.register("ssl")
class SslEncoder(AudioEncoder):
    """HuBERT, WavLM, wav2vec 2.0 or w2v-BERT 2.0: 16 kHz -> 50 Hz, one layer or a learnt sum of all.

    Sources: arXiv:2106.07447, arXiv:2110.13900, arXiv:2006.11477, arXiv:2312.05187. A clip in a batch equals the clip
    alone, also where the model normalises over time. LayerDrop is off, since a sum needs all layers; the adapter that a
    checkpoint may have at its end is left out.

    Args:
        checkpoint: hub id or folder.
        config: instead of a checkpoint, the configuration of a model with random weights, with its `model_type`.
        layers: the layer that is heard, as transformers counts hidden states: 0 is the input of the first layer, -1 the
            last layer with the norm that may follow it; the layers above are dropped. `weighted`: a learnable sum of
            all hidden states.
        normalize: bring each clip's waveform to mean 0 and variance 1; None: as the checkpoint's feature extractor
            says. w2v-BERT hears log-mel and always normalises that.
        mask_time_prob: share of the frames that is hidden while training, by the model's own mask vector; 0 is off.
        mask_time_length: frames that are hidden at a time.

    Raises:
        ValueError: neither checkpoint nor config, another model type, no such layer, or an option that the model
            doesn't have.
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
        if not 0 <= mask_time_prob < 1 or mask_time_length < 1:
            raise ValueError(
                "encoder ssl: mask_time_prob must be in [0, 1) and mask_time_length at least 1; "
                f"got {mask_time_prob}, {mask_time_length}"
            )
        self.mask_time_prob, self.mask_time_length = mask_time_prob, mask_time_length
        self.encoder = build_encoder(checkpoint, config, mask_time_prob)
        self._config = without_code(self.encoder.config)
        self.hears_mel = self.encoder.config.model_type == "wav2vec2-bert"
        if self.hears_mel and normalize is not None:
            raise ValueError("encoder ssl: normalize is for models that hear waveforms; w2v-BERT hears log-mel")
        self.normalize = False
        if not self.hears_mel:
            self.normalize = _normalizes(checkpoint if config is None else None) if normalize is None else normalize
        self.width = self.encoder.config.hidden_size
        self._choose(layers)
        if self.hears_mel:
            from transformers import SeamlessM4TFeatureExtractor

            num_mels = self.encoder.config.feature_projection_input_dim // 2  # two frames make one
            self.features = SeamlessM4TFeatureExtractor(feature_size=num_mels, num_mel_bins=num_mels)
            self.min_samples, samples_per_frame = 400 + 160, 320
        else:
            self.min_samples, samples_per_frame = _receptive_field(self.encoder.config)
            first = self.encoder.feature_extractor.conv_layers[0]
            if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
                first.layer_norm = ClipNorm(first.layer_norm)
        self.frame_rate_hz = SAMPLE_RATE / samples_per_frame

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        normalize = None if self.hears_mel else self.normalize
        return {**self.init_args, "checkpoint": None, "config": self._config, "normalize": normalize}

    def train(self, mode: bool = True) -> SslEncoder:
        """A frozen convolutional front end runs as in inference, so that no gradients are kept for its long outputs."""
        super().train(mode)
        front = getattr(self.encoder, "feature_extractor", None)
        if front is not None and not any(parameter.requires_grad for parameter in front.parameters()):
            front.eval()
        return self

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < self.min_samples:
            raise ValueError(f"encoder ssl: a clip has {shortest} samples; at least {self.min_samples} are needed")
        inputs, counts, mask = (self._log_mel if self.hears_mel else self._samples)(waveform[:, :longest], lengths)
        options: dict[str, Any] = {"attention_mask": mask} if shortest < longest else {}
        if self.training and self.mask_time_prob > 0:
            size = int(counts.max())
            options["mask_time_indices"] = draw_spans(counts, size, self.mask_time_prob, self.mask_time_length)
        if self.layer_sum is None:
            return self.encoder(inputs, **options).last_hidden_state, counts
        return self.layer_sum(self.encoder(inputs, output_hidden_states=True, **options).hidden_states), counts

    def _choose(self, layers: int | str) -> None:
        """Drop the layers above the one that is heard, or set up the sum of all."""
        inner = self.encoder.encoder
        num_layers = len(inner.layers)
        heard = find_layer(layers, num_layers + 1, "encoder ssl")
        self.layer_sum = LayerSum(num_layers + 1) if heard is None else None
        if heard is not None and heard < num_layers:
            inner.layers = inner.layers[:heard]
        if heard != num_layers and getattr(self.encoder.config, "do_stable_layer_norm", False):
            inner.layer_norm = nn.Identity()  # it follows the last layer, which isn't heard by itself

    def _samples(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Waveform (B, T), (B,) frames and the mask of samples."""
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
        """Log-mel in pairs of frames (B, F, 2 mels), (B,) frames and their mask; an odd last frame is left out."""
        clips = [row[:length].float().cpu().numpy() for row, length in zip(waveform, lengths.tolist(), strict=True)]
        features = self.features(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        counts = features.attention_mask.sum(1).to(lengths)
        size = int(counts.max())
        weight = self.encoder.feature_projection.projection.weight
        return features.input_features[:, :size].to(weight), counts, lengths_to_mask(counts, size).long()


class ClipNorm(nn.GroupNorm):
    """GroupNorm of each clip over its own frames, see `_lengths`: `nn.GroupNorm` counts a batch's padding as well."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, F) -> (B, D, F), zeros behind a clip's frames."""
        lengths = _lengths.get().tolist()
        if min(lengths) == x.shape[-1]:
            return super().forward(x)
        clips = [super(ClipNorm, self).forward(row[None, :, :n]) for row, n in zip(x, lengths, strict=True)]
        return torch.cat([nn.functional.pad(clip, (0, x.shape[-1] - clip.shape[-1])) for clip in clips])


def build_encoder(checkpoint: str | None, config: dict[str, Any] | None, mask_time_prob: float) -> Any:
    """The model of transformers, without LayerDrop, adapter and masks of its own drawing.

    Raises:
        ValueError: neither is given, it can't be loaded, or the model is of another type.
    """
    if config is not None:
        _check_type(config.get("model_type"), "config")
        settings = model_config(config, "encoder ssl: config")
    elif checkpoint is not None:
        settings = load_pretrained("AutoConfig", checkpoint)
        _check_type(settings.model_type, checkpoint)
    else:
        raise ValueError("encoder ssl: give either checkpoint or config")
    settings.layerdrop = 0.0
    settings.add_adapter = settings.use_intermediate_ffn_before_adapter = False
    # Masks are drawn here, by torch's generator and inside each clip; the model has the vector that hides frames.
    settings.apply_spec_augment = mask_time_prob > 0
    settings.mask_time_prob, settings.mask_feature_prob = mask_time_prob, 0.0
    if config is not None:
        return build_from("AutoModel", settings, "encoder ssl: config", "model")
    return load_pretrained("AutoModel", checkpoint, config=settings, dtype=torch.float32)


def _check_type(model_type: str | None, source: str) -> None:
    if model_type not in MODEL_TYPES:
        raise ValueError(f"encoder ssl: {source}: {unknown_name('model_type', str(model_type), MODEL_TYPES)}")


def _normalizes(checkpoint: str | None) -> bool:
    """Whether the checkpoint's feature extractor normalises waveforms; models with random weights do."""
    if checkpoint is None:
        return True
    extractor = load_pretrained("AutoFeatureExtractor", checkpoint)
    if extractor.sampling_rate != SAMPLE_RATE:
        raise ValueError(f"encoder ssl: {checkpoint} hears {extractor.sampling_rate} Hz; expected {SAMPLE_RATE}")
    return extractor.do_normalize


def _receptive_field(config: Any) -> tuple[int, int]:
    """Samples that one frame of the convolutions sees, and samples from one frame to the next."""
    sees, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        sees, step = sees + (kernel - 1) * step, step * stride
    return sees, step
