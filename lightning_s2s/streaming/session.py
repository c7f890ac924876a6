"""One spoken turn: audio in, timed events out. The demo, the callbacks and the command line all use it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.data.audio import as_waveform
from lightning_s2s.generation.sampling import Generation, Sampler, check_seed
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.event_stream import EventStream
from lightning_s2s.streaming.events import Done, Reply
from lightning_s2s.streaming.inputs import SAMPLE_RATES_HZ, as_history, as_speaker, check_text
from lightning_s2s.streaming.turn import StreamingTurn, TurnOptions
from lightning_s2s.support.checks import check_count, check_flag, check_number


class StreamingSession:
    """Push audio, then call `finish` and iterate over the reply's events.

    The LLM advances one token at a time over its own cache. After every N hidden states the speech decoder produces M
    units, and the vocoder turns them into audio that is final: the chunks joined equal the one-shot waveform. The cost
    of a chunk doesn't grow with the reply. The loop belongs to a `StreamingEngine`, shared or the session's own.

    The latency clock starts when `finish` is called: that is the end of the question.

    Args:
        model: A model with an encoder.
        sample_rate: Sample rate of the pushed audio, between 1,000 and 768,000 Hz.
        instruction: Text in front of the audio in the user's turn.
        history: Messages of earlier turns in the manifest's format, as text; audio in them is refused.
        greedy: Take the most likely text token; otherwise draw with `text_sampler`.
        speak: Also produce units and audio; needs a speech decoder. None speaks if the model has one.
        vocode: Turn the units into audio if the model has a vocoder.
        seed: Seed of all random draws; None differs from run to run.
        max_text_tokens: Maximum number of text tokens; by default the LLM's `generation`, else 256.
        text_sampler: Temperature, top-k and top-p of the text when not greedy; by default those of the LLM's
            `generation`.
        unit_sampler: The same for the units; by default the speech decoder's `generation`, or greedy when `greedy`.
        speaker: (512,) embedding of the voice to speak with; zeros when None.
        opening_units: Number of units in the first audio chunk, at most M. Fewer make it start sooner, and leave less
            time before the next chunk is needed. None is a third of M.
        engine: Engine that runs the session beside others of the same model; None makes one for this session.

    Raises:
        ValueError: The model lacks a component that is needed, or isn't the engine's; an option is out of range; or
            instruction and history leave no room for a question.
    """

    def __init__(
        self,
        model: SpeechToSpeechModel,
        sample_rate: int,
        *,
        instruction: str = "",
        history: Sequence[dict[str, Any]] = (),
        greedy: bool = True,
        speak: bool | None = None,
        vocode: bool = True,
        seed: int | None = None,
        max_text_tokens: int | None = None,
        text_sampler: Sampler | None = None,
        unit_sampler: Sampler | None = None,
        speaker: Tensor | None = None,
        opening_units: int | None = None,
        engine: StreamingEngine | None = None,
    ):
        if not model.can_answer:
            raise ValueError("this model has no encoder: it can't answer a spoken question")
        if speak and model.speech_decoder is None:
            raise ValueError("this model has no speech decoder: it can't speak; answer with speak=False")
        check_number("sample_rate", sample_rate, *SAMPLE_RATES_HZ)
        for name, flag in (("greedy", greedy), ("vocode", vocode), ("speak", speak)):
            if flag is not None or name != "speak":
                check_flag(name, flag)
        for name, sampler in (("text_sampler", text_sampler), ("unit_sampler", unit_sampler)):
            if sampler is not None and not callable(sampler):
                raise ValueError(f"{name} must be a Sampler; got {type(sampler).__name__}")
        if max_text_tokens is not None:
            check_count("max_text_tokens", max_text_tokens)
        if seed is not None:
            check_seed(seed)
        if engine is not None and engine.model is not model:
            raise ValueError("engine runs another model than the session's")
        self.model = model
        self.engine = StreamingEngine(model) if engine is None else engine
        speak = model.speech_decoder is not None if speak is None else speak
        decoder = model.require_speech_decoder() if speak else None
        text, units = model.llm.generation, decoder.generation if decoder else None
        text_sampler = _sampler(text, None if greedy else text_sampler, greedy, Sampler(0.8, top_p=0.9))
        unit_sampler = _sampler(units, unit_sampler, greedy, Sampler(0.8, top_k=20))
        for offset, sampler in enumerate((text_sampler, unit_sampler)):
            if seed is not None and isinstance(sampler, Sampler) and sampler.seed is None:
                sampler.seed = seed + offset
        tokenizer = model.llm.tokenizer
        by_tokenizer = {tokenizer.turn_end_id, tokenizer.tokenizer.eos_token_id}
        chunk_units = decoder.chunk_units if decoder else 1
        if opening_units is not None and not 1 <= check_count("opening_units", opening_units) <= chunk_units:
            raise ValueError(f"opening_units must be between 1 and M, here {chunk_units}; got {opening_units}")
        question = {"role": "user", "content": [{"text": check_text("instruction", instruction), "audio": "pushed"}]}
        try:
            prompt_ids = tokenizer.encode_prompt([*as_history(history), question], spoken=speak)
        except ValueError as error:
            raise ValueError(f"instruction and history: {error}") from None
        self.options = TurnOptions(
            sample_rate=float(sample_rate),
            prompt_ids=prompt_ids,
            stop_ids=set(text.eos_token_ids) if text and text.eos_token_ids else by_tokenizer,
            max_text_tokens=max_text_tokens or (text and text.max_new_tokens) or 256,
            position_limit=self.engine.llm_limit,
            text_sampler=text_sampler,
            unit_sampler=unit_sampler,
            speak=speak,
            vocode=vocode and speak and model.vocoder is not None,
            opening_units=opening_units or max(1, chunk_units // 3),
            speaker=as_speaker(speaker),
        )
        self.options.check_room(1)
        self._pieces: list[Tensor] = []
        self._num_samples = 0
        self._turn: StreamingTurn | None = None

    def push(self, waveform: Any) -> None:
        """Append audio to the question: (T,) floats in [-1, 1], or integers at their full scale; see `as_waveform`.

        Raises:
            ValueError: The argument is something else, or contains NaN; the question becomes longer than the LLM can
                read; or it is already finished.
        """
        if self._turn is not None:
            raise ValueError("push after finish: the question is over; ask the next one in another session")
        piece = torch.from_numpy(as_waveform(waveform))
        duration_sec = (self._num_samples + len(piece)) / self.options.sample_rate
        encoder, adapter = self.model.require_encoder()
        num_positions = int(duration_sec * encoder.frame_rate_hz / adapter.downsampling)
        self.options.check_room(max(1, num_positions - 2))  # a lower bound until the audio is encoded
        self._pieces.append(piece)
        self._num_samples += len(piece)

    def finish(self) -> EventStream:
        """End the question; returns an iterator over the events, up to `Done`.

        Raises:
            ValueError: Less than 0.1 s of audio was pushed, or the question was already finished.
        """
        start_sec = time.perf_counter()
        if self._turn is not None:
            raise ValueError("finish: the question is over already; ask the next one in another session")
        waveform = torch.cat(self._pieces) if self._pieces else torch.zeros(0)
        if len(waveform) < 0.1 * self.options.sample_rate:
            raise ValueError(
                f"waveform: the question has {len(waveform) / self.options.sample_rate:.3f} s of audio; at least 0.1 s "
                "is needed"
            )
        self._pieces = []
        self._turn = StreamingTurn(self.model, self.options, self.engine.vocoder_worker, waveform, start_sec)
        return self.engine.submit(self._turn)

    def cancel(self) -> None:
        """End the reply now, from any thread: its slot is freed, and its events end without `Done`."""
        if self._turn is not None:
            self.engine.cancel(self._turn)


def stream_reply(model: SpeechToSpeechModel, waveform: Any, sample_rate: int, **options: Any) -> EventStream:
    """Answer a spoken question, event by event.

    Args:
        model: A model with an encoder.
        waveform: (T,) float32 in [-1, 1].
        sample_rate: Sample rate of `waveform` in Hz.
        options: Options of `StreamingSession`: `greedy`, `speak`, `seed`, `history`, and so on.

    Raises:
        ValueError: As for `StreamingSession` and its `push`.
    """
    session = StreamingSession(model, sample_rate, **options)
    session.push(waveform)
    return session.finish()


def respond(model: SpeechToSpeechModel, waveform: Any, sample_rate: int, **options: Any) -> Reply:
    """Run `stream_reply` to its end and return the reply."""
    *_, done = stream_reply(model, waveform, sample_rate, **options)
    assert isinstance(done, Done)
    return done.reply


def _sampler(generation: Generation | None, given: Sampler | None, greedy: bool, default: Sampler) -> Sampler:
    """The given sampler; else the model's own; else greedy or the default."""
    if given is not None:
        return given.fresh() if isinstance(given, Sampler) else given
    if generation is not None:
        return generation.sampler(greedy)
    return Sampler(temperature=0.0) if greedy else default
