"""What every reader of a corpus on disk gives, and the text files that corpora consist of."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recording:
    """One utterance of a corpus.

    Attributes:
        id: Unique name in the corpus.
        audio: Audio file, which may be missing.
        text: What is said; "" where the corpus doesn't tell.
        speaker: Who says it; "" where the corpus doesn't tell.
        emotion: Emotion in lower case; "" without one that annotators agreed on.
        split: The corpus's own part, such as `train-clean-100` or `Session1`; "" where it has none.
        audio_sec: Duration, once the file was read.
    """

    id: str
    audio: Path
    text: str = ""
    speaker: str = ""
    emotion: str = ""
    split: str = ""
    audio_sec: float = 0.0


def read_lines(path: Path) -> list[str]:
    """A text file's lines, not blank. ESD has files in GBK and in UTF-16 among those in UTF-8.

    Raises:
        ValueError: it is none of these.
    """
    content = path.read_bytes()
    encodings = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gbk")
    for encoding in encodings:
        try:
            return [line for line in content.decode(encoding).splitlines() if line.strip()]
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path}: neither UTF-8 nor UTF-16 nor GBK")


def read_table(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV or TSV file with a header.

    Raises:
        ValueError: a column is missing, or a row has more fields than the header.
    """
    tabs = path.suffix == ".tsv"
    reader = csv.DictReader(
        read_lines(path), delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    )
    if missing := [column for column in needed if column not in (reader.fieldnames or ())]:
        raise ValueError(
            f"{path}: lacks the column {missing[0]}; found: {', '.join(reader.fieldnames or ()) or 'none'}"
        )
    for row in reader:
        if None in row or any(row[column] is None for column in needed):
            raise ValueError(f"{path}: line {reader.line_num}: its fields don't fit the header's")
        yield row
