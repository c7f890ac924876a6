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
"""State of one stream, kept apart from the weights so that one model can run many streams."""


class AudioEncoder(Component, ABC):
    """Speech -> hidden states.

    Attributes:
        sample_rate: Sample rate of the waveform in Hz.
        frame_rate_hz: Hidden states per second.
        width: D of the hidden states.
        depends_on_batch: Whether the output for a clip depends on the other clips of the batch.
    """

    sample_rate: int
    frame_rate_hz: float
    width: int
    depends_on_batch: bool = False

    @abstractmethod
    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T), right-padded, and (B,) samples -> hidden states (B, F, D) and (B,) frames."""


class Adapter(Component, ABC):
    """The encoder's hidden states -> the LLM's input embeddings, usually at a lower rate.

    Attributes:
        downsampling: Input frames per output position; known once the adapter is connected.
        reads_padding: Whether a clip's positions depend on the padding behind its frames.
    """

    downsampling: float
    reads_padding: bool = False

    @abstractmethod
    def connect(self, input_width: int, output_width: int, frame_rate_hz: float | None = None) -> None:
        """Build the layers between the encoder and the LLM. Called once by the model.

        Args:
            input_width: D of the encoder's hidden states.
            output_width: D of the LLM's embeddings.
            frame_rate_hz: The encoder's hidden states per second, for adapters whose options are in seconds.
        """

    @abstractmethod
    def forward(self, hidden_states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, F, D) and (B,) frames -> embeddings (B, S, D_llm) and (B,) positions."""


class Vocoder(Component, ABC, Generic[StateT]):
    """Discrete units <-> waveform.

    Attributes:
        sample_rate: Sample rate of the waveforms in Hz.
        samples_per_unit: Samples per unit, a fraction if several units make up a frame. A vocoder that rounds to frames
            may give up to one frame less than U times this number.
        num_units: Number of different units; units are 0 <= unit < num_units.
        num_codebooks: Number of parallel streams of units; all vocoders of this project have 1.
        codebooks_per_frame: Number of units that make up a frame, one of each codebook in turn; a frame becomes audio
            only with its last unit. 1 if each unit is a frame.
        predicts_durations: Whether the vocoder predicts how long a unit lasts. `samples_per_unit` is then the minimum,
            and a reply has at least U times as many samples.
    """

    sample_rate: int
    samples_per_unit: float
    num_units: int
    num_codebooks: int = 1
    codebooks_per_frame: int = 1
    predicts_durations: bool = False

    @property
    def codebook_size(self) -> int:
        """Number of different units in one codebook: unit % codebook_size is the code."""
        return self.num_units // self.codebooks_per_frame

    @property
    def unit_rate_hz(self) -> float:
        """Units per second."""
        return self.sample_rate / self.samples_per_unit

    @property
    def tokenizer_sample_rate(self) -> int:
        """Sample rate of the waveforms that `tokenize` takes, in Hz; by default `sample_rate`."""
        return self.sample_rate

    @abstractmethod
    def tokenize(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) at `tokenizer_sample_rate` Hz and (B,) samples -> units (B, U) and (B,) counts.

        Waveforms are right-padded, units are int64. A clip must give the same units in any batch.
        """

    @abstractmethod
    def synthesize(self, units: Tensor) -> Tensor:
        """Units (B, U) -> waveforms (B, T) in one shot; T is U * samples_per_unit, or less than a frame short of it.

        Raises:
            ValueError: A unit lies outside the codebook.
        """

    @abstractmethod
    def start_stream(self) -> StateT:
        """The state of a new stream."""

    @abstractmethod
    def stream(self, units: Tensor, state: StateT, last: bool) -> Tensor:
        """Feed the next units (B, U); returns the samples (B, T) that have become final.

        The chunks joined equal `synthesize`. A vocoder whose one-shot synthesis reads the whole reply can't guarantee
        this at a bounded cost: it must say so, keep the total length, and give the same samples however the units are
        split into calls.

        Args:
            units: The next units; may be empty (B, 0), to close the stream with `last`.
            state: State from `start_stream`, updated in place.
            last: True if no units follow.
        """

    def check_units(self, units: Tensor) -> None:
        """Raise ValueError if a unit lies outside the codebook."""
        if units.numel() and (int(units.min()) < 0 or int(units.max()) >= self.num_units):
            raise ValueError(f"units must be in 0..{self.num_units - 1}; got {int(units.min())}..{int(units.max())}")


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) -> (B, size) bool, True where valid."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


class StreamCache(Protocol):
    """Memory shared by several streams of a component, such as those of `lightning_s2s.generation.kv_cache`."""

    def warm_up(self, width: int) -> None:
        """Allocate and compile for inputs of this width, before the first stream starts."""

    def shrink(self) -> None:
        """Release memory that no stream needs any more."""


class StreamedComponent(Component, Generic[StateT]):
    """A component whose streams can share a cache and advance together: the LLM and the speech decoder."""

    def open_cache(
        self, num_slots: int, max_positions: int, compile: bool, position_limit: int | None = None
    ) -> StreamCache | None:
        """Memory for several streams; None if every stream has its own.

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
"""Most logits held at a time by `LanguageModel.sum_over_logits`: 256 MiB in float32, 441 positions of 152k tokens."""


