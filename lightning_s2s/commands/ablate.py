"""`lightning-s2s ablate`: the variants of a study, one table and figures."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_s2s.commands.messages import CommandError
from lightning_s2s.commands.parser import call
from lightning_s2s.studies.reading import read_study
from lightning_s2s.studies.results import TABLE
from lightning_s2s.studies.running import check_folders, is_finished, run_commands
from lightning_s2s.studies.study import StepCommand, commands_of, plan
from lightning_s2s.support.locks import holding


def ablate(study: Path, *, dry_run: bool = False) -> int:
    """Run the variants of a study, and write one table and figures that compare them. A stopped study resumes.

    Args:
        study: YAML, such as experiments/ablations/interleave.yaml.
        dry_run: Print the commands, in order, and run nothing.

    Returns:
        0 when everything is finished, 1 when a command failed or a measure is missing.

    Raises:
        CommandError: A mistake in the options that the study gives to its commands.
        ValueError: A mistake in the study.
    """
    described = read_study(study)
    trials = plan(described)
    commands = commands_of(trials)
    first = commands_of(trial for trial in trials if trial.seed == described.seeds[0])  # other seeds change no option
    if dry_run:
        check_options(first)
        print("\n".join(map(str, commands)))
        return 0
    from lightning_s2s.reporting.study_report import write_results

    # A command that outlived a killed study inherited the lock; wait for its end.
    with holding(described.output_dir, "another call, or a step that it left behind,", wait=True) as lock:
        check_folders(commands)
        check_options([command for command in first if not is_finished(command)])
        try:
            failures = run_commands(commands, lock)
        except KeyboardInterrupt:
            write_results(described, trials)
            print(f"stopped; the same command resumes: lightning-s2s ablate {study}", file=sys.stderr)
            raise
        problems = write_results(described, trials, map(str, failures))
    print((described.output_dir / TABLE).read_text(encoding="utf-8"))
    print(f"{described.output_dir / TABLE}; curves and HParams: tensorboard --logdir {described.output_dir}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def check_options(commands: Sequence[StepCommand]) -> None:
    """Check that every command's options can be parsed, before the first command runs.

    Raises:
        CommandError: They can't; the message begins with variant, seed and step.
    """
    for command in commands:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                call([*command.arguments, "--print_config"])
        except CommandError as error:
            raise CommandError(f"{command.label}: {error}") from None
