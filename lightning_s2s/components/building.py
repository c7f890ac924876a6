"""Bounds on the size of modules: sizes that no machine can hold are refused before memory or time is spent on them."""

from __future__ import annotations

import contextlib
import math
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from lightning_s2s.support.reading import InputError

MAX_LAYERS = 1_000
MAX_NUMBER = 2**31 - 1
"""Largest integer in a configuration; no published model has a larger one."""
MAX_MODULES = 60_000
"""Modules and tensors of one model; the largest published ones, with many experts, have some 50,000."""
MAX_PARAMETERS = 10**13
FACTORIES = {torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros}
RANGES = {torch.arange, torch.eye, torch.linspace}
"""Factories whose arguments bound the size of their tensor; on `meta` they would load torch's compiler."""
LAYERS = re.compile(r"(^|_)(n_)?(layers?|blocks?|depth)$")
"""Keys of configurations for the number of layers: `num_hidden_layers`, `n_layer`, `encoder_layers`, `depth`."""


def check_sizes(config: Mapping[str, Any], source: str, path: str = "") -> None:
    """Refuse numbers in a model's configuration that can't be sizes of a model, whatever they mean.

    Libraries make lists with one entry per layer before they build anything, so this comes first.

    Raises:
        InputError: The message names the key.
    """
    for key, value in config.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            check_sizes(value, source, f"{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            most = MAX_LAYERS if LAYERS.search(str(key)) else MAX_NUMBER
            if abs(value) > most:
                raise InputError(f"{source}: {name}: got {value:.6g}; at most {most:,} is allowed")
        elif isinstance(value, float) and math.isnan(value):
            raise InputError(f"{source}: {name}: got {value}; a number is needed")


@contextlib.contextmanager
def bounded_building(source: str, stored: int | None = None) -> Iterator[None]:
    """Bound the size of modules that are built inside; the bounds are checked before memory is allocated.

    Args:
        source: The file, folder or component that describes the modules, for the message.
        stored: Number of values in the file of their weights: at most twice as many are allowed. Without a file, the
            bound is the memory of this machine, or `MAX_PARAMETERS` on `meta`.

    Raises:
        InputError: A tensor, or all of them together, are larger, or there are more than `MAX_MODULES`.
    """
    bounds = _Bounds(source, stored)
    hooks = [
        register_module_parameter_registration_hook(bounds.see_tensor),
        register_module_buffer_registration_hook(bounds.see_tensor),
        register_module_module_registration_hook(bounds.see_module),
    ]
    try:
        with _Allocations(bounds):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def memory_bytes() -> int:
    """Memory of this machine, or of the container that limits it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
        total = min(total, int(file.read()))
    return total


class _Bounds:
    """The size of everything built so far, and its bounds."""

    def __init__(self, source: str, stored: int | None):
        self.source, self.stored = source, stored
        self.memory = memory_bytes()
        self.numbers, self.bytes, self.modules = 0, 0, 0
        self.tensors: dict[int, list[weakref.ref[Tensor]]] = {}

    def see_module(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        self.modules += 1
        if self.modules > MAX_MODULES:
            self.refuse(f"more than {MAX_MODULES:,} modules and tensors")

    def see_tensor(self, module: nn.Module, name: str, tensor: Tensor | None) -> None:
        self.see_module(module, name, None)
        if tensor is None or any(known() is tensor for known in self.tensors.get(id(tensor), ())):
            return  # tied
        self.tensors.setdefault(id(tensor), []).append(weakref.ref(tensor))
        self.count([tensor])
        if self.too_large(self.numbers, self.bytes):  # count again, since some may have been replaced
            self.numbers = self.bytes = 0
            self.count([tensor for known in self.tensors.values() for one in known if (tensor := one()) is not None])
        self.see_numbers(self.numbers, self.bytes, f"up to {type(module).__name__}.{name}")

    def count(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self.numbers += tensor.numel()
            if tensor.device.type == "cpu":
                self.bytes += tensor.numel() * tensor.element_size()

    def see_numbers(self, numbers: int, size: int, where: str) -> None:
        """Check a number of values and their `size` in bytes of memory."""
        if problem := self.too_large(numbers, size):
            self.refuse(problem.format(where))

    def too_large(self, numbers: int, size: int) -> str | None:
        """What is wrong with this many numbers, with a placeholder for their place; None if they fit."""
        if self.stored is not None and numbers > 2 * self.stored + 2**20:
            return f"{numbers:.4g} numbers {{}}; the weights that belong to it hold {self.stored:,}"
        if numbers > MAX_PARAMETERS:
            return f"{numbers:.4g} numbers {{}}; at most {MAX_PARAMETERS:.0e} are allowed"
        if size > self.memory:
            return f"{size / 1e9:,.1f} GB {{}}; this machine has {self.memory / 1e9:,.1f} GB of memory"
        return None

    def refuse(self, what: str) -> None:
        raise InputError(f"{self.source}: describes something too large to be built: {what}")


class _Allocations(TorchFunctionMode):
    """Checks the size of every new tensor before its memory is allocated."""

    def __init__(self, bounds: _Bounds):
        super().__init__()
        self.bounds = bounds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES and kwargs.get("out") is None:
            others = {key: value for key, value in kwargs.items() if key not in ("device", "generator", "pin_memory")}
            new = func(*args, **others, device="meta")
            self.see(func.__name__, new.numel(), new.element_size(), kwargs.get("device"))
        elif func in RANGES:
            numbers = [
                int(abs(n)) for n in (*args, *kwargs.values()) if isinstance(n, int | float) and math.isfinite(n)
            ]
            size = math.prod(numbers[:2]) * (numbers[0] if len(numbers) == 1 else 1) if func is torch.eye else 0
            self.see(func.__name__, max([size, *numbers]), 4, kwargs.get("device"))
        return func(*args, **kwargs)

    def see(self, name: str, numbers: int, bytes_each: int, device: Any) -> None:
        if numbers > 2**20:
            in_memory = torch.device(device or torch.get_default_device()).type == "cpu"
            self.bounds.see_numbers(numbers, numbers * bytes_each if in_memory else 0, f"in one tensor ({name})")
