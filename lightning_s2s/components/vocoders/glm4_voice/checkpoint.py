"""Reads the published files as plain tensors and folds the weight norm; errors name the file and the tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.components.vocoders.glm4_voice.config import (
    FlowConfig,
    HiftConfig,
    TokenizerConfig,
    read_yaml,
    with_values,
)
from lightning_s2s.components.vocoders.glm4_voice.tokenizer import Glm4VoiceTokenizer
from lightning_s2s.components.weights import Shards, load_part, read_state_dict
from lightning_s2s.support.reading import read_json

WHAT = "a state dict of GLM-4-Voice's decoder"
TOKENIZER_PREFIX = "model.encoder."
WEIGHT_NORM = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
"""How torch names a weight's length and direction, before and since its version 2.1."""


def fold_weight_norm(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`weight_g` and `weight_v`, or torch's newer names of the same, -> `weight` = g v / |v|.

    Raises:
        ValueError: One of a pair is missing, or their shapes don't match.
    """
    folded = dict(tensors)
    for gain, direction in WEIGHT_NORM:
        both = (gain, direction)
        found = {name.removesuffix(part): part for part in both for name in tensors if name.endswith(f".{part}")}
        for prefix, part in found.items():
            if missing := {prefix + gain, prefix + direction} - tensors.keys():
                raise ValueError(f"{path}: {prefix}{part} has no {missing.pop().removeprefix(prefix)} beside it")
            size, tensor = folded.pop(prefix + gain), folded.pop(prefix + direction)
            if tensor.dim() < 2 or size.shape != (len(tensor), *[1] * (tensor.dim() - 1)):
                raise ValueError(
                    f"{path}: {prefix}{gain} has shape {tuple(size.shape)}, {prefix}{direction} {tuple(tensor.shape)}; "
                    "one gain for each first index is needed"
                )
            folded[prefix + "weight"] = torch._weight_norm(tensor, size, 0)
    return folded


def read_decoder(folder: Path) -> tuple[FlowConfig, HiftConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Sizes and tensors of a decoder folder: `flow.pt`, `hift.pt` and, as published, `config.yaml`.

    Without `config.yaml`, the sizes are the published ones.

    Raises:
        ValueError: A file is missing, broken or not part of a decoder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected GLM-4-Voice's decoder with flow.pt and hift.pt")
    flow_path, hift_path, yaml_path = folder / "flow.pt", folder / "hift.pt", folder / "config.yaml"
    flow = read_state_dict(flow_path, WHAT)
    hift = fold_weight_norm(read_state_dict(hift_path, WHAT), hift_path)
    flow_config, hift_config = read_yaml(yaml_path) if yaml_path.is_file() else (FlowConfig(), HiftConfig())
    return flow_config, hift_config, flow, hift


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """The sizes in a tokenizer folder's `config.json` and `preprocessor_config.json`.

    Raises:
        ValueError: A file is missing or broken, or describes another architecture than GLM-4-Voice's.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected GLM-4-Voice's tokenizer with config.json")
    values: dict[str, Any] = {}
    features = {"sampling_rate": "sampling_rate", "n_fft": "n_fft", "hop_length": "hop_length"}
    features |= {"chunk_length": "chunk_length", "num_mel_bins": "feature_size"}
    config = read_json(folder / "config.json")
    expected = {
        "encoder_causal_convolution": True,
        "encoder_causal_attention": False,
        "quantize_causal_encoder": False,
        "quantize_encoder_only": True,
        "pooling_type": "avg",
        "activation_function": "gelu",
        "scale_embedding": False,
    }
    for key, value in expected.items():
        if key in config and config[key] != value:
            raise ValueError(f"{folder / 'config.json'}: {key}: got {config[key]!r}; this tokenizer needs {value!r}")
    for name in TokenizerConfig.__dataclass_fields__:
        if name in features:
            continue
        if name not in config:
            raise ValueError(f"{folder / 'config.json'}: key {name!r} is missing")
        values[name] = config[name]
    path = folder / "preprocessor_config.json"
    preprocessor = read_json(path)
    values |= {ours: preprocessor[theirs] for ours, theirs in features.items() if theirs in preprocessor}
    if values.get("num_mel_bins") != config.get("num_mel_bins"):
        raise ValueError(f"{path}: feature_size must be config.json's num_mel_bins, {config.get('num_mel_bins')}")
    return with_values(TokenizerConfig(), values, str(folder))


def load_tokenizer(folder: Path, tokenizer: Glm4VoiceTokenizer) -> None:
    """Load the published weights; the layers after the quantiser are not read.

    Raises:
        ValueError: The file is missing or broken, or lacks a tensor.
    """
    shards = Shards(folder)
    names = {TOKENIZER_PREFIX + name: name for name in tokenizer.state_dict()}
    load_part(tokenizer, shards, {name: own for name, own in names.items() if name in shards.files})
    tokenizer.float()
