"""Questions that can't be asked are named before a model is loaded; an id of a row is never a path."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from lightning_s2s.evaluation.answers import EvaluateAnswersConfig, evaluate_answers
from lightning_s2s.evaluation.questions import EvaluationQuestion, file_names
from parts.paths import EXPERIMENTS

GRAMMAR = str(EXPERIMENTS / "tiny" / "grammar.yaml")
ASKED = {"role": "user", "content": [{"audio": "q.wav", "emotion": "sad"}]}


def asked(*items: dict | str, role: str = "user") -> dict:
    return {"messages": [{"role": role, "content": list(items)}, {"role": "assistant", "content": "A"}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (asked({"text": "Hello?"}), "messages: the user says nothing"),
        ({"messages": [{"role": "user", "content": "Hello?"}]}, "messages: the user says nothing"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages: the user says nothing"),
        (asked({"text": "A", "audio": "q.wav", "emotion": "sad"}, role="assistant"), "messages: the user says nothing"),
        (asked({"audio": "q.wav"}), "emotion: is missing beside the audio 'q.wav'"),
        (asked({"audio": "none.wav", "emotion": "sad"}), "audio '.*none.wav': there is no file"),
        (asked({"audio": "q.zip", "emotion": "sad"}), "audio 'q.zip': an archive needs a place"),
        (asked({"audio": f"q.wav:0:{2**62}", "emotion": "sad"}), "lie outside the file"),
        ("{", "is not JSON"),
    ],
)
def test_rows_that_ask_nothing(tmp_path, write_manifest, row, message):
    soundfile.write(tmp_path / "q.wav", np.full(8000, 0.1, np.float32), 16_000)
    path = write_manifest([{"messages": [ASKED]}, row])
    with pytest.raises(ValueError, match=f"^{path}:2: .*{message}"):
        evaluate_answers(EvaluateAnswersConfig("absent", str(path), GRAMMAR, str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_question_is_the_users_first_audio():
    question = {"audio": "b.wav", "emotion": "sad"}
    row = {
        "messages": [
            {"role": "system", "content": "s"},
            *asked({"text": "t"}, question, {"audio": "c.wav"})["messages"],
        ]
    }
    found = EvaluationQuestion.from_row(row | {"id": "a", "manifest": "m", "line": 1})
    assert (found.audio, found.emotion, found.pair) == ("b.wav", "sad", "a")


@pytest.mark.parametrize(("option", "least"), [("limit", 0), ("num_warmup", 0), ("latency_questions", 0), ("slots", 1)])
def test_numbers_of_questions(option, least):
    with pytest.raises(ValueError, match=f"{option} must be at least {least}; got {least - 1}"):
        EvaluateAnswersConfig("m", "questions.jsonl", GRAMMAR, "o", **{option: least - 1})


def test_names_of_files():
    assert file_names(["a-1", "test.b", "ü"]) == ["a-1", "test.b", "ü"]
    assert file_names(["../../etc/x", "/etc/x", "..", "", ".hidden", "a/b", "a_b", "A_B", "a\0b"]) == [
        "_.._etc_x", "_etc_x", "_", "_-2", "hidden", "a_b", "a_b-2", "A_B-3", "a_b-4",
    ]  # fmt: skip
    (long,) = file_names(["x" * 500])
    assert len(long) == 100
