"""The text loss in chunks equals the loss over all logits at once, in value and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_s2s.components import contracts as interfaces
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.stages.losses import cross_entropy_and_hits
from parts.small_sizes import QWEN
from parts.tolerances import assert_equal_but_for_rounding

NUM_POSITIONS = 11


def test_sums_by_hand():
    loss, hits = cross_entropy_and_hits(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 1]))
    assert float(loss) == pytest.approx(0.693147 + 0.126928, abs=1e-5)
    assert float(hits) == 1.0  # the first position is a tie, which the first token wins


def gradients(llm: CausalLanguageModel, positions_at_once: int, monkeypatch) -> tuple[torch.Tensor, dict, int]:
    """The two sums, the gradients of states and head, and the largest number of logits at a time."""
    monkeypatch.setattr(interfaces, "LOGITS_AT_ONCE", positions_at_once * llm.vocabulary + 1)
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(NUM_POSITIONS, llm.width, generator=generator, requires_grad=True)
    labels = torch.randint(0, llm.vocabulary, (NUM_POSITIONS,), generator=generator)
    sizes = []
    llm.zero_grad()
    handle = llm.model.get_output_embeddings().register_forward_hook(lambda _, __, out: sizes.append(len(out)))
    sums = llm.sum_over_logits(cross_entropy_and_hits, states, labels)
    sums[0].backward()
    handle.remove()
    found = {name: p.grad.clone() for name, p in llm.named_parameters() if p.grad is not None}
    return sums.detach(), found | {"states": states.grad}, max(sizes)


@pytest.mark.parametrize("head", ["own", "tied", "frozen", "lora"])
@pytest.mark.parametrize("autocast", [False, True])
def test_chunks_equal_the_whole(tokenizer_folder, monkeypatch, head, autocast):
    torch.manual_seed(0)
    lora = {"r": 2, "target_modules": ["lm_head"], "init_lora_weights": False} if head == "lora" else None
    config = QWEN | {"tie_word_embeddings": head == "tied"}
    llm = CausalLanguageModel(config=config, tokenizer=str(tokenizer_folder), lora=lora)
    if head == "frozen":
        llm.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole, expected, largest = gradients(llm, NUM_POSITIONS, monkeypatch)
        assert largest == NUM_POSITIONS
        for size in (1, 4, 10):
            sums, found, largest = gradients(llm, size, monkeypatch)
            assert largest == size
            assert_equal_but_for_rounding(sums, whole)
            assert found.keys() == expected.keys() and len(found) == {"frozen": 1, "lora": 3}.get(head, 2)
            close = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-4, "atol": 1e-5}
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, expected[name], **close)


def test_no_labels_give_zero_and_gradients_all_the_same(tokenizer_folder):
    llm = CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder))
    states = torch.zeros(0, llm.width, requires_grad=True)
    loss, hits = llm.sum_over_logits(cross_entropy_and_hits, states, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss) == float(hits) == 0.0
    assert llm.model.get_output_embeddings().weight.grad.abs().max() == 0


def test_the_loss_is_the_mean_cross_entropy(tokenizer_folder):
    llm = CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder))
    states, labels = torch.randn(5, llm.width), torch.arange(5)
    loss, _ = llm.sum_over_logits(cross_entropy_and_hits, states, labels)
    assert_equal_but_for_rounding(loss / 5, F.cross_entropy(llm.logits(states), labels))
