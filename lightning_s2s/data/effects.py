"""What augmentation does to a waveform: tempo, pitch, room, noise, band, codec; each a function of arrays."""

from __future__ import annotations

import io

import numpy as np

COLOURS = ("white", "pink")
"""Noises that are computed."""

_CODEC_FORMATS = {"opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}
"""Codec -> libsndfile's format and subtype."""
CODECS = tuple(_CODEC_FORMATS)
_CODEC_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
"""Sample rates that both codecs take; others pass through the highest."""

_HOP_SEC, _REACH_SEC = 0.0125, 0.008
"""WSOLA's windows are two hops long; a place is searched for within one period of a voice of 62 Hz."""


def stretch(waveform: np.ndarray, num_samples: int, sample_rate: int) -> np.ndarray:
    """(T,) -> (num_samples,): another tempo at the same pitch, by WSOLA.

    Windows overlap by half. Each is taken from near its place in the original, where it best continues the previous
    one. With `num_samples` = T, nothing changes. Source: Verhelst & Roelands, ICASSP 1993.
    """
    hop, reach = round(_HOP_SEC * sample_rate), round(_REACH_SEC * sample_rate)
    window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop)) ** 2
    pace = len(waveform) / num_samples
    padded = np.pad(waveform.astype(np.float64), (hop + reach, round((4 + pace) * hop) + 2 * reach))
    num_windows = -(-num_samples // hop) + 1
    result = np.zeros((num_windows + 1) * hop)
    start = 0
    for number in range(num_windows):
        place = round(number * hop * pace)
        if number == 0:
            start = reach
        else:
            continuation = padded[start + hop : start + 3 * hop]
            candidates = padded[place : place + 2 * reach + 2 * hop]
            energy = np.concatenate([[0.0], np.cumsum(candidates**2)])
            norm = np.sqrt(np.maximum(energy[2 * hop :] - energy[: -2 * hop], 1e-12))
            likeness = np.correlate(candidates, continuation, "valid") / norm
            start = place + (int(likeness.argmax()) if likeness.max() > 1e-6 else reach)  # silence fits anywhere
        result[number * hop : (number + 2) * hop] += window * padded[start : start + 2 * hop]
    return result[hop : hop + num_samples]


def shift_pitch(waveform: np.ndarray, semitones: float, sample_rate: int) -> np.ndarray:
    """(T,) -> (T,): another pitch at the same tempo, by resampling and `stretch`; formants move with the pitch."""
    import soxr

    ratio = 2 ** (semitones / 12)
    return stretch(soxr.resample(waveform.astype(np.float64), ratio, 1.0), len(waveform), sample_rate)


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
    return wet * (root_mean_square(waveform) / max(1e-9, root_mean_square(wet)))


def add_noise(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """(T,) and (T,) -> (T,): the noise `snr_db` below the waveform, both by root mean square."""
    gain = root_mean_square(waveform) / max(1e-9, root_mean_square(noise)) * 10 ** (-snr_db / 20)
    return waveform + gain * noise


def make_noise(name: str, length: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) of a colour, or of a file from a drawn place on, repeated where it is too short.

    Raises:
        ValueError: The file can't be read, is empty, or has samples that are not finite.
    """
    if name == "white":
        return rng.standard_normal(length)
    if name == "pink":
        spectrum = np.fft.rfft(rng.standard_normal(length))
        return np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), length)
    return _read_noise(name, length, sample_rate, rng)


def _read_noise(name: str, length: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Only the part that is needed, since recordings of noise may last hours."""
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(name) as file:
            if file.frames <= 0:
                raise ValueError(f"augmentation.noise: {name}: holds no sound")
            missing = -(-length * file.samplerate // sample_rate)
            file.seek(int(rng.integers(file.frames)))
            parts = []
            while missing > 0:
                part = file.read(missing, dtype="float32", always_2d=True).mean(1)
                parts.append(part)
                missing -= len(part)
                file.seek(0)
                if not len(part) and len(parts) > 1:
                    raise ValueError(f"augmentation.noise: {name}: breaks off")
            found = np.concatenate(parts)
            if not np.isfinite(found).all():
                raise ValueError(f"augmentation.noise: {name}: has NaN or infinite samples")
            return np.resize(soxr.resample(found, file.samplerate, sample_rate), length)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"augmentation.noise: {name}: {error}") from None


def check_noise(name: str) -> None:
    """Read a noise file's header.

    Raises:
        ValueError: It can't be read, or states no samples.
    """
    import soundfile

    try:
        frames = soundfile.info(name).frames
    except soundfile.LibsndfileError as error:
        raise ValueError(f"augmentation.noise: {name}: {error}") from None
    if frames <= 0:
        raise ValueError(f"augmentation.noise: {name}: holds no sound")


def limit_band(waveform: np.ndarray, sample_rate: int, low_hz: float, high_hz: float) -> np.ndarray:
    """(T,) -> (T,) without what lies below `low_hz` and above `high_hz`; each edge is a twentieth of it wide."""
    frequencies = np.fft.rfftfreq(len(waveform), 1 / sample_rate)
    rise = np.clip((frequencies - 0.95 * low_hz) / (0.05 * low_hz), 0, 1) if low_hz > 0 else 1.0
    fall = np.clip((1.05 * high_hz - frequencies) / (0.05 * high_hz), 0, 1)
    return np.fft.irfft(np.fft.rfft(waveform) * rise * fall, len(waveform))


def round_trip(waveform: np.ndarray, sample_rate: int, codec: str, compression: float) -> np.ndarray:
    """(T,) in [-1, 1] -> (T,): encoded and decoded by libsndfile.

    Args:
        waveform: Waveform.
        sample_rate: Sample rate in Hz; Opus and MP3 don't take every one, so others are resampled to 48 kHz and back.
        codec: One of `CODECS`.
        compression: libsndfile's compression level, 0 to below 1; the higher, the fewer bits.
    """
    import soundfile
    import soxr

    form, subtype = _CODEC_FORMATS[codec]
    rate = sample_rate if sample_rate in _CODEC_RATES else _CODEC_RATES[-1]
    buffer = io.BytesIO()
    sound = waveform if rate == sample_rate else soxr.resample(waveform, sample_rate, rate)
    soundfile.write(buffer, sound, rate, format=form, subtype=subtype, compression_level=compression)
    decoded = soundfile.read(io.BytesIO(buffer.getvalue()))[0]
    decoded = decoded if rate == sample_rate else soxr.resample(decoded, rate, sample_rate)
    return np.pad(decoded, (0, max(0, len(waveform) - len(decoded))))[: len(waveform)]


def root_mean_square(waveform: np.ndarray) -> float:
    """Of (T,) samples, computed in float64."""
    return float(np.sqrt((waveform.astype(np.float64) ** 2).mean()))


def headroom_db(waveform: np.ndarray) -> float:
    """Decibels from the peak of (T,) up to full scale; negative where the peak is beyond it."""
    return float(-20 * np.log10(max(1e-9, float(np.abs(waveform).max()))))
