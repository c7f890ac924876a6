"""Training throughput: positions, audio and FLOPs per second, memory, and time spent waiting for data."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_s2s.components.contracts import Component, Vocoder


class Throughput(L.Callback):
    """Logs the throughput of the training every `log_every_n_steps` batches, summed over ranks.

    - `throughput/tokens_per_sec`: positions of the LLM, text and audio, without padding; `.../text_tokens_per_sec` and
      `.../audio_positions_per_sec`: each of the two alone; `.../decoder_positions_per_sec`: conditions and units that
      the speech decoder reads.
    - `throughput/audio_sec_per_sec`: seconds of questions and, in units, of replies.
    - `throughput/steps_per_sec`: batches of one rank.
    - `throughput/mfu`: model FLOPs utilisation (Chowdhery et al., arXiv:2204.02311, App. B), the share of the devices'
      peak. Recomputation for activation checkpointing is not counted, padding is.
    - `throughput/data_wait_share`: share of the time in which the training waits for its next batch.
    - `throughput/memory_gib`: peak memory of the rank that uses most: of its GPU since the last log, or of its process
      so far.

    Validation is not counted. FLOPs are counted where layers run: 2 per weight and position in the forward pass, 2 more
    if gradients pass through, 2 more if the weight is trained, and the products of attention.

    Args:
        peak_flops: Peak FLOPs per second of one device; None takes the bfloat16 peak that Lightning knows for the GPU.
            Without it, as on a CPU, `mfu` is not logged.

    Raises:
        ValueError: `peak_flops` is not positive.
    """

    def __init__(self, peak_flops: float | None = None):
        super().__init__()
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"peak_flops: got {peak_flops}; must be positive")
        self.peak_flops = peak_flops
        self._hooks: list[RemovableHandle] = []
        self._counting = False
        self._restart()

    def _restart(self) -> None:
        self._counts: Counter[str] = Counter()
        self._batches, self._elapsed_sec = 0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.peak_flops is None and trainer.strategy.root_device.type == "cuda":
            self.peak_flops = get_available_flops(trainer.strategy.root_device, torch.bfloat16)
        model: Any = pl_module.model
        self._hook(model)
        self._restart()
        self._waited_sec = _waited_sec(trainer)
        self._mark = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._counting = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._counting = False
        self._count_audio(pl_module.model, batch)
        self._batches += 1
        due = self._batches == trainer.log_every_n_steps  # type: ignore[attr-defined]
        if due and trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # kernels run asynchronously
        now = time.perf_counter()
        self._elapsed_sec, self._mark = self._elapsed_sec + now - self._mark, now
        if due:
            self._log(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._counting = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    # --- counting -----------------------------------------------------------------------------------------------------

    def _hook(self, model: nn.Module) -> None:
        """Register hooks that count. A block is counted as a whole, since its inside may be compiled."""
        inside: set[nn.Module] = set()
        for component in model.children():
            if isinstance(component, Vocoder):
                inside.update(component.modules())
            elif isinstance(component, Component):
                for block in component.blocks():
                    inside.update(block.modules())
                    self._hooks.append(block.register_forward_hook(self._count_block, with_kwargs=True))
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d) and module not in inside:
                self._hooks.append(module.register_forward_hook(self._count_layer))
        for name, count in (("llm", self._count_llm), ("speech_decoder", self._count_decoder)):
            if (part := getattr(model, name, None)) is not None:
                self._hooks.append(part.register_forward_pre_hook(count, with_kwargs=True))

    def _count_block(self, block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self._counting:
            hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            batch, length, width = hidden.shape
            matrices = [parameter for parameter in block.parameters() if parameter.dim() > 1]
            passes = hidden.requires_grad
            self._counts["flops"] += batch * length * sum(_per_position(matrix, passes) for matrix in matrices)
            backwards = passes or any(matrix.requires_grad for matrix in matrices)
            self._counts["flops"] += (3 if backwards else 1) * 4 * batch * length**2 * width

    def _count_layer(self, layer: nn.Linear | nn.Conv1d, args: tuple, output: Tensor) -> None:
        if self._counting:
            positions = output.numel() // (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
            self._counts["flops"] += positions * _per_position(layer.weight, args[0].requires_grad)

    def _count_llm(self, llm: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._counting:
            self._counts["tokens"] += (args[1] if len(args) > 1 else kwargs["attention_mask"]).sum()

    def _count_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._counting:
            _, condition_lengths, _, unit_lengths, _ = args
            self._counts["decoder_positions"] += condition_lengths.sum() + unit_lengths.sum()

    def _count_audio(self, model: Any, batch: Any) -> None:
        clips, units = batch.waveform_lengths, batch.unit_lengths
        self._counts["text_tokens"] += batch.input_lengths.sum() - len(clips)
        if model.encoder is not None:
            self._counts["audio_sec"] += clips.sum() / model.encoder.sample_rate
        if model.vocoder is not None and model.speech_decoder is not None:
            self._counts["audio_sec"] += units.sum() / model.vocoder.unit_rate_hz

    # --- logging ------------------------------------------------------------------------------------------------------

    def _log(self, trainer: L.Trainer) -> None:
        device, reduce = trainer.strategy.root_device, trainer.strategy.reduce
        names = ("tokens", "text_tokens", "decoder_positions", "audio_sec", "flops")
        sums = torch.tensor([float(self._counts[name]) for name in names], dtype=torch.float64)
        rates = sums.to(device, torch.float32 if device.type == "mps" else torch.float64) / self._elapsed_sec
        found = dict(zip(names, reduce(rates, reduce_op="sum").tolist(), strict=True))
        metrics = {f"{name}_per_sec": found[name] for name in names[1:4]}
        if found["tokens"]:  # the LLM ran
            metrics["tokens_per_sec"] = found["tokens"]
            metrics["audio_positions_per_sec"] = found["tokens"] - found["text_tokens"]
        if self.peak_flops:
            metrics["mfu"] = found["flops"] / (self.peak_flops * trainer.world_size)
        metrics["steps_per_sec"] = self._batches / self._elapsed_sec
        waited = _waited_sec(trainer)
        own = torch.tensor([(waited - self._waited_sec) / self._elapsed_sec, _memory_gib(device)], device=device)
        metrics["data_wait_share"], metrics["memory_gib"] = reduce(own, reduce_op="max").tolist()
        for logger in trainer.loggers:
            logger.log_metrics({f"throughput/{name}": value for name, value in metrics.items()}, trainer.global_step)
        self._waited_sec = waited
        self._restart()


def _per_position(weight: Tensor, gradients_pass: bool) -> int:
    """FLOPs of a matrix for one position, forward and backward."""
    return weight.numel() * (2 + 2 * gradients_pass + 2 * weight.requires_grad)


def _waited_sec(trainer: L.Trainer) -> float:
    """Seconds that the training has waited for batches; 0 if the loader does not measure them."""
    return getattr(trainer.train_dataloader, "waited_sec", 0.0)


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most / 2**30
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)
