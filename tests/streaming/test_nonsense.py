"""Many sessions, a tenth of them with each kind of bad input: others are unaffected, no slot or memory leaks."""

from __future__ import annotations

import gc
import itertools
import math
import random
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import AudioChunk, Done, Reply
from lightning_s2s.streaming.session import StreamingSession
from lightning_s2s.streaming.turn import StreamingTurn
from parts.sessions import LENGTHS, QUESTIONS, alone, session
from parts.small_models import build
from parts.tolerances import assert_same_pocket_sound

NUM_SLOTS, FIRST_POSITIONS = 4, 64


class Visit:
    """One session among others; its behaviour is drawn from a seed of its own."""

    def __init__(self, engine: StreamingEngine, expected: list[Reply], seed: int):
        self.engine, self.expected, self.draw = engine, expected, random.Random(seed)

    def good(self) -> None:
        number = self.draw.randrange(len(LENGTHS))
        self.check(list(session(self.engine.model, number, self.engine).finish())[-1].reply, number)

    def check(self, reply: Reply, number: int) -> None:
        """The reply equals that of the session alone."""
        wanted = self.expected[number]
        assert (reply.text, reply.text_ids, reply.unit_ids) == (wanted.text, wanted.text_ids, wanted.unit_ids)
        assert_same_pocket_sound(reply.waveform, wanted.waveform)

    def refused(self, **options) -> None:
        options = {"sample_rate": 16_000, "engine": self.engine} | options
        with pytest.raises(ValueError, match=r"must|holds|positions|history|special token"):
            StreamingSession(self.engine.model, **options)

    def started(self, **options):
        return session(self.engine.model, self.draw.randrange(len(LENGTHS)), self.engine, **options)

    def bad_speaker(self) -> None:
        shapes = (511, 513, 0), (1, 512), (512, 1), ()
        vectors = [torch.zeros(size) for size in shapes[0]] + [torch.zeros(shape) for shape in shapes[1:]]
        broken = [torch.full((512,), value) for value in (math.nan, math.inf)] + [torch.zeros(512, dtype=torch.long)]
        self.refused(speaker=self.draw.choice([*vectors, *broken, "alice", [0.0] * 100]))

    def bad_audio(self) -> None:
        question = QUESTIONS[0]
        made = self.started()
        pieces = [
            np.full(1600, math.nan), np.full(1600, -math.inf), question.astype(np.complex64), question[None],
            np.zeros(1600, np.int64), 1e30 * question, ["a"], object(), None, np.zeros(16_000 * 120, np.float32),
        ]  # fmt: skip
        with pytest.raises(ValueError, match="waveform"):
            made.push(self.draw.choice(pieces))
        if self.draw.random() < 0.3:
            with pytest.raises(ValueError, match="waveform"):
                StreamingSession(self.engine.model, 16_000, engine=self.engine).finish()

    def bad_rate(self) -> None:
        self.refused(sample_rate=self.draw.choice([math.nan, math.inf, 0, -1, 1e-6, 1e12, True, "16000", None, 1j]))

    def long_instruction(self) -> None:
        self.refused(instruction=self.draw.choice(["x" * 20_000, "é" * 600, "<|im_end|>"]))

    def bad_numbers(self) -> None:
        name = self.draw.choice(["max_text_tokens", "opening_units", "seed"])
        self.refused(**{name: self.draw.choice([-3 if name != "seed" else 2**80, math.nan, 2.5, "1", True])})

    def bad_history(self) -> None:
        audio = [{"role": "user", "content": [{"text": "", "audio": "no/such.wav"}]}]
        self.refused(history=self.draw.choice([audio, "Hi", [None], [{"role": "x", "content": ""}], [{}], 3]))

    def dropped(self) -> None:
        """A dropped event stream, never read or read for some events."""
        stream = self.started().finish()
        for _ in itertools.islice(stream, self.draw.choice([0, 0, 1, 4])):
            pass

    def reader_fails(self) -> None:
        def read() -> None:
            for event in self.started().finish():
                if isinstance(event, AudioChunk) or self.draw.random() < 0.2:
                    raise KeyError("the reader's own")
            raise KeyError("after the end")

        with pytest.raises(KeyError):
            read()

    def after_its_end(self) -> None:
        """A second `push` and `finish` fail, and the question before them is still answered."""
        number = self.draw.randrange(len(LENGTHS))
        asked = session(self.engine.model, number, self.engine)
        stream = asked.finish()
        first = next(stream) if self.draw.random() < 0.5 else None
        for again in (lambda: asked.push(QUESTIONS[0]), asked.finish):
            with pytest.raises(ValueError, match="the question is over"):
                again()
        assert first is None or first.text is not None
        self.check(list(stream)[-1].reply, number)

    def bad_sampler(self) -> None:
        class Broken(Sampler):
            def __call__(self, logits: torch.Tensor) -> int:
                raise FloatingPointError("no token")

        sampler = self.draw.choice([Broken(), lambda _: 10**9, lambda _: None, lambda _: -1, lambda logits: logits])
        with pytest.raises((FloatingPointError, ValueError)):
            list(self.started(**{self.draw.choice(["text_sampler", "unit_sampler"]): sampler}).finish())

    def cancelled(self) -> None:
        asked = self.started()
        stream = asked.finish()
        next(stream)
        thread = threading.Thread(target=asked.cancel)
        thread.start()
        thread.join()
        list(stream)

    def long(self) -> None:
        """A question that makes the caches grow, within their limit."""
        asked = self.started(instruction="x" * 300)
        list(asked.finish()) if self.draw.random() < 0.5 else next(asked.finish())


