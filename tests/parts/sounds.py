"""Sounds that are computed: sweeps and tones, and files of them."""

from __future__ import annotations

import io

import numpy as np
import soundfile

SAMPLE_RATE = 16_000


def sweep(duration_sec: float, low_hz: float = 200.0, high_hz: float = 800.0, rate: int = SAMPLE_RATE) -> np.ndarray:
    """(T,) float32, a sine that glides from `low_hz` to `high_hz` with a peak of 0.5."""
    time = np.arange(int(duration_sec * rate)) / rate
    phase = 2 * np.pi * (low_hz * time + (high_hz - low_hz) * time**2 / (2 * duration_sec))
    return (0.5 * np.sin(phase)).astype(np.float32)


def tone(seconds: float = 0.5, hz: float = 200.0, rate: int = SAMPLE_RATE, level: float = 0.3) -> np.ndarray:
    """(T,) float32, a sine."""
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def as_file(waveform: np.ndarray, sample_rate: int, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, **({"format": "WAV"} | options))
    return buffer.getvalue()
