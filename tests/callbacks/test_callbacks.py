"""The callbacks on a model that answers by the book: what stands in TensorBoard's files is read back and compared."""

from __future__ import annotations

import io
import json
import warnings
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import soundfile as sf
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from lightning_s2s.callbacks import AudioLogger, StreamingLatency, answering
from lightning_s2s.callbacks.answering import load_questions
from lightning_s2s.callbacks.streaming_latency import collect_latencies
from parts.small_sizes import SMALL_LM

RATE, REPLY_RATE = 16_000, 24_000
NUM_STEPS = 3


class BookVocoder(nn.Module):
    """Unit u is ten samples of u / 10."""

    sample_rate, num_units = REPLY_RATE, 10

    def synthesize(self, units):
        return units.repeat_interleave(10, dim=1).float() / 10


@pytest.fixture(autouse=True)
def _books_answer_themselves(monkeypatch):
    def ask(model, *arguments, **options):
        return (model.respond if isinstance(model, BookModel) else partial(respond, model))(*arguments, **options)

    respond = answering.respond
    monkeypatch.setattr(answering, "respond", ask)


class BookModel(nn.Module):
    """Answers question `seed` with marks that are (seed + 1) times 10, 20, ... ms, and draws a random number."""

    can_answer = True

    def __init__(self, speaks: bool = True):
        super().__init__()
        self.vocoder = BookVocoder() if speaks else None
        self.speaks, self.asked = speaks, []

    def respond(self, waveform, sample_rate, greedy=True, seed=None):
        torch.rand(3)
        self.asked.append((len(waveform), sample_rate, greedy, seed))
        n = seed + 1
        marks = {"encoder_done": 0.01 * n, "first_text_token": 0.02 * n}
        reply = SimpleNamespace(
            text=f"answer | {seed}",
            marks=marks,
            chunk_gaps_sec=[],
            real_time_factor=None,
            waveform=None,
            sample_rate=None,
        )
        if self.speaks:
            marks |= {"first_hidden_states": 0.03 * n, "first_units": 0.04 * n, "first_audio": 0.05 * n}
            marks["last_audio"] = 0.1 * n
            reply.chunk_gaps_sec, reply.real_time_factor = [0.001 * n, 0.003 * n], 0.1 * n
            reply.waveform, reply.sample_rate = torch.linspace(-0.5, 0.5, REPLY_RATE // 2), REPLY_RATE
        return reply


class BookStage(L.LightningModule):
    """A training whose loss hangs on the random state."""

    def __init__(self, model: nn.Module | None):
        super().__init__()
        self.model, self.layer, self.drawn = model, nn.Linear(1, 1), []

    def training_step(self, batch, index):
        self.drawn.append(torch.rand(()).item())
        return self.layer(batch).mean()

    def validation_step(self, batch, index):
        self.log("val/loss", self.layer(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def questions(tmp_path):
    """Four rows: a recorded answer, an answer in units, one without reference, and one in which nobody speaks."""
    sf.write(tmp_path / "q.wav", np.sin(np.arange(RATE) / 20).astype("float32") / 2, RATE)
    sf.write(tmp_path / "low.wav", np.sin(np.arange(6000) / 20).astype("float32") / 2, 8000)
    sf.write(tmp_path / "a.wav", np.zeros(2205, "float32"), 22_050)

    def row(name, question, **answer):
        content = [{"text": "", "audio": question, "transcript": "It is | late.", "emotion": "sad"}]
        answer = {"role": "assistant", "content": [{"text": "I see.", **answer}]}
        return {"id": name, "messages": [{"role": "user", "content": content}, answer]}

    rows = [
        row("recorded one", "q.wav", audio="a.wav", speech_units="<|audio_1|>"),
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]},
        row("units", "low.wav", speech_units="<|audio_1|><|audio_9|>"),
        row("words", "q.wav"),
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def fit(folder, module, callbacks, num_epochs=2, logger=None, **options):
    """Train `NUM_STEPS` steps per epoch with a validation after each; -> the trainer."""
    data = DataLoader(torch.ones(NUM_STEPS, 1))
    logger = TensorBoardLogger(folder, name="", version="run") if logger is None else logger
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=num_epochs,
        callbacks=callbacks,
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=1,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.fit(module, data, data)
    return trainer


def events(folder):
    accumulator = EventAccumulator(
        str(folder / "run"), size_guidance=dict.fromkeys(("scalars", "images", "audio", "histograms", "tensors"), 0)
    )
    accumulator.Reload()
    return accumulator


def text_of(accumulator, tag):
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in accumulator.Tensors(f"{tag}/text_summary")]


def test_latency_in_tensorboard(tmp_path, questions):
    module = BookStage(BookModel())
    trainer = fit(tmp_path, module, [StreamingLatency(questions, num_questions=3, num_warmup=4)])
    # No sanity check; two validations of 4 warm-up runs (questions in turn) and 3 measured ones.
    assert [seed for *_, seed in module.model.asked] == 2 * [0, 1, 2, 0, 0, 1, 2]
    assert module.model.asked[:2] == [(RATE, RATE, True, 0), (6000, 8000, True, 1)]

    read = events(tmp_path)
    # encoder_done was 10, 20, 30 ms: the median is 20, the 95th percentile 20 + 0.9 * 10.
    expected = {
        "encoder_done_sec": (0.02, 0.029),
        "first_text_token_sec": (0.04, 0.058),
        "first_hidden_states_sec": (0.06, 0.087),
        "first_units_sec": (0.08, 0.116),
        "first_audio_sec": (0.1, 0.145),
        "last_audio_sec": (0.2, 0.29),
        # gaps 1, 2, 3, 3, 6, 9 ms: median 3; 95 % lies 0.75 of the way from the 5th to the 6th.
        "chunk_gap_sec": (0.003, 0.00825),
        "real_time_factor": (0.2, 0.29),
    }
    for name, values in expected.items():
        for percent, value in zip((50, 95), values, strict=True):
            found = read.Scalars(f"latency/{name}_p{percent}")
            assert [event.step for event in found] == [event.step for event in read.Scalars("val/loss")]
            assert [event.value for event in found] == pytest.approx([value, value], rel=1e-5)
        histogram = read.Histograms(f"latency/{name}")
        assert [event.step for event in histogram] == [NUM_STEPS, 2 * NUM_STEPS]
        assert histogram[0].histogram_value.num == (6 if name == "chunk_gap_sec" else 3)
    assert histogram[0].histogram_value.sum == pytest.approx(0.6)
    assert len([tag for tag in read.Tags()["scalars"] if tag.startswith("latency/")]) == 2 * len(expected)
    assert [event.step for event in read.Images("latency/stages")] == [NUM_STEPS, 2 * NUM_STEPS]
    assert trainer.callback_metrics["latency/first_audio_sec_p50"] == pytest.approx(0.1)

    [(step, text)] = text_of(read, "latency/setup")
    assert step == NUM_STEPS
    for words in ("| warm-up runs | 4 |", "| processor |", "PyTorch", "| questions | 3 of"):
        assert words in text


def test_latency_can_be_monitored(tmp_path, questions):
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "best", monitor="latency/first_audio_sec_p50")
    fit(tmp_path, BookStage(BookModel()), [StreamingLatency(questions, 1, 0), checkpoint])
    assert checkpoint.best_model_score == pytest.approx(0.05)


