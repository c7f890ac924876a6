"""The range of a numeric option is part of its type, and is checked when the object is built.

    @checked
    class Filter:
        def __init__(self, max_share: Share = 0.1, min_words: Count | None = None): ...

    Filter(max_share=1.5)  # ValueError: Filter: max_share must be between 0 and 1; got 1.5

Numbers without a range of their own must be finite. The parsers of YAML see plain `int` and `float`.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar

HUGE = 1_000_000_000


@dataclass(frozen=True)
class DeviceName:
    """Marks the name of a device of this machine."""


@dataclass(frozen=True, repr=False)
class Range:
    """Numbers between two bounds.

    Attributes:
        low: The lowest number.
        high: The highest number.
        above: Whether `low` itself is excluded.
    """

    low: float
    high: float = HUGE
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __repr__(self) -> str:
        """What is allowed, in messages and in a command's help."""
        lowest = f"{'above' if self.above else 'at least'} {self.low:,g}"
        if self.high == HUGE:
            return lowest
        if self.above:
            return f"{lowest} and at most {self.high:,.15g}"
        return f"between {self.low:,g} and {self.high:,.15g}"


Natural = Annotated[int, Range(0)]
"""A number of things, 0 included."""
Count = Annotated[int, Range(1)]
"""A number of things, at least one."""
Layers = Annotated[int, Range(1, 1_000)]
"""A number of layers."""
Share = Annotated[float, Range(0, 1)]
"""A share or a probability."""
Positive = Annotated[float, Range(0, above=True)]
"""A size, a duration or a rate."""
NonNegative = Annotated[float, Range(0)]
"""A weight or a tolerance."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""Seed of random numbers."""
Speed = Annotated[float, Range(0.25, 4)]
"""Speed of a voice, relative to its usual one."""
Temperature = Annotated[float, Range(0, 100)]
"""Divides the logits before a token is drawn; 0 takes the most likely one."""
Processes = Annotated[int, Range(1, 10_000)]
"""A number of processes that run at a time."""

Device = Annotated[str, DeviceName()]
"""Where a model runs: `cpu`, `cuda`, `cuda:1`, ..."""

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


def checked(cls: Class) -> Class:
    """Class decorator, above `@dataclass`: the constructor refuses numbers that its types don't allow.

    A class of grouped options names the option that it is given by as its attribute `OPTION`.

    Raises:
        ValueError: Raised by the constructor; the message names class, argument, value and what is allowed.
    """
    init = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        group = getattr(self, "OPTION", None)
        check_arguments(init, bound.arguments, f"{group}." if group else f"{type(self).__name__}: ")
        init(self, *args, **kwargs)

    setattr(cls, "__init__", wrapped)  # noqa: B010 (mypy forbids plain assignment)
    return cls


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Compare the numbers among a function's arguments with its types.

    Raises:
        ValueError: One doesn't fit; the message begins with `where`.
    """
    hints = hints_of(function)
    for name, value in arguments.items():
        if name in hints:
            _check(value, hints[name], f"{where}{name}")


@functools.cache
def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters; those that can't be resolved are left out."""
    plain: Any = inspect.unwrap(function)
    names = vars(sys.modules[plain.__module__]) if plain.__module__ in sys.modules else {}
    hints: dict[str, Any] = {}
    for name, hint in getattr(plain, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: hint})
        try:
            hints |= typing.get_type_hints(alone, {**vars(typing), **names}, include_extras=True)
        except (NameError, TypeError, AttributeError):  # imported only for type checkers
            continue
    return hints


def _check(value: Any, hint: Any, where: str, allowed: Range | None = None) -> None:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if any(isinstance(note, DeviceName) for note in inner[1:]):
            check_device(value, where)
        ranges = [note for note in inner[1:] if isinstance(note, Range)]
        _check(value, inner[0], where, ranges[0] if ranges else allowed)
    elif origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return
        fitting = [kind for kind in inner if _is_a(value, kind)]
        if fitting:
            _check(value, fitting[0], where, allowed)
        elif isinstance(value, str) and any(typing.get_origin(kind) is typing.Literal for kind in inner):
            return  # the constructor checks the words
        elif numbers := [kind for kind in inner if _is_number(kind)]:
            _check(value, numbers[0], where, allowed)
    elif origin in (list, tuple, set) or (origin is not None and _is_sequence(origin)):
        if isinstance(value, list | tuple | set) and inner:
            for number, item in enumerate(value):
                kind = inner[min(number, len(inner) - 1)]
                _check(item, inner[0] if kind is Ellipsis else kind, f"{where}[{number}]", allowed)
    elif origin is not None and isinstance(value, Mapping) and len(inner) == 2:
        for key, item in value.items():
            _check(item, inner[1], f"{where}.{key}", allowed)
    elif hint in (int, float):
        _check_number(value, hint, where, allowed)


def _is_number(hint: Any) -> bool:
    return hint in (int, float) or (typing.get_origin(hint) is Annotated and _is_number(typing.get_args(hint)[0]))


def _is_sequence(origin: Any) -> bool:
    import collections.abc as kinds

    return origin in (kinds.Sequence, kinds.Iterable, kinds.Collection)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value matches one member of a union."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _is_a(value, inner[0])
    if origin is typing.Literal:
        return value in inner
    kind = origin or hint
    if kind is tuple:  # YAML only has lists
        return isinstance(value, tuple | list)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def check_device(name: Any, where: str) -> Any:
    """The torch device of this name; `auto` is a GPU where there is one.

    Args:
        name: Name of the device.
        where: The option, for the message.

    Raises:
        ValueError: There is no such device on this machine.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # fails for `meta`, which holds nothing to copy
    except Exception as error:  # the kind of error depends on the device
        gpus = torch.cuda.device_count()
        here = ", ".join(["cpu", *(f"cuda:{number}" for number in range(gpus))])
        reason = "" if gpus or "cuda" not in str(name) else "; there is no CUDA GPU here"
        raise ValueError(f"{where} must be a device of this machine ({here}); got {name!r}{reason}") from error
    return device


def device_of(part: Any) -> Any:
    """The torch device that an object's `device` names; raises as `check_device`."""
    return check_device(part.device, f"{type(part).__name__}: device")


def _check_number(value: Any, kind: type, where: str, allowed: Range | None) -> None:
    what = "a whole number" if kind is int else "a finite number"
    is_one = _is_a(value, kind) and (isinstance(value, int) or math.isfinite(value))
    if is_one and (allowed is None or value in allowed):
        return
    if allowed is not None:
        too_large = is_one and allowed.high == HUGE and value > HUGE
        range_ = f"at most {HUGE:,}" if too_large else repr(allowed)
        what = range_ if is_one else f"{what}, {range_}"
    shown = repr(value)
    raise ValueError(f"{where} must be {what}; got {shown if len(shown) <= 80 else shown[:77] + '...'}")
