"""Reading the published files safely: tensors alone, weight norm folded, every problem named with file and tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.components.vocoders.glm4_voice.config import (
    FlowConfig,
    HiftConfig,
    TokenizerConfig,
    infer_flow,
    infer_hift,
    read_yaml,
    with_values,
)
from lightning_s2s.components.weights import read_state_dict
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
        ValueError: one of a pair is missing, or their shapes don't fit.
    """
    folded = {}
    for name, tensor in tensors.items():
        for gain, direction in WEIGHT_NORM:
            if name.endswith(f".{gain}") and name.removesuffix(gain) + direction not in tensors:
                raise ValueError(f"{path}: {name} has no {direction} beside it")
            if name.endswith(f".{direction}"):
                prefix = name.removesuffix(direction)
                if prefix + gain not in tensors:
                    raise ValueError(f"{path}: {name} has no {gain} beside it")
                size = tensors[prefix + gain]
                if tensor.dim() < 2 or size.shape != (len(tensor), *[1] * (tensor.dim() - 1)):
                    raise ValueError(
                        f"{path}: {prefix + gain} has shape {tuple(size.shape)}, {name} {tuple(tensor.shape)}; "
                        f"one gain for each first index is needed"
                    )
                folded[prefix + "weight"] = torch._weight_norm(tensor, size, 0)
        if not name.endswith(tuple(f".{part}" for pair in WEIGHT_NORM for part in pair)):
            folded[name] = tensor
    return folded


def read_decoder(folder: Path) -> tuple[FlowConfig, HiftConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Sizes and tensors of a decoder folder: `flow.pt`, `hift.pt` and, as published, `config.yaml`.

    Raises:
        ValueError: a file is missing, broken or no decoder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected GLM-4-Voice's decoder with flow.pt and hift.pt")
    flow_path, hift_path, yaml_path = folder / "flow.pt", folder / "hift.pt", folder / "config.yaml"
    flow = read_state_dict(flow_path, WHAT)
    hift = fold_weight_norm(read_state_dict(hift_path, WHAT), hift_path)
    if yaml_path.is_file():
        flow_config, hift_config = read_yaml(yaml_path)
    else:
        flow_config, hift_config = infer_flow(flow, flow_path), infer_hift(hift, hift_path)
    return flow_config, hift_config, flow, hift


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """The sizes in a tokenizer folder's `config.json` and `preprocessor_config.json`.

    Raises:
        ValueError: a file is missing or broken, or asks for a layer that isn't GLM-4-Voice's.
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


def read_tokenizer_tensors(folder: Path, names: list[str]) -> tuple[dict[str, Tensor], Path]:
    """The tokenizer's tensors without their prefix; what comes behind the quantiser is not read.

    Raises:
        ValueError: the file is missing or broken, or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the weights of GLM-4-Voice's tokenizer")
    try:
        with safe_open(path, framework="pt") as file:
            stored = set(file.keys())
            missing = [TOKENIZER_PREFIX + name for name in names if TOKENIZER_PREFIX + name not in stored]
            if missing:
                raise ValueError(f"{path}: lacks {len(missing)} tensors, first {missing[0]}")
            return {name: file.get_tensor(TOKENIZER_PREFIX + name) for name in names}, path
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
