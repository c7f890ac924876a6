"""`lightning-s2s units`: speech units for the audio of a manifest, by any vocoder's tokenizer."""

from __future__ import annotations

from typing import Literal

from lightning_s2s.commands.messages import CommandError
from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.construction.units import add_units
from lightning_s2s.support.ranges import Count, Device, Positive, check_device
from lightning_s2s.support.wording import counted


def units(
    manifest_in: str,
    manifest_out: str,
    *,
    vocoder: Vocoder,
    roles: list[Literal["user", "assistant"]] = ["assistant"],  # noqa: B006 (the default is shown in the help)
    on_error: Literal["raise", "skip"] = "raise",
    redo: bool = False,
    device: Device = "auto",
    batch_duration_sec: Positive = 120.0,
    max_batch_size: Count = 64,
) -> None:
    """Add `speech_units` to a manifest's audio. A run that was stopped resumes when the command is repeated.

    Args:
        manifest_in: JSONL of dialogues with audio, plain or .gz.
        manifest_out: The same rows with units; must not exist yet.
        vocoder: The vocoder whose tokenizer makes the units.
        roles: Whose audio gets units.
        on_error: At a broken row stop, or leave it out.
        redo: Make units anew where a row has some.
        device: Where the vocoder runs: cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.
        batch_duration_sec: Seconds of audio in a batch, padding included.
        max_batch_size: Number of clips in a batch.

    Raises:
        ValueError: A manifest or the vocoder can't be read, or a row is broken.
    """
    if not roles:
        raise CommandError("--roles: is empty; allowed: user, assistant")
    vocoder = vocoder.eval().to(check_device(device, "--device"))
    report = add_units(
        vocoder,
        manifest_in,
        manifest_out,
        roles=roles,
        on_error=on_error,
        redo=redo,
        batch_duration_sec=batch_duration_sec,
        max_batch_size=max_batch_size,
        show_progress=True,
    )
    print(f"{manifest_out}: {report.num_rows} rows, {report.num_clips} clips with new units")
    if report.num_resumed:
        print(f"{report.num_resumed} of them were made before the run was stopped")
    if report.num_kept:
        print(f"{report.num_kept} clips had units and keep them (--redo makes them anew)")
    if report.problems:
        print(f"{report.problems.total()} rows left out: {counted(report.problems)}")
