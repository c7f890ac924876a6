"""Every numeric option of what a YAML can build has a range, and is refused outside of it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import typing
from typing import Annotated, Any

import pytest
import torch

from lightning_s2s.components.base import Component, PlainValues
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.speech.espeak import Espeak
from lightning_s2s.construction.writing.grammar_writer import GrammarWriter
from lightning_s2s.data.tasks import SPLITS
from lightning_s2s.support.ranges import HUGE, Range, check_arguments, check_device, hints_of
from parts.package_files import FILES

PLAIN = {
    "extra", "layers", "noise_snr_db", "pooling", "eos_ids", "curves", "timing", "seen", "drawn", "lowest", "highest",
}  # fmt: skip
"""Numbers whose range other options, or the checkpoint, decide; they must be finite all the same."""
MODULES = [
    name for name in FILES
    if name.startswith(("construction", "evaluation.", "data.augmentation", "data.datamodule", "stages.", "callbacks."))
    and not name.endswith(("ray", "memory_plan", "strategies", "generation"))
]  # fmt: skip


def checked_classes() -> dict[str, type]:
    """All classes with `@checked`, and all registered components."""
    REGISTRY.load()
    found: dict[str, type] = {}
    for module in MODULES:
        home = f"lightning_s2s.{module}"
        for cls in vars(importlib.import_module(home)).values():
            if inspect.isclass(cls) and cls.__module__ == home and "ranges" in wrapper(cls):
                found[f"{module}.{cls.__name__}"] = cls
    for registry in REGISTRY:
        for name in registry.names():
            cls = registry.get(name)
            if issubclass(cls, Component) and cls.__module__.startswith("lightning_s2s."):
                found[f"{registry.kind} {name}"] = cls
    return found


def wrapper(cls: type) -> str:
    init = cls.__dict__.get("__init__")
    return getattr(getattr(init, "__code__", None), "co_filename", "")


def numbers(hint: Any, allowed: Range | None = None) -> list[Range | None]:
    """The ranges of all numbers in a type; None for one without."""
    if typing.get_origin(hint) is Annotated:
        ranges = [note for note in hint.__metadata__ if isinstance(note, Range)]
        return numbers(typing.get_args(hint)[0], ranges[0] if ranges else allowed)
    if hint in (int, float):
        return [allowed]
    if hint == PlainValues:  # what a library of its own reads
        return []
    return [found for inner in typing.get_args(hint) for found in numbers(inner, allowed)]


CLASSES = checked_classes()
OPTIONS = [
    (name, option, hint)
    for name, cls in CLASSES.items()
    for option, hint in hints_of(cls.__init__).items()
    if numbers(hint) and option != "return"
]


def test_classes_are_found():
    names = {name.rpartition(".")[2] for name in CLASSES}
    assert names >= {"CorpusConfig", "Augmentation", "GrammarWriter", "Duration", "Local", "LocalChat", "encoder mel"}
    assert len(CLASSES) > 40 and len(OPTIONS) > 130


def test_every_number_has_a_range():
    without = [f"{name}: {option}" for name, option, hint in OPTIONS if None in numbers(hint) and option not in PLAIN]
    assert without == []


@pytest.mark.parametrize(("name", "option", "hint"), OPTIONS, ids=[f"{name}.{option}" for name, option, _ in OPTIONS])
def test_nonsense_is_refused(name, option, hint):
    found = next((found for found in numbers(hint) if found is not None), Range(-math.inf, math.inf))
    nonsense = [math.nan, math.inf, -math.inf, "x", [math.nan], {"a": math.nan}]
    nonsense += [found.low - 1] if found.low > -math.inf else []
    nonsense += [found.high * 10 + 1] if found.high < math.inf else []
    fitting = 0
    for value in nonsense:
        holds_many = isinstance(value, list | dict)
        for given in [value] if holds_many else [value, [value], [[value]], {"a": value}]:
            try:
                check_arguments(CLASSES[name].__init__, {option: given}, "")
            except ValueError as error:
                assert str(error).startswith(option) and "must be" in str(error)
                fitting += 1
    assert fitting >= 3


def test_numbers_of_a_corpus():
    every = dict.fromkeys(SPLITS, 4)
    settings: dict[str, Any] = {
        "output_dir": "o", "work_dir": "w", "writer": GrammarWriter("g.yaml", every, every, every, 10, 0.1),
        "tts": Espeak(), "user_voices": {split: [split] for split in SPLITS}, "assistant_voice": "a",
    }  # fmt: skip
    for option, values in {
        "assistant_speed": [0, -1, 1e9, math.nan],
        "user_speed": [1e9, 0.0, math.inf],
        "jitter": [5, -1, math.nan],
        "seed": [-1, 2**40],
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^CorpusConfig: {option} must be .*; got "):
                CorpusConfig(**settings, **{option: value})


@pytest.mark.parametrize("name", ["toaster", "cuda:99", "meta", "", "cpu:x"])
def test_devices_that_are_not_here(name):
    with pytest.raises(ValueError, match="^--device must be a device of this machine .cpu") as refused:
        check_device(name, "--device")
    assert "\n" not in str(refused.value)


def test_devices_that_are_here():
    assert check_device("cpu", "--device") == torch.device("cpu")
    assert check_device("auto", "--device").type in ("cpu", "cuda")
    assert HUGE == 10**9 and dataclasses.is_dataclass(Range)
