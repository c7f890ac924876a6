"""Which of an LLM's layers are cut along which side, and what can't be; on two processes: test_equal_losses.py."""

from __future__ import annotations

import pytest
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.scale.tensor_parallel import styles
from parts.small_sizes import SMALL_LM


@pytest.fixture
def make_llm(tokenizer_folder):
    return lambda **changes: CausalLanguageModel(config=SMALL_LM | changes, tokenizer=str(tokenizer_folder))


def test_projections_are_cut_as_the_model_says(make_llm):
    found = styles(make_llm(), 2)
    kinds = {inner: type(style) for (pattern, inner), style in found.items() if pattern == "layers.*"}
    assert len(kinds) == len(found) == 9
    assert kinds["self_attn.q_proj"] is kinds["mlp.up_proj"] is ColwiseParallel
    assert kinds["self_attn.o_proj"] is kinds["mlp.down_proj"] is RowwiseParallel
    assert kinds["self_attn.k_norm"] is SequenceParallel


@pytest.mark.parametrize(
    ("changes", "size", "expected"),
    [
        ({}, 4, "tensor_parallel_size: got 4; must divide the LLM's num_attention_heads, 2"),
        ({"intermediate_size": 49}, 2, "tensor_parallel_size: got 2; must divide the LLM's intermediate_size, 49"),
        ({"model_type": "gpt2"}, 2, "tensor_parallel_size: GPT2LMHeadModel has no tensor-parallel plan"),
        ({"model_type": "olmo2"}, 2, "'colwise_gather_output', which is unknown"),
    ],
)
def test_what_can_not_be_cut(changes, size, expected, make_llm):
    with pytest.raises(ValueError, match=r"^tensor_parallel_size: ") as error:
        styles(make_llm(**changes), size)
    assert expected in str(error.value)
