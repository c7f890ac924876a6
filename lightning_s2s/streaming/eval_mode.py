"""Eval mode of modules that several engines, in several threads, need at different times."""

from __future__ import annotations

import threading

from torch import nn

_lock = threading.RLock()  # the garbage collector may end a session where another one is being begun
_needed: dict[EvalMode, list[nn.Module]] = {}
"""Who needs which modules in eval mode that train otherwise."""


class EvalMode:
    """A model's eval mode: entered by the first that needs it, left by the last.

    Each module is looked at by itself, since models may share components. Those that aren't training, such as frozen
    ones, are left alone.

    Args:
        model: whose modules.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def enter(self) -> None:
        """Needed from now on; again changes nothing."""
        with _lock:
            if self in _needed:
                return
            others = _modules_needed()
            _needed[self] = [module for module in self.model.modules() if module.training or module in others]
            for module in _needed[self]:
                module.training = False

    def leave(self) -> None:
        """Not needed any more: modules that nobody needs so train again."""
        with _lock:
            modules = _needed.pop(self, [])
            others = _modules_needed()
            for module in modules:
                if module not in others:
                    module.training = True


def _modules_needed() -> set[nn.Module]:
    return {module for modules in list(_needed.values()) for module in modules}
