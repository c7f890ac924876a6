"""A study's YAML: the commands that it stands for, written out by hand, and its mistakes."""

from __future__ import annotations

import functools
import math
import shlex
from pathlib import Path

import pytest
import yaml

from lightning_s2s.cli import main
from lightning_s2s.commands.ablate import check_options
from lightning_s2s.commands.messages import CommandError
from lightning_s2s.studies.reading import read_study
from lightning_s2s.studies.results import Spread, hyperparameters, read_value, spread_of, to_markdown
from lightning_s2s.studies.running import is_finished
from lightning_s2s.studies.study import as_option, commands_of, plan, references, slug, substitute
from parts.paths import EXPERIMENTS, ROOT
from parts.small_sizes import SHORT_RUN

ONE_STEP = [
    "--trainer.max_steps", "1", "--trainer.val_check_interval", "1",
    "--trainer.precision", "32-true",  # many CPUs have no bfloat16 and emulate it
    *SHORT_RUN, "--trainer.limit_val_batches", "8", "--data.max_batch_size", "4",
]  # fmt: skip
ASKED = {"freezing", "interleave", "stage1"}  # in `decoder`, one that was trained for a step would speak for long
LONG = {"decoder", "freezing", "stage1"}
"""Studies of several stages, of which every run of the tests checks the options alone."""
STUDIES = sorted((EXPERIMENTS / "ablations").glob("*.yaml"))

STUDY = """
title: Two rates
output_dir: out
seeds: [1, 2]
steps:
  hear:
    fit: hear.yaml
    trainer.max_steps: 3
  speak:
    fit: [speak.yaml, small.yaml]
    model.init_from: "{hear}"
    model.lr: 0.1
  ask:
    evaluate answers: ask.yaml
    model: "{speak}/model"
    runs: ["{hear}", "{speak}"]
variants:
  "1:2": {speak: {model.rate: "1:2"}}
  4 to 8: {speak: {config: fast.yaml, model.lr: 0.2}}
  deaf: {speak: {model.init_from: null}, ask: {runs: ["{speak}"]}}
measures:
  accuracy: {step: speak, scalar: val/accuracy, better: up, unit: percent, kind: quality}
  wait: {step: ask, figure: "wait, median", better: down, unit: seconds, kind: latency}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the YAML files that STUDY names."""
    monkeypatch.chdir(tmp_path)
    for name in ("hear", "speak", "small", "fast", "ask"):
        (tmp_path / f"{name}.yaml").write_text("{}\n")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def test_the_commands_of_a_study(folder: Path):
    runs = plan(read_study("study.yaml"))
    hear = "lightning-s2s fit --config hear.yaml --trainer.max_steps 3 --seed_everything"
    speak = "lightning-s2s fit --config speak.yaml --config small.yaml"
    shared = "out/runs/shared/seed1/hear"
    first = [
        f"{hear} 1 --trainer.default_root_dir {shared} --resume",
        f"{speak} --model.init_from {shared} --model.lr 0.1 --model.rate 1:2 --seed_everything 1 "
        "--trainer.default_root_dir out/runs/1-2/seed1/speak --resume",
        "lightning-s2s evaluate answers --config ask.yaml --model out/runs/1-2/seed1/speak/model "
        f"--runs '[{shared}, out/runs/1-2/seed1/speak]' --output_dir out/runs/1-2/seed1/ask",
        f"{speak} --config fast.yaml --model.init_from {shared} --model.lr 0.2 --seed_everything 1 "
        "--trainer.default_root_dir out/runs/4-to-8/seed1/speak --resume",
        "lightning-s2s evaluate answers --config ask.yaml --model out/runs/4-to-8/seed1/speak/model "
        f"--runs '[{shared}, out/runs/4-to-8/seed1/speak]' --output_dir out/runs/4-to-8/seed1/ask",
        f"{speak} --model.lr 0.1 --model.init_from null --seed_everything 1 "
        "--trainer.default_root_dir out/runs/deaf/seed1/speak --resume",
        "lightning-s2s evaluate answers --config ask.yaml --model out/runs/deaf/seed1/speak/model "
        "--runs '[out/runs/deaf/seed1/speak]' --output_dir out/runs/deaf/seed1/ask",
    ]
    second = [line.replace("/seed1/", "/seed2/").replace("everything 1", "everything 2") for line in first]
    assert [str(command) for command in commands_of(runs)] == first + second
    assert [(run.variant, run.seed, str(run.folder)) for run in runs[:3]] == [
        ("1:2", 1, "out/runs/1-2/seed1"), ("4 to 8", 1, "out/runs/4-to-8/seed1"), ("deaf", 1, "out/runs/deaf/seed1"),
    ]  # fmt: skip
    assert [list(run.commands) for run in runs[:3]] == [
        ["hear", "speak", "ask"],
        ["hear", "speak", "ask"],
        ["speak", "ask"],
    ]
    ask = runs[0].commands["ask"]
    assert [str(needed) for needed in ask.needs] == [shared, "out/runs/1-2/seed1/speak"]
    assert ask.label == "1:2, seed 1: ask"


