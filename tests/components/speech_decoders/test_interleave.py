"""The N:M schedule: layouts written by hand, the published layout, and streaming in the training order."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.components.speech_decoders.interleave import Interleave


def lay_out(schedule: str, condition_lengths: list[int], unit_lengths: list[int]):
    """The layout of turns with the units 100, 101, ... in the first, 200, 201, ... in the second, and so on."""
    size = max(unit_lengths, default=0)
    rows = [[100 * (row + 1) + i if i < length else 0 for i in range(size)] for row, length in enumerate(unit_lengths)]
    units = torch.tensor(rows, dtype=torch.long).reshape(len(unit_lengths), size)
    layout = Interleave.parse(schedule).layout(
        torch.tensor(condition_lengths, dtype=torch.long), units, torch.tensor(unit_lengths, dtype=torch.long)
    )
    return layout, size


def spelled(layout, size: int, row: int) -> str:
    """A row of the layout as text: `s` for the speaker, `c0 c1 ...` for conditions, `u0 u1 ...` for units."""
    names = []
    for source, valid in zip(layout.source[row].tolist(), layout.mask[row].tolist(), strict=True):
        if valid:
            names.append("s" if source == 0 else f"u{source - 1}" if source <= size else f"c{source - 1 - size}")
    return " ".join(names)


@pytest.mark.parametrize(
    ("schedule", "conditions", "units", "expected"),
    [
        ("1:2", 2, 4, "s c0 u0 u1 c1 u2 u3"),
        ("1:2", 2, 7, "s c0 u0 u1 c1 u2 u3 u4 u5 u6"),  # conditions run out first
        ("1:2", 4, 3, "s c0 u0 u1 c1 u2 c2 c3"),  # units run out first, within a group
        ("1:2", 4, 2, "s c0 u0 u1 c1 c2 c3"),  # and at its end
        ("2:3", 3, 5, "s c0 c1 u0 u1 u2 c2 u3 u4"),  # the last conditions don't fill a group
        ("4:8", 5, 10, "s c0 c1 c2 c3 u0 u1 u2 u3 u4 u5 u6 u7 c4 u8 u9"),
        ("4:8", 2, 1, "s c0 c1 u0"),
        ("1:1", 1, 1, "s c0 u0"),
    ],
)
def test_layouts_written_by_hand(schedule, conditions, units, expected):
    layout, size = lay_out(schedule, [conditions], [units])
    assert spelled(layout, size, 0) == expected
    labels = [100 + int(name[1:]) if name[0] == "u" else -100 for name in expected.split()]
    assert layout.labels.tolist() == [labels]
    assert layout.mask.all()


def test_both_kinds_of_rows_in_one_batch():
    layout, size = lay_out("1:2", [1, 4], [5, 1])
    assert spelled(layout, size, 0) == "s c0 u0 u1 u2 u3 u4"
    assert spelled(layout, size, 1) == "s c0 u0 c1 c2 c3"
    assert layout.mask.tolist() == [[True] * 7, [True] * 6 + [False]]
    assert layout.labels.tolist() == [
        [-100, -100, 100, 101, 102, 103, 104],
        [-100, -100, 200, -100, -100, -100, -100],
    ]
    assert layout.source[1, 6] == 0


def test_an_empty_batch():
    layout, _ = lay_out("4:8", [], [])
    assert layout.source.shape == layout.labels.shape == layout.mask.shape == (0, 1)


@pytest.mark.parametrize("text", ["", "4", "4:", ":8", "4-8", "4:8:2", "a:b", "-1:2", "1.5:2", "0:8", "4:0"])
def test_invalid_schedules(text):
    with pytest.raises(ValueError, match="interleave"):
        Interleave.parse(text)


def test_a_schedule_prints_as_it_is_written():
    assert str(Interleave.parse(" 4:8 ")) == "4:8"


def streamed(schedule: str, num_conditions: int, num_units: int) -> str:
    """The order of inputs in a stream whose conditions arrive one at a time."""
    interleave, order, drawn = Interleave.parse(schedule), ["s"], 0
    for number in range(num_conditions):
        order.append(f"c{number}")
        due = interleave.units_due(number + 1, drawn, last=number == num_conditions - 1)
        for _ in range(num_units - drawn if due is None else min(due, num_units - drawn)):
            order.append(f"u{drawn}")
            drawn += 1
    return " ".join(order)


@pytest.mark.parametrize("schedule", ["1:2", "2:3", "4:8"])
@pytest.mark.parametrize(("conditions", "units"), [(1, 5), (4, 8), (5, 10), (8, 3), (9, 30)])
def test_streaming_sees_the_training_order(schedule, conditions, units):
    layout, size = lay_out(schedule, [conditions], [units])
    assert streamed(schedule, conditions, units) == spelled(layout, size, 0)
