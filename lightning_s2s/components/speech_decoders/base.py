"""Base class of the speech decoders: a small causal LM over `[speaker][conditions and units]`, and its stream."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import SpeechDecoder, UnitSteps
from lightning_s2s.components.weights import load_weights
from lightning_s2s.data.batch import SPEAKER_WIDTH
from lightning_s2s.generation.kv_cache import Slot, SlotCache, UnboundedCache, open_cache, release_slots_on_error
from lightning_s2s.generation.sampling import CheckedSampler
from lightning_s2s.support.checks import check_count


@dataclass
class StreamState:
    """State of a spoken turn: its slot in the cache, its sampler, and the pending inputs."""

    slot: Slot
    sampler: CheckedSampler
    pending: list[Tensor]
    """Inputs (1, S, D) that no forward has read yet."""
    num_conditions: int = 0
    cache_full: bool = False
    """True once the cache has no more positions for this turn; nothing more is drawn."""

    @property
    def fits(self) -> bool:
        """Whether the cache has room for the pending inputs."""
        return self.slot.fits(sum(piece.shape[1] for piece in self.pending))


DecoderState = TypeVar("DecoderState", bound=StreamState)


class CausalSpeechDecoder(SpeechDecoder[DecoderState]):
    """A causal LM of transformers that reads the speaker, then conditions and units in a subclass's order.

    A subclass defines the order in training (`forward`), and which units are drawn after new conditions (`draw`).

    Args:
        config: Configuration of a transformers causal LM, with its `model_type`; None is a Qwen3 of the default sizes.
        checkpoint: Folder with the weights of a decoder from stage 2a, trained with the same LLM and vocoder.
        dropout: Dropout rate on all inputs in training.
        num_units: Number of different units; None takes the vocoder's.
        text_conditions: Build the embedding of text tokens that stage 2a trains.
        fusion: `none`: conditions are projected hidden states. `gate`: a gate mixes these with the embeddings of the
            tokens that they predict.

    Raises:
        ValueError: An option is invalid.
    """

    def __init__(
        self,
        config: PlainValues | None,
        checkpoint: str | None,
        dropout: float,
        num_units: int | None,
        text_conditions: bool = True,
        fusion: Literal["none", "gate"] = "none",
    ):
        super().__init__()
        if num_units is not None:
            check_count(f"speech_decoder {type(self).__name__}: num_units", num_units)
        if fusion not in ("none", "gate"):
            raise ValueError(f"speech_decoder {type(self).__name__}: fusion must be none or gate; got {fusion!r}")
        if fusion == "gate" and not text_conditions:
            raise ValueError(
                f"speech_decoder {type(self).__name__}: fusion gate reads text tokens, so text_conditions must be true"
            )
        self.config, self.checkpoint, self.num_units = dict(config or {"model_type": "qwen3"}), checkpoint, num_units
        self.dropout = nn.Dropout(dropout)
        self.text_conditions, self.fusion = text_conditions, fusion

    def build(self, llm_width: int, text_vocabulary: int, config: dict[str, Any]) -> None:
        """Build the LM from `config`, which must contain `vocab_size`, and the projections to its width."""
        from lightning_s2s.components.pretrained import build_causal_lm

        self.lm = build_causal_lm(config)
        self.width = self.lm.config.hidden_size
        self.speaker_projection = nn.Linear(SPEAKER_WIDTH, self.width, bias=False)
        self.speaker_norm = nn.LayerNorm(self.width)
        self.llm_projection = nn.Linear(llm_width, self.width, bias=False)
        self.llm_norm = nn.LayerNorm(self.width)
        if self.text_conditions:
            self.text_embedding = nn.Embedding(text_vocabulary, self.width)
            self.text_norm = nn.LayerNorm(self.width)
        if self.fusion == "gate":
            self.fusion_gate = nn.Linear(2 * self.width, self.width)

    def load_checkpoint(self) -> None:
        """Load the weights from `checkpoint`, if given; call it once everything is built."""
        if self.checkpoint is not None:
            load_weights(self, self.checkpoint)

    def project(self, hidden_states: Tensor, tokens: Tensor) -> Tensor:
        projected = self.llm_norm(self.llm_projection(hidden_states.to(self.llm_projection.weight.dtype)))
        if self.fusion == "none":
            return projected
        text = self.embed_text(tokens)
        gate = self.fusion_gate(torch.cat([projected, text], dim=-1)).sigmoid()
        return gate * projected + (1 - gate) * text

    def embed_text(self, ids: Tensor) -> Tensor:
        if not self.text_conditions:
            raise ValueError(
                f"speech_decoder {type(self).__name__}: was built with text_conditions false, so it can't read text"
            )
        return self.text_norm(self.text_embedding(ids))

    def idle_parts(self, condition: str) -> list[nn.Module]:
        if condition == "text":
            return [self.llm_projection, self.llm_norm, *([self.fusion_gate] if self.fusion == "gate" else [])]
        return [self.text_embedding, self.text_norm] if self.text_conditions and self.fusion == "none" else []

    def embed_speaker(self, speaker: Tensor) -> Tensor:
        """Speaker embeddings (M, 512) -> inputs (M, 1, D).

        Raises:
            ValueError: The shape is wrong.
        """
        if speaker.dim() != 2 or speaker.shape[1] != SPEAKER_WIDTH:
            raise ValueError(f"speaker must be (M, {SPEAKER_WIDTH}); got shape {tuple(speaker.shape)}")
        speaker = speaker.to(self.speaker_projection.weight.dtype)
        return self.speaker_norm(self.speaker_projection(speaker)).unsqueeze(1)

    def arrange(self, speaker: Tensor, units: Tensor, conditions: Tensor, source: Tensor) -> Tensor:
        """Speakers (M, 512), embedded units (M, U, D) and conditions (M, S, D) -> interleaved inputs (M, L, D).

        Args:
            source: (M, L) Index into `[speaker, units, conditions]`, see `InterleaveLayout`.
        """
        everything = torch.cat([self.embed_speaker(speaker), units, conditions], dim=1)
        return self.dropout(everything).gather(1, source.unsqueeze(-1).expand(-1, -1, self.width))

    def read(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Inputs (M, L, D) and their mask (M, L) -> hidden states (M, L, D)."""
        return self.lm.base_model(inputs_embeds=inputs, attention_mask=mask.long(), use_cache=False).last_hidden_state

    def open_cache(
        self, num_slots: int, max_positions: int, compile: bool, position_limit: int | None = None
    ) -> SlotCache | UnboundedCache:
        try:
            return open_cache(self.lm, num_slots, max_positions, self.step_sizes if compile else (), position_limit)
        except ValueError as error:
            raise ValueError(f"speech_decoder {type(self).__name__}: {error}") from None

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """Numbers of inputs in a step: the last unit alone, or N conditions behind it or behind the speaker."""
        return 1, 1 + self.chunk_conditions

    def end_stream(self, state: DecoderState) -> None:
        state.slot.release()

    def forward_pending(self, states: Sequence[DecoderState]) -> list[Tensor]:
        """The hidden states (1, S, D) of each turn's pending inputs."""
        inputs = [state.pending[0] if len(state.pending) == 1 else torch.cat(state.pending, dim=1) for state in states]
        slots = [state.slot for state in states]
        hidden = slots[0].cache.advance(inputs, slots)
        for state in states:  # only now, so that a failed forward can be retried
            state.pending = []
        return hidden

    def start_stream(
        self, speaker: Tensor, sampler: Callable[[Tensor], int], cache: SlotCache | UnboundedCache | None = None
    ) -> DecoderState:
        pending = [self.embed_speaker(speaker)]
        cache = cache or open_cache(self.lm)
        with release_slots_on_error(cache):
            checked = CheckedSampler(sampler, f"speech_decoder {type(self).__name__}")
            return self.start_state(cache.acquire(), checked, pending)

    def is_full(self, state: DecoderState) -> bool:
        return state.cache_full

    def is_exhausted(self, state: DecoderState) -> bool:
        return state.cache_full

    def stream(self, conditions: Tensor, state: DecoderState, last: bool) -> Iterator[list[int]]:
        size = self.chunk_conditions
        first = size - state.num_conditions % size
        pieces = [conditions[:, :first], *conditions[:, first:].split(size, dim=1)]
        pieces = [piece for number, piece in enumerate(pieces) if piece.shape[1] or number == 0]
        for number, piece in enumerate(pieces):
            steps, response, group = self.steps(piece, state, last and number == len(pieces) - 1), None, []
            while True:
                try:
                    units = steps.send(response)
                except StopIteration:
                    break
                response = self.forward_pending([state])[0] if units is None else None
                group += units or []
                if len(group) >= self.chunk_units:
                    yield group
                    group = []
            if group:
                yield group

    def steps(self, conditions: Tensor, state: DecoderState, last: bool) -> UnitSteps:
        if conditions.shape[1]:
            state.pending.append(self.to_inputs(conditions))
        state.num_conditions += conditions.shape[1]
        drawing, response = self.draw(state, closing=last), None
        while not state.cache_full:
            try:
                units = drawing.send(response)
            except StopIteration:
                return
            if units is None and not state.fits:
                state.cache_full = True
            else:
                response = yield units

    def to_inputs(self, conditions: Tensor) -> Tensor:
        """Conditions (M, S, D) -> the LM's inputs (M, F, D), one or several for each condition."""
        return conditions

    @abstractmethod
    def start_state(self, slot: Slot, sampler: CheckedSampler, pending: list[Tensor]) -> DecoderState:
        """The state of a new turn; `pending` holds the speaker's input."""

    @abstractmethod
    def draw(self, state: DecoderState, closing: bool) -> UnitSteps:
        """Yield the units that are due after the conditions so far, as they are drawn, at most `chunk_units` at a time.

        `yield None` returns this turn's item of `forward_pending`. Conditions arrive in pieces that never cross a
        multiple of `chunk_conditions`; with `closing`, no more follow.
        """
