"""A recipe, a study of its variants, and the commands that they describe. Nothing is read or run here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

COMMANDS = {"fit": "trainer.default_root_dir", "evaluate answers": "output_dir", "evaluate speech": "output_dir"}
"""Commands that a step may run -> the option for the output folder."""
REFERENCE = re.compile(r"(?<!\$)\{(\w+)\}")
"""Matches `{step}`, which stands for the step's folder; `${...}` belongs to the configuration."""
SHARED = "shared"
"""Folder of the steps that a variant leaves unchanged."""


@dataclass(frozen=True)
class Settings:
    """The configuration of a command.

    Attributes:
        configs: YAML files, merged in their order.
        options: Key as on the command line, without its dashes -> value.
    """

    configs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def over(self, base: Settings) -> Settings:
        """These settings on top of others: files follow files, and options replace those of the same key."""
        kept = {key: value for key, value in base.options.items() if key not in self.options}
        return Settings(base.configs + self.configs, kept | dict(self.options))


@dataclass(frozen=True)
class RecipeStep:
    """One step of a recipe: a training stage or an evaluation, before a variant changes it.

    Attributes:
        without: Slots of the model that its YAML files leave empty.
    """

    name: str
    command: str
    settings: Settings
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Recipe:
    """The stages of a training and the evaluations of its model, as described by a YAML.

    Attributes:
        path: Path of the YAML.
        output_dir: Each step writes into a folder of its name in here.
        seed: Seed of every training; None leaves it to the stages' YAML.
        steps: The steps by name, in the order in which they run.
    """

    path: Path
    output_dir: Path
    seed: int | None
    steps: Mapping[str, RecipeStep]


@dataclass(frozen=True)
class Measure:
    """One figure by which variants are compared.

    Attributes:
        name: Column of the table and metric of TensorBoard's HParams.
        step: The step that it comes from.
        scalar: A metric that a `fit` logs, of which the last value counts; None for a figure.
        figure: A key of the `figures.json` that an evaluation writes; None for a scalar.
        better: Which direction is better.
        kind: Quality and latency are drawn against each other; None only stands in the table.
        unit: "percent" for shares (0..1), "seconds", or "".
    """

    name: str
    step: str
    scalar: str | None
    figure: str | None
    better: Literal["up", "down"]
    kind: Literal["quality", "latency"] | None = None
    unit: str = ""


@dataclass(frozen=True)
class Study:
    """A study as described by its YAML.

    Attributes:
        path: Path of the YAML.
        title: Heading of the results.
        output_dir: Folder for the trials, the table and the figures.
        seeds: Each variant is run once with each seed.
        steps: The steps by name, in the order in which they run.
        variants: Name -> step -> the settings that it changes there.
        measures: Columns of the table.
    """

    path: Path
    title: str
    output_dir: Path
    seeds: tuple[int, ...]
    steps: Mapping[str, RecipeStep]
    variants: Mapping[str, Mapping[str, Settings]]
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class StepCommand:
    """One command to run, for one variant or for several that give it the same arguments.

    Attributes:
        step: Name of the step.
        label: Variant, seed and step, for messages.
        arguments: Command line of `lightning-s2s`.
        configs: The YAML files among the arguments.
        folder: The folder that it writes.
        needs: Folders of the commands that must be finished before.
    """

    step: str
    label: str
    arguments: tuple[str, ...]
    configs: tuple[str, ...]
    folder: Path
    needs: tuple[Path, ...]

    def __str__(self) -> str:
        return shlex.join(("lightning-s2s", *self.arguments))


@dataclass(frozen=True)
class Trial:
    """One variant with one seed.

    Attributes:
        folder: Folder of its HParams and of the steps that it shares with no other trial.
        commands: Step -> command, in order, including those that it shares with other trials.
    """

    variant: str
    seed: int
    folder: Path
    commands: Mapping[str, StepCommand]


def plan(study: Study) -> list[Trial]:
    """The trials: for each seed every variant, so that each seed gives a complete comparison.

    A step runs for a variant when one of its measures needs it, by itself or through `{step}` in another step's
    options. A step whose arguments are the same for two variants is one command.
    """
    known: dict[tuple[str, ...], StepCommand] = {}
    return [_plan_trial(study, variant, seed, known) for seed in study.seeds for variant in study.variants]


def commands_of(trials: Iterable[Trial]) -> list[StepCommand]:
    """Every command once, in the order in which they must run."""
    return list({command.folder: command for trial in trials for command in trial.commands.values()}.values())


