"""A spoken turn as a coroutine: it yields events, and requests for forwards that turns of other sessions may share."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.data.batch import AUDIO_PLACEHOLDER
from lightning_s2s.generation.sampling import CheckedSampler, check_finite
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.detokenizer import Detokenizer
from lightning_s2s.streaming.events import AudioChunk, Done, Ending, Event, Reply, TextDelta, Units

PROMPT_POSITIONS = 512
"""Positions of a prompt that the LLM reads in one forward: sessions beside it wait no longer than that."""


@dataclass(frozen=True)
class LanguageStep:
    """A forward of the LLM; answered by the last position's hidden state (1, 1, D) and logits (V,).

    Attributes:
        inputs: a piece of the prompt (1, S, D), or the token that was drawn.
    """

    inputs: Tensor | int


@dataclass(frozen=True)
class SpeechStep:
    """A forward of the speech decoder; answered by the turn's item of `forward_pending`."""


@dataclass(frozen=True)
class Sound:
    """The vocoder's last chunk is still being made; answered by None, once it is there."""

    future: Future[None]


Request = LanguageStep | SpeechStep | Sound
Steps = Generator[Event | Request, Any, None]


@dataclass(frozen=True)
class TurnOptions:
    """What a turn is asked, and how it answers.

    Attributes:
        sample_rate: Hz of the question.
        prompt_ids: what the LLM reads, with one placeholder for the question's audio.
        stop_ids: tokens that end the text.
        max_text_tokens: that end it, too.
        position_limit: positions of the LLM, where something limits them.
        text_sampler: logits (V,) -> the token; the turn's own.
        unit_sampler: of the units.
        speak: whether units are made.
        vocode: whether they are made sound.
        opening_units: that the first sound is made of.
        speaker: (512,) embedding of the voice.
    """

    sample_rate: float
    prompt_ids: list[int]
    stop_ids: set[int]
    max_text_tokens: int
    position_limit: int | None
    text_sampler: Callable[[Tensor], int]
    unit_sampler: Callable[[Tensor], int]
    speak: bool
    vocode: bool
    opening_units: int
    speaker: Tensor

    def check_room(self, num_heard: int) -> None:
        """Refuse a prompt that leaves no room for a reply.

        Args:
            num_heard: positions of the question's audio.

        Raises:
            ValueError: with so many positions the prompt is too long.
        """
        limit, num_read = self.position_limit, len(self.prompt_ids) - 1
        if limit is not None and num_read + num_heard >= limit:
            raise ValueError(
                f"instruction and history take {num_read} positions of the LLM, and the question's waveform "
                f"{num_heard}; fewer than {limit} are allowed, by the LLM or by the engine's position_limit"
            )


class VocoderWorker:
    """A thread that makes sound beside the next units, on a GPU in a stream of its own.

    Args:
        device: of the vocoder.
        deliver: takes a turn's sound.
    """

    def __init__(self, device: torch.device, deliver: Callable[[Turn, Event], None]):
        self.deliver = deliver
        self.thread = ThreadPoolExecutor(1, "vocoder")
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def submit(self, turn: Turn, make_sound: Callable[[], Event | None]) -> Future[None]:
        """Make a turn's next sound when those before are done."""
        return self.thread.submit(self._run, turn, make_sound)

    def _run(self, turn: Turn, make_sound: Callable[[], Event | None]) -> None:
        if turn.leaving:
            return
        with torch.cuda.stream(self.stream):
            event = make_sound()
        if event is not None:
            self.deliver(turn, event)


