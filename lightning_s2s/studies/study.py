"""A recipe, a study of its variants, and the commands that they stand for. Nothing is read or run here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

COMMANDS = {"fit": "trainer.default_root_dir", "evaluate answers": "output_dir", "evaluate speech": "output_dir"}
"""What a step may run -> the option that says where to."""
REFERENCE = re.compile(r"(?<!\$)\{(\w+)\}")
"""`{step}`, which stands for the step's folder; `${...}` is the configuration's own."""
SHARED = "shared"
"""Folder of the steps that a variant takes as they are."""


@dataclass(frozen=True)
class Settings:
    """What a command is given.

    Attributes:
        configs: YAML files, merged in their order.
        options: key as on the command line, without its dashes -> value.
    """

    configs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def over(self, base: Settings) -> Settings:
        """These on top of others: files follow files, options follow options and replace those of the same key."""
        kept = {key: value for key, value in base.options.items() if key not in self.options}
        return Settings(base.configs + self.configs, kept | dict(self.options))


@dataclass(frozen=True)
class Step:
    """One command of a run, before a variant changes it.

    Attributes:
        without: slots of the model that its YAML files leave empty.
    """

    name: str
    command: str
    settings: Settings
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Recipe:
    """Steps that follow each other, as a YAML has them: the stages of a training, and what is asked of its model.

    Attributes:
        path: of the YAML.
        output_dir: each step writes into a folder of its name in there.
        seed: of every training; None leaves it to the stages' YAML.
        steps: in the order in which they run.
    """

    path: Path
    output_dir: Path
    seed: int | None
    steps: Mapping[str, Step]


@dataclass(frozen=True)
class Measure:
    """One figure by which variants are compared.

    Attributes:
        name: column of the table and metric of TensorBoard's HParams.
        step: where it comes from.
        scalar: a metric that a `fit` logs, its last value; or
        figure: a key of the `figures.json` that an evaluation writes.
        better: which way is better.
        kind: quality and latency are drawn against each other; None stands in the table alone.
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
    """A study as its YAML has it.

    Attributes:
        path: of the YAML.
        title: heading of the results.
        output_dir: gets the runs, the table and the figures.
        seeds: each variant is run once with each.
        steps: in the order in which they run.
        variants: name -> step -> what it changes there.
        measures: columns of the table.
    """

    path: Path
    title: str
    output_dir: Path
    seeds: tuple[int, ...]
    steps: Mapping[str, Step]
    variants: Mapping[str, Mapping[str, Settings]]
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Command:
    """One command to run, for one variant or for several that give it the same arguments.

    Attributes:
        step: its name.
        label: variant, seed and step, for people.
        arguments: of `lightning-s2s`.
        configs: the YAML files among them.
        folder: what it writes.
        needs: folders of the commands that must be over before.
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
class Run:
    """One variant with one seed.

    Attributes:
        folder: of its HParams and of the steps that are its own.
        commands: step -> command, in order, those that it shares with other runs included.
    """

    variant: str
    seed: int
    folder: Path
    commands: Mapping[str, Command]


def plan(study: Study) -> list[Run]:
    """The runs: for each seed every variant, so that each seed gives a whole comparison.

    A step runs for a variant when one of its measures needs it, by itself or through `{step}` in another step's
    options. A step whose arguments are the same for two variants is one command.
    """
    known: dict[tuple[str, ...], Command] = {}
    return [_plan_run(study, variant, seed, known) for seed in study.seeds for variant in study.variants]


def commands_of(runs: Iterable[Run]) -> list[Command]:
    """Every command once, in the order in which they must run."""
    return list({command.folder: command for run in runs for command in run.commands.values()}.values())


def _plan_run(study: Study, variant: str, seed: int, known: dict[tuple[str, ...], Command]) -> Run:
    changes, home = study.variants[variant], study.output_dir / "runs"
    settings = {name: changes.get(name, Settings()).over(step.settings) for name, step in study.steps.items()}
    wanted = _needed(settings, {measure.step for measure in study.measures})
    commands: dict[str, Command] = {}
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
            known[arguments] = Command(
                name,
                f"{variant if name in own else SHARED}, seed {seed}: {name}",
                (*arguments, *_into(step.command, folder)),
                settings[name].configs,
                folder,
                tuple(commands[other].folder for other in needed),
            )
        commands[name] = known[arguments]
    return Run(variant, seed, home / slug(variant) / f"seed{seed}", commands)


def plan_recipe(recipe: Recipe, output_dir: Path | None = None, overrides: Sequence[str] = ()) -> list[Command]:
    """The commands of a recipe, in order.

    Args:
        recipe: that is run.
        output_dir: in place of the recipe's.
        overrides: arguments that every training gets behind its own, but those of slots that it leaves empty.
    """
    commands: dict[str, Command] = {}
    for name, step in recipe.steps.items():
        needed = [other for other in commands if other in references(step.settings.options)]
        folders = {other: str(commands[other].folder) for other in needed}
        arguments = _arguments(step.command, step.settings, folders, recipe.seed)
        folder = (output_dir or recipe.output_dir) / name
        commands[name] = Command(
            name,
            name,
            (*arguments, *overrides_of(step, overrides)[0], *_into(step.command, folder)),
            step.settings.configs,
            folder,
            tuple(commands[other].folder for other in needed),
        )
    return list(commands.values())


def overrides_of(step: Step, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
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
    """What a command is given, but where to."""
    given: list[tuple[str, Any]] = [("config", config) for config in settings.configs]
    given += substitute(settings.options, folders).items()
    given += [("seed_everything", seed)] if command == "fit" and seed is not None else []
    return (*command.split(), *(part for key, value in given for part in as_option(key, value)))


def _into(command: str, folder: Path) -> tuple[str, ...]:
    """The arguments that say where to; a training goes on with what is there."""
    return (f"--{COMMANDS[command]}", str(folder), *(["--resume"] * (command == "fit")))


def _needed(settings: Mapping[str, Settings], measured: set[str]) -> set[str]:
    """The measured steps and those that they build on."""
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
    """A variant's name as a folder's: "4:12" -> "4-12"."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")