def _plan_trial(study: Study, variant: str, seed: int, known: dict[tuple[str, ...], StepCommand]) -> Trial:
    changes, home = study.variants[variant], study.output_dir / "runs"
    settings = {name: changes.get(name, Settings()).over(step.settings) for name, step in study.steps.items()}
    wanted = _needed(settings, {measure.step for measure in study.measures})
    commands: dict[str, StepCommand] = {}
    own: set[str] = set()
    for name, step in study.steps.items():
        if name not in wanted:
            continue
        needed = [other for other in commands if other in references(settings[name].options)]
        if name in changes or own & set(needed):
            own.add(name)
        folders = {other: str(commands[other].folder) for other in needed}
        arguments = _arguments(step.command, settings[name], folders, seed)
        if arguments not in known:
            folder = home / (slug(variant) if name in own else SHARED) / f"seed{seed}" / name
            known[arguments] = StepCommand(
                name,
                f"{variant if name in own else SHARED}, seed {seed}: {name}",
                (*arguments, *_into(step.command, folder)),
                settings[name].configs,
                folder,
                tuple(commands[other].folder for other in needed),
            )
        commands[name] = known[arguments]
    return Trial(variant, seed, home / slug(variant) / f"seed{seed}", commands)


def plan_recipe(recipe: Recipe, output_dir: Path | None = None, overrides: Sequence[str] = ()) -> list[StepCommand]:
    """The commands of a recipe, in order.

    Args:
        recipe: The recipe to run.
        output_dir: Folder that takes the place of the recipe's.
        overrides: Arguments that every training gets behind its own, except those of slots that it leaves empty.
    """
    commands: dict[str, StepCommand] = {}
    for name, step in recipe.steps.items():
        needed = [other for other in commands if other in references(step.settings.options)]
        folders = {other: str(commands[other].folder) for other in needed}
        arguments = _arguments(step.command, step.settings, folders, recipe.seed)
        folder = (output_dir or recipe.output_dir) / name
        commands[name] = StepCommand(
            name,
            name,
            (*arguments, *overrides_of(step, overrides)[0], *_into(step.command, folder)),
            step.settings.configs,
            folder,
            tuple(commands[other].folder for other in needed),
        )
    return list(commands.values())


def overrides_of(step: RecipeStep, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that a step gets, and the options that it has no use for."""
    taken: list[str] = []
    left: list[str] = []
    keeps = step.command == "fit"
    for word in overrides:
        if word.startswith("--"):
            option = word.partition("=")[0]
            slot = option.split(".")[1] if option.startswith("--model.") else ""
            keeps = step.command == "fit" and slot not in step.without
            if not keeps:
                left.append(option)
        if keeps:
            taken.append(word)
    return taken, left


def _arguments(command: str, settings: Settings, folders: Mapping[str, str], seed: int | None) -> tuple[str, ...]:
    """The arguments of a command, without its output folder."""
    given: list[tuple[str, Any]] = [("config", config) for config in settings.configs]
    given += substitute(settings.options, folders).items()
    given += [("seed_everything", seed)] if command == "fit" and seed is not None else []
    return (*command.split(), *(part for key, value in given for part in as_option(key, value)))


def _into(command: str, folder: Path) -> tuple[str, ...]:
    """The arguments for the output folder; a training resumes what is there."""
    return (f"--{COMMANDS[command]}", str(folder), *(["--resume"] * (command == "fit")))


def _needed(settings: Mapping[str, Settings], measured: set[str]) -> set[str]:
    """The measured steps and those that they refer to."""
    needed = set(measured)
    for name in reversed(list(settings)):  # a step refers to earlier ones alone
        if name in needed:
            needed |= references(settings[name].options)
    return needed


def references(value: Any) -> set[str]:
    """The names in braces in all strings of a value: "{tuning}/model" -> {"tuning"}."""
    if isinstance(value, str):
        return set(REFERENCE.findall(value))
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return {name for part in parts for name in references(part)}


def substitute(value: Any, folders: Mapping[str, str]) -> Any:
    """The value with each `{step}` replaced by its folder."""
    if isinstance(value, str):
        return REFERENCE.sub(lambda found: folders[found[1]], value)
    if isinstance(value, Mapping):
        return {key: substitute(part, folders) for key, part in value.items()}
    return [substitute(part, folders) for part in value] if isinstance(value, list) else value


def as_option(key: str, value: Any) -> list[str]:
    """One option as arguments: ["--key", "value"], or ["--key=value"] where the value looks like an option itself."""
    text = as_text(value)
    return [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]


def as_text(value: Any) -> str:
    """A value as YAML in one line; a string as it is."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n...\n").strip()


def slug(name: str) -> str:
    """A variant's name as the name of a folder: "4:12" -> "4-12"."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")
