"""Examples -> one padded batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_s2s.data.batch import (
    IGNORE_INDEX,
    NO_SEGMENT,
    SPEAKER_WIDTH,
    Batch,
    DialogueBatch,
    TranscribedBatch,
)
from lightning_s2s.data.batching import Note
from lightning_s2s.data.dataset import Example, SpeechDialogueDataset
from lightning_s2s.data.manifest import ManifestError


def pad_sequences(sequences: Sequence[Any], padding: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """N sequences of different lengths -> (N, longest), right-padded, and (N,) int64 lengths; N may be 0."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    padded = torch.full((len(sequences), int(lengths.max()) if len(sequences) else 0), padding, dtype=dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence, dtype=dtype)
    return padded, lengths


def collate_dialogues(examples: Sequence[Example], pad_id: int) -> DialogueBatch:
    """A batch of dialogues.

    Args:
        examples: At least one.
        pad_id: Token id that fills up `input_ids`.
    """
    input_ids, input_lengths = pad_sequences([e.input_ids for e in examples], pad_id, torch.int64)
    labels, _ = pad_sequences([e.labels for e in examples], IGNORE_INDEX, torch.int64)
    segments, _ = pad_sequences([e.segments for e in examples], NO_SEGMENT, torch.int64)
    # Segments count from 0 in each row; in the batch they continue where the row before ended.
    offsets = torch.tensor([0, *np.cumsum([len(e.units) for e in examples])[:-1]], dtype=torch.int64)
    segments = torch.where(segments >= 0, segments + offsets[:, None], segments)
    waveform, waveform_lengths = pad_sequences([w for e in examples for w in e.waveforms], 0.0, torch.float32)
    units, unit_lengths = pad_sequences([u for e in examples for u in e.units], 0, torch.int64)
    speakers = [speaker for e in examples for speaker in e.speaker_embeddings]
    speaker_embedding = torch.zeros(len(speakers), SPEAKER_WIDTH)
    for i, speaker in enumerate(speakers):
        if speaker is not None:
            speaker_embedding[i] = torch.from_numpy(speaker)
    return DialogueBatch(
        rows=[e.row for e in examples],
        waveform=waveform,
        waveform_lengths=waveform_lengths,
        input_ids=input_ids,
        input_lengths=input_lengths,
        labels=labels,
        segments=segments,
        units=units,
        unit_lengths=unit_lengths,
        speaker_embedding=speaker_embedding,
    )


def collate_vocoder(examples: Sequence[Example]) -> TranscribedBatch:
    """A batch of speech with its text, one audio a row."""
    waveform, lengths = pad_sequences([e.waveforms[0] for e in examples], 0.0, torch.float32)
    return TranscribedBatch([e.row for e in examples], waveform, lengths, [e.text for e in examples])


class SkippingCollate:
    """Collates the examples that could be read and notes the others.

    A batch can't be empty (every process of a distributed run needs one): when nothing of it could be read, the first
    readable example of the dataset stands in.

    Args:
        dataset: where the items come from.
        collate: examples -> batch.
    """

    def __init__(self, dataset: SpeechDialogueDataset, collate: Callable[[list[Example]], Batch]):
        self.dataset, self.collate = dataset, collate

    def __call__(self, items: list[Example | ManifestError]) -> tuple[Batch, list[Note]]:
        """Items of the dataset -> a batch and the notes on them.

        Raises:
            ValueError: no example of the whole dataset can be read.
        """
        examples = [item for item in items if isinstance(item, Example)]
        notes = [
            Note(item.reason, f"{item.manifest}:{item.line}", str(item))
            for item in items
            if isinstance(item, ManifestError)
        ]
        for example in examples:
            for audio, remark in example.remarks:
                place = f"{example.row['manifest']}:{example.row['line']}"
                notes.append(Note(remark.reason, audio, f"{place}: audio {audio!r} {remark.message}"))
        return self.collate(examples or [self._stand_in()]), notes

    def _stand_in(self) -> Example:
        for index in range(len(self.dataset)):
            item = self.dataset[index]
            if isinstance(item, Example):
                return item
        raise ValueError(f"{self.dataset.manifests[0].path}: no row has audio that can be read")
