"""How near the figures of `lightning-s2s plan` come to what training takes, on CPU.

    python benchmarks/memory_plan.py [--steps 3] [--duration 60] [--runs 'one ddp:2 fsdp2:2']

Trains a stage 1 with a random LLM of 27M parameters on the tiny corpus, once with the LLM trained and once with it
frozen, in processes of their own. `states` is what stays after a step: weights, gradients and the optimiser's moments.
`peak` is the highest resident memory of the first process in a step after the first. What code and data take beside the
model is measured by the same run with an LLM of one small layer: the figures are differences between the two runs, of
what was measured and of what was estimated. A ratio is measured / estimated; 1 is exact. The estimated activations are
those of the largest batch that `--duration` allows; `peak` also holds what a backward pass computes in passing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning as L
import torch

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.weights import without_weights
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.evaluation.hardware import describe_hardware
from lightning_s2s.scale.memory_plan import batch_bytes, component_sizes, estimate
from lightning_s2s.scale.strategies import weights_on_rank_zero
from lightning_s2s.stages import SpeechUnderstandingPretraining
from lightning_s2s.stages.optim import OptimizerOptions

TINY = Path(__file__).parents[1] / "experiments" / "tiny"
LLM = {
    "model_type": "qwen3", "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 1536, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
         "intermediate_size": 64}  # fmt: skip
FROZEN = {"LLM trained": ["encoder.*"], "LLM frozen": ["encoder.*", "llm.*"]}


def build(kind: str, small: bool) -> SpeechUnderstandingPretraining:
    """The stage, with random weights."""
    torch.manual_seed(0)
    llm = CausalLanguageModel(config=LLM | (SMALL if small else {}), tokenizer=str(TINY / "language_model"))
    return SpeechUnderstandingPretraining(
        llm=llm,
        encoder=MelEncoder(),
        adapter=ConvAdapter(),
        freeze=FROZEN[kind],
        optimizer=OptimizerOptions(warmup_steps=1),
    )


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process; `VmHWM` is the highest since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{field}: not in /proc/self/status; Linux is needed")


def forget_peak() -> None:
    """Give back what the allocator keeps, and let `VmHWM` start again."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


class Memory(L.Callback):
    """What stays after the last step, and the peak of the steps after the first, which makes the optimiser's state."""

    states = peak = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx:
            self.peak = max(self.peak, resident("VmHWM"))
        del outputs, batch
        forget_peak()
        self.states = resident()


def train(options: argparse.Namespace) -> None:
    """One run, in this process and those that its strategy starts."""
    torch.set_num_threads(1)
    strategy, _, processes = options.train.partition(":")
    with weights_on_rank_zero(strategy):
        stage = build(options.kind, options.small)
    memory = Memory()
    trainer = L.Trainer(
        accelerator="cpu", devices=int(processes or 1), strategy="auto" if strategy == "one" else strategy,
        max_steps=options.steps, callbacks=[memory], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=options.out,
        fast_dev_run=options.steps,
    )  # fmt: skip
    manifest = str(TINY / "corpus" / "understanding_train.jsonl.gz")
    trainer.fit(stage, SpeechDialogueData(train=manifest, batch_duration_sec=options.duration))
    if trainer.is_global_zero:
        figures = {"states": memory.states, "peak": memory.peak}
        (Path(options.out) / "memory.json").write_text(json.dumps(figures))


def measure(kind: str, run: str, small: bool, options: argparse.Namespace) -> dict[str, int]:
    """`states` and `peak` of a run in a process of its own, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--train", run, "--kind", kind, "--out", folder]
        command += ["--steps", str(options.steps), "--duration", str(options.duration)]
        command += ["--small"] if small else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{kind}, {run}: {done.stderr[-2000:]}")
        return json.loads((Path(folder) / "memory.json").read_text())


def plan(kind: str, run: str, small: bool, duration: float) -> dict[str, float]:
    """`states` and `peak` as estimated, in bytes."""
    with without_weights():
        stage = build(kind, small)
    components = component_sizes(stage, "32-true")
    activations = batch_bytes(stage, components, duration, "32-true")
    strategy, _, processes = run.partition(":")
    plan = estimate(components, activations, strategy, int(processes or 1), "32-true")
    return {"states": plan.weights + plan.gradients + plan.optimiser, "peak": plan.total - plan.overhead}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--runs", default="one ddp:2 fsdp2:2")
    for inner in ("--train", "--kind", "--out"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options)
        return
    for label, fact in describe_hardware().items():
        print(f"{label}: {fact}")
    print(f"{'':<26}{'states':>30}{'peak':>30}\n{'MB':<26}" + 2 * f"{'measured':>10}{'estimated':>11}{'ratio':>9}")
    for kind in FROZEN:
        for run in options.runs.split():
            large, little = (plan(kind, run, small, options.duration) for small in (False, True))
            estimated = {name: large[name] - little[name] for name in large}
            large, little = (measure(kind, run, small, options) for small in (False, True))
            measured = {name: large[name] - little[name] for name in large}
            figures = "".join(
                f"{measured[name] / 1e6:>10.0f}{estimated[name] / 1e6:>11.0f}{measured[name] / estimated[name]:>9.2f}"
                for name in ("states", "peak")
            )
            print(f"{kind + ', ' + run:<26}{figures}", flush=True)


if __name__ == "__main__":
    main()
