"""What the training stages share: the model's parts, freezing, hand-off, optimiser and the folder at the end."""

from __future__ import annotations

import contextlib
import fnmatch
import math
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from lightning_s2s.checkpoints.init_from import load_handoff
from lightning_s2s.checkpoints.lightning_checkpoint import MODEL_KEY
from lightning_s2s.checkpoints.model_folder import save_model
from lightning_s2s.checkpoints.stored import SLOTS, pack_parts
from lightning_s2s.components.base import checkpoint_activations, compile_blocks
from lightning_s2s.components.contracts import (
    Adapter,
    AudioEncoder,
    CtcLogits,
    LanguageModel,
    SpeechDecoder,
    UnitLogits,
    Vocoder,
    lengths_to_mask,
)
from lightning_s2s.components.ctc import collapse, edit_distances, frames_needed
from lightning_s2s.components.registry import UnregisteredError
from lightning_s2s.components.weights import is_sharded
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.model.speech_to_speech import ModelOutput, SpeechToSpeechModel
from lightning_s2s.scale.encoder_cache import EncoderCache
from lightning_s2s.scale.fsdp import gathered, shard, whole_norm
from lightning_s2s.scale.sharded_checkpoint import CONFIGURATION_KEY
from lightning_s2s.scale.strategies import mixed_precision, wrap_blocks
from lightning_s2s.support.ranges import Natural, NonNegative, Range, Share, checked


