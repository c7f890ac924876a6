"""`ctc`: the speech decoder of the first LLaMA-Omni, which produces all units of its conditions at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import UnitSteps, lengths_to_mask
from lightning_s2s.components.ctc import collapse, frames_needed
from lightning_s2s.components.registry import SPEECH_DECODERS
from lightning_s2s.components.speech_decoders.base import CausalSpeechDecoder, StreamState
from lightning_s2s.components.unit_logits import CtcLogits
from lightning_s2s.generation.kv_cache import Slot
from lightning_s2s.generation.sampling import CheckedSampler, check_finite
from lightning_s2s.support.ranges import Count, Range, Share


@dataclass
class CtcStreamState(StreamState):
    """State of a spoken turn: its progress, and the id of the last frame."""

    num_spoken: int = 0
    """Number of conditions whose units have been produced."""
    previous: int = 0
    """Id of the last frame; a repeat of it is no new unit."""


@SPEECH_DECODERS.register("ctc")
class CtcSpeechDecoder(CausalSpeechDecoder[CtcStreamState]):
    """Non-autoregressive: conditions upsampled to frames, a causal Transformer, CTC over units (arXiv:2409.06666).

    Every condition is repeated `upsampling` times, causal layers turn the copies into frames, and the most likely path,
    without repeats and blanks, gives the units: nothing is sampled, and speech ends with the text. Source: LLaMA-Omni,
    Fang et al., Sec. 2.4. Departures: the speaker is read first; a turn with more units than frames is left out of the
    loss, with a warning, rather than stretched, which would be impossible when speaking.

    Args:
        upsampling: Number of frames per condition. A turn needs a frame for each unit, and one more between two equal
            units.
        chunk_conditions: Number of conditions whose units are produced together; with fewer, speech starts sooner.
        config: Configuration of the transformers causal LM whose layers are used, with its `model_type`. Its embedding,
            of the units and the blank, also gives the logits.
        checkpoint: Folder with the weights of a decoder from stage 2a, trained with the same LLM and vocoder.
        dropout: Dropout rate on all inputs in training.
        num_units: Number of different units; None takes the vocoder's.
        text_conditions: Build the embedding of text tokens that stage 2a trains.
    """

    paper = "arXiv:2409.06666"
    rates = "1 condition -> at most `upsampling` units, all at once"
    eos_unit = None

    def __init__(
        self,
        upsampling: Annotated[int, Range(1, 1_000)] = 25,
        chunk_conditions: Count = 2,
        config: PlainValues | None = None,
        checkpoint: str | None = None,
        dropout: Share = 0.0,
        num_units: Count | None = None,
        text_conditions: bool = True,
    ):
        super().__init__(config, checkpoint, dropout, num_units, text_conditions)
        self.upsampling, self.chunk_conditions = upsampling, chunk_conditions
        self.chunk_units = chunk_conditions * upsampling
        self._max_warned = upsampling

    def connect(self, llm_width: int, text_vocabulary: int, num_units: int) -> None:
        self.blank = self.num_units or num_units
        # Units are never inputs: tying the embeddings avoids an unused table.
        own = {"vocab_size": self.blank + 1, "tie_word_embeddings": True}
        self.build(llm_width, text_vocabulary, {**self.config, **own})
        self.load_checkpoint()

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """Numbers of inputs in a step: a chunk's frames, with the speaker before the first chunk."""
        return 1 + self.chunk_units, self.chunk_units

    def to_inputs(self, conditions: Tensor) -> Tensor:
        return conditions.repeat_interleave(self.upsampling, dim=1)

    def forward(
        self, conditions: Tensor, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor, speaker: Tensor
    ) -> CtcLogits:
        lengths = condition_lengths * self.upsampling
        if not len(units):
            return CtcLogits(conditions.new_zeros(0, 0, self.blank + 1), units, lengths, unit_lengths)
        self._warn_of_long_turns(condition_lengths, units, unit_lengths)
        inputs = self.dropout(torch.cat([self.embed_speaker(speaker), self.to_inputs(conditions)], dim=1))
        hidden = self.read(inputs, lengths_to_mask(lengths + 1, inputs.shape[1]))
        return CtcLogits(self.lm.get_output_embeddings()(hidden[:, 1:]), units, lengths, unit_lengths)

    def _warn_of_long_turns(self, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor) -> None:
        """Warn whenever a turn needs more `upsampling` than all before it."""
        needed = (frames_needed(units, unit_lengths) / condition_lengths).ceil().long()
        if int(needed.max()) > self._max_warned:
            self._max_warned = int(needed.max())
            warnings.warn(
                f"speech_decoder ctc: {int((needed > self.upsampling).sum())} of {len(needed)} spoken turns of a batch "
                f"have more units than upsampling {self.upsampling} gives frames, and are left out of the loss; "
                f"the longest needs upsampling {self._max_warned}",
                stacklevel=2,
            )

    def start_state(self, slot: Slot, sampler: CheckedSampler, pending: list[Tensor]) -> CtcStreamState:
        return CtcStreamState(slot, sampler, pending, previous=self.blank)

    def draw(self, state: CtcStreamState, closing: bool) -> UnitSteps:
        num_new = state.num_conditions - state.num_spoken
        if not num_new or not (closing or state.num_conditions % self.chunk_conditions == 0):
            return
        hidden = (yield None)[0, -num_new * self.upsampling :]
        logits = self.lm.get_output_embeddings()(hidden)
        check_finite(logits, "speech_decoder CtcSpeechDecoder", "logits")
        path = logits.argmax(-1)
        units = collapse(path, self.blank, state.previous).tolist()
        state.num_spoken, state.previous = state.num_conditions, int(path[-1])
        if units:
            yield units
