"""Several channels as one: silent ones take nothing from the level, and what would cancel is kept, with a word."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile

from lightning_s2s.data.audio import AudioReference, decode_audio, load_audio
from lightning_s2s.data.downmix import mix_down

RATE = 16_000


def voice(seed: int, seconds: float = 3.0, level: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(0, level, int(seconds * RATE))).astype(np.float32)


def mix(*channels: np.ndarray):
    return mix_down(np.stack(channels, axis=1), RATE)


X, Y = voice(1), voice(2)
SILENCE = np.zeros_like(X)


def test_channels_with_signal_are_averaged():
    found = mix(X, Y)
    np.testing.assert_allclose(found.waveform, (X + Y) / 2, atol=1e-7)
    assert found.problem == ""
    np.testing.assert_array_equal(mix(X).waveform, X)
    np.testing.assert_allclose(mix(X, X).waveform, X, atol=1e-7)


def test_silent_channels_take_nothing_from_the_level():
    noise_floor = voice(3, level=1e-4)  # -60 dB
    for others in ([SILENCE] * 5, [noise_floor] * 5, [SILENCE + 0.01] * 5):  # an offset is no sound
        found = mix(*others[:2], X, *others[2:])
        np.testing.assert_array_equal(found.waveform, X)
        assert found.problem == ""
    np.testing.assert_allclose(mix(X, SILENCE, Y, SILENCE).waveform, (X + Y) / 2, atol=1e-7)


def test_a_quiet_speaker_is_no_silence():
    guest = np.concatenate([np.zeros(2 * RATE, np.float32), voice(3, 1.0, 0.01)])  # -20 dB, in the last second
    host = np.concatenate([voice(4, 2.0), np.zeros(RATE, np.float32)])
    found = mix(host, guest)
    np.testing.assert_allclose(found.waveform, (host + guest) / 2, atol=1e-7)
    assert found.problem == ""


def test_channels_that_cancel_each_other_out():
    for other in (-X, -0.95 * X, -0.99 * X + voice(3, level=0.001)):
        found = mix(X, other)
        np.testing.assert_array_equal(found.waveform, X)
        assert found.problem == "channels that cancel each other out: channel 1, the loudest, is taken alone"
    found = mix(SILENCE, 0.5 * X, -0.5 * X, 0.5 * X, -0.5 * X + 1e-4)
    assert "channel" in found.problem
    np.testing.assert_allclose(np.abs(found.waveform), np.abs(0.5 * X), atol=2e-4)


def test_just_above_the_bound_is_averaged():
    other = -0.7 * X  # the mean is 0.15 X: -16 dB
    found = mix(X, other)
    np.testing.assert_allclose(found.waveform, 0.15 * X, atol=1e-7)
    assert found.problem == ""


def test_a_stretch_that_cancels():
    """Two seconds as usual, one that cancels: the loudest channel has all of it."""
    other = np.concatenate([X[: 2 * RATE], -X[2 * RATE :]]).astype(np.float32)
    found = mix(1.01 * X, other)
    np.testing.assert_allclose(found.waveform, 1.01 * X, atol=1e-7)
    assert "channel 1, the loudest, is taken alone" in found.problem


def test_where_no_choice_keeps_everything_the_least_is_lost():
    """A host on the left, a guest on the right, and a jingle that cancels: both speakers are kept."""
    host = np.concatenate([voice(1, 3.0), np.zeros(3 * RATE, np.float32), voice(5, 1.0)])
    guest = np.concatenate([np.zeros(3 * RATE, np.float32), voice(2, 3.0), -voice(5, 1.0)])
    found = mix(host, guest)
    np.testing.assert_allclose(found.waveform, (host + guest) / 2, atol=1e-7)
    assert "a part is lost in their mean" in found.problem


def test_twelve_who_speak_in_turns_do_not_cancel():
    channels = [np.zeros(12 * RATE, np.float32) for _ in range(12)]
    for number, channel in enumerate(channels):
        channel[number * RATE : (number + 1) * RATE] = voice(number, 1.0)
    assert mix(*channels).problem == ""


def test_silence_and_single_samples():
    for samples in (np.zeros((100, 3)), np.full((100, 2), 0.2), np.ones((1, 6))):
        found = mix_down(samples.astype(np.float32), RATE)
        np.testing.assert_allclose(found.waveform, samples[:, 0], atol=1e-6)
        assert found.problem == ""


def test_the_file_is_named_once(tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", np.stack([X, -X], axis=1), RATE, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(load_audio("a.wav", tmp_path, RATE), X)
    (record,) = caplog.records
    assert record.message == (
        f"audio {tmp_path}/a.wav has channels that cancel each other out: channel 1, the loudest, is taken alone"
    )
    assert [remark.reason for remark in decode_audio(AudioReference(tmp_path / "a.wav")).remarks] == [
        "channels that cancel"
    ]


@pytest.mark.parametrize("channels", [2, 6])
def test_one_who_speaks_keeps_the_level(tmp_path, channels):
    samples = np.zeros((len(X), channels), np.float32)
    samples[:, 1] = X
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio("a.wav", tmp_path, RATE), X)
