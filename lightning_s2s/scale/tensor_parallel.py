"""Tensor parallelism of an LLM's layers: several processes compute each of them together, on the same batch.

Source: Shoeybi et al., arXiv:1909.08053, Sec. 3. Which projection is cut along which side, each model of transformers
says itself (`base_model_tp_plan`); the hidden states between the layers are whole on every process.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lightning_s2s.components.contracts import LanguageModel

HEADS = 2
"""Dimension of the heads in (B, S, heads, D), which the norms of queries and keys see a part of."""


def parallelize_layer(llm: LanguageModel, layer: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a layer's projections over the processes of `mesh`, in place.

    Args:
        llm: whose layer it is.
        layer: one of `llm.blocks()`.
        mesh: one-dimensional.

    Raises:
        ValueError: the model has no plan, its plan has a kind that is not known here, or heads or widths don't divide.
    """
    transformer: Any = llm.model  # of transformers, as all LLMs with such a plan
    name = next(name for name, module in transformer.base_model.named_modules() if module is layer)
    plan = {place: style for place, style in styles(llm, mesh.size()).items() if fnmatch.fnmatch(name, place[0])}
    if not plan:
        raise ValueError(f"tensor_parallel_size: {type(transformer).__name__} has no plan for {name}")
    parallelize_module(layer, mesh, {inner: style for (_, inner), style in plan.items()})


def styles(llm: LanguageModel, size: int) -> dict[tuple[str, str], ParallelStyle]:
    """(Pattern of a layer's name, name inside the layer) -> how it is cut.

    Raises:
        ValueError: see `parallelize_layer`.
    """
    transformer: Any = llm.model
    config = transformer.config
    plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    if not plan:
        raise ValueError(f"tensor_parallel_size: {type(llm.model).__name__} has no tensor-parallel plan")
    counts = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    for key in counts:
        if getattr(config, key, size) % size:
            raise ValueError(f"tensor_parallel_size: got {size}; must divide the LLM's {key}, {getattr(config, key)}")
    found: dict[tuple[str, str], ParallelStyle] = {}
    for place, kind in plan.items():
        layer, star, inner = place.partition("*.")
        if kind not in KINDS or not star:
            raise ValueError(
                f"tensor_parallel_size: {type(llm.model).__name__} cuts {place} by {kind!r}, which is not known here"
            )
        found[f"{layer}*", inner] = KINDS[kind]()
    return found


def _norm_of_heads() -> ParallelStyle:
    return SequenceParallel(sequence_dim=HEADS, use_local_output=True)


KINDS: dict[str, Any] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "replicated_with_grad_allreduce": _norm_of_heads,
}
