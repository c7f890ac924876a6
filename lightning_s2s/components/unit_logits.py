"""What a speech decoder gives to the stage that trains it; the loss is the stage's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class UnitLogits:
    """What a speech decoder gives to the stage that trains it; the loss is the stage's: here, cross-entropy.

    Attributes:
        logits: (P, V) at the P places that a unit follows.
        labels: (P,) what follows there.
    """

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class CtcLogits(UnitLogits):
    """Logits of frames that may be aligned with the units in any way: the loss is CTC. The last id is the blank.

    Attributes:
        logits: (M, F, V), right-padded.
        labels: (M, U), right-padded.
        logit_lengths: (M,) frames.
        label_lengths: (M,) units.
    """

    logit_lengths: Tensor
    label_lengths: Tensor
