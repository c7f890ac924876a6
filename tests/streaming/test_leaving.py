"""Sessions leave the engine however they end: errors of the consumer, dropped streams, failing forwards."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from lightning_s2s.generation.kv_cache import Slot, SlotCache
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import Done, TextDelta
from lightning_s2s.streaming.session import StreamingSession, stream_reply
from parts.sessions import LENGTHS, alone, session
from parts.small_models import assert_same_reply, build


@pytest.fixture
def model(tokenizer_folder):
    return build(tokenizer_folder)


def check_idle(engine: StreamingEngine) -> None:
    assert engine.num_running == 0 and not engine._waiting
    assert not engine.llm_cache.taken and not engine.speech_cache.taken


class Broken(Sampler):
    def __call__(self, logits: torch.Tensor) -> int:
        raise FloatingPointError("no token")


def test_an_answer_that_nobody_reads_is_not_computed(model, monkeypatch):
    engine, sizes = StreamingEngine(model, 2), []
    together = model.llm.stream_together
    monkeypatch.setattr(
        model.llm, "stream_together", lambda inputs, states: sizes.append(len(inputs)) or together(inputs, states)
    )
    session(model, 2, engine).finish()  # its event stream is dropped
    check_idle(engine)
    read = session(model, 1, engine)
    assert_same_reply(list(read.finish())[-1].reply, alone(model, 1))
    assert sizes.count(2) == 0


@pytest.mark.parametrize("num_events", [0, 1, 5])
def test_a_forgotten_answer_leaves_at_once(model, num_events):
    model.train()
    engine = StreamingEngine(model, 2)
    forgotten, other = session(model, 2, engine).finish(), session(model, 1, engine).finish()
    for _ in range(num_events):
        next(forgotten)
    next(other)
    assert engine.num_running == 2
    del forgotten
    assert engine.num_running == 1 and len(engine.llm_cache.taken) == 1
    assert_same_reply(list(other)[-1].reply, alone(model, 1))
    check_idle(engine)
    assert all(module.training for module in model.modules())


def test_a_session_that_keeps_its_own_events_is_collected(model):
    class Caller(StreamingSession):
        def ask(self, waveform) -> None:
            self.push(waveform)
            self.events = self.finish()
            next(self.events)

    engine = StreamingEngine(model, 1)
    caller = Caller(model, 16_000, engine=engine)
    caller.ask(0.1 * torch.ones(9600))
    assert engine.num_running == 1
    del caller
    gc.collect()
    check_idle(engine)


def test_the_collector_may_run_while_the_engine_is_locked(model):
    engine = StreamingEngine(model, 1)
    forgotten = session(model, 2, engine).finish()
    next(forgotten)
    with engine._locked():  # as if collected during another call in the same thread
        del forgotten
        assert engine.num_running == 1
    check_idle(engine)


def test_an_error_of_a_reader_frees_its_slot(model):
    engine = StreamingEngine(model, 2)
    other = session(model, 1, engine).finish()

    def read() -> None:
        for _ in session(model, 2, engine).finish():
            raise KeyError("the reader's own")

    with pytest.raises(KeyError):
        read()
    assert_same_reply(list(other)[-1].reply, alone(model, 1))
    check_idle(engine)


def test_after_its_end_a_stream_stays_empty(model):
    engine = StreamingEngine(model, 1)
    closed = session(model, 0, engine).finish()
    next(closed)
    closed.close()
    closed.close()
    whole = session(model, 0, engine).finish()
    list(whole)
    broken = session(model, 0, engine, text_sampler=Broken()).finish()
    with pytest.raises(FloatingPointError):
        next(broken)
    assert [next(stream, None) for stream in (closed, whole, broken)] == [None] * 3
    check_idle(engine)


def test_events_before_an_error_are_given(model):
    class LateBroken(Sampler):
        def __call__(self, logits: torch.Tensor) -> int:
            if len(self.drawn) == 3:
                raise FloatingPointError("no fourth token")
            return super().__call__(logits)

    events = []
    with pytest.raises(FloatingPointError, match="no fourth token"):
        for event in session(model, 2, speak=False, text_sampler=LateBroken()).finish():
            events.append(event)
    assert len(events) == 3 and {type(event) for event in events} == {TextDelta}


@pytest.mark.parametrize("of", ["text_sampler", "unit_sampler"])
@pytest.mark.parametrize("drawn", [10**6, -1, 2.0, None, torch.tensor(3)], ids=str)
def test_what_a_sampler_of_the_caller_draws_must_be_an_id(model, of, drawn):
    engine = StreamingEngine(model, 2)
    other = session(model, 1, engine).finish()
    with pytest.raises(
        ValueError, match=f"{'llm' if of[0] == 't' else 'speech_decoder'} .*: its sampler drew .*; allowed"
    ):
        list(session(model, 2, engine, **{of: lambda logits: drawn}).finish())
    assert_same_reply(list(other)[-1].reply, alone(model, 1))
    check_idle(engine)


def test_a_start_that_fails_gives_its_slots_back(model, monkeypatch):
    """A component that fails may have taken a slot: the LLM's and the speech decoder's are released."""
    engine = StreamingEngine(model, 1)

    def start(speaker, sampler, cache):
        cache.acquire()
        raise FloatingPointError("no state")

    with monkeypatch.context() as patch:
        patch.setattr(model.speech_decoder, "start_stream", start)
        for _ in range(3):
            with pytest.raises(FloatingPointError, match="no state"):
                list(session(model, 0, engine).finish())
    assert_same_reply(list(session(model, 1, engine).finish())[-1].reply, alone(model, 1))
    check_idle(engine)


def test_a_speaker_is_checked_before_a_slot_is_taken(model):
    cache = model.speech_decoder.open_cache(1, 16, False)
    for speaker in (torch.zeros(1, 511), torch.zeros(512), torch.zeros(1, 1, 512)):
        with pytest.raises(ValueError, match=r"speaker must be \(M, 512\)"):
            model.speech_decoder.start_stream(speaker, Sampler(), cache)
    assert not cache.taken


def test_a_shared_forward_that_fails_is_tried_for_each(model, monkeypatch):
    engine = StreamingEngine(model, 3)
    streams = [session(model, number, engine).finish() for number in range(3)]
    for stream in streams:
        next(stream)
    victim = engine._running[1].language
    advance = SlotCache.advance

    def failing(self, inputs, slots: list[Slot]):
        if victim in slots:
            raise MemoryError("not for this one")
        return advance(self, inputs, slots)

    monkeypatch.setattr(SlotCache, "advance", failing)
    with pytest.raises(MemoryError, match="not for this one"):
        list(streams[1])
    replies = [list(streams[number])[-1].reply for number in (0, 2)]
    monkeypatch.undo()
    for number, reply in zip((0, 2), replies, strict=True):
        assert_same_reply(reply, alone(model, number))
    check_idle(engine)


def test_an_interrupt_hurts_the_session_that_was_interrupted_alone(model):
    class Interrupted(Sampler):
        def __call__(self, logits: torch.Tensor) -> int:
            raise KeyboardInterrupt

    engine = StreamingEngine(model, 3)
    streams = [session(model, number, engine).finish() for number in range(2)]
    bad = session(model, 2, engine, text_sampler=Interrupted()).finish()
    with pytest.raises(KeyboardInterrupt):
        next(bad)
    for number, stream in enumerate(streams):
        assert_same_reply(list(stream)[-1].reply, alone(model, number))
    check_idle(engine)


def test_engines_in_several_threads_share_the_eval_mode(model):
    """Modules stay in eval mode while another session runs: with dropout, replies would change."""
    for part in (model.llm.model, model.speech_decoder.lm):
        part.config.attention_dropout = 0.5
        for layer in part.model.layers:
            layer.self_attn.attention_dropout = 0.5
    expected = [alone(model, number) for number in range(4)]
    model.train()
    model.encoder.eval()
    replies: dict[tuple[int, int], object] = {}

    def answer(number: int) -> None:
        for turn in range(4):
            *_, done = session(model, number).finish()
            assert isinstance(done, Done)
            replies[number, turn] = done.reply

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(len(LENGTHS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (number, _), reply in replies.items():
        assert_same_reply(reply, expected[number])
    assert len(replies) == 16
    assert model.llm.training and model.adapter.training and not model.encoder.training


def test_models_may_share_a_component_that_trains(model, tokenizer_folder):
    other = build(tokenizer_folder)
    other.llm = model.llm
    model.train()
    other.train()
    first, second = (stream_reply(StreamingEngine(who).model, torch.ones(9600) / 9, 16_000) for who in (model, other))
    next(first)
    next(second)
    first.close()
    assert model.adapter.training and not model.llm.training
    second.close()
    assert all(module.training for who in (model, other) for module in who.modules())
