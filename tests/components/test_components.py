"""Each component on its own: shapes, lengths, invariance to padding, streams equal to one-shot output."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.log_mel import LogMelSpectrogram
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.generation.sampling import Sampler
from parts.batches import assert_batched_equals_single, speech
from parts.small_decoders import Scripted
from parts.small_sizes import DEEP_QWEN, WHISPER
from parts.tolerances import assert_equal_but_for_rounding


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_log_mel_has_one_frame_for_each_full_hop():
    mel = LogMelSpectrogram()
    assert [mel(torch.zeros(1, length)).shape[-1] for length in (160, 1599, 1600)] == [1, 9, 10]


def test_mel_keeps_its_precision_in_mixed_precision():
    mel, (waveform, _) = LogMelSpectrogram(), speech(16_000)
    expected = mel(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mel(waveform), expected)


def test_log_mel_of_a_tone_peaks_in_its_band_and_follows_its_level():
    mel = LogMelSpectrogram()
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 16_000).unsqueeze(0)
    frame = mel(tone)[0, :, 25]
    centres = (mel.filters * torch.linspace(0, 8000, mel.filters.shape[1])).sum(1) / mel.filters.sum(1)
    assert abs(float(centres[frame.argmax()]) - 1000) < 60
    quieter = mel(0.1 * tone)[0, :, 25]
    assert float((frame - quieter).max()) == pytest.approx(2.3026, abs=1e-3)


def test_mel_encoder():
    encoder = MelEncoder(width=16, num_layers=1, num_heads=2).eval()
    assert assert_batched_equals_single(encoder, *speech(16_000, 9_000, 4_321)) == [25, 14, 7]
    assert encoder.frame_rate_hz == 25.0 and encoder.width == 16


def test_mel_encoder_augments_while_training_alone():
    encoder = MelEncoder(width=16, num_layers=1, num_heads=2, dropout=0.0)
    batch = speech(8_000)
    assert not torch.equal(encoder(*batch)[0], encoder(*batch)[0])
    assert torch.equal(encoder.eval()(*batch)[0], encoder(*batch)[0])


@pytest.mark.parametrize(("pooling", "rate", "counts"), [(1, 50.0, [50, 27]), (2, 25.0, [25, 13])])
def test_whisper_encoder(pooling, rate, counts):
    encoder = WhisperEncoder(checkpoint=None, config=WHISPER, pooling=pooling).eval()
    assert assert_batched_equals_single(encoder, *speech(16_000, 8_400)) == counts
    assert encoder.frame_rate_hz == rate and encoder.width == 16


@torch.inference_mode()
def test_whisper_encoder_joins_windows_of_30_seconds():
    encoder = WhisperEncoder(checkpoint=None, config=WHISPER).eval()
    waveform, lengths = speech(480_000 + 6_400)
    whole, count = encoder(waveform, lengths)
    assert count.tolist() == [760]
    # The log-mel is computed for the complete clip, so it is unaffected by the cut; windows are encoded alone.
    mel = encoder.features(waveform[0].numpy(), sampling_rate=16_000, max_length=960_000, return_tensors="pt")
    for start, stop, window in ((0, 750, slice(0, 3000)), (750, 760, slice(3000, 6000))):
        alone = encoder.encoder(mel.input_features[..., window]).last_hidden_state
        averaged = (alone[0, 0::2] + alone[0, 1::2]) / 2
        assert_equal_but_for_rounding(whole[0, start:stop], averaged[: stop - start])


def test_whisper_pooling_is_checked():
    with pytest.raises(ValueError, match="pooling must be 1 or 2; got 3"):
        WhisperEncoder(checkpoint=None, config=WHISPER, pooling=3)


@pytest.mark.parametrize(("kernels", "counts"), [((5,), [6, 4, 1]), ((5, 5), [3, 2, 1]), ((3, 5, 7), [2, 1, 1])])
def test_conv_adapter(kernels, counts):
    adapter = ConvAdapter(kernels, inner_width=4)
    adapter.connect(6, 8)
    lengths = torch.tensor([11, 7, 1])
    assert assert_batched_equals_single(adapter.eval(), torch.randn(3, 11, 6), lengths) == counts
    assert adapter.downsampling == 2 ** len(kernels)


@pytest.mark.parametrize("kernels", [(), (4,), (5, 0)])
def test_conv_adapter_kernels_are_odd(kernels):
    with pytest.raises(ValueError, match=r"kernel_sizes(\[1\])? must be (odd|at least 1)"):
        ConvAdapter(kernels)


@pytest.fixture
def llm(tokenizer_folder) -> CausalLanguageModel:
    return CausalLanguageModel(config=DEEP_QWEN, tokenizer=str(tokenizer_folder)).eval()


@torch.inference_mode()
def test_causal_lm_streams_what_it_computes_at_once(llm):
    ids = torch.randint(0, 256, (1, 11))
    embedded = llm.embed(ids)
    whole = llm(embedded, torch.ones(1, 11, dtype=torch.bool))
    state = llm.start_stream()
    pieces = [llm.stream(piece, state) for piece in embedded.split([5, 1, 1, 3, 1], dim=1)]
    assert_equal_but_for_rounding(torch.cat(pieces, dim=1), whole)
    assert whole.shape == (1, 11, llm.width) and llm.logits(whole).shape == (1, 11, llm.vocabulary)
    assert llm.vocabulary == 263


@torch.inference_mode()
def test_causal_lm_batched_equals_single(llm):
    embedded = llm.embed(torch.randint(0, 256, (2, 9)))
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    together = llm(embedded, mask)
    assert_equal_but_for_rounding(together[1, :4], llm(embedded[1:, :4], mask[1:, :4])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either checkpoint or config"),
        ({"config": DEEP_QWEN}, "give either tokenizer"),
        ({"config": DEEP_QWEN, "tokenizer": "no/such"}, "no/such: neither a folder nor a hub id"),
    ],
)
def test_causal_lm_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CausalLanguageModel(**options)


@pytest.mark.parametrize("config", [{"model_type": "no_such"}, {"hidden_size": 8}, {"model_type": "whisper_encoder"}])
def test_causal_lm_of_an_unknown_type(config, tokenizer_folder):
    with pytest.raises(ValueError, match="config: no causal LM of transformers fits model_type"):
        CausalLanguageModel(config=config, tokenizer=str(tokenizer_folder))


@pytest.fixture
def decoder() -> InterleavedSpeechDecoder:
    decoder = InterleavedSpeechDecoder("2:3", DEEP_QWEN, max_units=14)
    decoder.connect(8, 30, 20)
    return decoder.eval()


@torch.inference_mode()
def test_decoder_logits_stand_where_a_unit_follows(decoder):
    conditions, units = torch.randn(2, 5, 16), torch.randint(0, 20, (2, 7))
    given = decoder(conditions, torch.tensor([5, 3]), units, torch.tensor([4, 7]), torch.zeros(2, 512))
    assert decoder.eos_unit == 20 and given.logits.shape == (5 + 8, 21)
    assert given.labels.tolist() == [*units[0, :4].tolist(), 20, *units[1].tolist(), 20]


@torch.inference_mode()
def test_decoder_batched_equals_single_and_padding_changes_nothing(decoder):
    conditions, units, speaker = torch.randn(2, 6, 16), torch.randint(0, 20, (2, 9)), torch.randn(2, 512)
    together = decoder(conditions, torch.tensor([5, 3]), units, torch.tensor([4, 7]), speaker)
    alone = decoder(conditions[1:, :3], torch.tensor([3]), units[1:, :7], torch.tensor([7]), speaker[1:])
    assert_equal_but_for_rounding(together.logits[5:], alone.logits)


def test_decoder_without_turns(decoder):
    none = torch.zeros(0, dtype=torch.long)
    given = decoder(torch.zeros(0, 0, 16), none, none.reshape(0, 0), none, torch.zeros(0, 512))
    assert given.logits.shape == (0, 21) and given.labels.shape == (0,)


@torch.inference_mode()
def spoken(decoder, conditions: torch.Tensor, sizes: list[int], sampler: Sampler) -> list[list[int]]:
    """Groups of units when the conditions arrive in pieces of these sizes."""
    state, pieces = decoder.start_stream(torch.zeros(1, 512), sampler), conditions.split(sizes, dim=1)
    return [
        group
        for number, piece in enumerate(pieces)
        for group in decoder.stream(piece, state, last=number == len(pieces) - 1)
    ]


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [2, 5], [3, 3, 1], [6, 1, 0]])
def test_streaming_is_greedy_over_the_training_layout(decoder, sizes):
    """The drawn units are the argmax of the teacher-forced logits over the same units."""
    conditions = torch.randn(1, 7, 16)
    groups = spoken(decoder, conditions, sizes, Sampler(temperature=0.0))
    units = [unit for group in groups for unit in group]
    assert units and all(0 < len(group) <= 3 for group in groups)
    with torch.inference_mode():
        given = decoder(
            conditions, torch.tensor([7]), torch.tensor([units]), torch.tensor([len(units)]), torch.zeros(1, 512)
        )
    assert given.labels.tolist() == [*units, 20]
    expected = units if len(units) == 14 else [*units, 20]  # a turn that reached max_units has no eos
    assert given.logits.argmax(-1).tolist()[: len(expected)] == expected


def test_streamed_inputs_are_those_of_training(decoder):
    seen = []
    decoder.lm.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    conditions = torch.randn(1, 5, 16)
    units = [u for group in spoken(decoder, conditions, [1] * 5, Scripted([3, 1, 4, 1, 5, 9, 2, 6, 20])) for u in group]
    assert units == [3, 1, 4, 1, 5, 9, 2, 6]
    streamed = torch.cat(seen, dim=1)
    seen.clear()
    with torch.inference_mode():
        decoder(conditions, torch.tensor([5]), torch.tensor([units]), torch.tensor([8]), torch.zeros(1, 512))
    assert seen[0].shape[1] == streamed.shape[1] + 1  # the closing unit is drawn, not fed
    assert_equal_but_for_rounding(streamed, seen[0][:, :-1])


def test_units_come_in_groups_as_soon_as_they_are_due(decoder):
    state = decoder.start_stream(torch.zeros(1, 512), Scripted([1, 2, 3, 4, 5, 6, 7, 20]))
    conditions = torch.randn(1, 5, 16)
    with torch.inference_mode():
        given = [
            list(decoder.stream(piece, state, last=number == 4))
            for number, piece in enumerate(conditions.split(1, dim=1))
        ]
    assert given == [[], [[1, 2, 3]], [], [[4, 5, 6]], [[7]]]


def test_speech_may_end_before_the_text(decoder):
    assert spoken(decoder, torch.randn(1, 7, 16), [1] * 7, Scripted([1, 2, 3, 4, 20])) == [[1, 2, 3], [4]]


def test_a_turn_ends_at_max_units(decoder):
    groups = spoken(decoder, torch.randn(1, 2, 16), [2], Scripted([7] * 99))
    assert sum(groups, []) == [7] * 14
