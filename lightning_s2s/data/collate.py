"""Examples -> one padded batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_s2s.data.batching import Note
from lightning_s2s.data.chat import IGNORE_INDEX, NO_SEGMENT
from lightning_s2s.data.dataset import Example, SpeechDialogueDataset
from lightning_s2s.data.manifest import SPEAKER_EMBEDDING_SIZE, ManifestError

Batch = dict[str, Any]


def pad_sequences(sequences: Sequence[Any], padding: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """N sequences of different lengths -> (N, longest), right-padded, and (N,) int64 lengths; N may be 0."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    padded = torch.full((len(sequences), int(lengths.max()) if len(sequences) else 0), padding, dtype=dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence, dtype=dtype)
    return padded, lengths


def collate_dialogues(examples: Sequence[Example], pad_id: int) -> Batch:
    """A batch of dialogues: B rows, N audios of users, M assistant turns with units.

    Args:
        examples: at least one.
        pad_id: fills up `input_ids`.
    Returns:
        input_ids: (B, S) int64, `AUDIO_PLACEHOLDER` for each audio.
        input_lengths: (B,) int64.
        labels: (B, S) int64, `IGNORE_INDEX` outside what the assistant says.
        segments: (B, S) int64, over each spoken turn with units its index 0..M-1 in the batch, `NO_SEGMENT` outside.
        waveform: (N, T) float32, in order of appearance; `waveform_lengths`: (N,) int64 samples.
        units: (M, U) int64, padded with 0; `unit_lengths`: (M,) int64.
        speaker_embedding: (M, 512) float32, zeros when unknown.
        rows: the B manifest rows.
        N and M may be 0.
    """
    input_ids, input_lengths = pad_sequences([e.input_ids for e in examples], pad_id, torch.int64)
    labels, _ = pad_sequences([e.labels for e in examples], IGNORE_INDEX, torch.int64)
    segments, _ = pad_sequences([e.segments for e in examples], NO_SEGMENT, torch.int64)
    # Segments count from 0 in each row; in the batch they go on where the row before ended.
    offsets = torch.tensor([0, *np.cumsum([len(e.units) for e in examples])[:-1]], dtype=torch.int64)
    segments = torch.where(segments >= 0, segments + offsets[:, None], segments)
    waveform, waveform_lengths = pad_sequences([w for e in examples for w in e.waveforms], 0.0, torch.float32)
    units, unit_lengths = pad_sequences([u for e in examples for u in e.units], 0, torch.int64)
    speakers = [speaker for e in examples for speaker in e.speaker_embeddings]
    speaker_embedding = torch.zeros(len(speakers), SPEAKER_EMBEDDING_SIZE)
    for i, speaker in enumerate(speakers):
        if speaker is not None:
            speaker_embedding[i] = torch.from_numpy(speaker)
    return {
        "input_ids": input_ids,
        "input_lengths": input_lengths,
        "labels": labels,
        "segments": segments,
        "waveform": waveform,
        "waveform_lengths": waveform_lengths,
        "units": units,
        "unit_lengths": unit_lengths,
        "speaker_embedding": speaker_embedding,
        "rows": [e.row for e in examples],
    }


def collate_vocoder(examples: Sequence[Example]) -> Batch:
    """A batch of speech with its text, one item each.

    Returns:
        waveform: (B, T) float32; `waveform_lengths`: (B,) int64 samples.
        texts: B strings.
        rows: the B manifest rows.
    """
    waveform, lengths = pad_sequences([e.waveforms[0] for e in examples], 0.0, torch.float32)
    return {
        "waveform": waveform,
        "waveform_lengths": lengths,
        "texts": [e.text for e in examples],
        "rows": [e.row for e in examples],
    }


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
