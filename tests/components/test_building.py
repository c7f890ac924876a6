"""Sizes that exceed any machine are refused before they take memory or time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_s2s.components import building
from lightning_s2s.components.base import Component
from lightning_s2s.components.building import bounded_building, check_sizes
from lightning_s2s.components.weights import parameters_on_meta
from lightning_s2s.support.reading import InputError, reading

GB = 10**9


@pytest.fixture(autouse=True)
def machine_of_4_gb(monkeypatch):
    monkeypatch.setattr(building, "memory_bytes", lambda: 4 * GB)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Embedding(10**9, 10**3),
        lambda: nn.Conv1d(10**5, 10**5, 10),
        lambda: nn.LSTM(10**6, 10**6),
        lambda: torch.ones(10**6, 10**6),
        lambda: torch.zeros(size=(10**6, 10**6), dtype=torch.int8),
        lambda: torch.full((10**6, 10**6), 1.0),
        lambda: torch.arange(10**12),
        lambda: torch.arange(0, end=10**12),
        lambda: torch.eye(10**6),
        lambda: torch.linspace(0, 1, 10**12),
    ],
)
def test_one_tensor_larger_than_the_machine(build):
    with pytest.raises(InputError, match=r"^a.json: .*GB .*this machine has 4.0 GB"), bounded_building("a.json"):
        build()


def test_many_tensors_that_are_too_large_together(monkeypatch):
    monkeypatch.setattr(building, "memory_bytes", lambda: 10_000)
    with bounded_building("a.json"):
        nn.Sequential(*(nn.Linear(30, 10, bias=False) for _ in range(8)))  # 9,600 bytes
    with pytest.raises(InputError, match="a.json: .*up to Linear.weight; this machine"), bounded_building("a.json"):
        nn.Sequential(*(nn.Linear(30, 10, bias=False) for _ in range(9)))


def test_without_memory_much_larger_models_are_planned_but_not_absurd_ones():
    with bounded_building("a.json"), parameters_on_meta():
        assert sum(nn.Linear(20_000, 40_000, bias=False).weight.numel() for _ in range(4)) == 32 * 10**8
    with bounded_building("a.json"), torch.device("meta"):
        nn.Linear(10**6, 10**6)  # 4,000 GB
    with pytest.raises(InputError, match="at most 1e"), bounded_building("a.json"), torch.device("meta"):
        nn.Linear(10**7, 10**7)


def test_what_is_built_is_not_larger_than_the_weights_that_belong_to_it():
    with bounded_building("a.json", stored=10**6):
        nn.Linear(1000, 1000)
    with pytest.raises(InputError, match=r"numbers in one tensor .*hold 1,000,000"), bounded_building("", 10**6):
        nn.Linear(4000, 4000)
    with (
        pytest.raises(InputError, match=r"up to Linear.weight; .*hold 1,000,000"),
        bounded_building("x", 10**6),
    ):
        nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(4)))


def test_the_number_of_modules_is_bounded(monkeypatch):
    monkeypatch.setattr(building, "MAX_MODULES", 100)
    with pytest.raises(InputError, match="a.json: .*more than 100 modules"), bounded_building("a.json"):
        nn.ModuleList(nn.Identity() for _ in range(10**9))


def test_what_is_tied_or_replaced_counts_once():
    with bounded_building("a.json", stored=10**6):
        first, second = nn.Linear(1000, 1000, bias=False), nn.Linear(1, 1)
        second.weight = first.weight
        for _ in range(5):
            second.weight = nn.Parameter(torch.zeros(1000, 1000))


def test_hooks_end_with_the_context():
    with pytest.raises(InputError), bounded_building("a.json"):
        torch.ones(10**6, 10**6)
    with bounded_building("a.json", stored=0):
        pass
    assert nn.Linear(2000, 2000).weight.shape == (2000, 2000)


def test_components_are_built_within_bounds():
    class Wide(Component):
        def __init__(self, width: int):
            super().__init__()
            self.linear = nn.Linear(width, width)

    assert Wide(3).linear.in_features == 3
    message = r"^config.json: Wide \(width 1000000\): describes something too large"
    with pytest.raises(InputError, match=message), reading("config.json"):
        Wide(10**6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers: got 1e\+09; at most 1,000"),
        ({"n_layer": 5000}, "n_layer: got 5000; at most 1,000"),
        ({"encoder": {"encoder_layers": 10**6}}, r"encoder.encoder_layers: got 1e\+06; at most 1,000"),
        ({"depth": 2000}, "depth: got 2000; at most 1,000"),
        ({"hidden_size": 2**31}, "hidden_size: got 2.14748e"),
        ({"hidden_size": -(2**40)}, r"hidden_size: got -1.09951e\+12"),
        ({"rope_theta": float("nan")}, "rope_theta: got nan; a number is needed"),
    ],
)
def test_numbers_that_are_no_sizes(config, expected):
    with pytest.raises(InputError, match=f"^c.json: {expected}"):
        check_sizes(config, "c.json")


def test_numbers_of_published_models_pass():
    check_sizes(
        {"num_hidden_layers": 126, "hidden_size": 16_384, "vocab_size": 262_144, "max_position_embeddings": 10_485_760,
         "layer_norm_eps": 1e-5, "time_step_limit": [0.0, float("inf")], "tie": True, "layers": None},
        "c.json",
    )  # fmt: skip
