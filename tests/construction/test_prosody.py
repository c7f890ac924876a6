"""Emotion by signal processing: what WORLD changes in a voice."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lightning_s2s.construction.speech.prosody import Prosody, analyse, render


def test_jitter_stays_within_its_amount():
    base = Prosody(1.2, 1.5, 1.1, 3.0, 2.0, 0.1)
    assert base.jitter(random.Random(1), 0.0) == base
    moved = base.jitter(random.Random(1), 0.5)
    assert moved == base.jitter(random.Random(1), 0.5) != base
    assert abs(moved.pitch - 1.2) <= 0.075 and abs(moved.energy_db - 3.0) <= 2.0


@pytest.fixture(scope="module")
def vowel():
    """WORLD's analysis of 0.4 s of an "ah" at 120 to 160 Hz."""
    pytest.importorskip("pyworld", reason="pyworld (extra: construction) can't be imported", exc_type=ImportError)
    time = np.arange(6400) / 16_000
    phase = 2 * np.pi * (120 * time + 50 * time**2)
    harmonics = sum(np.sin(k * phase) / (1 + abs(k * 140 - 700) / 300) for k in range(1, 40))
    return analyse((0.1 * harmonics).astype(np.float32), 16_000)


def pitch_of(waveform: np.ndarray) -> np.ndarray:
    pitch = analyse(waveform, 16_000)[0]
    return pitch[pitch > 0]


def level_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10((waveform**2).mean()))


def test_neutral_prosody_keeps_the_voice(vowel):
    sound = render(vowel, 16_000, Prosody())
    assert len(sound) == pytest.approx(6400, abs=160)
    assert np.median(pitch_of(sound)) == pytest.approx(140, rel=0.05)


def test_prosody_changes_what_it_says(vowel):
    neutral = render(vowel, 16_000, Prosody())
    higher = pitch_of(render(vowel, 16_000, Prosody(pitch=1.3)))
    assert np.exp(np.log(higher).mean() - np.log(pitch_of(neutral)).mean()) == pytest.approx(1.3, rel=0.03)
    flat = pitch_of(render(vowel, 16_000, Prosody(pitch_range=0.2)))
    assert np.log(flat).std() < 0.6 * np.log(pitch_of(neutral)).std()
    assert len(render(vowel, 16_000, Prosody(tempo=0.8))) == pytest.approx(len(neutral) / 0.8, rel=0.03)
    louder = render(vowel, 16_000, Prosody(energy_db=-6.0))
    assert level_db(louder) - level_db(neutral) == pytest.approx(-6.0, abs=0.3)


def test_tilt_and_breath_change_the_colour(vowel):
    def share_above_2_khz(prosody: Prosody) -> float:
        spectrum = np.abs(np.fft.rfft(render(vowel, 16_000, prosody))) ** 2
        return float(spectrum[len(spectrum) // 4 :].sum() / spectrum.sum())

    assert share_above_2_khz(Prosody(tilt_db=10.0)) > 1.5 * share_above_2_khz(Prosody())
    breathy, clear = (render(vowel, 16_000, Prosody(breath=breath)) for breath in (0.9, 0.0))
    assert not np.allclose(breathy, clear)
