"""Training of the pocket codec: regression of pitch, envelope and aperiodicity, and text supervision of its units."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.contracts import lengths_to_mask
from lightning_s2s.components.vocoders.pocket import ConvNeXtBlock, PocketStreamState, PocketVocoder
from lightning_s2s.components.vocoders.source_filter import SpeechParameters
from lightning_s2s.components.weights import save_weights
from lightning_s2s.data.batch import TranscribedBatch
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.stages.discriminator import EnvelopeDiscriminator
from lightning_s2s.support.ranges import Natural, NonNegative, Range, checked

DISCRIMINATOR_LR = 1e-3
MATCHING_WEIGHT = 0.5
CTC_CHARACTERS = "abcdefghijklmnopqrstuvwxyz' "


class UnitTranscriber(nn.Module):
    """Predicts characters from quantised values, so that units encode what was said; used only in training.

    Each unit gets several CTC frames, 50 per second: at 25 Hz, fast speech has more characters than units.
    """

    def __init__(self, num_dims: int, frames_per_unit: int = 4, width: int = 160):
        super().__init__()
        self.num_frames = max(1, frames_per_unit // 2)
        self.stem = nn.Conv1d(num_dims, width, 3, padding=1)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, 2, causal=False) for _ in range(2))
        self.head = nn.Linear(width, self.num_frames * (len(CTC_CHARACTERS) + 1))

    def forward(self, values: Tensor) -> Tensor:
        """Quantised values (B, U, num_dims) -> log-probabilities (B, num_frames * U, 29); index 0 is the blank."""
        x = self.stem(values.transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.transpose(1, 2)).float().unflatten(-1, (self.num_frames, -1)).flatten(1, 2).log_softmax(-1)


@checked
class VocoderTraining(L.LightningModule):
    """Trains `pocket` on speech with transcripts.

    The decoder learns to predict the pitch, envelope and aperiodicity that WORLD measures in the speech. The tokenizer
    is trained with it, to produce units that encode these and also spell the text: such units are easier to predict
    from text, which is the task of stage 2.

    Regression blurs the envelope, which sounds muffled. With `adversarial_weight`, a discriminator keeps it sharp; use
    it in a second run, with `train_tokenizer: false`. Each batch then counts as two steps of the trainer's `max_steps`.

    Args:
        vocoder: The codec to train.
        lr: Peak learning rate of AdamW, reached after `warmup_steps`; a cosine then decays it to a twentieth.
        train_tokenizer: Whether to train the tokenizer too; if false, existing units keep their meaning.
        ctc_weight: Weight of the CTC loss per character; not used without `train_tokenizer`.
        pitch_weight: Weight of the mean absolute error of log pitch in voiced frames.
        aperiodicity_weight: Weight of the mean absolute error of the aperiodicity; the error of the envelope, in
            nepers, has weight 1.
        adversarial_weight: Weight of the discriminator: ratio of its gradient to that of the envelope's loss, both with
            respect to the envelope. 0 trains without a discriminator.
        warmup_steps: Number of steps of linear warm-up.
        settle_steps: Number of steps after which the normalisation before the quantiser uses its running statistics, as
            in inference; before that, a clip's units depend on its batch.
    """

    def __init__(
        self,
        vocoder: PocketVocoder,
        lr: Annotated[float, Range(0, 100, above=True)] = 1e-3,
        train_tokenizer: bool = True,
        ctc_weight: NonNegative = 1.0,
        pitch_weight: NonNegative = 5.0,
        aperiodicity_weight: NonNegative = 2.0,
        adversarial_weight: NonNegative = 0.0,
        warmup_steps: Natural = 100,
        settle_steps: Natural = 1000,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.vocoder = vocoder
        self.lr, self.warmup_steps, self.settle_steps = lr, warmup_steps, settle_steps
        self.weights = {
            "envelope_loss": 1.0, "pitch_loss": pitch_weight, "aperiodicity_loss": aperiodicity_weight,
            "ctc_loss": ctc_weight,
        }  # fmt: skip
        self.adversarial_weight = adversarial_weight
        num_dims = len(vocoder.quantizer.levels)
        self.transcriber = UnitTranscriber(num_dims, vocoder.frames_per_unit) if train_tokenizer else None
        self.vocoder.encoder.requires_grad_(train_tokenizer)
        self.discriminator = EnvelopeDiscriminator() if adversarial_weight else None
        self._analysed: dict[bytes, tuple[SpeechParameters, Tensor]] = {}

    def configure_optimizers(self) -> tuple[list, list]:
        total = self.trainer.estimated_stepping_batches // (2 if self.discriminator else 1)

        def factor(step: int) -> float:
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            return min((step + 1) / self.warmup_steps, 0.05 + 0.95 * cosine)

        judge = list(self.discriminator.parameters()) if self.discriminator else []
        judged = {id(parameter) for parameter in judge}
        trained = [p for p in self.parameters() if p.requires_grad and id(p) not in judged]
        optimizers = [torch.optim.AdamW(trained, self.lr, betas=(0.8, 0.95), weight_decay=0.01)]
        schedules = [torch.optim.lr_scheduler.LambdaLR(optimizers[0], factor)]
        if judge:
            optimizers.append(torch.optim.AdamW(judge, DISCRIMINATOR_LR, betas=(0.5, 0.9), weight_decay=0.01))
        return optimizers, schedules

    def on_train_batch_start(self, batch: TranscribedBatch, batch_index: int) -> None:
        if self.transcriber is None or self.global_step >= self.settle_steps:
            self.vocoder.encoder.spread.eval()

    def training_step(self, batch: TranscribedBatch, batch_index: int) -> None:
        losses, spoken, target, _ = self._losses(batch)
        loss = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
        optimizers: Any = self.optimizers()
        optimizer = optimizers
        if self.discriminator:
            optimizer = optimizers[0]
            # Cut to the shortest clip: padding would give away which is which.
            shortest = int(batch.waveform_lengths.min()) // self.vocoder.synthesizer.hop_length
            pair = spoken.log_envelope[:, :shortest], target.log_envelope[:, :shortest]
            losses["discriminator_loss"] = self._train_discriminator(self.discriminator, *pair, optimizers[1])
            adversarial, matching = self._judge(self.discriminator, *pair)
            loss = loss + self._balance(losses["envelope_loss"], adversarial, spoken.log_envelope) * adversarial
            loss = loss + MATCHING_WEIGHT * matching
            losses["matching_loss"] = matching
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 1.0, "norm")
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        logged = {f"train/{name}": value for name, value in losses.items()} | {"train/loss": loss}
        self.log_dict(logged, prog_bar=True, batch_size=len(batch.texts))

    def _train_discriminator(
        self, discriminator: EnvelopeDiscriminator, spoken: Tensor, real: Tensor, optimizer: Any
    ) -> Tensor:
        """One optimiser step of the discriminator with the hinge loss."""
        loss = F.relu(1 - discriminator(real)[0]).mean() + F.relu(1 + discriminator(spoken.detach())[0]).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss

    @staticmethod
    def _judge(discriminator: EnvelopeDiscriminator, spoken: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's adversarial and feature-matching losses."""
        discriminator.requires_grad_(False)
        scores, features = discriminator(spoken)
        with torch.no_grad():
            _, wanted = discriminator(real)
        discriminator.requires_grad_(True)
        matching = [(f - w).abs().mean() / w.abs().mean() for f, w in zip(features, wanted, strict=True)]
        return -scores.mean(), torch.stack(matching).mean()

    def _balance(self, regression: Tensor, adversarial: Tensor, envelope: Tensor) -> Tensor:
        """Factor that scales the adversarial gradient to its weight (as in VQGAN, Esser et al., arXiv:2012.09841)."""
        norms = [torch.autograd.grad(loss, envelope, retain_graph=True)[0].norm() for loss in (regression, adversarial)]
        return (self.adversarial_weight * norms[0] / (norms[1] + 1e-8)).clamp(max=1e3).detach()

    def validation_step(self, batch: TranscribedBatch, batch_index: int) -> None:
        losses, _, _, units = self._losses(batch)
        used = torch.bincount(units, minlength=self.vocoder.num_units).float()
        share = used / used.sum()
        losses["unit_perplexity"] = (-(share * share.clamp(min=1e-9).log()).sum()).exp()
        logged = {f"val/{name}": value for name, value in losses.items()}
        self.log_dict(logged, prog_bar=True, batch_size=len(batch.texts))

    def _losses(self, batch: TranscribedBatch) -> tuple[dict[str, Tensor], SpeechParameters, SpeechParameters, Tensor]:
        """The losses by name, the predicted and the target parameters, and the units of the batch (P,)."""
        unit_lengths = batch.waveform_lengths // self.vocoder.samples_per_unit
        values, units = self.vocoder.quantize(batch.waveform)
        spoken = self.vocoder.decoder(values, PocketStreamState(), last=True)
        target, voiced = self._targets(batch.waveform, batch.waveform_lengths, spoken.log_pitch.shape[1])
        frames = spoken.log_pitch.shape[1] // max(1, units.shape[1])
        mask = lengths_to_mask(unit_lengths * frames, spoken.log_pitch.shape[1])
        voiced = voiced & mask
        losses = {
            "envelope_loss": (spoken.log_envelope - target.log_envelope).abs()[mask].mean(),
            "pitch_loss": (spoken.log_pitch - target.log_pitch).abs()[voiced].sum() / voiced.sum().clamp(min=1),
            "aperiodicity_loss": (spoken.aperiodicity - target.aperiodicity).abs()[mask].mean(),
        }
        if self.transcriber:
            losses["ctc_loss"] = self._ctc_loss(self.transcriber, values, unit_lengths, batch.texts)
        return losses, spoken, target, units[lengths_to_mask(unit_lengths, units.shape[1])]

    def _targets(self, waveform: Tensor, lengths: Tensor, num_frames: int) -> tuple[SpeechParameters, Tensor]:
        """WORLD's parameters of each clip, padded to `num_frames`, and the voiced frames; cached in memory by clip."""
        found = []
        for clip, length in zip(waveform.cpu().numpy(), lengths.tolist(), strict=True):
            clip = np.ascontiguousarray(clip[: length // self.vocoder.samples_per_unit * self.vocoder.samples_per_unit])
            key = hashlib.sha256(clip.tobytes()).digest()
            if key not in self._analysed:
                self._analysed[key] = self.vocoder.synthesizer.analyse(clip)
            found.append(self._analysed[key])

        def padded(parts: Sequence[Tensor]) -> Tensor:
            rows = [F.pad(part[0], (0, 0) * (part.dim() - 2) + (0, num_frames - part.shape[1])) for part in parts]
            return torch.stack(rows).to(waveform.device)

        columns = zip(*(parameters for parameters, _ in found), strict=True)
        return SpeechParameters(*map(padded, columns)), padded([voiced for _, voiced in found])

    @staticmethod
    def _ctc_loss(transcriber: UnitTranscriber, values: Tensor, unit_lengths: Tensor, texts: list[str]) -> Tensor:
        targets = [
            torch.tensor([CTC_CHARACTERS.index(c) + 1 for c in text.lower() if c in CTC_CHARACTERS]) for text in texts
        ]
        return F.ctc_loss(
            transcriber(values).transpose(0, 1),
            torch.cat(targets).to(values.device),
            transcriber.num_frames * unit_lengths,
            torch.tensor([len(target) for target in targets]),
            zero_infinity=True,
        )

    def data_requirements(self) -> DataRequirements:
        """What the data module must provide: pairs of audio at the codec's rate and text."""
        return DataRequirements(sample_rate=self.vocoder.sample_rate, task="vocoder")

    def on_fit_end(self) -> None:
        """Write the codec's weights into `pocket`, in half precision."""
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            save_weights(self.vocoder, Path(self.trainer.default_root_dir) / "pocket", torch.float16)
