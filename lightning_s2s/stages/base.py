"""A stage: a training recipe composed of losses, optimiser, freezing, hand-off and scaling."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_s2s.checkpoints.init_from import load_handoff
from lightning_s2s.checkpoints.lightning_checkpoint import MODEL_KEY
from lightning_s2s.checkpoints.model_folder import save_model
from lightning_s2s.checkpoints.stored import pack_parts
from lightning_s2s.components.contracts import Adapter, AudioEncoder, LanguageModel, SpeechDecoder, Vocoder
from lightning_s2s.components.registry import UnregisteredError
from lightning_s2s.components.weights import is_sharded
from lightning_s2s.data.batch import DialogueBatch
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.scale.encoder_cache import cache_frozen_encoder
from lightning_s2s.scale.fsdp import clip_across_meshes, gathered
from lightning_s2s.scale.parallelize import ScalingOptions, check_scaling, parallelize
from lightning_s2s.scale.precision import set_cpu_flash_attention
from lightning_s2s.scale.sharded_checkpoint import CONFIGURATION_KEY
from lightning_s2s.stages.freezing import freeze_parameters, set_frozen_to_eval
from lightning_s2s.stages.losses import Loss
from lightning_s2s.stages.optim import OptimizerOptions, build_optimizer


class Stage(L.LightningModule):
    """A training recipe around a SpeechToSpeechModel.

    Args:
        llm: The language model.
        encoder: Maps speech to hidden states.
        adapter: Maps the encoder's hidden states to the LLM's embeddings.
        speech_decoder: Maps the LLM's hidden states to units.
        vocoder: Maps units to a waveform. It is never trained by a stage, and needed only to listen to the model.
        init_from: Folder or checkpoint of an earlier stage to load weights from. Components that it lacks keep their
            initial weights.
        freeze: Patterns of the names of parameters to freeze, such as `llm.*`.
        optimizer: Learning rate, weight decay and schedule.
        scaling: Options that trade memory for time.

    Raises:
        ValueError: The components don't fit, a pattern matches nothing, or nothing is left to train.

    Attributes:
        configuration: Class path and arguments; stored in every checkpoint to compare when a run is resumed.
        monitor: Validation metric that selects the best weights.
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
        optimizer: OptimizerOptions = OptimizerOptions(),
        scaling: ScalingOptions = ScalingOptions(),
    ):
        super().__init__()
        self.model = SpeechToSpeechModel(llm, encoder, adapter, speech_decoder, vocoder)
        self.optimizer_options, self.scaling = optimizer, scaling
        if init_from is not None:
            rank_zero_info(load_handoff(self.model, init_from))
        if vocoder is not None:
            vocoder.requires_grad_(False)
        freeze_parameters(self.model, freeze or [])
        check_scaling(self.model, scaling)
        folder = scaling.encoder_cache
        self.encoder_cache = None if folder is None else cache_frozen_encoder(encoder, adapter, folder)
        self._parallelized = False
        self._gathered_weights = ExitStack()
        self._description: dict[str, Any] | None = None

    def data_requirements(self) -> DataRequirements:
        """What the data module must provide for this model."""
        encoder, vocoder = self.model.encoder, self.model.vocoder
        return DataRequirements(
            tokenizer=self.model.llm.tokenizer,
            sample_rate=encoder.sample_rate if encoder else None,
            unit_rate_hz=vocoder.unit_rate_hz if vocoder else None,
            num_units=self.model.num_units,
            codebooks_per_frame=vocoder.codebooks_per_frame if vocoder else 1,
            fixed_audio=self.encoder_cache is not None,
        )

    def configure_model(self) -> None:
        parallelize(self.model, self.scaling, self.trainer.strategy, str(self.trainer.precision), self._parallelized)
        self._parallelized = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return build_optimizer(self.model, self.optimizer_options, int(self.trainer.estimated_stepping_batches))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        by_norm = gradient_clip_algorithm != "value" and gradient_clip_val
        if not by_norm or not clip_across_meshes(optimizer, gradient_clip_val):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def with_cached_audio(self, batch: DialogueBatch) -> DialogueBatch:
        """The batch, with the hidden states of a frozen encoder if these are cached."""
        if self.encoder_cache is None or not batch.num_audios:
            return batch
        return replace(batch, encoded=self.encoder_cache(batch.waveform, batch.waveform_lengths))

    def on_train_start(self) -> None:
        self.train()  # transformers loads models in eval mode
        set_frozen_to_eval(self.model)
        self._set_flash_attention(False)

    def on_train_end(self) -> None:
        self._set_flash_attention(True)

    def _set_flash_attention(self, enabled: bool) -> None:
        set_cpu_flash_attention(enabled, self.device, str(self.trainer.precision))

    def on_validation_start(self) -> None:
        """Gather sharded weights for the whole validation, since ranks may answer different numbers of rows."""
        self._gathered_weights.enter_context(gathered(self.model))

    def on_validation_end(self) -> None:
        self._gathered_weights.close()

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        set_frozen_to_eval(self.model)

    def log_mean(self, split: str, name: str, value: Tensor, count: int, prog_bar: bool = False) -> None:
        """Log `{split}/{name}`, a mean over `count` items of this batch, as the mean over the items of all ranks."""
        options: dict[str, Any] = {"on_step": split == "train", "on_epoch": split == "val", "prog_bar": prog_bar}
        if split == "val":
            self.log(f"{split}/{name}", value, batch_size=count, sync_dist=True, **options)
        elif self.trainer.world_size > 1:
            share = torch.stack([value.detach() * count, value.new_tensor(float(count))])
            total, number = self.trainer.strategy.reduce(share, reduce_op="sum")
            self.log(f"{split}/{name}", total / number.clamp(min=1), batch_size=max(1, count), **options)
        elif count:
            self.log(f"{split}/{name}", value, batch_size=count, **options)

    def log_loss(self, split: str, name: str, loss: Loss) -> Tensor:
        """Log `{split}/{name}_loss` and `{split}/{name}_accuracy`, and return the loss."""
        self.log_mean(split, f"{name}_loss", loss.mean, loss.count, prog_bar=True)
        self.log_mean(split, f"{name}_accuracy", loss.accuracy, loss.count)
        return loss.mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.configuration is not None:
            checkpoint[CONFIGURATION_KEY] = self.configuration
        self._description = self._description or _describe(self.model)  # constant during a run
        checkpoint[MODEL_KEY] = self._description

    def on_fit_end(self) -> None:
        """Write the model folder beside the checkpoints, to answer with or to start the next stage from."""
        root = Path(self.trainer.default_root_dir)
        if getattr(self.trainer, "fast_dev_run", False) or not (self.trainer.is_global_zero or is_sharded(self.model)):
            return
        save_model(self.model, root / "model")
        self.export(root)
        rank_zero_info(f"model written to {root / 'model'}")

    def export(self, folder: Path) -> None:
        """Write the component that a stage produces for other models, in half precision; none by default."""


def _describe(model: SpeechToSpeechModel) -> dict[str, Any] | None:
    """The description of the model that makes a checkpoint self-contained; None if a component is not registered."""
    try:
        return pack_parts(model)
    except UnregisteredError as error:
        rank_zero_warn(f"{error}: this run's checkpoints resume, but can't be opened as models")
        return None
