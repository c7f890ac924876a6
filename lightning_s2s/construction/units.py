"""Speech units for the audio of a manifest, by any vocoder's tokenizer: batched by length, resumable."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import soxr

from lightning_s2s.components.weights import weights_fingerprint
from lightning_s2s.construction.rows import units_text
from lightning_s2s.construction.running import ItemFailure, PipelineStep
from lightning_s2s.construction.running.base import fingerprint
from lightning_s2s.construction.speech.renderings import read_recording
from lightning_s2s.data.audio import AudioError, AudioReference, Waveform, audio_duration_sec, decode_audio
from lightning_s2s.data.chat import content_items
from lightning_s2s.data.manifest import Manifest, ManifestError, Row
from lightning_s2s.data.row_checks import ADDED_KEYS, RowProblem, check_stated_sec
from lightning_s2s.support.files import replacing
from lightning_s2s.support.journal import Journal

if TYPE_CHECKING:
    from lightning_s2s.components.contracts import Vocoder
    from lightning_s2s.data.dataset import OnError

log = logging.getLogger(__name__)

PATH_KEYS = ("audio", "spk_emb")
"""Keys of a content item that may hold a path relative to the manifest."""


@dataclass(frozen=True)
class Clip:
    """One audio that needs units: where it stands and how long it is.

    Attributes:
        line: Line of the manifest, from 1.
        message: Index of the message in the row.
        item: Index of the item in the message's content.
        duration_sec: Duration by the manifest or the file's header.
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
        num_clips: Number of clips that got units, in this run or in a stopped one that it resumed.
        num_resumed: Number of those that earlier runs had done.
        num_kept: Number of clips that had units before.
        num_rows: Number of rows written.
        problems: Reason -> number of rows left out.
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

    Finished work is kept in `MANIFEST_OUT.partial` after every batch. A killed run resumes from there when it is
    called again with the same arguments, and gives the same file; `manifest_out` appears complete, at the end.

    Args:
        vocoder: Vocoder whose `tokenize` makes the units.
        manifest_in: Manifest, JSONL, plain or `.gz`.
        manifest_out: Manifest to write; relative paths are rewritten so that they hold in its folder.
        settings: How the vocoder was built; a run is resumed only with the same settings.
        roles: Roles whose audio gets units.
        on_error: Either "raise" at the first broken row, or "skip": leave it out, warn and count it.
        redo: Whether units are made again where a row already has some.
        batch_duration_sec: Upper bound of (clips in a batch) x (its longest), in seconds.
        max_batch_size: Upper bound of clips in a batch.
        show_progress: Whether a bar shows the time that is left.

    Raises:
        ValueError: A manifest can't be read or written, was started with other arguments, or has a broken row.
    """
    if not batch_duration_sec > 0 or max_batch_size < 1:
        raise ValueError(
            f"batch_duration_sec and max_batch_size must be positive; got {batch_duration_sec}, {max_batch_size}"
        )
    source, target = Path(manifest_in), Path(manifest_out)
    if not target.parent.is_dir():
        raise ValueError(f"{target}: the folder {target.parent} does not exist")
    partial = target.with_name(target.name + ".partial")
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target}: exists already; remove it or give another name")
    if partial.exists() and not partial.is_file():
        raise ValueError(f"{partial}: is no file, and unfinished work would lie there; remove it or give another name")
    manifest, report = Manifest(source), UnitsReport()
    broken: dict[int, ManifestError] = {}

    def fail(error: ManifestError) -> None:
        if on_error == "raise":
            raise error
        if error.line not in broken:
            broken[error.line] = error
            log.warning("left out: %s", error)

    clips, report.num_kept = _scan(manifest, roles, redo, fail)
    with Journal(partial, _fingerprint(manifest, settings, roles, redo, vocoder), "units") as journal:
        report.num_resumed = len(journal)
        waiting = [clip for clip in clips if clip.place not in journal]
        with _progress(clips, waiting, show_progress) as bar:  # closed before an error is written, which begins a line
            for batch in batches_by_length(waiting, batch_duration_sec, max_batch_size):
                journal.add((clip.place, units) for clip, units in _tokenize(vocoder, manifest, batch, fail))
                bar.update(round(sum(clip.duration_sec for clip in batch), 3))
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

    def look(row: Row) -> tuple[list[Clip], int]:
        clips, kept = [], 0
        for i, message in enumerate(row["messages"]):
            for j, item in enumerate(content_items(message["content"])):
                if message["role"] not in roles or not item.get("audio"):
                    continue
                if item.get("speech_units") and not redo:
                    kept += 1
                    continue
                try:
                    parsed = AudioReference.parse(item["audio"], row["folder"])
                    clips.append(Clip(row["line"], i, j, item.get("audio_sec") or audio_duration_sec(parsed)))
                except AudioError as error:
                    raise _broken(row, error.reason, str(error)) from None
        return clips, kept

    found: list[Clip] = []
    num_kept = 0
    for new, kept in manifest.scan(look, fail):
        found += new
        num_kept += kept
    return found, num_kept


def _tokenize(
    vocoder: Vocoder, manifest: Manifest, batch: Sequence[Clip], fail: Callable[[ManifestError], None]
) -> list[tuple[Clip, list[int]]]:
    """Units of the clips that can be read and last long enough."""
    import torch

    def load(clip: Clip) -> tuple[Row, Waveform | AudioError | RowProblem]:
        row = manifest.row(clip.line)
        item = content_items(row["messages"][clip.message]["content"])[clip.item]
        try:
            audio = decode_audio(AudioReference.parse(item["audio"], row["folder"]))
            check_stated_sec(item, audio.duration_sec)
            for remark in audio.remarks:
                log.warning("%s:%d: audio %r %s", row["manifest"], row["line"], item["audio"], remark.message)
            return row, audio.resampled(vocoder.tokenizer_sample_rate)
        except (AudioError, RowProblem) as error:
            return row, error

    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load, batch))
    waveforms, usable = [], []
    for clip, (row, audio) in zip(batch, loaded, strict=True):
        if isinstance(audio, AudioError | RowProblem):
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


def _fingerprint(
    manifest: Manifest, settings: Any, roles: Sequence[str], redo: bool, vocoder: Vocoder
) -> dict[str, Any]:
    """Fingerprint of the job; a journal is resumed only if it matches."""
    built = settings if settings is not None else {"class_path": type(vocoder).__name__, "init_args": vocoder.init_args}
    fields = {"manifest_in": manifest.digest, "vocoder": built, "roles": sorted(roles), "redo": redo}
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
                spoken["speech_units"] = units_text(done[clip.place])
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


@contextmanager
def _progress(clips: Sequence[Clip], waiting: Sequence[Clip], show: bool) -> Iterator[Any]:
    """A bar in seconds of audio, which tell the time that is left better than clips of different lengths.

    Warnings are written above it.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    total, left = (sum(clip.duration_sec for clip in part) for part in (clips, waiting))
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}, {rate_fmt}]"
    total_sec, done_sec = round(total, 3), round(total - left, 3)
    with (
        logging_redirect_tqdm() if show else nullcontext(),
        tqdm(total=total_sec, initial=done_sec, desc="units", unit="s", bar_format=form, disable=not show) as bar,
    ):
        yield bar


