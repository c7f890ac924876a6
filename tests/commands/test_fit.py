"""`fit`: what it refuses, and runs that are stopped and resumed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import lightning.pytorch  # noqa: F401 (its log handler keeps the stream that it finds at import: not one of a test's)
import pytest
import torch
import yaml

from parts.command_line import last_line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.encoder", "whispr"], "model.encoder: unknown encoder 'whispr'; did you mean whisper? known: mel,"),
        (
            ["--model.encoder", "whisper", "--model.encoder.chekpoint", "x"],
            "model.encoder: unknown option of whisper 'chekpoint'; did you mean checkpoint? known: checkpoint,",
        ),
        (["--model.vocoder", "nothing"], "model.vocoder: unknown vocoder 'nothing'; known: "),
        (
            ["--model.lr", "1"],
            "model: unknown option of EmpatheticInstructionTuning 'lr'; did you mean optimizer.lr? known: ",
        ),
        (
            ["--model.optimizer.warm_steps", "1"],
            "model: unknown option of EmpatheticInstructionTuning 'optimizer.warm_steps'; did you mean "
            "optimizer.warmup_steps? known: ",
        ),
        (
            ["--model.freezee", "1"],
            "model: unknown option of EmpatheticInstructionTuning 'freezee'; did you mean freeze? known: ",
        ),
        (
            ["--model", "EmpathicTuning"],
            "model: unknown stage 'EmpathicTuning'; did you mean EmpatheticInstructionTuning? known: ",
        ),
        (["--trainer.callbacks", "StreamLatency"], "trainer.callbacks: unknown callback 'StreamLatency'; did you"),
        (["--data.nun_workers", "1"], "unknown option '--data.nun_workers'; did you mean --data.num_workers?"),
        (["--trainer.max_steps", "many"], "trainer.max_steps: got 'many'; allowed: int"),
        (["--config", "missing.yaml"], "--config missing.yaml: no such file"),
        (["--resume", "--ckpt_path", "x.ckpt"], "--resume and --ckpt_path exclude each other: give one"),
    ],
)
def test_mistakes_before_a_run_are_one_line_with_status_2(run, configuration, arguments, expected):
    code, _, err = run("fit", "--config", configuration, *arguments)
    assert code == 2
    assert last_line(err).startswith(f"error: {expected}")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"trainer": {"max_step": 1}}, "unknown option 'trainer.max_step'; did you mean trainer.max_steps?"),
        ({"trainr": {"max_steps": 1}}, "unknown option 'trainr.max_steps'; did you mean trainer.max_steps?"),
        (
            {"model": {"class_path": "EmpatheticInstructionTuning", "init_args": {"encodr": "mel"}}},
            "model: unknown option of EmpatheticInstructionTuning 'encodr'; did you mean encoder? known: ",
        ),
        (
            {"model": {"class_path": "EmpatheticInstructionTuning", "init_args": {"encoder": {"class_path": "mell"}}}},
            "model.encoder: unknown encoder 'mell'; did you mean mel? known: ",
        ),
    ],
)
def test_mistakes_in_a_second_yaml(run, configuration, tmp_path, content, expected):
    second = tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump(content))
    code, _, err = run("fit", "--config", configuration, "--config", second)
    assert (code, err[:7]) == (2, "error: ")
    assert err.removeprefix("error: ").startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.freeze", "[nothing.*]"], "freeze: the pattern 'nothing.*' matches no parameter"),
        (["--model.init_from", "/no/such/run"], "/no/such/run"),
        (["--data.train", "missing.jsonl"], "missing.jsonl"),
        (["--model.llm.tokenizer", "/no/such/tokenizer"], "/no/such/tokenizer"),
    ],
)
def test_mistakes_that_a_run_finds_are_one_line_with_status_1(run, configuration, arguments, expected):
    code, _, err = run("fit", "--config", configuration, *arguments)
    assert code == 1
    assert last_line(err).startswith("error: ")
    assert expected in last_line(err)
    assert "Traceback" not in err


def test_configs_overrides_and_interpolation_give_one_configuration(run, configuration, tmp_path):
    second = tmp_path / "second.yaml"
    second.write_text("model: {init_args: {optimizer: {warmup_steps: '${trainer.max_steps}'}}}\n")
    code, out, err = run(
        "fit", "--config", configuration, "--config", second, "--trainer.max_steps", "7",
        "--model.encoder", "whisper", "--model.encoder.checkpoint", "some/folder", "--print_config",
    )  # fmt: skip
    assert (code, err) == (0, "")
    settings = yaml.safe_load(out)
    model = settings["model"]["init_args"]
    assert settings["model"]["class_path"].endswith("EmpatheticInstructionTuning")
    assert model["encoder"]["class_path"] == "lightning_s2s.components.encoders.whisper.whisper"
    assert model["encoder"]["init_args"]["checkpoint"] == "some/folder"
    assert "width" not in model["encoder"]["init_args"]
    assert model["optimizer"]["warmup_steps"] == 7
    assert settings["seed_everything"] == 1


def test_null_stays_null_however_deeply_an_option_is_nested(run, configuration):
    code, out, err = run(
        "fit", "--config", configuration, "--model.optimizer.lr_scale", "{llm.*: 0.5}", "--model.optimizer.lr_scale",
        "null", "--model.scaling.encoder_cache", "x", "--model.scaling.encoder_cache", "null",
        "--model.encoder.checkpoint", "some/folder", "--model.encoder.checkpoint=null",
        "--model.llm.lora", "{r: 4, target_modules: null}", "--print_config",
    )  # fmt: skip
    assert (code, err) == (0, "")
    model = yaml.safe_load(out)["model"]["init_args"]
    assert model["optimizer"]["lr_scale"] is model["scaling"]["encoder_cache"] is None
    assert model["encoder"]["init_args"]["checkpoint"] is None
    assert model["llm"]["init_args"]["lora"] == {"r": 4, "target_modules": None}


def test_a_printed_configuration_can_be_given_back(run, configuration, tmp_path):
    printed = run("fit", "--config", configuration, "--print_config")[1]
    (tmp_path / "printed.yaml").write_text(printed)
    assert run("fit", "--config", tmp_path / "printed.yaml", "--print_config") == (0, printed, "")


def test_help_of_a_component(run):
    code, out, _ = run("fit", "--model.encoder.help", "whisper")
    assert code == 0
    assert "--encoder.checkpoint CHECKPOINT" in out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(run, configuration, tmp_path, monkeypatch):
    from lightning_s2s.scale.run_checkpoint import RunCheckpoint

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("fit", "--config", configuration, "--trainer.default_root_dir", whole)[0] == 0
    assert (whole / "logs" / "config.yaml").is_file()

    once = RunCheckpoint.on_train_batch_end

    def press_ctrl_c(self, trainer, *rest):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        once(self, trainer, *rest)

    monkeypatch.setattr(RunCheckpoint, "on_train_batch_end", press_ctrl_c)
    code, _, err = run("fit", "--config", configuration, "--trainer.default_root_dir", parts, "--resume")
    monkeypatch.undo()
    assert code == 130
    assert "stopping after this batch" in err
    assert not (parts / "model").exists()
    assert torch.load(parts / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    assert run("fit", "--config", configuration, "--trainer.default_root_dir", parts, "--resume")[0] == 0
    expected, found = weights(whole), weights(parts)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert sorted(path.name for path in (parts / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
