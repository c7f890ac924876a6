"""What happens to a recording on its way: room, noise, a narrow band, a level; all of it drawn for each question."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile as sf
import soxr

from lightning_s2s.data.audio import SUFFIXES
from lightning_s2s.support import ranges
from lightning_s2s.support.ranges import checked

COLOURS = ("white", "pink")
Range = tuple[float, float]


@dataclass(frozen=True)
class ClipAugmentation:
    """What happens to one recording, drawn from an `Augmentation`; None leaves a part out.

    Attributes:
        room_sec: Reverberation time.
        noise: A colour, or a file.
        snr_db: Level of the speech above the noise.
        band_hz: [lowest, highest] frequency that is let through.
        level_db: Decibels added in the end.
        seed: Seed of the room's response, the noise, and the place in the noise file.
    """

    room_sec: float | None = None
    noise: str | None = None
    snr_db: float | None = None
    band_hz: Range | None = None
    level_db: float | None = None
    seed: int = 0

    def figures(self) -> dict[str, float | str | Range]:
        """What a manifest's row says of it, a noise file by its name alone."""
        figures = {key: value for key, value in asdict(self).items() if value is not None and key != "seed"}
        return figures | ({"noise": Path(self.noise).name} if self.noise else {})


@checked
@dataclass
class Augmentation:
    """Each part is off unless it is named; a range is [lowest, highest], drawn evenly.

    Args:
        splits: Splits whose questions are augmented.
        share: Share of their questions that is augmented, 0 to 1; the others stay as they were spoken.
        room_sec: Reverberation time (to -60 dB) of a room that is simulated by decaying noise.
        noise: Colours (`white`, `pink`) and sound files or folders of them, of which one is drawn.
        snr_db: Level of the speech above the noise, both by root mean square.
        bands_hz: [lowest, highest] frequency of the channels of which one is drawn, such as [300, 3400], a telephone's.
        level_db: Decibels added to the result.

    Raises:
        ValueError: a range is upside down, a noise is no colour and no sound file, or nothing is named.
    """

    splits: list[str] = field(default_factory=lambda: ["train"])
    share: Annotated[float, ranges.Range(0, 1, above=True)] = 1.0
    room_sec: Annotated[Range, ranges.Range(0, 60)] | None = None
    noise: list[str] = field(default_factory=list)
    snr_db: Annotated[Range, ranges.Range(-200, 200)] = (5.0, 30.0)
    bands_hz: list[Annotated[Range, ranges.Range(0, 1_000_000)]] = field(default_factory=list)
    level_db: Annotated[Range, ranges.Range(-200, 200)] | None = None

    def __post_init__(self) -> None:
        ranges = {"room_sec": self.room_sec, "snr_db": self.snr_db, "level_db": self.level_db}
        ranges |= {f"bands_hz {number}": band for number, band in enumerate(self.bands_hz)}
        for name, limits in ranges.items():
            positive = name.startswith(("room", "bands"))
            if limits is not None and (limits[0] > limits[1] or (positive and limits[1] <= 0)):
                raise ValueError(f"augmentation: {name}: must be [lowest, highest]; got {list(limits)}")
        if not (self.room_sec or self.noise or self.bands_hz or self.level_db):
            raise ValueError("augmentation: name at least one of room_sec, noise, bands_hz, level_db")
        self._noises = [name for name in self.noise if name in COLOURS]
        for name in self.noise:
            if name not in COLOURS:
                self._noises += [str(path) for path in find_sounds(Path(name))]

    def draw(self, split: str, rng: random.Random) -> ClipAugmentation | None:
        """What happens to one question, None where it stays as it is; the same `rng` gives the same."""
        if split not in self.splits or rng.random() >= self.share:
            return None
        noise = rng.choice(self._noises) if self._noises else None
        band = rng.choice(self.bands_hz) if self.bands_hz else None
        return ClipAugmentation(
            room_sec=_between(self.room_sec, rng),
            noise=noise,
            snr_db=_between(self.snr_db, rng) if noise else None,
            band_hz=band and (band[0], band[1]),  # what YAML gives is a list
            level_db=_between(self.level_db, rng),
            seed=rng.getrandbits(32),
        )


