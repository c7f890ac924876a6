"""Sizes of the decoder and the tokenizer: the published ones, those of a `config.yaml`, or those that tensors tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

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
    """`base` with the values of a mapping in their place; lists become tuples.

    Raises:
        ValueError: an unknown key, or a value of another type; the message starts with `source`.
    """
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    given = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"{source}: unknown key {key!r}; known: {', '.join(fields)}")
        given[key] = _like(fields[key], value, f"{source}.{key}")
    return dataclasses.replace(base, **given)


def _like(example: Any, value: Any, source: str) -> Any:
    """The value in the type of the example, an integer where a float may stand."""
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
    """Raise ValueError where sizes don't fit each other, naming both."""
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


def read_yaml(path: Path) -> tuple[FlowConfig, HiftConfig]:
    """The sizes in a published `config.yaml`, a HyperPyYAML file whose tags name classes: none is imported or built.

    `!ref <key>` to a top-level value is followed; what the file doesn't say has the published value.

    Raises:
        ValueError: not YAML, no mapping `flow` or `hift`, or a value of the wrong type.
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """Reads a tagged node as if it had no tag."""

    def untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)

    PlainLoader.add_multi_constructor("!", untagged)
    content = read_plain_yaml(path, PlainLoader)
    for key in ("flow", "hift"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise ValueError(f"{path}: key {key!r} is missing; it must hold the decoder's sizes")

    def at(*keys: str) -> dict[str, Any]:
        part: Any = content
        for key in keys:
            part = part.get(key) or {}
            if not isinstance(part, dict):
                raise ValueError(f"{path}: {'.'.join(keys)}: got {part!r}; a mapping is needed")
        return {key: _follow(value, content, path) for key, value in part.items()}

    def select(part: dict[str, Any], **names: str) -> dict[str, Any]:
        return {ours: part[theirs] for ours, theirs in names.items() if theirs in part}

    flow, encoder, estimator = at("flow"), at("flow", "encoder"), at("flow", "decoder", "estimator")
    regulator = at("flow", "length_regulator")
    own = ("vocab_size", "input_size", "output_size", "spk_embed_dim", "input_frame_rate")
    of_encoder = ("attention_heads", "linear_units", "num_blocks", "block_size")
    of_estimator = ("channels", "attention_head_dim", "n_blocks", "num_mid_blocks", "num_heads")
    values = select(flow, **{name: name for name in own}) | select(encoder, encoder_size="output_size")
    values |= select(encoder, **{name: name for name in of_encoder})
    values |= select(estimator, estimator_in_channels="in_channels", **{name: name for name in of_estimator})
    if isinstance(ratios := regulator.get("sampling_ratios"), list):
        values["regulator_convolutions"] = len(ratios)
    hift = at("hift")
    known = {field.name for field in dataclasses.fields(HiftConfig)}
    waves = {key: value for key, value in hift.items() if key in known}
    waves |= select(at("hift", "istft_params"), n_fft="n_fft", hop_len="hop_len")
    waves |= select(at("hift", "f0_predictor"), f0_channels="cond_channels")
    if "sampling_rate" in waves:
        values["sampling_rate"] = waves["sampling_rate"]
    return with_values(FlowConfig(), values, f"{path}: flow"), with_values(HiftConfig(), waves, f"{path}: hift")


def _follow(value: Any, content: Mapping[str, Any], path: Path) -> Any:
    """What `<key>` refers to, if the value is such a reference."""
    if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
        key = value[1:-1]
        if key not in content:
            raise ValueError(f"{path}: the reference {value} names no key of the file")
        return content[key]
    return value


class Shapes:
    """Shapes of a state dict by name, with errors that name its file."""

    def __init__(self, tensors: Mapping[str, Tensor], path: Path):
        self.tensors, self.path = tensors, path

    def __call__(self, name: str, num_dims: int) -> tuple[int, ...]:
        """The shape of one tensor.

        Raises:
            ValueError: it is missing, or has another number of dimensions.
        """
        if name not in self.tensors:
            raise ValueError(f"{self.path}: lacks the tensor {name}; expected weights of GLM-4-Voice's decoder")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != num_dims:
            raise ValueError(f"{self.path}: {name} has shape {shape}; {num_dims} dimensions are needed")
        return shape

    def count(self, pattern: str) -> int:
        """How many of the tensors `pattern` with 0, 1, 2, ... in place of `{}` there are, up to the first gap."""
        number = 0
        while pattern.format(number) in self.tensors:
            number += 1
        return number


def estimator_heads(inner: int, encoder_heads: int, encoder_head_width: int) -> list[int]:
    """Possible numbers of heads of the estimator's attention, likeliest first.

    Its tensors tell heads x head width alone. In the published model heads and head width both are the encoder's; where
    one of them can't be, the other is taken, and then any divisor.
    """
    likely = [encoder_heads, inner // encoder_head_width]
    divisors = [heads for heads in range(1, inner + 1) if inner % heads == 0]
    return list(dict.fromkeys(heads for heads in [*likely, *divisors] if heads and inner % heads == 0))


def infer_flow(tensors: Mapping[str, Tensor], path: Path) -> FlowConfig:
    """The sizes that the tensors of `flow.pt` tell; block size, rates and, in doubt, heads are the published ones.

    Raises:
        ValueError: a tensor is missing or has another number of dimensions.
    """
    shape = Shapes(tensors, path)
    vocab_size, input_size = shape("input_embedding.weight", 2)
    output_size, encoder_size = shape("encoder_proj.weight", 2)
    heads, head_width = shape("encoder.encoders.0.self_attn.pos_bias_u", 2)
    estimator, resnet = "decoder.estimator.", "0.block1.block.0.weight"
    inner = shape(f"{estimator}down_blocks.0.1.0.attn1.to_q.weight", 2)[0]
    num_heads = estimator_heads(inner, heads, head_width)[0]
    stages = shape.count(estimator + "down_blocks.{}." + resnet)
    return FlowConfig(
        vocab_size=vocab_size,
        input_size=input_size,
        output_size=output_size,
        spk_embed_dim=shape("spk_embed_affine_layer.weight", 2)[1],
        encoder_size=encoder_size,
        attention_heads=heads,
        linear_units=shape("encoder.encoders.0.feed_forward.w_1.weight", 2)[0],
        num_blocks=shape.count("encoder.encoders.{}.norm_ff.weight"),
        regulator_convolutions=count_weights(tensors, "length_regulator.model.", 3) - 1,
        estimator_in_channels=shape(f"{estimator}time_mlp.linear_1.weight", 2)[1],
        channels=tuple(shape(f"{estimator}down_blocks.{stage}.{resnet}", 3)[0] for stage in range(stages)),
        attention_head_dim=inner // num_heads,
        n_blocks=shape.count(estimator + "down_blocks.0.1.{}.norm1.weight"),
        num_mid_blocks=shape.count(estimator + "mid_blocks.{}." + resnet),
        num_heads=num_heads,
    )


def infer_hift(tensors: Mapping[str, Tensor], path: Path) -> HiftConfig:
    """The sizes that the tensors of `hift.pt` tell, weight norm folded.

    The rates of all stages but the first are those of the source's strides; hop = FFT size / 4 and the mel's 256
    samples a frame give the first. Dilations are 1, 3, 5, 7, ...; the rest is as published.

    Raises:
        ValueError: a tensor is missing or has another number of dimensions.
    """
    shape = Shapes(tensors, path)
    base_channels, in_channels, _ = shape("conv_pre.weight", 3)
    stages = shape.count("ups.{}.weight")
    kernels = [shape(f"ups.{stage}.weight", 3)[2] for stage in range(stages)]
    num_kernels = shape.count("resblocks.{}.convs1.0.weight") // max(1, stages)

    def blocks(prefix: str, count: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        sizes = tuple(shape(f"{prefix}.{number}.convs1.0.weight", 3)[2] for number in range(count))
        depths = [shape.count(f"{prefix}.{number}.convs1." + "{}.weight") for number in range(count)]
        return sizes, tuple(tuple(2 * step + 1 for step in range(depth)) for depth in depths)

    resblocks, dilations = blocks("resblocks", num_kernels)
    source_resblocks, source_dilations = blocks("source_resblocks", stages)
    n_fft = shape("conv_post.weight", 3)[0] - 2
    # A source's stride is what the later stages multiply up to; its kernel is twice that, or 1 for no stride.
    strides = [max(1, shape(f"source_downs.{stage}.weight", 3)[2] // 2) for stage in range(stages)]
    first = FlowConfig.mel_hop_length // max(1, n_fft // 4 * strides[0]) if strides else 1
    rates = [first, *(before // after for before, after in zip(strides, strides[1:], strict=False))]
    return HiftConfig(
        in_channels=in_channels,
        base_channels=base_channels,
        nb_harmonics=shape("m_source.l_linear.weight", 2)[1] - 1,
        upsample_rates=tuple(rates),
        upsample_kernel_sizes=tuple(kernels),
        n_fft=n_fft,
        hop_len=n_fft // 4,
        resblock_kernel_sizes=resblocks,
        resblock_dilation_sizes=dilations,
        source_resblock_kernel_sizes=source_resblocks,
        source_resblock_dilation_sizes=source_dilations,
        f0_channels=shape("f0_predictor.classifier.weight", 2)[1],
        f0_convolutions=count_weights(tensors, "f0_predictor.condnet.", 3),
    )


def count_weights(tensors: Mapping[str, Tensor], prefix: str, num_dims: int) -> int:
    """How many tensors below `prefix` are weights of so many dimensions."""
    return sum(
        name.startswith(prefix) and name.endswith(".weight") and t.dim() == num_dims for name, t in tensors.items()
    )
