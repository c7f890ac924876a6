"""The one table of slots, and the components that can stand in each, by name.

A component registers itself where it is defined:

    @ENCODERS.register("mel")
    class MelEncoder(AudioEncoder): ...

From then on it goes by its name wherever a component is chosen: `encoder: mel` in every YAML, `--model.encoder mel` on
the command line, `class_path` in a model folder. This is the one rule for `class_path`: a registered name, else the
import path of a class. `Registry.find` says which registered class one means; jsonargparse, which also takes classes
that are not registered, knows the names by `_add_short_name`. What a stranger's file says is looked up by `find` alone.

A plug-in is any installed package with an entry point of the group `lightning_s2s.components` that names a module with
such classes.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from lightning_s2s.support.wording import unknown_name

PACKAGE = "lightning_s2s.components"
ENTRY_POINT_GROUP = "lightning_s2s.components"

ComponentClass = TypeVar("ComponentClass", bound=type)


@dataclass(frozen=True)
class ComponentInfo:
    """What the catalogue says about a component.

    Attributes:
        kind: Its slot, such as `encoder`; `plug-in` for an installed plug-in that can't be imported.
        name: The name in YAML.
        summary: First line of the class's docstring, or why a plug-in can't be imported.
        module: Import path of the module that defines it.
        paper, rates, size, licence, extra: See `lightning_s2s.components.contracts.Component`.
    """

    kind: str
    name: str
    summary: str
    module: str
    paper: str = ""
    rates: str = ""
    size: str = ""
    licence: str = ""
    extra: str = ""

    @property
    def is_built_in(self) -> bool:
        """Whether it comes with this package, not with a plug-in."""
        return self.module.startswith("lightning_s2s.")


FACTS = ("paper", "rates", "size", "licence", "extra")
"""Attributes of a component's class that the catalogue shows."""


class UnregisteredError(ValueError):
    """A component whose class has no name in its registry."""


class Registry:
    """The components of one slot, by name.

    Args:
        kind: Name of the slot, such as `encoder`.
        folder: Sub-package beside this file with the built-in components, one per file.
        contract: Name of the class in `lightning_s2s.components.contracts` that the components extend.
    """

    def __init__(self, kind: str, folder: str, contract: str):
        self.kind, self.folder, self.contract = kind, folder, contract
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[ComponentClass], ComponentClass]:
        """Class decorator that makes `name` stand for the class, in YAML, on the command line and in `get`.

        Raises:
            ValueError: The name is taken or not a Python identifier (jsonargparse accepts no other short names), or
                the class does not extend the slot's contract.
        """

        def decorate(cls: ComponentClass) -> ComponentClass:
            if not name.isidentifier():
                raise ValueError(f"{self.kind} name {name!r}: must be a Python identifier, such as 'my_{self.kind}'")
            interface = getattr(importlib.import_module("lightning_s2s.components.contracts"), self.contract)
            if not issubclass(cls, interface):
                raise ValueError(f"{self.kind} {name!r}: {cls.__qualname__} must extend {self.contract}")
            other = self._classes.get(name)
            if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"{self.kind} {name!r} is already registered by {other.__module__}.{other.__qualname__}; "
                    f"{cls.__module__}.{cls.__qualname__} needs another name"
                )
            _add_short_name(cls, name)
            self._classes[name] = cls
            return cls

        return decorate

    def get(self, class_path: str) -> type:
        """The class that `find` finds.

        Raises:
            ValueError: There is none; the message gives near names and all names.
        """
        cls = self.find(class_path)
        if cls is None:
            raise ValueError(unknown_name(self.kind, class_path, self._classes))
        return cls

    def find(self, class_path: str) -> type | None:
        """The registered class of that name or import path; None if there is none. No other module is imported."""
        if class_path not in self._classes:
            REGISTRY.load()
        for name, cls in self._classes.items():
            if class_path in (name, f"{cls.__module__}.{name}", f"{cls.__module__}.{cls.__qualname__}"):
                return cls
        return None

    def name_of(self, cls: type) -> str:
        """The name that a class is registered under.

        Raises:
            UnregisteredError: It is not registered in this slot.
        """
        name = self.find_name(cls)
        if name is None:
            raise UnregisteredError(f"{cls.__module__}.{cls.__qualname__} is no registered {self.kind}")
        return name

    def find_name(self, cls: type) -> str | None:
        """The name that a class is registered under; None if it is not registered."""
        return next((name for name, registered in self._classes.items() if registered is cls), None)

    def names(self) -> list[str]:
        """All names, sorted."""
        REGISTRY.load()
        return sorted(self._classes)


