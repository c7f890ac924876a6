"""The LightningDataModule of all stages."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import lightning as L
import torch

from lightning_s2s.data.augmentation import Augmentation
from lightning_s2s.data.augmented_examples import LEVEL_LIMITED, AugmentedExamples
from lightning_s2s.data.batching import DurationBatchSampler, Note, ResumableLoader
from lightning_s2s.data.collate import SkippingCollate, collate_dialogues, collate_vocoder
from lightning_s2s.data.dataset import SpeechDialogueDataset
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.support.ranges import Count, NonNegative, Positive, Range, Seed, checked
from lightning_s2s.support.wording import counted

log = logging.getLogger(__name__)


@checked
class SpeechDialogueData(L.LightningDataModule):
    """Spoken dialogues from JSONL manifests, in batches of bounded duration.

    What tokenizer, sample rate and units the batches must fit, it asks the stage (`data_requirements()`). Training
    resumes mid-epoch with the same order. Batches are `DialogueBatch` or, for the vocoder, `TranscribedBatch`, see
    `lightning_s2s.data.batch`.

    Args:
        train: manifest or manifests (JSONL) to train on.
        validation: manifest or manifests to validate on.
        batch_duration_sec: upper bound of a batch, padding included; a row costs its user audio, its units at the
            vocoder's rate, and 0.1 s for a text token.
        max_batch_size: upper bound of rows in a batch.
        num_buckets: groups of similar duration that batches are drawn from.
        num_workers: processes that decode audio; 0 decodes in the main process.
        on_error: "raise" at a broken line or file, or "skip" and count it.
        min_audio_sec: rows with shorter audio are dropped and counted.
        cache_audio: keep decoded audio in memory, for small corpora; needs `num_workers: 0`.
        seed: with the epoch, all that the order of training and its augmentation depend on.
        augmentation: what may happen to the users' audio in training, drawn anew for each clip in each epoch; None
            leaves it as it is. See `lightning_s2s.data.augmentation.Augmentation`.

    Attributes:
        problems: "train" and "validation" -> reason -> number of rows left out, or of files with a remark.

    Raises:
        ValueError: an option is out of range, or (at setup) a manifest or, with `on_error: raise`, a row is broken, or
            the stage can't train on augmented audio.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        validation: str | list[str] | None = None,
        batch_duration_sec: Positive = 60.0,
        max_batch_size: Count = 64,
        num_buckets: Count = 8,
        num_workers: Annotated[int, Range(0, 1_024)] = 0,
        on_error: Literal["skip", "raise"] = "raise",
        min_audio_sec: NonNegative = 0.5,
        cache_audio: bool = False,
        seed: Seed = 0,
        augmentation: Augmentation | None = None,
    ):
        super().__init__()
        if on_error not in ("skip", "raise"):
            raise ValueError(f"on_error: got {on_error!r}; allowed: skip, raise")
        if cache_audio and num_workers:
            raise ValueError(f"cache_audio: keeps audio in the main process; it needs num_workers 0, got {num_workers}")
        self.manifests = {"train": _as_list(train), "validation": _as_list(validation)}
        self.batch_duration_sec, self.max_batch_size, self.num_buckets = batch_duration_sec, max_batch_size, num_buckets
        self.num_workers, self.on_error, self.min_audio_sec = num_workers, on_error, min_audio_sec
        self.cache_audio, self.seed, self.augmentation = cache_audio, seed, augmentation
        self.datasets: dict[str, SpeechDialogueDataset] = {}
        self._collate: Callable[..., Any] = collate_vocoder
        self._noted: dict[str, set[tuple[str, str]]] = {"train": set(), "validation": set()}

    @property
    def problems(self) -> dict[str, Counter[str]]:
        """What was left out or is clipped so far; what only decoding shows is counted when a row is first read."""
        left_out = {split: dataset.problems for split, dataset in self.datasets.items()}
        return {split: left_out.get(split, Counter()) + self._count_notes(split) for split in self._noted}

    def setup(self, stage: str) -> None:
        """Check the manifests and measure the rows; done once for each split."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        for split in ["train", "validation"] if stage == "fit" else ["validation"]:
            if split == "train" and not self.manifests["train"]:
                raise ValueError("data.train: is empty; at least one manifest (JSONL) is needed to fit")
            if self.manifests[split] and split not in self.datasets:
                self.prepare_split(split, module.data_requirements())

    def prepare_split(self, split: str, requirements: DataRequirements) -> SpeechDialogueDataset:
        """The dataset of "train" or "validation", without a trainer.

        Raises:
            ValueError: a manifest or, with `on_error: raise`, a row is broken; a stage that trains speech finds no
                units; or training can't use augmented audio.
        """
        augmentation = self.augmentation if split == "train" else None
        if augmentation is not None:
            _check_augmentation(augmentation, requirements)
        dataset = SpeechDialogueDataset(
            self.manifests[split],
            requirements,
            on_error=self.on_error,
            min_audio_sec=self.min_audio_sec,
            max_duration_sec=self.batch_duration_sec,
            cache_audio=self.cache_audio,
            longest_stretch=augmentation.longest_stretch if augmentation else 1.0,
        )
        if requirements.trains_speech and not dataset.num_spoken:
            names = ", ".join(self.manifests[split])
            message = f"data.{split}: none of {len(dataset)} rows of {names} has speech_units"
            if split == "train":
                raise ValueError(
                    f"{message}, so nothing would be learnt about speech; make them with `lightning-s2s units`, or "
                    "freeze the speech decoder to train on text alone"
                )
            log.warning("%s; speech is not validated", message)
        if requirements.task == "dialogue":
            assert requirements.tokenizer is not None
            self._collate = partial(collate_dialogues, pad_id=requirements.tokenizer.pad_id)
        else:
            self._collate = collate_vocoder
        self.datasets[split] = dataset
        return dataset

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled by seed and epoch, resumable; in a fixed order while Lightning overfits a few batches."""
        overfit = self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
        return self.loader("train", shuffle=not overfit)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """In a fixed order; nothing without manifests for validation."""
        return self.loader("validation", shuffle=False) if self.manifests["validation"] else []

    def loader(self, split: str, shuffle: bool) -> ResumableLoader:
        """A loader over a prepared split; what is shuffled, the audio of training alone, is augmented."""
        dataset = self.datasets[split]
        replicas: dict[str, Any] = {}
        if self.trainer is not None and self.trainer.world_size > 1:
            replicas = dict(self.trainer.distributed_sampler_kwargs or {})
        sampler = DurationBatchSampler(
            dataset.durations,
            self.batch_duration_sec,
            self.max_batch_size,
            self.num_buckets,
            self.seed,
            shuffle,
            **replicas,
        )
        if self.num_workers:
            # Fast tokenizers warn of their threads after a fork; workers are parallel already.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        collate = SkippingCollate(dataset, self._collate)
        # From pinned memory a batch is copied to a GPU while the GPU computes.
        options = {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
        in_epoch = None
        if self.augmentation is not None and split == "train" and shuffle:
            in_epoch = partial(AugmentedExamples, dataset, self.augmentation, self.seed)
        return ResumableLoader(dataset, sampler, collate, partial(self._note, split), in_epoch, **options)

    def teardown(self, stage: str) -> None:
        """Sum up what decoding showed."""
        for split, noted in self._noted.items():
            if noted:
                log.warning("%s: noted while reading audio: %s", split, counted(self._count_notes(split)))

    def _count_notes(self, split: str) -> Counter[str]:
        return Counter(reason for reason, _ in self._noted[split])

    def _note(self, split: str, notes: list[Note]) -> None:
        for note in notes:
            key = (note.reason, note.place)
            if key not in self._noted[split]:
                self._noted[split].add(key)
                # A loud corpus would give a warning for each of its files; they are counted, and summed up in the end.
                log.log(logging.INFO if note.reason == LEVEL_LIMITED else logging.WARNING, "%s", note.message)


def _check_augmentation(augmentation: Augmentation, requirements: DataRequirements) -> None:
    """Raise ValueError where training can't use augmented audio; warn where it reads none."""
    if requirements.task == "vocoder":
        raise ValueError("data.augmentation: must be null for a vocoder, which learns to reproduce its audio as it is")
    if requirements.fixed_audio:
        raise ValueError(
            "data.augmentation: must be null with scaling.encoder_cache, which encodes each clip once; leave out either"
        )
    if requirements.sample_rate is None:
        log.warning("data.augmentation: has no effect, since this stage has no encoder and reads no audio")
    else:
        augmentation.check_sample_rate(requirements.sample_rate)


def _as_list(manifests: str | list[str] | None) -> list[str]:
    return [manifests] if isinstance(manifests, str) else list(manifests or [])
