"""Questions for callbacks that let a model answer, and a model of which the answers are known."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import soundfile as sf

from lightning_s2s.callbacks import answering
from parts.book_model import RATE, BookModel


@pytest.fixture(autouse=True)
def books_answer_themselves(monkeypatch):
    def ask(model, *arguments, **options):
        return (model.respond if isinstance(model, BookModel) else partial(respond, model))(*arguments, **options)

    respond = answering.respond
    monkeypatch.setattr(answering, "respond", ask)


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
