"""Conditions under which questions are asked again: another level, noise, a room, a narrow band, other questions."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from lightning_s2s.data.audio import Waveform
from lightning_s2s.data.augmentation import ClipAugmentation, augment
from lightning_s2s.data.effects import COLOURS, check_noise
from lightning_s2s.support.ranges import Range, checked


@checked
@dataclass(frozen=True)
class Condition:
    """What is done to every question before the model hears it; parts that are None leave it as it is.

    The room comes first, then noise, band and level. What is drawn depends on nothing but the condition and the
    question's id.

    Args:
        name: Name in tables; None describes the other options.
        gain_db: Decibels added to the level.
        noise: `white`, `pink` or a sound file; needs `snr_db`.
        snr_db: Level of the speech above the noise, both by root mean square.
        room_sec: Reverberation time (to -60 dB) of a room.
        band_hz: Lowest and highest frequency that is let through, such as [300, 3400], a telephone's.
        manifest: Manifest of other questions to ask, such as those of a speech engine that training never used.

    Raises:
        ValueError: Nothing is named, an option is out of range, or noise comes without its level.
    """

    name: str | None = None
    gain_db: Annotated[float, Range(-60, 60)] | None = None
    noise: str | None = None
    snr_db: Annotated[float, Range(-60, 60)] | None = None
    room_sec: Annotated[float, Range(0, 10, above=True)] | None = None
    band_hz: tuple[Annotated[float, Range(0, 384_000)], Annotated[float, Range(0, 384_000)]] | None = None
    manifest: str | None = None

    def __post_init__(self) -> None:
        if not self.describe():
            parts = "gain_db, noise and snr_db, room_sec, band_hz, manifest"
            raise ValueError(f"conditions: {self.name or 'a condition'} changes nothing; name at least one of {parts}")
        if (self.noise is None) != (self.snr_db is None):
            missing = "noise" if self.noise is None else "snr_db"
            raise ValueError(f"conditions: {self.title}: {missing} is missing; noise needs a sound and its level")
        if self.noise is not None and self.noise not in COLOURS:
            if not Path(self.noise).is_file():
                allowed = f"{', '.join(COLOURS)} or a sound file"
                raise ValueError(f"conditions: {self.title}: noise must be {allowed}; got {self.noise!r}")
            check_noise(self.noise)
        if self.band_hz is not None and not self.band_hz[0] < self.band_hz[1]:
            raise ValueError(f"conditions: {self.title}: band_hz must be [lowest, highest]; got {list(self.band_hz)}")

    @property
    def title(self) -> str:
        """Its name, or what it does."""
        return self.name or self.describe()

    def describe(self) -> str:
        """What it does, in words, such as "pink noise at 10 dB, gain -6 dB"; "" if nothing."""
        words = [Path(self.manifest).name.partition(".")[0]] if self.manifest else []
        words += [f"room of {self.room_sec:g} s"] if self.room_sec is not None else []
        if self.noise is not None and self.snr_db is not None:
            words += [f"{Path(self.noise).stem} noise at {self.snr_db:g} dB"]
        words += [f"{self.band_hz[0]:g} to {self.band_hz[1]:g} Hz"] if self.band_hz is not None else []
        words += [f"gain {self.gain_db:+g} dB"] if self.gain_db is not None else []
        return ", ".join(words)

    def check_sample_rate(self, sample_rate: int) -> None:
        """Raise ValueError for a band of which audio at this sample rate in Hz has nothing."""
        if self.band_hz is not None and self.band_hz[0] >= sample_rate / 2:
            raise ValueError(
                f"conditions: {self.title}: band_hz: got {list(self.band_hz)}; the model takes audio at {sample_rate} "
                f"Hz, with frequencies below {sample_rate / 2:g} Hz alone"
            )

    def apply(self, waveform: Waveform, sample_rate: int, identity: str) -> tuple[Waveform, float]:
        """What the model hears of a question.

        Nothing is clipped: where the result would exceed full scale, its level is lowered as a whole.

        Args:
            waveform: (T,) float32 in [-1, 1].
            sample_rate: Its sample rate in Hz.
            identity: Id of the question, which seeds the noise and the room.
        Returns:
            (T,) float32 in [-1, 1], and the decibels by which its level was lowered.
        """
        seed = zlib.crc32(json.dumps([identity, self._sound()]).encode())
        wanted_db = self.gain_db or 0.0
        drawn = ClipAugmentation(
            room_sec=self.room_sec,
            noise=self.noise,
            snr_db=self.snr_db,
            band_hz=self.band_hz,
            level_db=wanted_db,
            seed=seed,
        )
        clip = augment(waveform, sample_rate, drawn)
        return clip.waveform, wanted_db - (clip.applied.level_db or 0.0)

    def _sound(self) -> dict[str, Any]:
        """The parts that change the sound, which seed what is drawn; a name must not."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "manifest")}
