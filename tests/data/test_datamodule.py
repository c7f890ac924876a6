"""SpeechDialogueData under a real Trainer: the same batches in the same order, whole, stopped or killed."""

from __future__ import annotations

import dataclasses
import logging

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.data.requirements import DataRequirements

EPOCHS = 3


class Recorder(L.LightningModule):
    """A stage of one parameter that writes down which rows it sees."""

    def __init__(self, requirements: DataRequirements):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.requirements = requirements
        self.seen: list[tuple[int, list[str]]] = []
        self.validated: list[list[str]] = []

    def data_requirements(self) -> DataRequirements:
        return self.requirements

    def training_step(self, batch, batch_index):
        self.seen.append((self.current_epoch, [row["id"] for row in batch.rows]))
        return self.weight * batch.waveform.abs().mean()

    def validation_step(self, batch, batch_index):
        self.validated.append([row["id"] for row in batch.rows])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Stop(Callback):
    """Ends a run after `after` batches: politely, or like a kill."""

    def __init__(self, after: int, kill: bool):
        self.after, self.kill = after, kill

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if self.kill and trainer.global_step == self.after:
            raise RuntimeError("killed")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        if not self.kill and trainer.global_step == self.after:
            trainer.should_stop = True


def trainer(folder, *callbacks, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{"max_epochs": EPOCHS, **quiet, **options})


@pytest.fixture
def requirements(chat_tokenizer, tiny_corpus) -> DataRequirements:
    return DataRequirements(chat_tokenizer, tiny_corpus.sample_rate, tiny_corpus.unit_rate_hz, tiny_corpus.num_units)


@pytest.fixture
def make_data(tiny_corpus):
    def make(**options) -> SpeechDialogueData:
        defaults = {"max_batch_size": 3, "num_buckets": 2, "seed": 4}
        return SpeechDialogueData(tiny_corpus.train, tiny_corpus.validation, **{**defaults, **options})

    return make


@pytest.fixture
def whole(tmp_path, requirements, make_data):
    """The batches of a run that nothing stopped."""
    module = Recorder(requirements)
    trainer(tmp_path / "whole", enable_checkpointing=False).fit(module, make_data())
    return module


def test_epochs(whole):
    ids = [f"d{i:02d}" for i in range(12)]
    epochs = [[rows for epoch, rows in whole.seen if epoch == number] for number in range(EPOCHS)]
    assert [len(batches) for batches in epochs] == [4, 4, 4]
    for batches in epochs:
        assert sorted(row for rows in batches for row in rows) == ids
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]
    assert sorted(row for rows in whole.validated[:2] for row in rows) == ["d12", "d13", "d14", "d15"]
    assert whole.validated[-2:] == whole.validated[:2]


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize(("stop_after", "num_workers"), [(1, 0), (4, 0), (6, 0), (7, 0), (8, 0), (11, 0), (6, 2)])
def test_a_resumed_run_sees_what_a_whole_one_sees(
    tmp_path, requirements, make_data, whole, stop_after, kill, num_workers
):
    checkpoint = ModelCheckpoint(tmp_path / "run", filename="last", every_n_train_steps=1, enable_version_counter=False)
    first = Recorder(requirements)
    run = trainer(tmp_path / "run", checkpoint, Stop(stop_after, kill))
    data = make_data(num_workers=num_workers)
    if kill:
        with pytest.raises(RuntimeError, match="killed"):
            run.fit(first, data)
    else:
        run.fit(first, data)
    assert first.seen == whole.seen[:stop_after]
    second = Recorder(requirements)
    trainer(tmp_path / "run", enable_checkpointing=False).fit(
        second, make_data(num_workers=num_workers), ckpt_path=tmp_path / "run" / "last.ckpt"
    )
    assert second.seen == whole.seen[stop_after:]
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.parametrize("limits", [{"max_epochs": EPOCHS}, {"max_epochs": -1, "max_steps": 12}])
def test_a_run_that_is_resumed_again_and_again(tmp_path, requirements, make_data, whole, limits):
    seen, path = [], None
    for steps in range(1, 13, 2):
        checkpoint = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
        module = Recorder(requirements)
        trainer(tmp_path, checkpoint, Stop(steps, kill=False), **limits).fit(module, make_data(), ckpt_path=path)
        seen += module.seen
        path = tmp_path / "last.ckpt"
    assert [rows for _, rows in seen] == [rows for _, rows in whole.seen[:11]]


