"""A spoken turn as a coroutine: it yields events, and requests for forwards that turns of other sessions can share."""

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
"""Positions of a prompt that the LLM reads in one forward; other sessions wait no longer than that."""


@dataclass(frozen=True)
class LlmForward:
    """Requests a forward of the LLM; the response is the last position's hidden state (1, 1, D) and logits (V,).

    Attributes:
        inputs: A piece of the prompt (1, S, D), or the token that was drawn.
    """

    inputs: Tensor | int


@dataclass(frozen=True)
class SpeechDecoderForward:
    """Requests a forward of the speech decoder; the response is the turn's item of `forward_pending`."""


@dataclass(frozen=True)
class PendingAudio:
    """Waits for the vocoder's last chunk; the response is None."""

    future: Future[None]


Request = LlmForward | SpeechDecoderForward | PendingAudio
Steps = Generator[Event | Request, Any, None]


@dataclass(frozen=True)
class TurnOptions:
    """The prompt of a turn, and how the reply is made.

    Attributes:
        sample_rate: Sample rate of the question in Hz.
        prompt_ids: Token ids of the prompt, with one placeholder for the question's audio.
        stop_ids: Tokens that end the text.
        max_text_tokens: Maximum number of text tokens.
        position_limit: Maximum number of positions in the LLM; None if there is no limit.
        text_sampler: Maps logits (V,) to a token; used by this turn alone.
        unit_sampler: The same for units.
        speak: Whether to produce units.
        vocode: Whether to turn them into audio.
        opening_units: Number of units in the first audio chunk.
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

    def check_room(self, num_audio_positions: int) -> None:
        """Refuse a prompt that leaves no room for a reply.

        Args:
            num_audio_positions: Number of positions that the question's audio takes in the LLM.

        Raises:
            ValueError: The prompt is too long.
        """
        limit, num_text_positions = self.position_limit, len(self.prompt_ids) - 1
        if limit is not None and num_text_positions + num_audio_positions >= limit:
            raise ValueError(
                f"instruction and history take {num_text_positions} positions of the LLM, and the question's waveform "
                f"{num_audio_positions}; fewer than {limit} are allowed, by the LLM or by the engine's position_limit"
            )


class VocoderWorker:
    """A thread that runs the vocoder while the next units are drawn, on a GPU in a CUDA stream of its own.

    Args:
        device: Device of the vocoder.
        deliver: Takes a turn and its next audio event.
    """

    def __init__(self, device: torch.device, deliver: Callable[[StreamingTurn, Event], None]):
        self.deliver = deliver
        self.thread = ThreadPoolExecutor(1, "vocoder")
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def submit(self, turn: StreamingTurn, make_audio: Callable[[], Event | None]) -> Future[None]:
        """Queue the synthesis of a turn's next audio; chunks are made in order."""
        return self.thread.submit(self._run, turn, make_audio)

    def _run(self, turn: StreamingTurn, make_audio: Callable[[], Event | None]) -> None:
        if turn.leaving:
            return
        with torch.cuda.stream(self.stream):
            event = make_audio()
        if event is not None:
            self.deliver(turn, event)


