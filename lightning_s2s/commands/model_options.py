"""Options that several commands have for the model and its vocoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s2s.commands.messages import CommandError
from lightning_s2s.components.registry import VOCODERS
from lightning_s2s.support.reading import parse_yaml, read_yaml, reading

if TYPE_CHECKING:
    import argparse

    from lightning_s2s.components.contracts import Vocoder

LONGEST_PATH = 200
"""Letters of an option's value that may be a path; a YAML is longer, and messages show no more of it."""


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """`--trust-sources`, of the commands that open a model."""
    parser.add_argument(
        "--trust-sources",
        action="store_true",
        help="also load what MODEL names outside of itself (hub ids, URLs, files), and run code where it says so",
    )


def open_vocoder(source: str, options: Mapping[str, Any] | None = None) -> Vocoder:
    """A vocoder from what the command line says.

    Args:
        source: a name, such as `pocket`; a folder of the published GLM-4-Voice decoder (config.yaml, flow.pt, hift.pt);
            or a component as a YAML has it, `{class_path: glm4_voice, init_args: {decoder: FOLDER}}`, or a file of it.
        options: arguments of the vocoder, over those in `source`.

    Raises:
        ValueError: it is none of these, or can't be built.
    """
    path, init_args = Path(source), dict(options or {})
    is_path = len(source) < LONGEST_PATH  # a YAML on the command line is no name that can be looked for
    if is_path and path.is_dir():
        if not (path / "flow.pt").is_file():
            raise ValueError(f"--vocoder {source}: no folder of GLM-4-Voice's decoder: flow.pt is missing")
        return VOCODERS.get("glm4_voice")(**{"decoder": source, **init_args})
    where = f"--vocoder {source[:LONGEST_PATH]}"
    content = read_yaml(path) if is_path and path.is_file() else parse_yaml(source, where)
    if isinstance(content, str):
        content = {"class_path": content}
    fits = isinstance(content, dict) and isinstance(content.get("class_path"), str)
    if not fits or content.keys() - {"class_path", "init_args"} or not isinstance(content.get("init_args", {}), dict):
        raise ValueError(f"{where}: expected a name, a folder, or class_path and init_args in YAML")
    with reading(where, "vocoder"):
        return VOCODERS.get(content["class_path"])(**{**content.get("init_args", {}), **init_args})


def take_vocoder_options(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--vocoder.OPTION VALUE` out of a command line: what is left, and the options, read as YAML.

    Raises:
        CommandError: an option without a value, or options without `--vocoder`.
    """
    left: list[str] = []
    options: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--vocoder."):
            left.append(argument)
            continue
        given = value if equals else next(rest, None)
        if given is None:
            raise CommandError(f"{name}: expected a value")
        try:
            options[name.removeprefix("--vocoder.")] = parse_yaml(given, f"{name} {given[:LONGEST_PATH]}")
        except ValueError as error:
            raise CommandError(str(error)) from None
    if options and not any(argument.partition("=")[0] == "--vocoder" for argument in left):
        raise CommandError(f"--vocoder.{next(iter(options))}: needs --vocoder, the name of one")
    return left, options
