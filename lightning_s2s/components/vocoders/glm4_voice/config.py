"""Sizes of the decoder and the tokenizer: the published ones, or those of a `config.yaml`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning_s2s.support.reading import read_yaml as read_plain_yaml


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of units -> mel; names and defaults are those of the published `config.yaml`."""

    vocab_size: int = 16_384
    input_size: int = 512
    output_size: int = 80
    spk_embed_dim: int = 192
    input_frame_rate: float = 12.5
    sampling_rate: int = 22_050
    mel_hop_length: int = 256
    encoder_size: int = 512
    attention_heads: int = 8
    linear_units: int = 2048
    num_blocks: int = 6
    block_size: int = 10
    regulator_convolutions: int = 4
    estimator_in_channels: int = 320
    channels: tuple[int, ...] = (256, 256)
    attention_head_dim: int = 64
    n_blocks: int = 4
    num_mid_blocks: int = 12
    num_heads: int = 8


@dataclass(frozen=True)
class HiftConfig:
    """Sizes of mel -> waveform; names and defaults are those of the published `config.yaml`."""

    in_channels: int = 80
    base_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = 22_050
    nsf_alpha: float = 0.1
    nsf_sigma: float = 0.003
    nsf_voiced_threshold: float = 10.0
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16)
    n_fft: int = 16
    hop_len: int = 4
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 2
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99
    f0_channels: int = 512
    f0_convolutions: int = 5


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of waveform -> units; names and defaults are those of the published `config.json`.

    The last four come from `preprocessor_config.json`.
    """

    d_model: int = 1280
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    num_mel_bins: int = 128
    max_source_positions: int = 1500
    pooling_kernel_size: int = 4
    pooling_position: int = 16
    quantize_position: int = 16
    quantize_vocab_size: int = 16_384
    quantize_causal_block_size: int = 200
    sampling_rate: int = 16_000
    n_fft: int = 400
    hop_length: int = 160
    chunk_length: int = 30


Config = TypeVar("Config", FlowConfig, HiftConfig, TokenizerConfig)

NORM_GROUPS = 8
"""Groups of the GroupNorms in the flow's estimator."""


def with_values(base: Config, values: Mapping[str, Any], source: str) -> Config:
    """`base` with some values replaced; lists become tuples.

    Raises:
        ValueError: A key is unknown, or a value has the wrong type; the message starts with `source`.
    """
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    given = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"{source}: unknown key {key!r}; known: {', '.join(fields)}")
        given[key] = _like(fields[key], value, f"{source}.{key}")
    return dataclasses.replace(base, **given)


def _like(example: Any, value: Any, source: str) -> Any:
    """The value in the type of the example; an integer is accepted in place of a float."""
    if isinstance(example, tuple):
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"{source}: got {value!r}; a list is needed")
        return tuple(_like(example[0], item, source) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | (float if isinstance(example, float) else int)):
        raise ValueError(
            f"{source}: got {value!r}; {'a number' if isinstance(example, float) else 'an integer'} needed"
        )
    if value <= 0:
        raise ValueError(f"{source}: got {value}; it must be positive")
    return type(example)(value)