def test_a_printed_command_can_be_pasted(folder: Path):
    for command in commands_of(plan(read_study("study.yaml"))):
        assert shlex.split(str(command)) == ["lightning-s2s", *command.arguments]


def test_a_step_that_two_variants_change_alike_is_run_once(folder: Path):
    study = yaml.safe_load(STUDY)
    study["variants"] = {
        "a": {"hear": {"model.lr": 1}, "speak": {"model.rate": 1}},
        "b": {"hear": {"model.lr": 1}, "speak": {"model.rate": 2}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    first, second = plan(read_study("study.yaml"))[:2]
    assert first.commands["hear"] is second.commands["hear"]
    assert str(first.commands["hear"].folder) == "out/runs/a/seed1/hear"
    assert first.commands["speak"].folder != second.commands["speak"].folder


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("4:12", ["--key", "4:12"]), (3, ["--key", "3"]), (None, ["--key", "null"]), (True, ["--key", "true"]),
        (0.5, ["--key", "0.5"]), (-1, ["--key=-1"]), ("-x", ["--key=-x"]), ([1, "a.*"], ["--key", "[1, a.*]"]),
        ({"llm.*": 0.3}, ["--key", "{llm.*: 0.3}"]), ("", ["--key", ""]),
    ],
)  # fmt: skip
def test_options_as_arguments(value, expected):
    assert as_option("key", value) == expected


def test_references_are_found_and_replaced_at_any_depth():
    value = {"a": ["{x}/model", "${y}"], "b": "{x}{z}", "c": 1}
    assert references(value) == {"x", "z"}
    assert substitute(value, {"x": "X", "z": "Z"}) == {"a": ["X/model", "${y}"], "b": "XZ", "c": 1}


