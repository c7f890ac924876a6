"""Names -> components: the five registries, the built-in component files and installed plug-ins.

A component registers itself where it is defined:

    @ENCODERS.register("mel")
    class MelEncoder(AudioEncoder): ...

From then on `encoder: mel` works in every YAML and `--model.encoder mel` on the command line. A plug-in is any
installed package with an entry point of the group `lightning_s2s.components` that names a module with such classes.
This file imports neither torch nor a component by itself, so that listing components and `--help` stay fast.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from lightning_s2s.support.wording import unknown_name

PACKAGE = "lightning_s2s.components"
ENTRY_POINT_GROUP = "lightning_s2s.components"

ComponentClass = TypeVar("ComponentClass", bound=type)


@dataclass(frozen=True)
class ComponentInfo:
    """What the catalogue says of a component.

    Attributes:
        kind: the slot, such as `encoder`; `plug-in` where the component's source can't be found without importing it.
        name: what a YAML says.
        summary: first line of the class's docstring.
        module: import path of the module that defines it.
        paper, rates, size, licence, extra: see `lightning_s2s.components.contracts.Component`.
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
"""Attributes of a component's class that the catalogue reads from its source, plain strings all."""


class UnregisteredError(ValueError):
    """A component whose class has no name in its registry."""


class Registry:
    """The components of one slot, by name.

    Args:
        kind: the slot's name in messages, such as `encoder`.
        folder: sub-package beside this file with the built-in components, one per file.
        variable: this object's name in this module, by which component files call it.
        contract: name of the class in `lightning_s2s.components.contracts` that components extend.
    """

    def __init__(self, kind: str, folder: str, variable: str, contract: str):
        self.kind, self.folder, self.variable, self.contract = kind, folder, variable, contract
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[ComponentClass], ComponentClass]:
        """Class decorator that makes `name` stand for the class, in YAML, on the command line and in `get`.

        Raises:
            ValueError: the name is taken or no Python identifier (jsonargparse accepts no other short names), or the
                class does not extend the slot's contract.
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

    def get(self, name: str) -> type:
        """The class of that name; all components are imported when it is not known yet.

        Raises:
            ValueError: no component has this name; the message gives near names and all names.
        """
        if name not in self._classes:
            REGISTRY.load()
        if name not in self._classes:
            raise ValueError(unknown_name(self.kind, name, self._classes))
        return self._classes[name]

    def name_of(self, cls: type) -> str:
        """The name that a class is registered under.

        Raises:
            UnregisteredError: it is not registered as this kind of component.
        """
        name = self.find_name(cls)
        if name is None:
            raise UnregisteredError(f"{cls.__module__}.{cls.__qualname__} is no registered {self.kind}")
        return name

    def find_name(self, cls: type) -> str | None:
        """The name that a class is registered under, None when it is not."""
        return next((name for name, registered in self._classes.items() if registered is cls), None)

    def find(self, class_path: str) -> type | None:
        """The registered class of that name, or of that class path; None when there is none. Imports nothing else."""
        REGISTRY.load()
        for name, cls in self._classes.items():
            if class_path in (name, f"{cls.__module__}.{name}", f"{cls.__module__}.{cls.__qualname__}"):
                return cls
        return None

    def names(self) -> list[str]:
        """All names, sorted; the components' sources are read, not imported."""
        listed = {info.name for info in REGISTRY.list() if info.kind == self.kind}
        return sorted(listed | self._classes.keys())


def _add_short_name(cls: type, name: str) -> None:
    """Make `name` an importable stand-in for `cls` in the module that defines it; jsonargparse finds it by type.

    A subclass whose construction gives a plain `cls`. jsonargparse's `class_from_function` does the same, but leaves
    its class in the calling module, where names of two slots would collide, and does not follow `**kwargs` to a base.
    """
    home = sys.modules[cls.__module__]
    existing = getattr(home, name, None)
    if existing is not None and not getattr(existing, "_stands_for", None):
        raise ValueError(f"{cls.__module__} already defines {name!r}; register {cls.__qualname__} under another name")

    @functools.wraps(object.__new__)  # says that the parameters are those of `__init__`
    def construct(_: type, *args: Any, **kwargs: Any) -> Any:
        return cls(*args, **kwargs)

    body = {"__new__": construct, "__module__": cls.__module__, "__doc__": cls.__doc__, "_stands_for": cls}
    setattr(home, name, type(cls)(name, (cls,), body))


