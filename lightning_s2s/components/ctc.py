"""CTC (Graves et al., 2006): collapsing, path lengths, edit distances, and a loss over a large vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_s2s.components.contracts import lengths_to_mask


def collapse(ids: Tensor, blank: int, previous: int) -> Tensor:
    """Collapse a path: merge repeated ids, then drop blanks.

    Args:
        ids: (F,) int64, one id for each frame.
        blank: Id of the blank.
        previous: Id of the frame before the first, `blank` at the start of a turn. With it, collapsing a path piece by
            piece equals collapsing it at once.

    Returns:
        (U,) int64.
    """
    before = torch.cat([ids.new_full((1,), previous), ids])[:-1]
    return ids[(ids != before) & (ids != blank)]


def frames_needed(units: Tensor, lengths: Tensor) -> Tensor:
    """(M, U), right-padded, and (M,) -> (M,): frames of the shortest path, one per unit and a blank between repeats."""
    repeated = (units[:, 1:] == units[:, :-1]) & lengths_to_mask(lengths, units.shape[1])[:, 1:]
    return lengths + repeated.sum(1)


def edit_distances(first: Tensor, first_lengths: Tensor, second: Tensor, second_lengths: Tensor) -> Tensor:
    """Levenshtein distances of M pairs of sequences, all pairs at once.

    Args:
        first: (M, U) int64, right-padded.
        first_lengths: (M,) lengths.
        second: (M, W) int64, right-padded.
        second_lengths: (M,) lengths.

    Returns:
        (M,) int64.
    """
    columns = torch.arange(second.shape[1] + 1, device=second.device)
    distances = columns.expand(len(second), -1)
    for number in range(first.shape[1]):
        replaced = distances[:, :-1] + (first[:, number : number + 1] != second)
        best = torch.cat([distances[:, :1] + 1, torch.minimum(replaced, distances[:, 1:] + 1)], dim=1)
        # Insertions: the minimum over all columns to the left, plus the distance from there.
        best = (best - columns).cummin(dim=1).values + columns
        distances = torch.where((number < first_lengths).unsqueeze(1), best, distances)
    return distances.gather(1, second_lengths.unsqueeze(1)).squeeze(1)


def similarity_ctc_loss(
    hidden_states: Tensor,
    lengths: Tensor,
    classes: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    scale: float = 16.0,
) -> Tensor:
    """CTC whose logits are `scale` times the cosine similarity between a position and each class.

    Paths only contain the targets and the blank. All other classes, which may be a tokenizer's whole vocabulary, are
    merged into one, since torch's CTC needs normalised probabilities for correct gradients.

    Args:
        hidden_states: (B, F, D).
        lengths: (B,) positions.
        classes: (V, D) unit vectors; the first is the blank's.
        targets: (sum of `target_lengths`,) int64 classes, concatenated.
        target_lengths: (B,) lengths of the targets.
        scale: Factor of the cosine similarity.

    Returns:
        The mean over B of the loss per target; turns with more targets than fit into their positions count as 0.
    """
    queries = scale * F.normalize(hidden_states, dim=-1)
    needed, places = torch.cat([targets.new_zeros(1), targets]).unique(return_inverse=True)  # the blank, 0, comes first
    others = torch.ones(len(classes), dtype=torch.bool, device=classes.device).index_fill(0, needed, False)
    mask = lengths_to_mask(lengths, hidden_states.shape[1])
    least = torch.finfo(torch.float32).min
    together = (queries[mask] @ classes.T).float().masked_fill(~others, least).logsumexp(-1)
    scores = (queries @ classes[needed].T).float()
    rest = scores.new_zeros(mask.shape).masked_scatter(mask, together)
    log_probs = torch.cat([scores, rest.unsqueeze(-1)], dim=-1).log_softmax(-1)
    return F.ctc_loss(log_probs.transpose(0, 1), places[1:], lengths, target_lengths, zero_infinity=True)
