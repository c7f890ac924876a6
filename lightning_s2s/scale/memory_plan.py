"""Estimates how much memory a stage's training takes on each GPU, from shapes alone: the model may lie on `meta`.

Per GPU, for n GPUs; P are all parameters, T the trained ones, each of b bytes:

| part | one | ddp | fsdp2 |
| --- | --- | --- | --- |
| weights | P b | P b | P b / n; the vocoder is replicated |
| gradients | T b | 2 T b: DDP's buckets hold a second copy | T b / n |
| optimiser | 2 T b: the two moments of AdamW | 2 T b | 2 T b / n |
| gathered | with autocast, the cast weights: 2 P | as one | see below |

FSDP2 gathers, in the compute dtype, what a trained component has beside its blocks (until its backward pass), and the
block that computes and the next one, so twice the largest block; it also reduces the largest trained unit's gradients
in float32.

Activations are kept by every component that is trained or through which gradients reach one that is. Per position, for
a block of width D, attention width Q (heads x head size), intermediate width I, and e bytes of the compute dtype:

    norms         4 D for each of two RMSNorms (its input in float32), e D for LayerNorm; a trained one also keeps
                  what it normalised and its output, 2 e D (LayerNorm: e D)
    attention     4 e Q: query, key and value as SDPA keeps them (key-value heads repeated), and its output; no scores.
                  Norms of queries and keys add 4 (Q + K), K the width of the keys; trained ones (4 + e) (Q + K)
    feed-forward  3 e I (gate, its activation, up), without a gate e I; e I more if it is trained

Recomputed blocks keep e D each, plus the activations of one block at a time. The losses keep their logits as computed,
in float32, and, during the backward pass, the gradient in float32: V (e + 8) for each labelled position; of the text
no more than `LOGITS_AT_ONCE` at a time.

The number of positions follows from `batch_duration_sec`. A second of it is spent on audio, on text (10 tokens), or on
units; the estimate takes the most expensive of these. Left out: temporary tensors of the backward pass (a tenth to a
third of the peak, where it was measured), activations beside the blocks, rows padded to an encoder's window, LoRA's own
activations, dropout masks, mixtures of experts, tensor parallelism, and attention that stores its scores (as that of
bfloat16 on CPUs does). CUDA's context and the allocator's fragmentation are the constant `OVERHEAD_BYTES`.

Sources: Korthikanti et al., arXiv:2205.05198 (activations); Rajbhandari et al., arXiv:1910.02054 (states).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from lightning_s2s.components.contracts import LOGITS_AT_ONCE, Vocoder
from lightning_s2s.components.registry import SLOTS
from lightning_s2s.data.dataset import SEC_PER_TEXT_TOKEN
from lightning_s2s.scale.fsdp import fsdp_units

OVERHEAD_BYTES = 1.5e9
TEXT_TOKENS_HZ = 1 / SEC_PER_TEXT_TOKEN
Strategy = Literal["one", "ddp", "fsdp2"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True)
class UnitSize:
    """Numbers of all and of trained parameters of a unit, which FSDP2 gathers together."""

    parameters: int
    trained: int
    is_block: bool


@dataclass(frozen=True)
class ComponentSize:
    """Sizes of a component.

    Attributes:
        name: Slot of the component.
        kind: Name of its class.
        units: Its blocks, and the rest of it.
        dtype: Dtype of its weights during training; several are joined by `+`.
        weight_bytes: Bytes of all its weights.
        trained_bytes: Bytes of its trained weights.
        block_bytes: Activations of each block per position.
        block_input_bytes: Input of a block per position.
        keeps_activations: Whether gradients are computed in it or pass through it.
        recomputed: Whether its blocks keep only their inputs.
        sharded: Whether FSDP2 shards it.
    """

    name: str
    kind: str
    units: tuple[UnitSize, ...]
    dtype: str
    weight_bytes: int
    trained_bytes: int
    block_bytes: tuple[int, ...]
    block_input_bytes: int
    keeps_activations: bool
    recomputed: bool
    sharded: bool

    @property
    def parameters(self) -> int:
        return sum(unit.parameters for unit in self.units)

    @property
    def trained(self) -> int:
        return sum(unit.trained for unit in self.units)

    def activation_bytes(self, positions: float) -> float:
        """Bytes of all blocks' activations together."""
        if not self.keeps_activations or not self.block_bytes:
            return 0.0
        if not self.recomputed:
            return positions * sum(self.block_bytes)
        return positions * (len(self.block_bytes) * self.block_input_bytes + max(self.block_bytes))


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each of `gpus` GPUs; the parts are explained at the head of this module."""

    strategy: Strategy
    gpus: int
    weights: float
    gradients: float
    optimiser: float
    gathered: float
    activations: float
    overhead: float = OVERHEAD_BYTES

    @property
    def total(self) -> float:
        states = self.weights + self.gradients + self.optimiser
        return states + self.gathered + self.activations + self.overhead


def component_sizes(stage: Any, precision: str, recomputed: Collection[str] = ()) -> list[ComponentSize]:
    """The sizes of a stage's components, in the order of the forward pass.

    Args:
        stage: The stage; its model's parameters may lie on `meta`.
        precision: Precision of the trainer.
        recomputed: The stage's option `activation_checkpointing`.
    """
    components, reached = [], False
    for name in SLOTS:
        component = getattr(stage.model, name)
        if component is None:
            continue
        reached = reached or any(parameter.requires_grad for parameter in component.parameters())
        used = name not in ("llm", "speech_decoder") or getattr(stage, "text_weight", 1.0) != 0
        parameters = list(component.parameters())
        half = {"bf16-true": "bfloat16", "16-true": "float16"}.get(precision)
        widths = [2 if half else parameter.element_size() for parameter in parameters]
        sizes = [parameter.numel() * width for parameter, width in zip(parameters, widths, strict=True)]
        trained = [size for size, parameter in zip(sizes, parameters, strict=True) if parameter.requires_grad]
        dtypes = {half or str(parameter.dtype).removeprefix("torch.") for parameter in parameters}
        compute = compute_bytes(precision, min(widths, default=4))
        blocks = component.blocks()
        components.append(
            ComponentSize(
                name=name,
                kind=type(component).__name__,
                units=unit_sizes(component),
                dtype="+".join(sorted(dtypes)) or "-",
                weight_bytes=sum(sizes),
                trained_bytes=sum(trained),
                block_bytes=tuple(block_activation_bytes(block, compute) for block in blocks),
                block_input_bytes=compute * block_width(blocks[0]) if blocks else 0,
                keeps_activations=reached and used and not isinstance(component, Vocoder),
                recomputed=name in recomputed,
                sharded=not isinstance(component, Vocoder),
            )
        )
    return components


def compute_bytes(precision: str, weight_bytes: int) -> int:
    """Bytes of one activation, where a weight has `weight_bytes`."""
    return 2 if precision.startswith(("bf16", "16")) else weight_bytes


def unit_sizes(component: nn.Module) -> tuple[UnitSize, ...]:
    """Sizes of a component's units; a parameter that several share counts only in the first."""
    seen: set[int] = set()
    sizes = []
    for unit, _ in fsdp_units(component):
        own = [parameter for parameter in unit.parameters() if id(parameter) not in seen]
        seen.update(map(id, own))
        trained = sum(parameter.numel() for parameter in own if parameter.requires_grad)
        sizes.append(UnitSize(sum(parameter.numel() for parameter in own), trained, unit is not component))
    return tuple(sizes)


