"""A dataset whose users' audio is augmented, anew in each epoch."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lightning_s2s.data.audio import Remark
from lightning_s2s.data.augmentation import Augmentation, augment
from lightning_s2s.data.dataset import Example, SpeechDialogueDataset, user_audio_items
from lightning_s2s.data.manifest import ManifestError

LEVEL_LIMITED = "augmented level limited by full scale"
"""Reason of the remark on a clip that could not be made as loud as drawn."""


@dataclass(frozen=True)
class AugmentedExamples:
    """The examples of a dataset in one epoch.

    What happens to a clip depends on seed, epoch, the example's index and the clip's number in it alone: not on the
    worker or the replica that reads it, nor on what was read before. The dataset, and what it caches, stay clean.

    Attributes:
        dataset: Dialogues.
        augmentation: What may happen to a clip.
        seed: Seed of all draws, together with the epoch.
        epoch: Number of the epoch.
    """

    dataset: SpeechDialogueDataset
    augmentation: Augmentation
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example | ManifestError:
        example = self.dataset[index]
        if isinstance(example, ManifestError) or not example.waveforms:
            return example
        sample_rate = self.dataset.requirements.sample_rate
        assert sample_rate is not None
        waveforms, remarks = [], list(example.remarks)
        audios = user_audio_items(example.row["messages"])
        for number, (waveform, item) in enumerate(zip(example.waveforms, audios, strict=True)):
            rng = random.Random(f"{self.seed}-{self.epoch}-{index}-{number}")
            drawn = self.augmentation.draw(rng)
            if drawn is not None:
                waveform, applied = augment(waveform, sample_rate, drawn)
                if applied != drawn:
                    wanted, possible = drawn.level_db or 0.0, applied.level_db or 0.0
                    message = f"is changed by {possible:.1f} dB instead of {wanted:.1f} dB, so that it does not clip"
                    remarks.append((item["audio"], Remark(LEVEL_LIMITED, message)))
            waveforms.append(waveform)
        return replace(example, waveforms=waveforms, remarks=remarks)