def _add_short_name(cls: type, name: str) -> None:
    """Make `name` an importable stand-in for `cls` in the module that defines it; jsonargparse finds it by type.

    The stand-in is a subclass whose construction gives a plain `cls`. jsonargparse's `class_from_function` does the
    same, but leaves its class in the calling module, where names of two slots would collide, and does not follow
    `**kwargs` to a base class.
    """
    home = sys.modules[cls.__module__]
    existing = getattr(home, name, None)
    if existing is not None and not getattr(existing, "_stands_for", None):
        raise ValueError(f"{cls.__module__} already defines {name!r}; register {cls.__qualname__} under another name")

    @functools.wraps(object.__new__)  # tells jsonargparse that the parameters are those of `__init__`
    def construct(_: type, *args: Any, **kwargs: Any) -> Any:
        return cls(*args, **kwargs)

    body = {"__new__": construct, "__module__": cls.__module__, "__doc__": cls.__doc__, "_stands_for": cls}
    setattr(home, name, type(cls)(name, (cls,), body))


class ComponentRegistries:
    """The registries of all slots together.

    Attributes:
        broken: Name of each plug-in that can't be imported -> its module, and why.
    """

    def __init__(self, *registries: Registry):
        self.registries = registries
        self.broken: dict[str, tuple[str, str]] = {}
        self._loaded = False

    def __iter__(self) -> Iterator[Registry]:
        return iter(self.registries)

    def load(self) -> None:
        """Import every built-in component and every plug-in, once; a plug-in that fails is named in a warning."""
        if self._loaded:
            return
        for registry in self.registries:
            for name in _component_modules(registry.folder):
                importlib.import_module(f"{PACKAGE}.{registry.folder}.{name}")
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
            try:
                point.load()
            except Exception as error:  # someone else's package must not stop everything else from working
                self.broken[point.name] = point.module, repr(error)
                warnings.warn(f"plug-in {point.name} ({point.value}) can't be loaded: {error!r}", stacklevel=2)
        self._loaded = True

    def list(self) -> list[ComponentInfo]:
        """Every component, by slot and name, then the plug-ins that can't be imported."""
        self.load()
        infos = []
        for registry in self.registries:
            for name in registry.names():
                cls = registry.get(name)
                summary = (cls.__doc__ or "").partition("\n")[0]
                facts = {fact: getattr(cls, fact) for fact in FACTS}
                infos.append(ComponentInfo(registry.kind, name, summary, cls.__module__, **facts))
        for name, (module, reason) in self.broken.items():
            infos.append(ComponentInfo("plug-in", name, f"can't be loaded: {reason}", module))
        return infos


def _component_modules(folder: str) -> list[str]:
    """A component is one file, or a folder whose `__init__.py` registers it."""
    home = Path(__file__).parent / folder
    files = {path.stem for path in home.glob("*.py") if path.stem != "__init__"}
    return sorted(files | {path.parent.name for path in home.glob("*/__init__.py")})


ENCODERS = Registry("encoder", "encoders", "AudioEncoder")
ADAPTERS = Registry("adapter", "adapters", "Adapter")
LLMS = Registry("llm", "llms", "LanguageModel")
SPEECH_DECODERS = Registry("speech_decoder", "speech_decoders", "SpeechDecoder")
VOCODERS = Registry("vocoder", "vocoders", "Vocoder")
REGISTRY = ComponentRegistries(ENCODERS, ADAPTERS, LLMS, SPEECH_DECODERS, VOCODERS)
SLOTS = {registry.kind: registry for registry in REGISTRY}
"""Name of each slot -> its registry, in the order in which a model's parts follow each other."""