def block_matrices(block: nn.Module) -> list[tuple[int, int]]:
    """(out, in) of a block's matrices, except LoRA's."""
    named = block.named_parameters()
    return [(p.shape[0], p.shape[1]) for name, p in named if p.dim() == 2 and "lora_" not in name]


def block_width(block: nn.Module) -> int:
    """D; 0 if the block has no matrices."""
    matrices = block_matrices(block)
    return matrices[0][1] if matrices else 0


def block_activation_bytes(block: nn.Module, compute: int) -> int:
    """Bytes that a Transformer layer keeps for its backward pass per position, by the formula at the head.

    D is read from the layer's first matrix, Q and I from the matrices whose output has width D.

    Args:
        block: The layer.
        compute: Bytes of the compute dtype.
    """
    matrices = block_matrices(block)
    width = block_width(block)
    inputs = [inner for out, inner in matrices if out == width]
    if not inputs:
        return 0
    attention, intermediate = min(inputs), max(inputs)
    gated = sum(matrix == (intermediate, width) for matrix in matrices) == 2
    names = dict(block.named_parameters())
    trained = any(parameter.requires_grad for parameter in block.parameters())
    own = compute * trained  # for the gradients of its own weights
    norms = 2 * width * (4 + 2 * own if gated else compute + own)
    kept = 4 * compute * attention
    if any(name.endswith("q_norm.weight") for name in names):
        keys = next(p.shape[0] for name, p in names.items() if "k_proj" in name and p.dim() == 2)
        kept += (4 + own) * (attention + keys)
    return norms + kept + compute * intermediate * (3 + trained if gated else 1 + trained)


