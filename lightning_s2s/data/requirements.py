"""What a stage tells the data module about the model that it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning_s2s.data.chat import ChatTokenizer


@dataclass(frozen=True)
class DataRequirements:
    """What batches must fit; a stage's `data_requirements()` gives it.

    Attributes:
        tokenizer: of the LLM; None only for the task "vocoder".
        sample_rate: Hz that the audio encoder (or the vocoder) expects; None leaves audio out of the batches, and the
            user's audio is read as its `transcript`.
        unit_rate_hz: speech units per second, to know the duration of a row; None when units play no part.
        num_units: size of the codebook, units are 0 <= unit < num_units; None leaves them unchecked.
        codebooks_per_frame: units that make a frame together; a turn has whole frames.
        needs_units: rows whose assistant has no units teach nothing, and are left out.
        trains_speech: the stage trains a speech decoder beside the text: the training data must have a row with units.
        needs_transcripts: the user's audio must come with its words, which a loss reads.
        task: "dialogue" for the stages, "vocoder" for pairs of audio and text.

    Raises:
        ValueError: the task is "dialogue" without tokenizer, or "vocoder" without sample rate.
    """

    tokenizer: ChatTokenizer | None = None
    sample_rate: int | None = None
    unit_rate_hz: float | None = None
    num_units: int | None = None
    codebooks_per_frame: int = 1
    needs_units: bool = False
    trains_speech: bool = False
    needs_transcripts: bool = False
    task: Literal["dialogue", "vocoder"] = "dialogue"

    def __post_init__(self) -> None:
        if self.task not in ("dialogue", "vocoder"):
            raise ValueError(f"task: got {self.task!r}; allowed: dialogue, vocoder")
        if self.task == "dialogue" and self.tokenizer is None:
            raise ValueError("tokenizer: is None; the task 'dialogue' needs the LLM's tokenizer")
        if self.task == "vocoder" and self.sample_rate is None:
            raise ValueError("sample_rate: is None; the task 'vocoder' needs the vocoder's sample rate")
