"""Emotion carried by the voice: pitch, range, tempo, energy, brightness and breath, changed by WORLD.

Gives emotions to a TTS that has none. WORLD: Morise et al., IEICE Trans. 2016 (package pyworld).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Annotated

import numpy as np

from lightning_s2s.support.ranges import Range, checked

Analysis = tuple[np.ndarray, np.ndarray, np.ndarray]
"""WORLD's pitch (F,), spectral envelope (F, bins) and aperiodicity (F, bins), a frame every 5 ms."""


@checked
@dataclass(frozen=True)
class Prosody:
    """How a neutral rendering is changed.

    Args:
        pitch: Factor on the mean fundamental frequency.
        pitch_range: Factor on the excursions of log pitch around its mean.
        tempo: Factor on the speaking rate.
        energy_db: Decibels added to the level.
        tilt_db: Decibels added at 8 kHz relative to 0 Hz, linear in between; pressed voices are brighter.
        breath: Share of noise mixed into the voiced parts, 0 to 1.
    """

    pitch: Annotated[float, Range(0, 10, above=True)] = 1.0
    pitch_range: Annotated[float, Range(-1, 10)] = 1.0
    tempo: Annotated[float, Range(0, 10, above=True)] = 1.0
    energy_db: Annotated[float, Range(-100, 100)] = 0.0
    tilt_db: Annotated[float, Range(-100, 100)] = 0.0
    breath: Annotated[float, Range(-0.2, 1.2)] = 0.0

    def jitter(self, rng: random.Random, amount: float) -> Prosody:
        """Every value moved by up to `amount` of its usual spread, so that no two speakers do the same."""
        spread = Prosody(0.15, 0.4, 0.15, 4.0, 6.0, 0.2)
        return replace(
            self,
            **{
                item.name: getattr(self, item.name) + rng.uniform(-amount, amount) * getattr(spread, item.name)
                for item in fields(self)
            },
        )


def analyse(waveform: np.ndarray, sample_rate: int) -> Analysis:
    """(T,) -> WORLD's analysis."""
    import pyworld

    signal = waveform.astype(np.float64)
    coarse, times = pyworld.dio(signal, sample_rate)
    pitch = pyworld.stonemask(signal, coarse, times, sample_rate)
    return (
        pitch,
        pyworld.cheaptrick(signal, pitch, times, sample_rate),
        pyworld.d4c(signal, pitch, times, sample_rate),
    )


def render(analysis: Analysis, sample_rate: int, prosody: Prosody) -> np.ndarray:
    """What `analyse` gave, with the prosody changed -> (T,) float32, limited to [-1, 1]."""
    import pyworld

    pitch, envelope, aperiodicity = analysis
    voiced = pitch > 0
    if voiced.any():
        mean = np.exp(np.log(pitch[voiced]).mean())
        pitch = np.where(voiced, mean * prosody.pitch * (np.maximum(pitch, 1.0) / mean) ** prosody.pitch_range, 0.0)
    bins = np.linspace(0, sample_rate / 2, envelope.shape[1])
    gain_db = prosody.energy_db + prosody.tilt_db * np.minimum(bins / 8000.0, 1.0)
    envelope = envelope * 10 ** (gain_db / 10)
    breath = min(max(prosody.breath, 0.0), 1.0)
    aperiodicity = np.clip(aperiodicity + breath * (1 - aperiodicity), 0.0, 1.0)
    signal = pyworld.synthesize(pitch, envelope, np.ascontiguousarray(aperiodicity), sample_rate, 5.0 / prosody.tempo)
    return np.clip(signal, -1.0, 1.0).astype(np.float32)
