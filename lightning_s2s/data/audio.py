"""Audio references of a manifest -> mono float32 waveforms at the requested sample rate.

A reference is one of
- `speech.wav`: a file in a format of soundfile (wav, flac, ogg, opus, mp3, ...);
- `speech.wav:start:frames`: a part of it, in samples of the file;
- `archive.zip:offset:bytes`: such a file inside an uncompressed zip archive, by its byte range.
Relative paths are relative to the manifest's folder.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_s2s.data.downmix import mix_down
from lightning_s2s.data.paths import MissingFileError, exists, regular_file
from lightning_s2s.data.sound_files import LARGEST_IN_MEMORY, complete_source

log = logging.getLogger(__name__)

Waveform = NDArray[np.float32]

FORMS = "FILE, FILE:start:frames or ARCHIVE.zip:offset:bytes"
FORMATS = "wav, flac, ogg, opus or mp3"
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
CLIPPED = "clipped audio"
CLIPPING_LEVEL = 0.999
CLIPPING_SHARE = 1e-3
"""Audio with more than this share of samples at full scale counts as clipped."""

LONGEST_SEC = 7200
MOST_SAMPLES = 2**28
"""Limits of one audio: duration in seconds, and samples of all channels (1 GiB as float32)."""
LOWEST_RATE, HIGHEST_RATE = 1000, 768_000
"""Allowed sample rates in Hz."""
LOUDEST = 16.0
"""Peak above which floats can't be a waveform with a full scale of 1."""

_INTEGERS = [np.dtype(kind) for kind in (np.int8, np.int16, np.int32, np.uint8)]
_MOST_DIGITS = 30
_RANGE = re.compile(r"(?P<path>.+):(?P<start>[0-9]+):(?P<length>[0-9]+)", re.DOTALL)
_warned: set[str] = set()


class AudioError(ValueError):
    """Audio that can't be used.

    Attributes:
        reason: Short name of the problem for counting, such as "missing audio".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class AudioReference:
    """A file, or a part of it.

    Attributes:
        path: The file.
        start: First sample, or first byte in an archive.
        length: Number of samples or bytes; None for a whole file.
        given: The reference as it was written, for messages.
    """

    path: Path
    start: int = 0
    length: int | None = None
    given: str = field(default="", compare=False)

    @classmethod
    def parse(cls, reference: str, folder: str | Path = ".") -> AudioReference:
        """Parse one of the three forms, relative to `folder`.

        Raises:
            AudioError: An archive lacks offset and bytes.
        """
        match = _RANGE.fullmatch(reference)
        path = Path(folder) / (match["path"] if match else reference)
        if match:
            # Longer numbers exceed any file, and would be slow to parse.
            start, length = (int(match[name][:_MOST_DIGITS]) for name in ("start", "length"))
            return cls(path, start, length, reference)
        if path.suffix.lower() == ".zip":
            raise AudioError("unreadable audio", f"audio {reference!r}: an archive needs a place; allowed: {FORMS}")
        return cls(path, given=reference)

    @property
    def in_archive(self) -> bool:
        """Whether start and length count bytes of a zip archive."""
        return self.length is not None and self.path.suffix.lower() == ".zip"

    def found(self) -> AudioReference:
        """The reference itself, or the file that is literally named `take:12:30` if there is no file `take`.

        Raises:
            AudioError: Neither exists.
        """
        try:
            regular_file(self.path, self.given)
        except MissingFileError as error:
            literal = Path(str(self))
            if self.length is not None and exists(literal):
                return AudioReference(literal, given=self.given)
            raise AudioError("missing audio", f"audio {str(self)!r}: {error}") from None
        except ValueError as error:
            raise AudioError("unreadable audio", f"audio {str(self)!r}: {error}") from None
        return self

    def open(self) -> str | BinaryIO:
        """What soundfile must open: a path, or bytes of complete audio.

        Raises:
            AudioError: The file is missing, shorter than the reference, truncated or unreadable.
        """
        reference = self.found()
        try:
            if reference.in_archive:
                return complete_source(reference._member())
            status = reference.path.stat()
            if _needs_no_repair(reference.path, status.st_size, status.st_ctime_ns):
                return str(reference.path)
            return complete_source(reference.path)
        except (ValueError, OSError) as error:
            raise _unreadable(reference, error) from None

    def _member(self) -> bytes:
        """Read the bytes of the archive's member."""
        assert self.length is not None
        size = self.path.stat().st_size
        if self.start + self.length > size:
            place = f"bytes {self.start}..{self.start + self.length}"
            raise ValueError(f"{place} lie outside the archive, which has {size} bytes")
        if self.length > LARGEST_IN_MEMORY:
            raise ValueError(f"it has {self.length} bytes, at most {LARGEST_IN_MEMORY} are read of an archive")
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)

    def __str__(self) -> str:
        return str(self.path) if self.length is None else f"{self.path}:{self.start}:{self.length}"