class LanguageModel(StreamedComponent[StateT], ABC):
    """The instruction-following LLM: tokens and audio positions in, hidden states and text out.

    Attributes:
        width: D of embeddings and hidden states.
        vocabulary: V of `logits`.
        tokenizer: Encodes dialogues as ids, see `lightning_s2s.data.chat.ChatTokenizer`.
        generation: The model's own generation settings; None leaves them to the session.
    """

    entry_points = ("embed", "logits", "sum_over_logits", "stream", "stream_together")
    width: int
    vocabulary: int
    tokenizer: Any
    generation: Generation | None = None

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, S) -> embeddings (B, S, D)."""

    @abstractmethod
    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings (B, S, D) and a mask (B, S) -> hidden states (B, S, D) after the final norm."""

    @abstractmethod
    def logits(self, hidden_states: Tensor) -> Tensor:
        """Hidden states (..., D) -> logits (..., V) of the next token."""

    def sum_over_logits(
        self, function: Callable[[Tensor, Tensor], Tensor], hidden_states: Tensor, labels: Tensor
    ) -> Tensor:
        """Sum `function` over the logits of P positions without holding them all at once.

        More than `LOGITS_AT_ONCE` logits are computed chunk by chunk, and recomputed in the backward pass. All chunks
        belong to one call, so that sharded weights are gathered only once.

        Args:
            function: Maps logits (p, V) and labels (p,) of some positions to a sum over them, of any shape.
            hidden_states: (P, D) Hidden states of the positions.
            labels: (P,) int64 Labels of the positions.
        """

        def apply(hidden_states: Tensor, labels: Tensor) -> Tensor:
            # Not `self.logits`: sharding replaces it by a method that gathers the weights and frees them again.
            return function(type(self).logits(self, hidden_states), labels)

        size = max(1, LOGITS_AT_ONCE // self.vocabulary)
        if len(labels) <= size:
            return apply(hidden_states, labels)
        chunks = zip(hidden_states.split(size), labels.split(size), strict=True)
        return torch.stack([checkpoint(apply, *chunk, use_reentrant=False) for chunk in chunks]).sum(0)

    @abstractmethod
    def start_stream(self, cache: Any = None) -> StateT:
        """The state of a new stream, in its own memory or in a slot of a cache from `open_cache`."""

    @abstractmethod
    def stream(self, inputs_embeds: Tensor, state: StateT) -> Tensor:
        """Feed the next positions (1, S, D); returns their hidden states (1, S, D)."""

    def stream_together(self, inputs_embeds: Sequence[Tensor], states: Sequence[StateT]) -> list[Tensor]:
        """`stream` for several streams that share a cache, in as few forwards as possible."""
        return [self.stream(inputs, state) for inputs, state in zip(inputs_embeds, states, strict=True)]


UnitSteps: TypeAlias = Generator[list[int] | None, Any, None]
"""Yields units as they are drawn; or None, and must then be sent a tensor from `SpeechDecoder.forward_pending`."""


class SpeechDecoder(StreamedComponent[StateT], ABC):
    """Hidden states of the LLM -> units, step by step, so that speech begins before the text is complete.

    A *condition* is the input for one text position: a projected hidden state, or, while the decoder is trained without
    the LLM (stage 2a), the embedding of the text token which that hidden state predicts.

    Attributes:
        width: D of the decoder's hidden states and conditions.
        eos_unit: Unit that closes speech, beyond those of the vocoder; None if speech ends with its conditions.
        chunk_conditions: N, the number of conditions after which units are drawn.
        chunk_units: M, the number of units that `stream` yields at a time.
        num_units: Number of different units; None takes the vocoder's.
        codebooks_per_frame: Number of codebooks that the vocoder must have per frame; None accepts any.
        text_conditions: Whether `embed_text` works (stage 2a).
        generation: The decoder's own generation settings; None leaves them to the session.
        restarts_sampling: Whether the repetition penalties of text and units are reset with every chunk.
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
        """Build the projections and the unit vocabulary. Called once by the model.

        Args:
            llm_width: Width of the LLM's hidden states.
            text_vocabulary: Size of the LLM's vocabulary.
            num_units: Number of units: the decoder's own, or else the vocoder's.
        """

    @abstractmethod
    def project(self, hidden_states: Tensor, tokens: Tensor) -> Tensor:
        """The LLM's hidden states (..., D_llm) -> conditions (..., D).

        Args:
            hidden_states: Hidden states of the positions that predict the spoken text.
            tokens: (...) int64, the token that each of them predicts, for decoders that read both: in training the next
                token, in streaming the token that was drawn.
        """

    @abstractmethod
    def embed_text(self, ids: Tensor) -> Tensor:
        """Text token ids (...) -> conditions (..., D).

        Raises:
            ValueError: The decoder has no `text_conditions`.
        """

    @abstractmethod
    def forward(
        self, conditions: Tensor, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor, speaker: Tensor
    ) -> UnitLogits:
        """The training forward over M spoken turns, with teacher forcing in autoregressive decoders.

        Args:
            conditions: (M, S, D), right-padded.
            condition_lengths: (M,) int64.
            units: (M, U) int64, without `eos_unit`, right-padded.
            unit_lengths: (M,) int64.
            speaker: (M, 512) Speaker embeddings, zeros if unknown.

        Returns:
            Logits and labels over the decoder's own vocabulary; each turn ends with `eos_unit` if there is one.
        """

    @abstractmethod
    def start_stream(self, speaker: Tensor, sampler: Callable[[Tensor], int], cache: Any = None) -> StateT:
        """The state of a new turn, for a speaker embedding (1, 512); `sampler` draws the units."""

    @abstractmethod
    def stream(self, conditions: Tensor, state: StateT, last: bool) -> Iterator[list[int]]:
        """Feed conditions (1, S, D); yield the units that are due, at most `chunk_units` at a time, without eos.

        With `last`, all remaining units follow. The units don't depend on how the conditions are split into calls.
        """

    def steps(self, conditions: Tensor, state: StateT, last: bool) -> UnitSteps:
        """`stream` as a coroutine, so that several turns can share a forward.

        When it yields None, it must be sent this turn's item of `forward_pending`. The conditions of a call must not
        cross a multiple of `chunk_conditions`; units are yielded as they are drawn, in smaller groups than from
        `stream`. The default runs `stream`, without sharing forwards.
        """
        yield from self.stream(conditions, state, last)

    def forward_pending(self, states: Sequence[StateT]) -> list[Tensor]:
        """What the turns whose `steps` yielded None must be sent, computed in one forward if possible."""
        raise NotImplementedError(f"{type(self).__name__} speaks turn by turn")

    def idle_parts(self, condition: str) -> list[nn.Module]:
        """Modules unused when training on conditions from `project` ("hidden_states") or `embed_text` ("text")."""
        return []

    def freeze_idle(self, condition: str) -> None:
        """Freeze the unused modules, since DDP waits for the gradients of all trainable parameters."""
        for part in self.idle_parts(condition):
            part.requires_grad_(False)

    def is_exhausted(self, state: StateT) -> bool:
        """True once no more units may be drawn: the reply ends here, text included."""
        return False

    def is_full(self, state: StateT) -> bool:
        """True if the decoder is exhausted because the turn fills its slot of the cache."""
        return False