@dataclass(eq=False)
class StreamingTurn:
    """One turn of a session, from the end of the question to the end of the reply.

    Attributes:
        model: The model that answers.
        options: The prompt, and how the reply is made.
        worker: Runs the vocoder in a thread of its own; None runs it between the steps.
        waveform: (T,) The question.
        start_sec: When the question ended, on the clock `time.perf_counter`.
        events: Events that have not been read yet.
        request: What the turn waits for; None if it can resume with `response`.
        response: Response to its last request.
        ended: True once it has left the engine; no more events follow.
        cancelled: True once it must end without `Done`.
        complete: True once its last event was produced.
        error: The error that ended it.
        language: Stream state of the LLM.
        speech: Stream state of the speech decoder.
        reply: The reply that `Done` will carry.
    """

    model: SpeechToSpeechModel
    options: TurnOptions
    worker: VocoderWorker | None
    waveform: Tensor
    start_sec: float
    events: deque[Event] = field(default_factory=deque)
    request: Request | None = None
    response: Any = None
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
        """Whether it takes no part in further steps."""
        return self.ended or self.complete or self.cancelled or self.error is not None

    def resume(self) -> None:
        """Resume with the response to the last request, and run up to the next request."""
        response, self.response = self.response, None
        try:
            item = self._steps.send(response)
            while isinstance(item, Event):
                self.events.append(item)
                item = self._steps.send(None)
            self.request = item
        except StopIteration:
            self.complete = True

    def end(self) -> None:
        """Release everything that only a running turn needs."""
        if self.cancelled:
            self.events.clear()
        self._steps.close()
        self.language = self.speech = self.request = self.response = None
        self.waveform = self.waveform[:0]
        self.ended = True

    def mark(self, name: str) -> float:
        """Record a latency mark the first time it is reached; returns the current time."""
        now = time.perf_counter()
        self.reply.marks.setdefault(name, now - self.start_sec)
        return now

    def _run(self) -> Steps:
        model, options, reply = self.model, self.options, self.reply
        speech = _SpokenReply(self) if options.speak else None
        detokenize = Detokenizer(model.llm.tokenizer.decode)
        prompt = self._prompt()
        num_positions = prompt.shape[1]
        *pieces, last = prompt.split(PROMPT_POSITIONS, dim=1)
        for piece in pieces:
            yield LlmForward(piece)
        hidden, logits = yield LlmForward(last)
        while True:
            token = self.draw(logits)
            now = self.mark("first_text_token")
            reply.text_ids.append(token)
            ending = self._ending(token, num_positions)
            text = detokenize(token) + (detokenize.flush() if ending else "")
            yield TextDelta(now, text, [token])
            if speech:
                yield from speech.feed(hidden, token, last=ending is not None)
            if ending or (speech and speech.is_exhausted):
                break
            hidden, logits = yield LlmForward(token)
            num_positions += 1
        if text := detokenize.flush():
            yield TextDelta(time.perf_counter(), text, [])
        reply.ended_by = ending or ("position_limit" if speech and speech.is_cache_full else "max_units")
        reply.text = model.llm.tokenizer.decode(reply.text_ids).strip()
        if speech:
            yield from speech.close()
        yield Done(time.perf_counter(), reply)

    def _ending(self, token: int, num_positions: int) -> Ending | None:
        """Why the text ends with this token, drawn after `num_positions` positions; None if it continues."""
        limit = self.options.position_limit
        if token in self.options.stop_ids:
            return "end"
        if len(self.reply.text_ids) >= self.options.max_text_tokens:
            return "max_text_tokens"
        return "position_limit" if limit is not None and num_positions >= limit else None

    def _prompt(self) -> Tensor:
        """The LLM's input (1, S, D): history, instruction, and the question's audio.

        Raises:
            ValueError: It leaves no room for a reply, or the output of encoder or adapter is NaN or infinite.
        """
        model, options, waveform = self.model, self.options, self.waveform
        encoder, adapter = model.require_encoder()
        if encoder.sample_rate != options.sample_rate:
            import soxr

            waveform = torch.from_numpy(soxr.resample(waveform.numpy(), options.sample_rate, encoder.sample_rate))
        lengths = torch.tensor([len(waveform)], device=model.device)
        hidden_states, lengths = encoder(waveform.unsqueeze(0).to(model.device), lengths)
        check_finite(hidden_states, f"encoder {type(encoder).__name__}", "hidden states")
        audio, audio_lengths = adapter(hidden_states, lengths)
        check_finite(audio, f"adapter {type(adapter).__name__}", "its outputs")
        self.mark("encoder_done")
        ids = torch.tensor(options.prompt_ids)
        place, num_audio_positions = int((ids == AUDIO_PLACEHOLDER).nonzero()[-1]), int(audio_lengths[0])
        options.check_room(num_audio_positions)
        embedded = model.llm.embed(ids.clamp(min=0).to(model.device))
        audio_embeds = audio[0, :num_audio_positions].to(embedded.dtype)
        return torch.cat([embedded[:place], audio_embeds, embedded[place + 1 :]]).unsqueeze(0)