def test_text_alone(tmp_path, questions):
    """A stage that answers in text has the marks of text, and no sound but the question's."""
    module = BookStage(BookModel(speaks=False))
    fit(tmp_path, module, [StreamingLatency(questions, 2, 0), AudioLogger(questions, 2)], num_epochs=1)
    read = events(tmp_path)
    names = ("encoder_done_sec", "first_text_token_sec")
    assert sorted(t for t in read.Tags()["scalars"] if t.startswith("latency/")) == [
        f"latency/{name}_p{percent}" for name in names for percent in (50, 95)
    ]
    # The recording is a reference even where the model has no vocoder.
    assert sorted(read.Tags()["audio"]) == ["recorded_one/question", "recorded_one/reference", "units/question"]


def test_audio_in_tensorboard(tmp_path, questions):
    fit(tmp_path, BookStage(BookModel()), [AudioLogger(questions, num_questions=3)])
    read = events(tmp_path)
    assert sorted(read.Tags()["audio"]) == [
        "recorded_one/question",
        "recorded_one/reference",
        "recorded_one/reply",
        "units/question",
        "units/reference",
        "units/reply",
        "words/question",
        "words/reply",
    ]
    expected = {
        "recorded_one/question": (RATE, RATE),
        "recorded_one/reference": (22_050, 2205),
        "units/question": (8000, 6000),
        "units/reference": (REPLY_RATE, 20),
        "words/reply": (REPLY_RATE, REPLY_RATE // 2),
    }
    for tag, (rate, length) in expected.items():
        found = read.Audio(tag)
        assert [event.step for event in found] == [NUM_STEPS, 2 * NUM_STEPS]
        waveform, stored_rate = sf.read(io.BytesIO(found[0].encoded_audio_string), dtype="float32")
        assert (found[0].sample_rate, stored_rate, len(waveform)) == (rate, rate, length)
        if tag == "units/reference":
            assert waveform == pytest.approx(np.repeat([0.1, 0.9], 10), abs=1e-4)
        if tag == "words/reply":
            assert waveform == pytest.approx(np.linspace(-0.5, 0.5, length), abs=1e-4)
    for name in ("recorded_one", "units", "words"):
        pictures = read.Images(f"{name}/mel")
        assert [event.step for event in pictures] == [NUM_STEPS, 2 * NUM_STEPS]
        assert pictures[0].encoded_image_string.startswith(b"\x89PNG")
    assert [step for step, _ in text_of(read, "words/text")] == [NUM_STEPS, 2 * NUM_STEPS]
    table = text_of(read, "units/text")[0][1]
    for line in ("| question | It is \\| late. (sad) |", "| reply | answer \\| 1 |", "| reference | I see. |"):
        assert line in table


def test_every_n_validations_goes_on_after_resume(tmp_path, questions):
    def latency():
        return StreamingLatency(questions, num_questions=1, num_warmup=0, every_n_validations=2)

    module, trainer_options = BookStage(BookModel()), {"enable_checkpointing": False}
    trainer = fit(tmp_path / "a", module, [latency()], num_epochs=2, **trainer_options)
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
        fit(tmp_path / str(len(callbacks)), module, callbacks)
        drawn.append((module.drawn, module.layer.weight.item()))
    assert drawn[0] == drawn[1]


def test_weights_that_the_first_fsdp_shards_do_not_answer(questions):
    trainer = SimpleNamespace(sanity_checking=False, strategy=FSDPStrategy(), is_global_zero=True)
    model = BookModel()
    callback = StreamingLatency(questions, 3)
    with pytest.warns(UserWarning, match="weights that FSDPStrategy shards can't answer; use fsdp2 for that"):
        callback.on_validation_epoch_end(trainer, BookStage(model))


@pytest.mark.parametrize("model", [None, SimpleNamespace(can_answer=False)])
def test_a_stage_that_cannot_answer_is_told_once(tmp_path, questions, model):
    with pytest.warns(UserWarning, match="BookStage has no model that answers speech") as caught:
        fit(tmp_path, BookStage(model), [StreamingLatency(questions), AudioLogger(questions)])
    assert len([w for w in caught if "answers speech" in str(w.message)]) == 2  # once for each callback
    assert not [tag for tag in events(tmp_path).Tags()["scalars"] if tag.startswith("latency")]


def test_without_tensorboard_scalars_remain(tmp_path, questions):
    module = BookStage(BookModel())
    with pytest.warns(UserWarning, match="no TensorBoardLogger"):
        fit(tmp_path, module, [StreamingLatency(questions, 2, 0)], logger=CSVLogger(tmp_path, version="run"))
    assert "latency/first_audio_sec_p95" in (tmp_path / "lightning_logs/run/metrics.csv").read_text()


def test_validate_alone(tmp_path, questions):
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[StreamingLatency(questions, 2, 0)],
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    with pytest.warns(UserWarning, match="no TensorBoardLogger"):
        [metrics] = trainer.validate(BookStage(BookModel()), DataLoader(torch.ones(1, 1)), verbose=False)
    assert metrics["latency/first_audio_sec_p50"] == pytest.approx(0.075)


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
        fit(tmp_path, BookStage(BookModel()), [AudioLogger(str(tmp_path / "missing.jsonl"))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_questions": 0}, "num_questions must be at least 1; got 0"),
        ({"num_warmup": -1}, "num_warmup must be at least 0; got -1"),
        ({"every_n_validations": 0}, "every_n_validations must be at least 1; got 0"),
    ],
)
def test_wrong_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        StreamingLatency("questions.jsonl", **options)


def test_missing_marks_are_left_out():
    spoken, silent = BookModel().respond([], RATE, seed=0), BookModel(speaks=False).respond([], RATE, seed=1)
    values = collect_latencies([spoken, silent])
    assert values["encoder_done_sec"] == [0.01, 0.02] and values["first_audio_sec"] == [0.05]
    assert "chunk_gap_sec" not in collect_latencies([silent])


def test_on_a_real_stage(tmp_path, tokenizer_folder, tiny_corpus):
    """The streaming session of a small, untrained model, within the stage that trains it."""
    from lightning_s2s.components.adapters.conv import ConvAdapter
    from lightning_s2s.components.encoders.mel import MelEncoder
    from lightning_s2s.components.llms.causal import CausalLanguageModel
    from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
    from lightning_s2s.components.vocoders.pocket import PocketVocoder
    from lightning_s2s.data import SpeechDialogueData
    from lightning_s2s.stages import EmpatheticInstructionTuning

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
    read = events(tmp_path)
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