@pytest.mark.parametrize("options", [{"val_check_interval": 3}, {"val_check_interval": 2}, {}])
@pytest.mark.parametrize("limits", [{"max_epochs": EPOCHS}, {"max_epochs": -1, "max_steps": 12}])
def test_resuming_from_a_checkpoint_made_at_validation(tmp_path, requirements, make_data, whole, options, limits):
    checkpoint = ModelCheckpoint(tmp_path / "run", filename="{step}", save_top_k=-1, monitor=None)
    trainer(tmp_path / "run", checkpoint, **options, **limits).fit(Recorder(requirements), make_data())
    files = sorted((tmp_path / "run").glob("*.ckpt"))
    assert len(files) >= EPOCHS
    for path in files:
        step = int(path.stem.split("=")[1])
        second = Recorder(requirements)
        trainer(tmp_path / "again", enable_checkpointing=False, **options, **limits).fit(
            second, make_data(), ckpt_path=path
        )
        assert [rows for _, rows in second.seen] == [rows for _, rows in whole.seen[step:]], path.name


def test_training_on_goes_on_with_the_next_epoch(tmp_path, requirements, make_data, whole):
    checkpoint = ModelCheckpoint(tmp_path / "run", filename="last", enable_version_counter=False)
    trainer(tmp_path / "run", checkpoint, max_epochs=2).fit(Recorder(requirements), make_data())
    second = Recorder(requirements)
    trainer(tmp_path / "again", enable_checkpointing=False).fit(
        second, make_data(), ckpt_path=tmp_path / "run" / "last.ckpt"
    )
    assert second.seen == whole.seen[8:]


def test_without_validation(tmp_path, requirements, tiny_corpus):
    module = Recorder(requirements)
    trainer(tmp_path, enable_checkpointing=False, max_epochs=1).fit(module, SpeechDialogueData(tiny_corpus.train))
    assert sorted(row for _, rows in module.seen for row in rows) == [f"d{i:02d}" for i in range(12)]
    assert module.validated == []


def test_validate_needs_no_training_data(tmp_path, requirements, tiny_corpus):
    module = Recorder(requirements)
    trainer(tmp_path).validate(module, SpeechDialogueData(validation=tiny_corpus.validation), verbose=False)
    assert sorted(row for rows in module.validated for row in rows) == ["d12", "d13", "d14", "d15"]
    with pytest.raises(ValueError, match=r"data.train: is empty; at least one manifest"):
        trainer(tmp_path).fit(module, SpeechDialogueData(validation=tiny_corpus.validation))


def test_overfitting_sees_the_same_batch_again(tmp_path, requirements, make_data):
    module = Recorder(requirements)
    trainer(tmp_path, enable_checkpointing=False, overfit_batches=1).fit(module, make_data())
    assert len(module.seen) == EPOCHS
    assert len({tuple(rows) for _, rows in module.seen}) == 1


