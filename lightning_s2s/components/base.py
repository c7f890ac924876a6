"""The base class of all components: a module that remembers its constructor's arguments."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from lightning_s2s.components.building import bounded_building
from lightning_s2s.support.extras import MissingPackageError, how_to_install
from lightning_s2s.support.ranges import check_arguments
from lightning_s2s.support.reading import MAX_DEPTH

PlainValues: TypeAlias = dict[str, None | bool | int | float | str | list | dict]
"""Plain values by name, such as a transformers configuration. Not `dict[str, Any]`: in one, jsonargparse would look for
class paths, import them and build objects."""


class Component(nn.Module):
    """Base class of everything in a registry.

    A constructor takes plain values, so that a YAML file can build the component and a folder can store it. The texts
    of the catalogue are plain strings in the class.

    Attributes:
        init_args: Arguments that the component was built with.
    """

    paper: ClassVar[str] = ""
    """Publication that describes it, such as `arXiv:2507.05177`."""
    rates: ClassVar[str] = ""
    """Input and output rates, such as `16 kHz -> 25 Hz` or `25 Hz, 1,000 units, 16 kHz`."""
    size: ClassVar[str] = ""
    """Number of parameters of the usual checkpoint, such as `20M (base)`."""
    licence: ClassVar[str] = ""
    """Licence of the published weights that it loads; empty if it is trained from scratch."""
    extra: ClassVar[str] = ""
    """Extra of `pyproject.toml` that it needs, such as `codecs`."""
    entry_points: ClassVar[tuple[str, ...]] = ()
    """Methods besides `forward` that compute with the weights: sharded weights are gathered before they run."""
    sources: ClassVar[tuple[str, ...]] = ("checkpoint",)
    """Arguments that name something to load: a file, a hub id, a URL. A model folder may only name its own files."""
    trusts: ClassVar[tuple[str, ...]] = ()
    """Arguments with which a user allows a source to run code. A model folder can't set them."""
    init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            setattr(cls, "__init__", _remember_arguments(cls.__init__))  # noqa: B010 (mypy forbids plain assignment)

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        """Arguments that rebuild the component without its checkpoint; the weights come from the model's folder.

        A component that needs other files than weights (a tokenizer, say) writes them into `folder` here and names
        them relative to it.
        """
        return self.init_args | ({"checkpoint": None} if "checkpoint" in self.init_args else {})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Keep the dtype of buffers that are not stored in checkpoints (filters, windows, rotary frequencies).

        In half precision their values would differ, also from those of the same model after saving and loading.
        """
        kept = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set and buffer.is_floating_point()
        ]
        super()._apply(fn, recurse)
        for module, name, buffer in kept:
            moved = module.get_buffer(name)
            if moved.dtype != buffer.dtype:
                module._buffers[name] = buffer.to(moved.device)
        return self

    @classmethod
    def check_stored(cls, init_args: dict[str, Any]) -> None:
        """Refuse arguments that a model folder or a checkpoint must not set, beyond `sources` and `trusts`.

        Raises:
            ValueError: An argument would fetch something or run code; the message begins with its name.
        """

    def blocks(self) -> list[nn.Module]:
        """The Transformer layers, to be sharded, recomputed and compiled one by one; each is run by its `forward`."""
        library = sys.modules.get("transformers.modeling_layers")  # imported by every model of transformers
        kinds = [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer]
        kinds += [library.GradientCheckpointingLayer] if library else []
        return [module for module in self.modules() if isinstance(module, tuple(kinds))]


def check_plain(value: Any, where: str, depth: int = MAX_DEPTH) -> None:
    """Refuse anything but numbers, strings, booleans, null, and lists and mappings of these.

    Raises:
        ValueError: The value is something else, names a class, or is nested too deeply.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return
    if depth == 0:
        raise ValueError(f"{where}: is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r} must be a text")
            if key == "class_path":
                raise ValueError(f"{where}: names a class, {item!r}; only a slot's component is built by its name")
            check_plain(item, f"{where}.{key}", depth - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_plain(item, where, depth - 1)
    else:
        raise ValueError(f"{where}: holds {type(value).__name__}; plain values are allowed")


def _remember_arguments(init: Any) -> Any:
    """Wrap a constructor: the outermost call stores its arguments, including defaults, in `self.init_args`.

    The error of a missing package then names the command that installs it.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Component, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        check_arguments(init, bound.arguments, f"{type(self).__name__}: ")
        bound.apply_defaults()
        if "init_args" not in self.__dict__:
            arguments = dict(list(bound.arguments.items())[1:])
            for parameter in signature.parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments |= arguments.pop(parameter.name, {})
            for name, value in arguments.items():
                if hasattr(value, "items"):  # a mapping, or the namespace that a parser builds from one
                    check_plain(value, f"{type(self).__name__}: {name}")
            self.__dict__["init_args"] = arguments
        try:
            with bounded_building(_described(self)):
                init(self, *args, **kwargs)
        except Exception as error:
            remedy = how_to_install(error, preferred=type(self).extra)
            if remedy is None or isinstance(error, MissingPackageError):
                raise
            raise MissingPackageError(f"{type(self).__name__}: {remedy}") from error

    return wrapped


def _described(component: Component) -> str:
    """Name of the component, with the numbers among its arguments that differ from the defaults."""
    defaults = {name: p.default for name, p in inspect.signature(type(component)).parameters.items()}
    given = {name: value for name, value in component.init_args.items() if isinstance(value, int | float)}
    numbers = [f"{name} {value}" for name, value in given.items() if name not in defaults or defaults[name] != value]
    name = type(component).__name__
    return f"{name} ({', '.join(numbers)})" if numbers else name
