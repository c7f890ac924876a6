"""The model: folders, streamed replies, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soxr
import torch
from safetensors.torch import load_file

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.events import AudioChunk, Done, TextDelta, Units
from lightning_s2s.streaming.session import StreamingSession, respond, stream_reply
from lightning_s2s.streaming.speak import speak_text
from parts.json_files import change
from parts.small_models import QUESTION, SHORT, assert_same_reply, build
from parts.sounds import sweep
from parts.tolerances import assert_same_pocket_sound

MARKS = ["encoder_done", "first_text_token", "first_hidden_states", "first_units", "first_audio", "last_audio"]


@pytest.fixture
def model(tokenizer_folder) -> SpeechToSpeechModel:
    return build(tokenizer_folder)


def test_a_folder_gives_the_same_model(model, tmp_path):
    folder = tmp_path / "model"
    save_model(model, folder)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".ckpt", ".pkl")) or name.startswith(".")]
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "lightning_s2s" and config["format_version"] == 1
    assert config["adapter"] == {
        "class_path": "conv",
        "init_args": {"kernel_sizes": [5, 5], "inner_width": 8, "silence_padding": True},
    }
    assert config["llm"]["init_args"]["tokenizer"] == "."

    moved = folder.rename(tmp_path / "moved")
    again = load_model(moved)
    assert not again.training
    reply = respond(model, QUESTION, 16_000, **SHORT)
    assert reply.unit_ids
    assert_same_reply(reply, respond(again, QUESTION, 16_000, **SHORT))


@pytest.mark.parametrize(("hears", "speaks"), [(False, True), (True, False), (False, False)])
def test_a_folder_of_a_partial_model(tokenizer_folder, tmp_path, hears, speaks):
    model = build(tokenizer_folder, hears, speaks)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert model.state_dict().keys() == again.state_dict().keys()
    assert again.can_answer is hears


def test_tied_weights_are_written_once(tokenizer_folder, tmp_path):
    model = build(tokenizer_folder, tie_word_embeddings=True)
    save_model(model, tmp_path / "model")
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert set(model.state_dict()) - set(written) == {"llm.model.lm_head.weight"}
    again = load_model(tmp_path / "model")
    assert again.llm.model.lm_head.weight is again.llm.model.model.embed_tokens.weight
    assert_same_reply(respond(model, QUESTION, 16_000, **SHORT), respond(again, QUESTION, 16_000, **SHORT))


def test_more_embeddings_than_tokens_survive_a_folder(tokenizer_folder, tmp_path):
    model = build(tokenizer_folder, speaks=False, vocab_size=300)
    assert model.llm.vocabulary == 300
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").llm.vocabulary == 300


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", "key 'format' must be 'lightning_s2s'"),
        ("encoder__class_path", "mell", "unknown encoder 'mell'; did you mean mel?"),
        ("encoder__class_path", None, r"config\.json: encoder: must hold class_path"),
        ("encoder", "mel", r"config\.json: encoder: must hold class_path"),
        ("format_version", 2, r"config\.json: format_version: got 2; this version reads 1"),
        ("encodr", {}, r"config\.json: unknown key 'encodr'; did you mean encoder"),
        ("encoder__init_args__widht", 16, "argument of encoder mel 'widht'; did you mean width"),
        ("adapter__init_args__inner_width", 9, r"model\.safetensors: adapter\.fc1\.weight has shape \(8, 16\)"),
        ("adapter__init_args__kernel_sizes", [5], r"model\.safetensors: .*unexpected \['adapter\.convs\.1"),
        ("adapter", None, "encoder and adapter go together"),
        ("llm", None, "key 'llm' is missing"),
    ],
)
def test_a_broken_config(tokenizer_folder, tmp_path, key, value, message):
    folder = tmp_path / "model"
    save_model(build(tokenizer_folder, speaks=False), folder)
    change(folder / "config.json", **{key: value})
    with pytest.raises(ValueError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"config\.json: no such file; expected a model folder"),
        ("config.json", b"{", r"config\.json: not valid JSON"),
        ("config.json", b"\xff\xfe", r"config\.json: not valid JSON"),
        ("config.json", b"[]", "this is no model of Lightning S2S"),
        ("model.safetensors", None, r"model\.safetensors: no such file"),
        ("model.safetensors", b"12345678 not tensors", r"model\.safetensors: not a readable safetensors file"),
    ],
)
def test_a_broken_folder(tokenizer_folder, tmp_path, name, content, message):
    folder = tmp_path / "model"
    save_model(build(tokenizer_folder, hears=False, speaks=False), folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_parts_that_do_not_fit(model):
    parts = {name: getattr(model, name) for name in ("encoder", "adapter", "speech_decoder", "vocoder")}
    for name, message in (
        ("encoder", "encoder and adapter go together"), ("adapter", "encoder and adapter go together"),
        ("speech_decoder", "speech_decoder and vocoder go together"), ("vocoder", "speech_decoder and vocoder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            SpeechToSpeechModel(model.llm, **(parts | {name: None}))
    model.vocoder.num_codebooks = 8
    with pytest.raises(ValueError, match="speaks one codebook, vocoder PocketVocoder has 8"):
        SpeechToSpeechModel(model.llm, speech_decoder=parts["speech_decoder"], vocoder=model.vocoder)


def test_events(model):
    events = list(stream_reply(model, QUESTION, 16_000, **SHORT))
    times = [event.time_sec for event in events]
    assert times == sorted(times)
    assert isinstance(events[-1], Done) and not any(isinstance(event, Done) for event in events[:-1])
    reply = events[-1].reply
    deltas = [event for event in events if isinstance(event, TextDelta)]
    groups = [event.units for event in events if isinstance(event, Units)]
    chunks = [event for event in events if isinstance(event, AudioChunk)]

    assert [token for delta in deltas for token in delta.token_ids] == reply.text_ids
    assert "".join(delta.text for delta in deltas).strip() in (reply.text, reply.text.rstrip("\ufffd"))
    assert 0 < len(reply.text_ids) <= 9
    assert sum(groups, []) == reply.unit_ids and all(0 < len(group) <= 3 for group in groups)
    assert 0 < len(reply.unit_ids) <= 17

    waveform = torch.cat([chunk.waveform for chunk in chunks])
    assert torch.equal(waveform, reply.waveform)
    assert {chunk.sample_rate for chunk in chunks} == {reply.sample_rate} == {16_000}
    expected = model.vocoder.synthesize(torch.tensor([reply.unit_ids]))[0]
    assert_same_pocket_sound(waveform, expected)

    assert sorted(reply.marks) == sorted(MARKS)
    assert [reply.marks[name] for name in MARKS] == sorted(reply.marks.values())
    assert len(reply.chunk_gaps_sec) == len(chunks) - 1 and min(reply.chunk_gaps_sec) >= 0
    assert reply.audio_sec == pytest.approx(len(reply.unit_ids) * 0.04)
    assert reply.real_time_factor == pytest.approx(reply.marks["last_audio"] / reply.audio_sec)


def test_speech_begins_before_the_text_is_complete(model):
    kinds = [type(event) for event in stream_reply(model, QUESTION, 16_000, **SHORT)]
    last_text = len(kinds) - 1 - kinds[::-1].index(TextDelta)
    assert kinds.index(Units) < last_text


def test_greedy_answers_repeat(model):
    assert_same_reply(respond(model, QUESTION, 16_000, **SHORT), respond(model, QUESTION, 16_000, **SHORT))


def test_a_seed_repeats_a_drawn_answer(model):
    first, again, other = (respond(model, QUESTION, 16_000, greedy=False, seed=s, **SHORT) for s in (1, 1, 2))
    assert_same_reply(first, again)
    assert first.text_ids != other.text_ids


def test_text_alone(model, tokenizer_folder):
    for who in (model, build(tokenizer_folder, speaks=False)):
        events = list(stream_reply(who, QUESTION, 16_000, speak=None if who is not model else False, **SHORT))
        assert {type(event) for event in events} == {TextDelta, Done}
        reply = events[-1].reply
        assert reply.waveform is None and reply.unit_ids == [] and reply.real_time_factor is None
        assert list(reply.marks) == ["encoder_done", "first_text_token"]


def test_units_without_sound(model):
    reply = respond(model, QUESTION, 16_000, vocode=False, **SHORT)
    assert reply.unit_ids == respond(model, QUESTION, 16_000, **SHORT).unit_ids and reply.waveform is None


def test_pushed_pieces_equal_the_whole(model):
    session = StreamingSession(model, 16_000, **SHORT)
    for piece in np.array_split(QUESTION, 3):
        session.push(piece)
    *_, done = session.finish()
    assert_same_reply(done.reply, respond(model, torch.from_numpy(QUESTION), 16_000, **SHORT))


def test_other_sample_rates_are_resampled(model):
    question = sweep(0.6, rate=8_000)
    resampled = soxr.resample(question, 8_000, 16_000)
    assert_same_reply(respond(model, question, 8_000, **SHORT), respond(model, resampled, 16_000, **SHORT))


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.where(np.arange(9600) == 5, np.nan, QUESTION), 16_000, "NaN or infinite"),
        (np.full(9600, np.inf, np.float32), 16_000, "NaN or infinite"),
        (np.zeros(0, np.float32), 16_000, "0.000 s of audio; at least 0.1 s"),
        (QUESTION[:1599], 16_000, "at least 0.1 s"),
        (np.stack([QUESTION, QUESTION]), 16_000, "2"),
        (QUESTION, 0, "sample_rate must be between 1000 and 768000; got 0"),
    ],
    ids=["nan", "infinite", "empty", "short", "stereo", "rate"],
)
def test_audio_that_is_refused(model, waveform, rate, message):
    with pytest.raises(ValueError, match=message):
        respond(model, waveform, rate)


def test_what_a_model_lacks_is_said(tokenizer_folder):
    with pytest.raises(ValueError, match="no speech decoder: it can't speak"):
        respond(build(tokenizer_folder, speaks=False), QUESTION, 16_000, speak=True)
    deaf = build(tokenizer_folder, hears=False)
    with pytest.raises(ValueError, match="no encoder: it can't answer a spoken question"):
        respond(deaf, QUESTION, 16_000)
    with pytest.raises(ValueError, match="no encoder"):
        deaf.encode_audio(torch.zeros(1, 1600), torch.tensor([1600]))


def test_an_answer_leaves_training_and_frozen_parts_as_they_were(model):
    model.train()
    model.encoder.eval()
    respond(model, QUESTION, 16_000, **SHORT)
    assert model.llm.training and model.adapter.training
    assert not any(module.training for module in model.encoder.modules())


def test_a_text_is_spoken(model):
    units = speak_text(model, "Hi", Sampler(temperature=0.0))
    assert units and units == speak_text(model, "Hi", Sampler(temperature=0.0))
    assert max(units) < model.vocoder.num_units
