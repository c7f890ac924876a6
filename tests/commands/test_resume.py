"""Going on from a checkpoint: what is refused, what is told, and that one run at a time owns a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_s2s.cli import main
from lightning_s2s.scale.resume import changes, check_resume
from lightning_s2s.support.locks import holding
from parts.byte_tokenizer import byte_tokenizer
from parts.command_line import last_line
from parts.pickled_code import PickledCode
from parts.small_sizes import TINY_LM
from parts.stage_settings import hearing_parts
from parts.tiny_corpus import write_tiny_corpus


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with `stage.yaml`, of a stage 1 that takes a second, and `run`, where it has done its two steps."""
    folder = tmp_path_factory.mktemp("resume")
    corpus = write_tiny_corpus(folder / "corpus")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    settings = {
        "trainer": {
            "max_steps": 2, "default_root_dir": str(folder / "run"), "accelerator": "cpu", "devices": 1,
            "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 1,
            "num_sanity_val_steps": 0, "log_every_n_steps": 1,
        },
        "model": {
            "class_path": "SpeechUnderstandingPretraining",
            "init_args": {
                **hearing_parts(TINY_LM, folder / "tokenizer"),
                "freeze": ["llm.*"], "num_generated": 0,
                "optimizer": {"warmup_steps": 1, "lr_scale": {"encoder.*": 0.5}},
            },
        },
        "data": {"train": corpus.train, "validation": corpus.validation, "max_batch_size": 3},
    }  # fmt: skip
    (folder / "stage.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["fit", "--config", str(folder / "stage.yaml"), "--trainer.val_check_interval", "2"]) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of its run that may be changed."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def fit(run, finished, folder):
    """Run `fit`, or another command, on that copy -> (exit status, standard output and error)."""

    def fit(*options: object, command: str = "fit") -> tuple[int, str]:
        given = ("--config", finished / "stage.yaml", "--trainer.default_root_dir", folder, *options)
        code, out, err = run(command, *given)
        assert "Traceback" not in err
        return code, out + err

    return fit


@pytest.fixture
def told(caplog) -> Any:
    """What a run told in lines of its log."""
    caplog.set_level("INFO")
    return lambda: [record.getMessage() for record in caplog.records]


# --- broken files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("empty", "is empty; expected a .ckpt file or folder that `lightning-s2s fit` wrote"),
        ("cut", "is cut off after"), ("random", "is no checkpoint"), ("folder", "is a folder without a checkpoint"),
        ("lost link", "is a link to nowhere, which is missing"), ("code", "holds pickled code (posix.mkdir)"),
        ("other keys", "holds only weights, as best.ckpt does"), ("no place", "not a readable checkpoint ("),
        ("mutated optimiser", "does not fit this run ("), ("mutated seed", "does not fit this run ("),
        ("mutated options", "not a readable checkpoint ("),
    ],
)  # fmt: skip
def test_a_broken_last_ckpt_is_one_line(fit, folder, kind, expected, tmp_path):
    last = folder / "checkpoints" / "last.ckpt"
    whole = torch.load(last, weights_only=True)
    if kind in ("folder", "lost link"):
        last.unlink()
        last.mkdir() if kind == "folder" else last.symlink_to("nowhere")
    elif kind in ("empty", "cut", "random"):
        size = last.stat().st_size
        last.write_bytes({"empty": b"", "cut": last.read_bytes()[: size // 2], "random": os.urandom(size)}[kind])
    elif kind == "code":
        torch.save({**whole, "note": PickledCode(tmp_path / "harm")}, last)
    elif kind == "other keys":
        torch.save({"weights": whole["state_dict"]}, last)
    elif kind == "no place":
        torch.save({**whole, "loops": {"fit_loop": 3}}, last)
    elif kind == "mutated optimiser":
        torch.save({**whole, "optimizer_states": [{"state": 7}]}, last)
    else:
        state = whole["callbacks"]["RunCheckpoint"]
        if kind == "mutated seed":
            state["seed"] = "many"
        else:
            state["options"]["data"]["train"] = [3]
        torch.save(whole, last)
    code, output = fit("--resume")
    assert code == 1 and not (tmp_path / "harm").exists()
    assert last_line(output).startswith(f"error: {last}: {expected}")


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model", "is a folder without a checkpoint in it; expected a .ckpt file or folder that"),
        ("model/config.json", "is no checkpoint"), ("q.wav", "is no checkpoint"), ("nothing.ckpt", "no such file"),
        ("stage2.ckpt", "is of the stage EmpatheticInstructionTuning; the configuration's model is Speech"),
    ],
)  # fmt: skip
def test_a_ckpt_path_that_is_none_of_this_stage(fit, folder, finished, command, name, expected):
    if name == "q.wav":
        shutil.copy(next((finished / "corpus").glob("*.wav")), folder / name)
    elif name == "stage2.ckpt":
        content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        content["callbacks"]["RunCheckpoint"]["options"]["model"]["class_path"] = "x.EmpatheticInstructionTuning"
        torch.save(content, folder / name)
    code, output = fit("--ckpt_path", folder / name, command=command)
    assert code == 1 and last_line(output).startswith(f"error: {folder / name}: {expected}")


def test_best_ckpt_is_no_state_of_a_run_and_can_be_validated(fit, folder):
    best = folder / "checkpoints" / "best.ckpt"
    code, output = fit("--ckpt_path", best)
    assert code == 1
    assert last_line(output).startswith(f"error: {best}: holds only weights, as best.ckpt does, not the state of a run")
    assert fit("--ckpt_path", best, command="validate")[0] == 0
    code, output = fit("--ckpt_path", best, "--model.encoder.width", "32", command="validate")
    assert (code, last_line(output)) == (
        1, f"error: {best}: model.encoder.width: was 16, is now 32; give the components that it was trained with",
    )  # fmt: skip


def test_checkpoints_are_never_unpickled_whatever_is_asked_for(fit):
    code, output = fit("--resume", "--weights_only", "false")
    assert (code, last_line(output)) == (
        2, "error: --weights_only false: checkpoints are never unpickled; leave it out",
    )  # fmt: skip


# --- changed options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data.max_batch_size", "2"], "data.max_batch_size: was 3, is now 2;"),
        (["--model.freeze", "[encoder.*]"], "model.freeze: was [llm.*], is now [encoder.*];"),
        (["--model.llm.lora", "{r: 4}"], "model.llm.lora: was null, is now {r: 4"),
        (["--model.optimizer.lr_scale", "{encoder.*: 2}"], "model.optimizer.lr_scale.encoder.*: was 0.5, is now 2.0;"),
        (["--model.adapter", "linear"], "model.adapter: was conv, is now linear;"),
        (["--trainer.max_steps", "1"], "trainer.max_steps: 1 is below step 2, which the run has reached; was 2;"),
    ],
)
def test_a_run_that_goes_on_keeps_what_it_was_told(fit, folder, options, expected):
    code, output = fit("--resume", *options)
    assert code == 1 and last_line(output).startswith(f"error: {folder / 'checkpoints' / 'last.ckpt'}: {expected}")
    assert "another trainer.default_root_dir" in last_line(output)


