"""The order in which everything that makes a model faster or spreads it over devices is applied to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn

from lightning_s2s.components.base import Component
from lightning_s2s.components.contracts import AudioEncoder, Vocoder
from lightning_s2s.components.weights import is_sharded
from lightning_s2s.scale.blocks import checkpoint_activations, compile_blocks
from lightning_s2s.scale.fsdp import shard
from lightning_s2s.scale.precision import mixed_precision
from lightning_s2s.scale.strategies import wrap_blocks
from lightning_s2s.support.extras import has_cpp_compiler


@dataclass(frozen=True)
class ScalingOptions:
    """What trades memory for time, or the other way round, without changing what is learnt.

    Attributes:
        activation_checkpointing: Components (`encoder`, `llm`, `speech_decoder`) whose Transformer layers are computed
            again in the backward pass instead of keeping their activations: less memory, more time, the same gradients.
        encoder_cache: Folder that keeps the output of a frozen encoder for each clip, so that it is computed once; see
            `lightning_s2s.scale.encoder_cache.EncoderCache`. None encodes in every epoch.
        compile: Run the Transformer layers of encoder, LLM and speech decoder through `torch.compile` while training,
            one by one, so that equal layers are compiled once.
    """

    activation_checkpointing: list[str] | None = None
    encoder_cache: str | None = None
    compile: bool = False


def check_scaling(model: nn.Module, options: ScalingOptions) -> None:
    """Refuse, before anything runs, what `parallelize` could not do.

    Raises:
        ValueError: A component is missing or has no Transformer layers, or nothing can be compiled on this machine.
    """
    components = dict(_trainable_components(model))
    for name in options.activation_checkpointing or []:
        if name not in components:
            raise ValueError(
                f"scaling.activation_checkpointing: got {name!r}; the model's parts are {', '.join(components)}"
            )
        if not components[name].blocks():
            raise ValueError(
                f"scaling.activation_checkpointing: {name}: {type(components[name]).__name__} has no Transformer "
                "layers that can be recomputed"
            )
    if options.compile and not torch.cuda.is_available() and not has_cpp_compiler():
        raise ValueError(
            "scaling.compile: got true; on a CPU that needs a C++ compiler (g++ or clang++), and there is none"
        )


def parallelize(
    model: nn.Module, options: ScalingOptions, strategy: Strategy, precision: str, prepared: bool = False
) -> None:
    """Apply activation checkpointing, compilation, tensor parallelism and sharding, in this order, in place.

    Activation checkpointing comes first, so that a compiled layer contains its own recomputation. Both wrap the layers'
    forward, so they come before sharding, whose hooks gather a layer's weights around it. The layers of a tensor
    parallel LLM are cut before the pieces are sharded.

    Args:
        model: Its children are components.
        options: What is applied to the layers.
        strategy: Of the trainer: it decides whether the model is sharded.
        precision: Of the trainer, such as `bf16-mixed`.
        prepared: The layers are wrapped already, by an earlier trainer.
    """
    if not prepared:
        for name, component in _trainable_components(model):
            if name in (options.activation_checkpointing or []):
                checkpoint_activations(component)
            if options.compile:
                compile_blocks(component)
    if isinstance(strategy, FSDPStrategy):
        wrap_blocks(strategy, model)  # Lightning shards
    elif isinstance(strategy, ModelParallelStrategy) and not is_sharded(model):
        data, tensor = strategy.device_mesh["data_parallel"], strategy.device_mesh["tensor_parallel"]
        # With a cache the ranks run the encoder for different clips, so each needs the whole of it.
        cached = options.encoder_cache is not None
        whole = [part for part in model.children() if cached and isinstance(part, AudioEncoder)]
        tensor_mesh = tensor if tensor.size() > 1 else None
        shard(model, strategy.root_device, data, tensor_mesh, mixed_precision(precision), whole)


def _trainable_components(model: nn.Module) -> Iterator[tuple[str, Component]]:
    """The components by name, without the vocoder, which no stage trains."""
    for name, component in model.named_children():
        if isinstance(component, Component) and not isinstance(component, Vocoder):
            yield name, component