@dataclass(eq=False)
class Turn:
    """One turn while it waits, runs and ends.

    Attributes:
        model: that answers.
        options: how.
        worker: makes sound aside; without one it is made between the steps.
        waveform: (T,) the question.
        start_sec: when the question had ended, of `time.perf_counter`.
        events: that nobody has taken yet.
        request: what it waits for; None where it can go on with `answer`.
        answer: to its last request.
        ended: it has left the engine; no more events follow.
        cancelled: it is to end now.
        complete: its last event was made.
        error: what ended it.
        language: the LLM's state.
        speech: the speech decoder's.
        reply: what `Done` will carry.
    """

    model: SpeechToSpeechModel
    options: TurnOptions
    worker: VocoderWorker | None
    waveform: Tensor
    start_sec: float
    events: deque[Event] = field(default_factory=deque)
    request: Request | None = None
    answer: Any = None
    ended: bool = False
    cancelled: bool = False
    complete: bool = False
    error: Exception | None = None
    language: Any = None
    speech: Any = None
    reply: Reply = field(default_factory=Reply)

    def __post_init__(self) -> None:
        self.draw = CheckedSampler(self.options.text_sampler, f"llm {type(self.model.llm).__name__}")
        self._steps = self._run()

    @property
    def leaving(self) -> bool:
        """Whether it has no part in further steps."""
        return self.ended or self.complete or self.cancelled or self.error is not None

    def resume(self) -> None:
        """Go on with the answer to the request, up to the next one."""
        answer, self.answer = self.answer, None
        try:
            item = self._steps.send(answer)
            while isinstance(item, Event):
                self.events.append(item)
                item = self._steps.send(None)
            self.request = item
        except StopIteration:
            self.complete = True

    def end(self) -> None:
        """Let go of all that only a running turn needs."""
        if self.cancelled:
            self.events.clear()
        self._steps.close()
        self.language = self.speech = self.request = self.answer = None
        self.waveform = self.waveform[:0]
        self.ended = True

    def mark(self, name: str) -> float:
        """Note the time at which something is first reached -> now."""
        now = time.perf_counter()
        self.reply.marks.setdefault(name, now - self.start_sec)
        return now

    def _run(self) -> Steps:
        model, options, reply = self.model, self.options, self.reply
        speech = _Speech(self) if options.speak else None
        detokenize = Detokenizer(model.llm.tokenizer.decode)
        prompt = self._prompt()
        num_positions = prompt.shape[1]
        *opening, last = prompt.split(PROMPT_POSITIONS, dim=1)
        for piece in opening:
            yield LanguageStep(piece)
        hidden, logits = yield LanguageStep(last)
        while True:
            token = self.draw(logits)
            now = self.mark("first_text_token")
            reply.text_ids.append(token)
            ending = self._ending(token, num_positions)
            text = detokenize(token) + (detokenize.flush() if ending else "")
            yield TextDelta(now, text, [token])
            if speech:
                yield from speech.feed(hidden, token, last=ending is not None)
            if ending or (speech and speech.spent):
                break
            hidden, logits = yield LanguageStep(token)
            num_positions += 1
        if text := detokenize.flush():
            yield TextDelta(time.perf_counter(), text, [])
        reply.ended_by = ending or ("position_limit" if speech and speech.full else "max_units")
        reply.text = model.llm.tokenizer.decode(reply.text_ids).strip()
        if speech:
            yield from speech.close()
        yield Done(time.perf_counter(), reply)

    def _ending(self, token: int, num_positions: int) -> Ending | None:
        """What ends the text with the token that was drawn after so many positions; None where it goes on."""
        limit = self.options.position_limit
        if token in self.options.stop_ids:
            return "end"
        if len(self.reply.text_ids) >= self.options.max_text_tokens:
            return "max_text_tokens"
        return "position_limit" if limit is not None and num_positions >= limit else None

    def _prompt(self) -> Tensor:
        """The LLM's input (1, S, D): history, instruction, and the question's audio.

        Raises:
            ValueError: it leaves no room for a reply, or encoder or adapter give NaN.
        """
        model, options, waveform = self.model, self.options, self.waveform
        encoder, adapter = model.require_encoder()
        wanted = encoder.sample_rate
        if wanted != options.sample_rate:
            import soxr

            waveform = torch.from_numpy(soxr.resample(waveform.numpy(), options.sample_rate, wanted))
        lengths = torch.tensor([len(waveform)], device=model.device)
        hidden_states, lengths = encoder(waveform.unsqueeze(0).to(model.device), lengths)
        check_finite(hidden_states, f"encoder {type(encoder).__name__}", "hidden states")
        audio, audio_lengths = adapter(hidden_states, lengths)
        check_finite(audio, f"adapter {type(adapter).__name__}", "its outputs")
        self.mark("encoder_done")
        ids = torch.tensor(options.prompt_ids)
        place, num_heard = int((ids == AUDIO_PLACEHOLDER).nonzero()[-1]), int(audio_lengths[0])
        options.check_room(num_heard)
        embedded = model.llm.embed(ids.clamp(min=0).to(model.device))
        heard = audio[0, :num_heard].to(embedded.dtype)
        return torch.cat([embedded[:place], heard, embedded[place + 1 :]]).unsqueeze(0)