@pytest.mark.parametrize(
    ("section", "name", "value", "expected"),
    [
        ("data", "batch_duration_sec", 30.0, "data.batch_duration_sec: was 60.0, is now 30.0;"),
        ("data", "num_buckets", 2, "data.num_buckets: was 8, is now 2;"),
        ("data", "seed", 1, "data.seed: was 0, is now 1;"),
        ("data", "min_audio_sec", 0.1, "data.min_audio_sec: was 0.5, is now 0.1;"),
        ("data", "train", [], "data.train: was "),
        ("model", "freeze", None, "model.freeze: was [llm.*], is now null;"),
        ("model", "optimizer", {"lr": 0.5}, "model.optimizer.lr: was 0.0001, is now 0.5;"),
        ("model", "optimizer", {"warmup_steps": 7}, "model.optimizer.warmup_steps: was 1, is now 7;"),
        ("model", "speech_decoder", {"class_path": "x.ctc"}, "model.speech_decoder: was null, is now ctc;"),
        ("trainer", "overfit_batches", 1, "trainer.overfit_batches: was 0.0, is now 1;"),
        ("data", "num_workers", 4, None), ("data", "cache_audio", True, None), ("data", "on_error", "skip", None),
        ("model", "scaling", {"compile": True, "encoder_cache": "x"}, None), ("model", "num_generated", 9, None),
        ("model", "unknown_to_the_version_that_wrote_it", 3, None),
    ],
)  # fmt: skip
def test_each_option_is_kept_or_free(finished, section, name, value, expected):
    last = finished / "run" / "checkpoints" / "last.ckpt"
    now = torch.load(last, weights_only=True)["callbacks"]["RunCheckpoint"]["options"]
    options = now[section]["init_args"] if section == "model" else now[section]
    grouped = name in ("optimizer", "scaling")
    options[name] = options[name] | value if grouped else value
    if expected is None:
        (line,) = check_resume(last, now).lines
        assert line == "trainer.max_steps: step 2 of 2 is reached: nothing is left to train"
    else:
        with pytest.raises(ValueError) as refused:
            check_resume(last, now)
        assert str(refused.value).startswith(f"{last}: {expected}")


