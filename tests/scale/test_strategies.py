"""What the strategies are told, without starting several processes; test_equal_losses.py starts them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, StrategyRegistry
from torch import nn

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.components.weights import save_weights, without_weights
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.scale.fsdp import fsdp_units, unsharded_class
from lightning_s2s.scale.precision import mixed_precision
from lightning_s2s.scale.sharded_checkpoint import name_parameters, next_folder, number_parameters, publish
from lightning_s2s.scale.strategies import FSDP2Strategy, is_fsdp2, wrap_blocks
from lightning_s2s.stages import EmpatheticInstructionTuning, SpeechUnderstandingPretraining
from parts.small_sizes import SMALL_LM


@pytest.fixture
def parts(tokenizer_folder) -> dict:
    return {
        "llm": CausalLanguageModel(config=SMALL_LM, tokenizer=str(tokenizer_folder)),
        "encoder": MelEncoder(width=16, num_layers=3, num_heads=2),
        "adapter": ConvAdapter(inner_width=8),
        "speech_decoder": InterleavedSpeechDecoder("2:3", SMALL_LM),
        "vocoder": PocketVocoder(encoder_width=8, decoder_width=8),
    }


def test_the_name_fsdp2_is_known_to_trainers():
    assert isinstance(StrategyRegistry.get("fsdp2"), FSDP2Strategy)
    with pytest.raises(ValueError, match="tensor_parallel_size: got 0; at least 1 is needed"):
        FSDP2Strategy(tensor_parallel_size=0)
    strategy = FSDP2Strategy(tensor_parallel_size=2)
    strategy.parallel_devices = [torch.device("cpu")] * 3
    with pytest.raises(ValueError, match="tensor_parallel_size: got 2; must divide the number of processes, 3"):
        strategy.setup_environment()


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("fsdp2", True), ("ddp", False), ("auto", False), ({"class_path": "FSDP2Strategy", "init_args": {}}, True),
        (SimpleNamespace(class_path="lightning.pytorch.strategies.FSDPStrategy"), False),
        (SimpleNamespace(class_path="lightning.pytorch.strategies.ModelParallelStrategy"), True),
    ],
)  # fmt: skip
def test_which_strategies_shard_by_fsdp2(strategy, expected):
    assert is_fsdp2(strategy) is expected


def test_what_is_gathered_and_reduced_in():
    mixed, true = mixed_precision("bf16-mixed"), mixed_precision("bf16-true")
    assert (mixed.param_dtype, mixed.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert (true.param_dtype, true.reduce_dtype) == (None, torch.float32)
    assert mixed_precision("32-true") is None


def test_units_are_layers_and_what_a_component_has_beside_them(parts):
    SpeechUnderstandingPretraining(parts["llm"], parts["encoder"], parts["adapter"], freeze=["encoder.*"])
    found = [(type(unit).__name__, reshards) for unit, reshards in fsdp_units(parts["encoder"])]
    assert found == [("TransformerEncoderLayer", True)] * 3 + [("MelEncoder", True)]  # frozen: given back at once
    found = [(type(unit).__name__, reshards) for unit, reshards in fsdp_units(parts["llm"])]
    assert found == [("Qwen3DecoderLayer", True)] * 2 + [("CausalLanguageModel", False)]
    assert [unit for unit, _ in fsdp_units(parts["adapter"])] == [parts["adapter"]]


def test_fsdp_of_the_first_version_gathers_layers(parts):
    stage = EmpatheticInstructionTuning(**parts, freeze=["encoder.*"])
    strategy = FSDPStrategy()
    stage._trainer = SimpleNamespace(strategy=strategy, precision="32-true")  # one with this strategy needs a GPU
    stage.configure_model()
    kinds = strategy.kwargs["auto_wrap_policy"]._module_classes
    assert {kind.__name__ for kind in kinds} == {"Qwen3DecoderLayer", "TransformerEncoderLayer"}
    given = FSDPStrategy(auto_wrap_policy={nn.Linear})
    wrap_blocks(given, stage.model)
    assert given.kwargs["auto_wrap_policy"]._module_classes == {nn.Linear}


def test_a_process_that_is_sent_its_weights_reads_none(parts, tokenizer_folder, tmp_path):
    save_weights(parts["encoder"], tmp_path / "encoder")
    with without_weights():
        encoder = MelEncoder(width=16, num_layers=3, num_heads=2, checkpoint=str(tmp_path / "nowhere"))
        model = SpeechToSpeechModel(
            CausalLanguageModel(config=SMALL_LM, tokenizer=str(tokenizer_folder)), encoder, ConvAdapter(inner_width=8)
        )
        stage = SpeechUnderstandingPretraining(
            model.llm, MelEncoder(width=16, num_layers=1, num_heads=2), ConvAdapter(inner_width=8), init_from="nowhere"
        )
    assert {p.device.type for module in (model, stage) for p in module.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} == {"cpu"}
    assert all(p.device.type == "cpu" for p in MelEncoder(width=16, num_layers=1, num_heads=2).parameters())


def test_a_checkpoint_of_transformers_is_built_from_its_configuration(workplace):
    whole = WhisperEncoder("openai/whisper-base")
    (workplace / "openai" / "whisper-base" / "model.safetensors").write_bytes(b"torn")
    with without_weights():
        sent = WhisperEncoder("openai/whisper-base")
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    assert {name: tensor.shape for name, tensor in sent.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in sent.parameters())


def test_optimiser_states_by_name_and_by_number():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 1)})
    groups = [{"params": [model.b.weight, model.a.weight]}, {"params": [model.a.bias, model.b.bias]}]
    optimizer = torch.optim.AdamW(groups)
    model.b(model.a(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    named = name_parameters(state, optimizer, model)
    assert [group["params"] for group in named["param_groups"]] == [["b.weight", "a.weight"], ["a.bias", "b.bias"]]
    assert named["state"]["b.weight"]["exp_avg"].shape == (1, 3)
    again = number_parameters(named)
    assert again["param_groups"] == state["param_groups"]
    assert [again["state"][number] is state["state"][number] for number in range(4)] == [True] * 4


def test_a_sharded_checkpoint_takes_the_place_of_whatever_was_there(tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_text("of a single process")
    for number in range(3):
        folder = next_folder(last)
        assert list(folder.iterdir()) == [] and last.exists()
        (folder / "number").write_text(str(number))
        publish(folder, last)
        assert (last / "number").read_text() == str(number)
        assert sorted(path.name for path in last.parent.iterdir()) == [folder.name, "last.ckpt"]
    interrupted = next_folder(last)
    (interrupted / "half").write_text("")
    assert (last / "number").read_text() == "2"
    assert list(next_folder(last).iterdir()) == []


def test_the_class_below_the_one_that_sharding_gives():
    assert unsharded_class(nn.Linear(1, 1)) is nn.Linear
    assert unsharded_class(nn.Module()) is nn.Module
