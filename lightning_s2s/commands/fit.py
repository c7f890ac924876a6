"""`lightning-s2s fit` and `validate`: LightningCLI over the stages, with short names and one-line errors."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_s2s import stages
from lightning_s2s.callbacks import LineProgress  # the import also lets YAML know the callbacks' short names
from lightning_s2s.commands.messages import CommandError, Names, check_words
from lightning_s2s.commands.parser import OneLineErrors, restrict_parsing
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.scale.interrupts import RestoreHandlers, StopSignal
from lightning_s2s.scale.resume import check_resume, check_validate, options_to_record
from lightning_s2s.scale.run_checkpoint import AtomicCheckpointIO, RunCheckpoint, last_checkpoint
from lightning_s2s.scale.strategies import weights_on_rank_zero
from lightning_s2s.support.files import NO_SPACE, remove_leftovers
from lightning_s2s.support.locks import holding
from lightning_s2s.support.reading import one_line

PARSER_MODE = {"parser_mode": "omegaconf+"}
"""`${...}` resolves after all configs and overrides are merged; needed by the main parser and each subcommand."""
Hold = Callable[[AbstractContextManager[Any]], Any]
LIGHTNINGS_CHECKPOINTS = ("best", "last", "hpc")
"""Values of `--ckpt_path` that are no paths: Lightning finds the checkpoints of its own callbacks."""
STAGE_WITH_ALL_SLOTS = "EmpatheticInstructionTuning"


class StageParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with the errors of all commands; it knows the short names of stages and callbacks."""

    @property
    def names(self) -> Names:  # type: ignore[override]
        return {"model": ("stage", stages.__all__), "callbacks": ("callback", _short_names(Callback))}


def _short_names(base: type) -> Iterable[str]:
    subclass: type
    for subclass in base.__subclasses__():
        if not subclass.__module__.startswith(__name__):
            yield subclass.__name__
        yield from _short_names(subclass)


class StageCLI(LightningCLI):
    """LightningCLI that takes its whole configuration from YAML and options, also when a checkpoint is given.

    Args:
        stop_signal: The signal that stops the run, and its handlers.
        hold: Enters a context that lasts until the process is done with the run, such as the lock on its folder.

    Attributes:
        source: The checkpoint that is resumed or validated.
    """

    def __init__(
        self, stop_signal: StopSignal, hold: Callable[[AbstractContextManager[Any]], Any], *args: Any, **kwargs: Any
    ):
        self.stop_signal, self.hold = stop_signal, hold
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
                help="resume from DEFAULT_ROOT_DIR/checkpoints/last.ckpt if it exists, else start afresh",
            )
            parser.add_class_arguments(RunCheckpoint, "checkpoint")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration as given: LightningCLI would replace it by the checkpoint's."""

    def instantiate_classes(self) -> None:
        """Build everything; where the strategy shards, only the first process loads weights, and sends them."""
        with weights_on_rank_zero(self._get(self.config, "trainer").strategy):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that logs into DEFAULT_ROOT_DIR/logs unless the YAML says otherwise, and keeps itself resumable.

        Where the output is no terminal, progress is shown by lines instead of a bar.
        """
        config = self._get(self.config_init, "trainer")
        root = Path(config.default_root_dir or ".")
        if config.logger in (None, True):
            version = "logs" if self.subcommand == "fit" else "validate_logs"
            kwargs["logger"] = TensorBoardLogger(root, name="", version=version)
        given = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        callbacks = [callback for callback in given if callback is not None]
        callbacks.append(RestoreHandlers(self.stop_signal))
        if self.subcommand == "fit" and config.enable_checkpointing is not False:
            run_checkpoint = self._get(self.config_init, "checkpoint")
            run_checkpoint.stop_signal = self.stop_signal
            callbacks.append(run_checkpoint)
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if config.enable_progress_bar is not False and not has_bar and not sys.stdout.isatty():
            callbacks.append(LineProgress())
        config.callbacks = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Lock the folder, give the options to checkpoints, and check that the given checkpoint can resume."""
        root = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            self.hold(holding(root, "another run"))
            for folder in [root, *(place for place in root.iterdir() if place.is_dir())]:
                remove_leftovers(folder)
        self.model.configuration = yaml.safe_load(self._parser("fit").dump(self.config["fit"]))["model"]
        options = options_to_record(self._all_options())
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
                callback.resets_best = resumed.resets_best
            rank_zero_info(f"resuming from {self.source}")

    def before_validate(self) -> None:
        """Check that the checkpoint belongs to this stage and these components."""
        self.source = self._given_checkpoint()
        if self.source is not None:
            check_validate(self.source, options_to_record(self._all_options()))

    def _all_options(self) -> dict[str, Any]:
        parser, name = self._parser(self.subcommand), str(self.subcommand)
        return yaml.safe_load(parser.dump(self.config[name], skip_none=False))

    def _checkpoint_to_resume(self) -> Path | None:
        """The checkpoint that `--resume` or `--ckpt_path` means; Lightning is told, too."""
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
    """Whether an error comes from the content of a checkpoint, which Lightning and torch read without checking it."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(Path(frame.f_code.co_filename).name == "checkpoint_connector.py" for frame, _ in frames)


CLI = TypeVar("CLI", bound=StageCLI)


def fit(*options: str) -> int:
    """Train one stage.

    Args:
        options: Of LightningCLI, such as `--config YAML`.

    Returns:
        The exit status.

    Raises:
        CommandError: A mistake in the options or the configuration, or a signal ended the run at once.
    """
    return _run("fit", options)


def validate(*options: str) -> int:
    """Validate a stage; see `fit`."""
    return _run("validate", options)


def _run(name: str, options: Sequence[str]) -> int:
    stop_signal = StopSignal() if name == "fit" else StopSignal("")
    with stop_signal.handling(), ExitStack() as held:
        try:
            parse_stage(StageCLI, name, options, stop_signal, held.enter_context)
        except KeyboardInterrupt:
            if not stop_signal.signal:
                raise
        except SystemExit as end:  # Lightning's, after a KeyboardInterrupt
            if not stop_signal.signal:
                return end.code if isinstance(end.code, int) else int(end.code is not None)
        else:
            return 0
        if stop_signal.reported:
            return stop_signal.status
        raise CommandError(stop_signal.message, stop_signal.status)


def parse_stage(
    kind: type[CLI],
    name: str,
    arguments: Sequence[str],
    stop_signal: StopSignal | None = None,
    hold: Hold | None = None,
) -> CLI:
    """Parse the command line of `fit` or `validate`; `kind` builds what it describes, and may run it.

    Raises:
        CommandError: A mistake in the options or the configuration.
    """
    if arguments and not arguments[0].startswith("-"):
        raise CommandError(f"unexpected argument {arguments[0]!r}; a YAML is given by --config YAML")
    check_words(arguments)
    REGISTRY.load()
    restrict_parsing()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_a_line)
    return kind(
        stop_signal or StopSignal(),
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


def with_stage_for_help(arguments: Sequence[str]) -> list[str]:
    """Without a stage, `--model.encoder.help whisper` would be unknown: take the stage that has all slots."""
    given = {argument.partition("=")[0] for argument in arguments}
    asks = any(re.fullmatch(r"--model\.\w+\.help", argument) for argument in given)
    if not asks or given & {"--config", "-c", "--model"}:
        return [*arguments]
    return ["--model", STAGE_WITH_ALL_SLOTS, *arguments]


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Leaves out advertisements, and what Lightning says about signals: this command reports them itself."""
    message = record.getMessage()
    return "Tip: For seamless" not in message and "Detected KeyboardInterrupt" not in message
