"""Runs of two processes that are killed, stopped, or go on with another number of processes equal one that was not."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightning_s2s.cli import main
from parts.byte_tokenizer import byte_tokenizer
from parts.pickled_code import PickledCode
from parts.small_sizes import SMALL_LM
from parts.stage_settings import hearing_parts, speaking_parts
from parts.tiny_corpus import write_tiny_corpus

pytestmark = pytest.mark.slow  # the first run alone takes longer than the tests of most other files

STRATEGIES = {
    "one": ("--trainer.devices", "1", "--trainer.strategy", "auto", "--trainer.accumulate_grad_batches", "2"),
    "ddp": ("--trainer.strategy", "ddp"),
    "fsdp2": (),
}
EACH_STEP = ("--checkpoint.every_sec", "0", "--resume")
STEPS = 12
FAR_TOO_LONG_SEC = 1800
"""Nothing is waited for by the clock; this ends a test that hangs."""


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 3 of two processes by FSDP2, with parts of every kind: frozen, recomputed, with dropout."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = write_tiny_corpus(folder / "corpus")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    settings = {
        "seed_everything": 3,
        "trainer": {
            "max_steps": STEPS, "accelerator": "cpu", "devices": 2, "strategy": "fsdp2", "enable_progress_bar": False,
            "enable_model_summary": False, "val_check_interval": 3, "check_val_every_n_epoch": None,
            "limit_val_batches": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "gradient_clip_val": 1.0,
        },
        "model": {
            "class_path": "EmpatheticInstructionTuning",
            "init_args": {
                **hearing_parts(SMALL_LM, folder / "tokenizer"), **speaking_parts(SMALL_LM, dropout=0.1),
                "num_generated": 2, "freeze": ["encoder.*"],
                "optimizer": {"warmup_steps": 1}, "scaling": {"activation_checkpointing": ["llm"]},
            },
        },
        "data": {"train": corpus.train, "validation": corpus.validation, "max_batch_size": 2},
    }  # fmt: skip
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


class Signal(NamedTuple):
    """Sent to all processes of a run at a moment of one of them, see `parts/signalled_fit.py`."""

    moment: int
    number: signal.Signals = signal.SIGKILL
    rank: int = 0


NONE = Signal(0)


def launch(configuration: Path, folder: Path, *options: str, at: Signal = NONE) -> subprocess.Popen:
    command = [sys.executable, "-m", "parts.signalled_fit", str(at.rank), str(at.moment), at.number.name]
    command += ["fit", "--config", str(configuration), "--trainer.default_root_dir", str(folder), *options]
    moments = folder.with_name(f"{folder.name}.moments")
    moments.mkdir(parents=True, exist_ok=True)
    # Sums of more threads round in another way.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LIGHTNING_S2S_TEST_MOMENTS": str(moments)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope="module")
def start(configuration):
    """Start `fit` in processes of its own, and see it end -> its exit status, and what it said."""
    started: list[subprocess.Popen] = []

    def start(folder: Path, *options: str, at: Signal = NONE) -> tuple[int, str]:
        process = launch(configuration, folder, *options, at=at)
        started.append(process)
        _, err = process.communicate(timeout=FAR_TOO_LONG_SEC)
        return process.returncode, err.decode()

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def finish(start):
    """Run `fit` to its end."""

    def finish(folder: Path, *options: str) -> Path:
        status, err = start(folder, *options)
        assert status == 0, err[-3000:]
        return folder

    return finish


@pytest.fixture(scope="module")
def undisturbed(configuration, finish):
    """For a name of `STRATEGIES`: the folder of a run that nothing happened to, and the moments of each process."""
    runs: dict[str, tuple[Path, list[int]]] = {}

    def undisturbed(strategy: str) -> tuple[Path, list[int]]:
        if strategy not in runs:
            folder = finish(configuration.parent / strategy, *EACH_STEP, *STRATEGIES[strategy])
            counted = sorted(folder.with_name(f"{strategy}.moments").iterdir())
            runs[strategy] = folder, [int(path.read_text()) for path in counted]
        return runs[strategy]

    return undisturbed


@pytest.fixture(scope="module")
def whole(undisturbed) -> Path:
    """The folder of a run of two processes by FSDP2 that nothing happened to."""
    return undisturbed("fsdp2")[0]


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
    assert sorted(expected) == list(range(STEPS)) and all(len(values) == 1 for values in expected.values())
    assert found and all(value == expected[step][0] for step, values in found.items() for value in values)
    expected_weights, found_weights = weights(whole), weights(folder)
    assert [name for name in expected_weights if not torch.equal(expected_weights[name], found_weights[name])] == []


def kill_and_resume(strategy, asynchronous, kills, start, finish, undisturbed, folder) -> None:
    """Kill a run so often, one time after the other, at moments anywhere in it; then see that it was the same run."""
    whole, moments = undisturbed(strategy)
    options = (*EACH_STEP, *STRATEGIES[strategy], "--checkpoint.asynchronous", asynchronous)
    draw = random.Random(f"{strategy} {asynchronous} {kills}")
    for _ in range(kills):
        # So that it does not come to its end before; what a kill takes back is a step at most.
        rank = draw.randrange(len(moments))
        at = Signal(draw.randint(1, moments[rank] // (kills + 2)), rank=rank)
        status, err = start(folder, *options, at=at)
        assert status == -signal.SIGKILL, f"{at}: {err[-3000:]}"
    finish(folder, *options)
    assert_same_run(folder, whole)
    left = sorted(path.name for path in (folder / "checkpoints").iterdir() if not path.is_dir() or path.is_symlink())
    assert left == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_killed_at_a_random_moment(asynchronous, start, finish, undisturbed, tmp_path):
    kill_and_resume("fsdp2", asynchronous, 1, start, finish, undisturbed, tmp_path / "run")


@pytest.mark.parametrize("asynchronous", ["false", "true"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_at_five_random_moments(strategy, asynchronous, start, finish, undisturbed, tmp_path):
    kill_and_resume(strategy, asynchronous, 5, start, finish, undisturbed, tmp_path / "run")


def test_told_to_stop_it_saves_itself_and_loses_no_step(start, finish, undisturbed, tmp_path):
    whole, moments = undisturbed("fsdp2")
    status, err = start(tmp_path / "run", *EACH_STEP, at=Signal(moments[0] // 2, signal.SIGTERM))
    assert status == 128 + signal.SIGTERM, err[-3000:]
    assert "stopping after this batch" in err
    finish(tmp_path / "run", *EACH_STEP)
    assert sorted(losses(tmp_path / "run")) == list(range(STEPS))
    assert_same_run(tmp_path / "run", whole)


def test_on_one_process_and_on_two_again(start, finish, undisturbed, tmp_path):
    (whole, moments), folder = undisturbed("fsdp2"), tmp_path / "run"
    assert start(folder, *EACH_STEP, at=Signal(moments[0] // 3))[0] == -signal.SIGKILL
    status, err = start(folder, *EACH_STEP, *STRATEGIES["one"], at=Signal(moments[0] // 4, signal.SIGTERM))
    assert status == 128 + signal.SIGTERM, err[-3000:]
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    finish(folder, *EACH_STEP)
    expected, found = weights(whole), weights(folder)
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

    broken = tmp_path / "broken.ckpt"
    shutil.copytree((whole / "checkpoints" / "last.ckpt").resolve(), broken)
    (broken / ".metadata").write_bytes(pickle.dumps(PickledCode(tmp_path / "harm")))
    assert main(["consolidate", str(broken), str(tmp_path / "out")]) == 1
    assert f"{broken}: holds pickled code (posix.mkdir), none of which was run" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_full_disk_is_told_and_the_good_checkpoint_stays(asynchronous, start, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    last = folder / "checkpoints" / "last.ckpt"
    before = {path.name: path.read_bytes() for path in last.iterdir()}
    options = (*EACH_STEP, "--trainer.max_steps", str(STEPS + 3), "--trainer.val_check_interval", "1000")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, before.values())) // 2, limits[1]))  # children inherit it
    try:
        status, err = start(folder, *options, "--checkpoint.asynchronous", asynchronous)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        status == 1 and f"error: {last}: no space left: file too large" in err.splitlines() and "Traceback" not in err
    )
    assert {path.name: path.read_bytes() for path in last.iterdir()} == before
    assert sorted(path.name for path in last.parent.iterdir()) == sorted(
        ["best.ckpt", "last.ckpt", *hidden(last.parent)]
    )
    assert len(hidden(last.parent)) == 2


def hidden(folder: Path) -> list[str]:
    """What the links in there mean."""
    return [path.readlink().name for path in folder.iterdir() if path.is_symlink()]
