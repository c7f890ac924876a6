"""Ctrl-C and SIGTERM at any moment: the status of the signal and one line, and handlers that are as they were."""

from __future__ import annotations

import os
import signal

import pytest

from lightning_s2s.commands.fit import StageCLI
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.scale.run_checkpoint import RunCheckpoint
from lightning_s2s.stages import EmpatheticInstructionTuning
from parts.command_line import last_line

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


@pytest.fixture
def interrupted(run, configuration, monkeypatch, tmp_path):
    """Run a command that gets signals, one after the other, at the start of a method -> status, standard error."""

    def interrupted(command, owner, method, numbers, *options):
        function = getattr(owner, method)
        left = list(numbers)

        def signalled(*args, **keywords):
            while left:
                os.kill(os.getpid(), left.pop(0))
            return function(*args, **keywords)

        handlers = [signal.getsignal(number) for number in NAMES]
        monkeypatch.setattr(owner, method, signalled)
        code, _, err = run(command, "--config", configuration, *options)
        assert [signal.getsignal(number) for number in NAMES] == handlers
        assert "Traceback" not in err and not left
        return code, err

    return interrupted


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize(
    ("owner", "method", "options"),
    [
        (StageCLI, "instantiate_classes", []),
        (SpeechDialogueData, "prepare_split", []),
        (SpeechDialogueData, "train_dataloader", []),
        (EmpatheticInstructionTuning, "configure_optimizers", []),
        (EmpatheticInstructionTuning, "validation_step", ["--trainer.num_sanity_val_steps", "1"]),
    ],
)
def test_before_the_first_batch(interrupted, owner, method, options, number, tmp_path):
    code, err = interrupted("fit", owner, method, [number], *options)
    assert code == 128 + number
    assert last_line(err) == f"error: stopped by {NAMES[number]} before the first batch; nothing was saved"
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize("method", ["validation_step", "on_validation_start"])
def test_in_a_validation_alone(interrupted, method, number):
    code, err = interrupted("validate", EmpatheticInstructionTuning, method, [number])
    assert (code, last_line(err)) == (128 + number, f"error: stopped by {NAMES[number]}")


def test_twice_in_a_batch_ends_it_at_once(interrupted, tmp_path):
    code, err = interrupted("fit", EmpatheticInstructionTuning, "training_step", [signal.SIGINT, signal.SIGINT])
    assert code == 130 and "stopping after this batch (a second signal stops at once)" in err
    assert last_line(err) == "error: stopped by Ctrl-C at once; --resume continues from the last saved checkpoint"
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_after_the_last_batch_the_state_is_saved(interrupted, run, configuration, tmp_path):
    code, err = interrupted("fit", EmpatheticInstructionTuning, "on_fit_end", [signal.SIGTERM])
    assert code == 143 and last_line(err) == (
        "error: stopped by SIGTERM before the model was written; the training is saved, --resume writes the model"
    )
    folder = tmp_path / "run"
    assert (folder / "checkpoints" / "last.ckpt").is_file() and not (folder / "model").exists()
    assert run("fit", "--config", configuration, "--resume")[0] == 0
    assert (folder / "model" / "model.safetensors").is_file()


def test_within_the_training_after_the_batch(interrupted, tmp_path):
    code, err = interrupted("fit", RunCheckpoint, "on_train_batch_end", [signal.SIGTERM])
    assert code == 143 and "error" not in err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
