"""One spoken turn: audio in, timed events out. Demo, callbacks, command line and server all use this loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_s2s.sampling import Generation, Sampler
from lightning_s2s.splice import AUDIO_PLACEHOLDER
from lightning_s2s.streaming.events import AudioChunk, Done, Event, Reply, TextDelta, Units

if TYPE_CHECKING:
    from lightning_s2s.model import SpeechToSpeechModel


class StreamingSession:
    """Push audio, then `finish` to get the answer as it is made.

    The LLM advances one token at a time over its own cache. Each hidden state goes to the speech decoder as soon as it
    exists; after every N of them M units come out, and the vocoder turns these into sound that is final: chunks joined
    equal the one-shot waveform. The cost of a chunk doesn't grow with the reply.

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

    Raises:
        ValueError: the model can't hear or speak as asked.
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
    ):
        if not model.can_answer:
            raise ValueError("this model has no encoder: it can't answer a spoken question")
        if speak and model.speech_decoder is None:
            raise ValueError("this model has no speech decoder: it can't speak; answer with speak=False")
        if sample_rate <= 0:
            raise ValueError(f"sample_rate must be positive; got {sample_rate}")
        self.model, self.sample_rate = model, sample_rate
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
        self.speaker = torch.zeros(512) if speaker is None else speaker
        self.history, self.instruction = list(history), instruction
        self._pieces: list[Tensor] = []

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
        start = time.perf_counter()
        waveform = torch.cat(self._pieces) if self._pieces else torch.zeros(0)
        if len(waveform) < 0.1 * self.sample_rate:
            raise ValueError(
                f"the question has {len(waveform) / self.sample_rate:.3f} s of audio; at least 0.1 s is needed"
            )
        return self._answer(waveform, start)

    @torch.inference_mode()
    def _answer(self, waveform: Tensor, start: float) -> Iterator[Event]:
        model, reply = self.model, Reply()
        training = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield from self._run(waveform, reply, start)
        finally:
            for module, was_training in training:  # frozen parts may have been in eval mode while others train
                module.training = was_training

    def _run(self, waveform: Tensor, reply: Reply, start: float) -> Iterator[Event]:
        model = self.model

        def mark(name: str) -> float:
            now = time.perf_counter()
            reply.marks.setdefault(name, now - start)
            return now

        state = model.llm.start_stream()
        hidden = model.llm.stream(self._prompt(waveform, mark), state)[:, -1:]
        speech = _SpeechOutput(self, reply, mark) if self.speak else None
        tokenizer = model.llm.tokenizer
        shown = ""
        while True:
            token = self.text_sampler(model.llm.logits(hidden[0, -1]))
            now = mark("first_text_token")
            reply.text_ids.append(token)
            ended = token in self.stop_ids or len(reply.text_ids) >= self.max_text_tokens
            text = tokenizer.decode(reply.text_ids)
            # A character may need several tokens: what is incomplete waits.
            complete = "" if text.endswith("\ufffd") else text[len(shown) :]
            shown += complete
            yield TextDelta(now, complete, [token])
            if speech:
                yield from speech.feed(hidden, token, last=ended)
                if (
                    model.speech_decoder.restarts_sampling
                    and not speech.num_fed % model.speech_decoder.chunk_conditions
                ):
                    self.text_sampler.forget()
            if ended or (speech and speech.spent):
                break
            embedded = model.llm.embed(torch.tensor([[token]], device=model.device))
            hidden = model.llm.stream(embedded, state)
        reply.text = tokenizer.decode(reply.text_ids).strip()
        if speech:
            speech.close()
        yield Done(time.perf_counter(), reply)

    def _prompt(self, waveform: Tensor, mark: Any) -> Tensor:
        """The LLM's input (1, S, D): history, instruction, and the question's audio."""
        model = self.model
        wanted = model.encoder.sample_rate
        if wanted != self.sample_rate:
            import soxr

            waveform = torch.from_numpy(soxr.resample(waveform.numpy(), self.sample_rate, wanted))
        lengths = torch.tensor([len(waveform)], device=model.device)
        audio, audio_lengths = model.encode_audio(waveform.unsqueeze(0).to(model.device), lengths)
        mark("encoder_done")
        question = {"role": "user", "content": [{"text": self.instruction, "audio": "pushed"}]}
        ids = torch.tensor(model.llm.tokenizer.encode_prompt([*self.history, question], spoken=self.speak))
        place = int((ids == AUDIO_PLACEHOLDER).nonzero()[-1])
        embedded = model.llm.embed(ids.clamp(min=0).to(model.device))
        heard = audio[0, : int(audio_lengths[0])].to(embedded.dtype)
        return torch.cat([embedded[:place], heard, embedded[place + 1 :]]).unsqueeze(0)


def _sampler(generation: Generation | None, given: Sampler | None, greedy: bool, default: Sampler) -> Sampler:
    """The sampler that was given, or else the model's own, or else greedy or the default."""
    if given is not None:
        return given
    if generation is not None:
        return generation.sampler(greedy)
    return Sampler(temperature=0.0) if greedy else default


class _SpeechOutput:
    """The spoken half of a turn: hidden states in, units and sound out."""

    def __init__(self, session: StreamingSession, reply: Reply, mark: Any):
        self.decoder, self.vocoder = session.model.speech_decoder, session.model.vocoder
        self.vocode, self.reply, self.mark = session.vocode, reply, mark
        self.device = session.model.device
        speaker = session.speaker.to(self.device).unsqueeze(0)
        self.state = self.decoder.start_stream(speaker, session.unit_sampler)
        self.vocoder_state = self.vocoder.start_stream() if self.vocode else None
        self.num_fed = 0
        self.chunks: list[Tensor] = []
        self.times: list[float] = []

    @property
    def spent(self) -> bool:
        """Whether the speech decoder ends the reply."""
        return self.decoder.is_spent(self.state)

    def feed(self, hidden: Tensor, token: int, last: bool) -> Iterator[Event]:
        """One more hidden state (1, 1, D) and the token that was drawn from it; `last` when the text is over."""
        self.num_fed += 1
        if last or self.num_fed == self.decoder.chunk_conditions:
            self.mark("first_hidden_states")
        conditions = self.decoder.project(hidden, torch.tensor([[token]], device=hidden.device))
        for units in self.decoder.stream(conditions, self.state, last):
            self.reply.unit_ids += units
            yield Units(self.mark("first_units"), units)
            yield from self._sound(units, last=False)
        if last or self.spent:
            yield from self._sound([], last=True)

    def _sound(self, units: list[int], last: bool) -> Iterator[Event]:
        if not self.vocode:
            return
        known = [unit for unit in units if 0 <= unit < self.vocoder.num_units]  # specials make no sound
        ids = torch.tensor([known], dtype=torch.long, device=self.device)
        chunk = self.vocoder.stream(ids, self.vocoder_state, last)[0].cpu()
        if len(chunk):
            self.times.append(self.mark("first_audio"))
            self.chunks.append(chunk)
            yield AudioChunk(self.times[-1], chunk, self.vocoder.sample_rate)

    def close(self) -> None:
        """Fill the reply's sound and its timing in."""
        if not self.chunks:
            return
        reply = self.reply
        reply.waveform, reply.sample_rate = torch.cat(self.chunks), self.vocoder.sample_rate
        reply.audio_sec = len(reply.waveform) / reply.sample_rate
        reply.chunk_gaps_sec = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        reply.marks["last_audio"] = reply.marks["first_audio"] + sum(reply.chunk_gaps_sec)
        reply.real_time_factor = reply.marks["last_audio"] / reply.audio_sec
