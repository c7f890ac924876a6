"""IEMOCAP (Busso et al., LREC 2008): acted dialogues with emotions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lightning_s2s.construction.readers.base import Recording, read_lines

IEMOCAP_EMOTIONS = {
    "neu": "neutral", "hap": "happy", "exc": "excited", "sad": "sad", "ang": "angry", "fru": "frustrated",
    "fea": "fearful", "sur": "surprised", "dis": "disgusted",
}  # fmt: skip
"""`xxx` (no agreement) and `oth` are no emotion."""


def read_iemocap(folder: Path) -> Iterator[Recording]:
    """IEMOCAP: `SessionN/dialog/EmoEvaluation`, `.../transcriptions`, and `SessionN/sentences/wav`."""
    for path in sorted(folder.rglob("dialog/EmoEvaluation/*.txt")):
        session = path.parents[2]
        transcript = session / "dialog" / "transcriptions" / path.name
        lines = read_lines(transcript) if transcript.is_file() else []
        words = {found[1]: found[2] for line in lines if (found := re.match(r"(\S+) \[.*?\]: *(.*)", line))}
        for line in read_lines(path):
            if found := re.match(r"\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t", line):
                name, label = found.groups()
                speaker = f"{session.name}{name.rpartition('_')[2][:1]}"  # F000, M012: one woman, one man a session
                audio = session / "sentences" / "wav" / path.stem / f"{name}.wav"
                emotion = IEMOCAP_EMOTIONS.get(label, "")
                yield Recording(name, audio, words.get(name, ""), speaker, emotion, session.name)
