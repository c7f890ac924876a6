"""Augmentation: each part does what its figure says, by measurement; draws repeat and are checked."""

from __future__ import annotations

import random

import numpy as np
import pytest
import soundfile as sf

from lightning_s2s.construction.speech.augmentation import (
    Augmentation,
    ClipAugmentation,
    augment,
    limit_band,
    make_noise,
    reverberate,
    room_response,
)

RATE = 16_000
SPEECH = (0.1 * np.random.default_rng(0).standard_normal(RATE) * (np.arange(RATE) % 4000 < 2000)).astype(np.float32)
"""Bursts of noise, a second long."""


def level_db(waveform: np.ndarray) -> float:
    return 10 * np.log10((waveform.astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("noise", ["white", "pink"])
@pytest.mark.parametrize("snr_db", [20.0, 3.0])
def test_noise_lies_as_far_below_the_speech_as_drawn(noise, snr_db):
    noisy = augment(SPEECH, RATE, ClipAugmentation(noise=noise, snr_db=snr_db, seed=3))
    assert level_db(SPEECH) - level_db(noisy - SPEECH) == pytest.approx(snr_db, abs=0.05)


def test_pink_noise_falls_by_3_db_an_octave():
    power = np.abs(np.fft.rfft(make_noise("pink", 1 << 18, RATE, np.random.default_rng(0)))) ** 2
    octaves = [power[1 << k : 1 << (k + 1)].mean() for k in range(10, 16)]
    steps = 10 * np.log10(np.array(octaves[1:]) / octaves[:-1])
    np.testing.assert_allclose(steps, -3.01, atol=0.4)


def test_a_noise_file_is_resampled_and_repeated_from_a_drawn_place(tmp_path):
    ramp = np.linspace(0.1, 0.5, 4000, dtype=np.float32)
    sf.write(tmp_path / "hum.wav", np.stack([ramp, ramp], 1), 8000, subtype="FLOAT")
    first, second = (make_noise(str(tmp_path / "hum.wav"), RATE, RATE, np.random.default_rng(s)) for s in (0, 1))
    assert len(first) == RATE and first[0] != second[0]
    np.testing.assert_allclose(first[:8000], first[8000:])  # half a second, twice
    assert np.corrcoef(np.sort(first[:8000]), np.linspace(0.1, 0.5, 8000))[0, 1] > 0.99


def test_a_room_decays_by_60_db_in_its_time():
    response = room_response(0.5, RATE, np.random.default_rng(0))
    assert response[0] == 1.0 and (response[1:] ** 2).sum() == pytest.approx(1.0)
    remaining = 10 * np.log10(np.cumsum(response[:0:-1] ** 2)[::-1])
    assert remaining[4000] - remaining[0] == pytest.approx(-30, abs=1.5)  # half the time, half the decibels


def test_a_room_keeps_level_and_length_and_rings_on():
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    wet = reverberate(click, room_response(0.3, RATE, np.random.default_rng(0)))
    assert len(wet) == RATE and level_db(wet) == pytest.approx(level_db(click), abs=0.01)
    assert (
        not wet[:100].round(9).any() and np.abs(wet[101:2000]).max() > 0 and wet[100] == pytest.approx(0.354, abs=0.01)
    )


def test_a_band():
    time = np.arange(RATE) / RATE
    low, middle, high = (np.sin(2 * np.pi * f * time) for f in (100, 1000, 6000))
    np.testing.assert_allclose(limit_band(low + middle + high, RATE, 300, 3400), middle, atol=1e-6)
    np.testing.assert_allclose(limit_band(low + middle + high, RATE, 0, 3400), low + middle, atol=1e-6)


def test_level_comes_last_and_is_clipped():
    assert level_db(augment(SPEECH, RATE, ClipAugmentation(level_db=-6.0))) == pytest.approx(
        level_db(SPEECH) - 6, abs=1e-3
    )
    loud = augment(SPEECH, RATE, ClipAugmentation(noise="white", snr_db=0.0, level_db=30.0))
    assert np.abs(loud).max() == 1.0 and loud.dtype == np.float32


def test_draws_repeat_and_stay_in_their_ranges():
    augmentation = Augmentation(
        room_sec=(0.1, 0.4), noise=["white"], bands_hz=[(300, 3400), (0, 4000)], level_db=(-9, 0)
    )
    drawn = [augmentation.draw("train", random.Random(seed)) for seed in range(200)]
    assert drawn == [augmentation.draw("train", random.Random(seed)) for seed in range(200)]
    assert all(0.1 <= d.room_sec <= 0.4 and 5 <= d.snr_db <= 30 and -9 <= d.level_db <= 0 for d in drawn)
    assert {d.band_hz for d in drawn} == {(300, 3400), (0, 4000)}
    assert augmentation.draw("test", random.Random(0)) is None
    first = drawn[0]
    assert np.array_equal(augment(SPEECH, RATE, first), augment(SPEECH, RATE, first))


def test_a_share_stays_clean():
    some = Augmentation(level_db=(-3, 0), share=0.25)
    assert sum(some.draw("train", random.Random(seed)) is not None for seed in range(1000)) == pytest.approx(
        250, abs=40
    )


def test_a_row_names_what_was_done_and_no_folder(tmp_path):
    sf.write(tmp_path / "hum.wav", SPEECH, RATE)
    drawn = Augmentation(noise=[str(tmp_path)]).draw("train", random.Random(0))
    assert drawn.noise == str(tmp_path / "hum.wav")
    assert drawn.figures() == {"noise": "hum.wav", "snr_db": drawn.snr_db}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name at least one of room_sec, noise"),
        ({"level_db": (3, -3)}, r"level_db: must be \[lowest, highest\]; got \[3, -3\]"),
        ({"room_sec": (-1, 0)}, r"room_sec\[0\] must be between 0 and 60; got -1"),
        ({"bands_hz": [(300, 3400), (5, 1)]}, "bands_hz 1: must be"),
        ({"level_db": (0, 1), "share": 0}, "share must be above 0 and at most 1; got 0"),
        ({"noise": ["blue"]}, "noise 'blue': neither white nor pink, nor a sound file .* or a folder with some"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=f"(?i)^augmentation: .*{message}"):
        Augmentation(**options)


def test_a_noise_file_that_is_none(tmp_path):
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    drawn = Augmentation(noise=[str(tmp_path)]).draw("train", random.Random(0))
    with pytest.raises(ValueError, match="augmentation: noise: .*torn.wav"):
        augment(SPEECH, RATE, drawn)
