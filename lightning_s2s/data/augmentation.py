"""Augmentation of recordings: what may happen to a clip, and what was drawn for it."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from lightning_s2s.data.audio import SUFFIXES
from lightning_s2s.data.effects import (
    CODECS,
    COLOURS,
    add_noise,
    check_noise,
    headroom_db,
    limit_band,
    make_noise,
    reverberate,
    room_response,
    round_trip,
    shift_pitch,
    stretch,
)
from lightning_s2s.support import ranges
from lightning_s2s.support.ranges import checked
from lightning_s2s.support.wording import unknown_name

Limits = tuple[float, float]
"""[lowest, highest]."""

PART_OPTIONS = {
    "tempo": "tempo",
    "pitch": "pitch_semitones",
    "room": "room_sec",
    "noise": "noise",
    "band": "bands_hz",
    "codec": "codecs",
    "level": "level_db",
}
"""Parts in the order in which they happen -> the option that turns each on."""


@dataclass(frozen=True)
class ClipAugmentation:
    """What happens to one recording, drawn from an `Augmentation`; None leaves a part out.

    Attributes:
        tempo: Factor on the speaking rate.
        pitch_semitones: Semitones by which the voice is raised.
        room_sec: Reverberation time.
        noise: A colour, or a file.
        snr_db: Level of the speech above the noise.
        band_hz: [lowest, highest] frequency that is let through.
        codec: Codec of a round trip.
        compression: libsndfile's compression level for the codec.
        level_db: Decibels added in the end.
        seed: Seed of the room's response, the noise, and the place in the noise file.
    """

    tempo: float | None = None
    pitch_semitones: float | None = None
    room_sec: float | None = None
    noise: str | None = None
    snr_db: float | None = None
    band_hz: Limits | None = None
    codec: str | None = None
    compression: float | None = None
    level_db: float | None = None
    seed: int = 0

    def figures(self) -> dict[str, float | str | Limits]:
        """What a manifest's row says of it, a noise file by its name alone."""
        figures = {key: value for key, value in asdict(self).items() if value is not None and key != "seed"}
        return figures | ({"noise": Path(self.noise).name} if self.noise else {})


@checked
@dataclass
class Augmentation:
    """What may happen to a clip. A range is [lowest, highest], drawn evenly; null or an empty list turns a part off.

    Parts happen in the order of voice (tempo, pitch), room, noise, band, codec, level.

    Args:
        share: Share of the clips that is augmented, 0 to 1; the others stay as they are.
        probability: Part (tempo, pitch, room, noise, band, codec, level) -> probability that it happens to a clip that
            is augmented; 1 for a part that is not named.
        tempo: Factor on the speaking rate, at the same pitch.
        pitch_semitones: Semitones by which the voice is raised, at the same tempo; formants move too.
        room_sec: Reverberation time (to -60 dB) of a room that is simulated by decaying noise.
        noise: Colours (`white`, `pink`) and sound files or folders of them, of which one is drawn.
        snr_db: Level of the speech above the noise, both by root mean square.
        bands_hz: [lowest, highest] frequency of the channels of which one is drawn, such as [300, 3400], a telephone's.
        codecs: Codecs (`opus`, `mp3`) of which one is drawn; the clip is encoded and decoded.
        compression: libsndfile's compression level for the codec; 0.97 is about 14 kbit/s of Opus, 0.7 about 80.
        level_db: Decibels added to the result, as far as its peak stays within full scale.

    Raises:
        ValueError: A range is upside down, a name is unknown, a noise can't be read, or no part is on.
    """

    share: Annotated[float, ranges.Range(0, 1, above=True)] = 1.0
    probability: dict[str, ranges.Share] = field(default_factory=dict)
    tempo: Annotated[Limits, ranges.Range(0.8, 1.25)] | None = None
    pitch_semitones: Annotated[Limits, ranges.Range(-4, 4)] | None = None
    room_sec: Annotated[Limits, ranges.Range(0, 60)] | None = None
    noise: list[str] = field(default_factory=list)
    snr_db: Annotated[Limits, ranges.Range(-200, 200)] = (5.0, 30.0)
    bands_hz: list[Annotated[Limits, ranges.Range(0, 1_000_000)]] = field(default_factory=list)
    codecs: list[str] = field(default_factory=list)
    compression: Annotated[Limits, ranges.Range(0, 0.99)] = (0.7, 0.97)
    level_db: Annotated[Limits, ranges.Range(-200, 200)] | None = (-12.0, 12.0)

    OPTION = "augmentation"

    def __post_init__(self) -> None:
        for name in ("tempo", "pitch_semitones", "room_sec", "snr_db", "compression", "level_db"):
            self._check_limits(name, getattr(self, name), positive=name == "room_sec")
        for number, band in enumerate(self.bands_hz):
            self._check_limits(f"bands_hz[{number}]", band, positive=True)
        if not any(getattr(self, option) for option in PART_OPTIONS.values()):
            raise ValueError(f"augmentation: does nothing; name at least one of {', '.join(PART_OPTIONS.values())}")
        for codec in self.codecs:
            if codec not in CODECS:
                raise ValueError(f"augmentation.codecs: {unknown_name('codec', codec, CODECS)}")
        for part in self.probability:
            if part not in PART_OPTIONS:
                raise ValueError(f"augmentation.probability: {unknown_name('part', part, PART_OPTIONS)}")
            if not getattr(self, PART_OPTIONS[part]):
                raise ValueError(f"augmentation.probability.{part}: needs {PART_OPTIONS[part]}, which is off")
        self._noises = [name for name in self.noise if name in COLOURS]
        for name in self.noise:
            if name not in COLOURS:
                self._noises += [str(path) for path in find_sounds(Path(name))]

    @staticmethod
    def _check_limits(name: str, limits: Limits | None, positive: bool) -> None:
        if limits is not None and (limits[0] > limits[1] or (positive and limits[1] <= 0)):
            raise ValueError(f"augmentation.{name}: must be [lowest, highest]; got {list(limits)}")

    def check_sample_rate(self, sample_rate: int) -> None:
        """Raise ValueError for a band of which audio at this sample rate in Hz has nothing."""
        for number, band in enumerate(self.bands_hz):
            if band[0] >= sample_rate / 2:
                raise ValueError(
                    f"augmentation.bands_hz[{number}]: got {list(band)}; audio at {sample_rate} Hz has frequencies "
                    f"below {sample_rate / 2:g} Hz alone"
                )

    @property
    def longest_stretch(self) -> float:
        """Largest factor by which a clip becomes longer, at least 1."""
        return max(1.0, 1 / self.tempo[0]) if self.tempo else 1.0

    def draw(self, rng: random.Random) -> ClipAugmentation | None:
        """What happens to one clip, None where it stays as it is; the same `rng` gives the same."""
        if rng.random() >= self.share:
            return None
        on = {part: rng.random() < self.probability.get(part, 1.0) for part in PART_OPTIONS}
        noise = rng.choice(self._noises) if self._noises and on["noise"] else None
        band = rng.choice(self.bands_hz) if self.bands_hz and on["band"] else None
        codec = rng.choice(self.codecs) if self.codecs and on["codec"] else None
        drawn = ClipAugmentation(
            tempo=_between(self.tempo, rng) if on["tempo"] else None,
            pitch_semitones=_between(self.pitch_semitones, rng) if on["pitch"] else None,
            room_sec=_between(self.room_sec, rng) if on["room"] else None,
            noise=noise,
            snr_db=_between(self.snr_db, rng) if noise else None,
            band_hz=band and (band[0], band[1]),  # what YAML gives is a list
            codec=codec,
            compression=_between(self.compression, rng) if codec else None,
            level_db=_between(self.level_db, rng) if on["level"] else None,
            seed=rng.getrandbits(32),
        )
        return drawn if drawn.figures() else None


