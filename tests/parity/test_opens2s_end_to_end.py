"""Parity with the published OpenS2S system: a checkpoint folder, a question, the reply, training and export.

`golden/opens2s_end_to_end` was made by the published code. All sizes are read from it.
"""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.checkpoints.opens2s import component_args
from lightning_s2s.cli import main
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.data.audio import load_audio
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.stages import (
    EmpatheticInstructionTuning,
    SpeechGenerationPretraining,
    SpeechUnderstandingPretraining,
)
from lightning_s2s.stages.optim import OptimizerOptions
from lightning_s2s.support.reading import read_json
from parts.golden import golden_folder

FOLDER, pytestmark = golden_folder("opens2s_end_to_end", "checkpoint", "expected.json", "user.wav")
CHECKPOINT = FOLDER / "checkpoint"
CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> SpeechToSpeechModel:
    return load_model(CHECKPOINT)


@pytest.fixture(scope="module")
def question() -> torch.Tensor:
    return torch.as_tensor(load_audio("user.wav", FOLDER, 16_000))


def test_prompt(model, expected):
    tokenizer = model.llm.tokenizer
    ids = tokenizer.encode_prompt([{"role": "user", "content": [{"audio": "user.wav"}]}], spoken=True)
    assert ids == expected["prompt_ids"]
    before, after = expected["prompt"].split("<|im_audio|>")
    place = ids.index(-200)
    assert tokenizer.tokenizer.decode(ids[:place]) == before and tokenizer.tokenizer.decode(ids[place + 1 :]) == after


@torch.inference_mode()
def test_speech_features(model, question, expected):
    mel = model.encoder.log_mel(question.unsqueeze(0), torch.tensor([len(question)]))
    assert -(-len(question) // 160) == expected["n_mel_frames"] and mel.shape[-1] % 3000 == 0
    features, lengths = model.encode_audio(question.unsqueeze(0), torch.tensor([len(question)]))
    assert lengths.tolist() == [expected["n_speech_positions"]]
    golden = load_file(FOLDER / "speech_features.safetensors")["speech_features"]
    torch.testing.assert_close(features, golden, **CLOSE)


def test_respond_gives_the_published_ids(expected, tmp_path):
    out = tmp_path / "out.json"
    arguments = ["respond", str(CHECKPOINT), str(FOLDER / "user.wav"), "--greedy", "--no-audio", "--json", str(out)]
    assert main(arguments) == 0
    reply = json.loads(out.read_text(encoding="utf-8"))
    assert reply["text_ids"] == expected["text_ids"]
    assert reply["unit_ids"] == expected["unit_ids"]
    assert reply["text"] == expected["text"].strip()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def assert_same_folder(folder: Path, other: Path) -> None:
    """Every tensor and every other file, byte for byte."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    for name in sorted(names):
        if not name.endswith(".safetensors"):
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    before, after = tensors_of(folder), tensors_of(other)
    assert before.keys() == after.keys() and before
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape, name
        assert torch.equal(tensor.contiguous().view(torch.uint8), after[name].contiguous().view(torch.uint8)), name


def test_there_and_back(expected, tmp_path):
    ours, back, straight = tmp_path / "ours", tmp_path / "back", tmp_path / "straight"
    assert main(["convert", "--from", "opens2s", str(CHECKPOINT), str(ours)]) == 0
    assert json.loads((ours / "config.json").read_text())["format"] == "lightning_s2s"
    assert main(["convert", "--to", "opens2s", str(ours), str(back)]) == 0
    assert_same_folder(CHECKPOINT, back)
    assert main(["convert", "--to", "opens2s", str(CHECKPOINT), str(straight)]) == 0
    assert_same_folder(CHECKPOINT, straight)

    out = tmp_path / "out.json"
    arguments = ["respond", str(ours), str(FOLDER / "user.wav"), "--greedy", "--no-audio", "--json", str(out)]
    assert main(arguments) == 0
    reply = json.loads(out.read_text(encoding="utf-8"))
    assert (reply["text_ids"], reply["unit_ids"]) == (expected["text_ids"], expected["unit_ids"])


def write_rows(model: SpeechToSpeechModel, folder: Path) -> str:
    """Dialogues over the golden question, with units that the model knows."""
    rows = []
    for number in range(4):
        units = "".join(f"<|audio_{(5 * number + 3 * i) % model.num_units}|>" for i in range(11 + number))
        question = {"text": "", "audio": str((FOLDER / "user.wav").resolve()), "speech_units": "", "spk_emb": ""}
        reply = {"text": f"I see, {number}.", "audio": "", "speech_units": units, "spk_emb": ""}
        messages = [{"role": "user", "content": [question]}, {"role": "assistant", "content": [reply]}]
        rows.append(json.dumps({"messages": messages}) + "\n")
    path = folder / "rows.jsonl"
    path.write_text("".join(rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("stage", "options", "trained"),
    [
        (SpeechUnderstandingPretraining, {"freeze": ["encoder.*", "llm.*", "speech_decoder.*"]}, {"audio_adapter"}),
        (
            SpeechGenerationPretraining,
            {"freeze": ["encoder.*", "adapter.*", "llm.*"]},
            {"tts_lm_model", "llm2tts", "llm_ln"},
        ),
        (
            EmpatheticInstructionTuning,
            {"freeze": ["encoder.*"]},
            {"audio_adapter", "llm_model", "tts_lm_model", "llm2tts", "llm_ln"},
        ),
    ],
)
def test_three_steps_train_what_the_stage_trains_and_go_back(stage, options, trained, model, tmp_path):
    """From the published folder through a stage into a published folder again: only what is trained differs."""
    REGISTRY.load()
    registries = {registry.kind: registry for registry in REGISTRY}
    parts = {
        slot: registries[slot].get(part["class_path"])(**part["init_args"])
        for slot, part in component_args(CHECKPOINT, read_json(CHECKPOINT / "config.json")).items()
    }
    module = stage(**parts, init_from=str(CHECKPOINT), optimizer=OptimizerOptions(lr=1e-2, warmup_steps=1), **options)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in module.model.state_dict().items())
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, default_root_dir=tmp_path / "run", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, SpeechDialogueData(train=write_rows(model, tmp_path), max_batch_size=1))
    assert trainer.global_step == 3

    out = tmp_path / "out"
    assert main(["convert", "--to", "opens2s", str(tmp_path / "run"), str(out)]) == 0
    before, after = tensors_of(CHECKPOINT), tensors_of(out)
    assert before.keys() == after.keys()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == trained
    assert (out / "config.json").read_bytes() == (CHECKPOINT / "config.json").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == (CHECKPOINT / "tokenizer.json").read_bytes()
