"""What `AudioLogger` writes, read back from TensorBoard's files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile as sf

from lightning_s2s.callbacks import AudioLogger
from parts.book_model import NUM_STEPS, RATE, REPLY_RATE, BookModel, BookStage, fit_book
from parts.event_files import read_events, text_of


def test_audio_in_tensorboard(tmp_path, questions):
    fit_book(tmp_path, BookStage(BookModel()), [AudioLogger(questions, num_questions=3)])
    read = read_events(tmp_path)
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