class Remark(NamedTuple):
    """A warning about audio that can be used.

    Attributes:
        reason: Short name of the problem for counting.
        message: The rest of a sentence that begins with the audio's name.
    """

    reason: str
    message: str


@dataclass(frozen=True)
class DecodedAudio:
    """Audio at the sample rate of its file, mixed down to mono.

    Attributes:
        waveform: (T,) float32 in [-1, 1].
        sample_rate: Sample rate in Hz.
        remarks: Warnings that it is clipped (more than `CLIPPING_SHARE` of the samples are at full scale), or that its
            channels cancel.
    """

    waveform: Waveform
    sample_rate: int
    remarks: tuple[Remark, ...] = ()

    @property
    def duration_sec(self) -> float:
        return len(self.waveform) / self.sample_rate

    def resampled(self, sample_rate: int) -> Waveform:
        """(T',) float32 in [-1, 1] at `sample_rate` Hz."""
        if sample_rate == self.sample_rate:
            return self.waveform
        import soxr

        return np.clip(soxr.resample(self.waveform, self.sample_rate, sample_rate), -1.0, 1.0)


def load_audio(reference: str, folder: str | Path, sample_rate: int) -> Waveform:
    """Load audio of any form as mono at `sample_rate` Hz; channels are mixed by `mix_down`.

    Logs one warning per file if the audio is clipped or its channels cancel.

    Args:
        reference: One of the three forms described above.
        folder: Base folder of relative paths, the manifest's folder.
        sample_rate: Sample rate in Hz.
    Returns:
        (T,) float32 in [-1, 1].
    Raises:
        ValueError: The audio is missing, unreadable, truncated, empty, too long or not finite.
    """
    parsed = AudioReference.parse(reference, folder)
    audio = decode_audio(parsed)
    if audio.remarks and str(parsed) not in _warned:
        _warned.add(str(parsed))
        for remark in audio.remarks:
            log.warning("audio %s %s", parsed, remark.message)
    return audio.resampled(sample_rate)


def as_waveform(samples: Any) -> Waveform:
    """Convert samples given in Python to a waveform.

    Args:
        samples: (T,) array, tensor or list; floats in [-1, 1], or int8, int16, int32 or uint8 at their full scale.
    Returns:
        (T,) float32; floats are unchanged, integers are scaled to [-1, 1).
    Raises:
        ValueError: The shape or type is wrong, samples are NaN or infinite, or floats are far beyond full scale, like
            integers that were converted without scaling.
    """
    if hasattr(samples, "detach"):  # a tensor on any device; this file doesn't import torch
        samples = samples.detach().cpu()
        samples = samples.float() if samples.is_floating_point() else samples
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError) as error:
        raise ValueError(f"waveform: can't be read as an array ({error}); (T,) floats are needed") from None
    if array.ndim != 1:
        raise ValueError(f"waveform: must be (T,), mono; got shape {array.shape}")
    if not array.size:
        return np.zeros(0, np.float32)
    if isinstance(samples, list | tuple) and array.dtype.kind == "i" and np.abs(array).max() <= 1:
        array = array.astype(np.float32)  # [0, 1, 0] are meant as floats
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("waveform: holds NaN or infinite samples")
        if (peak := float(np.abs(array).max())) > LOUDEST:
            raise ValueError(
                f"waveform: reaches {peak:g}, full scale is 1; divide samples that were 16-bit integers by 32768"
            )
        return array.astype(np.float32)
    if array.dtype not in _INTEGERS:
        allowed = "floats in [-1, 1], int8, int16, int32 or uint8"
        raise ValueError(f"waveform: got samples of type {array.dtype}; allowed: {allowed}")
    middle = 128 if array.dtype == np.uint8 else 0
    scale = 2.0 ** (8 * array.dtype.itemsize - 1)
    return ((array.astype(np.float64) - middle) / scale).astype(np.float32)


