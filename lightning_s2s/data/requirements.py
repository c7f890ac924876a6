"""A stage's requirements on the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning_s2s.data.chat import ChatTokenizer


@dataclass(frozen=True)
class DataRequirements:
    """Requirements on the batches, returned by a stage's `data_requirements()`.

    Attributes:
        tokenizer: Tokenizer of the LLM; None only for the task "vocoder".
        sample_rate: Sample rate in Hz of the audio encoder (or the vocoder); None leaves audio out of the batches, and
            uses the `transcript` of the user's audio instead.
        unit_rate_hz: Speech units per second, for the duration of a row; None if units aren't used.
        num_units: Size of the codebook, units are 0 <= unit < num_units; None leaves them unchecked.
        codebooks_per_frame: Units in a frame; a turn has whole frames.
        needs_units: Whether to skip rows whose assistant turns have no units.
        trains_speech: Whether the stage also trains a speech decoder, for which some training data must have units.
        needs_transcripts: Whether the user's audio must have a transcript, which a loss reads.
        fixed_audio: Whether a clip must be the same in every epoch, since the encoder's output for it is kept.
        task: "dialogue" for the stages, "vocoder" for pairs of audio and text.

    Raises:
        ValueError: The task is "dialogue" without a tokenizer, or "vocoder" without a sample rate.
    """

    tokenizer: ChatTokenizer | None = None
    sample_rate: int | None = None
    unit_rate_hz: float | None = None
    num_units: int | None = None
    codebooks_per_frame: int = 1
    needs_units: bool = False
    trains_speech: bool = False
    needs_transcripts: bool = False
    fixed_audio: bool = False
    task: Literal["dialogue", "vocoder"] = "dialogue"

    def __post_init__(self) -> None:
        if self.task not in ("dialogue", "vocoder"):
            raise ValueError(f"task: got {self.task!r}; allowed: dialogue, vocoder")
        if self.task == "dialogue" and self.tokenizer is None:
            raise ValueError("tokenizer: is None; the task 'dialogue' needs the LLM's tokenizer")
        if self.task == "vocoder" and self.sample_rate is None:
            raise ValueError("sample_rate: is None; the task 'vocoder' needs the vocoder's sample rate")
