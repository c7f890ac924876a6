"""Training of the pocket codec: reconstruction, text supervision of its units, and optionally a discriminator."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.checkpoints.weights import save_weights
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.features import LogMelSpectrogram
from lightning_s2s.interfaces import lengths_to_mask
from lightning_s2s.stages.discriminator import SpectrogramDiscriminator
from lightning_s2s.vocoders.pocket import ConvNeXtBlock, PocketVocoder

CTC_CHARACTERS = "abcdefghijklmnopqrstuvwxyz' "


class UnitTranscriber(nn.Module):
    """Reads characters from quantised values, so that units carry what was said (read only while training).

    Two CTC frames stand for each unit: at 25 Hz fast speech has more characters than frames.
    """

    def __init__(self, num_dims: int, width: int = 160):
        super().__init__()
        self.stem = nn.Conv1d(num_dims, width, 3, padding=1)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, 2, causal=False) for _ in range(2))
        self.head = nn.Linear(width, 2 * (len(CTC_CHARACTERS) + 1))

    def forward(self, values: Tensor) -> Tensor:
        """(B, U, num_dims) -> (B, 2 U, 29) log-probabilities, index 0 the blank."""
        x = self.stem(values.transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.transpose(1, 2)).float().unflatten(-1, (2, -1)).flatten(1, 2).log_softmax(-1)


class SpectralLoss(nn.Module):
    """L1 of log-mel and of log-magnitude spectrograms at several resolutions (Yamamoto et al., arXiv:1910.11480)."""

    def __init__(self, sample_rate: int, fft_sizes: tuple[int, ...] = (256, 512, 1024, 2048)):
        super().__init__()
        self.fft_sizes = fft_sizes
        self.mels = nn.ModuleList(
            LogMelSpectrogram(sample_rate, min(80, size // 8), size // 4, size) for size in fft_sizes
        )

    def forward(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) and (B, T) -> mel loss and magnitude loss, each a mean over the resolutions."""
        mel_loss = magnitude_loss = predicted.new_zeros(())
        for mel in self.mels:
            mel_loss = mel_loss + F.l1_loss(mel(predicted), mel(target))
            magnitudes = [
                torch.stft(x, mel.win_length, mel.hop_length, window=mel.window, return_complex=True)
                .abs()
                .clamp(min=1e-4)
                .log()
                for x in (predicted, target)
            ]
            magnitude_loss = magnitude_loss + F.l1_loss(*magnitudes)
        return mel_loss / len(self.mels), magnitude_loss / len(self.mels)


