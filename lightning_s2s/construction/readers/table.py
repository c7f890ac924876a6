"""Any other corpus, by a table of its recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_s2s.construction.readers.base import Recording, read_table


def read_table_corpus(folder: Path) -> Iterator[Recording]:
    """Any corpus, by a table: CSV or TSV with the column `audio`, and, as there are, id, text, speaker, emotion, split.

    Files of `audio` are looked for from the table's folder on.
    """
    paths = sorted([*folder.glob("*.csv"), *folder.glob("*.tsv")]) if folder.is_dir() else [folder]
    for path in paths:
        for number, row in enumerate(read_table(path, "audio"), start=1):
            text, speaker, emotion, split = (
                (row.get(key) or "").strip() for key in ("text", "speaker", "emotion", "split")
            )
            name = (row.get("id") or f"{path.stem}-{number}").strip()
            yield Recording(name, path.parent / row["audio"], text, speaker, emotion.lower(), split)
