"""A description of the machine, which every measured latency needs beside it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_hardware() -> dict[str, str]:
    """Label -> text for processor, cores, memory, accelerator, system, and the versions of Python and PyTorch."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = {"processor": _processor(), "cores": f"{cores} available, {torch.get_num_threads()} used by PyTorch"}
    memory = _memory_gib()
    if memory:
        facts["memory"] = f"{memory:.0f} GiB"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts["accelerator"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        facts["accelerator"] = "none"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["software"] = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None
