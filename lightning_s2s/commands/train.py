"""`lightning-s2s fit` and `validate`: LightningCLI over the stages, with short names and one-line errors."""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_s2s import stages
from lightning_s2s.callbacks import LineProgress  # the import also lets YAML know the callbacks' short names
from lightning_s2s.commands.messages import CommandError, check_configs, explain
from lightning_s2s.commands.run_checkpoint import Received, RunCheckpoint, last_checkpoint
from lightning_s2s.commands.settings import values_stay_values
from lightning_s2s.data import SpeechDialogueData
from lightning_s2s.registry import REGISTRY
from lightning_s2s.stages.strategies import built_for

PARSER_MODE = {"parser_mode": "omegaconf+"}
"""`${...}` resolves after all configs and overrides are merged; needed by the main parser and each subcommand."""
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
    """

    def __init__(self, received: Received, *args: Any, **kwargs: Any):
        self.received = received
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
        if self.subcommand == "fit" and config.enable_checkpointing is not False:
            run_checkpoint = self._get(self.config_init, "checkpoint")
            run_checkpoint.received = self.received
            callbacks.append(run_checkpoint)
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if config.enable_progress_bar is not False and not has_bar and not sys.stdout.isatty():
            callbacks.append(LineProgress())
        config.callbacks = callbacks
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Tell checkpoints what they belong to, and turn `--resume` into the checkpoint to go on from."""
        self.model.configuration = yaml.safe_load(self._parser("fit").dump(self.config["fit"]))["model"]
        config = self.config_init["fit"]
        if not config.get("resume"):
            return
        if config.get("ckpt_path"):
            raise CommandError("--resume and --ckpt_path exclude each other: give one")
        last = last_checkpoint(self.trainer)
        if last.exists():
            rank_zero_info(f"resuming from {last}")
            config["ckpt_path"] = str(last)
            config["weights_only"] = bool(config.get("weights_only"))  # unset, Lightning says so at length
        else:
            rank_zero_info(f"{last} does not exist: starting afresh")


CLI = TypeVar("CLI", bound=StageCLI)


def run(name: str, arguments: list[str]) -> int:
    """Parse, build and run a stage.

    Raises:
        CommandError: a mistake in the options or the configuration.
    """
    received = Received()
    try:
        parse_stage(StageCLI, name, arguments, received)
    except SystemExit as end:
        if received.signal:
            return 128 + received.signal
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    return 0


def parse_stage(kind: type[CLI], name: str, arguments: list[str], received: Received | None = None) -> CLI:
    """Parse the command line of `fit` or `validate`; `kind` builds what it says, and runs it or not.

    Raises:
        CommandError: a mistake in the options or the configuration.
    """
    check_configs(arguments)
    REGISTRY.load()
    values_stay_values()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    return kind(
        received or Received(),
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


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()
