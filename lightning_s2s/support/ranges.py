"""What numbers an option takes stands in its type, and is checked where the object is built.

    @checked
    class Filter:
        def __init__(self, max_share: Share = 0.1, min_words: Count | None = None): ...

    Filter(max_share=1.5)  # ValueError: Filter: max_share must be between 0 and 1; got 1.5

Numbers without a range of their own must be finite. The parsers of YAML and command line see plain `int` and `float`.
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
    """Names of devices that are here."""


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds.

    Attributes:
        low: the lowest.
        high: the highest.
        above: `low` itself is not allowed.
    """

    low: float
    high: float = HUGE
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def says(self) -> str:
        """What is allowed, for a message."""
        lowest = f"{'above' if self.above else 'at least'} {self.low:,g}"
        if self.high == HUGE:
            return lowest
        if self.above:
            return f"{lowest} and at most {self.high:,.15g}"
        return f"between {self.low:,g} and {self.high:,.15g}"


Natural = Annotated[int, Range(0)]
"""How many of something, none included."""
Count = Annotated[int, Range(1)]
"""How many of something, at least one."""
Layers = Annotated[int, Range(1, 1_000)]
"""How many layers."""
Share = Annotated[float, Range(0, 1)]
"""A part of a whole, a probability."""
Positive = Annotated[float, Range(0, above=True)]
"""A size, a duration or a rate."""
NonNegative = Annotated[float, Range(0)]
"""A weight or a tolerance."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""Of random numbers."""
Speed = Annotated[float, Range(0.25, 4)]
"""Of a voice, beside its usual one."""
Temperature = Annotated[float, Range(0, 100)]
"""By which logits are divided before a token is drawn; 0 takes the most likely one."""
Processes = Annotated[int, Range(1, 10_000)]
"""How many run at a time."""

Device = Annotated[str, DeviceName()]
"""Where a model runs: `cpu`, `cuda`, `cuda:1`, ..."""

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


def checked(cls: Class) -> Class:
    """Class decorator, above `@dataclass`: the constructor refuses numbers that its types don't allow.

    Raises:
        ValueError: by the constructor; the message names class, argument, value and what is allowed.
    """
    init = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        check_arguments(init, bound.arguments, f"{type(self).__name__}: ")
        init(self, *args, **kwargs)

    setattr(cls, "__init__", wrapped)  # noqa: B010 (mypy forbids plain assignment)
    return cls


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Compare the numbers among a function's arguments with its types.

    Raises:
        ValueError: one doesn't fit; the message begins with `where`.
    """
    hints = _hints(function)
    for name, value in arguments.items():
        if name in hints:
            _check(value, hints[name], f"{where}{name}")


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types that parameters have; those that can't be found out are left out."""
    plain: Any = inspect.unwrap(function)
    names = vars(sys.modules[plain.__module__]) if plain.__module__ in sys.modules else {}
    hints: dict[str, Any] = {}
    for name, hint in getattr(plain, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: hint})
        try:
            hints |= typing.get_type_hints(alone, {**vars(typing), **names}, include_extras=True)
        except (NameError, TypeError, AttributeError):  # known to type checkers alone
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
            return  # the constructor knows the words
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
    """Whether a value is of one of the kinds of a union."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _is_a(value, inner[0])
    if origin is typing.Literal:
        return value in inner
    kind = origin or hint
    if kind is tuple:  # YAML has lists alone
        return isinstance(value, tuple | list)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def check_device(name: Any, where: str) -> Any:
    """The torch device of this name; `auto` is a GPU where there is one.

    Args:
        name: of the device.
        where: it was given, for the message.

    Raises:
        ValueError: there is no such device on this machine.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # of `meta` there is nothing to copy
    except Exception as error:  # torch raises RuntimeError, AssertionError, NotImplementedError, ... by the device
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
        range_ = f"at most {HUGE:,}" if too_large else allowed.says()
        what = range_ if is_one else f"{what}, {range_}"
    shown = repr(value)
    raise ValueError(f"{where} must be {what}; got {shown if len(shown) <= 80 else shown[:77] + '...'}")