def test_variants_as_folders():
    assert [slug(name) for name in ("4:12", "mel, 2 layers", "a_b.c-1", "::")] == [
        "4-12",
        "mel-2-layers",
        "a_b.c-1",
        "",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sed": [1]}, "the study: unknown key 'sed'; did you mean seeds? known: measures, output_dir, recipe, "),
        ({"steps": None}, "steps: expected at least one name with its settings"),
        ({"seeds": []}, "seeds: got []; allowed: a list of whole numbers, 0 or more"),
        ({"seeds": [1, 1]}, "seeds: got [1, 1]; allowed: each once"),
        ({"seeds": ["1"]}, "seeds: got ['1']; allowed: a list of whole numbers, 0 or more"),
        ({"output_dir": 3}, "output_dir: got 3; allowed: text"),
        ({"steps/hear/fit": "her.yaml"}, "steps.hear: her.yaml: no such file"),
        ({"steps/hear/fit": None}, "steps.hear.fit: expected the YAML of a stage, or a list of files"),
        ({"steps/hear/config": "fast.yaml"}, "steps.hear.config: list the files behind fit"),
        ({"steps/hear/seed_everything": 3}, "steps.hear.seed_everything: can't be set here: it follows from "),
        ({"steps/ask/output_dir": "x"}, "steps.ask.output_dir: can't be set here: it follows from "),
        ({"steps/ask/model": "{spek}"}, "steps.ask.model: unknown step 'spek'; did you mean speak? known: hear, speak"),
        ({"steps/hear/model": "{speak}"}, "steps.hear.model: {speak} is no earlier step"),
        ({"steps/rest": {"fit": "hear.yaml"}}, "steps.rest: no measure needs it, by itself or as {rest} in another"),
        ({"steps/rest": {"fitt": "x"}}, "steps.rest: expected one of fit, evaluate answers, evaluate speech; got none"),
        ({"steps/a b": {"fit": "x"}}, "steps.a b: a step's name must be letters, digits and _"),
        ({"variants/base": {}}, "variants.base: overrides nothing; expected steps with options"),
        ({"variants/base": {"speak": None}}, "variants.base.speak: overrides nothing; expected options as on the "),
        ({"variants/base": {"speek": {"a": 1}}}, "variants.base: unknown step 'speek'; did you mean speak? known: "),
        ({"variants/deaf": {"hear": {"a": 1}, "speak": {"model.init_from": None}, "ask": {"runs": None}}},
         "variants.deaf.hear: this step does not run here, since nothing needs it"),
        ({"variants/base": {"speak": {"config": ["x.yaml"]}}}, "variants.base.speak: x.yaml: no such file"),
        ({"variants/base": {"speak": {"config": 1}}}, "variants.base.speak.config: got 1; allowed: a YAML file "),
        ({"variants/1-2": {"speak": {"a": 1}}}, "variants.1-2: needs another name: its folder would be '1-2'; it is "),
        ({"variants/shared": {"speak": {"a": 1}}}, "variants.shared: needs another name: its folder would be 'shared'"),
        ({"variants": {252: {"speak": {"a": 1}}}}, "variants: got the name 252; allowed: text (in quotes, where it "),
        ({"measures/wait/step": "asks"}, "measures.wait.step: unknown step 'asks'; did you mean ask? known: "),
        ({"measures/wait/step": {"x": 1}}, "measures.wait.step: got {'x': 1}; allowed: text"),
        ({"measures/wait/better": "less"}, "measures.wait.better: got 'less'; allowed: 'up', 'down'"),
        ({"measures/wait/kind": "speed"}, "measures.wait.kind: got 'speed'; allowed: 'quality', 'latency'"),
        ({"measures/wait/unit": "s"}, "measures.wait.unit: got 's'; allowed: 'percent', 'seconds', ''"),
        ({"measures/wait/scalar": "x"}, "measures.wait: expected figure, since ask runs evaluate answers"),
        ({"measures/accuracy": {"step": "speak", "better": "up"}}, "measures.accuracy: expected scalar, since speak "),
        ({"measures/accuracy": {"step": "speak"}}, "measures.accuracy: missing: better"),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_key(folder: Path, change: dict, expected: str):
    study = yaml.safe_load(STUDY)
    for path, value in change.items():
        *parents, key = path.split("/")
        functools.reduce(dict.__getitem__, parents, study)[key] = value
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    with pytest.raises(ValueError) as error:
        read_study("study.yaml")
    assert str(error.value).startswith(f"study.yaml: {expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "study.yaml: line 2: not valid YAML: "),
        ("- 1", "study.yaml: the study: expected keys and values; got list"),
        ("title: x", "study.yaml: the study: missing: variants, measures"),
    ],
)
def test_files_that_are_no_study(folder: Path, text: str, expected: str):
    (folder / "study.yaml").write_text(text + "\n")
    with pytest.raises(ValueError) as error:
        read_study("study.yaml")
    assert str(error.value).startswith(expected)
    with pytest.raises(ValueError, match=r"^other\.yaml: no such file$"):
        read_study("other.yaml")


# --- results --------------------------------------------------------------------------------------------------------

VALUES = {
    ("1:2", 1): {"accuracy": 0.5, "wait": 0.1}, ("4 to 8", 1): {"accuracy": 0.75, "wait": 0.4}, ("deaf", 1): {},
    ("1:2", 2): {"accuracy": 0.7, "wait": 0.3}, ("4 to 8", 2): {"accuracy": math.nan}, ("deaf", 2): {},
}  # fmt: skip


def test_mean_and_spread(folder: Path):
    accuracy, wait = read_study("study.yaml").measures
    spread = spread_of(VALUES, "1:2", accuracy)
    assert spread == Spread((0.5, 0.7))
    assert (spread.mean, spread.deviation) == (pytest.approx(0.6), pytest.approx(0.1 * math.sqrt(2)))
    assert spread_of(VALUES, "4 to 8", accuracy) == Spread((0.75,))  # a value that is no number doesn't count
    assert math.isnan(spread_of(VALUES, "4 to 8", wait).deviation)
    assert math.isnan(spread_of(VALUES, "deaf", wait).mean)


