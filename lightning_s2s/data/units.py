"""Speech units for the audio of a manifest, by any vocoder's tokenizer: batched by length, resumable."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lightning_s2s.data.audio import AudioError, AudioReference, Waveform, audio_duration_sec, decode_audio
from lightning_s2s.data.chat import content_items
from lightning_s2s.data.manifest import Manifest, ManifestError, Row
from lightning_s2s.files import replacing
from lightning_s2s.journal import Journal

if TYPE_CHECKING:
    from lightning_s2s.data.dataset import OnError
    from lightning_s2s.interfaces import Vocoder

log = logging.getLogger(__name__)

ADDED_KEYS = ("manifest", "line", "folder")
"""What reading adds to a row and writing leaves out; `id` stays, so that a copy's rows keep their names."""
PATH_KEYS = ("audio", "spk_emb")
"""Keys of a content item that may hold a path relative to the manifest."""


@dataclass(frozen=True)
class Clip:
    """One audio that needs units: where it stands and how long it is.

    Attributes:
        line: of the manifest, from 1.
        message: number in the row.
        item: number in the message's content.
        duration_sec: by the manifest or the file's header.
    """

    line: int
    message: int
    item: int
    duration_sec: float

    @property
    def place(self) -> tuple[int, int, int]:
        """Line, message and item."""
        return self.line, self.message, self.item


@dataclass
class UnitsReport:
    """What a run did.

    Attributes:
        num_clips: audio that got units, in this run or an earlier one that was stopped.
        num_resumed: those of earlier runs.
        num_kept: audio that had units before.
        num_rows: rows written.
        problems: reason -> rows left out.
    """

    num_clips: int = 0
    num_resumed: int = 0
    num_kept: int = 0
    num_rows: int = 0
    problems: Counter[str] = field(default_factory=Counter)


def add_units(
    vocoder: Vocoder,
    manifest_in: str | Path,
    manifest_out: str | Path,
    settings: dict[str, Any] | None = None,
    roles: Sequence[str] = ("assistant",),
    on_error: OnError = "raise",
    redo: bool = False,
    batch_duration_sec: float = 120.0,
    max_batch_size: int = 64,
    show_progress: bool = False,
) -> UnitsReport:
    """Write `manifest_in` with `speech_units` for its audio to `manifest_out`.

    What is done lies in `MANIFEST_OUT.partial` after every batch. A run that was killed goes on from there when it is
    called again in the same way, and gives the same file; `manifest_out` appears complete, at the end.

    Args:
        vocoder: its `tokenize` makes the units.
        manifest_in: JSONL, plain or `.gz`.
        manifest_out: as well; relative paths are written so that they hold in its folder.
        settings: how the vocoder was built; a run is only gone on with by the same.
        roles: whose audio gets units.
        on_error: "raise" at the first broken row, or "skip": leave it out, warn and count it.
        redo: make units anew where a row has some.
        batch_duration_sec: upper bound of (clips in a batch) x (its longest), in seconds.
        max_batch_size: upper bound of clips in a batch.
        show_progress: a bar with the time that is left.

    Raises:
        ValueError: a manifest can't be read or written, was begun in another way, or has a broken row.
    """
    if not batch_duration_sec > 0 or max_batch_size < 1:
        raise ValueError(
            f"batch_duration_sec and max_batch_size must be positive; got {batch_duration_sec}, {max_batch_size}"
        )
    source, target = Path(manifest_in), Path(manifest_out)
    if not target.parent.is_dir():
        raise ValueError(f"{target}: the folder {target.parent} does not exist")
    if target.exists():
        raise ValueError(f"{target}: exists already; remove it or give another name")
    manifest, report = Manifest(source), UnitsReport()
    broken: dict[int, ManifestError] = {}

    def fail(error: ManifestError) -> None:
        if on_error == "raise":
            raise error
        if error.line not in broken:
            broken[error.line] = error
            log.warning("left out: %s", error)

    clips, report.num_kept = _scan(manifest, roles, redo, fail)
    partial = target.with_name(target.name + ".partial")
    with Journal(partial, _fingerprint(source, settings, roles, redo, vocoder), "units") as journal:
        report.num_resumed = len(journal)
        waiting = [clip for clip in clips if clip.place not in journal]
        bar = _progress(clips, waiting, show_progress)
        for batch in batches_by_length(waiting, batch_duration_sec, max_batch_size):
            journal.add((clip.place, units) for clip, units in _tokenize(vocoder, manifest, batch, fail))
            bar.update(round(sum(clip.duration_sec for clip in batch), 3))
        bar.close()
        report.num_clips = len(journal)
        report.num_rows = _write(manifest, target, clips, journal, broken)
        journal.remove()
    report.problems = Counter(error.reason for error in broken.values())
    return report


def batches_by_length(clips: Sequence[Clip], batch_duration_sec: float, max_batch_size: int) -> Iterator[list[Clip]]:
    """The clips, longest first, in batches that cost at most `batch_duration_sec`, padding counted; a clip that is
    longer goes alone."""
    batch: list[Clip] = []
    for clip in sorted(clips, key=lambda clip: (-clip.duration_sec, clip.place)):
        longest = batch[0].duration_sec if batch else clip.duration_sec
        if batch and (len(batch) == max_batch_size or longest * (len(batch) + 1) > batch_duration_sec):
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


