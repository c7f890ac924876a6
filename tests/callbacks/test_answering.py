"""What callbacks share that let a model answer: the questions, when they are asked, and when they can't be."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch.utils.data import DataLoader

from lightning_s2s.callbacks import AudioLogger, StreamingLatency
from lightning_s2s.callbacks.answering import load_questions
from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.stages import EmpatheticInstructionTuning
from parts.book_model import NUM_STEPS, BookModel, BookStage, fit_book
from parts.event_files import read_events
from parts.small_sizes import SMALL_LM


def test_questions(tmp_path, questions):
    found = load_questions(questions, 8)
    assert [question.tag for question in found] == ["recorded_one", "units", "words"]
    assert (found[1].sample_rate, len(found[1].waveform), found[1].answer_text) == (8000, 6000, "I see.")
    assert len(load_questions(questions, 1)) == 1

    silent = tmp_path / "silent.jsonl"
    silent.write_text('{"messages": [{"role": "user", "content": "hello"}]}')
    with pytest.raises(ValueError, match=r"silent\.jsonl.* no row in which the user speaks"):
        load_questions(str(silent), 1)
    with pytest.raises(ValueError, match="missing.jsonl"):
        fit_book(tmp_path, BookStage(BookModel()), [AudioLogger(str(tmp_path / "missing.jsonl"))])


def test_text_alone(tmp_path, questions):
    """A stage that answers in text has the marks of text, and no sound but the question's."""
    module = BookStage(BookModel(speaks=False))
    fit_book(tmp_path, module, [StreamingLatency(questions, 2, 0), AudioLogger(questions, 2)], num_epochs=1)
    read = read_events(tmp_path)
    names = ("encoder_done_sec", "first_text_token_sec")
    assert sorted(t for t in read.Tags()["scalars"] if t.startswith("latency/")) == [
        f"latency/{name}_p{percent}" for name in names for percent in (50, 95)
    ]
    # The recording is a reference even where the model has no vocoder.
    assert sorted(read.Tags()["audio"]) == ["recorded_one/question", "recorded_one/reference", "units/question"]


def test_every_n_validations_goes_on_after_resume(tmp_path, questions):
    def latency():
        return StreamingLatency(questions, num_questions=1, num_warmup=0, every_n_validations=2)

    module, trainer_options = BookStage(BookModel()), {"enable_checkpointing": False}
    trainer = fit_book(tmp_path / "a", module, [latency()], num_epochs=2, **trainer_options)
    assert len(module.model.asked) == 1  # after the first validation, not after the second
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    module = BookStage(BookModel())
    data = DataLoader(torch.ones(NUM_STEPS, 1))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=4,
        callbacks=[latency()],
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data, data, ckpt_path=tmp_path / "last.ckpt")
    assert len(module.model.asked) == 1  # after the third, not after the fourth


def test_training_is_not_disturbed(tmp_path, questions):
    drawn = []
    for callbacks in ([], [StreamingLatency(questions, 3), AudioLogger(questions, 2)]):
        L.seed_everything(0)
        module = BookStage(BookModel())
        fit_book(tmp_path / str(len(callbacks)), module, callbacks)
        drawn.append((module.drawn, module.layer.weight.item()))
    assert drawn[0] == drawn[1]


def test_weights_that_the_first_fsdp_shards_do_not_answer(questions):
    trainer = SimpleNamespace(sanity_checking=False, strategy=FSDPStrategy(), is_global_zero=True)
    model = BookModel()
    callback = StreamingLatency(questions, 3)
    with pytest.warns(UserWarning, match="a model sharded by FSDPStrategy cannot answer; use the strategy fsdp2"):
        callback.on_validation_epoch_end(trainer, BookStage(model))


@pytest.mark.parametrize("model", [None, SimpleNamespace(can_answer=False)])
def test_a_stage_that_cannot_answer_is_told_once(tmp_path, questions, model):
    with pytest.warns(UserWarning, match="BookStage has no model that answers speech") as caught:
        fit_book(tmp_path, BookStage(model), [StreamingLatency(questions), AudioLogger(questions)])
    assert len([w for w in caught if "answers speech" in str(w.message)]) == 2  # once for each callback
    assert not [tag for tag in read_events(tmp_path).Tags()["scalars"] if tag.startswith("latency")]


def test_on_a_real_stage(tmp_path, tokenizer_folder, tiny_corpus):
    """The streaming session of a small, untrained model, within the stage that trains it."""
    torch.manual_seed(0)
    stage = EmpatheticInstructionTuning(
        llm=CausalLanguageModel(config=SMALL_LM, tokenizer=str(tokenizer_folder)),
        encoder=MelEncoder(width=32, num_layers=1, num_heads=2),
        adapter=ConvAdapter((5,), 32),
        speech_decoder=InterleavedSpeechDecoder("2:4", SMALL_LM, max_units=20),
        vocoder=PocketVocoder(encoder_width=16, decoder_width=16),
    )
    data = SpeechDialogueData(tiny_corpus.train, tiny_corpus.validation, batch_duration_sec=20, max_batch_size=4)
    callbacks = [StreamingLatency(tiny_corpus.validation, 1, 1), AudioLogger(tiny_corpus.validation, 2)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=1,
        val_check_interval=1,
        callbacks=callbacks,
        logger=TensorBoardLogger(tmp_path, name="", version="run"),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
    )
    trainer.fit(stage, data)
    read = read_events(tmp_path)
    medians = [
        read.Scalars(f"latency/{mark}_sec_p50")[-1].value
        for mark in (
            "encoder_done",
            "first_text_token",
            "first_hidden_states",
            "first_units",
            "first_audio",
            "last_audio",
        )
    ]
    assert medians[0] > 0 and medians == sorted(medians)
    for name in ("d12", "d13"):
        tags = [f"{name}/question", f"{name}/reference", f"{name}/reply"]
        assert sorted(tag for tag in read.Tags()["audio"] if tag.startswith(name)) == tags
        assert [[event.step for event in read.Audio(tag)] for tag in tags] == [[1, 2]] * 3
        assert read.Audio(tags[2])[0].sample_rate == 16_000
        assert read.Audio(tags[1])[0].length_frames == 640 * (12 if name == "d12" else 13)
