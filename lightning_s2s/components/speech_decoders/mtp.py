"""`mtp`: several units per step, as in VocalNet, or the codebooks of a frame in a delay pattern, as in MusicGen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import UnitSteps
from lightning_s2s.components.registry import SPEECH_DECODERS
from lightning_s2s.components.speech_decoders.base import CausalSpeechDecoder, StreamState
from lightning_s2s.components.speech_decoders.interleave import Interleave
from lightning_s2s.components.unit_logits import UnitLogits
from lightning_s2s.data.batch import IGNORE_INDEX
from lightning_s2s.generation.kv_cache import Slot
from lightning_s2s.generation.sampling import CheckedSampler
from lightning_s2s.support.checks import check_count
from lightning_s2s.support.ranges import Count, Share

Index = TypeVar("Index", int, Tensor)


@dataclass(frozen=True)
class StepPattern:
    """Which unit each slot of each step holds; one object for the training layout and for streaming.

    A frame is G consecutive units. Slot k of step t holds unit k of frame t - delays[k], if that exists. Without delays
    a step is a frame; with the delays 0, 1, ... (MusicGen, arXiv:2306.05284, Sec. 2.2) every unit of a frame is
    predicted from the units before it:

        step    0  1  2  3        of frames (a0 a1) (b0 b1) (c0 c1)
        slot 0  a0 b0 c0
        slot 1     a1 b1 c1

    Args:
        delays: G delays, in steps.
    """

    delays: tuple[int, ...]

    @property
    def num_slots(self) -> int:
        """G."""
        return len(self.delays)

    def unit_at(self, step: Index, slot: int) -> Index:
        """Index in the turn of the unit that a slot holds; negative before its first unit."""
        return (step - self.delays[slot]) * self.num_slots + slot

    def layout(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Unit counts (M,) -> index of each slot's unit (M, T, G), -1 for empty slots, and step counts (M,)."""
        slots = torch.arange(self.num_slots, device=lengths.device)
        last_frames = (lengths.unsqueeze(1) - 1 - slots).div(self.num_slots, rounding_mode="floor")
        ends = last_frames + 1 + torch.tensor(self.delays, device=lengths.device)
        num_steps = ends.where(last_frames >= 0, 0).amax(1)
        steps = torch.arange(int(num_steps.max()), device=lengths.device)
        places = torch.stack([self.unit_at(steps, slot) for slot in range(self.num_slots)], dim=1)
        filled = (places >= 0) & (places < lengths.view(-1, 1, 1))
        return places.where(filled, -1), num_steps


