"""`lightning-s2s ablate`: the variants of a study, one table and figures."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_s2s.commands.messages import CommandError, OneLineParser, a_path

if TYPE_CHECKING:
    from lightning_s2s.studies.study import Command


def run(name: str, arguments: list[str]) -> int:
    """Run a study, or print its commands.

    Returns:
        0 when all is finished, 1 when a command failed or a measure is missing.

    Raises:
        CommandError: a mistake in the options, or in those that the study gives to its commands.
        ValueError: a mistake in the study.
    """
    parser = OneLineParser(prog=f"lightning-s2s {name}", description=__doc__)
    parser.add_argument(
        "study", metavar="STUDY", type=a_path, help="YAML, such as experiments/ablations/interleave.yaml"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, in order, and run nothing")
    options = parser.parse_args(arguments)

    from lightning_s2s.studies.reading import read_study
    from lightning_s2s.studies.study import commands_of, plan

    study = read_study(options.study)
    runs = plan(study)
    commands = commands_of(runs)
    first = commands_of(run for run in runs if run.seed == study.seeds[0])  # other seeds have the same options
    if options.dry_run:
        check_options(first)
        print("\n".join(map(str, commands)))
        return 0

    from lightning_s2s.reporting.study_report import write_results
    from lightning_s2s.studies.results import TABLE
    from lightning_s2s.studies.running import check_folders, is_finished, run_commands
    from lightning_s2s.support.locks import holding

    # A command that outlived a killed study inherited the lock, and its end is waited for.
    with holding(study.output_dir, "another call, or a step that it left behind,", wait=True) as held:
        check_folders(commands)
        check_options([command for command in first if not is_finished(command)])
        try:
            failures = run_commands(commands, held)
        except KeyboardInterrupt:
            write_results(study, runs)
            print(f"stopped; the same command goes on from there: lightning-s2s {name} {study.path}", file=sys.stderr)
            raise
        problems = write_results(study, runs, map(str, failures))
    print((study.output_dir / TABLE).read_text(encoding="utf-8"))
    print(f"{study.output_dir / TABLE}; curves and HParams: tensorboard --logdir {study.output_dir}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def check_options(commands: Sequence[Command]) -> None:
    """See that every command's options can be parsed, before the first is run.

    Raises:
        CommandError: one can't; the message begins with variant, seed and step.
    """
    from lightning_s2s.commands.evaluate import run as evaluate
    from lightning_s2s.commands.fit import run as fit

    for command in commands:
        name, *rest = command.arguments
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                (fit if name == "fit" else evaluate)(name, [*rest, "--print_config"])
        except CommandError as error:
            raise CommandError(f"{command.label}: {error}") from None
