"""What `StreamingLatency` measures, read back from TensorBoard's files and compared with the marks of a known model."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_s2s.callbacks import StreamingLatency
from lightning_s2s.callbacks.streaming_latency import collect_latencies
from parts.book_model import NUM_STEPS, RATE, BookModel, BookStage, fit_book
from parts.event_files import read_events, text_of


def test_latency_in_tensorboard(tmp_path, questions):
    module = BookStage(BookModel())
    trainer = fit_book(tmp_path, module, [StreamingLatency(questions, num_questions=3, num_warmup=4)])
    # No sanity check; two validations of 4 warm-up runs (questions in turn) and 3 measured ones.
    assert [seed for *_, seed in module.model.asked] == 2 * [0, 1, 2, 0, 0, 1, 2]
    assert module.model.asked[:2] == [(RATE, RATE, True, 0), (6000, 8000, True, 1)]

    read = read_events(tmp_path)
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
    fit_book(tmp_path, BookStage(BookModel()), [StreamingLatency(questions, 1, 0), checkpoint])
    assert checkpoint.best_model_score == pytest.approx(0.05)


def test_without_tensorboard_scalars_remain(tmp_path, questions):
    module = BookStage(BookModel())
    with pytest.warns(UserWarning, match="no TensorBoardLogger"):
        fit_book(tmp_path, module, [StreamingLatency(questions, 2, 0)], logger=CSVLogger(tmp_path, version="run"))
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