class VocoderTraining(L.LightningModule):
    """Trains `pocket` on speech with transcripts.

    The whole utterance is encoded and transcribed; a random window of it is decoded and compared. A unit that must
    spell the text is easier to predict from text later, which is what stage 2 asks of it.

    Args:
        vocoder: the codec.
        lr: peak learning rate of AdamW, reached after `warmup_steps`, then a cosine to a tenth at the last step.
        window_sec: length of the decoded window.
        ctc_weight: of the CTC loss on characters, mean per character.
        adversarial_weight: of the discriminator's losses; 0 trains without one. With one, tokeniser and units stay as
            they are and only the decoder is trained: units that were given out keep their meaning.
        warmup_steps: linear warm-up.
        settle_steps: after so many steps the normalisation in front of the quantiser keeps its running statistics, so
            that training sees the units that inference gives; otherwise a clip's units depend on its batch.
    """

    def __init__(
        self,
        vocoder: PocketVocoder,
        lr: float = 8e-4,
        window_sec: float = 0.96,
        ctc_weight: float = 1.0,
        adversarial_weight: float = 0.0,
        warmup_steps: int = 100,
        settle_steps: int = 1000,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters(ignore=["vocoder"])
        self.vocoder = vocoder
        self.transcriber = None if adversarial_weight else UnitTranscriber(len(vocoder.quantizer.levels))
        self.spectral_loss = SpectralLoss(vocoder.sample_rate)
        self.discriminator = SpectrogramDiscriminator() if adversarial_weight else None
        if self.discriminator:
            self.vocoder.encoder.requires_grad_(False)

    def configure_optimizers(self) -> tuple[list, list]:
        total = self.trainer.estimated_stepping_batches // (2 if self.discriminator else 1)

        def factor(step: int) -> float:
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            return min((step + 1) / self.hparams.warmup_steps, 0.1 + 0.9 * cosine)

        trained = [[*self.vocoder.parameters(), *(self.transcriber.parameters() if self.transcriber else ())]]
        rates = [self.hparams.lr]
        if self.discriminator:
            trained.append(list(self.discriminator.parameters()))
            rates.append(2e-4)
        optimizers = [
            torch.optim.AdamW([p for p in group if p.requires_grad], rate, betas=(0.8, 0.95), weight_decay=0.01)
            for group, rate in zip(trained, rates, strict=True)
        ]
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]

    def on_train_batch_start(self, batch: dict, batch_index: int) -> None:
        if self.discriminator or self.global_step >= self.hparams.settle_steps:
            self.vocoder.encoder.spread.eval()

    def training_step(self, batch: dict, batch_index: int) -> None:
        waveform, lengths = batch["waveform"], batch["waveform_lengths"]
        hop = self.vocoder.samples_per_unit
        values, _ = self.vocoder.quantize(waveform)
        window = min(round(self.hparams.window_sec * self.vocoder.unit_rate_hz), int(lengths.min()) // hop)
        # One window in four opens the clip: the first sounds have no left context, and must be learnt, too.
        starts = [int(torch.rand(()) > 0.25) * int(torch.randint(0, int(n) // hop - window + 1, ())) for n in lengths]
        target = torch.stack(
            [row[start * hop : (start + window) * hop] for row, start in zip(waveform, starts, strict=True)]
        )
        predicted = self.vocoder.decode_values(
            torch.stack([row[start : start + window] for row, start in zip(values, starts, strict=True)])
        )
        mel_loss, magnitude_loss = self.spectral_loss(predicted, target)
        losses = {"train/mel_loss": mel_loss, "train/magnitude_loss": magnitude_loss}
        loss = mel_loss + 0.5 * magnitude_loss
        if self.transcriber:
            losses["train/ctc_loss"] = self._ctc_loss(values, lengths // hop, batch["texts"])
            loss = loss + self.hparams.ctc_weight * losses["train/ctc_loss"]
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        if self.discriminator:
            loss = loss + self._adversarial_step(predicted, target, optimizers[1])
            schedulers[1].step()
            optimizers, schedulers = optimizers[0], schedulers[0]
        optimizers.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizers, 1.0, "norm")
        optimizers.step()
        schedulers.step()
        self.log_dict(losses | {"train/loss": loss}, prog_bar=True, batch_size=len(lengths))

    def _adversarial_step(self, predicted: Tensor, target: Tensor, optimizer) -> Tensor:
        """Train the discriminator once, then give the decoder's hinge and feature-matching losses, weighted."""
        real, _ = self.discriminator(target)
        fake, _ = self.discriminator(predicted.detach())
        loss = sum(F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True))
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/discriminator_loss", loss, prog_bar=True)
        self.discriminator.requires_grad_(False)
        fake, fake_features = self.discriminator(predicted)
        with torch.no_grad():
            _, real_features = self.discriminator(target)
        self.discriminator.requires_grad_(True)
        hinge = sum(-f.mean() for f in fake) / len(fake)
        matching = sum(
            F.l1_loss(f, r) / r.abs().mean().clamp(min=1e-3) for f, r in zip(fake_features, real_features, strict=True)
        ) / len(real_features)
        return self.hparams.adversarial_weight * (hinge + 2 * matching)

    def _ctc_loss(self, values: Tensor, unit_lengths: Tensor, texts: list[str]) -> Tensor:
        targets = [
            torch.tensor([CTC_CHARACTERS.index(c) + 1 for c in text.lower() if c in CTC_CHARACTERS]) for text in texts
        ]
        return F.ctc_loss(
            self.transcriber(values).transpose(0, 1),
            torch.cat(targets).to(values.device),
            2 * unit_lengths,
            torch.tensor([len(target) for target in targets]),
            zero_infinity=True,
        )

    def validation_step(self, batch: dict, batch_index: int) -> None:
        waveform, lengths = batch["waveform"], batch["waveform_lengths"]
        values, units = self.vocoder.quantize(waveform)
        reconstructed = self.vocoder.decode_values(values)
        # Clip by clip: in the padding of a batch the target is digital silence, which no speech has.
        losses = [
            self.spectral_loss(ours[None, :length], clip[None, :length])[0]
            for ours, clip, length in zip(
                reconstructed,
                waveform,
                (lengths // self.vocoder.samples_per_unit * self.vocoder.samples_per_unit),
                strict=True,
            )
        ]
        mel_loss = torch.stack(losses).mean()
        mask = lengths_to_mask(lengths // self.vocoder.samples_per_unit, units.shape[1])
        used = torch.bincount(units[mask], minlength=self.vocoder.num_units).float()
        share = used / used.sum()
        perplexity = (-(share * share.clamp(min=1e-9).log()).sum()).exp()
        metrics = {"val/mel_loss": mel_loss, "val/unit_perplexity": perplexity}
        if self.transcriber:
            unit_lengths = lengths // self.vocoder.samples_per_unit
            metrics["val/ctc_loss"] = self._ctc_loss(values, unit_lengths, batch["texts"])
        self.log_dict(metrics, prog_bar=True, batch_size=len(lengths))

    def data_requirements(self) -> DataRequirements:
        """Pairs of audio and text at the codec's rate."""
        return DataRequirements(sample_rate=self.vocoder.sample_rate, task="vocoder")

    def on_fit_end(self) -> None:
        """The codec's weights in half precision, `pocket`."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            save_weights(self.vocoder, Path(self.trainer.default_root_dir) / "pocket", torch.float16)