@checked
@dataclass
class CorpusAugmentation(Augmentation):
    """What may happen to the recordings of some splits of a corpus; see `Augmentation`. The level stays by default.

    Args:
        splits: Splits whose questions are augmented.
    """

    level_db: Annotated[Limits, ranges.Range(-200, 200)] | None = None
    splits: list[str] = field(default_factory=lambda: ["train"])


class AugmentedClip(NamedTuple):
    """A clip, and what happened to it.

    Attributes:
        waveform: (T,) float32 in [-1, 1].
        applied: What was drawn, with the `level_db` that was possible without clipping.
    """

    waveform: np.ndarray
    applied: ClipAugmentation


def augment(waveform: np.ndarray, sample_rate: int, drawn: ClipAugmentation) -> AugmentedClip:
    """Apply what was drawn to (T,) float32 in [-1, 1].

    Nothing is ever clipped: where the result would exceed full scale, its level is lowered as a whole, and `level_db`
    of what was applied is lower than drawn. Only `tempo` changes the length; a room's tail behind the end is cut.

    Raises:
        ValueError: The noise's file can't be read.
    """
    rng = np.random.default_rng(drawn.seed)
    if drawn.tempo is not None:
        waveform = stretch(waveform, max(1, round(len(waveform) / drawn.tempo)), sample_rate)
    if drawn.pitch_semitones is not None:
        waveform = shift_pitch(waveform, drawn.pitch_semitones, sample_rate)
    if drawn.room_sec:
        waveform = reverberate(waveform, room_response(drawn.room_sec, sample_rate, rng))
    if drawn.noise is not None and drawn.snr_db is not None:
        waveform = add_noise(waveform, make_noise(drawn.noise, len(waveform), sample_rate, rng), drawn.snr_db)
    if drawn.band_hz is not None:
        waveform = limit_band(waveform, sample_rate, *drawn.band_hz)
    wanted_db, level_db = drawn.level_db or 0.0, 0.0
    if drawn.codec is not None and drawn.compression is not None:
        level_db = min(0.0, headroom_db(waveform))  # encoders clip
        waveform = round_trip(waveform * _gain(level_db), sample_rate, drawn.codec, drawn.compression)
    rest_db = min(wanted_db - level_db, headroom_db(waveform))
    level_db += rest_db
    applied = drawn if level_db >= wanted_db - 1e-6 else replace(drawn, level_db=round(level_db, 3))
    return AugmentedClip(np.clip(waveform * _gain(rest_db), -1.0, 1.0).astype(np.float32), applied)


def find_sounds(path: Path) -> list[Path]:
    """A sound file, or those of a folder and the folders in it, sorted; their headers are read.

    Raises:
        ValueError: There are none, or one can't be read.
    """
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    sounds = [sound for sound in paths if sound.suffix.lower() in SUFFIXES and sound.is_file()]
    if not sounds:
        raise ValueError(
            f"augmentation.noise: {str(path)!r}: neither {' nor '.join(COLOURS)}, nor a sound file "
            f"({', '.join(sorted(SUFFIXES))}) or a folder with some"
        )
    for sound in sounds:
        check_noise(str(sound))
    return sounds


def _between(limits: Limits | None, rng: random.Random) -> float | None:
    return None if limits is None else round(rng.uniform(*limits), 3)


def _gain(decibels: float) -> float:
    return float(10 ** (decibels / 20))
