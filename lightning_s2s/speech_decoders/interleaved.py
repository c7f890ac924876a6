"""`interleaved`: OpenS2S's streaming speech decoder, a small causal LM over units between the LLM's hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_s2s.checkpoints.weights import load_weights
from lightning_s2s.interfaces import SpeechDecoder
from lightning_s2s.interleave import Interleave
from lightning_s2s.registry import SPEECH_DECODERS
from lightning_s2s.sampling import Sampler

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


@SPEECH_DECODERS.register("interleaved")
class InterleavedSpeechDecoder(SpeechDecoder):
    """Causal LM over `[speaker][N conditions][M units]...` (OpenS2S, arXiv:2507.05177, Sec. 2.3).

    Args:
        interleave: 'N:M', N conditions before every M units.
        config: of the transformers causal LM, with its `model_type`; the vocabulary is set from the vocoder.
        checkpoint: folder with the weights of a decoder that stage 2a trained, for the same LLM and vocoder.
        max_units: a turn ends after so many units even without eos.
        unit_dropout: while training, the share of input units that are blanked, so that the decoder has to read its
            conditions rather than continue what it has heard.
        dropout: on all inputs while training.
    """

    def __init__(
        self,
        interleave: str = "4:8",
        config: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        max_units: int = 1500,
        unit_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.interleave = Interleave.parse(interleave)
        self.config, self.checkpoint, self.max_units = dict(config or {"model_type": "qwen3"}), checkpoint, max_units
        self.unit_dropout, self.dropout = unit_dropout, nn.Dropout(dropout)
        self.chunk_conditions, self.chunk_units = self.interleave.num_conditions, self.interleave.num_units

    def connect(self, llm_width: int, text_vocabulary: int, num_units: int) -> None:
        from lightning_s2s.llms.causal import build_causal_lm

        self.eos_unit = num_units
        self.lm = build_causal_lm({**self.config, "vocab_size": num_units + 1})
        self.width = self.lm.config.hidden_size
        self.speaker_projection = nn.Linear(SPEAKER_WIDTH, self.width, bias=False)
        self.speaker_norm = nn.LayerNorm(self.width)
        self.llm_projection = nn.Linear(llm_width, self.width, bias=False)
        self.llm_norm = nn.LayerNorm(self.width)
        self.text_embedding = nn.Embedding(text_vocabulary, self.width)
        self.text_norm = nn.LayerNorm(self.width)
        if self.checkpoint is not None:
            load_weights(self, self.checkpoint)

    def project(self, hidden_states: Tensor) -> Tensor:
        return self.llm_norm(self.llm_projection(hidden_states))

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.text_norm(self.text_embedding(ids))

    def embed_speaker(self, speaker: Tensor) -> Tensor:
        """(M, 512) -> (M, 1, D)."""
        return self.speaker_norm(self.speaker_projection(speaker)).unsqueeze(1)

    def forward(
        self, conditions: Tensor, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor, speaker: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not len(units):
            return conditions.new_zeros(0, self.eos_unit + 1), unit_lengths
        closed = nn.functional.pad(units, (0, 1)).scatter(1, unit_lengths.unsqueeze(1), self.eos_unit)
        layout = self.interleave.layout(condition_lengths, closed, unit_lengths + 1)
        inputs = self.interleaved_inputs(conditions, closed, speaker, layout.source)
        hidden = self.lm.base_model(
            inputs_embeds=inputs, attention_mask=layout.mask.long(), use_cache=False
        ).last_hidden_state
        following = layout.labels[:, 1:]
        labelled = following != -100
        return self.lm.get_output_embeddings()(hidden[:, :-1][labelled]), following[labelled]

    def interleaved_inputs(self, conditions: Tensor, units: Tensor, speaker: Tensor, source: Tensor) -> Tensor:
        """One gather from `[speaker, units, conditions]` -> (M, L, D)."""
        embedded = self.lm.get_input_embeddings()(units)
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
            closing = last and number == len(pieces) - 1
            yield from self._draw(state, self.interleave.units_due(state.num_conditions, state.num_units, closing))

    def _draw(self, state: InterleavedStreamState, due: int | None) -> Iterator[list[int]]:
        """Draw `due` units (None: until eos) and yield them in groups of M."""
        group: list[int] = []
        while not state.finished and (due is None or due > 0):
            unit = state.sampler(self._next_logits(state))
            state.finished = unit == self.eos_unit or state.num_units + 1 >= self.max_units
            if unit != self.eos_unit:
                group.append(unit)
                state.num_units += 1
                embedded = self.lm.get_input_embeddings()(torch.tensor([[unit]], device=state.waiting.device))
                state.waiting = torch.cat([state.waiting, embedded], dim=1)
            due = None if due is None else due - 1
            if len(group) == self.chunk_units:
                yield group
                group = []
        if group:
            yield group

    def _next_logits(self, state: InterleavedStreamState) -> Tensor:
        hidden = self.lm.base_model(
            inputs_embeds=state.waiting, past_key_values=state.cache, use_cache=True
        ).last_hidden_state
        state.waiting = state.waiting[:, :0]
        return self.lm.get_output_embeddings()(hidden[0, -1])