def test_the_table(folder: Path):
    study = read_study("study.yaml")
    page = to_markdown(study, plan(study), VALUES, [Path("out/measures.png")], ["deaf, seed 1: speak: failed"])
    lines = page.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert lines[:3] == ["# Two rates", "", "`lightning-s2s ablate study.yaml`"]
    assert "- deaf, seed 1: speak: failed" in lines
    table = lines[lines.index("| variant | accuracy (up) | wait (down) |") :]
    assert table[2:5] == [
        "| 1:2 | 60 % ± 14.1 % | **0.2 s** ± 0.141 s |",
        "| 4 to 8 | **75 %** (1 of 2 seeds) | 0.4 s (1 of 2 seeds) |",
        "| deaf | no value | no value |",
    ]
    assert "Mean ± standard deviation over 2 seeds" in lines
    assert "| 4 to 8 | 2 | no value | no value |" in lines
    assert "| 4 to 8 | speak | `config: [fast.yaml]`<br>`model.lr: 0.2` |" in lines
    assert "![measures](measures.png)" in lines


def test_a_small_spread_is_not_shown_as_none(folder: Path):
    study = read_study("study.yaml")
    values = {("1:2", 1): {"accuracy": 0.5, "wait": 0.1}, ("1:2", 2): {"accuracy": 0.5, "wait": 0.1002}}
    page = to_markdown(study, plan(study), {run: values.get(run, {}) for run in VALUES})
    assert "| 1:2 | **50 %** ± 0 % | **0.1 s** ± under 0.001 s |" in page.replace("\N{NO-BREAK SPACE}", " ")


def test_options_have_one_type_in_all_variants(folder: Path):
    assert hyperparameters(read_study("study.yaml")) == {
        "1:2": {"variant": "1:2", "speak/model.rate": "1:2"},
        "4 to 8": {"variant": "4 to 8", "speak/config": "[fast.yaml]", "speak/model.lr": 0.2},
        "deaf": {"variant": "deaf", "speak/model.init_from": "null", "ask/runs": "['{speak}']"},
    }


# --- the studies of the repository ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("variants", ["first", pytest.param("all", marks=pytest.mark.slow)])
def test_the_repositorys_studies_run(path: Path, variants: str, workplace: Path):
    """Cut down to a step: every training, the questions of the first variant, and the measures that they leave."""
    study = read_study(path.relative_to(ROOT))
    assert str(study.output_dir) == f"runs/ablations/{path.stem}"
    assert {measure.kind for measure in study.measures} >= {"quality"}
    runs = [run for run in plan(study) if run.seed == study.seeds[0]]
    check_options(commands_of(runs))
    for run in runs[: path.stem not in LONG] if variants == "first" else runs:
        for step, command in run.commands.items():
            is_fit = command.arguments[0] == "fit"
            if is_finished(command) or not (is_fit or (step == "answers" and path.stem in ASKED and run is runs[0])):
                continue
            options = ONE_STEP if is_fit else ["--limit", "1"]
            if step == "3_tuning":  # its validation comes to replies late
                options = [*options, "--data.max_batch_size", "16", "--trainer.limit_val_batches", "12"]
            assert main([*command.arguments, *options]) == 0, command.label
        for measure in study.measures:
            if is_finished(run.commands[measure.step]):
                read_value(measure, run.commands[measure.step])


def test_a_wrong_option_is_told_before_anything_runs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    study = yaml.safe_load((EXPERIMENTS / "ablations" / "freezing.yaml").read_text())
    study["variants"]["nothing"]["3_tuning"] = {"model.freez": None}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    monkeypatch.chdir(ROOT)
    commands = [
        c for c in commands_of(plan(read_study(folder / "study.yaml"))) if c.label.startswith("nothing, seed 1")
    ]
    with pytest.raises(
        CommandError, match=r"^nothing, seed 1: 3_tuning: model: unknown option of Empathetic.* 'freez'"
    ):
        check_options(commands)


def test_the_study_of_the_documentation(folder: Path, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "docs" / "ablations.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    (folder / "small_batches.yaml").write_text("data: {max_batch_size: 4}\n")
    (folder / "experiments").symlink_to(EXPERIMENTS)
    (folder / "study.yaml").write_text(text)
    study = read_study("study.yaml")
    assert list(study.variants) == ["low", "high", "high, small batches"]
    check_options([c for c in commands_of(plan(study)) if "seed1" in c.folder.parts])