def test_another_rank_of_lora_is_named(finished, run, tmp_path):
    given = ("fit", "--config", finished / "stage.yaml", "--trainer.default_root_dir", tmp_path, "--resume")
    lora = ("--model.freeze", "null", "--model.llm.lora")
    assert run(*given, *lora, "{r: 4, target_modules: [q_proj]}", "--trainer.max_steps", "1")[0] == 0
    code, _, err = run(*given, *lora, "{r: 8, target_modules: [q_proj]}")
    assert code == 1 and f"{tmp_path}/checkpoints/last.ckpt: model.llm.lora.r: was 4, is now 8; a run that" in err


def test_a_manifest_with_other_rows_is_refused_and_one_that_was_moved_is_not(fit, folder, finished, told):
    moved = finished / "corpus" / "moved.jsonl"
    train = finished / "corpus" / "train.jsonl"
    shutil.copy(train, moved)
    assert fit("--resume", "--data.train", moved)[0] == 0
    lines = train.read_text().splitlines(keepends=True)
    moved.write_text("".join(lines[:-1]))
    code, output = fit("--resume", "--data.train", moved)
    assert code == 1 and f"data.train: was {train}, is now {moved}, with other rows" in last_line(output)
    try:
        train.write_text("".join(lines[:-1]))
        code, output = fit("--resume")
    finally:
        train.write_text("".join(lines))
    assert code == 1
    assert re.search(r"data\.train: \S+train\.jsonl has changed since \(sha256 \w{12} then, \w{12} now\)", output)


def test_what_may_change_goes_on_and_is_told(fit, folder, finished, told):
    other = finished / "corpus" / "other.jsonl"
    rows = (finished / "corpus" / "validation.jsonl").read_text().splitlines(keepends=True)
    other.write_text("".join(rows[:2]))
    options = [
        "--trainer.max_steps", "4", "--trainer.gradient_clip_val", "1.0", "--trainer.accumulate_grad_batches", "2",
        "--data.num_workers", "1", "--data.validation", other, "--checkpoint.every_sec", "5",
        "--model.scaling.activation_checkpointing", "[llm]", "--seed_everything", "7",
    ]  # fmt: skip
    assert fit("--resume", *options)[0] == 0
    lines = told()
    assert "trainer.max_steps: was 2, is now 4: the learning rate follows the new schedule from here" in lines
    assert "trainer.gradient_clip_val: was null, is now 1.0: the new value holds from here" in lines
    assert "seed_everything: was 1, is now 7: without effect on batches, whose seed is the checkpoint's" in lines
    assert any(line.startswith("data.validation: was ") and line.endswith("starts anew from here") for line in lines)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_run_that_is_over_says_so_and_writes_its_model(fit, folder, told):
    shutil.rmtree(folder / "model")
    assert fit("--resume")[0] == 0
    assert "trainer.max_steps: step 2 of 2 is reached: nothing is left to train" in told()
    assert (folder / "model" / "model.safetensors").is_file()


def test_epochs_that_are_over(fit, folder, told):
    assert fit("--resume", "--trainer.max_steps", "-1", "--trainer.max_epochs", "1")[0] == 0
    assert fit("--resume", "--trainer.max_steps", "-1", "--trainer.max_epochs", "1")[0] == 0
    assert "trainer.max_epochs: epoch 1 of 1 is reached: nothing is left to train" in told()


def test_a_checkpoint_that_says_nothing_of_its_options(fit, folder, told):
    last = folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for name in ("options", "unlogged", "accumulate"):
        del content["callbacks"]["RunCheckpoint"][name]
    torch.save(content, last)
    assert fit("--resume", "--trainer.max_steps", "3")[0] == 0
    assert f"{last}: does not record the options of its run, so they are not compared" in told()