def augment(waveform: np.ndarray, sample_rate: int, drawn: ClipAugmentation) -> np.ndarray:
    """(T,) float32 -> (T,) float32 in [-1, 1]: room, noise, band, level, in this order.

    The room's tail behind the end is cut, so that durations stay.

    Raises:
        ValueError: the noise's file can't be read.
    """
    rng = np.random.default_rng(drawn.seed)
    if drawn.room_sec:
        waveform = reverberate(waveform, room_response(drawn.room_sec, sample_rate, rng))
    if drawn.noise is not None and drawn.snr_db is not None:
        noise = make_noise(drawn.noise, len(waveform), sample_rate, rng)
        gain = _level(waveform) / max(1e-9, _level(noise)) * 10 ** (-drawn.snr_db / 20)
        waveform = waveform + gain * noise
    if drawn.band_hz is not None:
        waveform = limit_band(waveform, sample_rate, *drawn.band_hz)
    if drawn.level_db is not None:
        waveform = waveform * 10 ** (drawn.level_db / 20)
    return np.clip(waveform, -1.0, 1.0).astype(np.float32)


def room_response(reverberation_sec: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Impulse response (L,) of a diffuse room: the direct sound, and noise that has decayed by 60 dB in that time.

    Both have the same energy. Source: Polack's model, after Jot et al., AES 1997.
    """
    length = max(2, round(reverberation_sec * sample_rate))
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[0] = 0.0
    response = tail / np.sqrt((tail**2).sum())
    response[0] = 1.0
    return response


def reverberate(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """(T,) and (L,) -> (T,): the convolution up to the waveform's end, with the waveform's own level."""
    size = 1 << (len(waveform) + len(response) - 2).bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
    return wet * (_level(waveform) / max(1e-9, _level(wet)))


def make_noise(name: str, length: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) of a colour, or of a file from a drawn place on, repeated where it is too short."""
    if name == "white":
        return rng.standard_normal(length)
    if name == "pink":
        spectrum = np.fft.rfft(rng.standard_normal(length))
        return np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), length)
    try:
        sound, its_rate = sf.read(name, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise ValueError(f"augmentation: noise: {name}: {error}") from None
    sound = soxr.resample(sound.mean(1), its_rate, sample_rate)
    if not len(sound):
        raise ValueError(f"augmentation: noise: {name}: holds no sound")
    return np.take(sound, rng.integers(len(sound)) + np.arange(length), mode="wrap")


def limit_band(waveform: np.ndarray, sample_rate: int, low_hz: float, high_hz: float) -> np.ndarray:
    """(T,) -> (T,) without what lies below `low_hz` and above `high_hz`; each edge is a twentieth of it wide."""
    frequencies = np.fft.rfftfreq(len(waveform), 1 / sample_rate)
    rise = np.clip((frequencies - 0.95 * low_hz) / (0.05 * low_hz), 0, 1) if low_hz > 0 else 1.0
    fall = np.clip((1.05 * high_hz - frequencies) / (0.05 * high_hz), 0, 1)
    return np.fft.irfft(np.fft.rfft(waveform) * rise * fall, len(waveform))


def find_sounds(path: Path) -> list[Path]:
    """A sound file, or those of a folder and the folders in it, sorted.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    sounds = [sound for sound in paths if sound.suffix.lower() in SUFFIXES and sound.is_file()]
    if not sounds:
        raise ValueError(
            f"augmentation: noise {str(path)!r}: neither {' nor '.join(COLOURS)}, nor a sound file "
            f"({', '.join(sorted(SUFFIXES))}) or a folder with some"
        )
    return sounds


def _between(limits: Range | None, rng: random.Random) -> float | None:
    return None if limits is None else round(rng.uniform(*limits), 3)


def _level(waveform: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt((waveform.astype(np.float64) ** 2).mean()))