@checked
class Stage(L.LightningModule):
    """A training recipe around a SpeechToSpeechModel.

    Args:
        llm: the language model.
        encoder: speech -> hidden states.
        adapter: the encoder's hidden states -> the LLM's embeddings.
        speech_decoder: the LLM's hidden states -> units.
        vocoder: units -> waveform; never trained by a stage, and needed only to hear what the model says.
        init_from: where the weights come from: the folder or checkpoint of an earlier stage. Parts that it lacks stay
            as they were built.
        freeze: patterns of parameter names that are not trained, such as `llm.*`.
        lr: peak learning rate of AdamW.
        lr_scale: factors on `lr` for the parameters that a pattern matches.
        weight_decay: on matrices; vectors have none.
        warmup_steps: linear warm-up, then a cosine down to `min_lr_ratio` of the peak.
        min_lr_ratio: see `warmup_steps`.
        activation_checkpointing: components (`encoder`, `llm`, `speech_decoder`) whose layers are computed again in the
            backward pass instead of keeping their activations: less memory, more time, the same gradients.
        encoder_cache: folder that keeps what a wholly frozen encoder gives for each clip, so that it is computed once;
            see `lightning_s2s.scale.encoder_cache.EncoderCache`. None encodes in every epoch.
        compile: while training, run the Transformer layers of encoder, LLM and speech decoder through `torch.compile`,
            one by one, so that equal layers are compiled once.

    Raises:
        ValueError: parts don't fit, a pattern matches nothing, or nothing is left to train.

    Attributes:
        configuration: class path and arguments, stored in every checkpoint so that it can be opened alone.
        monitor: the metric of validation that says which weights are best.
    """

    configuration: dict[str, Any] | None = None
    monitor = "val/text_loss"

    def __init__(
        self,
        llm: LanguageModel,
        encoder: AudioEncoder | None = None,
        adapter: Adapter | None = None,
        speech_decoder: SpeechDecoder | None = None,
        vocoder: Vocoder | None = None,
        init_from: str | None = None,
        freeze: list[str] | None = None,
        lr: Annotated[float, Range(0, 100, above=True)] = 1e-4,
        lr_scale: dict[str, NonNegative] | None = None,
        weight_decay: NonNegative = 0.05,
        warmup_steps: Natural = 100,
        min_lr_ratio: Share = 0.1,
        activation_checkpointing: list[str] | None = None,
        encoder_cache: str | None = None,
        compile: bool = False,
    ):
        super().__init__()
        self.model = SpeechToSpeechModel(llm, encoder, adapter, speech_decoder, vocoder)
        if init_from is not None:
            rank_zero_info(load_handoff(self.model, init_from))
        self.lr, self.lr_scale, self.weight_decay = lr, dict(lr_scale or {}), weight_decay
        self.warmup_steps, self.min_lr_ratio = warmup_steps, min_lr_ratio
        self._gathered = contextlib.ExitStack()
        self._packed: dict[str, Any] | None = None
        if vocoder is not None:
            vocoder.requires_grad_(False)
        self._set_frozen(freeze or [])
        for name in activation_checkpointing or []:
            component = getattr(self.model, name, None) if name in SLOTS else None
            if component is None:
                present = [slot for slot in SLOTS if getattr(self.model, slot) is not None]
                raise ValueError(f"activation_checkpointing: got {name!r}; the model's parts are {', '.join(present)}")
            try:
                checkpoint_activations(component)
            except ValueError as error:
                raise ValueError(f"activation_checkpointing: {name}: {error}") from None
        if compile:
            for component in self.model.children():
                if component is not vocoder:
                    compile_blocks(component)
        self.encoder_cache = None if encoder_cache is None else self._frozen_encoder_cache(encoder_cache)

    def _leave_idle(self, condition: str) -> None:
        """Freeze what the speech decoder has no use for here: DDP waits for the gradient of everything else."""
        for part in self.model.speech_decoder.idle_parts(condition):
            part.requires_grad_(False)

    def _frozen_encoder_cache(self, folder: str) -> EncoderCache:
        encoder, adapter = self.model.encoder, self.model.adapter
        if encoder is None:
            raise ValueError(f"encoder_cache: got {folder!r}; without an encoder there is nothing to keep")
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise ValueError(
                f"encoder_cache: got {folder!r}; only the outputs of a frozen encoder stay the same: "
                "freeze encoder.*, or leave encoder_cache out"
            )
        if adapter.reads_padding:
            raise ValueError(
                f"encoder_cache: got {folder!r}; with the adapter's silence_padding false, a clip's last positions "
                "depend on the encoder's padding, which isn't kept"
            )
        if encoder.depends_on_batch:
            raise ValueError(
                f"encoder_cache: got {folder!r}; with the encoder's pad_batches, what it gives for a clip depends on "
                "the batch: set pad_batches to false, or leave encoder_cache out"
            )
        return EncoderCache(folder, encoder)

    def _matching(self, option: str, pattern: str) -> list[str]:
        names = [name for name, _ in self.model.named_parameters()]
        matching = fnmatch.filter(names, pattern)
        if not matching:
            parts = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise ValueError(f"{option}: the pattern {pattern!r} matches no parameter; the model's parts are {parts}")
        return matching

    def _set_frozen(self, patterns: list[str]) -> None:
        parameters = dict(self.model.named_parameters())
        for pattern in patterns:
            for name in self._matching("freeze", pattern):
                parameters[name].requires_grad_(False)
        if not any(parameter.requires_grad for parameter in parameters.values()):
            raise ValueError("freeze: every parameter is frozen, nothing is left to train")

    def configure_model(self) -> None:
        """Shard the model where the strategy wants it to be; every other strategy takes it as it is."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy):
            wrap_blocks(strategy, self.model)
        elif isinstance(strategy, ModelParallelStrategy) and not is_sharded(self.model):
            data, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
            precision = mixed_precision(str(self.trainer.precision))
            # A cached encoder is run for different clips on each process, so each needs the whole of it.
            whole = [self.model.encoder] if self.encoder_cache is not None else []
            shard(self.model, strategy.root_device, data, tensor if tensor.size() > 1 else None, precision, whole)

    def on_train_batch_start(self, batch: dict[str, Any], batch_index: int) -> None:
        self._add_encoder_states(batch)

    def on_validation_batch_start(self, batch: dict[str, Any], batch_index: int, loader_index: int = 0) -> None:
        self._add_encoder_states(batch)

    def _add_encoder_states(self, batch: dict[str, Any]) -> None:
        if self.encoder_cache is not None and len(batch["waveform_lengths"]):
            with self.trainer.precision_plugin.forward_context():
                states = self.encoder_cache(batch["waveform"], batch["waveform_lengths"])
            batch["encoder_states"], batch["encoder_lengths"] = states

    def on_validation_start(self) -> None:
        """Gather sharded weights for the whole validation, in which each process may answer as many rows as it has."""
        self._gathered.enter_context(gathered(self.model))

    def on_validation_end(self) -> None:
        self._gathered.close()

    def data_requirements(self) -> DataRequirements:
        """What batches must fit."""
        encoder, vocoder = self.model.encoder, self.model.vocoder
        return DataRequirements(
            tokenizer=self.model.llm.tokenizer,
            sample_rate=encoder.sample_rate if encoder else None,
            unit_rate_hz=vocoder.unit_rate_hz if vocoder else None,
            num_units=self.model.num_units,
            codebooks_per_frame=vocoder.codebooks_per_frame if vocoder else 1,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.configuration is not None:
            checkpoint[CONFIGURATION_KEY] = self.configuration
        checkpoint[MODEL_KEY] = self._description()

    def _description(self) -> dict[str, Any] | None:
        """What a checkpoint says of its model, so that it can be opened alone; it stays the same in a run."""
        if self._packed is None:
            try:
                self._packed = pack_parts(self.model)
            except UnregisteredError as error:
                rank_zero_warn(f"{error}: this run's checkpoints resume, but can't be opened as models")
        return self._packed

    def on_train_start(self) -> None:
        """Parts that are wholly frozen run as in inference: no dropout, no augmentation.

        On a CPU in bfloat16, attention is kept from torch's flash kernel: its backward pass is several times slower.
        """
        self.train()  # what transformers loads is in eval mode
        self._calm_frozen_parts()
        if self._flash_is_slow():
            torch.backends.cuda.enable_flash_sdp(False)  # despite its name, for CPUs too

    def on_train_end(self) -> None:
        if self._flash_is_slow():
            torch.backends.cuda.enable_flash_sdp(True)

    @property
    def is_distributed(self) -> bool:
        """Whether other processes train on other batches at the same time."""
        return self.trainer.world_size > 1

    def _flash_is_slow(self) -> bool:
        return self.device.type == "cpu" and str(self.trainer.precision).startswith("bf16")

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        self._calm_frozen_parts()

    def _calm_frozen_parts(self) -> None:
        for part in self.model.children():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()

    def configure_optimizers(self) -> dict[str, Any]:
        scales = {
            name: factor for pattern, factor in self.lr_scale.items() for name in self._matching("lr_scale", pattern)
        }
        groups: dict[tuple[float, float, Any], list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                decay = self.weight_decay if parameter.dim() > 1 else 0.0
                # A layer of a tensor-parallel LLM has a mesh of its own, and an optimiser can't mix them in a group.
                mesh = getattr(parameter, "device_mesh", None)
                groups.setdefault((scales.get(name, 1.0), decay, mesh), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": p, "lr": self.lr * scale, "weight_decay": decay} for (scale, decay, _), p in groups.items()],
            betas=(0.9, 0.98),
        )
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            progress = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
            return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's clipping, but for a tensor-parallel LLM, whose gradients lie on several meshes."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # In the order of the parameters, which all processes share.
        meshes = list(dict.fromkeys(getattr(parameter.grad, "device_mesh", None) for parameter in parameters))
        if len(meshes) < 2 or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        norms = [whole_norm([p.grad for p in parameters if p.grad.device_mesh == mesh]) for mesh in meshes]
        total = torch.stack(norms).norm()
        for parameter in parameters:
            parameter.grad.mul_((gradient_clip_val / (total + 1e-6)).clamp(max=1.0))

    def log_mean(self, split: str, name: str, value: Tensor, count: int, prog_bar: bool = False) -> None:
        """Log `{split}/{name}`, a mean over `count` things of this batch, as the mean over those of all processes."""
        options: dict[str, Any] = {"on_step": split == "train", "on_epoch": split == "val", "prog_bar": prog_bar}
        if split == "val":
            self.log(f"{split}/{name}", value, batch_size=count, sync_dist=True, **options)
        elif self.is_distributed:
            share = torch.stack([value.detach() * count, value.new_tensor(float(count))])
            total, number = self.trainer.strategy.reduce(share, reduce_op="sum")
            self.log(f"{split}/{name}", total / number.clamp(min=1), batch_size=max(1, count), **options)
        elif count:
            self.log(f"{split}/{name}", value, batch_size=count, **options)

    def log_text_loss(self, split: str, output: ModelOutput) -> Tensor:
        """Cross-entropy of the text, logged as `{split}/text_loss`, with `{split}/text_accuracy`."""
        labels = output.text_labels
        sums = self.model.llm.sum_over_logits(cross_entropy_and_hits, output.text_states, labels)
        return self._log_sums(split, "text", sums, len(labels))

    def log_unit_loss(self, split: str, units: UnitLogits) -> Tensor:
        """The speech decoder's loss, logged as `{split}/unit_loss`, with `{split}/unit_accuracy`.

        Cross-entropy and the share of units that are the most likely ones; or CTC per unit and 1 - the unit error rate
        of the most likely path.
        """
        if not isinstance(units, CtcLogits):
            sums, count = cross_entropy_and_hits(units.logits, units.labels), len(units.labels)
            return self._log_sums(split, "unit", sums, count)
        loss, count = ctc_loss(units), int(units.label_lengths.sum())
        self.log_mean(split, "unit_loss", loss, count, prog_bar=True)
        self.log_mean(split, "unit_accuracy", ctc_accuracy(units), count)
        return loss

    def _log_sums(self, split: str, name: str, sums: Tensor, count: int) -> Tensor:
        """The mean loss, logged with the accuracy; zero where no position has a label."""
        loss, accuracy = sums / max(1, count)
        self.log_mean(split, f"{name}_loss", loss, count, prog_bar=True)
        self.log_mean(split, f"{name}_accuracy", accuracy.detach(), count)
        return loss

    def on_fit_end(self) -> None:
        """The model as a folder beside the checkpoints, ready to answer or to start the next stage from."""
        if self.trainer.fast_dev_run or not (self.trainer.is_global_zero or is_sharded(self.model)):
            return
        folder = Path(self.trainer.default_root_dir) / "model"
        save_model(self.model, folder)
        self.export(Path(self.trainer.default_root_dir))
        rank_zero_info(f"model written to {folder}")

    def export(self, folder: Path) -> None:
        """A stage that makes a component for others to build on writes it here, in half precision."""


def cross_entropy_and_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """(P, V) and (P,) -> (2,): the sum of the cross-entropies, and how many labels are the most likely ones."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return torch.stack([loss, (logits.argmax(-1) == labels).sum().to(loss.dtype)])


