"""The façade: load a model from any source, get its reply, save it as a folder."""

from __future__ import annotations

import pytest
import torch

import lightning_s2s
from lightning_s2s import SpeechToSpeech
from lightning_s2s.streaming.events import Done
from parts.small_models import QUESTION, SHORT, assert_same_reply, build


def test_loaded_from_a_run_it_answers_in_every_way_and_is_saved(tokenizer_folder, tmp_path):
    SpeechToSpeech(build(tokenizer_folder)).save(tmp_path / "run" / "model")
    model = SpeechToSpeech.load(tmp_path / "run")
    reply = model.respond(QUESTION, 16_000, **SHORT)
    *_, done = model.stream(QUESTION, 16_000, **SHORT)
    assert isinstance(done, Done)
    assert_same_reply(done.reply, reply)
    session = model.session(16_000, **SHORT)
    for piece in (QUESTION[:5000], QUESTION[5000:]):
        session.push(piece)
    *_, done = session.finish()
    assert_same_reply(done.reply, reply)
    model.save(tmp_path / "again")
    assert_same_reply(SpeechToSpeech.load(tmp_path / "again").respond(QUESTION, 16_000, **SHORT), reply)


def test_another_vocoder_goes_where_the_model_is(tokenizer_folder, tmp_path):
    other = build(tokenizer_folder).vocoder.double().train()
    SpeechToSpeech(build(tokenizer_folder)).save(tmp_path / "model")
    model = SpeechToSpeech.load(tmp_path / "model", vocoder=other).model
    assert model.vocoder is other and not other.training and next(other.parameters()).device == torch.device("cpu")


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path}/none: no such model; expected a model folder"):
        SpeechToSpeech.load(tmp_path / "none")
    with pytest.raises(AttributeError, match="module 'lightning_s2s' has no attribute 'Speech'"):
        _ = lightning_s2s.Speech
