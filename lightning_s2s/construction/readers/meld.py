"""MELD (Poria et al., ACL 2019): emotions in a television series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_s2s.construction.readers.base import Recording, read_table
from lightning_s2s.data.audio import SUFFIXES


def read_meld(folder: Path) -> Iterator[Recording]:
    """MELD: `train_sent_emo.csv` and its like, with each video's sound as `dia3_utt0.wav` in a folder of the split's.

    MELD comes as videos: `ffmpeg -i dia3_utt0.mp4 -ac 1 -ar 16000 dia3_utt0.wav` takes the sound out.
    """
    found = [sound for sound in sorted(folder.rglob("dia*_utt*.*")) if sound.suffix in SUFFIXES]
    for split in ("train", "dev", "test"):
        sounds = {sound.stem: sound for sound in found if split in sound.parent.name}
        for path in sorted(folder.rglob(f"{split}_sent_emo.csv")):
            for row in read_table(path, "Dialogue_ID", "Utterance_ID", "Utterance", "Emotion"):
                name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
                audio = sounds.get(name, path.parent / split / f"{name}.wav")
                text = row["Utterance"].replace("\x92", "'").strip()
                yield Recording(f"{split}-{name}", audio, text, row.get("Speaker", ""), row["Emotion"].lower(), split)
