"""How a line is said, in numbers: pitch, level, brightness, breath and tempo of a clip.

Of all features only `level` depends on the recording's gain. Spreads, rates and ratios say more about the manner than
about the speaker; mean pitch and brightness do not, and are there for a model to weigh them against each other.
Pitch is WORLD's (Morise et al., IEICE Trans. 2016, package pyworld); harmonicity follows Boersma, IFA Proc. 17, 1993.

T samples, F frames, one every 10 ms, K frequencies of a frame's spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SAMPLE_RATE = 16_000
"""Hz; clips of other rates are resampled."""
FEATURES = (
    # Semitones above 100 Hz; semitones; semitones from the median down to the 10th and up to the 90th percentile.
    "pitch_median", "pitch_std", "pitch_low", "pitch_high",
    # Semitones per second: of a straight line, and of all movement. Semitones: bend from frame to frame.
    "pitch_slope", "pitch_change", "pitch_jitter",
    # Share of frames; number per second; seconds.
    "voiced_share", "voiced_runs", "voiced_run_sec",
    # dB relative to full scale; dB; dB from the 10th to the 90th percentile; dB per second; dB.
    "level", "level_std", "level_range", "level_change", "shimmer",
    # Share of frames.
    "pause_share",
    # dB per octave, of voiced and of unvoiced frames; octaves above 1 kHz.
    "tilt", "tilt_std", "unvoiced_tilt", "centroid",
    # dB relative to the whole, from this frequency (Hz) to the next.
    "energy_0", "energy_500", "energy_1000", "energy_2000", "energy_4000",
    # Noise in dB relative to the harmonics: the mean of the voiced frames, and of their clear ones the 20th percentile.
    "noise_0", "noise_1000", "noise_2500", "clear_0", "clear_1000", "clear_2500",
    # Number per second; Hz, centroid of the level's spectrum; dB per second and dB, mean of mel bands.
    "syllables", "modulation", "spectral_change", "spectral_spread",
)  # fmt: skip
"""Names of what `prosody_features` measures; one that a clip does not have (the pitch of silence) is 0."""
LEVEL = FEATURES.index("level")

FRAME_SEC = 0.01
HOP = 160
WINDOW = 640
FFT_SIZE = 1024
"""Holds the window and the longest pitch period, so that autocorrelations do not wrap around."""
PITCH_HZ = (60.0, 600.0)
ACTIVE_DB = 35.0
"""Frames that lie further below the loud ones are pauses."""
SILENCE_DB = -80.0
"""Nothing counts as quieter than this, relative to full scale."""
WEAKEST_DB = -60.0
"""No band counts as weaker than this, relative to the whole spectrum."""
SHORTEST_SEC = 0.2
"""Shorter clips are filled up with silence."""
LARGEST_STEP = 3.0
"""Semitones between two frames; more is an error of an octave."""
NOISE_BANDS_HZ = ((0, 1000), (1000, 2500), (2500, 5000))
ENERGY_BANDS_HZ = ((0, 500), (500, 1000), (1000, 2000), (2000, 4000), (4000, 8001))
NUM_MELS = 16
LOWEST_MEL_HZ = 100.0
SYLLABLE_DB = 2.0
"""How far the smoothed level falls between two syllables."""
MODULATION_HZ = (1.0, 16.0)

_TINY = 1e-12
_WINDOW = np.hanning(WINDOW + 2)[1:-1]
_WINDOW_AUTOCORRELATION = np.fft.irfft(np.abs(np.fft.rfft(_WINDOW, FFT_SIZE)) ** 2)
_FREQUENCIES = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE)


def prosody_features(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """What `FEATURES` names. Silence before and after the speech does not count.

    Args:
        waveform: (T,) floats in [-1, 1]; T may be 0.
        sample_rate: Hz.
    Returns:
        (N,) float32, all finite.
    Raises:
        ValueError: `waveform` is not 1-D.
    """
    signal = np.asarray(waveform, dtype=np.float64)
    if signal.ndim != 1:
        raise ValueError(f"waveform: has shape {signal.shape}; one channel, (T,), is needed")
    if sample_rate != SAMPLE_RATE and len(signal):
        import soxr

        signal = soxr.resample(signal, sample_rate, SAMPLE_RATE)
    frames = _analyse(np.pad(signal, (0, max(0, round(SHORTEST_SEC * SAMPLE_RATE) - len(signal)))))
    features = dict.fromkeys(FEATURES, 0.0) | {"level": SILENCE_DB}
    if frames.active.any():
        features |= _level(frames) | _tempo(frames) | _spectrum(frames)
    if frames.voiced.any():
        features |= _pitch(frames) | _noise(frames)
    return np.array([features[name] for name in FEATURES], dtype=np.float32)


# --- frames ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frames:
    """The clip from its first to its last active frame.

    Attributes:
        pitch: (F,) Hz, 0 where there is none.
        power: (F, K) power spectrum.
        level: (F,) dB relative to full scale.
        active: (F,) bool, no pause.
        voiced: (F,) bool, active and with a pitch.
    """

    pitch: np.ndarray
    power: np.ndarray
    level: np.ndarray
    active: np.ndarray
    voiced: np.ndarray

    @property
    def sec(self) -> float:
        return len(self.level) * FRAME_SEC


def _analyse(signal: np.ndarray) -> _Frames:
    import pyworld

    coarse, times = pyworld.dio(
        signal, SAMPLE_RATE, f0_floor=PITCH_HZ[0], f0_ceil=PITCH_HZ[1], frame_period=1000 * FRAME_SEC
    )
    pitch = pyworld.stonemask(signal, coarse, times, SAMPLE_RATE)
    # Frame i is centred at sample i * HOP, as WORLD's are.
    padded = np.pad(signal, (WINDOW // 2, WINDOW // 2))
    cut = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(cut * _WINDOW, FFT_SIZE)) ** 2
    num_frames = min(len(pitch), len(power))
    pitch, power = pitch[:num_frames], power[:num_frames]
    level = np.maximum(_decibels(power.sum(1) * 2 / FFT_SIZE / (_WINDOW**2).sum()), SILENCE_DB)
    active = level > max(np.percentile(level, 95) - ACTIVE_DB, SILENCE_DB)
    places = np.flatnonzero(active)
    span = slice(places[0], places[-1] + 1) if len(places) else slice(0)
    return _Frames(pitch[span], power[span], level[span], active[span], ((pitch > 0) & active)[span])


def _decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, _TINY))


def _band(low_hz: float, high_hz: float) -> np.ndarray:
    """(K,) bool, which frequencies lie in [low_hz, high_hz)."""
    return np.logical_and(low_hz <= _FREQUENCIES, high_hz > _FREQUENCIES)


def _steps(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How far (F,) or (F, D) values move between neighbours that are both in the mask; 0 where there are none."""
    moved = np.abs(np.diff(values, axis=0))[mask[1:] & mask[:-1]]
    return moved if len(moved) else np.zeros((1, *values.shape[1:]))