def check_sizes(flow: FlowConfig, hift: HiftConfig) -> None:
    """Raise ValueError if two sizes contradict each other; the message names both."""
    if flow.encoder_size % flow.attention_heads or flow.encoder_size % 2:
        raise ValueError(
            f"config.flow: encoder_size {flow.encoder_size} must be even and a multiple of attention_heads "
            f"{flow.attention_heads}"
        )
    if flow.estimator_in_channels != 4 * flow.output_size:
        raise ValueError(
            f"config.flow: estimator_in_channels must be 4 x output_size (mel, mu, speaker, prompt); got "
            f"{flow.estimator_in_channels} and {flow.output_size}"
        )
    if wrong := [width for width in flow.channels if width % NORM_GROUPS]:
        raise ValueError(f"config.flow: channels must be multiples of {NORM_GROUPS} (GroupNorm); got {wrong[0]}")
    for name, ours, theirs in (
        ("mel bands (output_size, in_channels)", flow.output_size, hift.in_channels),
        ("sampling_rate", flow.sampling_rate, hift.sampling_rate),
        ("samples of a mel frame", flow.mel_hop_length, math.prod(hift.upsample_rates) * hift.hop_len),
    ):
        if ours != theirs:
            raise ValueError(f"config: {name}: flow has {ours}, hift {theirs}; they must be equal")
    stages = len(hift.upsample_rates)
    for name in ("upsample_kernel_sizes", "source_resblock_kernel_sizes", "source_resblock_dilation_sizes"):
        if len(getattr(hift, name)) != stages:
            raise ValueError(f"config.hift: {name} needs {stages} values, one for each of upsample_rates")
    if len(hift.resblock_kernel_sizes) != len(hift.resblock_dilation_sizes):
        raise ValueError("config.hift: resblock_kernel_sizes and resblock_dilation_sizes differ in length")
    if hift.base_channels >> stages < 1:
        raise ValueError(f"config.hift: base_channels {hift.base_channels} can't be halved {stages} times")


def _unchanged(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_FLOW_KEYS = {
    ("flow",): _unchanged("vocab_size", "input_size", "output_size", "spk_embed_dim", "input_frame_rate"),
    ("flow", "encoder"): {
        "output_size": "encoder_size",
        **_unchanged("attention_heads", "linear_units", "num_blocks", "block_size"),
    },
    ("flow", "length_regulator"): {"sampling_ratios": "regulator_convolutions"},
    ("flow", "decoder", "estimator"): {
        "in_channels": "estimator_in_channels",
        **_unchanged("channels", "attention_head_dim", "n_blocks", "num_mid_blocks", "num_heads"),
    },
    ("hift",): _unchanged("sampling_rate"),
}
_HIFT_KEYS = {
    ("hift",): _unchanged(*(field.name for field in dataclasses.fields(HiftConfig))),
    ("hift", "istft_params"): _unchanged("n_fft", "hop_len"),
    ("hift", "f0_predictor"): {"cond_channels": "f0_channels"},
}
"""Mapping of the published `config.yaml` -> its keys -> our fields."""


def read_yaml(path: Path) -> tuple[FlowConfig, HiftConfig]:
    """The sizes in a published `config.yaml`, a HyperPyYAML file whose tags name classes: none is imported or built.

    A `!ref <key>` to a top-level value is followed; sizes that the file leaves out are the published ones.

    Raises:
        ValueError: The file is not YAML, has no mapping `flow` or `hift`, or holds a value of the wrong type.
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """Reads a tagged node as if it had no tag."""

    def untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        assert isinstance(node, yaml.ScalarNode)
        return loader.construct_scalar(node)

    PlainLoader.add_multi_constructor("!", untagged)
    content = read_plain_yaml(path, PlainLoader)
    for key in ("flow", "hift"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise ValueError(f"{path}: key {key!r} is missing; it must hold the decoder's sizes")

    def select(keys: Mapping[tuple[str, ...], Mapping[str, str]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for place, names in keys.items():
            part: Any = content
            for key in place:
                part = part.get(key) or {}
                if not isinstance(part, dict):
                    raise ValueError(f"{path}: {'.'.join(place)}: got {part!r}; a mapping is needed")
            values |= {ours: _follow(part[theirs], content, path) for theirs, ours in names.items() if theirs in part}
        return values

    flow = select(_FLOW_KEYS)
    if isinstance(ratios := flow.get("regulator_convolutions"), list):
        flow["regulator_convolutions"] = len(ratios)
    return (
        with_values(FlowConfig(), flow, f"{path}: flow"),
        with_values(HiftConfig(), select(_HIFT_KEYS), f"{path}: hift"),
    )


def _follow(value: Any, content: Mapping[str, Any], path: Path) -> Any:
    """The top-level value that `<key>` refers to, if the value is such a reference."""
    if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
        key = value[1:-1]
        if key not in content:
            raise ValueError(f"{path}: the reference {value} names no key of the file")
        return content[key]
    return value
