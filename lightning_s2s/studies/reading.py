"""Recipes and studies from their YAML; a mistake is one line that names the file and the key."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lightning_s2s.studies.study import (
    COMMANDS,
    SHARED,
    Measure,
    Recipe,
    RecipeStep,
    Settings,
    Study,
    plan,
    references,
    slug,
)
from lightning_s2s.support.reading import read_yaml
from lightning_s2s.support.wording import unknown_name

T = TypeVar("T", Recipe, Study)
OWN_OPTIONS = (*COMMANDS.values(), "seed_everything", "resume")
"""Options that the runner gives to each step."""
UNITS = ("percent", "seconds", "")


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from its YAML; docs/stages.md lists the keys.

    Raises:
        ValueError: A key is unknown, missing or of the wrong kind, or a file doesn't exist; the message names both.
    """
    return _read(Path(path), _recipe)


def read_study(path: str | Path) -> Study:
    """A study from its YAML; docs/ablations.md lists the keys.

    Raises:
        ValueError: As `read_recipe`.
    """
    return _read(Path(path), _study)


def _read(path: Path, parse: Callable[[Path, Any], T]) -> T:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    content = read_yaml(path)
    try:
        return parse(path, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _recipe(path: Path, content: Any) -> Recipe:
    parts = _mapping(content, "the recipe", ("output_dir", "steps"), ("model", "seed"))
    seed = parts.get("seed")
    if seed is not None and not (type(seed) is int and seed >= 0):
        raise ValueError(f"seed: got {seed!r}; allowed: a whole number, 0 or more")
    model = _files(parts.get("model", []), "model")
    steps = _steps(parts["steps"])
    options = functools.cache(_model_options)  # model.yaml is read once, for all stages
    for name, step in steps.items():
        if step.command == "fit":
            configs = (*model, *step.settings.configs)
            given = {option: value for config in configs for option, value in options(config).items()}
            empty = frozenset(str(option) for option, value in given.items() if value is None)
            steps[name] = replace(step, settings=replace(step.settings, configs=configs), without=empty)
    return Recipe(path, Path(_text(parts["output_dir"], "output_dir")), seed, steps)


def _model_options(config: str) -> Mapping[Any, Any]:
    """The options of the model that a YAML of `fit` sets."""
    content = read_yaml(Path(config))
    model = content.get("model") if isinstance(content, Mapping) else None
    options = model.get("init_args", model) if isinstance(model, Mapping) else None
    return options if isinstance(options, Mapping) else {}


def _steps(content: Any) -> dict[str, RecipeStep]:
    steps = {name: _step(name, step) for name, step in _named(content, "steps").items()}
    for number, (name, step) in enumerate(steps.items()):
        _check_references(f"steps.{name}", step.settings.options, list(steps)[:number], list(steps)[number:])
    return steps


def _study(path: Path, content: Any) -> Study:
    required, optional = ("variants", "measures"), ("recipe", "title", "output_dir", "seeds", "steps")
    parts = _mapping(content, "the study", required, optional)
    seeds = parts.get("seeds", [1])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds: got {seeds!r}; allowed: a list of whole numbers, 0 or more")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds!r}; allowed: each once")
    if "recipe" in parts:
        steps = _changed_steps(read_recipe(_text(parts["recipe"], "recipe")).steps, parts.get("steps", {}))
    else:
        steps = _steps(_mapping(content, "the study", ("steps", *required), optional)["steps"])
    variants = {
        name: _variant(f"variants.{name}", variant, list(steps))
        for name, variant in _named(parts["variants"], "variants").items()
    }
    _check_folders(variants)
    measures = tuple(_measure(name, part, steps) for name, part in _named(parts["measures"], "measures").items())
    study = Study(
        path,
        _text(parts.get("title", path.stem), "title"),
        Path(_text(parts.get("output_dir", f"runs/ablations/{path.stem}"), "output_dir")),
        tuple(seeds),
        steps,
        variants,
        measures,
    )
    trials = plan(study)
    for name in () if "recipe" in parts else steps:
        if not any(name in trial.commands for trial in trials):
            raise ValueError(f"steps.{name}: no measure needs it, by itself or as {{{name}}} in another step's options")
    for trial in trials:
        if idle := [step for step in variants[trial.variant] if step not in trial.commands]:
            raise ValueError(f"variants.{trial.variant}.{idle[0]}: this step does not run here, since nothing needs it")
    return study


def _changed_steps(steps: Mapping[str, RecipeStep], changes: Any) -> dict[str, RecipeStep]:
    """A recipe's steps with the options that the study changes for all variants."""
    if not isinstance(changes, Mapping):
        raise ValueError(f"steps: expected steps of the recipe with options; got {type(changes).__name__}")
    changed = dict(steps)
    for name, options in changes.items():
        if name not in steps:
            raise ValueError(f"steps: {unknown_name('step', str(name), steps)}")
        settings = _settings(f"steps.{name}", options)
        number = list(steps).index(name)
        _check_references(f"steps.{name}", settings.options, list(steps)[:number], list(steps)[number:])
        changed[name] = replace(steps[name], settings=settings.over(steps[name].settings))
    return changed


