"""`interleaved`: OpenS2S's streaming speech decoder, a small causal LM over units between the LLM's hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_s2s.checkpoints.weights import load_weights
from lightning_s2s.interfaces import SpeechDecoder
from lightning_s2s.interleave import Interleave
from lightning_s2s.registry import SPEECH_DECODERS
from lightning_s2s.sampling import Generation, Sampler

SPEAKER_WIDTH = 512


@dataclass
class InterleavedStreamState:
    """A spoken turn while it is made: the cache, what was fed and drawn, and what waits to be fed."""

    cache: Any
    sampler: Sampler
    waiting: Tensor
    """(1, S, D) inputs that no forward has seen yet."""
    num_conditions: int = 0
    num_units: int = 0
    finished: bool = False
    spent: bool = False
    """Units were due, but `max_units` had been drawn."""


@SPEECH_DECODERS.register("interleaved")
class InterleavedSpeechDecoder(SpeechDecoder):
    """Causal LM over `[speaker][N conditions][M units]...` (OpenS2S, arXiv:2507.05177, Sec. 2.3).

    In the LM's vocabulary unit u has the id `unit_offset` + u. Published decoders keep special tokens in front, which
    count as negative units; a decoder of this project has its units from 0 and one closing id behind them.

    Args:
        interleave: 'N:M', N conditions before every M units.
        config: of the transformers causal LM, with its `model_type`; the vocabulary is at least what the units need.
        checkpoint: folder with the weights of a decoder that stage 2a trained, for the same LLM and vocoder.
        max_units: a turn ends after so many units even without eos.
        unit_dropout: while training, the share of input units that are blanked, so that the decoder has to read its
            conditions rather than continue what it has heard.
        dropout: on all inputs while training.
        num_units: how many units there are; None takes the vocoder's number.
        unit_offset: id of unit 0.
        eos_ids: ids that close speech, the first of them in training; None makes a new id behind the units.
        text_conditions: build the embedding of text tokens that stage 2a trains; published decoders have none.
        eos_ends: what an eos ends that is drawn while text still comes: `turn`, all speech; `group`, as published, its
            group of M units alone. With `group` every drawn id is given out, specials as negative units, and the reply
            ends where units are due but `max_units` is spent.
        generation: how units are drawn, with the keys of transformers' `generation_config.json`; its ends are
            `eos_ids` and `max_units`. None leaves it to the session.
    """

    def __init__(
        self,
        interleave: str = "4:8",
        config: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        max_units: int = 1500,
        unit_dropout: float = 0.0,
        dropout: float = 0.0,
        num_units: int | None = None,
        unit_offset: int = 0,
        eos_ids: list[int] | None = None,
        text_conditions: bool = True,
        eos_ends: Literal["turn", "group"] = "turn",
        generation: dict[str, Any] | None = None,
    ):
        super().__init__()
        if eos_ends not in ("turn", "group"):
            raise ValueError(f"speech_decoder interleaved: eos_ends must be turn or group; got {eos_ends!r}")
        if unit_offset < 0 or max_units < 1 or (num_units is not None and num_units < 1) or eos_ids == []:
            raise ValueError(
                "speech_decoder interleaved: unit_offset must be 0 or more, max_units and num_units at least 1 and "
                f"eos_ids not empty; got {unit_offset}, {max_units}, {num_units} and {eos_ids}"
            )
        self.interleave = Interleave.parse(interleave)
        self.config, self.checkpoint, self.max_units = dict(config or {"model_type": "qwen3"}), checkpoint, max_units
        self.unit_dropout, self.dropout = unit_dropout, nn.Dropout(dropout)
        self.num_units, self.unit_offset, self.eos_ids = num_units, unit_offset, list(eos_ids or [])
        self.text_conditions, self.eos_ends = text_conditions, eos_ends
        # The published code makes each group of text and of units by a generation of its own.
        self.restarts_sampling = eos_ends == "group"
        source = "speech_decoder interleaved: generation"
        self.generation = None if generation is None else Generation.from_config(generation, source)
        self.chunk_conditions, self.chunk_units = self.interleave.num_conditions, self.interleave.num_units

    def connect(self, llm_width: int, text_vocabulary: int, num_units: int) -> None:
        from lightning_s2s.llms.causal import build_causal_lm

        num_units = self.num_units or num_units
        self.eos_ids = self.eos_ids or [self.unit_offset + num_units]
        self.eos_unit = self.eos_ids[0] - self.unit_offset
        needed = max(self.unit_offset + num_units, *(token + 1 for token in self.eos_ids))
        self.lm = build_causal_lm({**self.config, "vocab_size": max(needed, self.config.get("vocab_size") or 0)})
        self.width = self.lm.config.hidden_size
        self.speaker_projection = nn.Linear(SPEAKER_WIDTH, self.width, bias=False)
        self.speaker_norm = nn.LayerNorm(self.width)
        self.llm_projection = nn.Linear(llm_width, self.width, bias=False)
        self.llm_norm = nn.LayerNorm(self.width)
        if self.text_conditions:
            self.text_embedding = nn.Embedding(text_vocabulary, self.width)
            self.text_norm = nn.LayerNorm(self.width)
        if self.checkpoint is not None:
            load_weights(self, self.checkpoint)

    def project(self, hidden_states: Tensor) -> Tensor:
        return self.llm_norm(self.llm_projection(hidden_states.to(self.llm_projection.weight.dtype)))

    def embed_text(self, ids: Tensor) -> Tensor:
        if not self.text_conditions:
            raise ValueError("speech_decoder interleaved: was built with text_conditions false, so it can't read text")
        return self.text_norm(self.text_embedding(ids))

    def embed_speaker(self, speaker: Tensor) -> Tensor:
        """(M, 512) -> (M, 1, D)."""
        speaker = speaker.to(self.speaker_projection.weight.dtype)
        return self.speaker_norm(self.speaker_projection(speaker)).unsqueeze(1)

    def forward(
        self, conditions: Tensor, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor, speaker: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not len(units):
            return conditions.new_zeros(0, self.lm.config.vocab_size), unit_lengths
        ids, id_lengths = self.closed_ids(units, unit_lengths)
        layout = self.interleave.layout(condition_lengths, ids, id_lengths)
        inputs = self.interleaved_inputs(conditions, ids, speaker, layout.source)
        hidden = self.lm.base_model(
            inputs_embeds=inputs, attention_mask=layout.mask.long(), use_cache=False
        ).last_hidden_state
        following = layout.labels[:, 1:]
        labelled = following != -100
        return self.lm.get_output_embeddings()(hidden[:, :-1][labelled]), following[labelled]

    def closed_ids(self, units: Tensor, unit_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Units (M, U) and their lengths -> ids of the vocabulary (M, U + 1), each turn closed, and their lengths."""
        ids = nn.functional.pad(units + self.unit_offset, (0, 1))
        return ids.scatter(1, unit_lengths.unsqueeze(1), self.eos_ids[0]), unit_lengths + 1

    def interleaved_inputs(self, conditions: Tensor, ids: Tensor, speaker: Tensor, source: Tensor) -> Tensor:
        """One gather from `[speaker, units, conditions]`, units as ids of the vocabulary -> (M, L, D)."""
        embedded = self.lm.get_input_embeddings()(ids)
        if self.training and self.unit_dropout:
            kept = torch.rand(embedded.shape[:2], device=embedded.device) >= self.unit_dropout
            embedded = embedded * kept.unsqueeze(-1)
        everything = torch.cat([self.embed_speaker(speaker), embedded, conditions], dim=1)
        return self.dropout(everything).gather(1, source.unsqueeze(-1).expand(-1, -1, self.width))

    def start_stream(self, speaker: Tensor, sampler: Sampler) -> InterleavedStreamState:
        from transformers import DynamicCache

        return InterleavedStreamState(DynamicCache(config=self.lm.config), sampler, self.embed_speaker(speaker))

    def stream(self, conditions: Tensor, state: InterleavedStreamState, last: bool) -> Iterator[list[int]]:
        step = self.interleave.num_conditions
        first = step - state.num_conditions % step
        pieces = [conditions[:, :first], *conditions[:, first:].split(step, dim=1)]
        pieces = [piece for number, piece in enumerate(pieces) if piece.shape[1] or number == 0]
        for number, piece in enumerate(pieces):
            state.waiting = torch.cat([state.waiting, piece], dim=1)
            state.num_conditions += piece.shape[1]
            yield from self._draw(state, closing=last and number == len(pieces) - 1)

    def is_spent(self, state: InterleavedStreamState) -> bool:
        return state.spent

    def _units_due(self, state: InterleavedStreamState, closing: bool) -> int:
        """How many to draw at most, now that more conditions are there; an eos may end them sooner."""
        left = self.max_units - state.num_units
        if self.eos_ends == "turn":
            due = self.interleave.units_due(state.num_conditions, state.num_units, closing)
            return left if due is None else min(due, left)
        if not closing and state.num_conditions % self.chunk_conditions:
            return 0
        state.spent = left < 1
        state.sampler.forget()
        return left if closing else min(self.chunk_units, left)

    def _draw(self, state: InterleavedStreamState, closing: bool) -> Iterator[list[int]]:
        """Draw the units that are due and yield them in groups of M."""
        group: list[int] = []
        for _ in range(0 if state.finished else self._units_due(state, closing)):
            token = state.sampler(self._next_logits(state))
            eos = token in self.eos_ids
            if not eos or self.eos_ends == "group":
                group.append(token - self.unit_offset)
                state.num_units += 1
                embedded = self.lm.get_input_embeddings()(torch.tensor([[token]], device=state.waiting.device))
                state.waiting = torch.cat([state.waiting, embedded], dim=1)
            if eos:
                state.finished = self.eos_ends == "turn"
                break
            if len(group) == self.chunk_units:
                yield group
                group = []
        state.finished |= closing
        if group:
            yield group

    def _next_logits(self, state: InterleavedStreamState) -> Tensor:
        hidden = self.lm.base_model(
            inputs_embeds=state.waiting, past_key_values=state.cache, use_cache=True
        ).last_hidden_state
        state.waiting = state.waiting[:, :0]
        return self.lm.get_output_embeddings()(hidden[0, -1])
