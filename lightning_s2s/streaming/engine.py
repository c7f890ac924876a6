"""The loop that advances all running sessions of a model together, with continuous batching."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import torch

from lightning_s2s.streaming.events import Event
from lightning_s2s.streaming.turn import LanguageStep, Sound, SpeechStep, Turn

if TYPE_CHECKING:
    from lightning_s2s.model import SpeechToSpeechModel


class StreamingEngine:
    """Runs sessions of one model over caches that are allocated once.

    A step takes every running session one forward on: those that wait for the LLM share one, those that wait for the
    speech decoder another, whatever the age of each. Sessions beyond `num_slots` wait; one that ends or is cancelled
    leaves, and the next enters, between two steps (continuous batching; Yu et al., Orca, OSDI 2022).

    There is no thread of the engine's own: whoever iterates over a session's events and finds none runs the next step,
    for all sessions, and every thread may do so. What is given out does not depend on who shares a step.

    Args:
        model: that answers.
        num_slots: sessions that run at the same time.
        compile: compile the forwards of single steps, with CUDA graphs on a GPU; call `warm_up` before the first
            session, for it takes a minute.
        max_positions: of the LLM's and the speech decoder's cache, for each session; None is 512, and 2048 where they
            are compiled. A session that needs more doubles it, which compiled takes a minute.
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
        overlap: bool = False,
    ):
        self.model, self.num_slots = model, num_slots
        if max_positions is None:
            max_positions = 2048 if compile else 512
        self.llm_cache = model.llm.open_cache(num_slots, max_positions, compile)
        decoder = model.speech_decoder
        self.speech_cache = None if decoder is None else decoder.open_cache(num_slots, max_positions, compile)
        self.vocoder_thread = ThreadPoolExecutor(1, "vocoder") if overlap and model.vocoder is not None else None
        on_gpu = self.vocoder_thread is not None and model.device.type == "cuda"
        self.vocoder_stream = torch.cuda.Stream(model.device) if on_gpu else None
        self._waiting: deque[Turn] = deque()
        self._running: list[Turn] = []
        self._training: list[torch.nn.Module] = []
        self._changed = threading.Condition()
        self._stepping = False

    @property
    def num_running(self) -> int:
        """Sessions that have a slot."""
        return len(self._running)

    def warm_up(self) -> None:
        """Allocate the caches, and compile what is to be compiled. No session may be running."""
        self._rest_training()
        for part, cache in ((self.model.llm, self.llm_cache), (self.model.speech_decoder, self.speech_cache)):
            if cache is not None:
                cache.warm_up(part.width)
        self._resume_training()

    def submit(self, turn: Turn) -> Iterator[Event]:
        """Let a turn in as soon as there is a slot -> its events, made while they are iterated over.

        A caller that stops before the last one cancels the turn.
        """
        with self._changed:
            self._waiting.append(turn)
        return self._events(turn)

    def cancel(self, turn: Turn) -> None:
        """End a turn now. Where another thread is in the middle of a step, its slot is free with the end of that."""
        with self._changed:
            turn.cancelled = True
            turn.events.clear()
            if not self._stepping:
                self._let_go()
            self._changed.notify_all()

    def deliver(self, turn: Turn, event: Event) -> None:
        """Add an event of another thread."""
        with self._changed:
            if not turn.ended:
                turn.events.append(event)
            self._changed.notify_all()

    def _events(self, turn: Turn) -> Iterator[Event]:
        try:
            while True:
                with self._changed:
                    while self._stepping and not turn.events and not turn.ended:
                        self._changed.wait()
                    if turn.events and not turn.cancelled:
                        event = turn.events.popleft()
                    elif turn.error is not None:
                        raise turn.error
                    elif turn.ended:
                        return
                    else:
                        event, self._stepping = None, True
                if event is not None:
                    yield event
                    continue
                try:
                    self._step()
                finally:
                    with self._changed:
                        self._stepping = False
                        self._let_go()
                        self._changed.notify_all()
        finally:
            if not turn.ended:
                self.cancel(turn)

    @torch.inference_mode()
    def _step(self) -> None:
        """Take every running session one forward on."""
        self._let_in()
        for turn in self._running:
            if turn.request is None:
                self._advance([turn], [None])
        self._language_step([turn for turn in self._running if isinstance(turn.request, LanguageStep)])
        self._speech_step([turn for turn in self._running if isinstance(turn.request, SpeechStep)])
        sounds = {turn: turn.request.future for turn in self._running if isinstance(turn.request, Sound)}
        if sounds and len(sounds) == len(self._running):
            wait(sounds.values(), return_when=FIRST_COMPLETED)
        done = [turn for turn, future in sounds.items() if future.done()]
        self._advance(done, [None] * len(done))

    def _language_step(self, turns: list[Turn]) -> None:
        if not turns:
            return
        llm = self.model.llm
        try:
            requested = [turn.request.inputs for turn in turns if isinstance(turn.request, LanguageStep)]
            tokens = [[item] for item in requested if isinstance(item, int)]
            embedded = iter(llm.embed(torch.tensor(tokens, device=self.model.device)).split(1) if tokens else ())
            inputs = [next(embedded) if isinstance(item, int) else item for item in requested]
            hidden = llm.stream_together(inputs, [turn.language for turn in turns])
            last = [states[:, -1:] for states in hidden]
            logits = llm.logits((last[0] if len(last) == 1 else torch.cat(last))[:, 0])
        except Exception as error:
            self._fail(turns, error)
            return
        self._advance(turns, list(zip(last, logits, strict=True)))

    def _speech_step(self, turns: list[Turn]) -> None:
        if not turns:
            return
        try:
            answers = self.model.speech_decoder.read_waiting([turn.speech for turn in turns])
        except Exception as error:
            self._fail(turns, error)
            return
        self._advance(turns, answers)

    def _advance(self, turns: list[Turn], answers: list) -> None:
        for turn, answer in zip(turns, answers, strict=True):
            if turn.cancelled or turn.ended:
                continue
            try:
                turn.resume(answer)
            except Exception as error:
                self._fail([turn], error)

    def _fail(self, turns: list[Turn], error: Exception) -> None:
        """End these turns; each one's caller gets the error after the events that came before it."""
        for turn in turns:
            turn.error, turn.cancelled = error, True

    def _let_in(self) -> None:
        """Give free slots to the turns that wait."""
        model = self.model
        while len(self._running) < self.num_slots:
            with self._changed:
                if not self._waiting:
                    return
                turn = self._waiting.popleft()
            if not self._running:
                self._rest_training()
            self._running.append(turn)
            try:
                turn.language = model.llm.start_stream(self.llm_cache)
                if turn.session.speak:
                    speaker = turn.session.speaker.to(model.device).unsqueeze(0)
                    sampler = turn.session.unit_sampler
                    turn.speech = model.speech_decoder.start_stream(speaker, sampler, self.speech_cache)
            except Exception as error:
                self._fail([turn], error)

    def _let_go(self) -> None:
        """Free the slots of turns that have ended or were cancelled. Called with the lock held, between two steps."""
        for turn in [turn for turn in (*self._running, *self._waiting) if turn.ended or turn.cancelled]:
            turn.ended = True
            if turn.language is not None:
                self.model.llm.end_stream(turn.language)
            if turn.speech is not None:
                self.model.speech_decoder.end_stream(turn.speech)
            turn.language = turn.speech = None
            if turn in self._running:
                self._running.remove(turn)
            else:
                self._waiting.remove(turn)
        if not self._running:
            self._resume_training()

    def _rest_training(self) -> None:
        """Into eval mode; frozen parts may be there already while others train."""
        self._training = [module for module in self.model.modules() if module.training]
        for module in self._training:
            module.training = False

    def _resume_training(self) -> None:
        for module in self._training:
            module.training = True
        self._training = []
