"""Reference-counted eval mode: several engines, in several threads, may need the same modules in it."""

from __future__ import annotations

import threading

from torch import nn

_lock = threading.RLock()  # re-entrant: the garbage collector may end a session while another one is being started
_held: dict[EvalMode, list[nn.Module]] = {}
"""For each holder, the modules that it keeps in eval mode and that would otherwise be in train mode."""


class EvalMode:
    """A model's eval mode: the first holder enters it, the last one to leave restores train mode.

    Modules are counted one by one, since models may share components. Modules that aren't in train mode, such as
    frozen ones, are left alone.

    Args:
        model: The model whose modules are switched.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def enter(self) -> None:
        """Hold the model in eval mode from now on; a second call changes nothing."""
        with _lock:
            if self in _held:
                return
            others = _held_modules()
            _held[self] = [module for module in self.model.modules() if module.training or module in others]
            for module in _held[self]:
                module.training = False

    def leave(self) -> None:
        """Stop holding it: modules that nobody else holds return to train mode."""
        with _lock:
            modules = _held.pop(self, [])
            others = _held_modules()
            for module in modules:
                if module not in others:
                    module.training = True


def _held_modules() -> set[nn.Module]:
    return {module for modules in list(_held.values()) for module in modules}
