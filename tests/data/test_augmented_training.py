"""Augmentation in training: drawn by seed, epoch, row and clip alone, whoever reads them, and on users' audio alone."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_s2s.data.augmentation import Augmentation
from lightning_s2s.data.augmented_examples import LEVEL_LIMITED, AugmentedExamples
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.data.requirements import DataRequirements
from parts.sounds import tone

EPOCHS = 2
EVERYTHING = Augmentation(
    tempo=(0.9, 1.1), noise=["pink"], room_sec=(0.1, 0.2), codecs=["mp3"], probability={"codec": 0.5, "tempo": 0.7}
)


class Listener(L.LightningModule):
    """A stage of one parameter that writes down what it hears: epoch, row, length and loudness of each clip."""

    def __init__(self, requirements: DataRequirements):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.requirements = requirements
        self.heard: list[tuple[int, str, int, float]] = []
        self.validated: list[tuple[str, int, float]] = []

    def data_requirements(self) -> DataRequirements:
        return self.requirements

    def training_step(self, batch, batch_index):
        self.heard += [(self.current_epoch, *clip) for clip in clips_of(batch)]
        return self.weight * batch.waveform.abs().mean()

    def validation_step(self, batch, batch_index):
        self.validated += clips_of(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def clips_of(batch) -> list[tuple[str, int, float]]:
    lengths = batch.waveform_lengths.tolist()
    clips = [clip[:length].double() for clip, length in zip(batch.waveform, lengths, strict=True)]
    sounds = [clip.square().mean().item() for clip in clips]
    return list(zip([row["id"] for row in batch.rows], lengths, sounds, strict=True))


class StopAfter(Callback):
    def __init__(self, steps: int):
        self.steps = steps

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        trainer.should_stop = trainer.global_step == self.steps


def fit(folder, requirements, data, *callbacks, path=None, **options) -> Listener:
    module = Listener(requirements)
    L.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        max_epochs=EPOCHS,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **options,
    ).fit(module, data, ckpt_path=path)
    return module


@pytest.fixture
def requirements(chat_tokenizer, tiny_corpus) -> DataRequirements:
    return DataRequirements(chat_tokenizer, tiny_corpus.sample_rate, tiny_corpus.unit_rate_hz, tiny_corpus.num_units)


@pytest.fixture
def make_data(tiny_corpus):
    def make(augmentation: Augmentation | None = EVERYTHING, **options) -> SpeechDialogueData:
        defaults = {"max_batch_size": 3, "num_buckets": 2, "seed": 4, "augmentation": augmentation}
        return SpeechDialogueData(tiny_corpus.train, tiny_corpus.validation, **{**defaults, **options})

    return make


def test_training_alone_is_augmented_anew_in_each_epoch(tmp_path, requirements, make_data):
    clean, augmented = (fit(tmp_path, requirements, make_data(augmentation=a)) for a in (None, EVERYTHING))
    assert augmented.validated == clean.validated
    first, second = ({row: sound for epoch, row, _, sound in augmented.heard if epoch == e} for e in range(EPOCHS))
    before = {row: sound for _, row, _, sound in clean.heard}
    assert first.keys() == second.keys() == before.keys()
    assert all(len({before[row], first[row], second[row]}) == 3 for row in before)
    assert augmented.heard == fit(tmp_path, requirements, make_data()).heard
    assert augmented.heard != fit(tmp_path, requirements, make_data(seed=5)).heard


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"cache_audio": True}], ids=str)
def test_workers_and_the_cache_change_nothing(tmp_path, requirements, make_data, options):
    assert fit(tmp_path, requirements, make_data(**options)).heard == fit(tmp_path, requirements, make_data()).heard


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop_after", [2, 6])
def test_a_resumed_run_hears_what_an_unbroken_one_hears(tmp_path, requirements, make_data, stop_after, num_workers):
    whole = fit(tmp_path, requirements, make_data()).heard
    checkpoint = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
    first = fit(tmp_path, requirements, make_data(num_workers=num_workers), checkpoint, StopAfter(stop_after)).heard
    second = fit(tmp_path, requirements, make_data(num_workers=num_workers), path=tmp_path / "last.ckpt").heard
    assert len(first) < len(whole) and first + second == whole


def test_replicas_hear_together_what_one_process_hears(requirements, make_data):
    heard = []
    for num_replicas in (1, 2):
        clips = []
        for rank in range(num_replicas):
            data = make_data()
            replicas = {"num_replicas": num_replicas, "rank": rank}
            data.trainer = SimpleNamespace(
                world_size=num_replicas, distributed_sampler_kwargs=replicas, overfit_batches=0
            )
            data.prepare_split("train", requirements)
            loader = data.train_dataloader()
            for epoch in range(EPOCHS):
                loader.batch_sampler.set_epoch(epoch)
                clips += [(epoch, *clip) for batch in loader for clip in clips_of(batch)]
        heard.append(sorted(clips))
    assert len(heard[0]) == 12 * EPOCHS and heard[0] == heard[1]


def test_the_gains_of_an_epoch_are_those_drawn(requirements, make_data):
    dataset = make_data().prepare_split("train", requirements)
    quiet = Augmentation(level_db=(-12, 0))
    for index in range(len(dataset)):
        clean = dataset[index].waveforms[0]
        [louder] = AugmentedExamples(dataset, quiet, seed=0, epoch=3)[index].waveforms
        gain_db = 10 * np.log10((louder.astype(float) ** 2).mean() / (clean.astype(float) ** 2).mean())
        assert -12 <= gain_db <= 0
        np.testing.assert_allclose(louder, clean * 10 ** (gain_db / 20), atol=1e-6)
        assert np.array_equal(dataset[index].waveforms[0], clean)


def test_clips_of_a_row_draw_each_for_themselves(tmp_path, write_manifest, requirements):
    soundfile.write(tmp_path / "a.wav", tone(), 16_000)
    items = [{"role": "user", "content": [{"audio": "a.wav"}]}, {"role": "assistant", "content": "A"}]
    dataset = SpeechDialogueData(str(write_manifest([{"messages": items * 2}]))).prepare_split("train", requirements)
    first, second = AugmentedExamples(dataset, Augmentation(level_db=(-12, 0)), 0, 0)[0].waveforms
    assert abs(np.abs(first).max() - np.abs(second).max()) > 1e-3


def test_a_slower_tempo_counts_in_the_batches(requirements, make_data):
    clean = make_data(augmentation=None).prepare_split("train", requirements)
    slower = make_data(augmentation=Augmentation(tempo=(0.8, 1.0))).prepare_split("train", requirements)
    extra = np.array(slower.durations) - np.array(clean.durations)
    audio = [len(clean[index].waveforms[0]) / 16_000 for index in range(len(clean))]
    np.testing.assert_allclose(extra, 0.25 * np.array(audio), atol=1e-3)
    longest = AugmentedExamples(slower, Augmentation(tempo=(0.8, 0.8)), 0, 0)
    for index, duration in enumerate(slower.durations):
        assert len(longest[index].waveforms[0]) / 16_000 <= duration


def test_a_level_that_full_scale_limits_is_counted(tmp_path, write_manifest, requirements, caplog):
    soundfile.write(tmp_path / "loud.wav", tone(level=0.9), 16_000)
    soundfile.write(tmp_path / "quiet.wav", tone(level=0.1), 16_000)
    rows = [
        {"messages": [{"role": "user", "content": [{"audio": f"{name}.wav"}]}, {"role": "assistant", "content": "A"}]}
        for name in ("loud", "quiet")
    ]
    data = SpeechDialogueData(str(write_manifest(rows)), augmentation=Augmentation(level_db=(6, 9)))
    with caplog.at_level(logging.INFO, "lightning_s2s"):
        module = fit(tmp_path, requirements, data)
    assert max(sound for *_, sound in module.heard) == pytest.approx(0.5, abs=0.01)  # a sine at full scale
    assert data.problems["train"] == {LEVEL_LIMITED: 1}
    assert "audio 'loud.wav' is changed by 0.9 dB instead of " in caplog.text
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        f"train: noted while reading audio: 1 x {LEVEL_LIMITED}"
    ]


def test_overfitting_is_not_augmented(tmp_path, requirements, make_data):
    module = fit(tmp_path, requirements, make_data(), overfit_batches=1)
    assert len({clip[1:] for clip in module.heard}) == 3 and len(module.heard) == 3 * EPOCHS


def test_where_augmentation_is_refused(requirements, make_data, caplog):
    cached = replace(requirements, fixed_audio=True)
    with pytest.raises(ValueError, match=r"data.augmentation: must be null with scaling.encoder_cache"):
        make_data().prepare_split("train", cached)
    make_data().prepare_split("validation", cached)
    with pytest.raises(ValueError, match=r"data.augmentation: must be null for a vocoder"):
        make_data().prepare_split("train", DataRequirements(sample_rate=16_000, task="vocoder"))
    assert not caplog.records
    with pytest.raises(ValueError, match=r"augmentation.bands_hz\[1\]: got \[8000, 9000\]; audio at 16000 Hz has"):
        make_data(Augmentation(bands_hz=[(0, 8000), (8000, 9000)])).prepare_split("train", requirements)
    make_data().prepare_split("train", replace(requirements, sample_rate=None))
    assert "data.augmentation: has no effect, since this stage has no encoder" in caplog.text
