"""The loop that advances all running sessions of a model together, with continuous batching."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

import torch

from lightning_s2s.generation.kv_cache import taking_slots
from lightning_s2s.model.compatibility import check_dtypes
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.eval_mode import EvalMode
from lightning_s2s.streaming.event_stream import EventStream
from lightning_s2s.streaming.events import Event
from lightning_s2s.streaming.turn import LanguageStep, Sound, SpeechStep, Turn, VocoderWorker
from lightning_s2s.support.checks import check_count, check_flag

log = logging.getLogger(__name__)


class StreamingEngine:
    """Runs sessions of one model over caches that are allocated once.

    A step takes every running session one forward on: those that wait for the LLM share one, those that wait for the
    speech decoder another, whatever the age of each. Sessions beyond `num_slots` wait; one that ends or is cancelled
    leaves, and the next enters, between two steps (continuous batching; Yu et al., Orca, OSDI 2022).

    There is no thread of the engine's own: whoever iterates over a session's events and finds none runs the next step,
    for all sessions, and every thread may do so. What is given out does not depend on who shares a step.

    What a session does wrong is its own: a forward that fails for several is tried again for each of them, and whoever
    fails then leaves with the error. A session whose events nobody can read any more leaves, too.

    Args:
        model: that answers.
        num_slots: sessions that run at the same time.
        compile: compile the forwards of single steps, with CUDA graphs on a GPU; call `warm_up` before the first
            session, for it takes a minute.
        max_positions: of the LLM's and the speech decoder's cache, for each session; None is 512, and 2048 where they
            are compiled. A session that needs more doubles it, which compiled takes a minute; when it has left, the
            caches fall back, unless they are compiled.
        position_limit: most positions of a session in each of the caches; None, or more than that, is what the LLM and
            the speech decoder are made for. A longer question is refused, and a reply ends where it is reached.
        overlap: make sound in a thread of its own, on a GPU in a stream of its own, while the next units are drawn.

    Raises:
        ValueError: an option is out of range, or the model can't do as asked.
    """

    def __init__(
        self,
        model: SpeechToSpeechModel,
        num_slots: int = 1,
        *,
        compile: bool = False,
        max_positions: int | None = None,
        position_limit: int | None = None,
        overlap: bool = False,
    ):
        check_dtypes(model)
        self.model, self.num_slots = model, num_slots
        if max_positions is None:
            max_positions = 2048 if check_flag("compile", compile) else 512
        limit = {} if position_limit is None else {"position_limit": check_count("position_limit", position_limit, 2)}
        self.llm_cache = model.llm.open_cache(num_slots, max_positions, compile, **limit)
        self.llm_limit: int | None = getattr(self.llm_cache, "limit", position_limit)
        """Most positions of a session in the LLM; None where nothing limits them."""
        decoder = model.speech_decoder
        self.speech_cache = None if decoder is None else decoder.open_cache(num_slots, max_positions, compile, **limit)
        aside = check_flag("overlap", overlap) and model.vocoder is not None
        self.vocoder_worker = VocoderWorker(model.device, self.deliver) if aside else None
        self._waiting: deque[Turn] = deque()
        self._running: list[Turn] = []
        self._eval_mode = EvalMode(model)
        self._changed = threading.Condition(threading.Lock())
        self._stepping = self._abandoned = False

    @property
    def num_running(self) -> int:
        """Sessions that have a slot."""
        return len(self._running)

    def warm_up(self) -> None:
        """Allocate the caches, and compile what is to be compiled. No session may be running."""
        self._eval_mode.enter()
        try:
            self._warm_up_caches()
        finally:
            self._eval_mode.leave()

    def _warm_up_caches(self) -> None:
        for part, cache in ((self.model.llm, self.llm_cache), (self.model.speech_decoder, self.speech_cache)):
            if part is not None and cache is not None:
                cache.warm_up(part.width)

    def submit(self, turn: Turn) -> EventStream:
        """Let a turn in as soon as there is a slot -> its events, made while they are iterated over."""
        with self._locked():
            self._waiting.append(turn)
        return EventStream(
            functools.partial(self.next_event, turn),
            functools.partial(self.cancel, turn),
            functools.partial(self.abandon, turn),
        )

    def cancel(self, turn: Turn) -> None:
        """End a turn now. Where another thread is in the middle of a step, its slot is free with the end of that."""
        with self._locked():
            turn.cancelled = True
            turn.events.clear()
            if not self._stepping:
                self._let_go()
            self._changed.notify_all()

    def abandon(self, turn: Turn) -> None:
        """`cancel` by the garbage collector, which may run anywhere, also in a thread that has the lock."""
        turn.cancelled = self._abandoned = True
        self._let_go_of_abandoned()

    def deliver(self, turn: Turn, event: Event) -> None:
        """Add an event of another thread."""
        with self._locked():
            if not turn.leaving:
                turn.events.append(event)
            self._changed.notify_all()

    def next_event(self, turn: Turn) -> Event | None:
        """The turn's next event, for which steps of all sessions are run; None after the last one.

        Raises:
            Exception: what ended the turn, once the events before it were given.
        """
        while True:
            with self._locked():
                while self._stepping and not turn.events and not turn.ended:
                    self._changed.wait()
                if turn.events:
                    return turn.events.popleft()
                if turn.ended:
                    return self._end_of(turn)
                self._stepping = True
            try:
                self._step()
            finally:
                with self._locked():
                    self._stepping = False
                    self._let_go()
                    self._changed.notify_all()

    @staticmethod
    def _end_of(turn: Turn) -> None:
        error, turn.error = turn.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # which refers to this frame, and by it to all that the turn holds

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._changed:
            yield
        self._let_go_of_abandoned()

    def _let_go_of_abandoned(self) -> None:
        """Free the slots of abandoned turns, unless somebody has the lock, who does it then, or runs a step."""
        while self._abandoned and self._changed.acquire(blocking=False):
            try:
                if self._stepping:
                    return
                self._let_go()
                self._changed.notify_all()
            finally:
                self._changed.release()

    @torch.inference_mode()
    def _step(self) -> None:
        """Take every running session one forward on."""
        self._let_in()
        self._resume(self._running)
        self._share(LanguageStep, self.llm_cache, self._language_step)
        self._share(SpeechStep, self.speech_cache, self._speech_step)
        sounds = {turn: turn.request.future for turn in self._running if isinstance(turn.request, Sound)}
        if sounds and len(sounds) == len(self._running):
            wait(sounds.values(), return_when=FIRST_COMPLETED)
        done = [turn for turn, future in sounds.items() if future.done()]
        self._advance(done, [None] * len(done))

    def _share(self, kind: type, cache: Any, forward: Callable[[list[Turn]], list]) -> None:
        """One forward of all turns that wait for one, or one for each, where there is nothing to share or it fails."""
        turns = [turn for turn in self._running if isinstance(turn.request, kind) and not turn.leaving]
        groups = [[turn] for turn in turns] if cache is None else [turns] if turns else []
        while groups:
            group = groups.pop(0)
            try:
                answers = forward(group)
            except Exception as error:
                if len(group) == 1:
                    self._fail(group[0], error)
                else:
                    groups = [[turn] for turn in group]
                continue
            self._advance(group, answers)

    def _language_step(self, turns: list[Turn]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        llm = self.model.llm
        requested = [turn.request.inputs for turn in turns if isinstance(turn.request, LanguageStep)]
        tokens = [[item] for item in requested if isinstance(item, int)]
        embedded = iter(llm.embed(torch.tensor(tokens, device=self.model.device)).split(1) if tokens else ())
        inputs = [next(embedded) if isinstance(item, int) else item for item in requested]
        hidden = llm.stream_together(inputs, [turn.language for turn in turns])
        last = [states[:, -1:] for states in hidden]
        logits = llm.logits((last[0] if len(last) == 1 else torch.cat(last))[:, 0])
        return list(zip(last, logits, strict=True))

    def _speech_step(self, turns: list[Turn]) -> list:
        return self.model.require_speech_decoder().forward_pending([turn.speech for turn in turns])

    def _advance(self, turns: list[Turn], answers: list) -> None:
        """Hand the answers over, to all before any goes on: an interrupted step must not be taken twice."""
        for turn, answer in zip(turns, answers, strict=True):
            turn.answer, turn.request = answer, None
        self._resume(turns)

    def _resume(self, turns: list[Turn]) -> None:
        """Let those go on that wait for nothing."""
        for turn in turns:
            if turn.request is not None or turn.leaving:
                continue
            try:
                turn.resume()
            except Exception as error:
                self._fail(turn, error)
            except BaseException:
                self._fail(turn, RuntimeError("the session was interrupted in the middle of a step"))
                raise

    def _fail(self, turn: Turn, error: Exception) -> None:
        """End a turn; its caller gets the error after the events that came before it."""
        turn.error = error

    def _let_in(self) -> None:
        """Give free slots to the turns that wait."""
        model = self.model
        while len(self._running) < self.num_slots:
            with self._changed:
                if not self._waiting:
                    return
                turn = self._waiting.popleft()
                self._running.append(turn)
            self._eval_mode.enter()
            try:
                with taking_slots(self.llm_cache, self.speech_cache):
                    turn.language = model.llm.start_stream(self.llm_cache)
                    if turn.options.speak:
                        speaker = turn.options.speaker.to(model.device).unsqueeze(0)
                        sampler = turn.options.unit_sampler
                        turn.speech = model.require_speech_decoder().start_stream(speaker, sampler, self.speech_cache)
            except Exception as error:
                self._fail(turn, error)

    def _let_go(self) -> None:
        """Free the slots of turns that leave. Called with the lock held, between two steps."""
        self._abandoned = False
        model = self.model
        for turns in (self._running, self._waiting):
            for turn in [turn for turn in turns if turn.leaving]:
                turns.remove(turn)
                for part, state in ((model.llm, turn.language), (model.speech_decoder, turn.speech)):
                    if part is None or state is None:
                        continue
                    try:
                        part.end_stream(state)
                    except Exception:  # a plug-in's, say: the others must leave all the same
                        log.exception("%s failed to end a stream", type(part).__name__)
                turn.end()
        if not self._running:
            self._eval_mode.leave()
