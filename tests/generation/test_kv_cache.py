"""The slot cache: sequences of any age in one forward give the same results as alone."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.generation import kv_cache
from lightning_s2s.generation.kv_cache import SlotCache, UnboundedCache, causal_mask, open_cache
from parts.small_models import LM_KINDS, small_lm
from parts.tolerances import assert_equal_but_for_rounding


def uncached(lm, inputs: torch.Tensor) -> torch.Tensor:
    return lm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state


@torch.inference_mode()
def check_sequences(lm, cache: SlotCache) -> None:
    """Three sequences of different ages, in pieces of different sizes; one is released, and a fourth takes its slot."""
    a, b, c, d = (torch.randn(1, length, 16) for length in (13, 9, 6, 7))
    slots = [cache.acquire() for _ in range(3)]
    assert [slot.index for slot in slots] == [0, 1, 2]
    of_a = cache.advance([a[:, :5]], slots[:1])
    of_b = []
    for i in range(5, 8):
        more_b, more_a = cache.advance([b[:, i - 5 : i - 4], a[:, i : i + 1]], [slots[1], slots[0]])
        of_a.append(more_a)
        of_b.append(more_b)
    first_c, more_a, more_b = cache.advance([c[:, :3], a[:, 8:9], b[:, 3:6]], [slots[2], slots[0], slots[1]])
    of_a.append(more_a)
    assert_equal_but_for_rounding(torch.cat([*of_b, more_b], dim=1), uncached(lm, b)[:, :6])

    slots[1].release()
    taken = cache.acquire()
    assert taken.index == 1 and taken.length == 0
    of_c, of_d = [first_c], [cache.advance([d[:, :4]], [taken])[0]]
    for i in range(3):  # rows 0 and 2 are not contiguous, 0 to 2 are
        more_a, more_c = cache.advance([a[:, 9 + i : 10 + i], c[:, 3 + i : 4 + i]], [slots[0], slots[2]])
        of_a.append(more_a)
        of_c.append(more_c)
        of_d += cache.advance([d[:, 4 + i : 5 + i]], [taken])
    of_a += cache.advance([a[:, 12:]], slots[:1])
    for given, inputs in ((of_a, a), (of_c, c), (of_d, d)):
        assert_equal_but_for_rounding(torch.cat(given, dim=1), uncached(lm, inputs))


@pytest.mark.parametrize("model_type", LM_KINDS)
@pytest.mark.parametrize("max_positions", [16, 3])
def test_sequences_of_different_ages(model_type, max_positions):
    """With 3 positions, the slots are doubled during the test."""
    lm = small_lm(model_type)
    cache = open_cache(lm, 3, max_positions)
    check_sequences(lm, cache)
    assert cache.max_positions == {16: 16, 3: 24}[max_positions]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations(attention):
    lm = small_lm()
    lm.set_attn_implementation(attention)
    check_sequences(lm, open_cache(lm, 3, 16))


def test_compiled_steps_leave_idle_slots_alone(monkeypatch):
    """Traced as for compilation, without a compiler."""
    monkeypatch.setattr(kv_cache, "_compile", lambda forward: torch.compile(forward, backend="eager", dynamic=False))
    lm = small_lm()
    cache = open_cache(lm, 3, 16, compiled_sizes=(1, 3))
    cache.warm_up(16)
    stored = [tensor.data_ptr() for tensor in cache.keys]
    check_sequences(lm, cache)
    assert [tensor.data_ptr() for tensor in cache.keys] == stored


def test_slots_are_limited_and_come_back():
    cache = open_cache(small_lm(), 2, 8)
    first, second = cache.acquire(), cache.acquire()
    with pytest.raises(RuntimeError, match="all 2 slots of the cache are taken"):
        cache.acquire()
    second.release()
    second.release()
    assert cache.acquire().index == 1 and first.index == 0


@torch.inference_mode()
def test_a_sliding_window_has_a_cache_of_its_own():
    lm = small_lm("mistral", sliding_window=4)
    cache = open_cache(lm)
    assert isinstance(cache, UnboundedCache)
    inputs = torch.randn(1, 9, 16)
    for _ in range(2):
        slot = cache.acquire()
        given = [cache.advance([piece], [slot])[0] for piece in inputs.split([5, 1, 3], dim=1)]
        assert_equal_but_for_rounding(torch.cat(given, dim=1), uncached(lm, inputs))
        with pytest.raises(RuntimeError, match="only slot"):
            cache.acquire()
        slot.release()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_slots must be at least 1; got 0"),
        ((1, 0), "max_positions must be at least 1; got 0"),
        ((2,), "MistralForCausalLM has layers with a sliding window .* got num_slots 2"),
        ((1, 8, (1,)), "MistralForCausalLM has layers with a sliding window .* got compile true"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        open_cache(small_lm("mistral", sliding_window=4), *arguments)
    assert "\n" not in str(error.value)


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"compile true needs a C\+\+ compiler.*install g\+\+"):
        open_cache(small_lm(), 1, 8, compiled_sizes=(1,))


def test_the_mask_hides_what_lies_behind():
    lowest = torch.finfo(torch.float32).min
    mask = causal_mask(torch.tensor([[2, 3], [0, 1]]), 4, torch.float32)
    seen = [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0]]]
    assert torch.equal(mask[:, 0], torch.where(torch.tensor(seen) == 1, 0.0, lowest))
