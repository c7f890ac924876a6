"""Several sessions in one engine: replies equal those of sessions alone; slots are taken and freed in time."""

from __future__ import annotations

import copy
import threading
from functools import partial

import pytest
import torch

from lightning_s2s.components.contracts import LanguageModel, SpeechDecoder
from lightning_s2s.generation import kv_cache
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import AudioChunk, Done, TextDelta, Units
from parts.sessions import alone, session
from parts.small_models import assert_same_reply, build
from parts.tolerances import assert_same_pocket_sound
from parts.waiting import SAFETY_LIMIT_SEC


@pytest.fixture
def model(tokenizer_folder):
    return build(tokenizer_folder)


def in_turns(streams: list) -> list:
    """Read one event of each stream in turn until all have ended -> their replies; each starts some events later."""
    replies, events = {}, 0
    while len(replies) < len(streams):
        for number, stream in enumerate(streams):
            if number in replies or events < 3 * number:
                events += 1
                continue
            event = next(stream)
            events += 1
            if isinstance(event, Done):
                replies[number] = event.reply
    return [replies[number] for number in range(len(streams))]


@pytest.mark.parametrize("num_slots", [1, 2, 4])
@pytest.mark.parametrize("overlap", [False, True])
def test_batched_equals_single(model, num_slots, overlap):
    expected = [alone(model, number) for number in range(4)]
    for of in ("text_ids", "unit_ids"):
        assert len({tuple(getattr(reply, of)) for reply in expected}) == 4
    engine = StreamingEngine(model, num_slots, overlap=overlap)
    replies = in_turns([session(model, number, engine).finish() for number in range(4)])
    for reply, wanted in zip(replies, expected, strict=True):
        assert_same_reply(reply, wanted)
    assert engine.num_running == 0


def test_compiled_equals_single(model, monkeypatch):
    monkeypatch.setattr(kv_cache, "_compile", lambda forward: torch.compile(forward, backend="eager", dynamic=False))
    engine = StreamingEngine(model, 3, compile=True, max_positions=128)
    engine.warm_up()
    replies = in_turns([session(model, number, engine).finish() for number in range(4)])
    for number, reply in enumerate(replies):
        assert_same_reply(reply, alone(model, number))


def test_sessions_share_their_steps(model, monkeypatch):
    """A session that draws units skips LLM steps, so there are more of these than the longest reply needs."""
    engine, sizes = StreamingEngine(model, 4), []
    together = model.llm.stream_together
    monkeypatch.setattr(
        model.llm, "stream_together", lambda inputs, states: sizes.append(len(inputs)) or together(inputs, states)
    )
    streams = [session(model, number, engine).finish() for number in range(4)]
    lengths = [len(list(stream)[-1].reply.text_ids) for stream in streams]
    assert sum(sizes) == sum(lengths) and max(sizes) == 4
    assert max(lengths) <= len(sizes) < 0.6 * sum(lengths)


def test_threads_share_an_engine(model):
    engine, replies = StreamingEngine(model, 2), {}

    def answer(number: int) -> None:
        *_, done = session(model, number, engine).finish()
        replies[number] = done.reply

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_LIMIT_SEC)
    for number in range(4):
        assert_same_reply(replies[number], alone(model, number))


def test_a_cancelled_session_leaves_at_once_and_the_next_one_enters(model):
    engine = StreamingEngine(model, 1)
    first, second = session(model, 2, engine), session(model, 1, engine)
    stream, waiting = first.finish(), second.finish()
    assert isinstance(next(stream), TextDelta) and engine.num_running == 1
    first.cancel()
    assert engine.num_running == 0 and not engine.llm_cache.taken and not engine.speech_cache.taken
    assert list(stream) == []
    *_, done = waiting
    assert_same_reply(done.reply, alone(model, 1))
    first.cancel()  # has no effect any more


def test_a_session_is_cancelled_from_another_thread(model):
    engine = StreamingEngine(model, 2)
    cancelled, other = session(model, 2, engine), session(model, 0, engine)
    stream, seen = cancelled.finish(), []
    for event in stream:
        seen.append(event)
        if isinstance(event, Units):
            thread = threading.Thread(target=cancelled.cancel)
            thread.start()
            thread.join()
    assert not isinstance(seen[-1], Done) and isinstance(seen[-1], Units)
    *_, done = other.finish()
    assert_same_reply(done.reply, alone(model, 0))


def test_a_caller_that_stops_frees_its_slot(model):
    engine = StreamingEngine(model, 1)
    stream = session(model, 0, engine).finish()
    next(stream)
    stream.close()
    assert engine.num_running == 0
    assert_same_reply(list(session(model, 1, engine).finish())[-1].reply, alone(model, 1))


