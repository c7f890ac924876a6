"""`--device`: where a command computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_s2s.commands.messages import CommandError

if TYPE_CHECKING:
    import torch

DEVICE_HELP = "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one"


def find_device(name: str) -> torch.device:
    """The device of that name, tried once.

    Raises:
        CommandError: there is none here, or torch knows no such kind.
    """
    from lightning_s2s.support.ranges import check_device

    try:
        return check_device(name, "--device")
    except ValueError as error:
        raise CommandError(str(error)) from error
