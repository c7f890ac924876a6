"""Sizes of a golden GLM-4-Voice decoder, from the shapes of its tensors: golden folders have no `config.yaml`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.components.vocoders.glm4_voice.checkpoint import fold_weight_norm
from lightning_s2s.components.vocoders.glm4_voice.config import FlowConfig, HiftConfig


def sizes_of(folder: Path) -> dict[str, Any]:
    """The option `config` of `glm4_voice` for a folder."""
    flow, hift = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("flow", "hift"))
    return {"flow": asdict(infer_flow(flow)), "hift": asdict(infer_hift(fold_weight_norm(hift, folder)))}


def shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape)


def count(tensors: dict[str, Tensor], pattern: str) -> int:
    """How many of the tensors `pattern` with 0, 1, 2, ... in place of `{}` there are, up to the first gap."""
    number = 0
    while pattern.format(number) in tensors:
        number += 1
    return number


def count_convolutions(tensors: dict[str, Tensor], prefix: str) -> int:
    return sum(
        name.startswith(prefix) and name.endswith(".weight") and tensor.dim() == 3 for name, tensor in tensors.items()
    )


def estimator_heads(inner: int, encoder_heads: int, encoder_head_width: int) -> list[int]:
    """Possible numbers of heads of the estimator's attention, likeliest first.

    Its tensors tell only heads x head width. In the published model, both equal the encoder's; otherwise one of the two
    does, or any divisor is possible.
    """
    likely = [encoder_heads, inner // encoder_head_width]
    divisors = [heads for heads in range(1, inner + 1) if inner % heads == 0]
    return list(dict.fromkeys(heads for heads in [*likely, *divisors] if heads and inner % heads == 0))


def infer_flow(tensors: dict[str, Tensor]) -> FlowConfig:
    """Block size, rates and, in doubt, heads are the published ones."""
    vocab_size, input_size = shape(tensors, "input_embedding.weight")
    output_size, encoder_size = shape(tensors, "encoder_proj.weight")
    heads, head_width = shape(tensors, "encoder.encoders.0.self_attn.pos_bias_u")
    estimator, resnet = "decoder.estimator.", "0.block1.block.0.weight"
    inner = shape(tensors, f"{estimator}down_blocks.0.1.0.attn1.to_q.weight")[0]
    num_heads = estimator_heads(inner, heads, head_width)[0]
    stages = count(tensors, estimator + "down_blocks.{}." + resnet)
    return FlowConfig(
        vocab_size=vocab_size,
        input_size=input_size,
        output_size=output_size,
        spk_embed_dim=shape(tensors, "spk_embed_affine_layer.weight")[1],
        encoder_size=encoder_size,
        attention_heads=heads,
        linear_units=shape(tensors, "encoder.encoders.0.feed_forward.w_1.weight")[0],
        num_blocks=count(tensors, "encoder.encoders.{}.norm_ff.weight"),
        regulator_convolutions=count_convolutions(tensors, "length_regulator.model.") - 1,
        estimator_in_channels=shape(tensors, f"{estimator}time_mlp.linear_1.weight")[1],
        channels=tuple(shape(tensors, f"{estimator}down_blocks.{stage}.{resnet}")[0] for stage in range(stages)),
        attention_head_dim=inner // num_heads,
        n_blocks=count(tensors, estimator + "down_blocks.0.1.{}.norm1.weight"),
        num_mid_blocks=count(tensors, estimator + "mid_blocks.{}." + resnet),
        num_heads=num_heads,
    )


def infer_hift(tensors: dict[str, Tensor]) -> HiftConfig:
    """Sizes by tensors without weight norm; hop = FFT size / 4, dilations are 1, 3, 5, 7, ..., the rest as published.

    Rates of all stages but the first follow from the source's strides; the first from the mel's 256 samples a frame.
    """
    base_channels, in_channels, _ = shape(tensors, "conv_pre.weight")
    stages = count(tensors, "ups.{}.weight")
    num_kernels = count(tensors, "resblocks.{}.convs1.0.weight") // stages

    def blocks(prefix: str, number_of: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        sizes = tuple(shape(tensors, f"{prefix}.{number}.convs1.0.weight")[2] for number in range(number_of))
        depths = [count(tensors, f"{prefix}.{number}.convs1." + "{}.weight") for number in range(number_of)]
        return sizes, tuple(tuple(2 * step + 1 for step in range(depth)) for depth in depths)

    resblocks, dilations = blocks("resblocks", num_kernels)
    source_resblocks, source_dilations = blocks("source_resblocks", stages)
    n_fft = shape(tensors, "conv_post.weight")[0] - 2
    # A source's stride is the product of the later stages' rates; its kernel is twice that, or 1 for no stride.
    strides = [max(1, shape(tensors, f"source_downs.{stage}.weight")[2] // 2) for stage in range(stages)]
    first = FlowConfig.mel_hop_length // (n_fft // 4 * strides[0])
    rates = [first, *(before // after for before, after in zip(strides, strides[1:], strict=False))]
    return HiftConfig(
        in_channels=in_channels,
        base_channels=base_channels,
        nb_harmonics=shape(tensors, "m_source.l_linear.weight")[1] - 1,
        upsample_rates=tuple(rates),
        upsample_kernel_sizes=tuple(shape(tensors, f"ups.{stage}.weight")[2] for stage in range(stages)),
        n_fft=n_fft,
        hop_len=n_fft // 4,
        resblock_kernel_sizes=resblocks,
        resblock_dilation_sizes=dilations,
        source_resblock_kernel_sizes=source_resblocks,
        source_resblock_dilation_sizes=source_dilations,
        f0_channels=shape(tensors, "f0_predictor.classifier.weight")[1],
        f0_convolutions=count_convolutions(tensors, "f0_predictor.condnet."),
    )
