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

from lightning_s2s.generation.kv_cache import release_slots_on_error
from lightning_s2s.model.compatibility import check_dtypes
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.eval_mode import EvalMode
from lightning_s2s.streaming.event_stream import EventStream
from lightning_s2s.streaming.events import Event
from lightning_s2s.streaming.turn import LlmForward, PendingAudio, SpeechDecoderForward, StreamingTurn, VocoderWorker
from lightning_s2s.support.checks import check_count, check_flag

log = logging.getLogger(__name__)


class StreamingEngine:
    """Runs sessions of one model over caches that are allocated once.

    Each step advances every running session by one forward: the sessions that wait for the LLM share one, those that
    wait for the speech decoder another, however long each has been running. Sessions beyond `num_slots` wait; finished
    and cancelled ones leave, and the next enter, between two steps (continuous batching; Yu et al., Orca, OSDI 2022).

    The consumers drive the engine, which has no thread of its own: iterating over a session's events, in any thread,
    runs the next step for all sessions when no event is queued. A reply does not depend on which sessions share a step.

    Errors stay with the session that caused them: a forward that fails for several sessions is retried for each alone,
    and those that fail again end with the error. A session whose event stream was dropped is cancelled.

    Args:
        model: The model that answers.
        num_slots: Number of sessions that run at the same time.
        compile: Compile the forwards of single steps, with CUDA graphs on a GPU. This takes a minute: call `warm_up`
            before the first session.
        max_positions: Initial number of positions per session in the caches of LLM and speech decoder; None is 512, or
            2048 if compiled. A session that needs more doubles it, which takes a minute if compiled; the caches shrink
            when it has left, unless they are compiled.
        position_limit: Maximum number of positions of a session in each cache; None, or more than the LLM and the
            speech decoder are made for, means what they are made for. A longer question is refused, and a reply that
            reaches the limit ends.
        overlap: Run the vocoder in a thread of its own, on a GPU in a CUDA stream of its own, while the next units are
            drawn.

    Raises:
        ValueError: An option is out of range, or the model can't do what was asked.
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
        """Maximum number of positions of a session in the LLM; None if there is no limit."""
        decoder = model.speech_decoder
        self.speech_cache = None if decoder is None else decoder.open_cache(num_slots, max_positions, compile, **limit)
        overlap = check_flag("overlap", overlap) and model.vocoder is not None
        self.vocoder_worker = VocoderWorker(model.device, self.deliver) if overlap else None
        self._waiting: deque[StreamingTurn] = deque()
        self._running: list[StreamingTurn] = []
        self._eval_mode = EvalMode(model)
        self._changed = threading.Condition(threading.Lock())
        self._stepping = self._abandoned = False

    @property
    def num_running(self) -> int:
        """Number of sessions that have a slot."""
        return len(self._running)

    def warm_up(self) -> None:
        """Allocate the caches, and compile them if asked. No session may be running."""
        self._eval_mode.enter()
        try:
            self._warm_up_caches()
        finally:
            self._eval_mode.leave()

    def _warm_up_caches(self) -> None:
        for part, cache in ((self.model.llm, self.llm_cache), (self.model.speech_decoder, self.speech_cache)):
            if part is not None and cache is not None:
                cache.warm_up(part.width)

    def submit(self, turn: StreamingTurn) -> EventStream:
        """Queue a turn for the next free slot; returns its events, computed while they are iterated over."""
        with self._locked():
            self._waiting.append(turn)
        return EventStream(
            functools.partial(self.next_event, turn),
            functools.partial(self.cancel, turn),
            functools.partial(self.abandon, turn),
        )

    def cancel(self, turn: StreamingTurn) -> None:
        """End a turn now; if another thread is running a step, its slot is freed at the end of that step."""
        with self._locked():
            turn.cancelled = True
            turn.events.clear()
            if not self._stepping:
                self._remove_leaving()
            self._changed.notify_all()

    def abandon(self, turn: StreamingTurn) -> None:
        """`cancel` for the garbage collector, which may run anywhere, even in a thread that holds the lock."""
        turn.cancelled = self._abandoned = True
        self._remove_abandoned()

    def deliver(self, turn: StreamingTurn, event: Event) -> None:
        """Queue an event from another thread."""
        with self._locked():
            if not turn.leaving:
                turn.events.append(event)
            self._changed.notify_all()

    def next_event(self, turn: StreamingTurn) -> Event | None:
        """The turn's next event; runs steps of all sessions until there is one. None after the last event.

        Raises:
            Exception: The error that ended the turn, after the events before it.
        """
        while True:
            with self._locked():
                while self._stepping and not turn.events and not turn.ended:
                    self._changed.wait()
                if turn.events:
                    return turn.events.popleft()
                if turn.ended:
                    return self._raise_error(turn)
                self._stepping = True
            try:
                self._step()
            finally:
                with self._locked():
                    self._stepping = False
                    self._remove_leaving()
                    self._changed.notify_all()

    @staticmethod
    def _raise_error(turn: StreamingTurn) -> None:
        error, turn.error = turn.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback refers to this frame, and so to everything that the turn holds

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._changed:
            yield
        self._remove_abandoned()

    def _remove_abandoned(self) -> None:
        """Free the slots of abandoned turns; if the lock is held or a step is running, its owner does it afterwards."""
        while self._abandoned and self._changed.acquire(blocking=False):
            try:
                if self._stepping:
                    return
                self._remove_leaving()
                self._changed.notify_all()
            finally:
                self._changed.release()

    @torch.inference_mode()
    def _step(self) -> None:
        """Advance every running session by one forward."""
        self._admit()
        self._resume(self._running)
        self._run_forwards(LlmForward, self.llm_cache, self._llm_forward)
        self._run_forwards(SpeechDecoderForward, self.speech_cache, self._speech_decoder_forward)
        pending = {turn: turn.request.future for turn in self._running if isinstance(turn.request, PendingAudio)}
        if pending and len(pending) == len(self._running):
            wait(pending.values(), return_when=FIRST_COMPLETED)
        done = [turn for turn, future in pending.items() if future.done()]
        self._respond(done, [None] * len(done))

    def _run_forwards(self, kind: type, cache: Any, forward: Callable[[list[StreamingTurn]], list]) -> None:
        """One forward for all turns that wait for one; one for each if there is no shared cache, or if it fails."""
        turns = [turn for turn in self._running if isinstance(turn.request, kind) and not turn.leaving]
        groups = [[turn] for turn in turns] if cache is None else [turns] if turns else []
        while groups:
            group = groups.pop(0)
            try:
                responses = forward(group)
            except Exception as error:
                if len(group) == 1:
                    self._fail(group[0], error)
                else:
                    groups = [[turn] for turn in group]
                continue
            self._respond(group, responses)

    def _llm_forward(self, turns: list[StreamingTurn]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        llm = self.model.llm
        requested = [turn.request.inputs for turn in turns if isinstance(turn.request, LlmForward)]
        tokens = [[item] for item in requested if isinstance(item, int)]
        embedded = iter(llm.embed(torch.tensor(tokens, device=self.model.device)).split(1) if tokens else ())
        inputs = [next(embedded) if isinstance(item, int) else item for item in requested]
        hidden = llm.stream_together(inputs, [turn.language for turn in turns])
        last = [states[:, -1:] for states in hidden]
        logits = llm.logits((last[0] if len(last) == 1 else torch.cat(last))[:, 0])
        return list(zip(last, logits, strict=True))

    def _speech_decoder_forward(self, turns: list[StreamingTurn]) -> list:
        return self.model.require_speech_decoder().forward_pending([turn.speech for turn in turns])

    def _respond(self, turns: list[StreamingTurn], responses: list) -> None:
        """Respond to every turn before any resumes, so that an interrupted step is not repeated."""
        for turn, response in zip(turns, responses, strict=True):
            turn.response, turn.request = response, None
        self._resume(turns)

    def _resume(self, turns: list[StreamingTurn]) -> None:
        """Resume the turns that wait for nothing."""
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

    def _fail(self, turn: StreamingTurn, error: Exception) -> None:
        """End a turn; its consumer gets the error after the events before it."""
        turn.error = error

    def _admit(self) -> None:
        """Give free slots to waiting turns."""
        model = self.model
        while len(self._running) < self.num_slots:
            with self._changed:
                if not self._waiting:
                    return
                turn = self._waiting.popleft()
                self._running.append(turn)
            self._eval_mode.enter()
            try:
                with release_slots_on_error(self.llm_cache, self.speech_cache):
                    turn.language = model.llm.start_stream(self.llm_cache)
                    if turn.options.speak:
                        speaker = turn.options.speaker.to(model.device).unsqueeze(0)
                        sampler = turn.options.unit_sampler
                        turn.speech = model.require_speech_decoder().start_stream(speaker, sampler, self.speech_cache)
            except Exception as error:
                self._fail(turn, error)

    def _remove_leaving(self) -> None:
        """Remove leaving turns and free their slots. Called with the lock held, between two steps."""
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
                    except Exception:  # raised by a plug-in, say: the other turns must leave all the same
                        log.exception("%s failed to end a stream", type(part).__name__)
                turn.end()
        if not self._running:
            self._eval_mode.leave()