def _scan(
    manifest: Manifest, roles: Sequence[str], redo: bool, fail: Callable[[ManifestError], None]
) -> tuple[list[Clip], int]:
    """The audio that needs units, and how many need none because they have some."""

    def look(line: int) -> tuple[list[Clip], int] | ManifestError:
        try:
            row, clips, kept = manifest.row(line), [], 0
            for i, message in enumerate(row["messages"]):
                for j, item in enumerate(content_items(message["content"])):
                    if message["role"] not in roles or not item.get("audio"):
                        continue
                    if item.get("speech_units") and not redo:
                        kept += 1
                        continue
                    try:
                        parsed = AudioReference.parse(item["audio"], row["folder"])
                        clips.append(Clip(line, i, j, item.get("audio_sec") or audio_duration_sec(parsed)))
                    except AudioError as error:
                        return _broken(row, error.reason, str(error))
            return clips, kept
        except ManifestError as error:
            return error

    found: list[Clip] = []
    num_kept = 0
    lines = [int(line) for line in manifest.line_numbers]
    with ThreadPoolExecutor(8) as pool:  # reading headers waits for the disk
        for start in range(0, len(lines), 1024):
            for result in pool.map(look, lines[start : start + 1024]):
                if isinstance(result, ManifestError):
                    fail(result)
                else:
                    found += result[0]
                    num_kept += result[1]
    return found, num_kept


def _tokenize(
    vocoder: Vocoder, manifest: Manifest, batch: Sequence[Clip], fail: Callable[[ManifestError], None]
) -> list[tuple[Clip, list[int]]]:
    """Units of the clips that can be read and last long enough."""
    import torch

    def load(clip: Clip) -> tuple[Row, Waveform | AudioError]:
        row = manifest.row(clip.line)
        reference = content_items(row["messages"][clip.message]["content"])[clip.item]["audio"]
        try:
            audio = decode_audio(AudioReference.parse(reference, row["folder"]))
            return row, audio.resampled(vocoder.tokenizer_sample_rate)
        except AudioError as error:
            return row, error

    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load, batch))
    waveforms, usable = [], []
    for clip, (row, audio) in zip(batch, loaded, strict=True):
        if isinstance(audio, AudioError):
            fail(_broken(row, audio.reason, str(audio)))
        else:
            waveforms.append(torch.from_numpy(audio))
            usable.append((clip, row))
    if not usable:
        return []
    device = next((tensor.device for tensor in vocoder.parameters()), torch.device("cpu"))
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    units, counts = vocoder.tokenize(padded.to(device), lengths.to(device))
    found = []
    for (clip, row), ids, count in zip(usable, units.tolist(), counts.tolist(), strict=True):
        if count:
            found.append((clip, ids[:count]))
        else:
            fail(_broken(row, "audio shorter than a unit", f"lasts {clip.duration_sec:.3f} s, less than one unit"))
    return found


def _broken(row: Row, reason: str, message: str) -> ManifestError:
    return ManifestError(row["manifest"], row["line"], reason, message)


def _fingerprint(source: Path, settings: Any, roles: Sequence[str], redo: bool, vocoder: Vocoder) -> dict[str, Any]:
    """What decides the units: a run is gone on with only where all of it is the same."""
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    built = settings if settings is not None else {"class_path": type(vocoder).__name__, "init_args": vocoder.init_args}
    fields = {"manifest_in": content, "vocoder": built, "roles": sorted(roles), "redo": redo}
    return json.loads(json.dumps(fields, default=str))


def _write(
    manifest: Manifest, target: Path, clips: Sequence[Clip], done: Journal, broken: dict[int, ManifestError]
) -> int:
    """Write the rows in their order under a temporary name, and rename; gives their number."""
    by_line: dict[int, list[Clip]] = {}
    for clip in clips:
        by_line.setdefault(clip.line, []).append(clip)
    num_rows = 0
    with replacing(target) as temporary, _open_text(temporary, target.suffix == ".gz") as file:
        for number in manifest.line_numbers:
            line = int(number)
            if line in broken:
                continue
            row = manifest.row(line)
            for clip in by_line.get(line, []):
                spoken: dict[str, Any] = row["messages"][clip.message]["content"][clip.item]
                spoken["speech_units"] = "".join(f"<|audio_{unit}|>" for unit in done[clip.place])
            move_paths(row, Path(row["folder"]), target.parent)
            content = {key: value for key, value in row.items() if key not in ADDED_KEYS}
            file.write(json.dumps(content, ensure_ascii=False) + "\n")
            num_rows += 1
        if not num_rows:
            raise ValueError(f"{manifest.path}: nothing is left to write of {len(manifest.line_numbers)} rows")
    return num_rows


@contextmanager
def _open_text(path: Path, compressed: bool) -> Iterator[IO[str]]:
    """For writing; without a time stamp or name in a compressed file, so that the same rows give the same bytes."""
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("wb"))
        if compressed:
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8"))


def move_paths(row: Row, old: Path, new: Path) -> None:
    """Rewrite a row's relative paths, which start at `old`, so that they start at `new`; in place."""
    if old.resolve() == new.resolve():
        return
    for message in row["messages"]:
        for item in message["content"] if isinstance(message["content"], list) else ():  # a string has no paths
            for key in PATH_KEYS:
                value = item.get(key)
                if value and isinstance(value, str) and not os.path.isabs(value):
                    item[key] = os.path.relpath(old.resolve() / value, new.resolve())


def _progress(clips: Sequence[Clip], waiting: Sequence[Clip], show: bool) -> Any:
    """A bar in seconds of audio, which tell the time that is left better than clips of different lengths."""
    from tqdm import tqdm

    total, left = (sum(clip.duration_sec for clip in part) for part in (clips, waiting))
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}, {rate_fmt}]"
    return tqdm(
        total=round(total, 3), initial=round(total - left, 3), desc="units", unit="s", bar_format=form, disable=not show
    )
