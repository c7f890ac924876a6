"""Tensor surgery, with expectations written by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.model.splice import gather_segments, splice_audio
from parts.tolerances import assert_equal_but_for_rounding

A = -200


def splice(rows: list[list[int]], clips: list[list[float]], size: int | None = None):
    """Splice clips (one number a position, width 1) into rows of ids; a token's embedding is its id, its label too."""
    lengths = torch.tensor([len(row) for row in rows])
    size = size or int(lengths.max())
    ids = torch.tensor([row + [0] * (size - len(row)) for row in rows])
    segments = torch.where(ids >= 10, 0, -1)
    frames = max((len(clip) for clip in clips), default=0)
    audio = torch.tensor([clip + [9.5] * (frames - len(clip)) for clip in clips]).reshape(len(clips), frames, 1)
    audio_lengths = torch.tensor([len(clip) for clip in clips], dtype=torch.long)
    return splice_audio(ids, lengths, ids.clone(), segments, ids.unsqueeze(-1).float(), audio, audio_lengths)


def test_one_clip():
    out = splice([[1, A, 2]], [[0.1, 0.2, 0.3]])
    assert_equal_but_for_rounding(out.inputs_embeds[0, :, 0], torch.tensor([1, 0.1, 0.2, 0.3, 2]))
    assert out.labels.tolist() == [[1, -100, -100, -100, 2]]
    assert out.mask.all()


def test_rows_with_two_one_and_no_clips():
    out = splice([[1, A, A, 12], [A, 3], [4, 5, 6]], [[0.1], [0.2, 0.3], [0.4, 0.5, 0.6]])
    expected = [[1, 0.1, 0.2, 0.3, 12], [0.4, 0.5, 0.6, 3, 0], [4, 5, 6, 0, 0]]
    assert_equal_but_for_rounding(out.inputs_embeds[..., 0], torch.tensor(expected))
    assert out.mask.tolist() == [[True] * 5, [True] * 4 + [False], [True] * 3 + [False] * 2]
    assert out.labels.tolist() == [[1, -100, -100, -100, 12], [-100, -100, -100, 3, -100], [4, 5, 6, -100, -100]]
    assert out.segments.tolist() == [[-1, -1, -1, -1, 0], [-1] * 5, [-1] * 5]


def test_zero_audio_leaves_the_text_as_it_is():
    out = splice([[1, 2, 3], [4]], [])
    assert out.inputs_embeds[..., 0].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert out.mask.tolist() == [[True, True, True], [True, False, False]]


def test_a_clip_without_positions_disappears():
    out = splice([[1, A, 2, A]], [[], [0.1]])
    assert_equal_but_for_rounding(out.inputs_embeds[0, :, 0], torch.tensor([1, 2, 0.1]))


def test_padding_beyond_the_longest_row_is_cut():
    assert splice([[1, A]], [[0.1, 0.2]], size=6).inputs_embeds.shape == (1, 3, 1)


@pytest.mark.parametrize(("rows", "clips"), [([[1, A]], []), ([[1, 2]], [[0.1]]), ([[A, A]], [[0.1]])])
def test_placeholders_and_clips_must_match(rows, clips):
    with pytest.raises(ValueError, match=f"{sum(row.count(A) for row in rows)} audio placeholders.*{len(clips)} audio"):
        splice(rows, clips)


def test_gradients_reach_the_audio():
    audio = torch.zeros(1, 2, 1, requires_grad=True)
    ids = torch.tensor([[1, A]])
    lengths, none = torch.tensor([2]), torch.full_like(ids, -1)
    out = splice_audio(ids, lengths, none, none, torch.zeros(1, 2, 1), audio, torch.tensor([2]))
    out.inputs_embeds.sum().backward()
    assert audio.grad.flatten().tolist() == [1, 1]


def test_gather_segments():
    segments = torch.tensor([[-1, 0, 0, -1, 1], [2, 2, 2, -1, -1]])
    values = torch.arange(10).reshape(2, 5)
    gathered, lengths = gather_segments(values, segments, 3)
    assert gathered.tolist() == [[1, 2, 0], [4, 0, 0], [5, 6, 7]]
    assert lengths.tolist() == [2, 1, 3]


def test_gather_segments_follows_the_turns_and_not_the_rows():
    segments = torch.tensor([[1, -1, 1], [0, -1, -1]])
    gathered, lengths = gather_segments(torch.arange(12.0).reshape(2, 3, 2), segments, 3)
    assert gathered.tolist() == [[[6, 7], [0, 0]], [[0, 1], [4, 5]], [[0, 0], [0, 0]]]
    assert lengths.tolist() == [1, 2, 0]


def test_gather_no_segments():
    gathered, lengths = gather_segments(torch.zeros(2, 3, 4), torch.full((2, 3), -1), 0)
    assert gathered.shape == (0, 0, 4) and lengths.shape == (0,)
