"""Batches of noise, and rows that must not depend on what they are batched with."""

from __future__ import annotations

import torch

from lightning_s2s.data.batch import SPEAKER_WIDTH, DialogueBatch
from lightning_s2s.data.chat import EncodedDialogue
from parts.tolerances import ROUNDINGS, assert_equal_but_for_rounding


def speech(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of these lengths as one padded batch."""
    clips = [0.1 * torch.randn(length) for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor(lengths)


@torch.inference_mode()
def assert_batched_equals_single(
    module, batch: torch.Tensor, lengths: torch.Tensor, roundings: float = ROUNDINGS
) -> list[int]:
    """Each row of a batch gives what it gives alone; the output lengths."""
    together, counts = module(batch, lengths)
    assert together.shape[:2] == (len(lengths), int(counts.max()))
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        alone, alone_count = module(batch[row : row + 1, :length], lengths[row : row + 1])
        assert alone_count.tolist() == [count]
        assert_equal_but_for_rounding(together[row, :count], alone[0, :count], roundings)
    return counts.tolist()


def one_dialogue(encoded: EncodedDialogue, waveform: torch.Tensor, units: list[int]) -> DialogueBatch:
    """A batch of one row with one audio (1, T) and one spoken turn."""
    return DialogueBatch(
        rows=[{}],
        waveform=waveform,
        waveform_lengths=torch.tensor([waveform.shape[1]]),
        input_ids=torch.tensor([encoded.input_ids]),
        input_lengths=torch.tensor([len(encoded.input_ids)]),
        labels=torch.tensor([encoded.labels]),
        segments=torch.tensor([encoded.segments]),
        units=torch.tensor([units]),
        unit_lengths=torch.tensor([len(units)]),
        speaker_embedding=torch.zeros(1, SPEAKER_WIDTH),
    )