class _Speech:
    """The spoken half of a turn: hidden states in, units and sound out."""

    def __init__(self, turn: Turn):
        model = turn.model
        self.turn, self.decoder, self.device = turn, model.require_speech_decoder(), model.device
        self.vocoder = model.require_vocoder() if turn.options.vocode else None
        self.vocoder_state = self.vocoder.start_stream() if self.vocoder else None
        self.worded = False
        """Whether there is anything to say: a reply without a word makes no sound."""
        self.hidden: list[Tensor] = []
        self.tokens: list[int] = []
        self.chunks: list[Tensor] = []
        self.times: list[float] = []
        self.pending: deque[Future[None]] = deque()

    @property
    def spent(self) -> bool:
        """Whether the speech decoder ends the reply."""
        return self.decoder.is_spent(self.turn.speech)

    @property
    def full(self) -> bool:
        """Whether it does so because its cache is full."""
        return self.decoder.is_full(self.turn.speech)

    def feed(self, hidden: Tensor, token: int, last: bool) -> Steps:
        """One more hidden state (1, 1, D) and the token that was drawn from it; `last` when the text is over.

        The speech decoder gets N of them at a time, as it does nothing with fewer, from the first word on.
        """
        size = self.decoder.chunk_conditions
        self.hidden.append(hidden)
        self.tokens.append(token)
        self.worded = self.worded or bool(self.turn.model.llm.tokenizer.decode([token]).strip())
        if not last and len(self.tokens) % size:
            return
        if self.decoder.restarts_sampling and not last:
            self.turn.draw.forget()
        while self.worded and self.tokens and not self.spent:
            chunk = torch.cat(self.hidden[:size], dim=1), self.tokens[:size]
            self.hidden, self.tokens = self.hidden[size:], self.tokens[size:]
            yield from self._speak(*chunk, last and not self.tokens)
        if self.worded and (last or self.spent):
            yield from self._sound([], last=True)

    def _speak(self, hidden: Tensor, tokens: list[int], last: bool) -> Steps:
        """Give up to N hidden states (1, S, D), and the tokens drawn from them, to the speech decoder."""
        self.turn.mark("first_hidden_states")
        conditions = self.decoder.project(hidden, torch.tensor([tokens], device=self.device))
        steps, answer = self.decoder.steps(conditions, self.turn.speech, last), None
        group: list[int] = []
        while True:
            try:
                units = steps.send(answer)
            except StopIteration:
                break
            answer = None
            if units is None:
                answer = yield SpeechStep()
                continue
            group += units
            opening = not self.turn.reply.unit_ids
            if len(group) >= (self.turn.options.opening_units if opening else self.decoder.chunk_units):
                yield from self._say(group)
                group = []
        if group:
            yield from self._say(group)

    def _say(self, units: list[int]) -> Steps:
        self.turn.reply.unit_ids += units
        yield Units(self.turn.mark("first_units"), units)
        yield from self._sound(units, last=False)

    def _sound(self, units: list[int], last: bool) -> Steps:
        if self.vocoder is None:
            return
        if self.turn.worker is None:
            if (event := self._make_sound(self.vocoder, units, last)) is not None:
                yield event
            return
        while self.pending and self.pending[0].done():
            self.pending.popleft().result()  # raises what went wrong
        make_sound = functools.partial(self._make_sound, self.vocoder, units, last)
        self.pending.append(self.turn.worker.submit(self.turn, make_sound))

    @torch.inference_mode()
    def _make_sound(self, vocoder: Vocoder, units: list[int], last: bool) -> AudioChunk | None:
        known = [unit for unit in units if 0 <= unit < vocoder.num_units]  # specials make no sound
        ids = torch.tensor([known], dtype=torch.long, device=self.device)
        chunk = vocoder.stream(ids, self.vocoder_state, last)[0].float().cpu()
        if not len(chunk):
            return None
        check_finite(chunk, f"vocoder {type(vocoder).__name__}", "samples")
        self.times.append(self.turn.mark("first_audio"))
        self.chunks.append(chunk)
        return AudioChunk(self.times[-1], chunk, vocoder.sample_rate)

    def close(self) -> Steps:
        """Wait for the sound, and fill it and its timing into the reply."""
        if self.pending:
            yield Sound(self.pending[-1])
        for future in self.pending:
            future.result()
        if self.vocoder is None or not self.chunks:
            return
        reply = self.turn.reply
        reply.waveform, reply.sample_rate = torch.cat(self.chunks), self.vocoder.sample_rate
        reply.audio_sec = len(reply.waveform) / reply.sample_rate
        reply.chunk_gaps_sec = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        reply.marks["last_audio"] = reply.marks["first_audio"] + sum(reply.chunk_gaps_sec)
        reply.real_time_factor = reply.marks["last_audio"] / reply.audio_sec
