"""CTC over a vocabulary of unit vectors: the same loss and gradients as a plain implementation over all classes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_s2s.components.ctc import similarity_ctc_loss
from parts.tolerances import assert_equal_but_for_rounding


def over_all_classes(hidden, lengths, classes, targets, target_lengths):
    logits = 16.0 * F.normalize(hidden, dim=-1) @ classes.T
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, targets, lengths, target_lengths, zero_infinity=True)


@pytest.mark.parametrize(
    ("targets", "target_lengths"),
    [
        ([4, 2, 4, 4, 9], [3, 2]),
        ([7, 7, 7, 3, 1, 2], [5, 1]),  # the first doesn't fit: it counts as 0
        ([5], [0, 1]),
        ([*range(1, 5), *range(5, 8), *range(8, 12)], [4, 4, 3]),  # every class occurs
    ],
)
def test_it_is_the_loss_over_all_classes(targets, target_lengths):
    torch.manual_seed(0)
    batch_size = len(target_lengths)
    hidden = torch.randn(batch_size, 7, 8, requires_grad=True)
    classes = F.normalize(torch.randn(12, 8), dim=-1)
    lengths = torch.tensor([6, 4, 5][:batch_size])
    arguments = (lengths, classes, torch.tensor(targets), torch.tensor(target_lengths))
    expected = over_all_classes(hidden, *arguments)
    loss = similarity_ctc_loss(hidden, *arguments)
    assert_equal_but_for_rounding(loss, expected)
    (gradient,), (wanted,) = torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden)
    assert_equal_but_for_rounding(gradient, wanted)
    assert not gradient[0, 6].any() and not gradient[1, 4:].any()


def test_by_hand():
    """One position that points at the blank, two classes at right angles: e^16 for the blank, 1 for each other."""
    loss = similarity_ctc_loss(
        torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([1]), torch.eye(3), torch.tensor([2]), torch.tensor([1])
    )
    assert_equal_but_for_rounding(loss, torch.tensor(16.0).exp().add(2).log())
