"""`lightning-s2s plan`: a stage's parameters, and the memory that its training would take, before it is trained."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from lightning_s2s.commands.fit import StageCLI, parse_stage
from lightning_s2s.commands.messages import CommandError, OneLineParser, a_path
from lightning_s2s.components.weights import without_weights
from lightning_s2s.scale.memory_plan import (
    OVERHEAD_BYTES,
    STRATEGIES,
    ComponentSize,
    MemoryPlan,
    batch_bytes,
    describe,
    estimate,
)
from lightning_s2s.scale.strategies import is_fsdp2

GPUS = (1, 2, 4, 8, 16)
COLUMNS = ("weights", "gradients", "optimiser", "gathered", "activations", "total")


class PlanCLI(StageCLI):
    """Parses what `fit` parses and builds the stage without weights; nothing is trained, no trainer is made."""

    def instantiate_classes(self) -> None:
        arguments = self.config["fit"]["model"]["init_args"]
        arguments["init_from"] = None  # it changes no shape, and need not exist yet
        self.recomputed = (arguments.get("scaling") or {}).get("activation_checkpointing") or []
        trainer = self.config["fit"]["trainer"]
        self.trainer_config = trainer.clone()
        # Loggers, callbacks and strategies may ask for hardware that this machine lacks.
        for option, unset in (("logger", None), ("callbacks", None), ("plugins", None), ("strategy", "auto")):
            trainer[option] = unset
        with without_weights():
            self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule, self.model = self._get(self.config_init, "data"), self._get(self.config_init, "model")

    def _run_subcommand(self, subcommand: str) -> None:
        """Building it was all."""


def build_parser() -> argparse.ArgumentParser:
    """The command's own options; all others are those of `fit`."""
    parser = OneLineParser("lightning-s2s plan", description=__doc__, epilog="All other options are those of fit.")
    parser.add_argument(
        "--gpus", type=int, help="how many share the training; default: the configuration's, or 1 to 16"
    )
    parser.add_argument("--strategy", choices=STRATEGIES, help="one of them; default: all")
    parser.add_argument("--memory", type=float, default=80.0, help="of a GPU, in GB (10^9 bytes); default 80")
    parser.add_argument("--json", type=a_path, help="write the figures, in bytes, to this file")
    return parser


def run(name: str, arguments: list[str]) -> int:
    """Print the plan.

    Raises:
        CommandError: a mistake in the options or the configuration.
    """
    options, rest = build_parser().parse_known_args(arguments)
    if options.gpus is not None and options.gpus < 1:
        raise CommandError(f"--gpus: got {options.gpus}; at least 1 is needed")
    if options.memory <= 0:
        raise CommandError(f"--memory: got {options.memory}; a positive number of GB is needed")
    if options.strategy == "one" and options.gpus not in (None, 1):
        raise CommandError(f"--gpus: got {options.gpus}; --strategy one trains on 1")
    cli = parse_stage(PlanCLI, "fit", rest)
    if not hasattr(cli.model, "model"):
        raise ValueError(f"plan: {type(cli.model).__name__} trains no speech-to-speech model; only such are planned")
    precision = str(cli.trainer_config.get("precision") or "32-true")
    components = describe(cli.model, precision, cli.recomputed)
    activations = batch_bytes(cli.model, components, cli.datamodule.batch_duration_sec, precision)
    asked = configured_gpus(cli.trainer_config) if options.gpus is None else options.gpus
    plans = [
        estimate(components, activations, strategy, gpus, precision)
        for strategy in ([options.strategy] if options.strategy else STRATEGIES)
        for gpus in ([asked] if asked else GPUS)
        if (gpus == 1) == (strategy == "one") or (options.strategy and strategy != "one")
    ]
    configured = "fsdp2" if is_fsdp2(cli.trainer_config.get("strategy")) else cli.trainer_config.get("strategy")
    print(f"precision {precision}, strategy {configured}, batches of {cli.datamodule.batch_duration_sec:g} s")
    print(page(components, plans, options.memory * 1e9))
    if options.json:
        content = {
            "precision": precision,
            "components": [{**asdict(c), "parameters": c.parameters, "trained": c.trained} for c in components],
            "plans": [{**asdict(plan), "total": plan.total} for plan in plans],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def configured_gpus(trainer: Any) -> int | None:
    """Of a trainer's configuration; None where it leaves their number to the machine."""
    devices, nodes = trainer.get("devices"), int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list):
        return len(devices) * nodes
    if str(devices).isdigit() and int(devices) > 0:
        return int(devices) * nodes
    return None


def page(components: list[ComponentSize], plans: list[MemoryPlan], memory: float) -> str:
    """Two tables in plain text: components, and GB on each GPU."""
    lines = [f"{'component':<16}{'class':<28}{'parameters':>16}{'trained':>16}  weights"]
    for part in components:
        lines.append(f"{part.name:<16}{part.kind:<28}{part.parameters:>16,}{part.trained:>16,}  {part.dtype}")
    parameters, trained = sum(c.parameters for c in components), sum(c.trained for c in components)
    lines.append(f"{'all':<44}{parameters:>16,}{trained:>16,}")
    lines += ["", f"GB on each GPU, of {memory / 1e9:g}:"]
    lines.append(f"{'strategy':<10}{'GPUs':>4}" + "".join(f"{column:>13}" for column in COLUMNS) + "  fits")
    for plan in plans:
        figures = "".join(f"{getattr(plan, column) / 1e9:>13.2f}" for column in COLUMNS)
        lines.append(f"{plan.strategy:<10}{plan.gpus:>4}{figures}  {'yes' if plan.total <= memory else 'no'}")
    lines += ["", f"The total includes {OVERHEAD_BYTES / 1e9:g} GB for CUDA's context and the allocator. These are"]
    lines.append("estimates for the largest batch; docs/scale.md says what they leave out.")
    return "\n".join(lines)
