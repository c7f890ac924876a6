"""The encoders and adapters in a whole model: built by name, trained by a stage, frozen in part, from a folder."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.components.contracts import Adapter, AudioEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.stages import SpeechUnderstandingPretraining
from lightning_s2s.stages.optim import OptimizerOptions
from lightning_s2s.streaming.session import respond
from parts.fitting import fit
from parts.small_sizes import QWEN, SSL_ENCODERS
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding

needs_s3prl = pytest.mark.skipif(importlib.util.find_spec("s3prl") is None, reason="needs the extra ssl")
ADAPTERS = {
    "linear": {"downsampling": 4, "hidden_width": 8, "layer_norm": True},
    "qformer": {"window_sec": 0.2, "num_queries": 2, "width": 8, "num_heads": 2},
}  # fmt: skip
SSL = {"checkpoint": None, "layers": "weighted"}
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM of transformers


def instantiate(base: type, name: str, init_args: dict):
    """What a YAML or the command line makes of a name and its arguments."""
    REGISTRY.load()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=base)
    return parser.instantiate(parser.parse_object({"part": {"class_path": name, "init_args": init_args}})).part


@pytest.mark.parametrize(
    ("encoder", "init_args", "adapter", "frozen"),
    [
        ("ssl", SSL | {"config": SSL_ENCODERS["hubert"]}, "linear", "encoder.encoder.feature_extractor.*"),
        ("ssl", SSL | {"config": SSL_ENCODERS["wavlm"]}, "qformer", "encoder.encoder.encoder.layers.0.*"),
        ("ssl", SSL | {"config": SSL_ENCODERS["wav2vec2-bert"]}, "linear", "encoder.*"),
        pytest.param("s3prl", {"upstream": "fbank"}, "qformer", "adapter.queries", marks=needs_s3prl),
    ],
)
def test_a_stage_trains_it_and_its_folder_answers(
    encoder, init_args, adapter, frozen, tokenizer_folder, tiny_corpus, tmp_path
):
    torch.manual_seed(0)
    stage = SpeechUnderstandingPretraining(
        CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder)),
        instantiate(AudioEncoder, encoder, init_args),
        instantiate(Adapter, adapter, ADAPTERS[adapter]),
        freeze=["llm.*", frozen],
        optimizer=OptimizerOptions(lr=1e-2, warmup_steps=1),
    )
    before = fit(stage, tiny_corpus, tmp_path)
    changed = {name for name, tensor in stage.model.state_dict().items() if not torch.equal(before[name], tensor)}
    asked = {name for name, parameter in stage.model.named_parameters() if parameter.requires_grad}
    assert changed == asked and not any(name.startswith("llm.") for name in changed)

    written = load_model(tmp_path / "model")
    replies = [respond(model, sweep(0.6), 16_000, max_text_tokens=5).text_ids for model in (stage.model, written)]
    assert replies[0] and replies[0] == replies[1]
    embeds = [model.eval().encode_audio(torch.from_numpy(sweep(0.6))[None], torch.tensor([9600]))[0].detach()
              for model in (stage.model, written)]  # fmt: skip
    assert_equal_but_for_rounding(*embeds)


def test_options_on_a_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoder", type=AudioEncoder)
    arguments = ["--encoder", "ssl", "--encoder.layers", "weighted", "--encoder.checkpoint", "null"]
    config = parser.parse_args([*arguments, "--encoder.normalize", "false"])
    assert config.encoder.init_args.layers == "weighted" and config.encoder.init_args.normalize is False
    assert parser.parse_args(["--encoder", "ssl", "--encoder.layers", "9"]).encoder.init_args.layers == 9
