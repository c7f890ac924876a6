"""The contracts of the five slots: shapes, rates and streaming.

B batch, T samples, F frames, S positions, U units, D width. `lengths` are (B,) int64; a mask is True where valid.
Waveforms are float32 in [-1, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_s2s.components.base import Component
from lightning_s2s.components.unit_logits import UnitLogits
from lightning_s2s.generation.sampling import Generation

StateT = TypeVar("StateT")
"""State of one stream, apart from the weights: one model runs many streams."""


class AudioEncoder(Component, ABC):
    """Speech -> hidden states.

    Attributes:
        sample_rate: Hz that `forward` expects.
        frame_rate_hz: hidden states per second.
        width: D of the hidden states.
        depends_on_batch: whether what it gives for a clip depends on the clips beside it.
    """

    sample_rate: int
    frame_rate_hz: float
    width: int
    depends_on_batch: bool = False

    @abstractmethod
    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T), right-padded, and (B,) samples -> (B, F, D) and (B,) frames."""


class Adapter(Component, ABC):
    """The encoder's hidden states -> the LLM's input embeddings, usually at a lower rate.

    Attributes:
        downsampling: frames in for one position out; known once the adapter is connected.
        reads_padding: whether a clip's positions depend on what stands behind its frames.
    """

    downsampling: float
    reads_padding: bool = False

    @abstractmethod
    def connect(self, input_width: int, output_width: int, frame_rate_hz: float | None = None) -> None:
        """Build the layers between the encoder's width and the LLM's. Called once by the model.

        Args:
            input_width: D of the encoder's hidden states.
            output_width: D of the LLM's embeddings.
            frame_rate_hz: the encoder's hidden states per second, for an adapter that counts in seconds.
        """

    @abstractmethod
    def forward(self, hidden_states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, D) and (B,) -> (B, S, D_llm) and (B,) positions."""


class Vocoder(Component, ABC, Generic[StateT]):
    """Discrete units <-> waveform.

    Attributes:
        sample_rate: Hz of the waveforms.
        samples_per_unit: samples that one unit stands for, a fraction where several units make up a frame; a reply's
            length may be short of U times that by less than one frame, where a vocoder rounds to frames of its own.
        num_units: number of different units; units are 0 <= unit < num_units.
        num_codebooks: streams of units side by side; 1, as all of this project have.
        codebooks_per_frame: units that make up a frame, one of each codebook in turn; nothing is heard of a frame
            before its last unit. 1 where a unit is a frame.
        predicts_durations: whether a unit lasts as long as the vocoder thinks; `samples_per_unit` is the shortest then,
            and a reply's length at least U times that.
    """

    sample_rate: int
    samples_per_unit: float
    num_units: int
    num_codebooks: int = 1
    codebooks_per_frame: int = 1
    predicts_durations: bool = False

    @property
    def codebook_size(self) -> int:
        """Different units at one place of a frame: unit % codebook_size is the code."""
        return self.num_units // self.codebooks_per_frame

    @property
    def unit_rate_hz(self) -> float:
        """Units per second."""
        return self.sample_rate / self.samples_per_unit

    @property
    def tokenizer_sample_rate(self) -> int:
        """Hz of the waveforms that `tokenize` takes; `sample_rate` where a vocoder doesn't say otherwise."""
        return self.sample_rate

    @abstractmethod
    def tokenize(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) at `tokenizer_sample_rate` Hz, right-padded, and (B,) samples -> units (B, U) int64 and (B,) counts.

        A clip gives the same units in any batch.
        """

    @abstractmethod
    def synthesize(self, units: Tensor) -> Tensor:
        """Units (B, U) -> (B, T) in one shot, T = U * samples_per_unit or short of it by less than one frame.

        Raises:
            ValueError: a unit lies outside the codebook.
        """

    @abstractmethod
    def start_stream(self) -> StateT:
        """The state of a new stream."""

    @abstractmethod
    def stream(self, units: Tensor, state: StateT, last: bool) -> Tensor:
        """The next units (B, U) -> the samples that are final now (B, T).

        All chunks joined equal `synthesize`. A vocoder whose one-shot synthesis looks at the whole reply can't do that
        at a bounded cost: it says so, has the same length, and gives the same samples however the units are cut.

        Args:
            units: may be empty (B, 0), to close a stream with `last`.
            state: from `start_stream`, updated in place.
            last: no units follow.
        """

    def check_units(self, units: Tensor) -> None:
        """Raise ValueError when a unit lies outside the codebook."""
        if units.numel() and (int(units.min()) < 0 or int(units.max()) >= self.num_units):
            raise ValueError(f"units must be in 0..{self.num_units - 1}; got {int(units.min())}..{int(units.max())}")


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) -> (B, size) bool, True where valid."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


class StreamCache(Protocol):
    """Memory that several streams of a component share, as `lightning_s2s.generation.kv_cache` has it."""

    def warm_up(self, width: int) -> None:
        """Allocate and compile for inputs of this width, before the first stream starts."""

    def shrink(self) -> None:
        """Release memory that no stream needs any more."""


class StreamedComponent(Component, Generic[StateT]):
    """A component whose streams can share a cache and advance together: the LLM and the speech decoder."""

    def open_cache(
        self, num_slots: int, max_positions: int, compile: bool, position_limit: int | None = None
    ) -> StreamCache | None:
        """Memory for several streams; None where every stream has its own.

        Args:
            num_slots: Number of streams that may run at the same time.
            max_positions: Positions of each stream that are allocated at first.
            compile: Compile the forward of a single step.
            position_limit: Most positions of a stream; None, or more than the component is made for, means what it is
                made for.

        Raises:
            ValueError: The component can't do what was asked.
        """
        if compile:
            raise ValueError(f"{type(self).__name__} can't be compiled; set compile to false")
        return None

    def end_stream(self, state: StateT) -> None:
        """Release the slot of a stream; its state must not be used again."""


LOGITS_AT_ONCE = 2**26
"""Logits that `LanguageModel.sum_over_logits` holds at a time: 256 MiB in float32, 441 positions of 152k tokens."""


class LanguageModel(StreamedComponent[StateT], ABC):
    """The instruction-following LLM: tokens and audio positions in, hidden states and text out.

    Attributes:
        width: D of embeddings and hidden states.
        vocabulary: V of `logits`.
        tokenizer: turns dialogues into ids, see `lightning_s2s.data.chat.ChatTokenizer`.
        generation: how the model wants its replies drawn and ended; None leaves that to the session.
    """

    entry_points = ("embed", "logits", "sum_over_logits", "stream", "stream_together")
    width: int
    vocabulary: int
    tokenizer: Any
    generation: Generation | None = None

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, D)."""

    @abstractmethod
    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S, D) and (B, S) bool -> (B, S, D), the hidden states after the final norm."""

    @abstractmethod
    def logits(self, hidden_states: Tensor) -> Tensor:
        """(..., D) -> (..., V): what follows each position."""

    def sum_over_logits(
        self, function: Callable[[Tensor, Tensor], Tensor], hidden_states: Tensor, labels: Tensor
    ) -> Tensor:
        """Sum of what `function` makes of the logits of P positions, which never exist all at once.

        Where they would be more than `LOGITS_AT_ONCE`, it goes chunk by chunk, and the backward pass computes a chunk's
        logits again. All chunks are one call, so that sharded weights are gathered once, however many there are.

        Args:
            function: (p, V) logits and (p,) labels of some positions -> a sum over them, of any shape.
            hidden_states: (P, D).
            labels: (P,) int64.
        """

        def apply(hidden_states: Tensor, labels: Tensor) -> Tensor:
            # Not `self.logits`, which sharding replaces by one that gathers the weights and gives them back.
            return function(type(self).logits(self, hidden_states), labels)

        size = max(1, LOGITS_AT_ONCE // self.vocabulary)
        if len(labels) <= size:
            return apply(hidden_states, labels)
        chunks = zip(hidden_states.split(size), labels.split(size), strict=True)
        return torch.stack([checkpoint(apply, *chunk, use_reentrant=False) for chunk in chunks]).sum(0)

    @abstractmethod
    def start_stream(self, cache: Any = None) -> StateT:
        """The state of a new stream, in memory of its own or in a slot of a cache of `open_cache`."""

    @abstractmethod
    def stream(self, inputs_embeds: Tensor, state: StateT) -> Tensor:
        """The next positions (1, S, D) -> their hidden states (1, S, D); the stream grows by S."""

    def stream_together(self, inputs_embeds: Sequence[Tensor], states: Sequence[StateT]) -> list[Tensor]:
        """`stream` of several streams that share a cache, in as few forwards as the LLM can."""
        return [self.stream(inputs, state) for inputs, state in zip(inputs_embeds, states, strict=True)]


UnitSteps: TypeAlias = Generator[list[int] | None, Any, None]
"""Yields units as they are drawn, or None, and is then sent a tensor of `SpeechDecoder.forward_pending`."""


class SpeechDecoder(StreamedComponent[StateT], ABC):
    """Hidden states of the LLM -> units, step by step, so that speech begins before the text is complete.

    A *condition* is one position's input on the text side: a projected hidden state, or, while the decoder learns to
    speak on its own (stage 2a), the embedding of the text token which that hidden state predicts.

    Attributes:
        width: D of the decoder's own hidden states and conditions.
        eos_unit: the unit that closes speech; no unit of the vocoder. None where speech ends with its conditions.
        chunk_conditions: conditions that open speech.
        chunk_units: units given out at a time.
        num_units: units 0 <= unit < num_units can be spoken; None when the vocoder says how many.
        codebooks_per_frame: that the vocoder must have; None takes any.
        text_conditions: whether `embed_text` works (stage 2a).
        generation: how the units are to be drawn; None leaves that to the session.
        restarts_sampling: whether the repetition penalties of text and units start afresh with every chunk.
    """

    entry_points = ("project", "embed_text", "start_stream", "forward_pending")
    width: int
    eos_unit: int | None
    chunk_conditions: int
    chunk_units: int
    num_units: int | None = None
    codebooks_per_frame: int | None = None
    text_conditions: bool = True
    generation: Generation | None = None
    restarts_sampling: bool = False

    @abstractmethod
    def connect(self, llm_width: int, text_vocabulary: int, num_units: int) -> None:
        """Build what depends on the neighbours: projections and the unit vocabulary. Called once by the model.

        Args:
            llm_width: of the hidden states.
            text_vocabulary: of the LLM.
            num_units: the decoder's own, or else the vocoder's.
        """

    @abstractmethod
    def project(self, hidden_states: Tensor, tokens: Tensor) -> Tensor:
        """The LLM's hidden states (..., D_llm) -> conditions (..., D).

        Args:
            hidden_states: of the positions that predict the spoken text.
            tokens: (...) int64, what each of them predicts: while training the token that follows, while streaming the
                one that was drawn. For decoders that read both.
        """

    @abstractmethod
    def embed_text(self, ids: Tensor) -> Tensor:
        """Text token ids (...) -> conditions (..., D).

        Raises:
            ValueError: the decoder has no `text_conditions`.
        """

    @abstractmethod
    def forward(
        self, conditions: Tensor, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor, speaker: Tensor
    ) -> UnitLogits:
        """Training over M spoken turns, teacher-forced where units follow from units.

        Args:
            conditions: (M, S, D), right-padded.
            condition_lengths: (M,).
            units: (M, U) without `eos_unit`, right-padded.
            unit_lengths: (M,).
            speaker: (M, 512) embeddings, zeros when unknown.

        Returns:
            Logits and labels, ids of the units in the decoder's vocabulary; each turn is closed by `eos_unit`, where
            there is one.
        """

    @abstractmethod
    def start_stream(self, speaker: Tensor, sampler: Callable[[Tensor], int], cache: Any = None) -> StateT:
        """The state of a new turn for a speaker embedding (1, 512); units are drawn by `sampler`."""

    @abstractmethod
    def stream(self, conditions: Tensor, state: StateT, last: bool) -> Iterator[list[int]]:
        """Feed conditions (1, S, D); yield the units that are due, at most `chunk_units` at a time, without eos.

        With `last`, all the remaining units follow. The units don't depend on how the conditions are split into calls.
        """

    def steps(self, conditions: Tensor, state: StateT, last: bool) -> UnitSteps:
        """`stream` as a coroutine, so that several turns can share a forward.

        Where it yields None it must be sent this turn's item of `forward_pending`. The conditions don't cross a
        multiple of `chunk_conditions`; units come out as they are drawn, in smaller groups than from `stream`. A
        decoder without such steps speaks turn by turn.
        """
        yield from self.stream(conditions, state, last)

    def forward_pending(self, states: Sequence[StateT]) -> list[Tensor]:
        """What the turns whose `steps` yielded None are to be sent, in one forward where the decoder can."""
        raise NotImplementedError(f"{type(self).__name__} speaks turn by turn")

    def idle_parts(self, condition: str) -> list[nn.Module]:
        """Modules that training never runs on conditions of `project` ("hidden_states") or of `embed_text` ("text")."""
        return []

    def freeze_idle(self, condition: str) -> None:
        """Freeze the idle parts: DDP waits for the gradients of everything else."""
        for part in self.idle_parts(condition):
            part.requires_grad_(False)

    def is_spent(self, state: StateT) -> bool:
        """True once no more units may be drawn: the reply ends here, text included."""
        return False

    def is_full(self, state: StateT) -> bool:
        """True if the decoder is spent because the turn fills its slot of the cache."""
        return False
