"""A corpus as a folder that `datasets.load_dataset` reads, sound and all: Parquet files with the encoded recordings."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_s2s.construction.dialogue import Candidate
from lightning_s2s.construction.speech.speaking import QUESTION_RATE
from lightning_s2s.data.tasks import SPLITS

SHARD_BYTES = 250_000_000
"""Sound in a file, about; one file is held in memory at once."""


def write_dataset(
    folder: Path,
    candidates: Iterable[Candidate],
    clips: Mapping[str, str],
    units: Mapping[str, Sequence[int]] | None,
    work: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the dialogues that are kept as `data/SPLIT-00000-of-0000N.parquet`; the same input gives the same bytes.

    A row is a dialogue with the features of `dataset_features`; names and layout are those of `Dataset.push_to_hub`.
    The folder appears complete, in place of an older one; a split without dialogues has no file.

    Args:
        folder: Folder to write.
        candidates: Dialogues; those that are kept are written, in their order.
        clips: Line's id -> its recording, augmented or not.
        units: Recording of a reply -> its units; None where there is no vocoder.
        work: Folder of all recordings.
        shard_bytes: Sound in a file, about; one dialogue may be more.

    Raises:
        ValueError: No dialogue is kept.
    """
    import pyarrow
    from datasets import Dataset

    schema = dataset_features().arrow_schema
    kept = [candidate for candidate in candidates if candidate.kept]
    if not kept:
        raise ValueError(f"{folder}: no dialogue is kept, of which a dataset could be made")
    with _replacing_folder(folder) as temporary:
        (temporary / "data").mkdir()
        for split in SPLITS:
            chosen = [candidate for candidate in kept if candidate.dialogue.split == split]
            size = sum(_sound_bytes(candidate, clips, work) for candidate in chosen)
            count = min(len(chosen), math.ceil(size / shard_bytes))
            for number in range(count):
                shard = chosen[len(chosen) * number // count : len(chosen) * (number + 1) // count]
                rows = [dataset_row(candidate, clips, units, work) for candidate in shard]
                path = temporary / "data" / f"{split}-{number:05d}-of-{count:05d}.parquet"
                # Not `from_list`: its features would ask for torchcodec, though nothing is encoded anew.
                Dataset(pyarrow.Table.from_pylist(rows, schema=schema)).to_parquet(path)


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
    candidate: Candidate, clips: Mapping[str, str], units: Mapping[str, Sequence[int]] | None, work: Path
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
            "reply_units": None if units is None else list(units[reply]),
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
