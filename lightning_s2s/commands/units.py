"""`lightning-s2s units`: speech units for the audio of a manifest, by any vocoder's tokenizer."""

from __future__ import annotations

from jsonargparse import ActionConfigFile

from lightning_s2s.commands.devices import DEVICE_HELP, find_device
from lightning_s2s.commands.messages import CommandError, check_configs
from lightning_s2s.commands.settings import SettingsParser
from lightning_s2s.components.registry import REGISTRY

ROLES = ("user", "assistant")


def build_parser() -> SettingsParser:
    """The options of `lightning-s2s units`."""
    from typing import Literal

    from lightning_s2s.components.contracts import Vocoder

    REGISTRY.load()
    parser = SettingsParser(
        prog="lightning-s2s units",
        description="Add `speech_units` to a manifest's audio. A run that was stopped goes on when it is repeated.",
        usage="lightning-s2s units --vocoder NAME [--vocoder.OPTION VALUE ...] [options] MANIFEST_IN MANIFEST_OUT",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML with the options below")
    parser.add_subclass_arguments(Vocoder, "vocoder", required=True)
    parser.add_argument("manifest_in", type=str, help="JSONL of dialogues with audio, plain or .gz")
    parser.add_argument("manifest_out", type=str, help="the same rows with units; must not exist yet")
    parser.add_argument(
        "--roles", type=list[str], default=["assistant"], help="whose audio gets units: [user, assistant]"
    )
    parser.add_argument(
        "--on-error",
        "--on_error",
        type=Literal["raise", "skip"],
        default="raise",
        help="at a broken row: stop, or leave it out",
    )
    parser.add_argument("--redo", type=bool, default=False, help="make units anew where a row has some")
    parser.add_argument("--device", type=str, default="auto", help=DEVICE_HELP)
    parser.add_argument("--batch_duration_sec", type=float, default=120.0, help="audio in a batch, padding counted")
    parser.add_argument("--max_batch_size", type=int, default=64, help="clips in a batch")
    return parser


def run(name: str, arguments: list[str]) -> int:
    """Build the vocoder, tokenise, and say what was done.

    Raises:
        CommandError: a mistake in the options.
        ValueError: a manifest or the vocoder can't be read, or a row is broken.
    """
    check_configs(arguments)
    parser = build_parser()
    options = parser.parse_args(arguments)
    if wrong := [role for role in options.roles if role not in ROLES]:
        raise CommandError(f"--roles: got {wrong[0]!r}; allowed: {', '.join(ROLES)}")
    if not options.roles:
        raise CommandError(f"--roles: is empty; allowed: {', '.join(ROLES)}")

    from lightning_s2s.construction.units import add_units

    place = find_device(options.device)
    settings = options.vocoder.as_dict()
    vocoder = parser.instantiate(options).vocoder.eval().to(place)
    report = add_units(
        vocoder,
        options.manifest_in,
        options.manifest_out,
        settings=settings,
        roles=options.roles,
        on_error=options.on_error,
        redo=options.redo,
        batch_duration_sec=options.batch_duration_sec,
        max_batch_size=options.max_batch_size,
        show_progress=True,
    )
    print(f"{options.manifest_out}: {report.num_rows} rows, {report.num_clips} clips with new units")
    if report.num_resumed:
        print(f"{report.num_resumed} of them were made before the run was stopped")
    if report.num_kept:
        print(f"{report.num_kept} clips had units and keep them (--redo true makes them anew)")
    if report.problems:
        left_out = "; ".join(f"{count} x {reason}" for reason, count in sorted(report.problems.items()))
        print(f"{report.problems.total()} rows left out: {left_out}")
    return 0
