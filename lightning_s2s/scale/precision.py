"""What a trainer's `precision` means for sharded weights and for attention on a CPU."""

from __future__ import annotations

from typing import Any

import torch


def mixed_precision(precision: str) -> Any:
    """FSDP2's policy for a trainer's `precision`; None where weights are gathered and reduced as they are."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if precision in dtypes:
        return MixedPrecisionPolicy(dtypes[precision], torch.float32, cast_forward_inputs=False)
    return MixedPrecisionPolicy(reduce_dtype=torch.float32) if precision in ("bf16-true", "16-true") else None


def set_cpu_flash_attention(enabled: bool, device: torch.device, precision: str) -> None:
    """Switch torch's flash kernel for a training on a CPU in bfloat16, where its backward pass is several times slower.

    Other trainings are left alone.
    """
    if device.type == "cpu" and precision.startswith("bf16"):
        torch.backends.cuda.enable_flash_sdp(enabled)  # despite its name, for CPUs too
