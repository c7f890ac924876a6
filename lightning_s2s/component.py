"""What a registry holds: a module that remembers how it was built."""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from lightning_s2s.extras import MissingPackageError, how_to_install


class Component(nn.Module):
    """What a registry holds. A constructor takes plain values, so that a YAML can build it and a folder can store it.

    What the catalogue says of a component stands in its class as plain strings: they are read from the source, without
    importing it.

    Attributes:
        init_args: the arguments the component was built with.
    """

    paper: ClassVar[str] = ""
    """Where it is described, such as `arXiv:2507.05177`."""
    rates: ClassVar[str] = ""
    """What goes in and out in a second, such as `16 kHz -> 25 Hz` or `25 Hz, 1,000 units, 16 kHz`."""
    size: ClassVar[str] = ""
    """Parameters of the usual checkpoint, such as `20M (base)`."""
    licence: ClassVar[str] = ""
    """Licence of the published weights that it is made for; empty where it is trained from scratch."""
    extra: ClassVar[str] = ""
    """The optional dependencies of `pyproject.toml` that it needs, such as `codecs`."""
    entry_points: ClassVar[tuple[str, ...]] = ()
    """Methods beside `forward` that compute with the weights: where these are sharded, they are gathered first."""
    init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            setattr(cls, "__init__", _remember_arguments(cls.__init__))  # noqa: B010 (mypy forbids plain assignment)

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        """Arguments that build the component again without its checkpoint: the weights come from the model's folder.

        A component that needs files beside its weights (a tokenizer, say) writes them into `folder` here and names
        them relative to it.
        """
        return self.init_args | ({"checkpoint": None} if "checkpoint" in self.init_args else {})

    def blocks(self) -> list[nn.Module]:
        """The Transformer layers, each run by its `forward`: they are sharded, recomputed and compiled one by one."""
        library = sys.modules.get("transformers.modeling_layers")  # a model of transformers can't be without it
        kinds = [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer]
        kinds += [library.GradientCheckpointingLayer] if library else []
        return [module for module in self.modules() if isinstance(module, tuple(kinds))]


def _remember_arguments(init: Any) -> Any:
    """Wrap a constructor: the outermost call leaves its arguments, defaults included, in `self.init_args`.

    A package that is missing is then said with the command that installs it.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Component, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        if "init_args" not in self.__dict__:
            arguments = dict(list(bound.arguments.items())[1:])
            for parameter in signature.parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments |= arguments.pop(parameter.name, {})
            self.__dict__["init_args"] = arguments
        try:
            init(self, *args, **kwargs)
        except Exception as error:
            remedy = how_to_install(error, preferred=type(self).extra)
            if remedy is None or isinstance(error, MissingPackageError):
                raise
            raise MissingPackageError(f"{type(self).__name__}: {remedy}") from error

    return wrapped
