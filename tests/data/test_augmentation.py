"""Augmentation: each part does what its figure says, by measurement; draws repeat and are checked."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf

from lightning_s2s.data.augmentation import Augmentation, ClipAugmentation, CorpusAugmentation, augment
from lightning_s2s.data.effects import limit_band, make_noise, reverberate, room_response, shift_pitch, stretch
from parts.sounds import tone

RATE = 16_000
SPEECH = (0.1 * np.random.default_rng(0).standard_normal(RATE) * (np.arange(RATE) % 4000 < 2000)).astype(np.float32)
"""Bursts of noise, a second long."""


def level_db_of(waveform: np.ndarray) -> float:
    return 10 * np.log10((waveform.astype(np.float64) ** 2).mean())


def peak_hz(waveform: np.ndarray) -> float:
    windowed = waveform * np.hanning(len(waveform))
    return float(np.abs(np.fft.rfft(windowed, 8 * len(waveform))).argmax() * RATE / (8 * len(waveform)))


@pytest.mark.parametrize("noise", ["white", "pink"])
@pytest.mark.parametrize("snr_db", [20.0, 3.0])
def test_noise_lies_as_far_below_the_speech_as_drawn(noise, snr_db):
    noisy = augment(SPEECH, RATE, ClipAugmentation(noise=noise, snr_db=snr_db, seed=3)).waveform
    assert level_db_of(SPEECH) - level_db_of(noisy - SPEECH) == pytest.approx(snr_db, abs=0.05)


def test_pink_noise_falls_by_3_db_an_octave():
    power = np.abs(np.fft.rfft(make_noise("pink", 1 << 18, RATE, np.random.default_rng(0)))) ** 2
    octaves = [power[1 << k : 1 << (k + 1)].mean() for k in range(10, 16)]
    steps = 10 * np.log10(np.array(octaves[1:]) / octaves[:-1])
    np.testing.assert_allclose(steps, -3.01, atol=0.4)


def test_a_noise_file_is_resampled_and_repeated_from_a_drawn_place(tmp_path):
    low = tone(0.5, hz=250.0, rate=8000)  # whole periods, so that its repetitions join without a seam
    sf.write(tmp_path / "hum.wav", np.stack([low, low], 1), 8000, subtype="FLOAT")
    first, second = (make_noise(str(tmp_path / "hum.wav"), RATE, RATE, np.random.default_rng(s)) for s in (0, 1))
    assert len(first) == RATE and abs(first[0] - second[0]) > 1e-3
    spectrum = np.abs(np.fft.rfft(first)) / RATE * 2
    assert spectrum.argmax() == 250 and spectrum[250] == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose(first[1000:7000], first[9000:15000], atol=1e-3)  # half a second, twice


def test_only_the_part_of_a_long_noise_that_is_needed_is_read(tmp_path):
    steps = np.repeat(np.arange(100, dtype=np.float32) / 100, 800)  # 10 s, each 0.1 s of a value of its own
    sf.write(tmp_path / "long.wav", steps, 8000, subtype="FLOAT")
    noise = make_noise(str(tmp_path / "long.wav"), 800, 8000, np.random.default_rng(0))
    start = int(np.random.default_rng(0).integers(80_000))
    np.testing.assert_array_equal(noise, steps[start : start + 800])


def test_a_room_decays_by_60_db_in_its_time():
    response = room_response(0.5, RATE, np.random.default_rng(0))
    assert response[0] == 1.0 and (response[1:] ** 2).sum() == pytest.approx(1.0)
    remaining = 10 * np.log10(np.cumsum(response[:0:-1] ** 2)[::-1])
    assert remaining[4000] - remaining[0] == pytest.approx(-30, abs=1.5)  # half the time, half the decibels


def test_a_room_keeps_level_and_length_and_rings_on():
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    wet = reverberate(click, room_response(0.3, RATE, np.random.default_rng(0)))
    assert len(wet) == RATE and level_db_of(wet) == pytest.approx(level_db_of(click), abs=0.01)
    assert (
        not wet[:100].round(9).any() and np.abs(wet[101:2000]).max() > 0 and wet[100] == pytest.approx(0.354, abs=0.01)
    )


def test_a_band():
    time = np.arange(RATE) / RATE
    low, middle, high = (np.sin(2 * np.pi * f * time) for f in (100, 1000, 6000))
    np.testing.assert_allclose(limit_band(low + middle + high, RATE, 300, 3400), middle, atol=1e-6)
    np.testing.assert_allclose(limit_band(low + middle + high, RATE, 0, 3400), low + middle, atol=1e-6)


def test_no_more_is_heard_outside_the_band():
    heard = augment(SPEECH, RATE, ClipAugmentation(noise="white", snr_db=0.0, band_hz=(300, 3400))).waveform
    power = np.abs(np.fft.rfft(heard)) ** 2
    assert power[:285].max() + power[3571:].max() < 1e-8 * power[300:3400].mean()


def test_the_gain_is_as_drawn():
    for level_db in (-12.0, 6.0):
        louder, applied = augment(SPEECH, RATE, ClipAugmentation(level_db=level_db))
        assert level_db == applied.level_db
        assert level_db_of(louder) - level_db_of(SPEECH) == pytest.approx(level_db, abs=1e-3)


@pytest.mark.parametrize("codec", [None, "mp3"])
def test_a_gain_that_would_clip_is_limited_and_the_limit_is_kept(codec):
    drawn = ClipAugmentation(noise="white", snr_db=0.0, codec=codec, compression=codec and 0.9, level_db=30.0)
    loud, applied = augment(SPEECH, RATE, drawn)
    assert loud.dtype == np.float32 and np.abs(loud).max() == pytest.approx(1.0, abs=1e-6)
    assert (np.abs(loud) > 0.999).sum() < 3
    unchanged = augment(SPEECH, RATE, replace(drawn, level_db=None)).waveform
    assert level_db_of(loud) - level_db_of(unchanged) == pytest.approx(applied.level_db, abs=1e-3)
    assert applied.level_db < 20 and applied == replace(drawn, level_db=applied.level_db)


def test_noise_that_exceeds_full_scale_lowers_the_level_even_without_a_gain():
    loud, applied = augment(6 * SPEECH[:8000], RATE, ClipAugmentation(noise="white", snr_db=-10.0))
    assert np.abs(loud).max() == pytest.approx(1.0) and applied.level_db < -6


@pytest.mark.parametrize("codec", ["opus", "mp3"])
@pytest.mark.parametrize("rate", [16_000, 11_025])
def test_a_codec_keeps_time_and_most_of_the_sound(codec, rate):
    clip = (tone(1.01, 440.0, rate) * np.linspace(0, 1, round(1.01 * rate))).astype(np.float32)
    heard = augment(clip, rate, ClipAugmentation(codec=codec, compression=0.9)).waveform
    assert len(heard) == len(clip) and not np.allclose(heard, clip, atol=1e-4)
    assert np.corrcoef(heard, clip)[0, 1] > 0.98
    assert level_db_of(heard) == pytest.approx(level_db_of(clip), abs=0.5)


@pytest.mark.parametrize("tempo", [0.8, 0.93, 1.25])
def test_tempo_changes_the_length_alone(tempo):
    clip = tone(2.0, 200.0)
    heard = augment(clip, RATE, ClipAugmentation(tempo=tempo)).waveform
    assert len(heard) == round(len(clip) / tempo)
    assert peak_hz(heard) == pytest.approx(200.0, abs=1.0)
    assert level_db_of(heard) == pytest.approx(level_db_of(clip), abs=0.2)


def test_tempo_moves_a_burst_to_its_place():
    clip = np.zeros(2 * RATE, np.float32)
    clip[RATE : RATE + 800] = tone(0.05, 400.0)
    heard = stretch(clip, round(len(clip) / 0.8), RATE)
    loud = np.flatnonzero(np.abs(heard) > 0.1)
    assert loud[0] / RATE == pytest.approx(1.25, abs=0.02) and loud[-1] / RATE == pytest.approx(1.3125, abs=0.02)


@pytest.mark.parametrize("semitones", [-4, 2, 4])
def test_pitch_moves_by_semitones_and_keeps_the_length(semitones):
    clip = tone(2.0, 200.0)
    heard = shift_pitch(clip, semitones, RATE)
    assert len(heard) == len(clip)
    assert peak_hz(heard) == pytest.approx(200.0 * 2 ** (semitones / 12), abs=1.0)


def test_the_same_length_is_the_same_sound():
    np.testing.assert_allclose(stretch(SPEECH, len(SPEECH), RATE), SPEECH, atol=1e-7)


@pytest.mark.parametrize("clip", [np.zeros(RATE, np.float32), np.full(1, 0.1, np.float32)], ids=["silence", "a sample"])
def test_silence_and_the_shortest_clip(clip):
    everything = ClipAugmentation(1.1, 2.0, 0.3, "pink", 10.0, (300, 3400), "opus", 0.9, 6.0)
    heard = augment(clip, RATE, everything).waveform
    assert len(heard) == max(1, round(len(clip) / 1.1)) and np.isfinite(heard).all()
    assert clip.any() or not np.abs(heard).max() > 1e-3


def test_draws_repeat_and_stay_in_their_ranges():
    augmentation = Augmentation(
        tempo=(0.9, 1.1),
        pitch_semitones=(-2, 2),
        room_sec=(0.1, 0.4),
        noise=["white"],
        bands_hz=[(300, 3400), (0, 4000)],
        codecs=["opus", "mp3"],
        level_db=(-9, 0),
    )
    drawn = [augmentation.draw(random.Random(seed)) for seed in range(200)]
    assert drawn == [augmentation.draw(random.Random(seed)) for seed in range(200)]
    assert all(0.1 <= d.room_sec <= 0.4 and 5 <= d.snr_db <= 30 and -9 <= d.level_db <= 0 for d in drawn)
    assert all(0.9 <= d.tempo <= 1.1 and -2 <= d.pitch_semitones <= 2 and 0.7 <= d.compression <= 0.97 for d in drawn)
    assert {d.band_hz for d in drawn} == {(300, 3400), (0, 4000)} and {d.codec for d in drawn} == {"opus", "mp3"}
    first = drawn[0]
    assert np.array_equal(augment(SPEECH, RATE, first).waveform, augment(SPEECH, RATE, first).waveform)


def test_by_default_training_draws_a_gain_and_a_corpus_nothing():
    drawn = [Augmentation().draw(random.Random(seed)) for seed in range(300)]
    levels = [d.level_db for d in drawn]
    assert all(d.figures().keys() == {"level_db"} for d in drawn)
    assert min(levels) == pytest.approx(-12, abs=0.5) and max(levels) == pytest.approx(12, abs=0.5)
    with pytest.raises(ValueError, match="augmentation: does nothing; name at least one of tempo"):
        CorpusAugmentation()


def test_a_share_stays_clean():
    some = Augmentation(level_db=(-3, 0), share=0.25)
    assert sum(some.draw(random.Random(seed)) is not None for seed in range(1000)) == pytest.approx(250, abs=40)


def test_each_part_has_a_probability_of_its_own():
    augmentation = Augmentation(noise=["pink"], room_sec=(0.1, 0.4), probability={"noise": 0.5, "room": 0.0})
    drawn = [augmentation.draw(random.Random(seed)) for seed in range(1000)]
    assert all(d.level_db is not None and d.room_sec is None and (d.noise is None) == (d.snr_db is None) for d in drawn)
    assert sum(d.noise is not None for d in drawn) == pytest.approx(500, abs=50)
    assert Augmentation(probability={"level": 0.0}).draw(random.Random(0)) is None


@pytest.mark.parametrize(("tempo", "stretch"), [(None, 1.0), ((0.8, 1.0), 1.25), ((1.1, 1.2), 1.0)])
def test_the_longest_that_a_clip_becomes(tempo, stretch):
    assert Augmentation(tempo=tempo).longest_stretch == pytest.approx(stretch)


def test_a_row_names_what_was_done_and_no_folder(tmp_path):
    sf.write(tmp_path / "hum.wav", SPEECH, RATE)
    drawn = Augmentation(noise=[str(tmp_path)], level_db=None).draw(random.Random(0))
    assert drawn.noise == str(tmp_path / "hum.wav")
    assert drawn.figures() == {"noise": "hum.wav", "snr_db": drawn.snr_db}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level_db": None}, ": does nothing; name at least one of tempo, pitch_semitones, room_sec, noise, bands_hz"),
        ({"level_db": (3, -3)}, r".level_db: must be \[lowest, highest\]; got \[3, -3\]"),
        ({"room_sec": (-1, 0)}, r".room_sec\[0\] must be between 0 and 60; got -1"),
        ({"bands_hz": [(300, 3400), (5, 1)]}, r".bands_hz\[1\]: must be"),
        ({"share": 0}, ".share must be above 0 and at most 1; got 0"),
        ({"tempo": (0.5, 1.0)}, r".tempo\[0\] must be between 0.8 and 1.25; got 0.5"),
        ({"compression": (0.9, 1.0)}, r".compression\[1\] must be between 0 and 0.99; got 1.0"),
        ({"codecs": ["opos"]}, ".codecs: unknown codec 'opos'; did you mean opus"),
        ({"probability": {"rom": 0.5}}, ".probability: unknown part 'rom'; did you mean room"),
        ({"probability": {"room": 0.5}}, ".probability.room: needs room_sec, which is off"),
        ({"probability": {"level": 2}}, ".probability.level must be between 0 and 1; got 2"),
        ({"noise": ["blue"]}, ".noise: 'blue': neither white nor pink, nor a sound file .* or a folder with some"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^augmentation{message}"):
        Augmentation(**options)


@pytest.mark.parametrize("content", [b"RIFF", None], ids=["torn", "empty"])
def test_a_noise_file_that_is_none_is_found_before_it_is_needed(content, tmp_path):
    if content is None:
        sf.write(tmp_path / "torn.wav", np.zeros(0), RATE)
    else:
        (tmp_path / "torn.wav").write_bytes(content)
    with pytest.raises(ValueError, match="augmentation.noise: .*torn.wav: "):
        Augmentation(noise=[str(tmp_path)])


def test_a_noise_file_that_is_not_finite(tmp_path):
    sf.write(tmp_path / "hum.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="augmentation.noise: .*hum.wav: has NaN"):
        make_noise(str(tmp_path / "hum.wav"), 100, RATE, np.random.default_rng(0))


def test_a_noise_file_that_disappears(tmp_path):
    sf.write(tmp_path / "hum.wav", SPEECH, RATE)
    drawn = Augmentation(noise=[str(tmp_path)]).draw(random.Random(0))
    (tmp_path / "hum.wav").unlink()
    with pytest.raises(ValueError, match="augmentation.noise: .*hum.wav: "):
        augment(SPEECH, RATE, drawn)
