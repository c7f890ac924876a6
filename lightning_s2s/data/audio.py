"""Audio references of a manifest -> mono float32 waveforms at the wanted sample rate.

A reference is one of
- `speech.wav`: a file that soundfile reads (wav, flac, ogg, opus, mp3, ...);
- `speech.wav:start:frames`: a part of it, in samples of the file;
- `archive.zip:offset:bytes`: such a file inside an uncompressed zip archive, by its place in the archive.
Relative paths are relative to the manifest's folder.
"""

from __future__ import annotations

import io
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Waveform = NDArray[np.float32]

FORMS = "FILE, FILE:start:frames or ARCHIVE.zip:offset:bytes"
FORMATS = "wav, flac, ogg, opus or mp3"
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
CLIPPING_LEVEL = 0.999
CLIPPING_SHARE = 1e-3
"""Audio with more than this share of samples at full scale counts as clipped."""

_RANGE = re.compile(r"(?P<path>.+):(?P<start>\d+):(?P<length>\d+)")
_warned: set[str] = set()


class AudioError(ValueError):
    """Audio that can't be used.

    Attributes:
        reason: a few words to count it under, such as "missing audio".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class AudioReference:
    """Where audio lies.

    Attributes:
        path: the file.
        start: first sample, or first byte in an archive.
        length: samples or bytes; None for a whole file.
    """

    path: Path
    start: int = 0
    length: int | None = None

    @classmethod
    def parse(cls, reference: str, folder: str | Path = ".") -> AudioReference:
        """Read one of the three forms, relative to `folder`.

        Raises:
            AudioError: an archive without offset and bytes.
        """
        match = _RANGE.fullmatch(reference)
        path = Path(folder) / (match["path"] if match else reference)
        if match:
            return cls(path, int(match["start"]), int(match["length"]))
        if path.suffix.lower() == ".zip":
            raise AudioError("unreadable audio", f"audio {reference!r}: an archive needs a place; allowed: {FORMS}")
        return cls(path)

    @property
    def in_archive(self) -> bool:
        """Whether start and length count bytes of a zip archive."""
        return self.path.suffix.lower() == ".zip"

    def open(self) -> str | io.BytesIO:
        """What soundfile reads: the path, or the bytes of the archive's member.

        Raises:
            AudioError: the file is missing or shorter than the reference says.
        """
        if not self.path.is_file():
            raise AudioError("missing audio", f"audio {str(self)!r}: there is no file {self.path}")
        if not self.in_archive:
            return str(self.path)
        assert self.length is not None
        with self.path.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.length)
        if len(content) < self.length:
            raise AudioError(
                "unreadable audio",
                f"audio {str(self)!r}: bytes {self.start}..{self.start + self.length} lie outside the archive, "
                f"which has {self.path.stat().st_size} bytes",
            )
        return io.BytesIO(content)

    def __str__(self) -> str:
        return str(self.path) if self.length is None else f"{self.path}:{self.start}:{self.length}"


@dataclass(frozen=True)
class DecodedAudio:
    """Audio as its file has it, mixed down to mono.

    Attributes:
        waveform: (T,) float32 in [-1, 1].
        sample_rate: Hz.
        clipped: whether more than `CLIPPING_SHARE` of the samples stand at full scale.
    """

    waveform: Waveform
    sample_rate: int
    clipped: bool

    def resampled(self, sample_rate: int) -> Waveform:
        """(T',) float32 in [-1, 1] at `sample_rate` Hz."""
        if sample_rate == self.sample_rate:
            return self.waveform
        import soxr

        return np.clip(soxr.resample(self.waveform, self.sample_rate, sample_rate), -1.0, 1.0)


def load_audio(reference: str, folder: str | Path, sample_rate: int) -> Waveform:
    """Audio of any form as mono at `sample_rate` Hz; channels are averaged, clipped audio is warned of once per file.

    Args:
        reference: one of the three forms of this file's head.
        folder: where relative paths start, the manifest's folder.
        sample_rate: Hz.
    Returns:
        (T,) float32 in [-1, 1].
    Raises:
        ValueError: the audio is missing, unreadable, empty or not finite.
    """
    parsed = AudioReference.parse(reference, folder)
    audio = decode_audio(parsed)
    if audio.clipped and str(parsed) not in _warned:
        _warned.add(str(parsed))
        log.warning("audio %s is clipped: more than %g of its samples are at full scale", parsed, CLIPPING_SHARE)
    return audio.resampled(sample_rate)


def decode_audio(reference: AudioReference) -> DecodedAudio:
    """Decode and check one audio.

    Raises:
        AudioError: the audio is missing, unreadable, empty or not finite.
    """
    import soundfile

    source = reference.open()
    part: dict[str, Any] = {}
    if reference.length is not None and not reference.in_archive:
        _check_part(reference)
        part = {"start": reference.start, "frames": reference.length}
    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True, **part)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(reference, error) from None
    if not len(samples):
        raise AudioError("empty audio", f"audio {str(reference)!r}: has no samples")
    if not np.isfinite(samples).all():
        raise AudioError("not finite audio", f"audio {str(reference)!r}: has NaN or infinite samples")
    clipped = float((np.abs(samples) >= CLIPPING_LEVEL).mean()) > CLIPPING_SHARE
    return DecodedAudio(np.clip(samples.mean(axis=1), -1.0, 1.0), int(rate), clipped)


def audio_duration_sec(reference: AudioReference) -> float:
    """Duration by the file's header, without decoding.

    Raises:
        AudioError: the audio is missing, unreadable or empty.
    """
    if reference.in_archive:
        frames, rate = _header(reference)
    elif reference.length is not None:
        rate = _check_part(reference)
        frames = reference.length
    else:
        frames, rate = _header(reference)
    if not frames:
        raise AudioError("empty audio", f"audio {str(reference)!r}: has no samples")
    return frames / rate


def _check_part(reference: AudioReference) -> int:
    """The sample rate of the file that the reference names a part of, which must lie inside it."""
    assert reference.length is not None
    frames, rate = _file_header(AudioReference(reference.path))
    if reference.start + reference.length > frames:
        raise AudioError(
            "unreadable audio",
            f"audio {str(reference)!r}: samples {reference.start}..{reference.start + reference.length} lie outside "
            f"the file, which has {frames}",
        )
    return rate


def _header(reference: AudioReference) -> tuple[int, int]:
    """Samples and sample rate of a whole file."""
    import soundfile

    try:
        info = soundfile.info(reference.open())
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(reference, error) from None
    return info.frames, info.samplerate


# Many parts usually share a few long files, whose headers need reading only once.
_file_header = lru_cache(maxsize=4096)(_header)


def _unreadable(reference: AudioReference, error: Exception) -> AudioError:
    detail = (
        f"offset and bytes must cut out one stored (uncompressed) {FORMATS} file"
        if reference.in_archive
        else (f"expected a {FORMATS} file")
    )
    cause = str(error).rpartition(": ")[2].rstrip(".")
    return AudioError("unreadable audio", f"audio {str(reference)!r}: can't be read ({cause}); {detail}")
