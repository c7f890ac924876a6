"""Freezing of parameters by patterns of their names."""

from __future__ import annotations

import fnmatch

from torch import nn


def matching_parameters(model: nn.Module, option: str, pattern: str) -> list[str]:
    """Names of the parameters that match a pattern such as `llm.*`.

    Args:
        model: The model.
        option: Option that the pattern was given in, for the message.
        pattern: Pattern of `fnmatch`.

    Raises:
        ValueError: The pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    matching = fnmatch.filter(names, pattern)
    if not matching:
        parts = ", ".join(sorted({name.split(".")[0] for name in names}))
        raise ValueError(f"{option}: the pattern {pattern!r} matches no parameter; the model's parts are {parts}")
    return matching


def freeze_parameters(model: nn.Module, patterns: list[str]) -> None:
    """Freeze the parameters that match one of the patterns.

    Raises:
        ValueError: A pattern matches none, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        for name in matching_parameters(model, "freeze", pattern):
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError("freeze: every parameter is frozen, nothing is left to train")


def set_frozen_to_eval(model: nn.Module) -> None:
    """Put fully frozen components into eval mode: no dropout, no augmentation."""
    for component in model.children():
        if not any(parameter.requires_grad for parameter in component.parameters()):
            component.eval()
