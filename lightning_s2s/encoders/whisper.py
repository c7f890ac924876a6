"""`whisper`: the encoder of any Whisper checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.interfaces import AudioEncoder
from lightning_s2s.registry import ENCODERS

WINDOW_SAMPLES = 480_000


@ENCODERS.register("whisper")
class WhisperEncoder(AudioEncoder):
    """Encoder of a Whisper checkpoint (Radford et al., arXiv:2212.04356), averaged in pairs to 25 Hz.

    Audio is cut into windows of 30 s, each padded and encoded alone, and the frames with audio are joined in order.
    As in the published OpenS2S code, the padding takes part in the attention.

    Args:
        checkpoint: hub id or folder of a Whisper model.
        config: instead of a checkpoint, the configuration of an encoder with random weights.
        pooling: hidden states averaged into one; 2 gives 25 Hz, 1 leaves Whisper's 50 Hz.
    """

    sample_rate = 16_000

    def __init__(
        self, checkpoint: str | None = "openai/whisper-base", config: dict[str, Any] | None = None, pooling: int = 2
    ):
        super().__init__()
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as Encoder

        from lightning_s2s.llms.causal import load_pretrained

        if pooling not in (1, 2):
            raise ValueError(f"encoder whisper: pooling must be 1 or 2; got {pooling}")
        if config is not None:
            settings = {key: value for key, value in config.items() if key != "model_type"}
            self.encoder = Encoder(WhisperConfig(**settings))
        else:
            self.encoder = load_pretrained("WhisperForConditionalGeneration", checkpoint).model.encoder
        self.pooling, self.frame_rate_hz = pooling, 50.0 / pooling
        self.width = self.encoder.config.d_model
        self.features = WhisperFeatureExtractor(feature_size=self.encoder.config.num_mel_bins)

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        return {**self.init_args, "checkpoint": None, "config": self.encoder.config.to_diff_dict()}

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        pieces, owners = [], []
        for row, length in enumerate(lengths.tolist()):
            for start in range(0, length, WINDOW_SAMPLES):
                pieces.append(waveform[row, start : min(length, start + WINDOW_SAMPLES)].float().cpu().numpy())
                owners.append(row)
        features = self.features(pieces, sampling_rate=self.sample_rate, return_tensors="pt").input_features
        hidden = self.encoder(features.to(waveform.device, self.encoder.conv1.weight.dtype)).last_hidden_state
        if self.pooling == 2:
            hidden = hidden.unflatten(1, (-1, 2)).mean(2)
        frames = torch.tensor([len(piece) // (320 * self.pooling) for piece in pieces])
        joined = [
            torch.cat([hidden[i, : frames[i]] for i, owner in enumerate(owners) if owner == row])
            for row in range(len(lengths))
        ]
        counts = torch.tensor([len(row) for row in joined], device=waveform.device)
        return torch.nn.utils.rnn.pad_sequence(joined, batch_first=True), counts
