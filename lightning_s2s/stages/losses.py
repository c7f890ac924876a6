"""The losses of text and units, each with its accuracy: pure functions of the model's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lightning_s2s.components.contracts import LanguageModel, lengths_to_mask
from lightning_s2s.components.ctc import collapse, edit_distances, frames_needed
from lightning_s2s.components.unit_logits import CtcLogits, UnitLogits
from lightning_s2s.model.speech_to_speech import ModelOutput


@dataclass(frozen=True)
class Loss:
    """A mean over the labels of a batch.

    Attributes:
        mean: () The loss; zero without labels.
        accuracy: () The accuracy, detached.
        count: Number of labels.
    """

    mean: Tensor
    accuracy: Tensor
    count: int


def text_loss(llm: LanguageModel, output: ModelOutput) -> Loss:
    """Cross-entropy of the text, and the share of tokens with the highest logit."""
    labels = output.text_labels
    return _mean(llm.sum_over_logits(cross_entropy_and_hits, output.text_states, labels), len(labels))


def unit_loss(units: UnitLogits) -> Loss:
    """The speech decoder's loss.

    Cross-entropy and the share of units with the highest logit; or CTC per unit, and 1 - the unit error rate of the
    most likely path.
    """
    if isinstance(units, CtcLogits):
        return Loss(ctc_loss(units), ctc_accuracy(units), int(units.label_lengths.sum()))
    return _mean(cross_entropy_and_hits(units.logits, units.labels), len(units.labels))


def _mean(sums: Tensor, count: int) -> Loss:
    loss, accuracy = sums / max(1, count)
    return Loss(loss, accuracy.detach(), count)


def cross_entropy_and_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (P, V), labels (P,) -> (2,): sum of the cross-entropies, number of labels with the highest logit."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return torch.stack([loss, (logits.argmax(-1) == labels).sum().to(loss.dtype)])


def ctc_loss(units: CtcLogits) -> Tensor:
    """Mean CTC loss per unit; turns with more units than their frames can hold are left out."""
    logits, lengths = units.logits, units.label_lengths
    if not len(lengths):
        return logits.float().sum()
    fitting = units.logit_lengths >= frames_needed(units.labels, lengths)
    total = F.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        units.labels,
        units.logit_lengths,
        lengths,
        blank=logits.shape[-1] - 1,
        reduction="sum",
        zero_infinity=True,
    )
    return total / (lengths * fitting).sum().clamp(min=1)


@torch.no_grad()
def ctc_accuracy(units: CtcLogits) -> Tensor:
    """1 - the unit error rate of the most likely path; negative if there are too many units."""
    if not len(units.label_lengths):
        return units.logits.new_zeros(())
    blank = units.logits.shape[-1] - 1
    frames = units.logits.argmax(-1)
    # Frames beyond the end of a turn count as blank.
    frames = frames.where(lengths_to_mask(units.logit_lengths, frames.shape[1]), blank)
    spoken = [collapse(path, blank, previous=blank) for path in frames]
    errors = edit_distances(
        pad_sequence(spoken, batch_first=True),
        torch.tensor([len(path) for path in spoken], device=frames.device),
        units.labels,
        units.label_lengths,
    )
    return 1 - errors.sum() / units.label_lengths.sum().clamp(min=1)
