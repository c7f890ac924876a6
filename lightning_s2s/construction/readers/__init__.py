"""Corpora of speech recognition and of speech emotion as they lie on disk, each read by a file of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from lightning_s2s.construction.readers.base import Recording
from lightning_s2s.construction.readers.common_voice import read_common_voice
from lightning_s2s.construction.readers.esd import read_esd
from lightning_s2s.construction.readers.iemocap import read_iemocap
from lightning_s2s.construction.readers.librispeech import read_librispeech
from lightning_s2s.construction.readers.meld import read_meld
from lightning_s2s.construction.readers.table import read_table_corpus
from lightning_s2s.support.wording import unknown_name

CORPORA: dict[str, tuple[Callable[[Path], Iterator[Recording]], str]] = {
    "librispeech": (read_librispeech, "*.trans.txt"),
    "common_voice": (read_common_voice, "train.tsv, dev.tsv or test.tsv"),
    "iemocap": (read_iemocap, "SessionN/dialog/EmoEvaluation/*.txt"),
    "meld": (read_meld, "train_sent_emo.csv, dev_sent_emo.csv or test_sent_emo.csv"),
    "esd": (read_esd, "SPEAKER/SPEAKER.txt"),
    "table": (read_table_corpus, "*.csv or *.tsv"),
}
"""Name -> its reader, and the files that it begins with."""


def read_corpus(kind: str, folder: Path) -> list[Recording]:
    """All recordings of a corpus, in a fixed order.

    Raises:
        ValueError: no such kind, or the folder doesn't hold such a corpus.
    """
    if kind not in CORPORA:
        raise ValueError(unknown_name("corpus", kind, CORPORA))
    reader, files = CORPORA[kind]
    if not folder.exists():
        raise ValueError(f"{folder}: there is no such folder")
    recordings = list(reader(folder))
    if not recordings:
        raise ValueError(f"{folder}: holds no {kind} corpus: found no lines in {files}")
    name, count = Counter(recording.id for recording in recordings).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{folder}: {count} recordings have the id {name!r}; each needs its own")
    return recordings
