"""`lightning-s2s train`: a recipe, stage after stage, each from the one before, and then what is asked of the model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_s2s.commands.ablate import check_options
from lightning_s2s.commands.messages import CommandError, OneLineParser, a_path, check_configs
from lightning_s2s.support.wording import unknown_name

if TYPE_CHECKING:
    import argparse

    from lightning_s2s.studies.study import Command


def build_parser() -> argparse.ArgumentParser:
    """The command's own options; all others are those of `fit`."""
    parser = OneLineParser(
        prog="lightning-s2s train",
        description=__doc__,
        epilog="All other options are those of `fit` and hold for every stage: --model.encoder whisper",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=a_path, help="YAML, such as experiments/tiny/recipe.yaml")
    parser.add_argument("--output_dir", type=a_path, help="in place of the recipe's")
    parser.add_argument(
        "--from", dest="first", metavar="STEP", help="leave out the steps before; they must be finished"
    )
    parser.add_argument("--to", dest="last", metavar="STEP", help="leave out the steps after")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, in order, and run nothing")
    return parser


def run(name: str, arguments: list[str]) -> int:
    """Run what is not finished; a run that was stopped goes on.

    Returns:
        The exit status of the step that failed, or 0.

    Raises:
        CommandError: a mistake in the options, or in those that the recipe gives to its steps.
        ValueError: a mistake in the recipe, or a folder that was made in another way.
    """
    options, overrides = build_parser().parse_known_args(arguments)
    if given := [word for word in overrides if word.partition("=")[0] in ("--config", "-c")]:
        raise CommandError(f"{given[0]}: the recipe names its files; give options, or another recipe")
    check_configs(overrides)

    from lightning_s2s.studies.reading import read_recipe
    from lightning_s2s.studies.running import check_folders, is_finished, run_command
    from lightning_s2s.studies.study import overrides_of, plan_recipe
    from lightning_s2s.support.locks import holding

    repeated = shlex.join(["lightning-s2s", name, *arguments])
    recipe = read_recipe(options.recipe)
    output_dir = options.output_dir or recipe.output_dir
    every = plan_recipe(recipe, output_dir, overrides)
    commands = _chosen(every, options.first, options.last)
    if options.dry_run:
        check_options(commands)
        print("\n".join(map(str, commands)))
        return 0
    # A step that outlived a killed call inherited the lock, and its end is waited for.
    with holding(output_dir, "another call, or a step that it left behind,", wait=True) as held:
        check_folders(commands, by_hand=False)
        waiting = [command for command in commands if not is_finished(command)]
        for earlier in every[: every.index(commands[0])]:
            if any(earlier.folder in command.needs for command in waiting) and not is_finished(earlier):
                raise CommandError(
                    f"--from {options.first}: needs {earlier.step}, which is not finished; leave --from out"
                )
        check_options(waiting)
        for number, command in enumerate(commands, start=1):
            place = f"[{number} of {len(commands)}] {command.step}"
            if command not in waiting:
                print(f"{place}: is finished, in {command.folder}", flush=True)
                continue
            print(place, flush=True)
            if left := overrides_of(recipe.steps[command.step], overrides)[1]:
                print(f"{command.step} has no use for {', '.join(left)}", flush=True)
            try:
                status = run_command(command, held, shown=True)
            except KeyboardInterrupt:
                print(f"stopped; the same command goes on from there: {repeated}", file=sys.stderr)
                raise
            if status:
                raise CommandError(f"{command.step}: failed with exit status {status}; {repeated} goes on", status)
    return 0


def _chosen(commands: Sequence[Command], first: str | None, last: str | None) -> list[Command]:
    """Those from one step to another, both included."""
    names = [command.step for command in commands]
    for option, step in (("--from", first), ("--to", last)):
        if step is not None and step not in names:
            raise CommandError(f"{option}: {unknown_name('step', step, names)}")
    start, end = names.index(first or names[0]), names.index(last or names[-1])
    if start > end:
        raise CommandError(f"--from {first}: comes behind --to {last}")
    return list(commands[start : end + 1])
