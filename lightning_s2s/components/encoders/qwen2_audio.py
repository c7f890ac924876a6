"""`qwen2_audio`: the encoder of Qwen2-Audio, which OpenS2S uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.encoders.windows import WindowedAudioEncoder
from lightning_s2s.components.pretrained import model_config
from lightning_s2s.components.registry import ENCODERS
from lightning_s2s.components.weights import INDEX, WEIGHTS, Shards, load_part, parameters_on_meta
from lightning_s2s.support.ranges import Natural, NonNegative
from lightning_s2s.support.reading import read_json

PREFIXES = ("audio_tower.", "model.audio_tower.", "audio_encoder_model.", "")
"""Prefixes of the encoder's tensors in Qwen2-Audio, in an OpenS2S folder and in a checkpoint of the encoder alone."""
CONFIG_KEYS = ("audio_config", "audio_encoder_config")


@ENCODERS.register("qwen2_audio")
class Qwen2AudioEncoder(WindowedAudioEncoder):
    """Encoder of Qwen2-Audio (Chu et al., arXiv:2407.10759): Whisper-large-v3's shape, average pooling, 25 Hz.

    Audio is cut into windows of 30 s, each padded and encoded separately, and the audio frames are joined in order.
    As in the published OpenS2S code, the padding takes part in the attention.

    Args:
        checkpoint: Hub id or folder of Qwen2-Audio, of an OpenS2S model, or of the encoder alone; of a hub repository
            only the files that hold the encoder are downloaded.
        config: Instead of a checkpoint, the `Qwen2AudioEncoderConfig` of an encoder with random weights.
        real_frames_only: Whether to encode only the audio frames: faster, but not as published.
        layers: Index of the hidden state to use, as in transformers: 0 is the input of the first layer, -1 the output
            of the last layer with its norm. The layers above are dropped. The hidden states of a list are normalised
            and concatenated: the lower ones carry more of the voice, the upper ones more of the words.
        time_masks: Number of SpecAugment masks over time in training (Park et al., arXiv:1904.08779).
        mel_masks: Number of SpecAugment masks over mel bands in training.
        time_mask_sec: Longest mask over time, in seconds.
        mel_mask_bands: Widest mask over mel bands.
    """

    paper = "arXiv:2407.10759"
    rates = "16 kHz -> 25 Hz"
    size = "637M"
    licence = "Apache-2.0"
    frame_rate_hz = 25.0

    def __init__(
        self,
        checkpoint: str | None = "Qwen/Qwen2-Audio-7B",
        config: PlainValues | None = None,
        real_frames_only: bool = False,
        layers: int | list[int] = -1,
        time_masks: Natural = 0,
        mel_masks: Natural = 0,
        time_mask_sec: NonNegative = 0.2,
        mel_mask_bands: Natural = 12,
    ):
        super().__init__()
        if config is not None:
            self.encoder = build_encoder(config)
        elif checkpoint is not None:
            self.encoder = load_encoder(checkpoint)
        else:
            raise ValueError("encoder qwen2_audio: give either checkpoint or config")
        self.set_up(layers, real_frames_only, time_masks, mel_masks, time_mask_sec, mel_mask_bands)

    def finish(self, hidden_states: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(self.encoder.avg_pooler(hidden_states.transpose(1, 2)).transpose(1, 2))

    def count_frames(self, positions: Tensor) -> Tensor:
        return positions // 2


def build_encoder(config: dict[str, Any]) -> Any:
    """transformers' Qwen2AudioEncoder with random weights."""
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder as Encoder

    encoder = Encoder(model_config({**config, "model_type": "qwen2_audio_encoder"}, "encoder qwen2_audio: config"))
    if encoder.max_source_positions != 1500:
        raise ValueError(
            f"encoder qwen2_audio: config.max_source_positions must be 1500 (30 s); got {encoder.max_source_positions}"
        )
    return encoder


def load_encoder(checkpoint: str) -> Any:
    """Load the encoder from a larger checkpoint, without loading the rest."""
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else _download(checkpoint)
    config = read_json(folder / "config.json")
    config = next((config[key] for key in CONFIG_KEYS if key in config), config)
    shards = Shards(folder, _may_be_encoder)
    prefix = next(p for p in PREFIXES if any(name.startswith(f"{p}conv1.") for name in shards.files) or not p)
    with parameters_on_meta():
        encoder = build_encoder(config)
    load_part(encoder, shards, {name: name.removeprefix(prefix) for name in shards.files if name.startswith(prefix)})
    return encoder.float()


def _may_be_encoder(name: str) -> bool:
    """Whether a tensor of a larger checkpoint may belong to the encoder."""
    return name.startswith((*filter(None, PREFIXES), "conv", "embed_positions.", "layers.", "layer_norm."))


def _download(repository: str) -> Path:
    """Download the files of a hub repository that hold the encoder; returns their folder in the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        config = Path(hf_hub_download(repository, "config.json"))
        try:
            weight_map = read_json(Path(hf_hub_download(repository, INDEX)))["weight_map"]
        except EntryNotFoundError:  # there is a single file
            hf_hub_download(repository, WEIGHTS)
            return config.parent
        for file in sorted({file for name, file in weight_map.items() if _may_be_encoder(name)}):
            hf_hub_download(repository, file)
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{repository}: neither a folder nor a hub id of Qwen2-Audio ({reason})") from None
    return config.parent
