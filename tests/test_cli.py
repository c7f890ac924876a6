"""The command line: what it prints, refuses and leaves behind, from `--help` to a run that is stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 (its log handler keeps the stream that it finds at import: not one of a test's)
import pytest
import soundfile
import torch
import yaml

from lightning_s2s import cli, extras
from lightning_s2s.cli import main
from lightning_s2s.commands.messages import CommandError, check_configs, explain, one_line
from lightning_s2s.commands.models import find_model, open_model

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "lightning", "transformers", "jsonargparse", "numpy", "matplotlib", "yaml")

TINY_LM = {
    "model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.fixture
def configuration(tmp_path, tiny_corpus, tokenizer_folder) -> Path:
    """YAML of a stage 3 that takes a few seconds for its four steps."""
    settings = {
        "trainer": {
            "max_steps": 4, "default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1,
            "enable_progress_bar": False, "enable_model_summary": False, "val_check_interval": 2,
            "check_val_every_n_epoch": None, "limit_val_batches": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
        },
        "model": {
            "class_path": "EmpatheticInstructionTuning",
            "init_args": {
                "encoder": {"class_path": "mel", "init_args": {"width": 16, "num_layers": 1, "num_heads": 2}},
                "adapter": {"class_path": "conv", "init_args": {"kernel_sizes": [5], "inner_width": 8}},
                "llm": {"class_path": "causal", "init_args": {"config": TINY_LM, "tokenizer": str(tokenizer_folder)}},
                "speech_decoder": {
                    "class_path": "interleaved",
                    "init_args": {"interleave": "1:2", "config": TINY_LM, "max_units": 8},
                },
                "vocoder": {"class_path": "pocket", "init_args": {"encoder_width": 8, "decoder_width": 8}},
                "num_generated": 0,
                "warmup_steps": 1,
            },
        },
        "data": {
            "train": tiny_corpus.train, "validation": tiny_corpus.validation, "batch_duration_sec": 30.0,
            "max_batch_size": 3,
        },
    }  # fmt: skip
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.fixture
def run(capsys):
    """Run a command in this process -> (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


def last_line(text: str) -> str:
    return text.rstrip().splitlines()[-1]


# --- without torch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "usage: lightning-s2s COMMAND"),
        (["--version"], "lightning-s2s "),
        (["components"], "encoder\n  mel          "),
        (["components", "--json"], '"name": "mel",'),
        (["components", "--help"], "usage: lightning-s2s components"),
        (["respond", "--help"], "usage: lightning-s2s respond"),
        (["evaluate", "--help"], "usage: lightning-s2s evaluate KIND"),
    ],
)
def test_what_only_tells_loads_nothing_heavy(arguments, expected):
    code = (
        "import sys\nfrom lightning_s2s.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    allowed = {"jsonargparse", "yaml"} if arguments[0] == "evaluate" else set()
    assert expected in result.stdout
    assert set(yaml.safe_load(last_line(result.stdout))) <= allowed


def test_the_console_script_is_installed_and_exits_with_the_status():
    script = Path(sys.executable).with_name("lightning-s2s")
    if not script.is_file():
        pytest.skip("the package is not installed")
    result = subprocess.run([script, "fitt"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    known = ", ".join(sorted(cli.COMMANDS))
    assert result.stderr == f"error: unknown command 'fitt'; did you mean fit? known: {known}\n"


def test_help_names_every_command(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)
    assert run() == (2, out, "")


# --- messages -------------------------------------------------------------------------------------------------------

NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'Stage'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lightning_s2s.stages.Some':
        Parser key "encoder":

          - Expected a path but whispr either not accessible or invalid
          - Expected a dot import path string: whispr
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='encoder', val='whispr')"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("unrecognized arguments: --gredy 3", "unknown option '--gredy'; did you mean --greedy?"),
        ("unrecognized arguments: --zzz=3", "unknown option '--zzz'; --help lists all options"),
        ("Subcommand 'fit' does not accept option 'gredy'", "unknown option 'gredy'; did you mean greedy?"),
        ("Option 'gredy' is not accepted", "unknown option 'gredy'; did you mean greedy?"),
        (
            "the following arguments are required: fit.data.train, fit.model",
            "missing: data.train, model; give it as an option or in a --config file",
        ),
        (
            'Parser key "model": Does not validate against any of the Union subtypes\n  Errors:\n'
            "    - Expected a dot import path string: Slow\n    - Expected a <class 'NoneType'>\n  Given value: Slow",
            "model: unknown stage 'Slow'; did you mean Slot? known: Quick, Slot",
        ),
        (
            'Parser key "trainer.max_epochs":\n  Does not validate against any of the Union subtypes\n'
            "  Subtypes: [<class 'int'>, <class 'NoneType'>]\n  Errors:\n    - Expected a <class 'int'>\n"
            "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: three",
            "trainer.max_epochs: got 'three'; allowed: int",
        ),
        (
            "Parser key \"jitter\": Expected a <class 'float'>. Got value: x",
            "jitter: got 'x'; allowed: float",
        ),
        ("something\n   else", "something; else"),
    ],
)
def test_parsers_messages_become_one_line(message, expected):
    assert explain(message, ["--greedy", "--seed", "-h"], {"model": ("stage", ["Quick", "Slot"])}) == expected