def _step(name: str, content: Any) -> RecipeStep:
    where = f"steps.{name}"
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"{where}: a step's name must be letters, digits and _")
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected one of {', '.join(COMMANDS)} with its YAML, and options")
    given = [command for command in COMMANDS if command in content]
    if len(given) != 1:
        raise ValueError(f"{where}: expected one of {', '.join(COMMANDS)}; got {', '.join(given) or 'none'}")
    options = {key: value for key, value in content.items() if key != given[0]}
    if "config" in options:
        raise ValueError(f"{where}.config: list the files behind {given[0]}")
    configs = content[given[0]]
    settings = _settings(where, options | ({"config": configs} if configs is not None else {}))
    if given[0] == "fit" and not settings.configs:
        raise ValueError(f"{where}.fit: expected the YAML of a stage, or a list of files")
    return RecipeStep(name, given[0], settings)


def _variant(where: str, content: Any, steps: list[str]) -> dict[str, Settings]:
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where}: overrides nothing; expected steps with options, the ones of a baseline as well")
    changes = {}
    for step, options in content.items():
        if step not in steps:
            raise ValueError(f"{where}: {unknown_name('step', str(step), steps)}")
        changes[step] = _settings(f"{where}.{step}", options)
        number = steps.index(step)
        _check_references(f"{where}.{step}", changes[step].options, steps[:number], steps[number:])
    return changes


def _settings(where: str, content: Any) -> Settings:
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where}: overrides nothing; expected options as on the command line, or config: FILE")
    configs = _files(content.get("config", []), f"{where}.config")
    options = {key: value for key, value in content.items() if key != "config"}
    for key in options:
        if not isinstance(key, str):
            raise ValueError(f"{where}: got the option {key!r}; allowed: an option as on the command line")
        if key in OWN_OPTIONS:
            raise ValueError(f"{where}.{key}: can't be set here: it follows from output_dir and the seed")
    return Settings(configs, options)


def _files(value: Any, where: str) -> tuple[str, ...]:
    """A YAML file or a list of them; all must exist."""
    files = [value] if isinstance(value, str) else value
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{where}: got {value!r}; allowed: a YAML file or a list of them")
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{where.removesuffix('.config')}: {file}: no such file")
    return tuple(files)


def _check_references(where: str, options: Mapping[str, Any], earlier: list[str], later: list[str]) -> None:
    for key, value in options.items():
        for name in sorted(references(value)):
            if name in later:
                raise ValueError(f"{where}.{key}: {{{name}}} is no earlier step")
            if name not in earlier:
                raise ValueError(f"{where}.{key}: {unknown_name('step', name, earlier)}")


def _check_folders(variants: Iterable[str]) -> None:
    folders: dict[str, str] = {SHARED: "the steps that no variant changes"}
    for name in variants:
        folder = slug(name)
        if not folder or folder in folders:
            other = f"; it is the folder of {folders[folder]}" if folder else ""
            raise ValueError(f"variants.{name}: needs another name: its folder would be {folder!r}{other}")
        folders[folder] = f"variant {name}"


def _measure(name: str, content: Any, steps: Mapping[str, RecipeStep]) -> Measure:
    where = f"measures.{name}"
    parts = _mapping(content, where, ("step", "better"), ("scalar", "figure", "kind", "unit"))
    if _text(parts["step"], f"{where}.step") not in steps:
        raise ValueError(f"{where}.step: {unknown_name('step', parts['step'], steps)}")
    for key, allowed in (("better", ("up", "down")), ("kind", ("quality", "latency", None)), ("unit", UNITS)):
        if parts.get(key, allowed[-1]) not in allowed:
            names = ", ".join(repr(value) for value in allowed if value is not None)
            raise ValueError(f"{where}.{key}: got {parts[key]!r}; allowed: {names}")
    source = "scalar" if steps[parts["step"]].command == "fit" else "figure"
    if [key for key in ("scalar", "figure") if key in parts] != [source]:
        raise ValueError(f"{where}: expected {source}, since {parts['step']} runs {steps[parts['step']].command}")
    return Measure(
        name,
        parts["step"],
        _text(parts["scalar"], f"{where}.scalar") if source == "scalar" else None,
        _text(parts["figure"], f"{where}.figure") if source == "figure" else None,
        parts["better"],
        parts.get("kind"),
        parts.get("unit", ""),
    )


def _mapping(content: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected keys and values; got {type(content).__name__}")
    for key in content:
        if key not in required + optional:
            raise ValueError(f"{where}: {unknown_name('key', str(key), required + optional)}")
    if missing := [key for key in required if key not in content]:
        raise ValueError(f"{where}: missing: {', '.join(missing)}")
    return dict(content)


def _named(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where}: expected at least one name with its settings")
    for name in content:
        if not isinstance(name, str):
            raise ValueError(f"{where}: got the name {name!r}; allowed: text (in quotes, where it looks like a number)")
    return dict(content)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: got {value!r}; allowed: text")
    return value
