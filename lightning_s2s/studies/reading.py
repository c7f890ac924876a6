"""A study from its YAML; a mistake is one line that names the file and the key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_s2s.studies.study import (
    COMMANDS,
    SHARED,
    Measure,
    Settings,
    Step,
    Study,
    plan,
    references,
    slug,
)
from lightning_s2s.support.reading import read_yaml
from lightning_s2s.support.wording import unknown_name

OWN_OPTIONS = (*COMMANDS.values(), "seed_everything", "resume")
"""What the study gives to each step itself."""
NESTED = re.compile(r"model\.(init_args\.)?(?!init_args\.)\w+\.")
"""Options of a component."""
UNITS = ("percent", "seconds", "")


def read_study(path: str | Path) -> Study:
    """A study from its YAML; docs/ablations.md lists the keys.

    Raises:
        ValueError: a key is unknown, missing or of the wrong kind, or a file doesn't exist; the message names both.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    content = read_yaml(path)
    try:
        return _study(path, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _study(path: Path, content: Any) -> Study:
    parts = _mapping(content, "the study", ("steps", "variants", "measures"), ("title", "output_dir", "seeds"))
    seeds = parts.get("seeds", [1])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds: got {seeds!r}; allowed: a list of whole numbers, 0 or more")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds!r}; allowed: each once")
    steps = {name: _step(name, step) for name, step in _named(parts["steps"], "steps").items()}
    for number, (name, step) in enumerate(steps.items()):
        _check_references(f"steps.{name}", step.settings.options, list(steps)[:number], list(steps)[number:])
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
    runs = plan(study)
    for name in steps:
        if not any(name in run.commands for run in runs):
            raise ValueError(f"steps.{name}: no measure needs it, by itself or as {{{name}}} in another step's options")
    for run in runs:
        if idle := [step for step in variants[run.variant] if step not in run.commands]:
            raise ValueError(f"variants.{run.variant}.{idle[0]}: this step does not run here, since nothing needs it")
    return study


def _step(name: str, content: Any) -> Step:
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
    return Step(name, given[0], settings)


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
    configs: Any = content.get("config", [])
    configs = [configs] if isinstance(configs, str) else configs
    if not isinstance(configs, list) or not all(isinstance(config, str) for config in configs):
        raise ValueError(f"{where}.config: got {configs!r}; allowed: a YAML file or a list of them")
    for config in configs:
        if not Path(config).is_file():
            raise ValueError(f"{where}: {config}: no such file")
    options = {key: value for key, value in content.items() if key != "config"}
    for key in options:
        if not isinstance(key, str):
            raise ValueError(f"{where}: got the option {key!r}; allowed: an option as on the command line")
        if key in OWN_OPTIONS:
            raise ValueError(f"{where}.{key}: the study sets it itself, by output_dir and seeds")
        if options[key] is None and NESTED.match(key):  # on the command line jsonargparse makes the text "None" of it
            raise ValueError(f"{where}.{key}: null of a component's option only works in a YAML file, by config")
    return Settings(tuple(configs), options)


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


def _measure(name: str, content: Any, steps: Mapping[str, Step]) -> Measure:
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
