"""One spoken turn: audio in, timed events out. Demo, callbacks, command line and server all use this loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_s2s.sampling import Generation, Sampler
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import Event
from lightning_s2s.streaming.turn import Turn

if TYPE_CHECKING:
    from lightning_s2s.model import SpeechToSpeechModel


class StreamingSession:
    """Push audio, then `finish` to get the answer as it is made.

    The LLM advances one token at a time over its own cache. After every N hidden states the speech decoder gives M
    units, and the vocoder turns these into sound that is final: chunks joined equal the one-shot waveform. The cost of
    a chunk doesn't grow with the reply. The loop is the `StreamingEngine`'s, shared or of the session's own.

    The clock starts when `finish` is called: that is the end of the question.

    Args:
        model: a model that hears.
        sample_rate: Hz of the audio that is pushed.
        instruction: text in front of the audio in the user's turn.
        history: messages of earlier turns (text, as in the manifest).
        greedy: take the most likely text token; otherwise draw by `text_sampler`.
        speak: also give units and sound; needs a speech decoder.
        vocode: turn units into sound, where the model has a vocoder.
        seed: of everything that is drawn.
        max_text_tokens: the reply ends after so many, by default as the LLM's `generation` says, else 256.
        text_sampler: temperature, top-k and top-p of the text when not greedy; by default those of the LLM's
            `generation`.
        unit_sampler: of the units, by default those of the speech decoder's `generation`; greedy when `greedy`.
        speaker: (512,) embedding of the voice to speak with; zeros when None.
        opening_units: units that the first sound is made of, at most M; fewer come sooner and leave less time until the
            next must follow. None is a third of M.
        engine: runs the session beside others of the same model; None makes one for this session alone.

    Raises:
        ValueError: the model can't hear or speak as asked, or isn't the engine's.
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
        if sample_rate <= 0:
            raise ValueError(f"sample_rate must be positive; got {sample_rate}")
        if engine is not None and engine.model is not model:
            raise ValueError("engine runs another model than the session's")
        self.model, self.sample_rate = model, sample_rate
        self.engine = StreamingEngine(model) if engine is None else engine
        self.speak = model.speech_decoder is not None if speak is None else speak
        self.vocode = vocode and self.speak and model.vocoder is not None
        text, units = model.llm.generation, model.speech_decoder.generation if self.speak else None
        self.max_text_tokens = max_text_tokens or (text and text.max_new_tokens) or 256
        self.text_sampler = _sampler(text, None if greedy else text_sampler, greedy, Sampler(0.8, top_p=0.9))
        self.unit_sampler = _sampler(units, unit_sampler, greedy, Sampler(0.8, top_k=20))
        tokenizer = model.llm.tokenizer
        by_tokenizer = {tokenizer.turn_end_id, tokenizer.tokenizer.eos_token_id}
        self.stop_ids = set(text.eos_token_ids) if text and text.eos_token_ids else by_tokenizer
        for offset, sampler in enumerate((self.text_sampler, self.unit_sampler)):
            if seed is not None and sampler.seed is None:
                sampler.seed = seed + offset
        chunk_units = model.speech_decoder.chunk_units if self.speak else 1
        if opening_units is not None and not 1 <= opening_units <= chunk_units:
            raise ValueError(f"opening_units must be between 1 and M, here {chunk_units}; got {opening_units}")
        self.opening_units = opening_units or max(1, chunk_units // 3)
        self.speaker = torch.zeros(512) if speaker is None else speaker
        self.history, self.instruction = list(history), instruction
        self._pieces: list[Tensor] = []
        self._turn: Turn | None = None

    def push(self, waveform: Any) -> None:
        """More of the question, (T,) float32 in [-1, 1].

        Raises:
            ValueError: not one-dimensional, or not finite.
        """
        piece = torch.as_tensor(waveform, dtype=torch.float32)
        if piece.dim() != 1:
            raise ValueError(f"waveform must be (T,), mono; got shape {tuple(piece.shape)}")
        if not torch.isfinite(piece).all():
            raise ValueError("waveform holds NaN or infinite samples")
        self._pieces.append(piece)

    def finish(self) -> Iterator[Event]:
        """The question is over: yield events until `Done`.

        Raises:
            ValueError: less than 0.1 s of audio was pushed.
        """
        start_sec = time.perf_counter()
        waveform = torch.cat(self._pieces) if self._pieces else torch.zeros(0)
        if len(waveform) < 0.1 * self.sample_rate:
            raise ValueError(
                f"the question has {len(waveform) / self.sample_rate:.3f} s of audio; at least 0.1 s is needed"
            )
        self._turn = Turn(self, self.engine, waveform, start_sec)
        return self.engine.submit(self._turn)

    def cancel(self) -> None:
        """End the answer now, from any thread: its slot is free at once, and its events end without `Done`."""
        if self._turn is not None:
            self.engine.cancel(self._turn)


def _sampler(generation: Generation | None, given: Sampler | None, greedy: bool, default: Sampler) -> Sampler:
    """The sampler that was given, or else the model's own, or else greedy or the default."""
    if given is not None:
        return given
    if generation is not None:
        return generation.sampler(greedy)
    return Sampler(temperature=0.0) if greedy else default
