"""The pocket codec: chunked equals one-shot, look-ahead as promised, units that decode to what was encoded."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lightning_s2s.components.vocoders.pocket import FiniteScalarQuantizer, PocketVocoder
from lightning_s2s.components.weights import save_weights
from parts import small_codecs
from parts.tolerances import assert_equal_but_for_rounding, assert_same_pocket_sound

NUM_UNITS = 9
stream = partial(small_codecs.stream, empty_last=False)


@pytest.fixture
def vocoder() -> PocketVocoder:
    torch.manual_seed(0)
    return PocketVocoder(levels=(4, 3, 3), encoder_width=8, decoder_width=8).eval()


@pytest.fixture
def units() -> torch.Tensor:
    return torch.randint(0, 36, (2, NUM_UNITS), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("empty_last", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [[1] * 9, [2, 2, 2, 2, 1], [3, 3, 3], [7, 2], [9], [1, 4, 0, 2, 2], [0, 8, 1]],
    ids=lambda sizes: "-".join(map(str, sizes)),
)
def test_chunks_joined_equal_one_shot(vocoder, units, sizes, empty_last):
    chunks = stream(vocoder, units, sizes, empty_last=empty_last)
    expected = vocoder.synthesize(units)
    assert expected.shape == (2, NUM_UNITS * 640)
    assert_same_pocket_sound(torch.cat(chunks, dim=1), expected)


def test_a_stream_of_one_unit(vocoder, units):
    assert_same_pocket_sound(stream(vocoder, units[:, :1], [1])[0], vocoder.synthesize(units[:, :1]))


def test_batched_equals_single(vocoder, units):
    assert_same_pocket_sound(vocoder.synthesize(units)[1:], vocoder.synthesize(units[1:]))


def test_lookahead_is_at_most_80_ms(vocoder, units):
    before = vocoder.synthesize(units[:1])
    for place in (3, 5):
        changed = units[:1].clone()
        changed[0, place] = (changed[0, place] + 17) % 36
        first = int((vocoder.synthesize(changed) - before).abs().squeeze().gt(1e-7).nonzero()[0])
        assert place * 640 - 1280 <= first <= place * 640


def test_sound_is_final_at_most_80_ms_behind_the_units(vocoder, units):
    state, num_samples = vocoder.start_stream(), 0
    for number in range(NUM_UNITS):
        num_samples += vocoder.stream(units[:1, number : number + 1], state, last=False).shape[1]
        assert num_samples >= (number + 1) * 640 - 1280


def test_the_state_does_not_grow(vocoder, units):
    state = vocoder.start_stream()

    def size() -> int:
        synthesis = state.synthesis
        kept = [*state.past.values(), synthesis.tail, synthesis.phase, synthesis.cycles, *(synthesis.filters or ())]
        return sum(tensor.numel() for tensor in kept if tensor is not None)

    sizes = set()
    for number in range(NUM_UNITS):
        vocoder.stream(units[:1, number : number + 1], state, last=False)
        sizes.add(size())
    assert max(sizes) == size()


def test_quantiser_decodes_what_it_encoded():
    quantizer = FiniteScalarQuantizer([8, 5, 4])
    values, units = quantizer(torch.randn(200, 3) * 2)
    assert_equal_but_for_rounding(quantizer.decode(units), values)
    assert quantizer.num_units == 160 and int(units.min()) >= 0 and int(units.max()) < 160
    grid = quantizer.decode(torch.arange(160))
    assert len(grid.unique(dim=0)) == 160 and grid.abs().max() <= 1


def test_quantiser_lets_gradients_through():
    x = torch.randn(4, 2, requires_grad=True)
    FiniteScalarQuantizer([5, 5])(x)[0].sum().backward()
    assert (x.grad.abs() > 0).all()


def test_tokenize_counts_whole_units_and_ignores_padding(vocoder):
    waveform = torch.randn(2, 3000, generator=torch.Generator().manual_seed(2)) * 0.1
    waveform[1, 1400:] = 0
    units, lengths = vocoder.tokenize(waveform, torch.tensor([3000, 1400]))
    assert units.shape == (2, 4) and units.dtype == torch.long and lengths.tolist() == [4, 2]
    alone, _ = vocoder.tokenize(waveform[1:, :1400], torch.tensor([1400]))
    assert alone[0].tolist() == units[1, :2].tolist()


def test_tokenize_less_than_a_unit(vocoder):
    units, lengths = vocoder.tokenize(torch.zeros(1, 639), torch.tensor([639]))
    assert units.shape == (1, 0) and lengths.tolist() == [0]


@pytest.mark.parametrize("unit", [-1, 36])
def test_units_outside_the_codebook(vocoder, unit):
    units = torch.tensor([[0, unit]])
    for speak in (vocoder.synthesize, lambda bad: vocoder.stream(bad, vocoder.start_stream(), last=True)):
        with pytest.raises(ValueError, match=r"units must be in 0\.\.35; got"):
            speak(units)


def test_rates(vocoder):
    assert (vocoder.sample_rate, vocoder.samples_per_unit, vocoder.num_units) == (16_000, 640, 36)
    assert vocoder.unit_rate_hz == 25.0
    assert PocketVocoder(encoder_width=8, decoder_width=8).num_units == 1000


def test_weights_come_back_from_a_folder(vocoder, units, tmp_path):
    save_weights(vocoder, tmp_path)
    again = PocketVocoder(str(tmp_path), levels=(4, 3, 3), encoder_width=8, decoder_width=8).eval()
    assert torch.equal(again.synthesize(units), vocoder.synthesize(units))


def test_weights_of_another_shape(vocoder, tmp_path):
    save_weights(vocoder, tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors.* has shape"):
        PocketVocoder(str(tmp_path), levels=(4, 3, 3), encoder_width=8, decoder_width=16)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        PocketVocoder(str(tmp_path))


@pytest.mark.parametrize("frames_per_unit", [1, 2, 8])
def test_other_rates(frames_per_unit, units):
    torch.manual_seed(0)
    vocoder = PocketVocoder(levels=(4, 3, 3), encoder_width=8, decoder_width=8, frames_per_unit=frames_per_unit).eval()
    samples = 160 * frames_per_unit
    assert (vocoder.samples_per_unit, vocoder.unit_rate_hz) == (samples, 100 / frames_per_unit)
    expected = vocoder.synthesize(units)
    assert expected.shape == (2, NUM_UNITS * samples)
    chunks = stream(vocoder, units, [1, 4, 0, 3, 1])
    assert_same_pocket_sound(torch.cat(chunks, dim=1), expected)
    found, counts = vocoder.tokenize(torch.randn(2, 4000), torch.tensor([4000, 1600]))
    assert counts.tolist() == [4000 // samples, 1600 // samples]
    assert found.shape == (2, 4000 // samples)


def test_a_rate_that_is_none():
    with pytest.raises(ValueError, match="frames_per_unit must be at least 1; got 0"):
        PocketVocoder(frames_per_unit=0)
