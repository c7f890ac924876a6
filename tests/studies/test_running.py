"""A study that is run for real: killed and gone on with, failing in part, and read back from TensorBoard's files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_s2s.cli import main
from lightning_s2s.studies import running
from lightning_s2s.studies.reading import read_study
from lightning_s2s.studies.study import StepCommand, plan
from lightning_s2s.support.locks import holding
from parts.small_sizes import TINY_LM
from parts.waiting import SAFETY_LIMIT_SEC, wait_for

STEPS = 24


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_corpus, tokenizer_folder) -> Path:
    """The working folder, with a stage 2 that takes seconds and a study of it: two variants, two seeds."""
    monkeypatch.chdir(tmp_path)
    stage = {
        "trainer": {
            "max_steps": STEPS, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False,
            "enable_model_summary": False, "val_check_interval": STEPS, "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
        },
        "model": {
            "class_path": "SpeechGenerationPretraining",
            "init_args": {
                "condition": "text",
                "llm": {"class_path": "causal", "init_args": {"config": TINY_LM, "tokenizer": str(tokenizer_folder)}},
                "speech_decoder": {"class_path": "interleaved", "init_args": {"config": TINY_LM, "unit_dropout": 0.2}},
                "vocoder": {"class_path": "pocket", "init_args": {"encoder_width": 8, "decoder_width": 8}},
                "freeze": ["llm.*"],
                "optimizer": {"lr": 0.01},
            },
        },
        "data": {"train": tiny_corpus.train, "validation": tiny_corpus.validation, "batch_duration_sec": 30.0},
    }  # fmt: skip
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(stage))
    write_study(tmp_path / "study.yaml")
    return tmp_path


def write_study(path: Path, output_dir: str = "study", **variants: str) -> None:
    study = {
        "title": "Two schedules",
        "output_dir": output_dir,
        "seeds": [1, 2],
        "steps": {"speak": {"fit": "stage.yaml"}},
        "variants": {
            name: {"speak": {"model.speech_decoder.interleave": value}}
            for name, value in (variants or {"short": "1:2", "long": "4:8"}).items()
        },
        "measures": {
            "unit loss": {"step": "speak", "scalar": "val/unit_loss", "better": "down", "kind": "quality"},
            "unit accuracy": {"step": "speak", "scalar": "val/unit_accuracy", "better": "up", "unit": "percent"},
        },
    }
    path.write_text(yaml.safe_dump(study, sort_keys=False))


def table(page: str) -> list[str]:
    """The rows that hold measures: means by variant, then each run."""
    return [line for line in page.partition("## What the variants change")[0].splitlines() if line.startswith("|")]


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_and_gives_what_its_commands_give(folder: Path, capsys):
    stage = yaml.safe_load((folder / "stage.yaml").read_text())
    pause = {"class_path": "parts.pausing.PauseOnce", "init_args": {"folder": str(folder), "after_step": STEPS // 2}}
    stage["trainer"]["callbacks"] = [pause]
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage))
    ablate = [sys.executable, "-m", "lightning_s2s.cli", "ablate", "study.yaml"]
    killed = subprocess.Popen(ablate, stderr=subprocess.DEVNULL)

    def process_that_pauses() -> str:
        assert killed.poll() is None
        return (folder / "paused").read_text() if (folder / "paused").exists() else ""

    child = int(wait_for(process_that_pauses, "the first command to reach its pause"))
    killed.kill()  # the command that it had begun would go on alone to its end: here it is told to save itself
    killed.wait()
    os.kill(child, signal.SIGTERM)
    (folder / "go").touch()

    again = subprocess.run(ablate, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    first = folder / "study" / "runs" / "short" / "seed1" / "speak"
    log = (first / "output.log").read_text()
    assert "checkpoints/last.ckpt is saved" in log
    assert "resuming from study/runs/short/seed1/speak/checkpoints/last.ckpt" in log
    assert log.count("$ lightning-s2s fit ") == 2
    assert [path.name for path in (folder / "study").glob("*.png")] == ["measures.png"]  # no latency, no trade-off
    page = (folder / "study" / "results.md").read_text()
    assert len(table(page)) == 2 + 2 + 2 + 4
    assert page in again.stdout

    # The printed commands, run by hand with another folder: `ablate` then finds all finished and gives the same table.
    write_study(folder / "study.yaml", "other")
    capsys.readouterr()
    assert main(["ablate", "study.yaml", "--dry-run"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 4
    for command in commands:
        program, *arguments = shlex.split(command)
        assert (program, main(arguments)) == ("lightning-s2s", 0)
    assert main(["ablate", "study.yaml"]) == 0
    assert not list((folder / "other").rglob("output.log"))
    assert table((folder / "other" / "results.md").read_text()) == table(page)


# --- failing, stale and stopped -------------------------------------------------------------------------------------


@pytest.fixture
def fake_run(monkeypatch):
    """Commands that write a result at once, and a set of labels that fail instead."""
    failing: set[str] = set()
    done: list[str] = []

    def run_command(command: StepCommand, held: int) -> int:
        from torch.utils.tensorboard import SummaryWriter

        done.append(command.label)
        if command.label in failing:
            return 1
        with SummaryWriter(str(command.folder / "logs")) as writer:
            writer.add_scalar("val/unit_loss", len(done), 10)
            writer.add_scalar("val/unit_accuracy", 0.5, 10)
        (command.folder / "model").mkdir()
        (command.folder / "model" / "config.json").write_text("{}")
        return 0

    monkeypatch.setattr(running, "run_command", run_command)
    return failing, done


@pytest.mark.parametrize("times", [1, 2])
def test_tensorboard_finds_options_and_measures_of_all_runs_in_one_folder(folder: Path, fake_run, times: int):
    """A second call replaces what the first has written."""
    for _ in range(times):
        assert main(["ablate", "study.yaml"]) == 0
    study = folder / "study"
    assert len(list(study.glob("events.out.tfevents.*"))) == 1
    assert len(list(study.glob("runs/*/*/events.out.tfevents.*"))) == 4
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.get_experiment import Handler as ExperimentHandler
    from tensorboard.plugins.hparams.list_session_groups import Handler as SessionsHandler

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(study))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(study))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    found = api_pb2.GetExperimentRequest(include_metrics=True)
    experiment = ExperimentHandler(request, context, "", found).run()
    assert {info.name for info in experiment.hparam_infos} == {
        "variant", "seed", "speak/model.speech_decoder.interleave",
    }  # fmt: skip
    assert {info.name.tag for info in experiment.metric_infos} == {"unit loss", "unit accuracy"}
    listed = SessionsHandler(
        request, context, "",
        api_pb2.ListSessionGroupsRequest(
            start_index=0, slice_size=100, include_metrics=True, allowed_statuses=[api_pb2.STATUS_SUCCESS],
            col_params=[{"metric": {"tag": "unit loss"}}, {"hparam": "variant"}],
        ),
    ).run()  # fmt: skip
    sessions = [session for group in listed.session_groups for session in group.sessions]
    assert {session.name for session in sessions} == {
        f"runs/{variant}/seed{seed}" for variant in ("short", "long") for seed in (1, 2)
    }
    options = {group.sessions[0].name: dict(group.hparams) for group in listed.session_groups}
    assert options["runs/long/seed2"]["speak/model.speech_decoder.interleave"].string_value == "4:8"
    assert options["runs/long/seed2"]["seed"].number_value == 2
    values = {s.name: {value.name.tag: value.value for value in s.metric_values} for s in sessions}
    assert values["runs/short/seed1"] == {"unit loss": 1.0, "unit accuracy": 0.5}
    assert values["runs/long/seed2"] == {"unit loss": 4.0, "unit accuracy": 0.5}
    assert "runs/long/seed2/speak/logs" in multiplexer.Runs()


def test_a_failing_variant_is_reported_and_repeated_by_the_next_call(folder: Path, fake_run, capsys):
    failing, done = fake_run
    failing.add("short, seed 1: speak")
    assert main(["ablate", "study.yaml"]) == 1
    log = "study/runs/short/seed1/speak/output.log"
    message = f"short, seed 1: speak: failed with exit status 1; see {log}"
    assert f"error: {message}\n" in capsys.readouterr().err
    assert done == ["short, seed 1: speak", "long, seed 1: speak", "short, seed 2: speak", "long, seed 2: speak"]
    page = (folder / "study" / "results.md").read_text()
    assert f"- {message}" in page
    assert "| short | 1 | no value | no value |" in page
    failing.clear()
    assert main(["ablate", "study.yaml"]) == 0
    assert done[4:] == ["short, seed 1: speak"]
    page = (folder / "study" / "results.md").read_text()
    assert "Not complete" not in page
    assert "| short | 1 | 5 | 50" in page
    assert main(["ablate", "study.yaml"]) == 0
    assert len(done) == 5


def test_what_needs_a_failed_step_is_left_out(folder: Path, fake_run, capsys):
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["steps"] = {"first": {"fit": "stage.yaml"}, "speak": {"fit": "stage.yaml", "model.init_from": "{first}"}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    failing, done = fake_run
    failing.add("shared, seed 2: first")
    assert main(["ablate", "study.yaml"]) == 1
    assert done == ["shared, seed 1: first", "short, seed 1: speak", "long, seed 1: speak", "shared, seed 2: first"]
    assert "long, seed 2: speak: left out: it needs study/runs/shared/seed2/first" in capsys.readouterr().err


def test_a_measure_that_was_not_logged_is_told(folder: Path, fake_run, capsys):
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["measures"]["text loss"] = {"step": "speak", "scalar": "val/text_loss", "better": "down"}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    assert main(["ablate", "study.yaml"]) == 1
    message = "study.yaml: measures.text loss: study/runs/short/seed1/speak: logged no scalar 'val/text_loss'"
    assert f"error: {message}\n" in capsys.readouterr().err


def test_a_changed_study_does_not_take_old_results(folder: Path, fake_run, capsys):
    runs = plan(read_study("study.yaml"))
    command = runs[0].commands["speak"]
    command.folder.mkdir(parents=True)
    (command.folder / "command.json").write_text(json.dumps(running._record(command)))
    running.check_folders([command])
    (folder / "stage.yaml").write_text((folder / "stage.yaml").read_text() + "\n# changed\n")
    assert main(["ablate", "study.yaml"]) == 1
    expected = "error: study/runs/short/seed1/speak: was made with other options or YAML files (stage.yaml has"
    assert capsys.readouterr().err.startswith(expected)
    assert fake_run[1] == []


def test_a_real_failure_leaves_its_log(folder: Path):
    command = plan(read_study("study.yaml"))[0].commands["speak"]
    wrong = StepCommand("speak", "x", ("fit", "--config", "missing.yaml"), (), folder / "wrong", ())
    with holding(folder / "study", "another call") as held:
        assert running.run_command(wrong, held) == 2
    assert not running.is_finished(command)
    assert running._log_end(wrong) == f" (error: --config missing.yaml: no such file); see {folder}/wrong/output.log"
    assert (folder / "wrong" / "output.log").read_text() == (
        "$ lightning-s2s fit --config missing.yaml\nerror: --config missing.yaml: no such file\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_study_once_the_command_has_saved_itself(number):
    """The child has a session of its own, as commands have, and ignores SIGINT, as those in the background do."""
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", flush=True)
while True:
    signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), running._signals_to(process):
        os.kill(os.getpid(), number)
        process.wait(SAFETY_LIMIT_SEC)
    assert process.returncode == 3
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
