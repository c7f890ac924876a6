"""Tensor parallelism of an LLM's layers: several ranks compute each layer together, on the same batch.

Source: Shoeybi et al., arXiv:1909.08053, Sec. 3. Each model of transformers says itself which projection is split along
which dimension (`base_model_tp_plan`); the hidden states between the layers are replicated on every rank.
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


def parallelize_layer(llm: LanguageModel, layer: nn.Module, mesh: DeviceMesh) -> None:
    """Split a layer's projections over the ranks of `mesh`, in place.

    Args:
        llm: The LLM that the layer belongs to.
        layer: One of `llm.blocks()`.
        mesh: One-dimensional mesh.

    Raises:
        ValueError: The model has no plan, its plan has an unknown style, or heads or widths don't divide.
    """
    transformer: Any = llm.model  # of transformers, as all LLMs with such a plan
    name = next(name for name, module in transformer.base_model.named_modules() if module is layer)
    plan = {
        inner: style for (pattern, inner), style in styles(llm, mesh.size()).items() if fnmatch.fnmatch(name, pattern)
    }
    if not plan:
        raise ValueError(f"tensor_parallel_size: {type(transformer).__name__} has no plan for {name}")
    parallelize_module(layer, mesh, plan)


def styles(llm: LanguageModel, size: int) -> dict[tuple[str, str], ParallelStyle]:
    """(Pattern of layer names, name of a module in the layer) -> how the module is split over `size` ranks.

    Raises:
        ValueError: As `parallelize_layer`.
    """
    transformer: Any = llm.model
    config = transformer.config
    plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    if not plan:
        raise ValueError(f"tensor_parallel_size: {type(transformer).__name__} has no tensor-parallel plan")
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, key, size) % size:
            raise ValueError(f"tensor_parallel_size: got {size}; must divide the LLM's {key}, {getattr(config, key)}")
    found: dict[tuple[str, str], ParallelStyle] = {}
    for place, style in plan.items():
        layer, star, inner = place.partition("*.")
        if style not in STYLES or not star:
            raise ValueError(
                f"tensor_parallel_size: {type(transformer).__name__} splits {place} by {style!r}, which is unknown"
            )
        found[f"{layer}*", inner] = STYLES[style]()
    return found


def _norm_of_heads() -> ParallelStyle:
    """Norms of queries and keys, (B, S, heads, D), of which a rank has a part of the heads."""
    return SequenceParallel(sequence_dim=2, use_local_output=True)


STYLES: dict[str, Any] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "replicated_with_grad_allreduce": _norm_of_heads,
}
