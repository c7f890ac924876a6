"""`--device`: where a command computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_s2s.commands.messages import CommandError, one_line

if TYPE_CHECKING:
    import torch

DEVICE_HELP = "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one"


def find_device(name: str) -> torch.device:
    """The device of that name, tried once.

    Raises:
        CommandError: there is none here, or torch knows no such kind.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CommandError(f"--device: got {name!r}; allowed: auto, cpu, cuda, cuda:0, ...") from None
    if device.type == "meta":
        raise CommandError("--device: got 'meta', which holds no numbers; allowed: auto, cpu, cuda, cuda:0, ...")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # each kind has its own
        raise CommandError(
            f"--device {name}: can't be used here ({one_line(str(error).partition(chr(10))[0])})"
        ) from None
    return device
