"""Tensor surgery between tokens, audio positions and spoken turns: pure functions without loops over positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_s2s.data.batch import AUDIO_PLACEHOLDER, IGNORE_INDEX, NO_SEGMENT


@dataclass(frozen=True)
class Spliced:
    """A batch of dialogues with every audio placeholder replaced by the audio's positions.

    Attributes:
        inputs_embeds: (B, L, D).
        mask: (B, L) bool, True where valid.
        labels: (B, L) int64, -100 where no text is predicted.
        segments: (B, L) int64, index of the spoken turn that a position belongs to, -1 outside.
    """

    inputs_embeds: Tensor
    mask: Tensor
    labels: Tensor
    segments: Tensor


def splice_audio(
    input_ids: Tensor,
    input_lengths: Tensor,
    labels: Tensor,
    segments: Tensor,
    token_embeds: Tensor,
    audio_embeds: Tensor,
    audio_lengths: Tensor,
) -> Spliced:
    """Replace each audio placeholder with the positions of its clip.

    Args:
        input_ids: (B, S) int64, right-padded, with one `AUDIO_PLACEHOLDER` for each clip, clips in reading order.
        input_lengths: (B,) int64.
        labels: (B, S) int64.
        segments: (B, S) int64.
        token_embeds: (B, S, D); the embedding at a placeholder is not used.
        audio_embeds: (N, F, D).
        audio_lengths: (N,) int64, positions of each clip.

    Raises:
        ValueError: The number of placeholders is not N.
    """
    batch, size = input_ids.shape
    valid = torch.arange(size, device=input_ids.device) < input_lengths.unsqueeze(1)
    is_audio = (input_ids == AUDIO_PLACEHOLDER) & valid
    if int(is_audio.sum()) != len(audio_lengths):
        raise ValueError(f"{int(is_audio.sum())} audio placeholders in the text, but {len(audio_lengths)} audio clips")
    widths = valid.long()
    widths[is_audio] = audio_lengths
    ends = widths.cumsum(1)
    starts = ends - widths
    length = int(ends[:, -1].max())

    rows, columns = valid.logical_and(~is_audio).nonzero(as_tuple=True)
    targets = starts[rows, columns]
    inputs = token_embeds.new_zeros(batch, length, token_embeds.shape[-1])
    inputs[rows, targets] = token_embeds[rows, columns]
    new_labels = labels.new_full((batch, length), IGNORE_INDEX)
    new_labels[rows, targets] = labels[rows, columns]
    new_segments = segments.new_full((batch, length), NO_SEGMENT)
    new_segments[rows, targets] = segments[rows, columns]

    if len(audio_lengths):
        audio_rows, audio_columns = is_audio.nonzero(as_tuple=True)
        frames = torch.arange(audio_embeds.shape[1], device=input_ids.device)
        clip, frame = (frames < audio_lengths.unsqueeze(1)).nonzero(as_tuple=True)
        position = starts[audio_rows, audio_columns][clip] + frame
        inputs[audio_rows[clip], position] = audio_embeds[clip, frame].to(inputs.dtype)
    mask = torch.arange(length, device=input_ids.device) < ends[:, -1:]
    return Spliced(inputs, mask, new_labels, new_segments)


def gather_segments(values: Tensor, segments: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Gather the values of each spoken turn into a row of its own.

    Args:
        values: (B, L, ...), one value for each position.
        segments: (B, L) int64, index of the turn in 0..M-1, -1 outside.
        num_segments: M.

    Returns:
        (M, S, ...), zero-padded on the right, and (M,) lengths.
    """
    rows, columns = (segments >= 0).nonzero(as_tuple=True)
    owner = segments[rows, columns]
    lengths = torch.bincount(owner, minlength=num_segments)
    order = owner.argsort(stable=True)
    rows, columns, owner = rows[order], columns[order], owner[order]
    starts = lengths.cumsum(0) - lengths
    slot = torch.arange(len(owner), device=values.device) - starts[owner]
    size = int(lengths.max()) if num_segments else 0
    gathered = values.new_zeros(num_segments, size, *values.shape[2:])
    gathered[owner, slot] = values[rows, columns]
    return gathered, lengths
