"""Caches have a limit, by option or by the model: a long session is refused or ends there, and memory is released."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.generation.kv_cache import DEFAULT_POSITION_LIMIT, lm_position_limit, open_cache
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.streaming import turn
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import Done, TextDelta, Units
from lightning_s2s.streaming.session import StreamingSession, respond, stream_reply
from lightning_s2s.streaming.speak import speak_text
from parts.sessions import alone, session
from parts.small_decoders import DECODERS, Endless, whole_model
from parts.small_models import assert_same_reply, build, small_lm
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding, assert_same_pocket_sound

QUESTION = sweep(0.6)


class Text(Sampler):
    """An LLM that repeats the letter x forever."""

    def __call__(self, logits: torch.Tensor) -> int:
        return ord("x")


@pytest.fixture
def model(tokenizer_folder):
    return build(tokenizer_folder)


def sizes(engine: StreamingEngine) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for cache in (engine.llm_cache, engine.speech_cache) for tensor in cache.keys]


def num_prompt_positions(model) -> int:
    """Positions of the question's prompt, with four positions of audio in place of the placeholder."""
    return len(StreamingSession(model, 16_000).options.prompt_ids) - 1 + 4


def test_a_cache_s_limit_is_the_lm_s_own_or_less():
    lm = small_lm()
    assert lm_position_limit(lm) == open_cache(lm).limit == 128
    assert open_cache(lm, position_limit=50).limit == 50
    assert open_cache(lm, position_limit=500).limit == open_cache(lm, max_positions=500).max_positions == 128
    assert open_cache(small_lm("gpt2", max_position_embeddings=64)).limit == 64
    assert lm_position_limit(small_lm("bloom", n_head=4, max_position_embeddings=0)) == DEFAULT_POSITION_LIMIT
    assert open_cache(small_lm("mistral", sliding_window=4), position_limit=50).limit == 50


@pytest.mark.parametrize("model_type", ["qwen3", "mistral"])
@torch.inference_mode()
def test_what_exceeds_a_limit_is_refused_and_changes_nothing(model_type):
    options = {"sliding_window": 4} if model_type == "mistral" else {}
    cache = open_cache(small_lm(model_type, **options), 1, 4, position_limit=9)
    slot = cache.acquire()
    inputs = torch.randn(1, 10, 16)
    cache.advance([inputs[:, :8]], [slot])
    with pytest.raises(ValueError, match="a sequence of 10 positions: at most 9 are allowed"):
        cache.advance([inputs[:, 8:]], [slot])
    assert slot.length == 8 and slot.fits(1) and not slot.fits(2)
    cache.advance([inputs[:, 8:9]], [slot])


@torch.inference_mode()
def test_a_cache_falls_back_when_long_sequences_have_left():
    lm, inputs = small_lm(), torch.randn(1, 60, 16)
    cache = open_cache(lm, 2, 8)
    short, long = cache.acquire(), cache.acquire()
    before = cache.advance([inputs[:, :5]], [short])[0]
    cache.advance([inputs[:, :50]], [long])
    assert cache.max_positions == 64 and cache.keys[0].shape[2] == 64
    long.release()
    assert cache.max_positions == 16 and {tensor.shape[2] for tensor in cache.keys + cache.values} == {16}
    rest = cache.advance([inputs[:, 5:9]], [short])[0]
    whole = lm.base_model(inputs_embeds=inputs[:, :9], use_cache=False).last_hidden_state
    assert_equal_but_for_rounding(torch.cat([before, rest], dim=1), whole)
    short.release()
    assert cache.max_positions == 8 and {tensor.shape[2] for tensor in cache.keys + cache.values} == {8}


