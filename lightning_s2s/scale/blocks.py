"""What is done to a component's Transformer layers one by one: activation checkpointing and compilation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_s2s.components.base import Component


def checkpoint_activations(component: Component) -> None:
    """Recompute every block in the backward pass, instead of keeping its activations.

    Less memory, more time, the same gradients; also where the component is frozen and gradients only pass through.
    The switch of transformers does nothing in eval mode, in which stages 1 and 2 run a frozen LLM.
    """
    for block in component.blocks():
        block.forward = functools.partial(_checkpointed, block.forward)


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`forward` without its activations where gradients flow; never with a cache, which can't be filled twice."""
    if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def compile_blocks(component: Component) -> None:
    """Run every block through `torch.compile` while training, with dynamic sizes."""
    for block in component.blocks():
        frozen = not any(parameter.requires_grad for parameter in block.parameters())
        if frozen and isinstance(block, nn.TransformerEncoderLayer):
            continue  # torch has a kernel of its own for it, which its compiler gets wrong
        # Not `block.compile()`, so that hooks and the names of weights stay as they are.
        block.forward = _compiled_in_training(block.forward)


def _compiled_in_training(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Validation and replies, which advance by one position over a growing cache, run uncompiled."""
    compiled = torch.compile(forward, dynamic=True)

    def run(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return run
