"""A corpus as a folder that `datasets.load_dataset` reads, sound and all: Parquet files with the encoded recordings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_s2s.construction.dialogue import Candidate
from lightning_s2s.construction.speaking import QUESTION_RATE
from lightning_s2s.data.manifest import parse_units
from lightning_s2s.data.tasks import SPLITS

SHARD_BYTES = 500_000_000
ROW_GROUP_BYTES = 32_000_000
ROWS_PER_GROUP = 100
"""What is held in memory at once, and what a reader that streams fetches at once."""


def write_dataset(
    folder: Path,
    candidates: Iterable[Candidate],
    clips: Mapping[str, str],
    units: Mapping[str, str] | None,
    work: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the dialogues that are kept as `data/SPLIT-00000-of-0000N.parquet`; the same input gives the same bytes.

    A row is a dialogue with the features of `dataset_features`. The folder appears whole, in place of an older one; a
    split without dialogues has no file.

    Args:
        folder: to write.
        candidates: of which those that are kept are written, in their order.
        clips: line's id -> its recording, augmented or not.
        units: recording of a reply -> its units, as a manifest has them; None where there is no vocoder.
        work: folder of all recordings.
        shard_bytes: of sound in a file; one dialogue may be more.

    Raises:
        ValueError: no dialogue is kept, or units can't be read.
    """
    kept = [candidate for candidate in candidates if candidate.kept]
    if not kept:
        raise ValueError(f"{folder}: no dialogue is kept, of which a dataset could be made")
    with _replacing_folder(folder) as temporary:
        (temporary / "data").mkdir()
        for split in SPLITS:
            sized = [
                (candidate, _sound_bytes(candidate, clips, work))
                for candidate in kept
                if candidate.dialogue.split == split
            ]
            shards = list(_parts(sized, shard_bytes))
            for number, shard in enumerate(shards):
                path = temporary / "data" / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
                _write_shard(path, shard, clips, units, work)


def dataset_features() -> Any:
    """The columns, as `datasets.Features`.

    `seed` and `figures` are JSON objects as text, since their keys differ from corpus to corpus. `question` is what the
    user says, `reply_audio` the answer; both are read as the files that they were (Ogg Opus, FLAC). `reply_units` is
    null where there was no vocoder.
    """
    from datasets import Audio, Features, List, Value

    text = Value("string")
    turn = {
        "text": text,
        "emotion": text,
        "style": text,
        "question": Audio(sampling_rate=QUESTION_RATE),  # Opus would be decoded at 48 kHz else
        "reply": text,
        "reply_emotion": text,
        "reply_audio": Audio(),
        "reply_units": List(Value("int32")),
    }
    dialogue = {"id": text, "speaker": text, "pair": text, "ambiguous": Value("bool"), "seed": text}
    return Features({**dialogue, "turns": List(turn), "figures": text})


def dataset_row(
    candidate: Candidate, clips: Mapping[str, str], units: Mapping[str, str] | None, work: Path
) -> dict[str, Any]:
    """One dialogue as `dataset_features` has it; arguments as those of `write_dataset`."""
    dialogue = candidate.dialogue
    turns = [
        {
            "text": turn.text,
            "emotion": turn.emotion,
            "style": turn.style,
            "question": _sound(name, work / clips[name]),
            "reply": turn.reply,
            "reply_emotion": turn.reply_emotion,
            "reply_audio": _sound(f"{name}-reply", work / reply),
            "reply_units": None if units is None else parse_units(units[reply]),
        }
        for name, turn, reply in zip(dialogue.clip_ids, dialogue.turns, candidate.replies, strict=True)
    ]
    return {
        "id": dialogue.id,
        "speaker": dialogue.speaker,
        "pair": dialogue.pair,
        "ambiguous": dialogue.ambiguous,
        "seed": json.dumps(dialogue.seed, ensure_ascii=False),
        "turns": turns,
        "figures": json.dumps(candidate.figures, ensure_ascii=False),
    }


def _sound(name: str, path: Path) -> dict[str, Any]:
    return {"bytes": path.read_bytes(), "path": name + path.suffix}


def _sound_bytes(candidate: Candidate, clips: Mapping[str, str], work: Path) -> int:
    names = [*(clips[name] for name in candidate.dialogue.clip_ids), *candidate.replies]
    return sum((work / name).stat().st_size for name in names)


def _parts(
    sized: Sequence[tuple[Candidate, int]], most_bytes: int, most_rows: int | None = None
) -> Iterator[list[tuple[Candidate, int]]]:
    """The sequence cut into parts of bounded size, of at least one each."""
    part: list[tuple[Candidate, int]] = []
    filled = 0
    for item in sized:
        if part and (filled + item[1] > most_bytes or len(part) == most_rows):
            yield part
            part, filled = [], 0
        part.append(item)
        filled += item[1]
    if part:
        yield part


def _write_shard(
    path: Path,
    shard: Sequence[tuple[Candidate, int]],
    clips: Mapping[str, str],
    units: Mapping[str, str] | None,
    work: Path,
) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = dataset_features().arrow_schema
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for group in _parts(shard, ROW_GROUP_BYTES, ROWS_PER_GROUP):
            rows = [dataset_row(candidate, clips, units, work) for candidate, _ in group]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place at the end, and is deleted after an error.

    What a killed run left beside it is cleared away by the next.
    """
    folder = folder.resolve()
    temporary, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    _clear(folder, temporary, old)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
    finally:
        _clear(folder, temporary, old)


def _clear(folder: Path, temporary: Path, old: Path) -> None:
    if old.exists() and not folder.exists():
        old.replace(folder)
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)
