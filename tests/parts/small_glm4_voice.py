"""A small `glm4_voice` for its tests, and the published folder form of one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from lightning_s2s.components.vocoders.glm4_voice import Glm4VoiceVocoder
from parts.tolerances import assert_equal_but_for_rounding, roundings_of_pitch

FLOW = {
    "vocab_size": 50, "input_size": 12, "output_size": 8, "spk_embed_dim": 6, "encoder_size": 16, "attention_heads": 2,
    "linear_units": 24, "num_blocks": 2, "regulator_convolutions": 2, "estimator_in_channels": 32, "channels": [16, 24],
    "attention_head_dim": 8, "n_blocks": 1, "num_mid_blocks": 1, "num_heads": 2,
}  # fmt: skip
HIFT = {"in_channels": 8, "base_channels": 16, "nb_harmonics": 3, "f0_channels": 8, "resblock_kernel_sizes": [3, 7, 11]}
TOKENIZER = {
    "d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 16, "pooling_position": 1,
    "quantize_position": 2, "quantize_vocab_size": 50, "quantize_causal_block_size": 40,
}  # fmt: skip
CONFIG = {"flow": FLOW, "hift": HIFT}


def build_glm4_voice(**options) -> Glm4VoiceVocoder:
    """Small, with weights loud enough to make a difference, and fewer steps."""
    torch.manual_seed(0)
    vocoder = Glm4VoiceVocoder(**{"config": CONFIG, "num_steps": 3, "left_context_units": 10} | options).eval()
    with torch.no_grad():
        for name, weight in vocoder.named_parameters():
            weight.mul_(3.0 if name.startswith("hift.conv_p") else 1.0)
        vocoder.hift.f0_predictor.classifier.bias.fill_(180.0)
        vocoder.hift.m_source.l_linear.weight.fill_(2.0)
    return vocoder


def build_tokenizing() -> Glm4VoiceVocoder:
    """The same with a tokenizer, whose layers are loud enough to give several units."""
    vocoder = build_glm4_voice(config=CONFIG | {"tokenizer": TOKENIZER})
    with torch.no_grad():
        for layer in vocoder.tokenizer.layers:
            layer.fc2.weight.mul_(4.0)
    return vocoder


def random_units(num_rows: int, num_units: int, seed: int = 1) -> torch.Tensor:
    """(rows, units) of the small codebook."""
    return torch.randint(0, FLOW["vocab_size"], (num_rows, num_units), generator=torch.Generator().manual_seed(seed))


def write_decoder(folder: Path, vocoder: Glm4VoiceVocoder) -> Path:
    """The published form: two state dicts, HiFT's convolutions with weight norm."""
    folder.mkdir(parents=True)
    tensors = {}
    plain = ("source_downs", "m_source", "f0_predictor.classifier")
    for name, tensor in vocoder.hift.state_dict().items():
        if name.endswith("weight") and not name.startswith(plain):
            norm = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.dim() - 1))
            tensors[name.replace("weight", "weight_g")] = norm
            tensors[name.replace("weight", "weight_v")] = 2.5 * tensor
        else:
            tensors[name] = tensor
    torch.save(tensors, folder / "hift.pt")
    torch.save(vocoder.flow.state_dict(), folder / "flow.pt")
    return folder


def write_tokenizer(folder: Path, vocoder: Glm4VoiceVocoder) -> Path:
    """The published form, with tensors behind the quantiser that units don't need."""
    folder.mkdir()
    tensors = {f"model.encoder.{name}": tensor for name, tensor in vocoder.tokenizer.state_dict().items()}
    save_file(tensors | {"model.encoder.embed_positions2.weight": torch.zeros(4, 16)}, folder / "model.safetensors")
    config = {name: getattr(vocoder.tokenizer.config, name) for name in TOKENIZER} | {"max_source_positions": 1500}
    published = {"encoder_causal_convolution": True, "pooling_type": "avg", "pooling_kernel_size": 4}
    (folder / "config.json").write_text(json.dumps(config | published))
    preprocessor = {"feature_size": 16, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400, "chunk_length": 30}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def assert_same_sound(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The source has a pitch of about 180 Hz, with three harmonics above it."""
    assert_equal_but_for_rounding(found, expected, roundings_of_pitch(expected.shape[1], 22_050, 180.0, 4))
