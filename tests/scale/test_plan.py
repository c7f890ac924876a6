"""`plan`: counts and bytes against hand-computed ones, and activations against what autograd keeps."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.scale.memory_plan import (
    ComponentSize,
    UnitSize,
    batch_bytes,
    block_activation_bytes,
    component_sizes,
    estimate,
    gathered_bytes,
)
from lightning_s2s.stages import SpeechUnderstandingPretraining
from parts.command_line import last_line

QWEN3 = {
    "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 160, "vocab_size": 400, "tie_word_embeddings": True,
}  # fmt: skip
BLOCK = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64 + 2 * 16
"""query and output, key and value, feed-forward, two norms, the norms of queries and keys."""
LORA = {"r": 4, "target_modules": ["q_proj"]}


def sizes(precision: str = "32-true", recomputed=(), **options) -> dict[str, ComponentSize]:
    return {part.name: part for part in component_sizes(small_stage(**options), precision, recomputed)}


def small_stage(tokenizer: str, freeze=(), lora=None):
    llm = CausalLanguageModel(config=QWEN3, tokenizer=tokenizer, lora=lora)
    encoder = MelEncoder(width=16, num_layers=1, num_heads=2)
    return SpeechUnderstandingPretraining(
        llm=llm, encoder=encoder, adapter=ConvAdapter(inner_width=8), freeze=list(freeze)
    )


def test_parameters_of_an_llm_by_hand(tokenizer_folder):
    llm = sizes(tokenizer=str(tokenizer_folder))["llm"]
    assert llm.units == (*2 * [UnitSize(BLOCK, BLOCK, True)], UnitSize(400 * 64 + 64, 25664, False))
    assert llm.weight_bytes == llm.trained_bytes == 4 * (2 * BLOCK + 25664)


def test_frozen_and_lora(tokenizer_folder):
    folder = str(tokenizer_folder)
    frozen = sizes(tokenizer=folder, freeze=["llm.*"])["llm"]
    assert (frozen.trained, frozen.trained_bytes) == (0, 0)
    assert frozen.keeps_activations  # on the way back to the adapter
    lora = sizes(tokenizer=folder, lora=LORA)["llm"]
    assert lora.trained == 2 * (4 * 64 + 64 * 4)
    assert lora.parameters == 2 * BLOCK + 25664 + 1024


def test_a_frozen_front_keeps_nothing(tokenizer_folder):
    parts = sizes(tokenizer=str(tokenizer_folder), freeze=["encoder.*"])
    assert [parts[name].keeps_activations for name in ("encoder", "adapter", "llm")] == [False, True, True]
    assert parts["encoder"].activation_bytes(100) == 0


def part(width: int, trained: bool, sharded: bool = True) -> ComponentSize:
    """1000 parameters beside two blocks of 300."""
    units = tuple(UnitSize(size, size * trained, size == 300) for size in (300, 300, 1000))
    dtype = {2: "bfloat16", 4: "float32"}[width]
    return ComponentSize(
        "llm", "LM", units, dtype, 1600 * width, 1600 * width * trained, (50, 50), 8, trained, False, sharded
    )


@pytest.mark.parametrize(
    "width, precision, strategy, gpus, expected",
    [
        (4, "32-true", "one", 1, (12800, 6400, 12800, 0)),
        (4, "32-true", "ddp", 2, (12800, 12800, 12800, 0)),
        # 4 bytes of: 1000 beside the trained blocks, and 2 frozen or trained blocks of 300; 1000 reduced.
        (4, "32-true", "fsdp2", 2, (6400, 3200, 6400, 4000 + 4000 + 4000)),
        (4, "bf16-mixed", "one", 1, (12800, 6400, 12800, 3200)),
        (4, "bf16-mixed", "fsdp2", 4, (3200, 1600, 3200, 2000 + 2000 + 4000)),
        (2, "bf16-true", "one", 1, (6400, 3200, 6400, 0)),
        (2, "bf16-true", "ddp", 8, (6400, 6400, 6400, 0)),
        (2, "bf16-true", "fsdp2", 8, (800, 400, 800, 2000 + 2000 + 4000)),
    ],
)
def test_bytes_of_a_trained_and_a_frozen_part(width, precision, strategy, gpus, expected):
    plan = estimate([part(width, True), part(width, False)], 7.0, strategy, gpus, precision)
    assert (plan.weights, plan.gradients, plan.optimiser, plan.gathered) == expected
    assert plan.total == sum(expected) + 7.0 + plan.overhead


def test_the_vocoder_stays_whole():
    plan = estimate([part(4, False, sharded=False)], 0.0, "fsdp2", 4, "32-true")
    assert (plan.weights, plan.gathered) == (6400, 0)
    assert gathered_bytes([part(4, False)], "32-true") == 4000  # a frozen part's rest is given back at once


def test_precision_of_the_weights(tokenizer_folder):
    assert sizes("bf16-true", tokenizer=str(tokenizer_folder))["llm"].weight_bytes == 2 * (2 * BLOCK + 25664)
    assert sizes("bf16-mixed", tokenizer=str(tokenizer_folder))["llm"].weight_bytes == 4 * (2 * BLOCK + 25664)


@pytest.mark.parametrize("freeze", [["encoder.*"], ["encoder.*", "llm.*"]])
def test_activations_are_what_autograd_keeps(tokenizer_folder, freeze):
    stage = small_stage(str(tokenizer_folder), freeze)
    llm = stage.model.llm
    own = {parameter.untyped_storage().data_ptr() for parameter in llm.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    stage.train()
    inputs = torch.randn(2, 64, 64, requires_grad=True)
    mask = torch.ones(2, 64, dtype=torch.bool)
    mask[1, 40:] = False
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = llm(inputs, mask)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert output.requires_grad
    estimated = {part.name: part for part in component_sizes(stage, "32-true")}["llm"].activation_bytes(128)
    assert estimated == pytest.approx(measured, rel=0.2)


def test_activations_of_a_block_by_hand():
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

    settings = {key: value for key, value in QWEN3.items() if key != "model_type"}
    block = Qwen3DecoderLayer(Qwen3Config(**settings), 0)
    # bfloat16: norms of 64; 4 x 64 of attention; norms of 64 queries and 32 keys; a feed-forward of 160.
    assert block_activation_bytes(block, 2) == 2 * 64 * (4 + 4) + 2 * 4 * 64 + 6 * 96 + 2 * 4 * 160
    block.requires_grad_(False)
    assert block_activation_bytes(block, 2) == 2 * 64 * 4 + 2 * 4 * 64 + 4 * 96 + 2 * 3 * 160


def test_recomputed_blocks_keep_their_inputs(tokenizer_folder):
    folder = str(tokenizer_folder)
    whole, recomputed = sizes(tokenizer=folder)["llm"], sizes(tokenizer=folder, recomputed=["llm"])["llm"]
    assert recomputed.activation_bytes(10) == 10 * (2 * 64 * 4 + whole.block_bytes[0])


def test_a_batch_grows_with_its_duration(tokenizer_folder):
    stage = small_stage(str(tokenizer_folder), ["encoder.*"])
    components = component_sizes(stage, "32-true")
    llm = components[2]
    # 10 tokens a second, each with logits of 400 tokens: as computed, in float32, and their gradient.
    text = 10 * sum(llm.block_bytes) + 10 * 400 * 12
    audio = stage.model.encoder.frame_rate_hz / stage.model.adapter.downsampling * sum(llm.block_bytes)
    assert batch_bytes(stage, components, 30.0, "32-true") == 30 * max(text, audio)


@pytest.mark.parametrize("codebooks", [1, 8])
def test_units_of_all_codebooks_count_once(codebooks):
    """A codec of 50 frames a second and K codebooks gives 50 K units a second, each one position of the decoder."""
    vocoder = SimpleNamespace(
        sample_rate=16_000,
        samples_per_unit=320 / codebooks,
        codebooks_per_frame=codebooks,
        unit_rate_hz=50.0 * codebooks,
    )
    llm = SimpleNamespace(vocabulary=1)
    model = SimpleNamespace(encoder=None, llm=llm, speech_decoder=object(), vocoder=vocoder, num_units=100 * codebooks)
    decoder = ComponentSize(
        "speech_decoder", "Decoder", (), "float32", 0, 0, (3_000, 5_000), 8, keeps_activations=True, recomputed=False,
        sharded=True,
    )  # fmt: skip
    # 50 K positions: 8,000 bytes of two blocks, and logits of 100 K units: in float32 (4), and 8 for the loss.
    second = 50 * codebooks * (8_000 + 100 * codebooks * (4 + 8))
    assert batch_bytes(SimpleNamespace(model=model), [decoder], 20.0, "32-true") == 20 * second


def test_the_command_prints_and_writes_a_plan(run, configuration, tmp_path):
    figures = tmp_path / "plan.json"
    status, out, _ = run("plan", "--config", configuration, "--gpus", 2, "--memory", 24, "--json", figures)
    assert status == 0
    content = json.loads(figures.read_text())
    assert [(plan["strategy"], plan["gpus"]) for plan in content["plans"]] == [("ddp", 2), ("fsdp2", 2)]
    assert "GB on each GPU, of 24:" in out and "InterleavedSpeechDecoder" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--gpus", "0"], "--gpus must be at least 1; got 0"),
        (["--memory", "-1"], "--memory must be above 0; got -1.0"),
        (["--strategy", "one", "--gpus", "2"], "--gpus: got 2"),
        (["--strategy", "zero"], "zero"),
        (["--model.lrr", "1"], "lrr"),
        (["--model.freeze", "[nothing.*]"], "freeze"),
    ],
)
def test_a_mistake_is_one_line(run, configuration, arguments, named):
    status, _, error = run("plan", "--config", configuration, *arguments)
    assert status in (1, 2)
    line = last_line(error)
    assert line.startswith("error: ") and named in line


def test_no_weights_are_read(run, configuration, tmp_path, tokenizer_folder):
    from transformers import AutoConfig

    settings = {key: value for key, value in QWEN3.items() if key != "model_type"}
    AutoConfig.for_model("qwen3", **settings, architectures=["Qwen3ForCausalLM"]).save_pretrained(tokenizer_folder)
    (tokenizer_folder / "model.safetensors").write_bytes(b"broken")
    content = yaml.safe_load(configuration.read_text())
    content["model"]["init_args"]["llm"]["init_args"] = {"checkpoint": str(tokenizer_folder)}
    content["model"]["init_args"]["init_from"] = str(tmp_path / "not_yet_trained")
    configuration.write_text(yaml.safe_dump(content))
    status, out, _ = run("plan", "--config", configuration)
    assert status == 0
    assert "CausalLanguageModel" in out
