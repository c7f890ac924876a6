"""Common Voice (Ardila et al., LREC 2020): read speech in many languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_s2s.construction.readers.base import Recording, read_table


def read_common_voice(folder: Path) -> Iterator[Recording]:
    """Common Voice, one language: `train.tsv`, `dev.tsv`, `test.tsv`, and `clips/`."""
    for split in ("train", "dev", "test"):
        for path in sorted(folder.rglob(f"{split}.tsv")):
            for row in read_table(path, "path", "sentence"):
                name = row["path"]
                audio = path.parent / "clips" / (name if Path(name).suffix else f"{name}.mp3")
                yield Recording(audio.stem, audio, row["sentence"], row.get("client_id", ""), split=split)
