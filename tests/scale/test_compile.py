"""Compiled layers: the same loss and gradients, equal layers compiled once, and a clear word where it can't be done."""

from __future__ import annotations

import shutil

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch._dynamo.testing import CompileCounterWithBackend

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.scale.blocks import compile_blocks
from lightning_s2s.scale.parallelize import ScalingOptions, parallelize
from lightning_s2s.stages import SpeechUnderstandingPretraining
from parts.small_models import build
from parts.small_sizes import QWEN
from parts.tolerances import assert_equal_but_for_rounding

NUM_LAYERS = 10


@pytest.fixture
def compiler(monkeypatch) -> CompileCounterWithBackend:
    """torch.compile up to the captured graphs, which run as they are: C++ would take half a minute."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=counter, **options))
    return counter


def test_equal_layers_are_compiled_once_and_compute_the_same(tokenizer_folder, compiler):
    model = build(tokenizer_folder, speaks=False, num_hidden_layers=NUM_LAYERS)
    names = [name for name, _ in model.named_parameters()]
    inputs = [(torch.randn(2, length, 16), torch.tensor([[True] * length, [True] * 4 + [False] * (length - 4)]))
              for length in (5, 7, 9, 11)]  # fmt: skip

    def run() -> list[torch.Tensor]:
        found = []
        for embeds, mask in inputs:
            model.zero_grad()
            hidden = model.llm(embeds, mask)
            hidden[mask].square().sum().backward()
            found += [hidden.detach(), model.llm.model.model.layers[0].mlp.up_proj.weight.grad.clone()]
        return found

    expected = run()
    for part in model.children():
        compile_blocks(part)
    for value, wanted in zip(run(), expected, strict=True):
        assert_equal_but_for_rounding(value, wanted)
    with torch.no_grad():  # an answer, over a cache
        count = compiler.frame_count
        whole = model.llm.stream(inputs[0][0][:1], model.llm.start_stream())
        assert whole.shape == (1, 5, 16) and compiler.frame_count == count
    assert 1 <= compiler.frame_count <= 2 < NUM_LAYERS
    assert [name for name, _ in model.named_parameters()] == names


def test_a_frozen_layer_that_torch_has_a_kernel_for_is_left_alone(tokenizer_folder, compiler):
    llm = CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder))
    encoder = MelEncoder(width=16, num_layers=1, num_heads=2)
    stage = SpeechUnderstandingPretraining(
        llm, encoder, ConvAdapter(inner_width=8), freeze=["encoder.*", "llm.*"], scaling=ScalingOptions(compile=True)
    )
    parallelize(stage.model, stage.scaling, SingleDeviceStrategy("cpu"), "32-true")
    compiled = {name for name, part in stage.model.named_children() for b in part.blocks() if "forward" in b.__dict__}
    assert compiled == {"llm"}
    trained = SpeechUnderstandingPretraining(
        llm,
        MelEncoder(width=16, num_layers=1, num_heads=2),
        ConvAdapter(inner_width=8),
        freeze=["llm.*"],
        scaling=ScalingOptions(compile=True),
    )
    parallelize(trained.model, trained.scaling, SingleDeviceStrategy("cpu"), "32-true")
    assert "forward" in trained.model.encoder.blocks()[0].__dict__


def test_without_a_compiler(tokenizer_folder, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parts = MelEncoder(width=16, num_layers=1, num_heads=2), ConvAdapter(inner_width=8)
    llm = CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder))
    with pytest.raises(ValueError, match=r"scaling.compile: got true; on a CPU that needs a C\+\+ compiler"):
        SpeechUnderstandingPretraining(llm, *parts, scaling=ScalingOptions(compile=True))
