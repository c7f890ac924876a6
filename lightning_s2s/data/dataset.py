"""Rows of manifests -> examples: token ids, waveforms and units, each decoded when it is asked for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_s2s.data.audio import AudioError, AudioReference, Remark, Waveform, audio_duration_sec, decode_audio
from lightning_s2s.data.chat import content_items, has_units
from lightning_s2s.data.manifest import Manifest, ManifestError, Row, message_units, parse_speaker
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.data.row_checks import RowProblem, check_stated_sec
from lightning_s2s.support.wording import counted

log = logging.getLogger(__name__)

SEC_PER_TEXT_TOKEN = 0.1
"""What a text token costs in a batch, in seconds of audio."""
BYTES_PER_TEXT_TOKEN = 4
"""Duration is estimated without tokenising: about one token for four bytes of UTF-8."""
UNIT_RATE_HZ = 25.0
"""Taken for the cost of units when the stage names no rate."""
DROPPED_SHORT = "audio shorter than min_audio_sec"
DROPPED_MUTE = "no speech units"
DROPPED = (DROPPED_SHORT, DROPPED_MUTE)
"""Reasons for which a row is left out and counted, whatever `on_error` says."""
LARGEST_RATE_RATIO = 1.25
"""Units and audio of a reply may differ by so much; two vocoders of different rates differ by more."""

OnError = Literal["raise", "skip"]
Messages = Sequence[Mapping[str, Any]]


@dataclass
class Example:
    """One row as it goes into a batch.

    Attributes:
        row: the manifest row.
        input_ids, labels, segments: see `EncodedDialogue`; empty for the task "vocoder".
        waveforms: (T,) float32 each, in order of appearance.
        units: of each assistant turn that has some.
        speaker_embeddings: (512,) float32 or None for each of them.
        text: what the audio says, for the task "vocoder".
        remarks: what should be said of this row's audio, with its name.
    """

    row: Row
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    waveforms: list[Waveform] = field(default_factory=list)
    units: list[list[int]] = field(default_factory=list)
    speaker_embeddings: list[np.ndarray | None] = field(default_factory=list)
    text: str = ""
    remarks: list[tuple[str, Remark]] = field(default_factory=list)


@dataclass(frozen=True)
class _Entry:
    """Where an example lies: manifest, line and, for the task "vocoder", message and item; and whether it has units."""

    manifest: int
    line: int
    message: int = 0
    item: int = 0
    spoken: bool = False


class SpeechDialogueDataset:
    """The examples of one or several manifests, checked once by their headers.

    Audio is decoded in `__getitem__`. What a header can't tell (a file that breaks off, NaN) shows there; `__getitem__`
    then raises, or with `on_error: skip` returns the ManifestError instead of an Example.

    Args:
        manifests: JSONL files.
        requirements: of the stage.
        on_error: "raise" at the first broken line or file, or "skip" and count it.
        min_audio_sec: rows with shorter audio are dropped and counted, whatever `on_error` says, as are those
            without units where these are all that is learnt.
        max_duration_sec: rows that cost more can't be put into a batch and count as broken; None allows all.
        cache_audio: keep decoded audio in memory, for corpora that fit.
        longest_stretch: factor by which the users' audio may become longer after decoding; `durations` count it.

    Attributes:
        durations: cost of each example in seconds.
        num_spoken: examples with speech units.
        problems: reason -> number of rows left out, filled at construction.

    Raises:
        ValueError: a manifest is missing; with `on_error: raise`, the first broken line; or nothing is left.
    """

    def __init__(
        self,
        manifests: Sequence[str | Path],
        requirements: DataRequirements,
        on_error: OnError = "raise",
        min_audio_sec: float = 0.5,
        max_duration_sec: float | None = None,
        cache_audio: bool = False,
        longest_stretch: float = 1.0,
    ):
        self.requirements = requirements
        self.on_error = on_error
        self.min_audio_sec = min_audio_sec
        self.max_duration_sec = max_duration_sec
        self.longest_stretch = longest_stretch
        self.manifests = [Manifest(path) for path in manifests]
        self.problems: Counter[str] = Counter()
        self._cache: dict[str, tuple[Waveform, tuple[Remark, ...]]] | None = {} if cache_audio else None
        self._entries: list[_Entry] = []
        self.durations: list[float] = []
        self.num_spoken = 0
        self._scan()

    def __len__(self) -> int:
        return len(self._entries)

    # --- the scan at construction -------------------------------------------------------------------------------

    def _scan(self) -> None:
        for number, manifest in enumerate(self.manifests):
            for found in manifest.scan(partial(self._measure, number), self._leave_out):
                for entry, duration in found:
                    self._entries.append(entry)
                    self.durations.append(duration)
                    self.num_spoken += entry.spoken
        names = ", ".join(str(manifest.path) for manifest in self.manifests)
        num_rows = sum(len(manifest.line_numbers) for manifest in self.manifests)
        left_out = counted(self.problems)
        if self.problems:
            log.warning("%s: %d of %d rows left out: %s", names, self.problems.total(), num_rows, left_out)
        if not self._entries:
            raise ValueError(f"{names}: nothing is left to use of {num_rows} rows ({left_out or 'it is empty'})")

    def _leave_out(self, error: ManifestError) -> None:
        if self.on_error == "raise" and error.reason not in DROPPED:
            raise error
        self.problems[error.reason] += 1
        log.info("left out: %s", error)

    def _measure(self, number: int, row: Row) -> list[tuple[_Entry, float]]:
        """Entries of a row and what they cost in seconds; raises ManifestError when it can't be used."""
        line = row["line"]
        if self.requirements.task == "vocoder":
            found = [
                (_Entry(number, line, i, j), self._audio_sec(row, [item]))
                for i, message in enumerate(row["messages"])
                for j, item in enumerate(content_items(message["content"]))
                if item.get("audio") and spoken_text(item)
            ]
            if not found:
                raise self._broken(row, "no audio with text", "has no content with both audio and text (or transcript)")
        else:
            spoken = any(has_units(message) for message in row["messages"])
            found = [(_Entry(number, line, spoken=spoken), self._dialogue_sec(row))]
        for _, duration in found:
            if self.max_duration_sec is not None and duration > self.max_duration_sec:
                message = f"costs {duration:.1f} s of a batch; batch_duration_sec is {self.max_duration_sec:g} s"
                raise self._broken(row, "longer than a batch", message)
        return found

    def _dialogue_sec(self, row: Row) -> float:
        messages = self._messages(row)
        if not any(message["role"] == "assistant" for message in messages):
            raise self._broken(row, "no assistant turn", "messages: has no assistant turn to learn from")
        spoken = [message for message in messages if has_units(message)]
        if self.requirements.needs_units and not spoken:
            raise self._broken(row, DROPPED_MUTE, "messages: the assistant has no speech_units to learn from")
        self._check_text(row, messages)
        if self.requirements.needs_transcripts:
            for item in user_audio_items(messages):
                if not item.get("transcript"):
                    problem = f"audio {item['audio']!r}: has no transcript, which the CTC loss reads"
                    raise self._broken(row, "no transcript", problem)
        for message in spoken:
            self._check_unit_rate(row, message)
            self._speaker(row, message)
        items = [item for message in messages for item in content_items(message["content"])]
        text_bytes = sum(len((item.get(key) or "").encode()) for item in items for key in ("text", "audio_text"))
        duration = SEC_PER_TEXT_TOKEN * text_bytes / BYTES_PER_TEXT_TOKEN
        duration += self.longest_stretch * self._audio_sec(row, list(user_audio_items(messages)))
        num_units = sum(len(self._units(row, message)) for message in spoken)
        return duration + num_units / (self.requirements.unit_rate_hz or UNIT_RATE_HZ)

    def _check_text(self, row: Row, messages: Messages) -> None:
        assert self.requirements.tokenizer is not None
        try:
            self.requirements.tokenizer.check(messages)
        except ValueError as error:
            raise self._broken(row, "wrong text", str(error)) from None

    def _check_unit_rate(self, row: Row, message: Mapping[str, Any]) -> None:
        """Compare units with the length of the reply's audio, where the row states it, else in a first row alone."""
        rate = self.requirements.unit_rate_hz
        items = [item for item in content_items(message["content"]) if item.get("audio") or item.get("audio_sec")]
        if rate is None or len(items) != 1:
            return
        seconds = items[0].get("audio_sec")
        if seconds is None and row["line"] == 1:  # opening all files would take long
            try:
                seconds = audio_duration_sec(AudioReference.parse(items[0]["audio"], row["folder"]))
            except AudioError:  # only its units are needed
                return
        if seconds is None or seconds < self.min_audio_sec:
            return
        found = len(self._units(row, message)) / seconds
        if max(found / rate, rate / max(found, 1e-6)) > LARGEST_RATE_RATIO:
            raise self._broken(
                row,
                "units of another rate",
                f"speech_units: {found * seconds:.0f} for {seconds:.2f} s of audio are {found:.1f} a second, the "
                f"vocoder has {rate:g}; were they made by another one?",
            )

    def _audio_sec(self, row: Row, items: Sequence[Mapping[str, Any]]) -> float:
        total = 0.0
        for item in items:
            try:
                parsed = AudioReference.parse(item["audio"], row["folder"])
                duration = item.get("audio_sec") or audio_duration_sec(parsed)
            except AudioError as error:
                raise self._broken(row, error.reason, str(error)) from None
            if duration < self.min_audio_sec:
                message = f"lasts {duration:.3f} s; at least {self.min_audio_sec:g} s are needed"
                raise self._broken(row, DROPPED_SHORT, f"audio {item['audio']!r}: {message}")
            total += duration
        return total

    # --- examples -----------------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> Example | ManifestError:
        entry = self._entries[index]
        row = self.manifests[entry.manifest].row(entry.line)
        try:
            if self.requirements.task == "vocoder":
                return self._vocoder_example(row, entry)
            return self._dialogue_example(row)
        except ManifestError as error:
            if self.on_error == "raise":
                raise
            return error

    def _vocoder_example(self, row: Row, entry: _Entry) -> Example:
        item = content_items(row["messages"][entry.message]["content"])[entry.item]
        example = Example(row, text=spoken_text(item))
        self._load(example, item)
        return example

    def _dialogue_example(self, row: Row) -> Example:
        assert self.requirements.tokenizer is not None
        messages = self._messages(row)
        try:
            encoded = self.requirements.tokenizer.encode(messages)
        except ValueError as error:
            raise self._broken(row, "wrong text", str(error)) from None
        example = Example(row, encoded.input_ids, encoded.labels, encoded.segments)
        for item in user_audio_items(messages):
            self._load(example, item)
        for message in messages:
            if has_units(message):
                example.units.append(self._units(row, message))
                example.speaker_embeddings.append(self._speaker(row, message))
        return example

    def _load(self, example: Example, item: Mapping[str, Any]) -> None:
        """Add one audio to the example."""
        assert self.requirements.sample_rate is not None
        parsed = AudioReference.parse(item["audio"], example.row["folder"])
        key = str(parsed)
        cached = self._cache.get(key) if self._cache is not None else None
        if cached is None:
            try:
                audio = decode_audio(parsed)
                check_stated_sec(item, audio.duration_sec)
            except (AudioError, RowProblem) as error:
                raise self._broken(example.row, error.reason, str(error)) from None
            cached = audio.resampled(self.requirements.sample_rate), audio.remarks
            if self._cache is not None:
                self._cache[key] = cached
        example.waveforms.append(cached[0])
        example.remarks += [(key, remark) for remark in cached[1]]

    def _messages(self, row: Row) -> Messages:
        """The messages to encode, without audio where the stage has no encoder."""
        if self.requirements.sample_rate is not None:
            return row["messages"]
        try:
            return as_text(row["messages"])
        except ValueError as error:
            raise self._broken(row, "no transcript", str(error)) from None

    def _units(self, row: Row, message: Mapping[str, Any]) -> list[int]:
        frame = self.requirements.codebooks_per_frame
        try:
            units = message_units(message, self.requirements.num_units)
            if len(units) % frame:
                raise ValueError(f"speech_units: got {len(units)}; the vocoder makes a frame of {frame} of them")
        except ValueError as error:
            raise self._broken(row, "wrong units", str(error)) from None
        return units

    def _speaker(self, row: Row, message: Mapping[str, Any]) -> np.ndarray | None:
        try:
            items = content_items(message["content"])
            given = next((item["spk_emb"] for item in items if item.get("spk_emb")), None)
            return parse_speaker(given, row["folder"])
        except ValueError as error:
            raise self._broken(row, "wrong speaker embedding", str(error)) from None

    @staticmethod
    def _broken(row: Row, reason: str, message: str) -> ManifestError:
        return ManifestError(row["manifest"], row["line"], reason, message)


def spoken_text(item: Mapping[str, Any]) -> str:
    """What an item's audio says: its `transcript`, else its `text`."""
    return (item.get("transcript") or item.get("text") or "").strip()


def user_audio_items(messages: Messages) -> Iterable[Mapping[str, Any]]:
    """The user's items with audio, in order of appearance: one for each placeholder of the encoded dialogue."""
    for message in messages:
        if message["role"] == "user":
            yield from (item for item in content_items(message["content"]) if item.get("audio"))


def as_text(messages: Messages) -> list[dict[str, Any]]:
    """The messages with the words of the user's audio in its place, `audio_text` or else `transcript`.

    Raises:
        ValueError: an audio has neither.
    """
    written = []
    for message in messages:
        items = []
        for item in content_items(message["content"]):
            if message["role"] == "user" and item.get("audio"):
                words = item.get("audio_text") or item.get("transcript")
                if not words:
                    raise ValueError(f"audio {item['audio']!r}: has no transcript, which a stage without encoder reads")
                item = {**item, "audio": "", "audio_text": words}
            items.append(item)
        written.append({**message, "content": items})
    return written
