"""ESD (Zhou et al., ICASSP 2021): the same sentences with five emotions, in English and Chinese."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_s2s.construction.readers.base import Recording, read_lines

ESD_EMOTIONS = {"中立": "neutral", "快乐": "happy", "伤心": "sad", "生气": "angry", "惊喜": "surprise"}


def read_esd(folder: Path) -> Iterator[Recording]:
    """ESD: `SPEAKER/SPEAKER.txt` and `SPEAKER/EMOTION/[SPLIT/]NAME.wav`."""
    for path in sorted(folder.rglob("*.txt")):
        if path.stem != path.parent.name or not path.stem.isdigit():
            continue
        sounds = {sound.stem: sound for sound in path.parent.rglob("*.wav")}
        for line in read_lines(path):
            name, _, rest = line.partition("\t")
            text, _, label = rest.rpartition("\t")
            if not text:
                continue
            emotion = ESD_EMOTIONS.get(label.strip(), label.strip().lower())
            audio = sounds.get(name.strip(), path.parent / label.strip() / f"{name.strip()}.wav")
            split = audio.parent.name if audio.parent.parent.parent == path.parent else ""
            yield Recording(name.strip(), audio, text.strip(), path.stem, emotion, split)
