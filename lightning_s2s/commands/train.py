"""`lightning-s2s train`: a recipe, stage after stage, each from the one before, then the evaluations."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_s2s.commands.ablate import check_options
from lightning_s2s.commands.messages import CommandError, check_words
from lightning_s2s.studies.reading import read_recipe
from lightning_s2s.studies.running import check_folders, is_finished, run_command
from lightning_s2s.studies.study import StepCommand, overrides_of, plan_recipe
from lightning_s2s.support.locks import holding
from lightning_s2s.support.wording import unknown_name


def train(
    recipe: Path,
    *overrides: str,
    output_dir: Path | None = None,
    from_: str | None = None,
    to: str | None = None,
    dry_run: bool = False,
) -> None:
    """Run a recipe, stage after stage; a stopped run resumes when the command is repeated.

    All other options are those of `fit` and hold for every stage: --model.encoder whisper

    Args:
        recipe: YAML, such as experiments/tiny/recipe.yaml.
        overrides: Options of `fit`.
        output_dir: Folder that takes the place of the recipe's.
        from_: Leave out the steps before this one; they must be finished.
        to: Leave out the steps after this one.
        dry_run: Print the commands, in order, and run nothing.

    Raises:
        CommandError: A mistake in the options, or in those that the recipe gives to its steps, or a step failed.
        ValueError: A mistake in the recipe, or a folder that was made in another way.
    """
    if given := [word for word in overrides if word.partition("=")[0] in ("--config", "-c")]:
        raise CommandError(f"{given[0]}: the recipe names its files; give options, or another recipe")
    check_words(overrides)
    described = read_recipe(recipe)
    folder = output_dir or described.output_dir
    all_commands = plan_recipe(described, folder, overrides)
    commands = _chosen(all_commands, from_, to)
    if dry_run:
        check_options(commands)
        print("\n".join(map(str, commands)))
        return
    asked = (f"--output_dir={output_dir}" * bool(output_dir), f"--from={from_}" * bool(from_), f"--to={to}" * bool(to))
    repeated = shlex.join(["lightning-s2s", "train", str(recipe), *filter(None, asked), *overrides])
    # A step that outlived a killed call inherited the lock; wait for its end.
    with holding(folder, "another call, or a step that it left behind,", wait=True) as lock:
        check_folders(commands, by_hand=False)
        waiting = [command for command in commands if not is_finished(command)]
        for earlier in all_commands[: all_commands.index(commands[0])]:
            if any(earlier.folder in command.needs for command in waiting) and not is_finished(earlier):
                raise CommandError(f"--from {from_}: needs {earlier.step}, which is not finished; leave --from out")
        check_options(waiting)
        for number, command in enumerate(commands, start=1):
            place = f"[{number} of {len(commands)}] {command.step}"
            if command not in waiting:
                print(f"{place}: is finished, in {command.folder}", flush=True)
                continue
            print(place, flush=True)
            if left := overrides_of(described.steps[command.step], overrides)[1]:
                print(f"{command.step} has no use for {', '.join(left)}", flush=True)
            try:
                status = run_command(command, lock, shown=True)
            except KeyboardInterrupt:
                print(f"stopped; the same command resumes: {repeated}", file=sys.stderr)
                raise
            if status:
                raise CommandError(f"{command.step}: failed with exit status {status}; {repeated} resumes", status)


def _chosen(commands: Sequence[StepCommand], first: str | None, last: str | None) -> list[StepCommand]:
    """The commands from one step to another, both included."""
    names = [command.step for command in commands]
    for option, step in (("--from", first), ("--to", last)):
        if step is not None and step not in names:
            raise CommandError(f"{option}: {unknown_name('step', step, names)}")
    start, end = names.index(first or names[0]), names.index(last or names[-1])
    if start > end:
        raise CommandError(f"--from {first}: comes behind --to {last}")
    return list(commands[start : end + 1])
