"""Numbers that an option can't mean are refused by name, value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from lightning_s2s.support.ranges import Count, Positive, Range, Share, checked


@checked
@dataclass
class Settings:
    """Of a test."""

    share: Share = 0.5
    count: Count | None = None
    speed: Annotated[float, Range(0.25, 4)] = 1.0
    plain: float = 0.0
    whole: int = 0
    limits: tuple[float, float] = (0.0, 1.0)
    sizes: Sequence[Count] = ()
    rate: Annotated[float, Range(0, 2, above=True)] = 1.0
    rates: dict[str, Positive] | None = None
    layers: int | list[int] | Literal["weighted"] = -1
    text: str = ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, "share must be between 0 and 1; got 1.5"),
        ({"share": float("nan")}, "share must be a finite number, between 0 and 1; got nan"),
        ({"share": "half"}, "share must be a finite number, between 0 and 1; got 'half'"),
        ({"share": True}, "share must be a finite number, between 0 and 1; got True"),
        ({"share": None}, "share must be a finite number, between 0 and 1; got None"),
        ({"count": 0}, "count must be at least 1; got 0"),
        ({"count": 10**12}, "count must be at most 1,000,000,000; got 1000000000000"),
        ({"count": 10**400}, f"count must be at most 1,000,000,000; got 1{'0' * 76}..."),
        ({"whole": None}, "whole must be a whole number; got None"),
        ({"count": 1.5}, "count must be a whole number, at least 1; got 1.5"),
        ({"speed": 0}, "speed must be between 0.25 and 4; got 0"),
        ({"plain": float("inf")}, "plain must be a finite number; got inf"),
        ({"whole": "x" * 100}, f"whole must be a whole number; got {('x' * 100)!r:.77}..."),
        ({"limits": (0.0, float("nan"))}, "limits[1] must be a finite number; got nan"),
        ({"sizes": [1, 0]}, "sizes[1] must be at least 1; got 0"),
        ({"rates": {"a": 1.0, "b": 0.0}}, "rates.b must be above 0; got 0.0"),
        ({"rate": 5.0}, "rate must be above 0 and at most 2; got 5.0"),
        ({"layers": [1, 2.5]}, "layers[1] must be a whole number; got 2.5"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError) as refused:
        Settings(**arguments)
    assert str(refused.value) == f"Settings: {message}"


def test_what_is_taken():
    Settings(1, 3, 4, 1e308, -5, (0, 1), [2, 3], 2.0, {"a": 1e-9}, "weighted")
    assert Settings(layers=[0, 1], count=None).layers == [0, 1]
