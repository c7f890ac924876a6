"""The vocoder `glm4_voice` on small random weights: chunks, cost, seams, length, noise, units of a clip."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lightning_s2s.components.vocoders.glm4_voice import Glm4VoiceVocoder
from lightning_s2s.components.vocoders.glm4_voice.conformer import block_causal_mask, relative_positions
from lightning_s2s.components.vocoders.glm4_voice.hift import HiftStreamState
from parts import small_codecs
from parts.small_glm4_voice import assert_same_sound, build_glm4_voice, build_tokenizing, random_units
from parts.tolerances import assert_equal_but_for_rounding

NUM_UNITS = 47
stream = partial(small_codecs.stream, empty_last=False)


@pytest.fixture(scope="module")
def vocoder() -> Glm4VoiceVocoder:
    return build_glm4_voice()


@pytest.fixture(scope="module")
def units() -> torch.Tensor:
    return random_units(2, NUM_UNITS)


@pytest.fixture(scope="module")
def tokenizing() -> Glm4VoiceVocoder:
    return build_tokenizing()


# --- streaming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty_last", [False, True])
@pytest.mark.parametrize(
    "sizes", [[1] * 47, [10, 10, 10, 10, 7], [47], [0, 3, 24, 0, 20], [40, 7]], ids=lambda sizes: f"{len(sizes)} calls"
)
def test_how_units_are_cut_into_calls_does_not_matter(vocoder, units, sizes, empty_last):
    expected = torch.cat(stream(vocoder, units, [9, 9, 9, 9, 9, 2]), dim=1)
    assert_same_sound(torch.cat(stream(vocoder, units, sizes, empty_last=empty_last), dim=1), expected)


@pytest.mark.parametrize(("num_units", "num_frames"), [(1, 6), (9, 62), (10, 68), (13, 89), (34, 234), (47, 323)])
def test_a_stream_is_as_long_as_the_one_shot_waveform(vocoder, units, num_units, num_frames):
    assert num_frames == int(num_units * 6.890625)
    some = units[:1, :num_units]
    streamed = torch.cat(stream(vocoder, some, 5), dim=1)
    assert streamed.shape == vocoder.synthesize(some).shape == (1, num_frames * 256)
    assert 0 <= num_units * vocoder.samples_per_unit - streamed.shape[1] < 256


def test_a_stream_of_nothing(vocoder, units):
    assert vocoder.stream(units[:, :0], vocoder.start_stream(), last=True).shape == (2, 0)
    assert vocoder.synthesize(units[:, :0]).shape == (2, 0)


def test_one_chunk_with_the_one_shot_noise_is_the_one_shot_waveform():
    vocoder = build_glm4_voice(first_chunk_units=70)
    # 64 units are 441 whole frames: only then does the published stretching agree with a frame's place in time.
    units = random_units(1, 64, seed=2)
    state = vocoder.start_stream()
    state.noise = vocoder.flow.noise(441, 42)
    assert_same_sound(vocoder.stream(units, state, last=True), vocoder.synthesize(units))


def test_the_work_of_a_chunk_and_the_state_do_not_grow(vocoder):
    units = random_units(1, 200, seed=3)
    positions, sizes, state = [], [], vocoder.start_stream()
    hooks = [
        vocoder.flow.encoder.register_forward_hook(lambda _, given, __: positions.append(("units", given[0].shape[1]))),
        vocoder.flow.decoder.estimator.register_forward_hook(
            lambda _, given, __: positions.append(("frames", given[0].shape[-1]))
        ),
        vocoder.hift.conv_pre.register_forward_hook(lambda _, given, __: positions.append(("mel", given[0].shape[-1]))),
    ]
    for piece in units.split(10, dim=1):
        vocoder.stream(piece, state, last=False)
        tensors = [state.units, state.mel, state.held, state.noise, state.hift.mel, state.hift.source]
        sizes.append(sum(tensor.numel() for tensor in tensors))
    for hook in hooks:
        hook.remove()
    most = {kind: max(size for name, size in positions if name == kind) for kind in ("units", "frames", "mel")}
    # 10 units of context and 10 new ones; HiFT's window is a chunk with its reach to both sides.
    assert most == {"units": 20, "frames": 138, "mel": 69 + 2 * vocoder.hift.reach}
    assert [size for name, size in positions if name == "units"] == [10] + [20] * 19
    assert sum(name == "frames" for name, _ in positions) == 20 * vocoder.num_steps
    assert max(sizes[2:]) - min(sizes[2:]) < 0.02 * max(sizes)


def test_the_streamed_waveform_is_that_of_the_streamed_mel_so_seams_cannot_click(vocoder, units, monkeypatch):
    mels, of_mel = [], vocoder.hift.stream
    monkeypatch.setattr(vocoder.hift, "stream", lambda mel, *rest: mels.append(mel) or of_mel(mel, *rest))
    chunks = stream(vocoder, units, [10, 10, 10, 10, 7])
    monkeypatch.undo()
    streamed = torch.cat(chunks, dim=1)
    whole = vocoder.hift(torch.cat(mels, dim=-1), vocoder.seed)
    assert_same_sound(streamed, whole)
    jumps = streamed.diff(dim=1).abs()
    seams = torch.tensor([chunk.shape[1] for chunk in chunks]).cumsum(0)[:-1] - 1
    assert float(jumps[:, seams].max()) <= float(vocoder.synthesize(units).diff(dim=1).abs().max())


def test_held_back_mel_is_cross_faded(units):
    """Without overlap a chunk's end is what it was; with it, the frames before the seam change, those earlier don't."""
    plain, faded = build_glm4_voice(overlap_units=0), build_glm4_voice(overlap_units=4)
    mels = []
    for vocoder in (plain, faded):
        state, parts, of_mel = vocoder.start_stream(), [], vocoder.hift.stream
        vocoder.hift.stream = lambda mel, *rest, parts=parts, of_mel=of_mel: parts.append(mel) or of_mel(mel, *rest)
        vocoder.stream(units[:, :20], state, last=True)
        mels.append(torch.cat(parts, dim=-1))
    same = (mels[0] - mels[1]).abs().amax(dim=(0, 1)) < 1e-6
    assert same[:41].all() and not same[41:].any()  # 6 units are 41 frames, 10 are 68


def test_sound_begins_with_the_first_chunk_and_goes_on_with_each(vocoder, units):
    state = vocoder.start_stream()
    counts = [vocoder.stream(units[:, place : place + 1], state, last=False).shape[1] // 256 for place in range(40)]
    given = {place + 1: count for place, count in enumerate(counts) if count}
    # Units 8, 18, 28, 38 (the overlap is 2) are 55, 124, 192 and 261 frames.
    assert given == {10: 55 - vocoder.hift.lookahead, 20: 69, 30: 68, 40: 69}


@pytest.mark.parametrize("size", [1, 7, 40])
def test_hift_in_chunks_equals_hift_at_once(vocoder, size):
    mel = torch.randn(2, 8, 90, generator=torch.Generator().manual_seed(4))
    state, parts = HiftStreamState(), mel.split(size, dim=-1)
    with torch.inference_mode():
        chunks = [vocoder.hift.stream(part, state, 7, number == len(parts) - 1) for number, part in enumerate(parts)]
        assert_same_sound(torch.cat(chunks, dim=1), vocoder.hift(mel, seed=7))


def test_a_closed_stream_takes_no_more(vocoder, units):
    state = vocoder.start_stream()
    vocoder.stream(units[:, :3], state, last=True)
    with pytest.raises(ValueError, match="closed by last=True"):
        vocoder.stream(units[:, :3], state, last=True)


# --- batches and chance -------------------------------------------------------------------------------------------


def test_batched_equals_single(vocoder, units):
    assert_same_sound(vocoder.synthesize(units)[1:], vocoder.synthesize(units[1:]))
    together = torch.cat(stream(vocoder, units, [20, 27]), dim=1)
    assert_same_sound(together[1:], torch.cat(stream(vocoder, units[1:], [20, 27]), dim=1))


def test_the_seed_decides_and_the_global_generator_is_left_alone(vocoder, units):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, streamed = vocoder.synthesize(units), torch.cat(stream(vocoder, units, [47]), dim=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(vocoder.synthesize(units), first)
    assert torch.equal(torch.cat(stream(vocoder, units, [47]), dim=1), streamed)
    assert (build_glm4_voice(seed=43).synthesize(units) - first).abs().max() > 1e-3


def test_noise_is_what_the_published_code_draws(vocoder):
    torch.manual_seed(42)
    assert torch.equal(vocoder.flow.noise(234, 42), torch.randn(1, 8, 234))


def test_the_source_is_sines_where_there_is_pitch_and_noise_elsewhere(vocoder):
    source = vocoder.hift.m_source
    pitch = torch.tensor([[220.5, 220.5, 0.0, 0.0]])
    state = source.start(1, 0, torch.device("cpu"))
    found = source(pitch, state)[0, 0].view(4, 256)
    period = 100  # samples of 220.5 Hz at 22,050 Hz
    found = found - found.mean(1, keepdim=True)
    changes = (found[:, :period] - found[:, period : 2 * period]).abs().mean(1) / found.abs().mean(1)
    assert changes[0] < 0.1 and changes[2] > 1.0
    assert float(state.phase) == pytest.approx(512 * 220.5 / 22_050 % 1)


# --- parts --------------------------------------------------------------------------------------------------------


def test_block_causal_mask():
    assert block_causal_mask(5, 2).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_relative_positions_run_from_far_left_to_far_right():
    table = relative_positions(3, 2)
    expected = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    assert_equal_but_for_rounding(table, torch.stack([expected.sin(), expected.cos()], dim=1))


@torch.inference_mode()
def test_a_block_hears_nothing_of_later_blocks_and_all_of_its_own(vocoder, units):
    whole = vocoder.flow.encode(units)
    assert_equal_but_for_rounding(vocoder.flow.encode(units[:, :20]), whole[..., :20])
    changed = units.clone()
    changed[:, 29] = (changed[:, 29] + 7) % 50
    differs = (vocoder.flow.encode(changed) - whole).abs().amax(dim=(0, 1)) > 1e-6
    assert not differs[:20].any() and differs[20:].all()


# --- the tokenizer ------------------------------------------------------------------------------------------------


def test_a_clip_gives_the_same_units_in_any_batch(tokenizing):
    lengths = [20_000, 500_000, 1281, 0, 1280]  # the second has two windows
    clips = [0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in lengths]
    units, counts = tokenizing.tokenize(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor(lengths))
    assert counts.tolist() == [16, 391, 2, 0, 1] and units.shape == (5, 391) and units.dtype == torch.long
    assert len(units.unique()) > 5
    for row, clip in enumerate(clips):
        if len(clip):
            alone, _ = tokenizing.tokenize(clip.unsqueeze(0), torch.tensor([len(clip)]))
            assert alone[0].tolist() == units[row, : counts[row]].tolist()


def test_units_hear_their_block_and_what_was_before(tokenizing):
    clip = 0.1 * torch.randn(1, 64_000, generator=torch.Generator().manual_seed(9))
    features, frames = zip(*tokenizing.tokenizer._features(clip[0]), strict=True)
    changed = features[0].clone()
    changed[200:] += 1.0  # position 100 and on, in the third block of 40 positions
    with torch.inference_mode():
        before, after = (
            tokenizing.tokenizer.encode(mel.T.unsqueeze(0), torch.tensor(frames)) for mel in (features[0], changed)
        )
    differs = (before - after).abs().amax(dim=(0, 2)) > 1e-6
    assert differs.tolist() == [False] * 20 + [True] * 30  # units of 4 positions: 80 / 4 is the third block's first


def test_the_nearest_row_is_taken(tokenizing):
    rows = tokenizing.tokenizer.codebook.weight[[3, 49, 0]]
    assert tokenizing.tokenizer.nearest(rows + 0.001).tolist() == [3, 49, 0]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [-1, 50])
def test_units_outside_the_codebook(vocoder, unit):
    bad = torch.tensor([[0, unit]])
    for speak in (vocoder.synthesize, lambda units: vocoder.stream(units, vocoder.start_stream(), last=True)):
        with pytest.raises(ValueError, match=r"units must be in 0\.\.49; got"):
            speak(bad)


def test_without_a_tokenizer_it_only_speaks(vocoder):
    with pytest.raises(ValueError, match="built without a tokenizer: it speaks but can't tokenize; give `tokenizer`"):
        vocoder.tokenize(torch.zeros(1, 16_000), torch.tensor([16_000]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_speak_too(dtype):
    vocoder, units = build_glm4_voice().to(dtype), random_units(1, 12)
    for waveform in (vocoder.synthesize(units), torch.cat(stream(vocoder, units, 5), dim=1)):
        assert waveform.dtype == torch.float32 and waveform.shape == (1, 82 * 256)
        assert waveform.isfinite().all() and waveform.abs().max() > 0