class NextUnit(nn.Module):
    """Hidden states (P, D) that predict a unit -> hidden states (P, D) that predict the next unit."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.norm(hidden_states + self.layers(hidden_states))


@dataclass
class MtpStreamState(StreamState):
    """State of a spoken turn: its end, and the units that were drawn but not yielded yet."""

    end: int = 0
    """Number of units of the turn; the maximum until an eos is drawn."""
    num_steps: int = 0
    num_yielded: int = 0
    drawn: dict[int, int] = field(default_factory=dict)
    """Units by their index in the turn."""


@SPEECH_DECODERS.register("mtp")
class MtpSpeechDecoder(CausalSpeechDecoder[MtpStreamState]):
    """Causal LM that draws G units per step, so that a second of speech takes fewer steps (VocalNet, arXiv:2504.04060).

    The LM's hidden state predicts the first unit of a step, a small module maps it to the state that predicts the
    second, and so on: the units of a step are drawn independently. Departures: a module is a residual MLP rather than a
    Transformer layer with its own cache; all units share the LM's output layer and weigh the same in the loss; a step's
    units are fed back as one position rather than G, so that G times fewer positions are read.

    With `pattern: delay`, a step holds one unit of each codebook of a vocoder whose frames are G consecutive units,
    unit k * size + code in codebook k, shifted so that each is drawn after the ones before it (MusicGen,
    arXiv:2306.05284).

    Args:
        interleave: Schedule 'N:M': N conditions before every M units; M must be a multiple of `units_per_step`.
        units_per_step: G; with `pattern: delay`, the vocoder's `codebooks_per_frame`.
        pattern: `group`: a step is the next G units. `delay`: see above.
        config: Configuration of a transformers causal LM, with its `model_type`.
        checkpoint: Folder with the weights of a decoder from stage 2a, trained with the same LLM and vocoder.
        max_units: Maximum number of units of a turn, rounded down to full steps; it then ends even without eos.
        unit_dropout: Share of input units that are blanked in training, so that the decoder must read its conditions
            rather than just continue the units.
        dropout: Dropout rate on all inputs in training.
        num_units: Number of different units; None takes the vocoder's.
        text_conditions: Build the embedding of text tokens that stage 2a trains.
        fusion: See `interleaved`.
    """

    paper = "arXiv:2504.04060"
    rates = "N conditions -> M units, G units per step"
    eos_unit: int

    def __init__(
        self,
        interleave: str = "4:8",
        units_per_step: Count = 4,
        pattern: Literal["group", "delay"] = "group",
        config: PlainValues | None = None,
        checkpoint: str | None = None,
        max_units: Count = 1500,
        unit_dropout: Share = 0.0,
        dropout: Share = 0.0,
        num_units: Count | None = None,
        text_conditions: bool = True,
        fusion: Literal["none", "gate"] = "none",
    ):
        super().__init__(config, checkpoint, dropout, num_units, text_conditions, fusion)
        if pattern not in ("group", "delay"):
            raise ValueError(f"speech_decoder mtp: pattern must be group or delay; got {pattern!r}")
        check_count("speech_decoder mtp: units_per_step", units_per_step)
        schedule = Interleave.parse(interleave)
        self.chunk_conditions, self.chunk_units = schedule.num_conditions, schedule.num_units
        if self.chunk_units % units_per_step:
            raise ValueError(
                f"speech_decoder mtp: interleave {interleave!r} gives {self.chunk_units} units at a time, which is no "
                f"multiple of units_per_step {units_per_step}"
            )
        if check_count("speech_decoder mtp: max_units", max_units) < units_per_step:
            raise ValueError(
                f"speech_decoder mtp: max_units must be at least units_per_step, {units_per_step}; got {max_units}"
            )
        self.max_units = max_units // units_per_step * units_per_step
        self.unit_dropout, self.delayed = unit_dropout, pattern == "delay"
        self.schedule = Interleave(self.chunk_conditions, self.chunk_units // units_per_step)  # counts steps
        self.pattern = StepPattern(tuple(range(units_per_step)) if self.delayed else (0,) * units_per_step)
        self.codebooks_per_frame = units_per_step if self.delayed else None

    def connect(self, llm_width: int, text_vocabulary: int, num_units: int) -> None:
        self.eos_unit = self.num_units or num_units
        if self.delayed and self.eos_unit % self.pattern.num_slots:
            raise ValueError(
                f"speech_decoder mtp: pattern delay needs as many codebooks of one size as units_per_step, "
                f"{self.pattern.num_slots}; {self.eos_unit} units can't be divided so"
            )
        self.build(llm_width, text_vocabulary, {**self.config, "vocab_size": self.eos_unit + 1})
        num_slots = self.pattern.num_slots
        self.step_projection = nn.Linear(num_slots * self.width, self.width)
        self.next_units = nn.ModuleList(NextUnit(self.width) for _ in range(num_slots - 1))
        self.load_checkpoint()

    def codebook(self, slot: int) -> slice:
        """The units that a slot may hold."""
        size = self.eos_unit // self.pattern.num_slots
        return slice(slot * size, (slot + 1) * size) if self.delayed else slice(0, self.eos_unit)

    def slot_logits(self, hidden_states: Tensor, slot: int) -> Tensor:
        """States (P, D) -> logits (P, V) over the units of the slot's codebook, followed by eos."""
        head = self.lm.get_output_embeddings()
        if not self.delayed:
            return head(hidden_states)
        parameters = [values for values in (head.weight, head.bias) if values is not None]

        def read(rows: slice) -> Tensor:
            return F.linear(hidden_states, *[values[rows] for values in parameters])

        own = read(self.codebook(slot))
        # A turn ends after a complete frame: only the first slot may hold eos.
        eos = read(slice(self.eos_unit, None)) if slot == 0 else own.new_full((len(own), 1), -torch.inf)
        return torch.cat([own, eos], dim=1)

    def slot_states(self, hidden_states: Tensor) -> Iterator[Tensor]:
        """For each slot, the states (P, D) that predict its unit, from the LM's states (P, D) before the step."""
        yield hidden_states
        for module in self.next_units:
            hidden_states = module(hidden_states)
            yield hidden_states

    def embed_steps(self, ids: Tensor, filled: Tensor) -> Tensor:
        """Units (..., G) and a mask of filled slots (..., G) -> (..., D), one input per step."""
        if self.training and self.unit_dropout:
            filled = filled & (torch.rand(filled.shape, device=filled.device) >= self.unit_dropout)
        embedded = self.lm.get_input_embeddings()(ids) * filled.unsqueeze(-1)
        return self.step_projection(embedded.flatten(-2))

    def forward(
        self, conditions: Tensor, condition_lengths: Tensor, units: Tensor, unit_lengths: Tensor, speaker: Tensor
    ) -> UnitLogits:
        if not len(units):
            return UnitLogits(self.slot_logits(conditions.new_zeros(0, self.width), 0), unit_lengths)
        num_slots = self.pattern.num_slots
        if self.delayed and bool((unit_lengths % num_slots).any()):
            raise ValueError(
                f"speech_decoder mtp: pattern delay reads whole frames of {num_slots} units; got turns of "
                f"{unit_lengths.tolist()} units"
            )
        ids = F.pad(units, (0, 1)).scatter(1, unit_lengths.unsqueeze(1), self.eos_unit)
        places, num_steps = self.pattern.layout(unit_lengths + 1)
        filled = places >= 0
        steps = ids.gather(1, places.clamp(min=0).flatten(1)).view_as(places)
        numbers = torch.arange(places.shape[1], device=ids.device).expand(len(ids), -1)
        layout = self.schedule.layout(condition_lengths, numbers, num_steps)
        inputs = self.arrange(speaker, self.embed_steps(steps, filled), conditions, layout.source)
        hidden = self.read(inputs, layout.mask)
        following = layout.labels[:, 1:]
        rows, positions = (following != IGNORE_INDEX).nonzero(as_tuple=True)
        numbers = following[rows, positions]
        steps, filled = steps[rows, numbers], filled[rows, numbers]
        logits, labels = [], []
        for slot, states in enumerate(self.slot_states(hidden[rows, positions])):
            logits.append(self.slot_logits(states[filled[:, slot]], slot))
            labels.append(self._slot_labels(steps[filled[:, slot], slot], slot))
        return UnitLogits(torch.cat(logits), torch.cat(labels))

    def _slot_labels(self, ids: Tensor, slot: int) -> Tensor:
        """Units of a slot, or eos -> their indices in `slot_logits`."""
        own = self.codebook(slot)
        labels = (ids - own.start).where(ids != self.eos_unit, own.stop - own.start)
        misplaced = ids[(labels < 0) | (labels > own.stop - own.start)]
        if misplaced.numel():
            raise ValueError(
                f"speech_decoder mtp: unit {int(misplaced[0])} stands in the place of codebook {slot}, which has "
                f"{own.start}..{own.stop - 1}: pattern delay reads units frame by frame, codebook by codebook"
            )
        return labels

    def start_state(self, slot: Slot, sampler: CheckedSampler, pending: list[Tensor]) -> MtpStreamState:
        return MtpStreamState(slot, sampler, pending, end=self.max_units)

    def draw(self, state: MtpStreamState, closing: bool) -> UnitSteps:
        due = self.schedule.units_due(state.num_conditions, state.num_steps, closing)
        while state.num_yielded < state.end and (due is None or due > 0):
            self._draw_step(state, (yield None))
            due = None if due is None else due - 1
            frame = range(state.num_yielded, min(state.num_yielded + self.pattern.num_slots, state.end))
            if all(place in state.drawn for place in frame):
                state.num_yielded += len(frame)
                yield [state.drawn.pop(place) for place in frame]

    def _draw_step(self, state: MtpStreamState, hidden: Tensor) -> None:
        """Draw a unit for each filled slot from hidden states (1, S, D), and append the step to the pending inputs."""
        ids, filled = [0] * self.pattern.num_slots, [False] * self.pattern.num_slots
        for slot, states in enumerate(self.slot_states(hidden[:, -1])):
            place = self.pattern.unit_at(state.num_steps, slot)
            if not 0 <= place < state.end:
                continue
            token = state.sampler(self._all_logits(self.slot_logits(states, slot)[0], slot))
            ids[slot], filled[slot] = token, True
            if token == self.eos_unit:
                state.end = place
            else:
                state.drawn[place] = token
        state.num_steps += 1
        device = hidden.device
        step = self.embed_steps(torch.tensor([[ids]], device=device), torch.tensor([[filled]], device=device))
        state.pending.append(step)

    def _all_logits(self, logits: Tensor, slot: int) -> Tensor:
        """A slot's logits (V,) -> logits over all ids, so that the sampler sees units by their own ids."""
        if not self.delayed:
            return logits
        everything = logits.new_full((self.eos_unit + 1,), -torch.inf)
        everything[self.codebook(slot)], everything[-1] = logits[:-1], logits[-1]
        return everything