def test_differences_have_the_names_of_options():
    then = {
        "model": {"class_path": "a.B", "init_args": {"x": {"class_path": "m.n", "init_args": {"y": 1}}, "z": {"p": 1}}}
    }
    now = {
        "model": {"class_path": "c.B", "init_args": {"x": {"class_path": "m.n", "init_args": {"y": 2}}, "z": {"q": 1}}}
    }
    now["model"]["init_args"]["new"] = "unknown to the version that wrote the checkpoint"
    assert list(changes(then, now)) == [("model", "B", "B")]
    now["model"]["class_path"] = "a.B"
    assert list(changes(then, now)) == [("model.x.y", 1, 2), ("model.z.p", 1, None), ("model.z.q", None, 1)]


# --- one run a folder, and what it leaves -----------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused(fit, folder):
    with holding(folder, "another run"):
        code, output = fit("--resume")
    expected = f"another run (process {os.getpid()}) is at work there; wait for its end, or give another folder"
    assert (code, last_line(output)) == (1, f"error: {folder}: {expected}")
    assert fit("--resume")[0] == 0


def test_leftovers_of_killed_runs_are_removed_at_the_start(fit, folder):
    leftovers = [folder / "checkpoints" / f".{10**9}-1.last.ckpt", folder / "model" / f".{10**9}-1.model.safetensors"]
    for place in leftovers:
        place.write_text("half")
    living = folder / "checkpoints" / f".{os.getppid()}-1.last.ckpt"
    living.write_text("half")
    assert fit("--resume")[0] == 0
    assert not any(place.exists() for place in leftovers) and living.exists()


def test_a_full_disk_is_told_and_the_good_checkpoint_stays(fit, folder, monkeypatch):
    """As torch's writer fails there: with an error that doesn't say why."""
    import resource

    last = folder / "checkpoints" / "last.ckpt"
    before, limits = last.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        for asynchronous in ("false", "true"):
            code, output = fit("--resume", "--trainer.max_steps", "3", "--checkpoint.asynchronous", asynchronous)
            assert (code, last_line(output)) == (1, f"error: {last}: no space left: file too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert last.read_bytes() == before
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_full_disk_for_a_logger_is_told_with_the_folder(fit, folder, monkeypatch):
    from lightning.pytorch.loggers import TensorBoardLogger

    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", full)
    code, output = fit("--resume", "--trainer.max_steps", "3")
    assert (code, last_line(output)) == (1, f"error: {folder}: no space left on device")


def test_the_point_of_a_step_whose_checkpoint_was_saved_is_not_lost(fit, folder, monkeypatch):
    """A kill right after a saving: Lightning logs a step after its end, where it is saved."""
    from lightning_s2s.scale.run_checkpoint import AtomicCheckpointIO

    save = AtomicCheckpointIO.save_checkpoint

    class Killed(BaseException):
        pass

    def save_and_die(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        if checkpoint["global_step"] == 3:
            raise Killed

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        fit("--resume", "--trainer.max_steps", "5", "--checkpoint.every_sec", "0")
    monkeypatch.undo()
    assert fit("--resume", "--trainer.max_steps", "5")[0] == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs")).Reload().Scalars("train/text_loss")
    assert sorted({event.step for event in events}) == [0, 1, 2, 3, 4]


def test_a_resumed_run_is_not_saved_between_the_batches_of_a_step(fit, monkeypatch):
    """Gradients that are being accumulated are in no checkpoint."""
    from lightning_s2s.scale.run_checkpoint import AtomicCheckpointIO

    saved: list[tuple[int, int]] = []

    def record(self, checkpoint, path, storage_options=None):
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        saved.append((batches, checkpoint["global_step"]))

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", record)
    options = ("--trainer.max_steps", "3", "--trainer.accumulate_grad_batches", "2", "--checkpoint.every_sec", "0")
    assert fit("--resume", *options, "--checkpoint.keep_best", "false")[0] == 0
    assert set(saved) == {(4, 3)}  # two steps of one batch each, before, and one of two


def test_the_checkpoint_holds_plain_values(folder):
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert json.loads(json.dumps(content["callbacks"]["RunCheckpoint"]["options"]))["data"]["max_batch_size"] == 3
