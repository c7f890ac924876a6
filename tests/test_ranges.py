"""Numbers that an option can't mean are refused by name, value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from lightning_s2s.ranges import Count, Positive, Range, Share, checked


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
    rates: dict[str, Positive] | None = None
    layers: int | list[int] | Literal["weighted"] = -1
    text: str = ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, "share: got 1.5; allowed: 0 to 1"),
        ({"share": float("nan")}, "share: got nan; allowed: 0 to 1"),
        ({"share": "half"}, "share: got 'half'; allowed: 0 to 1"),
        ({"share": True}, "share: got True; allowed: 0 to 1"),
        ({"share": None}, "share: got None; allowed: 0 to 1"),
        ({"count": 0}, "count: got 0; allowed: whole numbers, 1 to 1,000,000,000"),
        ({"count": 10**12}, "count: got 1000000000000; allowed: whole numbers, 1 to 1,000,000,000"),
        ({"count": 1.5}, "count: got 1.5; allowed: whole numbers, 1 to 1,000,000,000"),
        ({"speed": 0}, "speed: got 0; allowed: 0.25 to 4"),
        ({"plain": float("inf")}, "plain: got inf; allowed: a number"),
        ({"whole": "x" * 100}, f"whole: got {('x' * 100)!r:.77}...; allowed: a whole number"),
        ({"limits": (0.0, float("nan"))}, "limits[1]: got nan; allowed: a number"),
        ({"sizes": [1, 0]}, "sizes[1]: got 0; allowed: whole numbers, 1 to 1,000,000,000"),
        ({"rates": {"a": 1.0, "b": 0.0}}, "rates.b: got 0.0; allowed: above 0 and at most 1,000,000,000"),
        ({"layers": [1, 2.5]}, "layers[1]: got 2.5; allowed: a whole number"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError) as refused:
        Settings(**arguments)
    assert str(refused.value) == f"Settings: {message}"


def test_what_is_taken():
    Settings(1, 3, 4, 1e308, -5, (0, 1), [2, 3], {"a": 1e-9}, "weighted")
    assert Settings(layers=[0, 1], count=None).layers == [0, 1]