def dialogue(name: str) -> dict:
    user = {"role": "user", "content": [{"audio": f"{name}.wav"}]}
    return {"id": name, "messages": [user, {"role": "assistant", "content": "A"}]}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_files_that_only_decoding_shows_broken(tmp_path, write_manifest, requirements, caplog, num_workers):
    for name, value in (("a", 0.1), ("b", 0.2), ("nan", np.nan), ("clipped", 1.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(16000, value, dtype=np.float32), 16000, subtype="FLOAT")
    path = write_manifest([dialogue("a"), dialogue("nan"), "{", dialogue("b"), dialogue("clipped")])
    module = Recorder(requirements)
    data = SpeechDialogueData(str(path), max_batch_size=1, on_error="skip", num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, enable_checkpointing=False).fit(module, data)
    # A batch of which nothing is left has the first readable row in its place.
    for epoch in range(EPOCHS):
        seen = sorted(row for number, rows in module.seen if number == epoch for row in rows)
        assert seen == ["a", "a", "b", "clipped"]
    assert data.problems == {"train": {"not JSON": 1, "not finite audio": 1, "clipped audio": 1}, "validation": {}}
    assert caplog.text.count("rows.jsonl:2: audio") == 1
    assert caplog.text.count("rows.jsonl:5: audio") == 1
    assert "noted while reading audio: 1 x clipped audio; 1 x not finite audio" in caplog.text
    with pytest.raises(ValueError, match=r"rows.jsonl:3: is not JSON"):
        trainer(tmp_path, enable_checkpointing=False).fit(module, SpeechDialogueData(str(path)))


def test_channels_that_cancel_are_noted(tmp_path, write_manifest, requirements, caplog):
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([samples, -samples], axis=1), 16000, subtype="FLOAT")
    data = SpeechDialogueData(str(write_manifest([dialogue("a")])))
    trainer(tmp_path, enable_checkpointing=False).fit(Recorder(requirements), data)
    assert data.problems["train"] == {"channels that cancel": 1}
    assert f"rows.jsonl:1: audio '{tmp_path}/a.wav' has channels that cancel each other out" in caplog.text


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_stage_that_trains_speech_needs_units(tmp_path, write_manifest, requirements, caplog, split):
    soundfile.write(tmp_path / "a.wav", np.full(16000, 0.1, dtype=np.float32), 16000)
    speaks = dataclasses.replace(requirements, trains_speech=True)
    mute = write_manifest([dialogue("a")] * 2)
    spoken = {"role": "assistant", "content": [{"text": "A", "speech_units": [1]}]}
    mixed = write_manifest([dialogue("a"), {"messages": [dialogue("a")["messages"][0], spoken]}], "mixed.jsonl")
    assert len(SpeechDialogueData(**{split: str(mixed)}).prepare_split(split, speaks)) == 2
    assert not caplog.records
    data = SpeechDialogueData(**{split: str(mute)})
    assert len(data.prepare_split(split, requirements)) == 2
    expected = f"data.{split}: none of 2 rows of {mute} has speech_units"
    if split == "train":
        with pytest.raises(ValueError, match=f"{expected}, so nothing would be learnt about speech; make them with"):
            data.prepare_split(split, speaks)
    else:
        data.prepare_split(split, speaks)
        assert caplog.messages == [f"{expected}; speech is not validated"]


def test_broken_audio_is_fatal_by_default(tmp_path, write_manifest, requirements):
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    path = write_manifest([dialogue("nan")])
    with pytest.raises(ValueError, match=r"rows.jsonl:1: audio '.*nan.wav': has NaN"):
        trainer(tmp_path, enable_checkpointing=False).fit(Recorder(requirements), SpeechDialogueData(str(path)))
    with pytest.raises(ValueError, match=r"rows.jsonl: no row has audio that can be read"):
        trainer(tmp_path, enable_checkpointing=False).fit(
            Recorder(requirements), SpeechDialogueData(str(path), on_error="skip")
        )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"on_error": "ignore"}, "on_error: got 'ignore'; allowed: skip, raise"),
        ({"batch_duration_sec": 0}, "batch_duration_sec must be above 0; got 0"),
        ({"max_batch_size": -1}, "max_batch_size must be at least 1; got -1"),
        ({"num_workers": -1}, "num_workers must be between 0 and 1,024; got -1"),
        ({"num_workers": 2, "cache_audio": True}, "cache_audio: keeps audio in the main process; .*, got 2"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=message):
        SpeechDialogueData(**option)
