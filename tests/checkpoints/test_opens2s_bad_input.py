"""Published OpenS2S folders that are refused: one line names file and tensor or key, and nothing is left behind."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_s2s.checkpoints.init_from import load_handoff
from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.checkpoints.opens2s import component_args
from lightning_s2s.cli import main
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.support.reading import read_json
from parts.json_files import change
from parts.opens2s_folder import INDEX, change_tensors, divide, without
from parts.pickled_code import PickledCode


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"llm_model.lm_head.weight": PickledCode(folder.parent / "was_run")}, folder / "pytorch_model.bin")


def pickled_as_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(PickledCode(folder.parent / "was_run")))


def lost_shard(folder: Path) -> None:
    divide(folder, 2)
    (folder / "model-00002-of-00002.safetensors").unlink()


def torn_shard(folder: Path) -> None:
    divide(folder, 2)
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def shard_without_its_tensor(folder: Path) -> None:
    divide(folder, 2)
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    save_file({name: tensor.clone() for name, tensor in tensors.items() if "audio_adapter.fc1" not in name}, path)


def index_elsewhere(folder: Path) -> None:
    divide(folder, 2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["llm2tts.weight"] = "../other/model.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def wrong_shape(tensors):
    tensors["llm2tts.weight"] = torch.zeros(40, 7)


def integers(tensors):
    tensors["llm_ln.bias"] = torch.zeros(40, dtype=torch.int64)


BAD = {
    "pickled weights": (pickled_weights, r"neither model\.safetensors nor .*pytorch_model\.bin\) are not read"),
    "pickle in disguise": (pickled_as_safetensors, r"model\.safetensors: not a readable safetensors file"),
    "lost shard": (lost_shard, r"model-00002-of-00002\.safetensors: no such file; .*index\.json places \w+"),
    "torn shard": (torn_shard, r"model-00002-of-00002\.safetensors: not a readable safetensors file"),
    "lost tensor": (shard_without_its_tensor, r"model-00001.*: tensor audio_adapter\.fc1\.weight, which .* is missing"),
    "index elsewhere": (index_elsewhere, r"weight_map places llm2tts\.weight in '\.\./other/"),
    "no weight_map": (lambda f: (f / INDEX).write_text("{}"), "index.json: key 'weight_map' must map"),
    "wrong shape": (
        lambda f: change_tensors(f, wrong_shape), r"model\.safetensors: llm2tts\.weight has shape \(40, 7\), .* needs"
    ),
    "missing tensor": (
        lambda f: change_tensors(f, without("llm_ln.bias")), r"missing \['llm_ln\.bias'\], unexpected none"
    ),
    "unexpected tensor": (
        lambda f: change_tensors(f, lambda t: t.update({"tts_lm_model.extra": torch.zeros(1)})),
        r"model\.safetensors: does not fit OpenS2S: missing none, unexpected \['tts_lm_model\.extra'\]",
    ),
    "dtype": (lambda f: change_tensors(f, integers), r"model\.safetensors: .*llm_norm\.bias has dtype torch\.int64"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not valid JSON"),
    "audio type": (
        lambda f: change(f / "config.json", audio_encoder_config__model_type="wavlm"),
        r"config\.json: audio_encoder_config\.model_type is 'wavlm'; known: qwen2_audio, qwen2_audio_encoder, whisper",
    ),
    "llm type": (
        lambda f: change(f / "config.json", llm_config__model_type="qwen99"),
        r"config\.json: llm_config\.model_type is 'qwen99', no causal LM",
    ),
    "tts type": (
        lambda f: change(f / "config.json", tts_lm_config__model_type="t5"),
        r"config\.json: tts_lm_config\.model_type is 't5', no causal LM",
    ),
    "no mapping": (lambda f: change(f / "config.json", llm_config=3), "key 'llm_config' must hold a mapping; got 3"),
    "kernels": (lambda f: change(f / "config.json", conv_kernel_sizes="5;5"), "conv_kernel_sizes must be numbers"),
    "N:M": (lambda f: change(f / "config.json", interleave_strategy="four"), "interleave 'four': expected 'N:M'"),
    "lora": (lambda f: change(f / "config.json", lora_config={"peft_type": "IA3"}), "lora_config must be null or hold"),
    "no unit tokenizer": (lambda f: shutil.rmtree(f / "tts"), r"tts.*: no such"),
    "units not in a row": (
        lambda f: (f / "tts" / "tokenizer.json").write_text(
            (f / "tts" / "tokenizer.json").read_text().replace("<|audio_7|>", "<|audio_700|>")
        ),
        r"tts: the tokenizer must have <\|audio_7\|> at id 9",
    ),
    "small vocabulary": (
        lambda f: change(f / "config.json", tts_lm_config__vocab_size=60), r"vocab_size is 60, but the tokenizer in"
    ),
    "generation": (
        lambda f: change(f / "generation_config.json", temperature="hot"), r"generation_config\.json: temperature must"
    ),
    "ends": (
        lambda f: change(f / "generation_config.json", eos_token_id="stop"), r"generation_config\.json: eos_token_id"
    ),
    "features": (
        lambda f: change(f / "audio" / "preprocessor_config.json", feature_size=80),
        r"preprocessor_config\.json: feature_size must be 128 for this model; got 80",
    ),
    "no features": (lambda f: shutil.rmtree(f / "audio"), r"preprocessor_config\.json: no such file"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("*token*")], r"published: neither a folder nor a hub id"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_broken_published_folder(case, published, tmp_path, capsys):
    damage, message = BAD[case]
    damage(published)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(published)
    assert "\n" not in str(caught.value)
    assert main(["convert", "--from", "opens2s", str(published), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"published"}


def test_neither_of_ours_nor_published(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert main(["convert", "--from", "opens2s", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no published OpenS2S folder; expected the keys audio_encoder_config" in capsys.readouterr().err
    with pytest.raises(ValueError, match="this is no model of Lightning S2S .nor of OpenS2S"):
        load_model(tmp_path)


def test_a_handoff_from_a_broken_folder_loads_nothing(published):
    REGISTRY.load()
    registries = {registry.kind: registry for registry in REGISTRY}
    args = component_args(published, read_json(published / "config.json"))
    parts = {slot: registries[slot].get(part["class_path"])(**part["init_args"]) for slot, part in args.items()}
    model = SpeechToSpeechModel(**parts)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change_tensors(published, wrong_shape)  # of the last part
    with pytest.raises(ValueError, match=r"speech_decoder: llm_projection\.weight has shape \(40, 7\)"):
        load_handoff(model, published)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "--from and --to: got neither; give one of them"),
        (["--to", "other", "a", "b"], "to: got 'other'; allowed: 'opens2s'"),
        (["--to", "opens2s", "--lora", "drop", "a", "b"], "lora: got 'drop'; allowed: 'merge', 'keep'"),
        (["--from", "opens2s", "--to", "opens2s", "a", "b"], "--from and --to: got both; give one of them"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, capsys):
    code = main(["convert", *arguments])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert message in error or "unknown" in error