def test_an_unknown_component_is_answered_with_the_registrys_names():
    message = explain(NESTED)
    assert message.startswith("model.encoder: unknown encoder 'whispr'; did you mean whisper? known: mel, ")


def test_one_line_is_one_line_and_not_endless():
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("word " * 1000)) <= 800


def test_configs_are_checked_by_name(tmp_path):
    good = tmp_path / "tuning.yaml"
    good.write_text("trainer: {max_steps: 1}\n")
    broken = tmp_path / "broken.yaml"
    broken.write_text("trainer:\n  max_steps: [1\n")
    lines = tmp_path / "list.yaml"
    lines.write_text("- 1\n")
    check_configs(["--config", str(good), f"--config={good}", "--trainer.max_steps", "3", "--config"][:-1])
    for given, expected in (
        (f"--config {tmp_path}/tunin.yaml", f"--config {tmp_path}/tunin.yaml: no such file; did you mean tuning.yaml?"),
        (f"-c {tmp_path}/x.yaml", f"-c {tmp_path}/x.yaml: no such file"),
        (f"--config={broken}", f"{broken}: line 3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (f"--config {lines}", f"{lines}: needs keys and values; found list"),
    ):
        with pytest.raises(CommandError) as error:
            check_configs(given.split())
        assert str(error.value) == expected


def fail_with(error: Exception):
    def fail(arguments: list[str]) -> int:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (CommandError("a mistake"), 2, "error: a mistake\n"),
        (ValueError("two\nlines"), 1, "error: two lines\n"),
        (FileNotFoundError(2, "No such file or directory", "x.wav"), 1, "error: x.wav: no such file or directory\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_end_as_one_line_and_a_status(monkeypatch, run, error, code, expected):
    monkeypatch.setattr(cli, "_dispatch", fail_with(error))
    monkeypatch.setattr(cli, "_raised_here", lambda error: True)
    assert run("respond") == (code, "", expected)


def test_a_librarys_error_says_how_to_see_where(monkeypatch, run):
    monkeypatch.setattr(cli, "_dispatch", lambda arguments: int("x"))
    code, _, err = run("respond")
    assert (code, err.count("\n")) == (1, 1)
    assert err.endswith("(LIGHTNING_S2S_DEBUG=1 shows where)\n")


def test_a_wrapped_error_is_told_by_its_cause(monkeypatch, run):
    def fail(arguments):
        try:
            raise ValueError("the cause")
        except ValueError as cause:
            raise ValueError("the wrapping") from cause

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert "the cause" in run("respond")[2]


def test_debug_shows_the_traceback(monkeypatch, run):
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "")
    monkeypatch.setattr(cli, "_dispatch", fail_with(CommandError("a mistake")))
    code, _, err = run("respond", "--debug")
    assert code == 2
    assert err.startswith("Traceback")
    assert last_line(err) == "error: a mistake"


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "_dispatch", fail_with(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        main(["respond"])


def test_a_missing_optional_package_is_named_with_its_extra(monkeypatch, run):
    monkeypatch.setattr(cli, "_dispatch", fail_with(ModuleNotFoundError("No module named 'pyworld'", name="pyworld")))
    monkeypatch.setattr(extras, "requires", lambda name: ["torch>=2", 'pyworld>=0.3; extra == "construction"'])
    expected = "error: the package pyworld is missing; install it with pip install 'lightning-s2s[construction]'\n"
    assert run("construct") == (1, "", expected)


# --- fit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.encoder", "whispr"], "model.encoder: unknown encoder 'whispr'; did you mean whisper? known: mel,"),
        (
            ["--model.encoder", "whisper", "--model.encoder.chekpoint", "x"],
            "model.encoder: unknown option of whisper 'chekpoint'; did you mean checkpoint? known: checkpoint,",
        ),
        (["--model.vocoder", "nothing"], "model.vocoder: unknown vocoder 'nothing'; known: "),
        (["--model.lrr", "1"], "model: unknown option of EmpatheticInstructionTuning 'lrr'; did you mean lr? known: "),
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
    second.write_text("model: {init_args: {warmup_steps: '${trainer.max_steps}'}}\n")
    code, out, err = run(
        "fit", "--config", configuration, "--config", second, "--trainer.max_steps", "7",
        "--model.encoder", "whisper", "--model.encoder.checkpoint", "some/folder", "--print_config",
    )  # fmt: skip
    assert (code, err) == (0, "")
    settings = yaml.safe_load(out)
    model = settings["model"]["init_args"]
    assert settings["model"]["class_path"].endswith("EmpatheticInstructionTuning")
    assert model["encoder"]["class_path"] == "lightning_s2s.encoders.whisper.whisper"
    assert model["encoder"]["init_args"]["checkpoint"] == "some/folder"
    assert "width" not in model["encoder"]["init_args"]
    assert model["warmup_steps"] == 7
    assert settings["seed_everything"] == 1


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
    from lightning_s2s.commands.run_checkpoint import RunCheckpoint

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
    assert sorted(path.name for path in (parts / "checkpoints").iterdir()) == ["last.ckpt"]


# --- respond --------------------------------------------------------------------------------------------------------

KEYS = {"text", "text_ids", "unit_ids", "events", "marks", "audio_sec", "real_time_factor"}


def test_a_trained_stage_answers_from_its_run_its_model_and_its_checkpoint(run, configuration, tmp_path, tiny_corpus):
    folder = tmp_path / "run"
    assert run("fit", "--config", configuration, "--trainer.max_steps", "1")[0] == 0
    out, record = tmp_path / "reply.wav", tmp_path / "reply.json"
    question = tiny_corpus.folder / "q00.wav"

    replies = []
    for source in (folder, folder / "model", folder / "checkpoints" / "last.ckpt", folder / "checkpoints"):
        code, printed, err = run("respond", source, question, "--out", out, "--json", record, "--greedy")
        assert code == 0, err
        replies.append(json.loads(record.read_text()))
        assert printed.splitlines()[-1].startswith("[first text token ")
    first = replies[0]
    assert set(first) == KEYS
    assert all((reply["text_ids"], reply["unit_ids"]) == (first["text_ids"], first["unit_ids"]) for reply in replies)
    times = [event["time_sec"] for event in first["events"]]
    assert times == sorted(times)
    assert first["events"][-1]["event"] == "Done"
    samples, sample_rate = soundfile.read(out)
    assert (len(samples), sample_rate) == (640 * len(first["unit_ids"]), 16_000)
    assert first["audio_sec"] == pytest.approx(len(samples) / sample_rate)

    out.unlink()
    code, _, _ = run("respond", folder, question, "--out", out, "--json", record, "--no-audio", "--seed", "3")
    assert (code, out.exists()) == (0, False)
    drawn = json.loads(record.read_text())
    assert drawn["real_time_factor"] is None
    assert run("respond", folder, question, "--json", record, "--no-audio", "--seed", "3")[0] == 0
    assert json.loads(record.read_text())["text_ids"] == drawn["text_ids"]

    empty = tmp_path / "empty.wav"
    soundfile.write(empty, torch.zeros(0).numpy(), 16_000)
    code, _, err = run("respond", folder, empty)
    assert (code, last_line(err)) == (1, f"error: audio '{empty}': has no samples")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ("respond", 2, "missing: MODEL, question; give it as an option or in a --config file"),
        ("respond missing q.wav", 1, "missing: no such model; expected a model folder, a run's folder or a .ckpt file"),
        ("respond . q.wav --out reply.mp4", 1, ".: holds no model; expected one of config.json, model/config.json, "),
        ("respond model q.wav", 1, "q.wav: no such audio file"),
        ("respond model a.wav --out reply.mp4", 2, "--out reply.mp4: the name must end in .wav or .flac or .ogg"),
        ("respond model a.wav --out no/reply.wav", 2, "--out no/reply.wav: the folder no does not exist"),
        ("respond model a.wav --json no/x.json", 2, "--json no/x.json: the folder no does not exist"),
        ("respond model a.wav --seed x", 2, "argument --seed: invalid int value: 'x'"),
        ("respond model a.wav", 1, "model/config.json: key 'format' must be 'lightning_s2s'"),
        ("respond last.ckpt a.wav", 1, "last.ckpt: no checkpoint of `lightning-s2s fit` ("),
    ],
)
def test_mistakes_of_respond(run, tmp_path, monkeypatch, arguments, code, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    if " . " in arguments:
        (tmp_path / "last.ckpt").unlink()
        (tmp_path / "model" / "config.json").unlink()
    found, _, err = run(*arguments.split())
    assert (found, err.count("\n")) == (code, 1)
    assert err.startswith(f"error: {expected}")


def test_where_a_model_is_looked_for(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    last = checkpoints / "last.ckpt"
    last.touch()
    assert find_model(tmp_path) == last
    assert find_model(checkpoints) == last
    assert find_model(last) == last
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert find_model(tmp_path) == tmp_path / "model"
    with pytest.raises(ValueError, match="no checkpoint of"):
        open_model(last)


# --- construct ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--config", "construction.yaml", "--ttts", "x"], 2, "unknown option '--ttts'; did you mean --tts?"),
        (["--config", "construction.yaml", "--jitter", "x"], 2, "jitter: got 'x'; allowed: float"),
        (["--config", "construct.yaml"], 2, "--config construct.yaml: no such file; did you mean construction.yaml?"),
        (["--config", "construction.yaml", "--grammar", "x.yaml"], 1, "x.yaml: no such file or directory"),
        ([], 2, "missing: grammar, "),
    ],
)
def test_mistakes_of_construct(run, monkeypatch, tmp_path, arguments, code, expected):
    monkeypatch.chdir(tmp_path)
    content = (ROOT / "experiments" / "tiny" / "construction.yaml").read_text()
    (tmp_path / "construction.yaml").write_text(content)
    found, _, err = run("construct", *arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert err.startswith(f"error: {expected}")


def test_construct_hands_its_settings_over(run, monkeypatch, tmp_path):
    from lightning_s2s.construction import pipeline, prosody

    received = []
    monkeypatch.setattr(pipeline, "construct", received.append)
    config = ROOT / "experiments" / "tiny" / "construction.yaml"
    assert run("construct", "--config", config, "--seed", "5", "--tts", "voices")[0] == 0
    assert isinstance(received[0], pipeline.CorpusConfig)
    assert (received[0].seed, received[0].tts) == (5, "voices")
    assert isinstance(received[0].prosody["happy"], prosody.Prosody)


def test_evaluate_knows_its_kinds(run):
    assert run("evaluate", "answer")[2] == (
        "error: unknown kind of evaluation 'answer'; did you mean answers? known: answers, speech\n"
    )
    assert run("evaluate")[0] == 2
