"""`lightning-s2s consolidate`: a run's checkpoint, of one process or of many, as an ordinary model folder."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from lightning_s2s.commands.messages import OneLineParser, a_path
from lightning_s2s.commands.model_options import add_trust_option
from lightning_s2s.support.files import make_folder

if TYPE_CHECKING:
    import argparse


def build_parser() -> argparse.ArgumentParser:
    """The options of `lightning-s2s consolidate`."""
    parser = OneLineParser(prog="lightning-s2s consolidate", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=a_path, help="folder of a run, or a checkpoint of it")
    parser.add_argument("out", metavar="OUT", type=a_path, help="folder to write; new or empty")
    parser.add_argument("--best", action="store_true", help="the weights that validated best, not the last ones")
    add_trust_option(parser)
    return parser


def run(name: str, arguments: list[str]) -> int:
    """Write the model folder.

    Raises:
        CommandError: a mistake in the options.
        ValueError: there is no such checkpoint, it can't be read, or OUT is taken.
    """
    options = build_parser().parse_args(arguments)
    from lightning_s2s.checkpoints.model_folder import save_model
    from lightning_s2s.checkpoints.sources import find_checkpoint, open_model

    checkpoint = find_checkpoint(options.run, "best.ckpt" if options.best else "last.ckpt")
    model = open_model(checkpoint, options.trust_sources)
    make_folder(options.out, functools.partial(save_model, model))
    print(f"{options.out}: model folder, from {checkpoint}")
    return 0
