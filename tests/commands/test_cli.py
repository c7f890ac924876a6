"""The command line: what it prints, refuses and says, whatever the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 (its log handler keeps the stream that it finds at import: not one of a test's)
import pytest
import yaml

from lightning_s2s import cli
from lightning_s2s.cli import main
from lightning_s2s.commands.messages import CommandError, check_words, explain, unknown_option
from lightning_s2s.support import extras
from lightning_s2s.support.reading import one_line
from parts.command_line import last_line

HEAVY = ("torch", "lightning", "transformers", "jsonargparse", "numpy", "matplotlib", "yaml")


# --- without torch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "usage: lightning-s2s COMMAND"),
        (["--version"], "lightning-s2s "),
        (["components", "--help"], "usage: lightning-s2s components"),
        (["consolidate", "--help"], "usage: lightning-s2s consolidate"),
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
    allowed = set() if arguments[0].startswith("-") or arguments[0] == "evaluate" else {"jsonargparse", "yaml"}
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
        ("unrecognized arguments: =", "unexpected argument '='; --help tells what is allowed"),
        ("unrecognized arguments:  ", "unexpected argument ' '; --help tells what is allowed"),
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


def test_an_unknown_option_is_answered_with_near_names():
    assert unknown_option("--gredy", ["greedy"]) == "unknown option '--gredy'; did you mean --greedy?"
    assert unknown_option("--zzz=3", ["greedy"]) == "unknown option '--zzz'; --help lists all options"


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
    check_words(["--config", str(good), f"--config={good}", "--trainer.max_steps", "3", "--config"][:-1])
    odd = {name: tmp_path / f"{name}.yaml" for name in ("itself", "nameless", "deep")}
    odd["itself"].write_text("config: {x: [1]}\n")
    odd["nameless"].write_text("~: 1\n")
    odd["deep"].write_text("model: {a: [{'': 1}]}\n")
    for given, expected in (
        (
            f"--config {odd['itself']}",
            f"{odd['itself']}: config: can't stand in a YAML; give each file by a --config of its own",
        ),
        (f"--config {odd['nameless']}", f"{odd['nameless']}: the key None at the top: a key must be a name"),
        (f"--config {odd['deep']}", f"{odd['deep']}: the key '' under model.a: a key must be a name"),
        ("--model.encoder.width --resume", "--model.encoder.width: needs a value; got --resume"),
        ("--model.lr -1e-3", "--model.lr: needs a value; got -1e-3; a value like this is given by --model.lr=-1e-3"),
        ("--data.seed", "--data.seed: needs a value; got nothing"),
        ("--model.llm.help", "--model.llm.help: needs a value; got nothing"),
        (f"--config {tmp_path}/tunin.yaml", f"--config {tmp_path}/tunin.yaml: no such file; did you mean tuning.yaml?"),
        (f"-c {tmp_path}/x.yaml", f"-c {tmp_path}/x.yaml: no such file"),
        (f"--config={broken}", f"{broken}: line 3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (f"--config {lines}", f"{lines}: needs keys and values; found list"),
    ):
        with pytest.raises(CommandError) as error:
            check_words(given.split())
        assert str(error.value) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fit", "stage.yaml", "--resume"], "unexpected argument 'stage.yaml'; a YAML is given by --config YAML"),
        (["convert", "--too", "opens2s", "in", "out"], "unknown option '--too'; did you mean --to?"),
        (["fit", "--xconfig", "x.yaml", "--model.lr", "1"], "unknown option '--xconfig'; did you mean --config?"),
        (
            ["units", "--vocoer", "pocket", "--vocoder.encoder_width", "8"],
            "unknown option '--vocoer'; did you mean --vocoder?",
        ),
        (["plan", "--json", ""], "json: got ''; a path is needed"),
        (["components", "a\nb"], "unexpected argument 'a\\nb'; --help tells what is allowed"),
        (["components", " "], "unexpected argument ' '; --help tells what is allowed"),
    ],
)
def test_words_that_no_command_takes(run, arguments, expected):
    assert run(*arguments) == (2, "", f"error: {expected}\n")


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
    monkeypatch.setattr(cli, "raised_here", lambda error: True)
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


def test_evaluate_knows_its_kinds(run):
    message = "error: unknown command 'evaluate answer'; did you mean evaluate answers? known: "
    assert run("evaluate", "answer")[2].startswith(message)
    assert run("evaluate")[0] == 2
