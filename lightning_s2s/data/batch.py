"""Batches of examples, as tensors with named fields, and the special numbers in them. Cheap to import: no torch.

B rows, S positions, N audios of users, M assistant turns with units, T samples, U units. Tensors are padded on the
right, and `_lengths` are (B,), (N,) or (M,) int64. N and M may be 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

AUDIO_PLACEHOLDER = -200
"""The token id that stands for one audio of the user."""
IGNORE_INDEX = -100
"""The label of a position that no loss reads."""
NO_SEGMENT = -1
"""The segment of a position that no speech decoder reads."""
SPEAKER_WIDTH = 512
"""Numbers of a speaker embedding."""

AnyBatch = TypeVar("AnyBatch", bound="Batch")


class EncodedAudio(NamedTuple):
    """What an encoder gives for the N audios of a batch.

    Attributes:
        hidden_states: (N, F, D).
        lengths: (N,) frames.
    """

    hidden_states: Tensor
    lengths: Tensor


@dataclass(eq=False)
class Batch:
    """What every batch has.

    Attributes:
        rows: The B rows of the manifest.
        waveform: (N, T) float32, in order of appearance.
        waveform_lengths: (N,) samples.
    """

    rows: list[dict[str, Any]]
    waveform: Tensor
    waveform_lengths: Tensor

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """A copy in pinned memory, from which tensors move to a GPU while it computes; torch's loader calls it."""
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if hasattr(value, "pin_memory")}
        return dataclasses.replace(self, **pinned)


@dataclass(eq=False)
class DialogueBatch(Batch):
    """Spoken dialogues.

    Attributes:
        input_ids: (B, S) int64, with `AUDIO_PLACEHOLDER` for each audio.
        input_lengths: (B,) positions.
        labels: (B, S) int64, `IGNORE_INDEX` outside what the assistant says.
        segments: (B, S) int64; over each spoken turn with units its index 0..M-1, `NO_SEGMENT` elsewhere.
        units: (M, U) int64, padded with 0.
        unit_lengths: (M,) units.
        speaker_embedding: (M, 512) float32, zeros where the speaker is unknown.
        encoded: The encoder's output for the audios if it is cached; None lets the model compute it.
    """

    input_ids: Tensor
    input_lengths: Tensor
    labels: Tensor
    segments: Tensor
    units: Tensor
    unit_lengths: Tensor
    speaker_embedding: Tensor
    encoded: EncodedAudio | None = None

    @property
    def num_audios(self) -> int:
        """N."""
        return len(self.waveform_lengths)

    @property
    def num_spoken(self) -> int:
        """M."""
        return len(self.unit_lengths)


@dataclass(eq=False)
class TranscribedBatch(Batch):
    """Speech with its text, for the vocoder: one audio a row, N = B.

    Attributes:
        texts: What each audio says.
    """

    texts: list[str]