class ComponentRegistries:
    """The five registries together."""

    def __init__(self, *registries: Registry):
        self.registries = registries
        self._loaded = False

    def __iter__(self) -> Iterator[Registry]:
        return iter(self.registries)

    def load(self) -> None:
        """Import every built-in component file and every plug-in; a plug-in that fails is named in a warning."""
        if self._loaded:
            return
        for registry in self.registries:
            for name in _component_files(registry.folder):
                importlib.import_module(f"{PACKAGE}.{registry.folder}.{name}")
        for point in _plug_ins():
            try:
                point.load()
            except Exception as error:  # someone else's package must not stop everything else from working
                warnings.warn(f"plug-in {point.name} ({point.value}) can't be loaded: {error!r}", stacklevel=2)
        self._loaded = True

    def list(self) -> list[ComponentInfo]:
        """Every component, by slot and name, from the sources alone: nothing is imported."""
        kinds = {registry.variable: registry.kind for registry in self.registries}
        infos: list[ComponentInfo] = []
        for registry in self.registries:
            for name, path in _component_files(registry.folder).items():
                infos += _read_components(path, f"{PACKAGE}.{registry.folder}.{name}", kinds)
        for point in _plug_ins():
            source = _source_of(point.module)
            found = _read_components(source, point.module, kinds) if source else []
            infos += found or [ComponentInfo("plug-in", point.name, f"installed plug-in {point.value}", point.module)]
        order = [*kinds.values(), "plug-in"]
        return sorted(infos, key=lambda info: (order.index(info.kind), info.name))


def _component_files(folder: str) -> dict[str, Path]:
    """Module name -> the file that registers: a component is one file, or a folder whose `__init__.py` registers it."""
    home = Path(__file__).parent / folder
    files = {path.stem: path for path in home.glob("*.py") if path.stem != "__init__"}
    return dict(sorted((files | {path.parent.name: path for path in home.glob("*/__init__.py")}).items()))


def _plug_ins() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)


def _source_of(module: str) -> Path | None:
    """A module's file, found without importing it or the packages that hold it."""
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for location in spec.submodule_search_locations or ():
        base = Path(location).joinpath(*rest)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def _read_components(path: Path, module: str, kinds: dict[str, str]) -> list[ComponentInfo]:
    """The classes of one source file that carry a decorator `VARIABLE.register("name")`."""
    infos = []
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            match decorator:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id=variable), attr="register"),
                    args=[ast.Constant(value=str(name))],
                ) if variable in kinds:
                    summary = (ast.get_docstring(node) or "").partition("\n")[0]
                    infos.append(ComponentInfo(kinds[variable], name, summary, module, **_read_facts(node)))
    return infos


def _read_facts(node: ast.ClassDef) -> dict[str, str]:
    """The strings that a class's body gives to the names in `FACTS`."""
    facts = {}
    for statement in node.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text)))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(text)))
            ) if name in FACTS:
                facts[name] = text
    return facts


ENCODERS = Registry("encoder", "encoders", "ENCODERS", "AudioEncoder")
ADAPTERS = Registry("adapter", "adapters", "ADAPTERS", "Adapter")
LLMS = Registry("llm", "llms", "LLMS", "LanguageModel")
SPEECH_DECODERS = Registry("speech_decoder", "speech_decoders", "SPEECH_DECODERS", "SpeechDecoder")
VOCODERS = Registry("vocoder", "vocoders", "VOCODERS", "Vocoder")
REGISTRY = ComponentRegistries(ENCODERS, ADAPTERS, LLMS, SPEECH_DECODERS, VOCODERS)
