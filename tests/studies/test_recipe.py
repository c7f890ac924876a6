"""A recipe's YAML: the commands that it stands for, written out by hand, its mistakes, and that it runs."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import yaml

from lightning_s2s.cli import main
from lightning_s2s.studies import running
from lightning_s2s.studies.reading import read_recipe
from lightning_s2s.studies.study import plan_recipe
from parts.paths import ROOT
from parts.small_sizes import SHORT_RUN

RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/**/recipe.yaml"))
RECIPE = """
output_dir: out
model: model.yaml
seed: 3
steps:
  hear:
    fit: hear.yaml
  speak:
    fit: [speak.yaml, small.yaml]
    model.init_from: "{hear}"
  ask:
    evaluate answers: ask.yaml
    model: "{speak}"
    runs: ["{hear}", "{speak}"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the YAML files that RECIPE names."""
    monkeypatch.chdir(tmp_path)
    for name in ("speak", "small", "ask"):
        (tmp_path / f"{name}.yaml").write_text("{}\n")
    (tmp_path / "model.yaml").write_text("model: {init_args: {vocoder: {class_path: pocket}}}\n")
    (tmp_path / "hear.yaml").write_text("model: {init_args: {vocoder: null}}\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_the_commands_of_a_recipe(folder: Path):
    hear = "lightning-s2s fit --config model.yaml --config hear.yaml --seed_everything 3"
    speak = "lightning-s2s fit --config model.yaml --config speak.yaml --config small.yaml --model.init_from {}/hear "
    ask = "lightning-s2s evaluate answers --config ask.yaml --model {}/speak --runs '[{}/hear, {}/speak]' "
    assert [str(command) for command in plan_recipe(read_recipe("recipe.yaml"))] == [
        f"{hear} --trainer.default_root_dir out/hear --resume",
        f"{speak.format('out')}--seed_everything 3 --trainer.default_root_dir out/speak --resume",
        f"{ask.format('out', 'out', 'out')}--output_dir out/ask",
    ]
    overrides = [
        "--model.vocoder",
        "other",
        "--model.encoder=mel",
        "--model.vocoder.levels",
        "[2, 2]",
        "--data.seed",
        "1",
    ]
    moved = plan_recipe(read_recipe("recipe.yaml"), Path("new"), overrides)
    assert [str(command) for command in moved] == [
        f"{hear} --model.encoder=mel --data.seed 1 --trainer.default_root_dir new/hear --resume",
        f"{speak.format('new')}--seed_everything 3 --model.vocoder other --model.encoder=mel --model.vocoder.levels "
        "'[2, 2]' --data.seed 1 --trainer.default_root_dir new/speak --resume",
        f"{ask.format('new', 'new', 'new')}--output_dir new/ask",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"stages": {}}, "the recipe: unknown key 'stages'; did you mean steps? known: model, output_dir, seed, steps"),
        ({"steps": {}}, "steps: expected at least one name with its settings"),
        ({"seed": -1}, "seed: got -1; allowed: a whole number, 0 or more"),
        ({"model": "modl.yaml"}, "model: modl.yaml: no such file"),
        ({"model": 3}, "model: got 3; allowed: a YAML file or a list of them"),
        ({"output_dir": None}, "output_dir: got None; allowed: text"),
        ({"steps/hear/fit": "her.yaml"}, "steps.hear: her.yaml: no such file"),
        ({"steps/hear/model.init_from": "{speak}"}, "steps.hear.model.init_from: {speak} is no earlier step"),
        ({"steps/ask/model": "{spek}"}, "steps.ask.model: unknown step 'spek'; did you mean speak? known: hear, speak"),
        ({"steps/rest": {"fitt": "x"}}, "steps.rest: expected one of fit, evaluate answers, evaluate speech; got none"),
        ({"steps/hear/resume": True}, "steps.hear.resume: can't be set here: it follows from output_dir and the seed"),
    ],
)
def test_mistakes_name_file_and_key(folder: Path, change: dict, expected: str, capsys):
    recipe = yaml.safe_load(RECIPE)
    for path, value in change.items():
        *parents, key = path.split("/")
        functools.reduce(dict.__getitem__, parents, recipe)[key] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["train", "recipe.yaml"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: recipe.yaml: {expected}") and err.count("\n") == 1


def test_mistakes_on_the_command_line(folder: Path, capsys):
    for arguments, expected in (
        (["missing.yaml"], "missing.yaml: no such file"),
        (["recipe.yaml", "--from", "her"], "--from: unknown step 'her'; did you mean hear? known: ask, hear, speak"),
        (["recipe.yaml", "--to", "talk"], "--to: unknown step 'talk'; known: ask, hear, speak"),
        (["recipe.yaml", "--from", "ask", "--to", "hear"], "--from ask: comes behind --to hear"),
        (["recipe.yaml", "--from", "speak"], "--from speak: needs hear, which is not finished; leave --from out"),
        (
            ["recipe.yaml", "--config", "x.yaml"],
            "--config: the recipe names its files; give options, or another recipe",
        ),
    ):
        assert main(["train", *arguments]) in (1, 2)
        assert capsys.readouterr().err == f"error: {expected}\n"


def test_a_finished_run_is_left_alone_and_never_taken_for_another(folder: Path, monkeypatch, capsys):
    monkeypatch.setattr("lightning_s2s.commands.train.check_options", lambda commands: None)
    made = []

    def run_command(command, held, shown):
        made.append(command.step)
        result = command.folder / ("figures.json" if command.step == "ask" else "model/config.json")
        result.parent.mkdir(parents=True, exist_ok=True)
        (command.folder / running.COMMAND).write_text(json.dumps(running._record(command)))
        if command.step == "ask" and made.count("ask") == 1:
            return 7
        result.write_text("{}")
        return 0

    monkeypatch.setattr("lightning_s2s.commands.train.run_command", run_command)
    assert main(["train", "recipe.yaml"]) == 7
    assert capsys.readouterr().err == (
        "error: ask: failed with exit status 7; lightning-s2s train recipe.yaml resumes\n"
    )
    assert main(["train", "recipe.yaml"]) == 0
    assert made == ["hear", "speak", "ask", "ask"]
    assert capsys.readouterr().out.splitlines() == [
        "[1 of 3] hear: is finished, in out/hear", "[2 of 3] speak: is finished, in out/speak", "[3 of 3] ask",
    ]  # fmt: skip
    hint = "remove the folder, or give another output_dir"
    assert main(["train", "recipe.yaml", "--model.lr", "1"]) == 1
    assert capsys.readouterr().err == (
        f"error: out/hear: was made with other options or YAML files (--model.lr: was not given, is now 1); {hint}\n"
    )
    (folder / "speak.yaml").write_text("data: {}\n")
    assert main(["train", "recipe.yaml"]) == 1
    assert capsys.readouterr().err == (
        f"error: out/speak: was made with other options or YAML files (speak.yaml has changed); {hint}\n"
    )
    (folder / "out" / "hear" / running.COMMAND).unlink()
    assert main(["train", "recipe.yaml"]) == 1
    assert "out/hear: holds a result that was made in another way (no command.json)" in capsys.readouterr().err
    assert len(made) == 4


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_repositorys_recipes_are_understood(recipe: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["train", recipe, "--dry-run"]) == 0
    stages = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lightning-s2s fit")]
    assert len(stages) == (3 if "tiny" in recipe else 4)
    assert all("--model.init_from" in line for line in stages[-2:])


@pytest.mark.slow
def test_all_stages_with_another_encoder(workplace: Path, capfd):
    """A step of each, in processes of their own, and then a question; the encoder is a small random Whisper."""
    options = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", *SHORT_RUN]
    options += ["--model.optimizer.lr", "1.0e-6"]
    swap = ["--model.encoder", "whisper", "--model.encoder.checkpoint", "openai/whisper-base"]
    answers = yaml.safe_load(Path("experiments/tiny/answers.yaml").read_text()) | {"limit": 1}
    recipe = yaml.safe_load(Path("experiments/tiny/recipe.yaml").read_text())
    Path("answers.yaml").write_text(yaml.safe_dump(answers))
    recipe["steps"]["answers"]["evaluate answers"] = "answers.yaml"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["train", "recipe.yaml", "--output_dir", "runs/swapped", *swap, *options]) == 0, capfd.readouterr().err
    for stage in ("1_understanding", "2_generation", "3_tuning"):
        config = json.loads(Path(f"runs/swapped/{stage}/model/config.json").read_text())
        assert config["encoder"]["class_path"] == "whisper", stage
        assert ("speech_decoder" in config) == (stage != "1_understanding")
    assert json.loads(Path("runs/swapped/answers/figures.json").read_text())
    assert "1_understanding has no use for" not in capfd.readouterr().out
