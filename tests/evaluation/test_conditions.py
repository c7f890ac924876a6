"""What a condition does to a question, measured; and conditions that make no sense."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from lightning_s2s.evaluation.conditions import Condition
from parts.paths import EXPERIMENTS
from parts.sounds import tone

RATE = 16_000
VOICE = tone(1.0, 1000)  # peak 0.3


def level_db(waveform):
    return 10 * np.log10(np.mean(np.square(waveform.astype(np.float64))))


@pytest.mark.parametrize("gain_db", [-12, -6, 6, 10])
def test_gain(gain_db):
    heard, lowered_db = Condition(gain_db=gain_db).apply(VOICE, RATE, "a")
    assert level_db(heard) - level_db(VOICE) == pytest.approx(gain_db, abs=1e-3) and lowered_db == 0
    assert heard.dtype == np.float32 and heard.shape == VOICE.shape


def test_a_gain_that_would_clip_is_limited():
    """A peak of 0.5 has room for 20 log10(1 / 0.5) = 6.02 of the 12 dB."""
    quiet = VOICE * np.float32(0.5 / np.abs(VOICE).max())
    heard, lowered_db = Condition(gain_db=12).apply(quiet, RATE, "a")
    assert np.abs(heard).max() == pytest.approx(1.0) and lowered_db == pytest.approx(12 - 6.0206, abs=1e-3)
    np.testing.assert_allclose(heard, 2 * quiet, atol=1e-6)  # the form of the wave is kept


@pytest.mark.parametrize("snr_db", [20, 10, 5])
@pytest.mark.parametrize("colour", ["white", "pink"])
def test_noise(colour, snr_db):
    heard, lowered_db = Condition(noise=colour, snr_db=snr_db).apply(VOICE, RATE, "a")
    noise = heard - VOICE
    assert lowered_db == 0 and level_db(VOICE) - level_db(noise) == pytest.approx(snr_db, abs=0.05)
    spectrum = np.abs(np.fft.rfft(noise))
    slope_db = level_db(spectrum[100:200]) - level_db(spectrum[1600:3200])  # over four octaves
    assert slope_db == pytest.approx(12 if colour == "pink" else 0, abs=1.5)


def test_noise_keeps_its_distance_when_it_would_clip():
    loud = VOICE * np.float32(1.0 / np.abs(VOICE).max())
    heard, lowered_db = Condition(noise="white", snr_db=5).apply(loud, RATE, "a")
    assert np.abs(heard).max() == pytest.approx(1.0) and lowered_db > 3
    noise = heard * 10 ** (lowered_db / 20) - loud
    assert level_db(loud) - level_db(noise) == pytest.approx(5, abs=0.05)


def test_band_and_room():
    both = VOICE + tone(1.0, 6000)
    heard, _ = Condition(band_hz=(300, 3400)).apply(both, RATE, "a")
    np.testing.assert_allclose(heard[2000:-2000], VOICE[2000:-2000], atol=1e-3)
    click = np.zeros(RATE, np.float32)
    click[0] = 0.5
    heard, _ = Condition(room_sec=0.4).apply(click, RATE, "a")
    assert np.abs(heard[1 : int(0.2 * RATE)]).max() > 1e-3 and np.abs(heard[int(0.41 * RATE) :]).max() < 1e-6


def test_what_is_drawn_depends_on_question_and_condition_alone():
    noisy = Condition(noise="white", snr_db=10)
    first, _ = noisy.apply(VOICE, RATE, "a")
    np.testing.assert_array_equal(first, Condition(name="b", noise="white", snr_db=10).apply(VOICE, RATE, "a")[0])
    assert not np.array_equal(first, noisy.apply(VOICE, RATE, "b")[0])
    assert not np.any(noisy.apply(np.zeros(100, np.float32), RATE, "a")[0])


def test_titles():
    assert Condition(gain_db=-6).title == "gain -6 dB"
    assert Condition(noise="pink", snr_db=10, gain_db=6).title == "pink noise at 10 dB, gain +6 dB"
    assert Condition(manifest="a/piper.jsonl.gz", band_hz=(300, 3400), room_sec=0.4).title == (
        "piper, room of 0.4 s, 300 to 3400 Hz"
    )
    assert Condition(name="far", room_sec=1).title == "far"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "conditions: a condition changes nothing; name at least one of gain_db, noise and snr_db, room_sec"),
        ({"name": "x"}, "conditions: x changes nothing"),
        ({"gain_db": 61}, "gain_db must be between -60 and 60; got 61"),
        ({"gain_db": float("nan")}, "gain_db must be a finite number, between -60 and 60; got nan"),
        ({"snr_db": 10, "gain_db": 1}, r"gain \+1 dB: noise is missing; noise needs a sound and its level"),
        ({"noise": "pink", "gain_db": 1}, r"gain \+1 dB: snr_db is missing; noise needs a sound and its level"),
        ({"noise": "brown", "snr_db": 10}, "noise must be white, pink or a sound file; got 'brown'"),
        ({"room_sec": 0}, "room_sec must be above 0 and at most 10; got 0"),
        ({"band_hz": [3400, 300]}, r"band_hz must be \[lowest, highest\]; got \[3400, 300\]"),
    ],
)
def test_conditions_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Condition(**options)


def test_a_noise_is_one_file(tmp_path):
    soundfile.write(tmp_path / "n.wav", VOICE, RATE)
    (tmp_path / "text.wav").write_text("no sound")
    assert Condition(noise=str(tmp_path / "n.wav"), snr_db=0).title == "n noise at 0 dB"
    with pytest.raises(ValueError, match="noise must be white, pink or a sound file; got '/"):
        Condition(noise=str(tmp_path), snr_db=0)
    with pytest.raises(ValueError, match="text.wav: "):
        Condition(noise=str(tmp_path / "text.wav"), snr_db=0)


def test_a_band_that_the_model_cannot_hear():
    Condition(band_hz=(300, 9000)).check_sample_rate(RATE)
    with pytest.raises(ValueError, match=r"band_hz: got \[8000, 9000\]; .* frequencies below 8000 Hz alone"):
        Condition(band_hz=(8000, 9000)).check_sample_rate(RATE)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("[{gian_db: 3}]", "gian_db"),
        ("[loud]", "loud"),
        ("[{gain_db: 100}]", "gain_db must be between -60 and 60; got 100"),
        ("[{gain_db: 3}, {gain_db: 3.0}]", "'gain +3 dB' is the title of several; give each a name of its own"),
        ("[{name: as recorded, gain_db: 3}]", "'as recorded' is the title of several"),
        ("[{manifest: nowhere.jsonl}]", "nowhere.jsonl"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(conditions, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conditions.yaml").write_text(f"conditions: {conditions}")
    tiny = EXPERIMENTS / "tiny"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    code, _, error = run(
        "evaluate", "answers", "--config", "conditions.yaml", "--model", "model", "--output_dir", "out",
        "--questions", tiny / "corpus" / "test.jsonl.gz", "--grammar", tiny / "grammar.yaml", "--limit", 1,
    )  # fmt: skip
    assert code in (1, 2) and message in error and len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "out").exists()
