"""Greedy, top-k, nucleus, repetition penalty and seeds."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.generation.sampling import Generation, Sampler

LOGITS = torch.tensor([0.7, 0.15, 0.1, 0.05]).log()


def drawn(logits: torch.Tensor = LOGITS, count: int = 60, **options) -> list[int]:
    sampler = Sampler(**({"seed": 0} | options))
    return [sampler(logits) for _ in range(count)]


def test_greedy_takes_the_most_likely():
    assert drawn(temperature=0.0) == [0] * 60


def test_a_seed_repeats_the_draw_and_the_global_generator_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_seed_the_global_generator_counts():
    torch.manual_seed(5)
    first = drawn(seed=None)
    torch.manual_seed(5)
    assert drawn(seed=None) == first


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.0}, {0}),
        ({"top_p": 0.69}, {0}),
        ({"top_p": 0.8}, {0, 1}),
        ({"top_p": 0.94}, {0, 1, 2}),
        ({"top_k": 2, "top_p": 0.94}, {0, 1}),
    ],
)
def test_what_may_be_drawn(options, allowed):
    assert set(drawn(temperature=2.0 if "top_p" not in options else 1.0, count=200, **options)) == allowed


def test_temperature_flattens():
    assert drawn(temperature=0.1).count(0) > drawn().count(0) > drawn(temperature=10.0).count(0)


def test_bfloat16_logits():
    assert set(drawn(LOGITS.bfloat16(), top_p=0.9)) <= {0, 1, 2}


def test_repetition_penalty_looks_at_the_window_alone():
    logits = torch.tensor([1.0, 0.9, 0.8])
    options = {"temperature": 0.0, "repetition_penalty": 2.0}
    assert drawn(logits, 5, **options, repetition_window=1) == [0, 1, 0, 1, 0]
    assert drawn(logits, 5, **options, repetition_window=2) == [0, 1, 2, 0, 1]
    assert drawn(logits, 5, **options) == [0, 1, 2, 0, 0]
    assert logits.tolist() == pytest.approx([1.0, 0.9, 0.8])


def test_repetition_penalty_lowers_negative_logits_too():
    assert drawn(torch.tensor([-1.0, -1.5]), 2, temperature=0.0, repetition_penalty=2.0) == [0, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 1.1}, {"top_p": -0.1}, {"top_k": -1},
        {"repetition_window": -1}, {"repetition_penalty": 0.0},
    ],
)  # fmt: skip
def test_invalid_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        Sampler(**options)


def test_generation_reads_a_config_with_the_defaults_of_transformers():
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 7, "pad_token_id": 3}
    generation = Generation.from_config(config, "x.json")
    assert generation == Generation(True, 0.6, 50, 0.95, 1.0, None, (7,))
    sampler = generation.sampler()
    assert (sampler.temperature, sampler.top_k, sampler.top_p) == (0.6, 50, 0.95)
    assert generation.sampler(greedy=True).temperature == 0
    assert Generation.from_config({"eos_token_id": [7, 8], "temperature": 0.6}, "").sampler().temperature == 0
    assert Generation.from_config({"eos_token_id": [7, 8]}, "").eos_token_ids == (7, 8)


def test_the_repetition_penalty_of_a_config_holds_for_greedy_choices():
    sampler = Generation.from_config({"repetition_penalty": 2.0}, "").sampler(greedy=True)
    logits = torch.tensor([1.0, 1.5, 0.1])
    assert [sampler(logits) for _ in range(3)] == [1, 0, 1]  # 1.5 against 1.0, 0.75 against 1.0, 0.75 against 0.5
    sampler.forget()
    assert sampler(logits) == 1 and sampler(logits) == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": "hot"}, "x.json: temperature must be float; got 'hot'"),
        ({"top_k": 2.5}, "x.json: top_k must be int"),
        ({"do_sample": 1}, "x.json: do_sample must be bool"),
        ({"eos_token_id": ["end"]}, "x.json: eos_token_id must be a token id or a list"),
        ({"max_new_tokens": 0}, "x.json: max_new_tokens must be at least 1"),
        ({"do_sample": True, "top_p": 1.5}, "x.json: top_p must be between"),
    ],
)
def test_generation_refuses(config, message):
    with pytest.raises(ValueError, match=message):
        Generation.from_config(config, "x.json")


def test_an_option_that_is_not_followed_is_named():
    with pytest.warns(UserWarning, match="x.json: num_beams = 4 is not supported"):
        Generation.from_config({"num_beams": 4}, "x.json")
