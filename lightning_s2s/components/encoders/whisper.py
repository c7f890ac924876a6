"""`whisper`: the encoder of any Whisper checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.encoders.windows import WindowedAudioEncoder
from lightning_s2s.components.pretrained import load_model, model_config
from lightning_s2s.components.registry import ENCODERS
from lightning_s2s.support.ranges import Natural, NonNegative


@ENCODERS.register("whisper")
class WhisperEncoder(WindowedAudioEncoder):
    """Encoder of a Whisper checkpoint (Radford et al., arXiv:2212.04356), averaged in pairs to 25 Hz.

    Audio is cut into windows of 30 s, each padded and encoded separately, and the audio frames are joined in order.
    As in the published OpenS2S code, the padding takes part in the attention; there, `pooling` is 1.

    Args:
        checkpoint: Hub id or folder of a Whisper model.
        config: Instead of a checkpoint, the configuration of an encoder with random weights.
        pooling: Hidden states averaged into one; 2 gives 25 Hz, 1 keeps Whisper's 50 Hz.
        real_frames_only: Whether to encode only the audio frames: faster, but not as published (and not as Whisper was
            trained).
        layers: Index of the hidden state to use, as in transformers: 0 is the input of the first layer, -1 the output
            of the last layer with its norm. The layers above are dropped. The hidden states of a list are normalised
            and concatenated: the lower ones carry more of the voice, the upper ones more of the words.
        time_masks: Number of SpecAugment masks over time in training (Park et al., arXiv:1904.08779).
        mel_masks: Number of SpecAugment masks over mel bands in training.
        time_mask_sec: Longest mask over time, in seconds.
        mel_mask_bands: Widest mask over mel bands.
    """

    paper = "arXiv:2212.04356"
    rates = "16 kHz -> 25 Hz (50 Hz)"
    size = "21M (base), 637M (large-v3)"
    licence = "MIT"
    separate_queries = True

    def __init__(
        self,
        checkpoint: str | None = "openai/whisper-base",
        config: PlainValues | None = None,
        pooling: int = 2,
        real_frames_only: bool = False,
        layers: int | list[int] = -1,
        time_masks: Natural = 0,
        mel_masks: Natural = 0,
        time_mask_sec: NonNegative = 0.2,
        mel_mask_bands: Natural = 12,
    ):
        super().__init__()
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as Encoder

        if pooling not in (1, 2):
            raise ValueError(f"encoder whisper: pooling must be 1 or 2; got {pooling}")
        if config is not None:
            self.encoder = Encoder(model_config({**config, "model_type": "whisper"}, "encoder whisper: config"))
        elif checkpoint is not None:
            self.encoder = load_model("WhisperForConditionalGeneration", checkpoint).model.encoder
        else:
            raise ValueError("encoder whisper: give either checkpoint or config")
        self.pooling, self.frame_rate_hz = pooling, 50.0 / pooling
        self.set_up(layers, real_frames_only, time_masks, mel_masks, time_mask_sec, mel_mask_bands)

    def finish(self, hidden_states: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        hidden_states = norm(hidden_states)
        if self.pooling == 1:
            return hidden_states
        return hidden_states[:, : hidden_states.shape[1] // 2 * 2].unflatten(1, (-1, 2)).mean(2)

    def count_frames(self, positions: Tensor) -> Tensor:
        return positions // self.pooling