@torch.inference_mode()
def test_a_forward_that_fails_leaves_its_sequences_as_they_were(monkeypatch):
    lm, inputs = small_lm(), torch.randn(2, 6, 16)
    cache = open_cache(lm, 2, 4)
    slots = [cache.acquire(), cache.acquire()]
    cache.advance([inputs[:1, :2], inputs[1:, :2]], slots)
    run = cache._run

    def failing(pieces, *arguments):
        if pieces.shape[1] == 1:
            raise MemoryError
        return run(pieces, *arguments)

    monkeypatch.setattr(cache, "_run", failing)
    with pytest.raises(MemoryError):
        cache.advance([inputs[:1, 2:4], inputs[1:, 2:3]], slots)  # the first of two forwards succeeds
    monkeypatch.undo()
    assert [slot.length for slot in slots] == [2, 2]
    for row, slot in enumerate(slots):
        rest = cache.advance([inputs[row : row + 1, 2:]], [slot])[0]
        whole = lm.base_model(inputs_embeds=inputs[row : row + 1], use_cache=False).last_hidden_state
        assert_equal_but_for_rounding(rest, whole[:, 2:])


def test_a_compiled_step_may_lie_behind_a_full_sequence(monkeypatch):
    """Slots without inputs are computed too: here, one has used all of a table of 9 positions."""
    from lightning_s2s.generation import kv_cache

    monkeypatch.setattr(kv_cache, "_compile", lambda forward: forward)
    lm = small_lm("gpt2", max_position_embeddings=9)
    cache = open_cache(lm, 2, 9, compiled_sizes=(1, 3))
    cache.warm_up(16)
    full, other = cache.acquire(), cache.acquire()
    inputs = torch.randn(1, 9, 16)
    with torch.inference_mode():
        cache.advance([inputs], [full])
        given = torch.cat([cache.advance([piece], [other])[0] for piece in inputs.split([3, 1, 3, 1, 1], 1)], dim=1)
        whole = lm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    assert_equal_but_for_rounding(given, whole)


def test_a_long_instruction_neither_enters_nor_grows_a_cache(model):
    engine = StreamingEngine(model, 2, max_positions=64)
    running = session(model, 1, engine).finish()
    next(running)
    before = sizes(engine)
    for limits in ({}, {"position_limit": 100}):
        with pytest.raises(ValueError, match="fewer than (512|100) are allowed, by the LLM or by the engine's"):
            StreamingSession(model, 16_000, instruction="x" * 20_000, engine=StreamingEngine(model, **limits))
    with pytest.raises(ValueError, match="fewer than 512 are allowed"):
        StreamingSession(model, 16_000, instruction="x" * 20_000, engine=engine)
    assert sizes(engine) == before and before[0][2] == 64
    assert_same_reply(list(running)[-1].reply, alone(model, 1))


def test_a_long_session_grows_the_caches_for_as_long_as_it_lasts(model):
    engine = StreamingEngine(model, 2, max_positions=16)
    long = StreamingSession(model, 16_000, instruction="x" * 300, max_text_tokens=5, engine=engine)
    long.push(QUESTION)
    stream = long.finish()
    next(stream)
    assert engine.llm_cache.max_positions == 512  # the model's own, since doubling would exceed it
    list(stream)
    assert engine.llm_cache.max_positions == engine.speech_cache.max_positions == 16


@pytest.mark.parametrize("room", [1, 2, 7])
def test_a_reply_ends_where_the_llm_is_full(model, room):
    limit = num_prompt_positions(model) + room
    engine = StreamingEngine(model, 2, position_limit=limit, max_positions=8)
    settings = {"greedy": False, "text_sampler": Text(), "max_text_tokens": 1000}
    beside = session(model, 1, engine, max_text_tokens=room).finish()
    *events, done = stream_reply(model, QUESTION, 16_000, engine=engine, **settings)
    assert done.reply.text == "x" * (room + 1) and done.reply.ended_by == "position_limit"
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == done.reply.text
    assert done.reply.unit_ids and len(done.reply.waveform) == 640 * len(done.reply.unit_ids)
    assert_same_reply(list(beside)[-1].reply, list(session(model, 1, max_text_tokens=room).finish())[-1].reply)
    with pytest.raises(ValueError, match=f"question's waveform 4; fewer than {limit - room} are allowed"):
        respond(model, QUESTION, 16_000, engine=StreamingEngine(model, position_limit=limit - room))


