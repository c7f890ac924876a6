"""Harmonic-plus-noise synthesis: pitch, level and colour come out as asked, chunks join, WORLD's analysis inverts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_s2s.components.vocoders.source_filter import (
    HarmonicNoiseSynthesizer,
    SpeechParameters,
    SynthesisState,
    at_mel_points,
    mel_interpolation,
)
from parts.tolerances import assert_equal_but_for_rounding

NUM_FRAMES = 40


@pytest.fixture(scope="module")
def synthesizer() -> HarmonicNoiseSynthesizer:
    return HarmonicNoiseSynthesizer()


def parameters(pitch_hz: float = 200.0, level: float = 0.0, aperiodicity: float = 0.0) -> SpeechParameters:
    return SpeechParameters(
        torch.full((1, NUM_FRAMES), math.log(pitch_hz / 200.0)),
        torch.full((1, NUM_FRAMES, 80), level),
        torch.full((1, NUM_FRAMES, 24), aperiodicity),
    )


@pytest.mark.parametrize("pitch_hz", [100.0, 250.0, 400.0])
def test_the_pulses_have_the_pitch(synthesizer, pitch_hz):
    waveform = synthesizer(parameters(pitch_hz), SynthesisState())[0]
    assert waveform.shape == (NUM_FRAMES * 160,)
    spectrum = torch.fft.rfft(waveform[:6400] * torch.hann_window(6400)).abs()
    resolution = 16_000 / 6400
    first = round(pitch_hz / resolution)
    # A line at each harmonic, nothing halfway between two.
    for number in (1, 2, 5):
        assert spectrum[number * first] > 100 * spectrum[number * first + first // 2]


@pytest.mark.parametrize("aperiodicity", [0.0, 1.0])
def test_pulses_and_noise_have_the_power_of_the_envelope(synthesizer, aperiodicity):
    waveform = synthesizer(parameters(level=math.log(0.1), aperiodicity=aperiodicity), SynthesisState())[0]
    assert float(waveform[1600:].square().mean().sqrt()) == pytest.approx(0.1, rel=0.1)


def test_the_envelope_colours(synthesizer):
    bright = parameters()
    bright.log_envelope[..., 40:] = -6.0  # the upper half of the mel scale
    spectrum = torch.fft.rfft(synthesizer(bright, SynthesisState())[0]).abs()
    low, high = spectrum[:800].square().mean(), spectrum[2400:].square().mean()  # below 2 kHz, above 6 kHz
    assert float((high / low).log()) == pytest.approx(-12.0, abs=1.0)


@pytest.mark.parametrize("sizes", [[1] * 40, [7, 0, 20, 13]])
def test_chunks_joined_equal_one_shot(synthesizer, sizes):
    rng = torch.Generator().manual_seed(0)
    asked = SpeechParameters(
        torch.randn(2, NUM_FRAMES, generator=rng) * 0.2,
        torch.randn(2, NUM_FRAMES, 80, generator=rng) - 3,
        torch.rand(2, NUM_FRAMES, 24, generator=rng),
    )
    state, pieces = SynthesisState(), zip(*(part.split(sizes, dim=1) for part in asked), strict=True)
    chunks = [synthesizer(SpeechParameters(*piece), state) for piece in pieces]
    assert_equal_but_for_rounding(torch.cat(chunks, 1), synthesizer(asked, SynthesisState()))


def test_analysis_finds_what_was_synthesised(synthesizer):
    pytest.importorskip("pyworld")
    asked = parameters(160.0, level=-4.0, aperiodicity=0.05)
    asked.log_envelope[..., 40:] -= 1.0
    waveform = synthesizer(asked, SynthesisState())[0].numpy()
    found, voiced = synthesizer.analyse(waveform)
    middle = slice(8, 32)
    assert voiced[0, middle].all()
    torch.testing.assert_close(found.log_pitch[0, middle], asked.log_pitch[0, middle], rtol=0, atol=0.01)
    assert (found.log_envelope - asked.log_envelope)[0, middle, 5:].abs().mean() < 0.3


def test_analysis_of_silence_is_finite(synthesizer):
    pytest.importorskip("pyworld")
    found, voiced = synthesizer.analyse(np.zeros(3200, np.float32))
    assert not voiced.any() and all(part.isfinite().all() for part in found)
    assert [tuple(part.shape) for part in found] == [(1, 20), (1, 20, 80), (1, 20, 24)]


def test_points_and_bins_are_each_others_inverse():
    curve = np.linspace(0, 1, 513)[None]  # linear in Hz
    there = at_mel_points(curve, 80, 16_000)
    assert there[0, 0] == 0 and there[0, -1] == pytest.approx(1)
    back = torch.from_numpy(there).float() @ mel_interpolation(80, 1024, 16_000)
    np.testing.assert_allclose(back.numpy(), curve, atol=1e-3)
