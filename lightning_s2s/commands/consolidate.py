"""`lightning-s2s consolidate`: a run's checkpoint, of one process or of many, as an ordinary model folder."""

from __future__ import annotations

import functools
from pathlib import Path

from lightning_s2s.support.files import make_folder


def consolidate(run: Path, out: Path, *, best: bool = False, trust_sources: bool = False) -> None:
    """Write a run's checkpoint, of one process or of many, as an ordinary model folder.

    Args:
        run: Folder of a run, or a checkpoint of it.
        out: Folder to write; must be new or empty.
        best: Take the weights that validated best instead of the last ones.
        trust_sources: Also load what the checkpoint names outside of itself (hub ids, URLs, files), and run code where
            it says so.

    Raises:
        ValueError: There is no such checkpoint, it can't be read, or `out` is taken.
    """
    from lightning_s2s.checkpoints.model_folder import save_model
    from lightning_s2s.checkpoints.sources import find_checkpoint, open_model

    checkpoint = find_checkpoint(run, "best.ckpt" if best else "last.ckpt")
    model = open_model(checkpoint, trust_sources)
    make_folder(out, functools.partial(save_model, model))
    print(f"{out}: model folder, from {checkpoint}")