# --- a step of construction -------------------------------------------------------------------------------------------


class TokeniseStep(PipelineStep[str]):
    """Turns recordings of `folder` into units, on a GPU where there is one.

    Args:
        vocoder: Vocoder with a tokenizer.
        folder: Folder of the recordings.
    """

    name, unit = "units", "reply"

    def __init__(self, vocoder: Any, folder: Path):
        self.vocoder, self.folder = vocoder.eval(), folder

    @cached_property
    def weights(self) -> str:
        """Tells the vocoder's weights from others."""
        return weights_fingerprint(self.vocoder)

    def key(self, item: str) -> str:
        return fingerprint(self.weights, item)

    def run(self, batch: Sequence[str]) -> list[Any | ItemFailure]:
        rate = self.vocoder.tokenizer_sample_rate
        waveforms = [soxr.resample(*read_recording(self.folder / name), rate) for name in batch]
        return [self.tokenise(waveform) for waveform in waveforms]

    def tokenise(self, waveform: np.ndarray) -> list[int]:
        """(T,) float32 at the tokenizer's rate -> units.

        Raises:
            ValueError: the vocoder has no tokenizer.
        """
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        vocoder, rate = self.vocoder.to(device), self.vocoder.tokenizer_sample_rate
        frame = round(rate / vocoder.unit_rate_hz * vocoder.codebooks_per_frame)
        padded = np.pad(waveform, (0, -len(waveform) % frame))  # what is said last is no part of a unit else
        with torch.inference_mode():
            length = torch.tensor([len(padded)], device=device)
            units, counts = vocoder.tokenize(torch.from_numpy(padded).unsqueeze(0).to(device), length)
        return units[0, : int(counts[0])].tolist()
