"""Codecs of a few hundred weights, in the shapes of the published ones, and what their tests have in common."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from parts import small_sizes
from parts.tolerances import assert_equal_but_for_rounding

HF_ENCODEC = {"model_type": "encodec", "num_filters": 2, "hidden_size": 8, "num_lstm_layers": 1}
MIMI = {**small_sizes.MIMI, "num_quantizers": 5, "num_hidden_layers": 2, "layer_scale_initial_scale": 0.5}
DAC = {
    "model_type": "dac", "sampling_rate": 3000, "encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 3,
    "downsampling_ratios": [2, 3, 5], "codebook_size": 16, "codebook_dim": 4,
}  # fmt: skip
XCODEC2 = {
    "model_type": "xcodec2", "hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 2, "encoder_hidden_size": 1, "quantization_dim": 80,
    "quantization_levels": [4, 4, 4],
    "semantic_model_config": {
        "model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "feature_projection_input_dim": 160,
    },
}  # fmt: skip


def random_units(vocoder: Vocoder, num_rows: int, num_units: int, seed: int = 1) -> torch.Tensor:
    """(num_rows, num_units), any unit at any place."""
    return torch.randint(0, vocoder.num_units, (num_rows, num_units), generator=torch.Generator().manual_seed(seed))


def noise(num_rows: int, num_samples: int, seed: int = 2) -> torch.Tensor:
    """(num_rows, num_samples)."""
    return 0.1 * torch.randn(num_rows, num_samples, generator=torch.Generator().manual_seed(seed))


def stream(vocoder: Vocoder, units: torch.Tensor, size: int | list[int], empty_last: bool = True) -> list:
    """The chunks of a stream that is given so many units at a time; it is closed by the last of them, or on its own."""
    state, pieces = vocoder.start_stream(), units.split(size, dim=1)
    chunks = [
        vocoder.stream(piece, state, last=number == len(pieces) - 1 and not empty_last)
        for number, piece in enumerate(pieces)
    ]
    return [*chunks, vocoder.stream(units[:, :0], state, last=True)] if empty_last else chunks


def assert_same_sound(chunks: list[torch.Tensor], expected: torch.Tensor) -> None:
    """Joined chunks are as long as the one-shot waveform and equal it, beside its peak."""
    joined = torch.cat(chunks, dim=1)
    assert joined.shape == expected.shape
    assert float(expected.std()) > 1e-3
    assert_equal_but_for_rounding(joined, expected)


def tensors_in(state: object) -> int:
    """Numbers that a stream's state keeps."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    if isinstance(state, dict):
        return sum(tensors_in(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(tensors_in(value) for value in state)
    return tensors_in(vars(state)) if hasattr(state, "__dict__") and not callable(state) else 0


def speaking_model(vocoder: Vocoder, tokenizer_folder: Path, max_units: int = 40) -> SpeechToSpeechModel:
    """A small model that speaks through the vocoder."""
    torch.manual_seed(0)
    return SpeechToSpeechModel(
        CausalLanguageModel(config=small_sizes.QWEN, tokenizer=str(tokenizer_folder)),
        MelEncoder(width=16, num_layers=1, num_heads=2),
        ConvAdapter(inner_width=8),
        InterleavedSpeechDecoder("2:3", small_sizes.QWEN, max_units=max_units),
        vocoder,
    ).eval()
