"""The outputs of speech decoders in training; the stage computes the loss from them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class UnitLogits:
    """Logits with one label each; the loss is cross-entropy.

    Attributes:
        logits: (P, V) Logits at the P positions that are followed by a unit.
        labels: (P,) int64, the id that follows each position.
    """

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class CtcLogits(UnitLogits):
    """Logits of frames without an alignment to the units; the loss is CTC. The last id is the blank.

    Attributes:
        logits: (M, F, V), right-padded.
        labels: (M, U), right-padded.
        logit_lengths: (M,) frames.
        label_lengths: (M,) units.
    """

    logit_lengths: Tensor
    label_lengths: Tensor