def _bend(values: np.ndarray, mask: np.ndarray) -> float:
    """Median of how far the middle one of three neighbours in the mask lies off the line between the others."""
    bends = np.abs(np.diff(values, 2))[mask[2:] & mask[1:-1] & mask[:-2]]
    return float(np.median(bends)) / 2 if len(bends) else 0.0


# --- features --------------------------------------------------------------------------------------------------------


def _pitch(frames: _Frames) -> dict[str, float]:
    voiced = frames.voiced
    semitones = 12 * np.log2(np.maximum(frames.pitch, 1.0) / 100.0)
    values, times = semitones[voiced], np.flatnonzero(voiced) * FRAME_SEC
    low, median, high = np.percentile(values, [10, 50, 90])
    times = times - times.mean()
    starts = int(voiced[0]) + int((voiced[1:] & ~voiced[:-1]).sum())
    return {
        "pitch_median": median,
        "pitch_std": values.std(),
        "pitch_low": median - low,
        "pitch_high": high - median,
        "pitch_slope": (times * values).sum() / max((times**2).sum(), FRAME_SEC**2),
        "pitch_change": np.minimum(_steps(semitones, voiced), LARGEST_STEP).mean() / FRAME_SEC,
        "pitch_jitter": _bend(semitones, voiced),
        "shimmer": _bend(frames.level, voiced),
        "voiced_share": voiced.mean(),
        "voiced_runs": starts / frames.sec,
        "voiced_run_sec": voiced.sum() * FRAME_SEC / starts,
    }


def _level(frames: _Frames) -> dict[str, float]:
    levels = frames.level[frames.active]
    low, high = np.percentile(levels, [10, 90])
    return {
        "level": 10 * np.log10((10 ** (levels / 10)).mean()),
        "level_std": levels.std(),
        "level_range": high - low,
        "level_change": _steps(frames.level, frames.active).mean() / FRAME_SEC,
        "pause_share": 1 - frames.active.mean(),
    }


