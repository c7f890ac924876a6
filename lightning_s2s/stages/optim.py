"""AdamW with a linear warm-up and a cosine schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import nn

from lightning_s2s.stages.freezing import matching_parameters
from lightning_s2s.support.ranges import Natural, NonNegative, Range, Share, checked


@checked
@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW and its schedule.

    Attributes:
        lr: Peak learning rate.
        lr_scale: Factors on `lr` by pattern of parameter names, such as `encoder.*: 0.3`.
        weight_decay: Weight decay of matrices; vectors have none.
        warmup_steps: Steps of linear warm-up, followed by a cosine down to `min_lr_ratio` of the peak.
        min_lr_ratio: Learning rate at the last step, as a share of the peak.
    """

    OPTION: ClassVar[str] = "optimizer"

    lr: Annotated[float, Range(0, 100, above=True)] = 1e-4
    lr_scale: dict[str, NonNegative] | None = None
    weight_decay: NonNegative = 0.05
    warmup_steps: Natural = 100
    min_lr_ratio: Share = 0.1


def build_optimizer(model: nn.Module, options: OptimizerOptions, num_steps: int) -> OptimizerLRSchedulerConfig:
    """The optimiser and its schedule, as `LightningModule.configure_optimizers` returns them.

    Args:
        model: Model whose parameters with `requires_grad` are trained.
        options: Learning rates and schedule.
        num_steps: Number of optimiser steps of the run.

    Raises:
        ValueError: A pattern of `lr_scale` matches no parameter.
    """
    scales = {
        name: factor
        for pattern, factor in (options.lr_scale or {}).items()
        for name in matching_parameters(model, "optimizer.lr_scale", pattern)
    }
    groups: dict[tuple[float, float, Any], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = options.weight_decay if parameter.dim() > 1 else 0.0
            # Layers of a tensor-parallel LLM have a device mesh of their own; a group can't mix meshes.
            mesh = getattr(parameter, "device_mesh", None)
            groups.setdefault((scales.get(name, 1.0), decay, mesh), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "lr": options.lr * scale, "weight_decay": decay} for (scale, decay, _), p in groups.items()],
        betas=(0.9, 0.98),
    )

    def factor(step: int) -> float:
        return warmup_cosine(step, options.warmup_steps, num_steps, options.min_lr_ratio)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": LRSchedulerConfigType(scheduler=schedule, interval="step")}


def warmup_cosine(step: int, warmup_steps: int, num_steps: int, min_ratio: float) -> float:
    """The learning rate at a step, as a share of the peak."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
