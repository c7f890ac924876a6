"""Runs of two processes that are killed, stopped, or go on with another number of processes equal one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import byte_tokenizer, write_tiny_corpus
from safetensors.torch import load_file
from small_parts import SMALL_LM

from lightning_s2s.cli import main

ONE = ("--trainer.devices", "1", "--trainer.strategy", "auto", "--trainer.accumulate_grad_batches", "2")
EACH_STEP = ("--checkpoint.every_sec", "0", "--resume")


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 3 of two processes by FSDP2, with parts of every kind: frozen, recomputed, with dropout."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = write_tiny_corpus(folder / "corpus")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    settings = {
        "seed_everything": 3,
        "trainer": {
            "max_steps": 40, "accelerator": "cpu", "devices": 2, "strategy": "fsdp2", "enable_progress_bar": False,
            "enable_model_summary": False, "val_check_interval": 3, "check_val_every_n_epoch": None,
            "limit_val_batches": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "gradient_clip_val": 1.0,
        },
        "model": {
            "class_path": "EmpatheticInstructionTuning",
            "init_args": {
                "encoder": {"class_path": "mel", "init_args": {"width": 16, "num_layers": 1, "num_heads": 2}},
                "adapter": {"class_path": "conv", "init_args": {"kernel_sizes": [5], "inner_width": 8}},
                "llm": {
                    "class_path": "causal", "init_args": {"config": SMALL_LM, "tokenizer": str(folder / "tokenizer")},
                },
                "speech_decoder": {
                    "class_path": "interleaved",
                    "init_args": {"interleave": "1:2", "config": SMALL_LM, "max_units": 8, "dropout": 0.1},
                },
                "vocoder": {"class_path": "pocket", "init_args": {"encoder_width": 8, "decoder_width": 8}},
                "num_generated": 2, "warmup_steps": 1, "freeze": ["encoder.*"], "activation_checkpointing": ["llm"],
            },
        },
        "data": {"train": corpus.train, "validation": corpus.validation, "max_batch_size": 2},
    }  # fmt: skip
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def launch(configuration: Path, folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lightning_s2s.cli", "fit", "--config", str(configuration)]
    command += ["--trainer.default_root_dir", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums of more threads round in another way
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


@pytest.fixture
def start(configuration):
    """Start `fit` in processes of its own that can be killed together."""
    started: list[subprocess.Popen] = []

    def start(folder: Path, *options: str) -> subprocess.Popen:
        started.append(launch(configuration, folder, *options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()[-3000:]


def interrupt(process: subprocess.Popen, folder: Path, number: signal.Signals) -> int:
    """Send a signal to all processes of a run at a random moment after it has saved itself -> its exit status."""
    last = folder / "checkpoints" / "last.ckpt"
    before = last.lstat().st_mtime_ns if last.exists() else 0
    deadline = time.monotonic() + 60
    while not last.exists() or last.lstat().st_mtime_ns == before:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.random())
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    return process.returncode


@pytest.fixture(scope="module")
def whole(configuration) -> Path:
    """The folder of a run that nothing happened to."""
    folder = configuration.parent / "whole"
    finish(launch(configuration, folder))
    return folder


def losses(folder: Path) -> dict[int, list[float]]:
    """Step -> what was logged there; more than one value where the step was done again after a resume."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, list[float]] = {}
    for file in (folder / "logs").glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        for event in events.Scalars("train/loss") if "train/loss" in events.Tags()["scalars"] else []:
            found.setdefault(event.step, []).append(event.value)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_run(folder: Path, whole: Path) -> None:
    expected, found = losses(whole), losses(folder)
    assert sorted(expected) == list(range(40)) and all(len(values) == 1 for values in expected.values())
    assert found and all(value == expected[step][0] for step, values in found.items() for value in values)
    expected_weights, found_weights = weights(whole), weights(folder)
    assert [name for name in expected_weights if not torch.equal(expected_weights[name], found_weights[name])] == []


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_killed_at_a_random_moment(asynchronous, start, whole, tmp_path):
    options = (*EACH_STEP, "--checkpoint.asynchronous", asynchronous)
    for _ in range(2):
        assert interrupt(start(tmp_path, *options), tmp_path, signal.SIGKILL) == -signal.SIGKILL
    finish(start(tmp_path, *options))
    assert_same_run(tmp_path, whole)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("[!.]*")) == ["best.ckpt", "last.ckpt"]


def test_told_to_stop_it_saves_itself_and_loses_no_step(start, whole, tmp_path):
    process = start(tmp_path, *EACH_STEP)
    assert interrupt(process, tmp_path, signal.SIGTERM) == 128 + signal.SIGTERM
    finish(start(tmp_path, *EACH_STEP))
    assert sorted(losses(tmp_path)) == list(range(40))
    assert_same_run(tmp_path, whole)


def test_on_one_process_and_on_two_again(start, whole, tmp_path):
    assert interrupt(start(tmp_path, *EACH_STEP), tmp_path, signal.SIGKILL) == -signal.SIGKILL
    assert interrupt(start(tmp_path, *EACH_STEP, *ONE), tmp_path, signal.SIGTERM) == 128 + signal.SIGTERM
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    finish(start(tmp_path, *EACH_STEP))
    expected, found = weights(whole), weights(tmp_path)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


def test_consolidate_gives_the_model_folder(whole, tmp_path, capsys):
    assert main(["consolidate", str(whole), str(tmp_path / "last")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'last'}: model folder, from {whole}/checkpoints/last.ckpt\n"
    expected, found = weights(whole), load_file(tmp_path / "last" / "model.safetensors")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    names = ("config.json", "tokenizer.json")
    for name in names:
        assert (tmp_path / "last" / name).read_bytes() == (whole / "model" / name).read_bytes()
    assert main(["consolidate", str(whole / "checkpoints" / "best.ckpt"), str(tmp_path / "best")]) == 0
    assert main(["consolidate", str(whole), str(tmp_path / "last")]) == 1
    assert main(["consolidate", str(tmp_path), str(tmp_path / "other")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == f"error: {tmp_path / 'last'}: exists already; give a folder that is new or empty"
    assert errors[1].startswith(f"error: {tmp_path}: no checkpoint; expected the folder of a run with checkpoints/last")


def test_nothing_that_is_pickled_into_an_index_is_run(whole, tmp_path, capsys):
    import pickle

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    broken = tmp_path / "broken.ckpt"
    shutil.copytree((whole / "checkpoints" / "last.ckpt").resolve(), broken)
    (broken / ".metadata").write_bytes(pickle.dumps(Harm()))
    assert main(["consolidate", str(broken), str(tmp_path / "out")]) == 1
    assert "its index holds pickled code (posix.mkdir)" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out").exists()