class Neighbour(Visit):
    """Correct sessions, one after the other, whose events are read between the visits of others."""

    def __init__(self, engine: StreamingEngine, expected: list[Reply], seed: int):
        super().__init__(engine, expected, seed)
        self.begin()

    def begin(self) -> None:
        self.number = self.draw.randrange(len(LENGTHS))
        self.stream = session(self.engine.model, self.number, self.engine).finish()

    def read(self, num_events: int | None) -> None:
        for event in itertools.islice(self.stream, num_events):
            if isinstance(event, Done):
                self.check(event.reply, self.number)
                if num_events is not None:
                    self.begin()


NONSENSE: list[tuple[Callable[[Visit], None], ...]] = [
    (Visit.bad_speaker, Visit.bad_numbers),
    (Visit.bad_audio,),
    (Visit.bad_rate,),
    (Visit.long_instruction, Visit.long),
    (Visit.bad_history,),
    (Visit.dropped,),
    (Visit.reader_fails, Visit.cancelled),
    (Visit.after_its_end,),
    (Visit.bad_sampler,),
]
"""Each line is the behaviour of a tenth of the sessions; the last tenth, and the sessions beside all, are correct."""


def visit(engine: StreamingEngine, expected: list[Reply], numbers: range, num_threads: int) -> None:
    """Run the sessions with these numbers in several threads, and raise their errors here."""
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            neighbour = Neighbour(engine, expected, first)
            for number in numbers[first::num_threads]:
                neighbour.read(2)
                guest = Visit(engine, expected, number)
                kinds = NONSENSE[number % 10] if number % 10 < len(NONSENSE) else (Visit.good,)
                guest.draw.choice(kinds)(guest)
            neighbour.read(None)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def check_idle(engine: StreamingEngine) -> None:
    assert engine.num_running == 0 and not engine._waiting
    for cache in (engine.llm_cache, engine.speech_cache):
        assert not cache.taken and cache.max_positions == FIRST_POSITIONS
        assert {tensor.shape[2] for tensor in (*cache.keys, *cache.values)} == {FIRST_POSITIONS}


def alive() -> Counter:
    """Number of live tensors, turns and sessions by type."""
    gc.collect()
    kinds = (torch.Tensor, StreamingTurn, StreamingSession)
    return Counter(type(thing).__name__ for thing in gc.get_objects() if issubclass(type(thing), kinds))


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.parametrize(
    ("num_sessions", "num_threads"),
    [(80, 1), (80, 3), pytest.param(1000, 1, marks=pytest.mark.slow), pytest.param(1000, 4, marks=pytest.mark.slow)],
)
def test_sessions_beside_nonsense(tokenizer_folder, num_sessions, num_threads):
    model = build(tokenizer_folder)
    expected = [alone(model, number) for number in range(len(LENGTHS))]
    engine = StreamingEngine(model, NUM_SLOTS, max_positions=FIRST_POSITIONS)
    visit(engine, expected, range(40), num_threads)  # warm-up: caches are allocated, imports done
    check_idle(engine)
    before, mib_before = alive(), resident_mib()
    tracemalloc.start()
    visit(engine, expected, range(40, 50), num_threads)
    gc.collect()
    traced_before = tracemalloc.get_traced_memory()[0]
    try:
        visit(engine, expected, range(50, num_sessions), num_threads)
        check_idle(engine)
        after = alive()
        traced = tracemalloc.get_traced_memory()[0] - traced_before
    finally:
        tracemalloc.stop()
    assert after == before and not after["StreamingTurn"] and not after["StreamingSession"]
    assert traced < 256 * 1024
    assert resident_mib() - mib_before < 100
    assert not any(module.training for module in model.modules())
    Visit(engine, expected, 0).good()