class _SpokenReply:
    """The speech of a reply: hidden states in, units and audio out."""

    def __init__(self, turn: StreamingTurn):
        model = turn.model
        self.turn, self.decoder, self.device = turn, model.require_speech_decoder(), model.device
        self.vocoder = model.require_vocoder() if turn.options.vocode else None
        self.vocoder_state = self.vocoder.start_stream() if self.vocoder else None
        self.has_words = False
        """Whether any token so far decodes to text; a reply without words stays silent."""
        self.hidden: list[Tensor] = []
        self.tokens: list[int] = []
        self.chunks: list[Tensor] = []
        self.times: list[float] = []
        self.pending: deque[Future[None]] = deque()

    @property
    def is_exhausted(self) -> bool:
        """Whether the speech decoder may draw no more units, which ends the reply."""
        return self.decoder.is_exhausted(self.turn.speech)

    @property
    def is_cache_full(self) -> bool:
        """Whether that is because its cache is full."""
        return self.decoder.is_full(self.turn.speech)

    def feed(self, hidden: Tensor, token: int, last: bool) -> Steps:
        """Add a hidden state (1, 1, D) and the token that was drawn from it; `last` at the end of the text.

        From the first word on, the speech decoder gets N of them at a time, since it draws nothing after fewer.
        """
        size = self.decoder.chunk_conditions
        self.hidden.append(hidden)
        self.tokens.append(token)
        self.has_words = self.has_words or bool(self.turn.model.llm.tokenizer.decode([token]).strip())
        if not last and len(self.tokens) % size:
            return
        if self.decoder.restarts_sampling and not last:
            self.turn.draw.forget()
        while self.has_words and self.tokens and not self.is_exhausted:
            chunk = torch.cat(self.hidden[:size], dim=1), self.tokens[:size]
            self.hidden, self.tokens = self.hidden[size:], self.tokens[size:]
            yield from self._draw_units(*chunk, last and not self.tokens)
        if self.has_words and (last or self.is_exhausted):
            yield from self._vocode([], last=True)

    def _draw_units(self, hidden: Tensor, tokens: list[int], last: bool) -> Steps:
        """Feed up to N hidden states (1, S, D), and the tokens drawn from them, to the speech decoder."""
        self.turn.mark("first_hidden_states")
        conditions = self.decoder.project(hidden, torch.tensor([tokens], device=self.device))
        steps, response = self.decoder.steps(conditions, self.turn.speech, last), None
        group: list[int] = []
        while True:
            try:
                units = steps.send(response)
            except StopIteration:
                break
            response = None
            if units is None:
                response = yield SpeechDecoderForward()
                continue
            group += units
            opening = not self.turn.reply.unit_ids
            if len(group) >= (self.turn.options.opening_units if opening else self.decoder.chunk_units):
                yield from self._emit_units(group)
                group = []
        if group:
            yield from self._emit_units(group)

    def _emit_units(self, units: list[int]) -> Steps:
        self.turn.reply.unit_ids += units
        yield Units(self.turn.mark("first_units"), units)
        yield from self._vocode(units, last=False)

    def _vocode(self, units: list[int], last: bool) -> Steps:
        if self.vocoder is None:
            return
        if self.turn.worker is None:
            if (event := self._make_audio(self.vocoder, units, last)) is not None:
                yield event
            return
        while self.pending and self.pending[0].done():
            self.pending.popleft().result()  # raises if it failed
        make_audio = functools.partial(self._make_audio, self.vocoder, units, last)
        self.pending.append(self.turn.worker.submit(self.turn, make_audio))

    @torch.inference_mode()
    def _make_audio(self, vocoder: Vocoder, units: list[int], last: bool) -> AudioChunk | None:
        known = [unit for unit in units if 0 <= unit < vocoder.num_units]  # special tokens are silent
        ids = torch.tensor([known], dtype=torch.long, device=self.device)
        chunk = vocoder.stream(ids, self.vocoder_state, last)[0].float().cpu()
        if not len(chunk):
            return None
        check_finite(chunk, f"vocoder {type(vocoder).__name__}", "samples")
        self.times.append(self.turn.mark("first_audio"))
        self.chunks.append(chunk)
        return AudioChunk(self.times[-1], chunk, vocoder.sample_rate)

    def close(self) -> Steps:
        """Wait for the vocoder, then add the waveform and its timing to the reply."""
        if self.pending:
            yield PendingAudio(self.pending[-1])
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