def test_a_question_that_turns_out_too_long_ends_its_session_alone(model):
    """It could fit by its duration; the number of its positions is known only after encoding."""
    limit = num_prompt_positions(model)
    engine = StreamingEngine(model, 1, position_limit=limit, max_positions=8)
    stream = stream_reply(model, QUESTION, 16_000, engine=engine)
    with pytest.raises(ValueError, match=f"the question's waveform 4; fewer than {limit} are allowed"):
        next(stream)
    assert not engine.llm_cache.taken and engine.llm_cache.max_positions == 8 and not engine.llm_cache.keys


@pytest.mark.parametrize("kind", DECODERS)
def test_a_reply_ends_where_the_speech_decoder_is_full(kind, tokenizer_folder):
    model = whole_model(tokenizer_folder, kind, **({} if kind == "ctc" else {"max_units": 100}))
    cache = model.speech_decoder.open_cache(1, 8, False, position_limit=14)
    engine = StreamingEngine(model, max_positions=8)
    engine.speech_cache = cache
    settings = {"greedy": False, "text_sampler": Text(), "max_text_tokens": 200, "unit_sampler": Endless()}
    *events, done = stream_reply(model, QUESTION, 16_000, engine=engine, **settings)
    reply = done.reply
    assert isinstance(done, Done) and reply.ended_by == "position_limit" and len(reply.text_ids) < 20
    assert sum((event.units for event in events if isinstance(event, Units)), []) == reply.unit_ids != []
    expected = respond(model, QUESTION, 16_000, **settings)
    assert expected.unit_ids[: len(reply.unit_ids)] == reply.unit_ids
    assert len(expected.text_ids) > len(reply.text_ids)
    assert_same_pocket_sound(reply.waveform, model.vocoder.synthesize(torch.tensor([reply.unit_ids]))[0])
    assert not cache.taken and cache.max_positions == 8


def test_a_text_that_is_too_long_to_be_spoken_is_refused(model):
    model.speech_decoder.max_units = 1000
    with pytest.raises(ValueError, match="speech_decoder InterleavedSpeechDecoder: the text is too long"):
        speak_text(model, "x" * 600, Endless())


def test_what_ended_a_reply_is_said(model):
    def ended_by(**options) -> str:
        return respond(model, QUESTION, 16_000, greedy=False, **options).ended_by

    said = iter([72, 257])
    assert ended_by(text_sampler=lambda logits: next(said)) == "end"
    assert ended_by(text_sampler=Text(), max_text_tokens=3) == "max_text_tokens"


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(model, monkeypatch):
    monkeypatch.setattr(turn, "PROMPT_POSITIONS", 512)
    whole = session(model, 2, instruction="x" * 100).finish()
    expected = list(whole)[-1].reply
    monkeypatch.setattr(turn, "PROMPT_POSITIONS", 40)
    engine, shapes = StreamingEngine(model, 2), []
    together = model.llm.stream_together
    monkeypatch.setattr(
        model.llm,
        "stream_together",
        lambda inputs, states: shapes.append([item.shape[1] for item in inputs]) or together(inputs, states),
    )
    beside = session(model, 0, engine).finish()
    next(beside)
    shapes.clear()
    reply = list(session(model, 2, engine, instruction="x" * 100).finish())[-1].reply
    assert (reply.text_ids, reply.unit_ids) == (expected.text_ids, expected.unit_ids)
    sizes = [max(step) for step in shapes]
    assert max(sizes) == 40 and sizes.count(40) >= 2 and any(40 in step and 1 in step for step in shapes)
    assert_same_reply(list(beside)[-1].reply, alone(model, 0))
