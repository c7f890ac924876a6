"""`lightning-s2s plan`: a stage's parameters, and the memory that its training would take, before it is trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning_s2s.commands.fit import StageCLI, parse_stage
from lightning_s2s.commands.messages import CommandError
from lightning_s2s.components.weights import without_weights
from lightning_s2s.scale.memory_plan import (
    OVERHEAD_BYTES,
    STRATEGIES,
    ComponentSize,
    MemoryPlan,
    batch_bytes,
    component_sizes,
    estimate,
)
from lightning_s2s.scale.strategies import is_fsdp2
from lightning_s2s.support.ranges import Count, Positive

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
        """Nothing is left to do once the stage is built."""


def plan(
    *options: str,
    gpus: Count | None = None,
    strategy: Literal["one", "ddp", "fsdp2"] | None = None,
    memory: Positive = 80.0,
    json_: Path | None = None,
) -> None:
    """Estimate a stage's parameters, and the memory that its training would take, before it is trained.

    All other options are those of `fit`.

    Args:
        options: Of `fit`.
        gpus: Number of GPUs that share the training; by default the configuration's, or 1 to 16.
        strategy: Show this strategy alone.
        memory: Memory of a GPU in GB (10^9 bytes).
        json_: File for the figures, in bytes.

    Raises:
        CommandError: A mistake in the options or the configuration.
    """
    if strategy == "one" and gpus not in (None, 1):
        raise CommandError(f"--gpus: got {gpus}; --strategy one trains on 1")
    cli = parse_stage(PlanCLI, "fit", options)
    if not hasattr(cli.model, "model"):
        raise ValueError(f"plan: {type(cli.model).__name__} trains no speech-to-speech model; only such are planned")
    precision = str(cli.trainer_config.get("precision") or "32-true")
    components = component_sizes(cli.model, precision, cli.recomputed)
    activations = batch_bytes(cli.model, components, cli.datamodule.batch_duration_sec, precision)
    asked = configured_gpus(cli.trainer_config) if gpus is None else gpus
    plans = [
        estimate(components, activations, each, number, precision)
        for each in ([strategy] if strategy else STRATEGIES)
        for number in ([asked] if asked else GPUS)
        if (number == 1) == (each == "one") or (strategy and each != "one")
    ]
    configured = "fsdp2" if is_fsdp2(cli.trainer_config.get("strategy")) else cli.trainer_config.get("strategy")
    print(f"precision {precision}, strategy {configured}, batches of {cli.datamodule.batch_duration_sec:g} s")
    print(page(components, plans, memory * 1e9))
    if json_:
        content = {
            "precision": precision,
            "components": [{**asdict(c), "parameters": c.parameters, "trained": c.trained} for c in components],
            "plans": [{**asdict(plan), "total": plan.total} for plan in plans],
        }
        json_.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def configured_gpus(trainer: Any) -> int | None:
    """The number of GPUs that a trainer's configuration asks for; None where it leaves that to the machine."""
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