def ctc_loss(units: CtcLogits) -> Tensor:
    """CTC, averaged over the units; turns that have more units than frames can hold are left out."""
    logits, lengths = units.logits, units.label_lengths
    if not len(lengths):
        return logits.float().sum()
    fitting = units.logit_lengths >= frames_needed(units.labels, lengths)
    total = F.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        units.labels,
        units.logit_lengths,
        lengths,
        blank=logits.shape[-1] - 1,
        reduction="sum",
        zero_infinity=True,
    )
    return total / (lengths * fitting).sum().clamp(min=1)


@torch.no_grad()
def ctc_accuracy(units: CtcLogits) -> Tensor:
    """1 - the unit error rate of the most likely path; below 0 where too much is said."""
    if not len(units.label_lengths):
        return units.logits.new_zeros(())
    blank = units.logits.shape[-1] - 1
    frames = units.logits.argmax(-1)
    # What lies behind a turn's end counts as blank.
    frames = frames.where(lengths_to_mask(units.logit_lengths, frames.shape[1]), blank)
    spoken = [collapse(path, blank, previous=blank) for path in frames]
    errors = edit_distances(
        torch.nn.utils.rnn.pad_sequence(spoken, batch_first=True),
        torch.tensor([len(path) for path in spoken], device=frames.device),
        units.labels,
        units.label_lengths,
    )
    return 1 - errors.sum() / units.label_lengths.sum().clamp(min=1)
