"""Valid inputs of a session, and invalid ones, which are refused by name before they reach the engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.session import StreamingSession, respond, stream_reply
from parts.small_models import assert_same_reply, build
from parts.sounds import sweep

QUESTION = sweep(0.6)
RATE = 16_000
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}


@pytest.fixture
def model(tokenizer_folder):
    return build(tokenizer_folder)


def items(*content: dict, role: str = "user") -> list:
    return [{"role": role, "content": list(content)}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": math.nan}, "sample_rate must be between 1000 and 768000; got nan"),
        ({"sample_rate": math.inf}, "sample_rate must be between .*; got inf"),
        ({"sample_rate": 0}, "sample_rate must be between .*; got 0"),
        ({"sample_rate": -16_000}, "sample_rate must be between .*; got -16000"),
        ({"sample_rate": 1e-9}, "sample_rate must be between .*; got 1e-09"),
        ({"sample_rate": 10**400}, "sample_rate must be between .*; got 1000"),
        ({"sample_rate": True}, "sample_rate must be between .*; got True"),
        ({"sample_rate": "16000"}, "sample_rate must be between .*; got '16000'"),
        ({"sample_rate": None}, "sample_rate must be between .*; got None"),
        ({"max_text_tokens": 0}, "max_text_tokens must be at least 1; got 0"),
        ({"max_text_tokens": -3}, "max_text_tokens must be at least 1; got -3"),
        ({"max_text_tokens": 2.5}, "max_text_tokens must be a whole number, at least 1; got 2.5"),
        ({"max_text_tokens": True}, "max_text_tokens must be a whole number, at least 1; got True"),
        ({"opening_units": 1.0}, "opening_units must be a whole number"),
        ({"seed": "1"}, "seed must be a whole number, .*; got '1'"),
        ({"seed": 2**64}, "seed must be between"),
        ({"speak": "no"}, "speak must be true or false; got 'no'"),
        ({"vocode": 1}, "vocode must be true or false; got 1"),
        ({"greedy": None}, "greedy must be true or false; got None"),
        ({"text_sampler": 0.8}, "text_sampler must be a Sampler; got float"),
        ({"unit_sampler": "greedy"}, "unit_sampler must be a Sampler; got str"),
        ({"speaker": torch.zeros(511)}, r"speaker must be \(512,\) floats; got float32 of shape \(511,\)"),
        ({"speaker": torch.zeros(1, 512)}, r"speaker must be \(512,\) floats; got float32 of shape \(1, 512\)"),
        ({"speaker": torch.tensor(0.0)}, r"speaker must be .* of shape \(\)"),
        ({"speaker": torch.zeros(512, dtype=torch.complex64)}, "speaker must be .* got complex64"),
        ({"speaker": np.zeros(512, np.int64)}, "speaker must be .* got int64"),
        ({"speaker": "alice"}, "speaker must be .* got str"),
        ({"speaker": torch.full((512,), math.nan)}, "speaker holds NaN or infinite numbers"),
        ({"speaker": torch.full((512,), -math.inf)}, "speaker holds NaN or infinite numbers"),
        ({"instruction": None}, "instruction must be a text; got NoneType"),
        ({"instruction": b"Hi"}, "instruction must be a text; got bytes"),
        ({"instruction": "\ud800"}, "instruction holds half a character"),
        ({"instruction": "<|im_end|>"}, "instruction and history: text: contains the special token '<|im_end|>'"),
        ({"instruction": "x" * 20_000}, "instruction and history take 20[0-9]{3} positions .* fewer than 512 are"),
        ({"history": "Hi"}, "history must be a list of messages; got 'Hi'"),
        ({"history": USER}, "history must be a list of messages"),
        ({"history": 5}, "history must be a list of messages; got 5"),
        ({"history": [None]}, r"history\[0\]: got None"),
        ({"history": [{"role": "user"}]}, r"history\[0\].content: got None"),
        ({"history": [USER, {"role": "wizard", "content": "Hi"}]}, r"history\[1\].role: got 'wizard'"),
        ({"history": items({"text": 5})}, r"history\[0\].content\[0\].text: got 5"),
        ({"history": items({"text": "\udfff"})}, r"history\[0\].text holds half a character"),
        ({"history": [USER, *items({"text": "", "audio": "q.wav"})]}, r"history\[1\]: audio 'q.wav': a session only"),
        ({"history": items({"text": "a", "audio": "no/such.wav"}), "speak": False}, r"history\[0\]: audio"),
        ({"history": items({"transcript": "Hi"})}, r"history\[0\].content: has no text"),
        ({"history": items({"text": "Hi", "audios": ["q.wav"]})}, "history: key 'audios' of a content item"),
        ({"history": items({"text": "Hi", 5: "q.wav"})}, r"history\[0\]: key 5, which nothing reads"),
        ({"history": [USER | {"input_audio": "q.wav"}]}, "history: key 'input_audio' of a message"),
        ({"history": [USER | {"content": "x" * 300}, ASSISTANT] * 2}, "instruction and history take .* positions"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_are_refused(model, options, message):
    engine = StreamingEngine(model)
    with pytest.raises(ValueError, match=message) as error:
        StreamingSession(model, **{"sample_rate": RATE, "engine": engine} | options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not engine.llm_cache.taken and not engine.speech_cache.taken


def test_numbers_of_numpy_are_numbers(model):
    plain = respond(model, QUESTION, RATE, max_text_tokens=5, seed=1)
    options = {"max_text_tokens": np.int64(5), "seed": np.int32(1), "speaker": np.zeros(512)}
    assert_same_reply(respond(model, QUESTION, np.float32(RATE), **options), plain)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (QUESTION.astype(np.complex64), "waveform: got samples of type complex64"),
        (torch.zeros(1600, dtype=torch.complex64), "waveform: got samples of type complex64"),
        (np.stack([QUESTION] * 2), r"waveform: must be \(T,\), mono; got shape \(2, 9600\)"),
        (np.float32(0.5), r"waveform: must be \(T,\), mono; got shape \(\)"),
        (np.array([object()] * 1600), "waveform: got samples of type object"),
        (np.zeros(1600, bool), "waveform: got samples of type bool"),
        (np.zeros(1600, np.int64), "waveform: got samples of type int64"),
        (["a"] * 1600, "waveform: got samples of type <U1"),
        ([[0.0], [0.0, 0.1]], "waveform: can't be read as an array"),
        (None, "waveform: must be"),
        (np.full(1600, np.nan), "waveform: holds NaN or infinite samples"),
        (np.full(1600, -np.inf), "waveform: holds NaN or infinite samples"),
        (np.full(1600, 1e300), "waveform: reaches 1e[+]300, full scale is 1"),
        (32_767 * QUESTION, "waveform: reaches 16383.*, full scale is 1"),
        (QUESTION[:0], "waveform: the question has 0.000 s of audio; at least 0.1 s is needed"),
        (QUESTION[:1599], "waveform: the question has 0.100 s of audio; at least 0.1 s is needed"),
        (np.zeros(16_000 * 90, np.float32), "the question's waveform [0-9]+; fewer than 512 are allowed"),
    ],
    ids=range(17),
)
def test_audio_that_is_refused(model, waveform, message):
    engine = StreamingEngine(model)
    with pytest.raises(ValueError, match=message):
        stream_reply(model, waveform, RATE, engine=engine)
    assert not engine.llm_cache.taken and not engine.num_running


@pytest.mark.parametrize(
    "waveform",
    [
        (QUESTION * 32_768).astype(np.int16),
        (QUESTION.astype(np.float64) * 2**31).astype(np.int32),
        torch.from_numpy(QUESTION).double().requires_grad_(),
        list(map(float, QUESTION)),
    ],
    ids=["int16", "int32", "float64", "list"],
)
def test_whatever_holds_the_samples_the_question_is_the_same(model, waveform):
    session, expected = (StreamingSession(model, RATE) for _ in range(2))
    session.push(waveform)
    expected.push(QUESTION)
    torch.testing.assert_close(session._pieces[0], expected._pieces[0], rtol=0, atol=2**-15)


def test_a_buffer_may_be_used_again(model):
    buffer, session = QUESTION.copy(), StreamingSession(model, RATE, max_text_tokens=5)
    session.push(buffer)
    buffer[:] = 0
    *_, done = session.finish()
    assert_same_reply(done.reply, respond(model, QUESTION, RATE, max_text_tokens=5))


def test_a_question_that_is_over_is_over(model):
    session = StreamingSession(model, RATE, max_text_tokens=5)
    with pytest.raises(ValueError, match="0.000 s of audio"):
        session.finish()
    session.push(QUESTION)
    events = session.finish()
    with pytest.raises(ValueError, match="push after finish: the question is over"):
        session.push(QUESTION)
    with pytest.raises(ValueError, match="finish: the question is over already"):
        session.finish()
    *_, done = events
    assert_same_reply(done.reply, respond(model, QUESTION, RATE, max_text_tokens=5))
    with pytest.raises(ValueError, match="finish: the question is over already"):
        session.finish()


def test_what_was_said_earlier_is_read(model):
    history = [USER, {"role": "assistant", "content": [{"text": "Yes?", "speech_units": [1, 2]}]}]
    longer = StreamingSession(model, RATE, history=history)
    assert len(longer.options.prompt_ids) > len(StreamingSession(model, RATE).options.prompt_ids)
    assert (
        StreamingSession(model, RATE, history=[]).options.prompt_ids == StreamingSession(model, RATE).options.prompt_ids
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 2.0}, "num_slots must be a whole number, at least 1; got 2.0"),
        ({"num_slots": True}, "num_slots must be a whole number"),
        ({"max_positions": 0}, "max_positions must be at least 1; got 0"),
        ({"position_limit": 1}, "position_limit must be at least 2; got 1"),
        ({"position_limit": math.inf}, "position_limit must be a whole number, at least 2; got inf"),
        ({"compile": "no"}, "compile must be true or false; got 'no'"),
        ({"overlap": None}, "overlap must be true or false; got None"),
    ],
)
def test_an_engine_s_options_that_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        StreamingEngine(model, **options)
