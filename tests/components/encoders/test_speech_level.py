"""The level of active speech, by hand and whatever the padding; and an encoder that hears no gain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.encoders.speech_level import QUIETEST_DB, active_level_db, set_active_level
from parts.sounds import sweep, tone
from parts.tolerances import assert_equal_but_for_rounding

RATE = 16_000


def batch(*waveforms: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = [torch.from_numpy(waveform) for waveform in waveforms]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(t) for t in tensors])


def speech(seed: int, seconds: float = 1.3) -> np.ndarray:
    """Noise whose level rises and falls as that of syllables, with a pause."""
    time = np.arange(round(seconds * RATE)) / RATE
    envelope = np.sin(2 * np.pi * 2 * time) ** 2 * ((time < 0.4) | (time > 0.8))
    return (0.05 * envelope * np.random.default_rng(seed).standard_normal(len(time))).astype(np.float32)


def test_a_tone_with_pauses_has_the_level_of_the_tone():
    loud = tone(1.0, 200.0, level=0.1)  # 0.1 / sqrt(2) is -23.01 dB
    silence = np.zeros(RATE, np.float32)
    faint = 0.02 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1  # -54 dB: a quiet room
    levels = active_level_db(
        *batch(loud, np.concatenate([silence, loud, silence]), np.concatenate([faint, loud])), RATE
    )
    assert levels.tolist() == pytest.approx([-23.01] * 3, abs=0.02)


def test_the_margin_is_that_of_the_standard():
    loud = tone(1.0, 200.0, level=0.1)
    # The mean of a loud half and one 18 dB softer is 2.9 dB below the loud one, and 15.1 dB above the softer one, which
    # therefore counts. One 20 dB softer is 17.0 dB below the mean of both and does not.
    for below_db, expected in ((18.0, -23.01 - 2.94), (20.0, -23.01)):
        softer = loud * np.float32(10 ** (-below_db / 20))
        level = active_level_db(*batch(np.concatenate([loud, softer])), RATE).item()
        assert level == pytest.approx(expected, abs=0.02)


def test_a_batch_is_its_clips_one_by_one_and_padding_is_not_read():
    clips = [speech(0), speech(1, 0.9), tone(0.01), speech(2, 2.0)]
    waveform, lengths = batch(*clips)
    waveform[torch.arange(waveform.shape[1]) >= lengths.unsqueeze(1)] = 7.0
    together = active_level_db(waveform, lengths, RATE)
    alone = torch.cat([active_level_db(*batch(clip), RATE) for clip in clips])
    assert_equal_but_for_rounding(together, alone)


def test_silence_stays_silence_and_noise_is_not_amplified_without_bound():
    hiss = (1e-5 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)  # -100 dB
    waveform, lengths = batch(np.zeros(RATE, np.float32), hiss)
    assert active_level_db(waveform, lengths, RATE).tolist() == [QUIETEST_DB, QUIETEST_DB]
    scaled = set_active_level(waveform, lengths, RATE, -26.0)
    assert not scaled[0].any()
    assert_equal_but_for_rounding(scaled[1], waveform[1] * 10 ** (44 / 20))


@pytest.fixture
def encoder() -> MelEncoder:
    torch.manual_seed(0)
    return MelEncoder(width=16, num_layers=1, num_heads=2, active_level_db=-26.0).eval()


@torch.no_grad()
@pytest.mark.parametrize("clip", [speech(0), sweep(1.0)], ids=["speech", "sweep"])
def test_the_encoder_hears_no_gain(encoder, clip):
    clip = clip * 0.5
    expected, _ = encoder(*batch(clip))
    for gain_db in (-18.0, 6.0):
        heard, _ = encoder(*batch(clip * np.float32(10 ** (gain_db / 20))))
        assert_equal_but_for_rounding(heard, expected)
    deaf = MelEncoder(width=16, num_layers=1, num_heads=2).eval()
    deaf.load_state_dict(encoder.state_dict())
    softer, same = deaf(*batch(clip * np.float32(0.1)))[0], deaf(*batch(clip))[0]
    assert not torch.allclose(softer, same, atol=1e-2)


@torch.no_grad()
def test_the_encoder_gives_the_same_in_a_batch(encoder):
    clips = [speech(0), speech(1, 0.9), np.zeros(RATE, np.float32), speech(2, 2.0)]
    states, lengths = encoder(*batch(*clips))
    assert torch.isfinite(states).all()
    for row, clip in enumerate(clips):
        alone, count = encoder(*batch(clip))
        assert lengths[row] == count
        assert_equal_but_for_rounding(states[row, : count.item()], alone[0])


@torch.no_grad()
def test_half_precision(encoder):
    for dtype in (torch.bfloat16, torch.float16):
        states, _ = encoder.to(dtype)(*batch(speech(0) * 0.01))
        assert torch.isfinite(states).all() and states.dtype == dtype


@pytest.mark.parametrize("level", [3.0, -100.0])
def test_a_level_that_makes_no_sense(level):
    with pytest.raises(ValueError, match=f"active_level_db must be between -60 and 0; got {level}"):
        MelEncoder(active_level_db=level)