def batch_bytes(stage: Any, components: list[ComponentSize], duration_sec: float, precision: str) -> float:
    """Activations of the largest batch: bytes of the most expensive kind of second, times `duration_sec`."""
    model = stage.model
    sizes = {component.name: component for component in components}

    def kept(name: str, rate_hz: float) -> float:
        return sizes[name].activation_bytes(rate_hz) if name in sizes else 0.0

    def logits(name: str, vocabulary: int, rate_hz: float, limit: float = math.inf) -> float:
        if name not in sizes or not sizes[name].keeps_activations:
            return 0.0
        return min(rate_hz * vocabulary, limit) * (compute_bytes(precision, 4) + 8)

    audio = text = unit = 0.0
    if model.encoder is not None:
        rate = model.encoder.frame_rate_hz
        audio = kept("encoder", rate) + kept("llm", rate / model.adapter.downsampling)
    text = kept("llm", TEXT_TOKENS_HZ) + kept("speech_decoder", TEXT_TOKENS_HZ)
    if getattr(stage, "text_weight", None) is not None or model.encoder is not None:
        text += logits("llm", model.llm.vocabulary, TEXT_TOKENS_HZ, LOGITS_AT_ONCE / duration_sec)
    if model.speech_decoder is not None and model.vocoder is not None:
        rate = model.vocoder.unit_rate_hz  # of all codebooks together, which alternate in one stream
        unit = kept("speech_decoder", rate) + logits("speech_decoder", model.num_units or 0, rate)
    return duration_sec * max(audio, text, unit)


def estimate(
    components: list[ComponentSize], activations: float, strategy: Strategy, gpus: int, precision: str
) -> MemoryPlan:
    """The memory of each GPU, by the formulas at the head of this module.

    Args:
        components: Result of `component_sizes`.
        activations: Bytes of one GPU's batch, see `batch_bytes`.
        strategy: How the GPUs share the training; `one` is a single GPU.
        gpus: Number of GPUs.
        precision: Precision of the trainer.
    """
    sharded = strategy == "fsdp2"
    share = gpus if sharded else 1
    weights = sum(c.weight_bytes / (share if c.sharded else 1) for c in components)
    trained = sum(c.trained_bytes for c in components)
    if sharded:
        gathered = gathered_bytes(components, precision)
    else:
        used = [c for c in components if c.keeps_activations and c.dtype == "float32"]
        gathered = sum(2.0 * c.parameters for c in used) if precision.endswith("-mixed") else 0.0
    gradients = trained * (2 if strategy == "ddp" else 1) / share
    return MemoryPlan(strategy, gpus, weights, gradients, 2 * trained / share, gathered, activations)


def gathered_bytes(components: list[ComponentSize], precision: str) -> float:
    """Bytes of weights and gradients that FSDP2 holds unsharded at once, see the head of this module."""
    roots, largest, reduced = 0.0, 0.0, 0.0
    for component in components:
        if not component.sharded or not component.parameters:
            continue
        width = compute_bytes(precision, component.weight_bytes // component.parameters)
        for unit in component.units:
            size = float(unit.parameters * width)
            if unit.is_block or not component.trained:
                largest = max(largest, 2 * size if unit.is_block else size)
            else:
                roots += size
            reduced = max(reduced, 4.0 * unit.trained)
    return roots + largest + reduced
