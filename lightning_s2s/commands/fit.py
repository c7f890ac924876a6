"""`lightning-s2s fit` and `validate`: LightningCLI over the stages, with short names and one-line errors."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_s2s import stages
from lightning_s2s.callbacks import LineProgress  # the import also lets YAML know the callbacks' short names
from lightning_s2s.commands.messages import CommandError, check_configs, explain, one_line, refuse_unknown_options
from lightning_s2s.commands.settings import values_stay_values
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.scale.interrupts import EndsAtOnce, Received
from lightning_s2s.scale.resume import check_resume, check_validate, options_of
from lightning_s2s.scale.run_checkpoint import RunCheckpoint, WholeFileIO, last_checkpoint
from lightning_s2s.scale.strategies import built_for
from lightning_s2s.support.files import NO_SPACE, remove_leftovers
from lightning_s2s.support.locks import holding

PARSER_MODE = {"parser_mode": "omegaconf+"}
"""`${...}` resolves after all configs and overrides are merged; needed by the main parser and each subcommand."""
Hold = Callable[[AbstractContextManager[Any]], Any]
LIGHTNINGS_CHECKPOINTS = ("best", "last", "hpc")
"""What `--ckpt_path` may say instead of a path: the checkpoints of Lightning's own callbacks, which it finds."""
STAGE_WITH_ALL_SLOTS = "EmpatheticInstructionTuning"


class StageParser(LightningArgumentParser):
    """Raises each mistake as one line with near names."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries alternatives with parsers of its own
            super().error(message, ex)
        names = {"model": ("stage", stages.__all__), "callbacks": ("callback", _short_names(Callback))}
        raise CommandError(explain(message, _all_options(self), names)) from ex


def _all_options(parser: Any) -> set[str]:
    """The options of a parser and of its subcommands."""
    options: set[str] = set()
    for action in parser._actions:
        options.update(action.option_strings)
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                options |= _all_options(subparser)
    return options


def _short_names(base: type) -> Iterable[str]:
    subclass: type
    for subclass in base.__subclasses__():
        if not subclass.__module__.startswith(__name__):
            yield subclass.__name__
        yield from _short_names(subclass)


class StageCLI(LightningCLI):
    """LightningCLI that takes its whole configuration from YAML and options, also when a checkpoint is given.

    Args:
        received: told of the signal that ends a run.
        hold: enters what lasts until the process is done with the run, such as the lock on its folder.

    Attributes:
        source: the checkpoint that it goes on from or measures.
    """

    def __init__(
        self, received: Received, hold: Callable[[AbstractContextManager[Any]], Any], *args: Any, **kwargs: Any
    ):
        self.received, self.hold = received, hold
        self.source: Path | None = None
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate")}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                "--resume",
                action="store_true",
                help="go on from DEFAULT_ROOT_DIR/checkpoints/last.ckpt if it exists, else start afresh",
            )
            parser.add_class_arguments(RunCheckpoint, "checkpoint")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        refuse_unknown_options(args, _all_options(parser))
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration as given: LightningCLI would replace it by the checkpoint's."""

    def instantiate_classes(self) -> None:
        """Build everything; where the strategy shards, with weights on the first process alone, which sends them."""
        with built_for(self._get(self.config, "trainer").strategy):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that logs into DEFAULT_ROOT_DIR/logs unless the YAML says otherwise, and keeps itself resumable.

        Where the output is no terminal, lines tell the progress, not a bar.
        """
        config = self._get(self.config_init, "trainer")
        root = Path(config.default_root_dir or ".")
        if config.logger in (None, True):
            version = "logs" if self.subcommand == "fit" else "validate_logs"
            kwargs["logger"] = TensorBoardLogger(root, name="", version=version)
        given = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        callbacks = [callback for callback in given if callback is not None]
        callbacks.append(EndsAtOnce(self.received))
        if self.subcommand == "fit" and config.enable_checkpointing is not False:
            run_checkpoint = self._get(self.config_init, "checkpoint")
            run_checkpoint.received = self.received
            callbacks.append(run_checkpoint)
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if config.enable_progress_bar is not False and not has_bar and not sys.stdout.isatty():
            callbacks.append(LineProgress())
        config.callbacks = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFileIO()
        return trainer

    def before_fit(self) -> None:
        """Take the folder, tell checkpoints what they belong to, and see that the run can go on from what is given."""
        root = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            self.hold(holding(root, "another run"))
            for folder in [root, *(place for place in root.iterdir() if place.is_dir())]:
                remove_leftovers(folder)
        self.model.configuration = yaml.safe_load(self._parser("fit").dump(self.config["fit"]))["model"]
        options = options_of(self._all_options())
        given: list[Callback] = self.config_init["fit"]["trainer"]["callbacks"]
        callbacks = [callback for callback in given if isinstance(callback, RunCheckpoint)]
        for callback in callbacks:
            callback.options = options
        self.source = self._checkpoint_to_resume()
        if self.source is not None:
            resumed = check_resume(self.source, options)
            for line in resumed.lines:
                rank_zero_info(line)
            for callback in callbacks:
                callback.chooses_anew = resumed.chooses_anew
            rank_zero_info(f"resuming from {self.source}")

    def before_validate(self) -> None:
        """See that the checkpoint is one of this stage and these components."""
        self.source = self._given_checkpoint()
        if self.source is not None:
            check_validate(self.source, options_of(self._all_options()))

    def _all_options(self) -> dict[str, Any]:
        parser, name = self._parser(self.subcommand), str(self.subcommand)
        return yaml.safe_load(parser.dump(self.config[name], skip_none=False))

    def _checkpoint_to_resume(self) -> Path | None:
        """What `--resume` or `--ckpt_path` means, told to Lightning, too."""
        given, config = self._given_checkpoint(), self.config_init["fit"]
        if not config.get("resume"):
            return given
        if config.get("ckpt_path"):
            raise CommandError("--resume and --ckpt_path exclude each other: give one")
        last = last_checkpoint(self.trainer)
        if not os.path.lexists(last):
            rank_zero_info(f"{last} does not exist: starting afresh")
            return None
        config["ckpt_path"] = str(last)
        return last

    def _given_checkpoint(self) -> Path | None:
        config = self.config_init[str(self.subcommand)]
        if config.get("weights_only") is False:
            raise CommandError("--weights_only false: checkpoints are never unpickled; leave it out")
        config["weights_only"] = True
        path = config.get("ckpt_path")
        if path in (None, *LIGHTNINGS_CHECKPOINTS):
            return None
        return Path(path)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE and error.filename is None:  # a logger's
                raise OSError(error.errno, NO_SPACE[error.errno], str(self.trainer.default_root_dir)) from None
            if self.source is None or not _while_restoring(error) or str(error).startswith(str(self.source)):
                raise
            raise ValueError(f"{self.source}: does not fit this run ({one_line(error)})") from None


def _while_restoring(error: Exception) -> bool:
    """Whether an error comes of what a checkpoint holds: Lightning and torch take it apart without looking."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(Path(frame.f_code.co_filename).name == "checkpoint_connector.py" for frame, _ in frames)


