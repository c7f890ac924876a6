"""The components that a model folder or a checkpoint describes: a stranger's word, checked before anything is built.

It may name registered components and hold plain values. Trust, URLs, hub ids and files outside the folder come from the
user, as `trust_sources`, never from what is loaded.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s2s.components.base import Component, check_plain
from lightning_s2s.components.pretrained import without_hub
from lightning_s2s.components.registry import SLOTS, Registry
from lightning_s2s.scale.fsdp import unsharded_class
from lightning_s2s.support.reading import reading
from lightning_s2s.support.wording import unknown_name

if TYPE_CHECKING:
    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel


def describe_parts(model: SpeechToSpeechModel, folder: Path) -> dict[str, Any]:
    """`class_path` and `init_args` of each component, by slot; writes their other files into `folder`.

    Raises:
        ValueError: A component is not registered.
    """
    config: dict[str, Any] = {}
    for slot, registry in SLOTS.items():
        component = getattr(model, slot)
        if component is not None:
            name, init_args = registry.name_of(unsharded_class(component)), component.pretrained_args(folder)
            config[slot] = {"class_path": name, "init_args": init_args}
    return config


def build_parts(
    config: Mapping[str, Any], source: Path, folder: Path, trust_sources: bool = False
) -> dict[str, Component]:
    """The components that `config` describes, by slot. All are checked before the first is built.

    Args:
        config: Slot -> `class_path`, a registered name, and `init_args`, plain values; other keys are ignored.
        source: The file that holds `config`, for messages.
        folder: Arguments that name files may name those in this folder, relative to it.
        trust_sources: Also take files elsewhere, hub ids, URLs, and the trust that the file itself claims.

    Raises:
        ValueError: Anything else is named, or a component can't be built; the message names `source` and the key.
    """
    checked = {}
    for slot, registry in SLOTS.items():
        if config.get(slot) is not None:
            where = f"{source}: {slot}"
            cls, init_args = check_part(registry, config[slot], where)
            checked[slot] = cls, _with_sources(cls, init_args, where, folder, trust_sources)
    with contextlib.nullcontext() if trust_sources else without_hub():
        return {slot: _build(cls, init_args, f"{source}: {slot}") for slot, (cls, init_args) in checked.items()}


def check_part(registry: Registry, part: Any, where: str) -> tuple[type[Component], dict[str, Any]]:
    """The class and the arguments that a file names for a slot; nothing but registered components is imported.

    Args:
        registry: Registry of the slot.
        part: Mapping with `class_path` and `init_args`.
        where: File and slot, for messages.

    Raises:
        ValueError: No registered component, an argument that it doesn't have, or a value that is not plain.
    """
    if not isinstance(part, Mapping) or not isinstance(part.get("class_path"), str):
        raise ValueError(f"{where}: must hold class_path (a name) and init_args (a mapping)")
    if unknown := part.keys() - {"class_path", "init_args"}:
        raise ValueError(f"{where}: unknown key {min(map(str, unknown))!r}; known: class_path, init_args")
    init_args = part.get("init_args") or {}
    if not isinstance(init_args, Mapping):
        raise ValueError(f"{where}.init_args: expected a mapping, found {type(init_args).__name__}")
    cls = registry.find(part["class_path"])
    if cls is None:
        raise ValueError(f"{where}: {unknown_name(registry.kind, part['class_path'], registry.names())}")
    known = _parameters(cls)
    for name, value in init_args.items():
        if not isinstance(name, str) or name not in known:
            option = unknown_name(f"argument of {registry.kind} {registry.name_of(cls)}", str(name), known)
            raise ValueError(f"{where}.init_args: {option}")
        check_plain(value, f"{where}.init_args.{name}")
    return cls, dict(init_args)


def _parameters(cls: type[Component]) -> dict[str, inspect.Parameter]:
    """The constructor's parameters, those that it passes on to its bases by `**` included."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in base.__dict__ or not issubclass(base, Component):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        kinds = {parameter.kind for parameter in parameters}
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found = {parameter.name: parameter for parameter in parameters if parameter.kind in named} | found
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def _with_sources(
    cls: type[Component], init_args: dict[str, Any], where: str, folder: Path, trust_sources: bool
) -> dict[str, Any]:
    """The arguments with full paths of files in `folder`; others that name something to load need trust."""
    hint = "what a file names beyond its folder is taken with --trust_sources alone"
    filled = dict(init_args)
    for name, parameter in _parameters(cls).items():
        if name not in cls.sources:
            continue
        value = init_args.get(name, parameter.default)
        if value in (None, False, ""):
            continue
        if isinstance(value, str) and (path := _inside(folder, value)):
            filled[name] = str(path)
        elif not trust_sources:
            given = "" if name in init_args else ", the default"
            raise ValueError(f"{where}.init_args.{name}: got {value!r}{given}; {hint}")
    if trust_sources:
        return filled
    for name in cls.trusts:
        if init_args.get(name):
            raise ValueError(f"{where}.init_args.{name}: got {init_args[name]!r}; {hint}")
    try:
        cls.check_stored(init_args)
    except ValueError as error:
        raise ValueError(f"{where}.init_args: {error}; {hint}") from None
    return filled


def _inside(folder: Path, value: str) -> Path | None:
    """The file or folder of this name in `folder`, if it is there; links that lead out of it are ignored."""
    home, given = folder.resolve(), Path(value)
    try:
        path = (home / given).resolve()
        fits = not given.is_absolute() and home in (path, *path.parents) and path.exists()
    except (OSError, ValueError, RuntimeError):  # a name too long, with a zero byte, or links in a circle
        return None
    return path if fits else None


def _build(cls: type[Component], init_args: dict[str, Any], where: str) -> Component:
    with reading(where, "component"):
        return cls(**init_args)


# --- inside a checkpoint ---------------------------------------------------------------------------------------------


def pack_parts(model: SpeechToSpeechModel) -> dict[str, Any]:
    """`describe_parts` as plain values, with the files, so that a checkpoint can be opened without its folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = describe_parts(model, folder)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {"config": config, "files": files}


def unpack_parts(packed: Any, source: Path, trust_sources: bool = False) -> dict[str, Component]:
    """The components that `pack_parts` described.

    Raises:
        ValueError: It is no such description, or as `build_parts`.
    """
    fits = isinstance(packed, Mapping) and isinstance(packed.get("config"), Mapping)
    files = packed.get("files") if fits else None
    if not isinstance(files, Mapping):
        raise ValueError(f"{source}: its description of the model must hold config and files")
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            parts = Path(str(file)).parts
            if not isinstance(content, bytes) or not parts or Path(file).is_absolute() or ".." in parts:
                raise ValueError(f"{source}: its description of the model holds the file {file!r}, which can't be used")
            path = Path(name, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return build_parts(packed["config"], source, Path(name), trust_sources)