def _tempo(frames: _Frames) -> dict[str, float]:
    level = np.maximum(frames.level, frames.level.max() - ACTIVE_DB)
    spectrum = np.abs(np.fft.rfft((level - level.mean()) * np.hanning(len(level)), max(1024, len(level)))) ** 2
    frequencies = np.fft.rfftfreq(max(1024, len(level)), FRAME_SEC)
    inside = (frequencies >= MODULATION_HZ[0]) & (frequencies <= MODULATION_HZ[1])
    weight = spectrum[inside].sum()
    return {
        "syllables": _count_peaks(level) / frames.sec,
        "modulation": (spectrum * frequencies)[inside].sum() / weight if weight > _TINY else 0.0,
    }


def _count_peaks(level: np.ndarray) -> int:
    """Peaks of the level, smoothed over a tenth of a second, with a fall of `SYLLABLE_DB` behind each."""
    kernel = np.hanning(12)[1:-1]
    smooth = np.convolve(np.pad(level, (5, 4), mode="edge"), kernel / kernel.sum(), mode="valid")
    count, rising, extreme = 0, True, smooth[0]
    for value in smooth:
        if rising:
            extreme = max(extreme, value)
            if value < extreme - SYLLABLE_DB:
                count, rising, extreme = count + 1, False, value
        else:
            extreme = min(extreme, value)
            if value > extreme + SYLLABLE_DB:
                rising, extreme = True, value
    return count


@lru_cache(maxsize=1)
def _mel_bands() -> tuple[np.ndarray, np.ndarray]:
    """(K, NUM_MELS) triangles, and (NUM_MELS,) octaves of their centres around their mean."""
    mels = 2595 * np.log10(1 + _FREQUENCIES / 700)
    edges = np.linspace(2595 * np.log10(1 + LOWEST_MEL_HZ / 700), mels[-1], NUM_MELS + 2)
    distance = np.abs(mels[:, None] - edges[1:-1]) / (edges[1] - edges[0])
    octaves = np.log2(700 * (10 ** (edges[1:-1] / 2595) - 1))
    return np.maximum(0.0, 1 - distance), octaves - octaves.mean()


def _spectrum(frames: _Frames) -> dict[str, float]:
    power, active = frames.power, frames.active
    triangles, octaves = _mel_bands()
    mels = power @ triangles
    bands = np.maximum(_decibels(mels) - _decibels(mels.sum(1, keepdims=True)), WEAKEST_DB)
    tilt = bands @ octaves / (octaves**2).sum()
    voiced = frames.voiced if frames.voiced.any() else active
    unvoiced = active & ~voiced
    whole = _decibels(power[voiced].sum(1))
    features = {
        "tilt": tilt[voiced].mean(),
        "tilt_std": tilt[active].std(),
        "unvoiced_tilt": tilt[unvoiced if unvoiced.any() else voiced].mean(),
        "centroid": np.log2(max(1.0, (power[voiced] @ _FREQUENCIES).sum() / max(power[voiced].sum(), _TINY)) / 1000),
        "spectral_change": _steps(bands, active).mean() / FRAME_SEC,
        "spectral_spread": bands[active].std(0).mean(),
    }
    for low, high in ENERGY_BANDS_HZ:
        part = power[voiced][:, _band(low, high)].sum(1)
        features[f"energy_{low}"] = np.maximum(_decibels(part) - whole, WEAKEST_DB).mean()
    return features


def _noise(frames: _Frames) -> dict[str, float]:
    power, period = frames.power[frames.voiced], SAMPLE_RATE / frames.pitch[frames.voiced]
    # A lag is a whole number of samples; a pitch is not.
    lags = np.round(period).astype(int)[:, None] + np.array([-1, 0, 1])
    lags = np.clip(lags, 1, FFT_SIZE - WINDOW - 1)
    window = _WINDOW_AUTOCORRELATION[lags] / _WINDOW_AUTOCORRELATION[0]
    features = {}
    for low, high in NOISE_BANDS_HZ:
        correlation = np.fft.irfft(power * _band(low, high), axis=1)
        at_lags = np.take_along_axis(correlation, lags, 1) / window / np.maximum(correlation[:, :1], _TINY)
        harmonic = np.clip(at_lags.max(1), 0.001, 0.999)
        noise = _decibels((1 - harmonic) / harmonic)
        features[f"noise_{low}"], features[f"clear_{low}"] = noise.mean(), np.percentile(noise, 20)
    return features
