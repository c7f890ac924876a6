"""`interleaved`: OpenS2S's streaming speech decoder, a small causal LM over units between the LLM's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import UnitSteps
from lightning_s2s.components.registry import SPEECH_DECODERS
from lightning_s2s.components.speech_decoders.base import CausalSpeechDecoder, StreamState
from lightning_s2s.components.speech_decoders.interleave import Interleave
from lightning_s2s.components.unit_logits import UnitLogits
from lightning_s2s.data.batch import IGNORE_INDEX
from lightning_s2s.generation.kv_cache import Slot
from lightning_s2s.generation.sampling import CheckedSampler, Generation
from lightning_s2s.support.checks import check_count
from lightning_s2s.support.ranges import Count, Natural, Share


@dataclass
class InterleavedStreamState(StreamState):
    """State of a spoken turn, with the number of units drawn so far."""

    num_units: int = 0
    finished: bool = False
    exhausted: bool = False
    """True once units were due although `max_units` had been drawn."""


@SPEECH_DECODERS.register("interleaved")
class InterleavedSpeechDecoder(CausalSpeechDecoder[InterleavedStreamState]):
    """Causal LM over `[speaker][N conditions][M units]...` (OpenS2S, arXiv:2507.05177, Sec. 2.3).

    Optionally, a gate mixes the hidden states with the embeddings of the tokens that they predict (LLaMA-Omni 2,
    arXiv:2505.02625). Departure: the projection remains OpenS2S's linear one.

    Unit u has the id `unit_offset` + u in the LM's vocabulary. Published decoders have special tokens in front of the
    units, which count as negative units; in decoders trained here, units start at 0 and one closing id follows them.

    Args:
        interleave: Schedule 'N:M': N conditions before every M units.
        config: Configuration of a transformers causal LM, with its `model_type`; its `vocab_size` is raised to what the
            units need.
        checkpoint: Folder with the weights of a decoder from stage 2a, trained with the same LLM and vocoder.
        max_units: Maximum number of units of a turn; it then ends even without eos.
        unit_dropout: Share of input units that are blanked in training, so that the decoder must read its conditions
            rather than just continue the units.
        dropout: Dropout rate on all inputs in training.
        num_units: Number of different units; None takes the vocoder's.
        unit_offset: Id of unit 0.
        eos_ids: Ids that close speech; training uses the first. None adds a new id behind the units.
        text_conditions: Build the embedding of text tokens that stage 2a trains; published decoders have none.
        eos_ends: What an eos ends that is drawn before the end of the text: `turn`, all speech; `group`, as published,
            only its group of M units. With `group`, every drawn id is an output, special tokens as negative units, and
            the reply ends when units are due after `max_units`.
        generation: How units are drawn, with the keys of transformers' `generation_config.json`, except that
            `eos_ids` and `max_units` end the speech. None leaves it to the session.
        fusion: `none`: conditions are projected hidden states. `gate`: a gate mixes these with the embeddings of the
            tokens that they predict; needs `text_conditions`.
    """

    paper = "arXiv:2507.05177"
    rates = "N conditions -> M units, 1 unit per step"

    def __init__(
        self,
        interleave: str = "4:8",
        config: PlainValues | None = None,
        checkpoint: str | None = None,
        max_units: Count = 1500,
        unit_dropout: Share = 0.0,
        dropout: Share = 0.0,
        num_units: Count | None = None,
        unit_offset: Natural = 0,
        eos_ids: list[Natural] | None = None,
        text_conditions: bool = True,
        eos_ends: Literal["turn", "group"] = "turn",
        generation: PlainValues | None = None,
        fusion: Literal["none", "gate"] = "none",
    ):
        super().__init__(config, checkpoint, dropout, num_units, text_conditions, fusion)
        if eos_ends not in ("turn", "group"):
            raise ValueError(f"speech_decoder interleaved: eos_ends must be turn or group; got {eos_ends!r}")
        check_count("speech_decoder interleaved: unit_offset", unit_offset, 0)
        check_count("speech_decoder interleaved: max_units", max_units)
        if eos_ids == []:
            raise ValueError("speech_decoder interleaved: eos_ids must not be empty; leave it out for an id of its own")
        self.interleave, self.max_units, self.unit_dropout = Interleave.parse(interleave), max_units, unit_dropout
        self.unit_offset, self.eos_ids, self.eos_ends = unit_offset, list(eos_ids or []), eos_ends
        # The published code calls `generate` anew for each group of text and of units.
        self.restarts_sampling = eos_ends == "group"
        source = "speech_decoder interleaved: generation"
        self.generation = None if generation is None else Generation.from_config(generation, source)
        self.chunk_conditions, self.chunk_units = self.interleave.num_conditions, self.interleave.num_units

    def connect(self, llm_width: int, text_vocabulary: int, num_units: int) -> None:
        num_units = self.num_units or num_units
        self.eos_ids = self.eos_ids or [self.unit_offset + num_units]
        self.eos_unit = self.eos_ids[0] - self.unit_offset
        needed = max(self.unit_offset + num_units, *(token + 1 for token in self.eos_ids))
        vocab_size: Any = self.config.get("vocab_size") or 0
        vocabulary = max(needed, vocab_size)
        self.build(llm_width, text_vocabulary, {**self.config, "vocab_size": vocabulary})
        self.load_checkpoint()

    def forward(
        self, conditions: Tensor, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor, speaker: Tensor
    ) -> UnitLogits:
        if not len(units):
            return UnitLogits(conditions.new_zeros(0, self.lm.config.vocab_size), unit_lengths)
        ids, id_lengths = self.closed_ids(units, unit_lengths)
        layout = self.interleave.layout(condition_lengths, ids, id_lengths)
        hidden = self.read(self.interleaved_inputs(conditions, ids, speaker, layout.source), layout.mask)
        following = layout.labels[:, 1:]
        labelled = following != IGNORE_INDEX
        return UnitLogits(self.lm.get_output_embeddings()(hidden[:, :-1][labelled]), following[labelled])

    def closed_ids(self, units: Tensor, unit_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Units (M, U), lengths (M,) -> ids of the vocabulary (M, U + 1), each turn closed by eos, and lengths (M,)."""
        ids = nn.functional.pad(units + self.unit_offset, (0, 1))
        return ids.scatter(1, unit_lengths.unsqueeze(1), self.eos_ids[0]), unit_lengths + 1

    def interleaved_inputs(self, conditions: Tensor, ids: Tensor, speaker: Tensor, source: Tensor) -> Tensor:
        """Inputs (M, L, D) in interleaved order, with unit dropout; `ids` (M, U) are the units in the vocabulary."""
        embedded = self.lm.get_input_embeddings()(ids)
        if self.training and self.unit_dropout:
            kept = torch.rand(embedded.shape[:2], device=embedded.device) >= self.unit_dropout
            embedded = embedded * kept.unsqueeze(-1)
        return self.arrange(speaker, embedded, conditions, source)

    def start_state(self, slot: Slot, sampler: CheckedSampler, pending: list[Tensor]) -> InterleavedStreamState:
        return InterleavedStreamState(slot, sampler, pending)

    def is_exhausted(self, state: InterleavedStreamState) -> bool:
        return state.exhausted or state.cache_full

    def _units_due(self, state: InterleavedStreamState, closing: bool) -> int:
        """Maximum number of units to draw after the conditions so far; an eos may end them sooner."""
        left = self.max_units - state.num_units
        if self.eos_ends == "turn":
            due = self.interleave.units_due(state.num_conditions, state.num_units, closing)
            return left if due is None else min(due, left)
        if not closing and state.num_conditions % self.chunk_conditions:
            return 0
        state.exhausted = left < 1
        state.sampler.forget()
        return left if closing else min(self.chunk_units, left)

    def forward_pending(self, states: Sequence[InterleavedStreamState]) -> list[Tensor]:
        """The logits (V,) after each turn's pending inputs."""
        last = [hidden[:, -1] for hidden in super().forward_pending(states)]
        return list(self.lm.get_output_embeddings()(last[0] if len(last) == 1 else torch.cat(last)))

    def draw(self, state: InterleavedStreamState, closing: bool) -> UnitSteps:
        for _ in range(0 if state.finished else self._units_due(state, closing)):
            token = state.sampler((yield None))
            eos = token in self.eos_ids
            if not eos or self.eos_ends == "group":
                state.num_units += 1
                state.pending.append(self.lm.get_input_embeddings()(torch.tensor([[token]], device=self.lm.device)))
                yield [token - self.unit_offset]
            if eos:
                state.finished = self.eos_ends == "turn"
                break
        state.finished |= closing