CLI = TypeVar("CLI", bound=StageCLI)


def run(name: str, arguments: list[str]) -> int:
    """Parse, build and run a stage.

    Raises:
        CommandError: a mistake in the options or the configuration, or a signal ended the run at once.
    """
    received = Received() if name == "fit" else Received("")
    with received.handling(), ExitStack() as held:
        try:
            parse_stage(StageCLI, name, arguments, received, held.enter_context)
        except KeyboardInterrupt:
            if not received.signal:
                raise
        except SystemExit as end:  # Lightning's, after a KeyboardInterrupt
            if not received.signal:
                return end.code if isinstance(end.code, int) else int(end.code is not None)
        else:
            return 0
        if received.told:
            return received.status
        raise CommandError(received.message, received.status)


def parse_stage(
    kind: type[CLI],
    name: str,
    arguments: list[str],
    received: Received | None = None,
    hold: Hold | None = None,
) -> CLI:
    """Parse the command line of `fit` or `validate`; `kind` builds what it says, and runs it or not.

    Raises:
        CommandError: a mistake in the options or the configuration.
    """
    if arguments and not arguments[0].startswith("-"):
        raise CommandError(f"unexpected argument {arguments[0]!r}; a YAML is given by --config YAML")
    check_configs(arguments)
    REGISTRY.load()
    values_stay_values()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_a_line)
    return kind(
        received or Received(),
        hold or ExitStack().enter_context,
        LightningModule,
        SpeechDialogueData,
        subclass_mode_model=True,
        parser_class=StageParser,
        parser_kwargs={"prog": "lightning-s2s", **PARSER_MODE, "fit": {**PARSER_MODE}, "validate": {**PARSER_MODE}},
        save_config_kwargs={"overwrite": True},
        seed_everything_default=1,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=[name, *with_stage_for_help(arguments)],
    )


def with_stage_for_help(arguments: list[str]) -> list[str]:
    """`--model.encoder.help whisper` needs a stage to be known at all: the one with all slots, when none is given."""
    given = {argument.partition("=")[0] for argument in arguments}
    asks = any(re.fullmatch(r"--model\.\w+\.help", argument) for argument in given)
    if not asks or given & {"--config", "-c", "--model"}:
        return arguments
    return ["--model", STAGE_WITH_ALL_SLOTS, *arguments]


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Advertisements are not; of a signal this command says itself what it did."""
    message = record.getMessage()
    return "Tip: For seamless" not in message and "Detected KeyboardInterrupt" not in message