def decode_audio(reference: AudioReference) -> DecodedAudio:
    """Decode and check one audio.

    Raises:
        AudioError: The audio is missing, unreadable, truncated, empty, too long or not finite.
    """
    import soundfile

    reference = reference.found()
    source = reference.open()
    start, frames = 0, None
    if reference.length is not None and not reference.in_archive:
        _check_part(reference)
        start, frames = reference.start, reference.length
    try:
        with soundfile.SoundFile(source) as file:
            frames = file.frames if frames is None else frames
            rate = file.samplerate
            _check_size(reference, frames, rate, file.channels)
            file.seek(start)
            samples = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(reference, error) from None
    if not frames:
        raise _empty(reference)
    if len(samples) < frames:
        cause = f"it breaks off: its header states {frames} samples, {len(samples)} can be decoded"
        raise _unreadable(reference, ValueError(cause))
    if not np.isfinite(samples).all():
        raise AudioError("not finite audio", f"audio {str(reference)!r}: has NaN or infinite samples")
    remarks = []
    if float((np.abs(samples) >= CLIPPING_LEVEL).mean()) > CLIPPING_SHARE:
        message = f"is clipped: more than {CLIPPING_SHARE:g} of its samples are at full scale"
        remarks.append(Remark(CLIPPED, message))
    mixed = mix_down(samples, rate)
    if mixed.problem:
        remarks.append(Remark("channels that cancel", f"has {mixed.problem}"))
    return DecodedAudio(np.clip(mixed.waveform, -1.0, 1.0), int(rate), tuple(remarks))


def audio_duration_sec(reference: AudioReference) -> float:
    """Duration without decoding, from the header or by counting frames.

    Raises:
        AudioError: The audio is missing, unreadable, truncated, empty or too long.
    """
    reference = reference.found()
    if reference.length is not None and not reference.in_archive:
        rate, channels = _check_part(reference)
        frames = reference.length
    else:
        frames, rate, channels = _header(reference)
    if not frames:
        raise _empty(reference)
    _check_size(reference, frames, rate, channels)
    return frames / rate


def _check_part(reference: AudioReference) -> tuple[int, int]:
    """Sample rate and channels of the file that contains the part; raises AudioError if it lies outside."""
    assert reference.length is not None
    status = reference.path.stat()
    whole = AudioReference(reference.path, given=reference.given)
    frames, rate, channels = _file_header(whole, status.st_size, status.st_ctime_ns)
    if reference.start + reference.length > frames:
        raise AudioError(
            "unreadable audio",
            f"audio {str(reference)!r}: samples {reference.start}..{reference.start + reference.length} lie outside "
            f"the file, which has {frames}",
        )
    return rate, channels


def _header(reference: AudioReference) -> tuple[int, int, int]:
    """Samples, sample rate and channels of a whole file."""
    import soundfile

    try:
        info = soundfile.info(reference.open())
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(reference, error) from None
    return info.frames, info.samplerate, info.channels


# Many parts usually share a few long files, which are then checked only once; a file that changed is checked again.
@lru_cache(maxsize=4096)
def _needs_no_repair(path: Path, size: int, changed_ns: int) -> bool:
    """Whether soundfile may open the file itself; raises like `complete_source`."""
    return isinstance(complete_source(path), str)


@lru_cache(maxsize=4096)
def _file_header(reference: AudioReference, size: int, changed_ns: int) -> tuple[int, int, int]:
    return _header(reference)


def _check_size(reference: AudioReference, frames: int, rate: int, channels: int) -> None:
    """Raise AudioError for audio that wouldn't fit into memory, before decoding it."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(
            "unreadable audio",
            f"audio {str(reference)!r}: its header states a sample rate of {rate} Hz; allowed: {LOWEST_RATE} to "
            f"{HIGHEST_RATE}",
        )
    if frames > LONGEST_SEC * rate or frames * channels > MOST_SAMPLES:
        raise AudioError(
            "too long audio",
            f"audio {str(reference)!r}: its header states {frames / rate:.0f} s of {channels} channel(s) at {rate} Hz; "
            f"at most {LONGEST_SEC} s and {MOST_SAMPLES} samples can be read at once; name parts of it, "
            "FILE:start:frames",
        )


def _empty(reference: AudioReference) -> AudioError:
    return AudioError("empty audio", f"audio {str(reference)!r}: has no samples")


def _unreadable(reference: AudioReference, error: Exception) -> AudioError:
    if reference.in_archive:
        detail = f"offset and bytes must cut out one stored (uncompressed) {FORMATS} file"
    else:
        detail = f"expected a {FORMATS} file"
    cause = str(error)
    if not isinstance(error, ValueError):  # errors of soundfile and the system begin with a path
        cause = getattr(error, "strerror", None) or cause.rpartition(": ")[2]
    return AudioError("unreadable audio", f"audio {str(reference)!r}: can't be read ({cause.rstrip('.')}); {detail}")
