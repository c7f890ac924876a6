"""LibriSpeech (Panayotov et al., ICASSP 2015): read English."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_s2s.construction.readers.base import Recording, read_lines


def read_librispeech(folder: Path) -> Iterator[Recording]:
    """LibriSpeech and its kin (MLS has another form): `SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`.

    Its words are in capitals without marks; they become a sentence in lower case.
    """
    for path in sorted(folder.rglob("*.trans.txt")):
        speaker, split = path.parent.parent.name, path.parent.parent.parent.name
        for line in read_lines(path):
            name, _, words = line.partition(" ")
            yield Recording(name, path.parent / f"{name}.flac", words.strip().capitalize(), speaker, split=split)
