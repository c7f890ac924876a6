"""Codes in turn as units: written by hand, and there and back."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.components.vocoders.flattened import flatten_codes, unflatten_units
from lightning_s2s.components.vocoders.hf_codec import HfCodecVocoder
from parts.small_codecs import MIMI, noise, random_units, stream
from parts.tolerances import assert_equal_but_for_rounding


@pytest.fixture(scope="module")
def vocoder() -> HfCodecVocoder:
    torch.manual_seed(0)
    return HfCodecVocoder(config=MIMI)


def test_codes_become_units_frame_by_frame():
    codes = torch.tensor([[[1, 2, 0], [4, 0, 3]], [[0, 0, 9], [9, 8, 7]]])  # two clips, two codebooks, three frames
    assert flatten_codes(codes, 10).tolist() == [[1, 14, 2, 10, 0, 13], [0, 19, 0, 18, 9, 17]]


def test_units_become_codes():
    units = torch.tensor([[1, 14, 2, 10, 0, 13]])
    assert unflatten_units(units, 2, 10).tolist() == [[[1, 2, 0], [4, 0, 3]]]
    assert unflatten_units(units, 3, 10).tolist() == [[[1, 0], [4, 0], [2, 3]]]


def test_one_codebook_is_left_as_it_is():
    units = torch.tensor([[7, 0, 3]])
    assert unflatten_units(units, 1, 10).tolist() == [[[7, 0, 3]]]
    assert flatten_codes(units[:, None], 10).tolist() == [[7, 0, 3]]


def test_a_unit_in_the_place_of_another_codebook_keeps_its_code():
    assert unflatten_units(torch.tensor([[14, 1, 29, 5]]), 2, 10).tolist() == [[[4, 9], [1, 5]]]


def test_an_incomplete_last_frame_is_left_out():
    assert unflatten_units(torch.tensor([[1, 14, 2]]), 2, 10).tolist() == [[[1], [4]]]
    assert unflatten_units(torch.tensor([[1]]), 2, 10).shape == (1, 2, 0)


def test_there_and_back():
    codes = torch.randint(0, 32, (3, 5, 11), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unflatten_units(flatten_codes(codes, 32), 5, 32), codes)


def test_figures_of_a_flattened_codec(vocoder):
    assert (vocoder.num_codebooks, vocoder.codebooks_per_frame, vocoder.codebook_size) == (1, 5, 32)
    assert (vocoder.num_units, vocoder.samples_per_frame, vocoder.samples_per_unit) == (160, 96, 19.2)
    assert vocoder.unit_rate_hz == 125.0  # 25 frames of 5


def test_units_of_a_clip_are_in_turn_of_each_codebook(vocoder):
    units, counts = vocoder.tokenize(noise(1, 960), torch.tensor([960]))
    assert counts.tolist() == [50] and units.dtype == torch.long
    assert (units[0].reshape(10, 5) // 32).tolist() == [[0, 1, 2, 3, 4]] * 10


def test_units_of_an_incomplete_frame_wait_and_are_dropped_at_the_end(vocoder):
    units = random_units(vocoder, 2, 13)
    state = vocoder.start_stream()
    first = vocoder.stream(units[:, :4], state, last=False)
    second = vocoder.stream(units[:, 4:12], state, last=False)
    third = vocoder.stream(units[:, 12:], state, last=True)
    assert (first.shape, second.shape, third.shape) == ((2, 0), (2, 192), (2, 0))
    assert_equal_but_for_rounding(second, vocoder.synthesize(units))


@pytest.mark.parametrize("num_units", [0, 4])
def test_less_than_a_frame_is_silence(vocoder, num_units):
    units = random_units(vocoder, 2, num_units)
    assert vocoder.synthesize(units).shape == (2, 0)
    assert vocoder.stream(units, vocoder.start_stream(), last=True).shape == (2, 0)


def test_a_closed_stream_takes_no_more(vocoder):
    state = vocoder.start_stream()
    vocoder.stream(random_units(vocoder, 1, 10), state, last=True)
    with pytest.raises(ValueError, match="closed by last=True"):
        vocoder.stream(random_units(vocoder, 1, 5), state, last=True)


@pytest.mark.parametrize("unit", [-1, 160])
def test_units_outside_the_codebooks(vocoder, unit):
    bad = torch.tensor([[0, unit]])
    for speak in (vocoder.synthesize, lambda units: stream(vocoder, units, 2)):
        with pytest.raises(ValueError, match=r"units must be in 0\.\.159; got"):
            speak(bad)


def test_a_codec_stays_in_eval_mode(vocoder):
    vocoder.train()
    assert not any(module.training for module in vocoder.modules())