def test_an_error_ends_its_session_alone(model):
    engine = StreamingEngine(model, 2)

    class Broken(Sampler):
        def __call__(self, logits: torch.Tensor) -> int:
            raise FloatingPointError("no unit")

    bad, good = session(model, 0, engine, unit_sampler=Broken()).finish(), session(model, 1, engine).finish()
    events = []
    with pytest.raises(FloatingPointError, match="no unit"):
        for event in bad:
            events.append(event)
    assert {type(event) for event in events} == {TextDelta}
    assert_same_reply(list(good)[-1].reply, alone(model, 1))


@pytest.mark.parametrize("overlap", [False, True])
def test_an_error_of_the_vocoder_is_raised(model, monkeypatch, overlap):
    def broken(units: torch.Tensor, state: object, last: bool) -> torch.Tensor:
        raise FloatingPointError("no sound")

    monkeypatch.setattr(model.vocoder, "stream", broken)
    with pytest.raises(FloatingPointError, match="no sound"):
        list(session(model, 2, StreamingEngine(model, overlap=overlap)).finish())


def test_overlapped_sound_comes_in_the_same_order(model):
    engine = StreamingEngine(model, overlap=True)
    events = list(session(model, 2, engine).finish())
    plain = list(session(model, 2).finish())
    assert isinstance(events[-1], Done)
    for kind, content in ((TextDelta, "text"), (Units, "units")):
        given, expected = ([getattr(e, content) for e in some if isinstance(e, kind)] for some in (events, plain))
        assert given == expected and given
    chunks, expected = ([e.waveform for e in some if isinstance(e, AudioChunk)] for some in (events, plain))
    for chunk, wanted in zip(chunks, expected, strict=True):
        assert_same_pocket_sound(chunk, wanted)
    assert torch.equal(torch.cat(chunks), events[-1].reply.waveform)


def test_training_goes_on_when_the_last_session_has_ended(model):
    model.train()
    engine = StreamingEngine(model, 2)
    longer, shorter = (session(model, number, engine).finish() for number in (2, 1))
    next(longer)
    assert not model.llm.training
    list(shorter)
    assert engine.num_running == 1 and not model.llm.training
    longer.close()
    assert all(module.training for module in model.modules())


def test_another_model_is_refused(model, tokenizer_folder):
    with pytest.raises(ValueError, match="engine runs another model"):
        session(build(tokenizer_folder), 0, StreamingEngine(model))


def test_options_that_are_refused(model):
    with pytest.raises(ValueError, match="llm causal: num_slots must be at least 1; got 0"):
        StreamingEngine(model, 0)


def test_components_that_know_single_streams_alone(model, monkeypatch):
    """Without a shared cache and steps, sessions still run side by side, turn by turn."""
    expected = [alone(model, number) for number in range(4)]
    llm, decoder = model.llm, model.speech_decoder
    for part, contract in ((llm, LanguageModel), (decoder, SpeechDecoder)):
        monkeypatch.setattr(part, "open_cache", partial(contract.open_cache, part))
    monkeypatch.setattr(llm, "stream_together", partial(LanguageModel.stream_together, llm))
    monkeypatch.setattr(decoder, "stream", copy.copy(decoder).stream)  # its own steps, not those of the next line
    monkeypatch.setattr(decoder, "steps", partial(SpeechDecoder.steps, decoder))
    engine = StreamingEngine(model, 3)
    replies = in_turns([session(model, number, engine).finish() for number in range(4)])
    for reply, wanted in zip(replies, expected, strict=True):
        assert_same_reply(reply, wanted)
    with pytest.raises(ValueError, match="CausalLanguageModel can't be compiled; set compile to false"):
        StreamingEngine(model, compile=True)


def test_the_first_sound_is_made_of_fewer_units(model):
    def groups(**options) -> list[list[int]]:
        return [event.units for event in session(model, 2, **options).finish() if isinstance(event, Units)]

    assert [len(group) for group in groups(opening_units=2)][:3] == [2, 1, 3]
    assert sum(groups(opening_units=2), []) == sum(groups(opening_units=3), [])
    with pytest.raises(ValueError, match="opening_units must be between 1 and M, here 3; got 4"):
        groups(opening_units=4)


def test_a_warm_up_compiles_for_inference(model):
    model.train()
    seen = []
    model.llm.model.model.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    StreamingEngine(model).warm_up()
    assert seen and not any(seen) and all(module.training for module in model.modules())
