"""`mtp`: the layout of units, by hand; the inputs, draws and end of steps; invalid settings."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.speech_decoders.mtp import MtpSpeechDecoder, StepPattern
from lightning_s2s.generation.sampling import Sampler
from parts.small_decoders import NUM_UNITS, Endless, Scripted, connected, flat, spoken, watch_inputs
from parts.small_sizes import DEEP_QWEN
from parts.tolerances import assert_equal_but_for_rounding

EOS = NUM_UNITS


def decoder_for(interleave: str, units_per_step: int, pattern: str = "group", **options) -> MtpSpeechDecoder:
    torch.manual_seed(0)
    decoder = MtpSpeechDecoder(interleave, units_per_step, pattern, **{"config": DEEP_QWEN, "max_units": 24} | options)
    decoder.connect(8, 30, NUM_UNITS)
    return decoder.eval()


@pytest.mark.parametrize(
    ("delays", "num_units", "expected"),
    [
        ((0, 0), 1, [[0, -1]]),
        ((0, 0), 4, [[0, 1], [2, 3]]),
        ((0, 0, 0), 4, [[0, 1, 2], [3, -1, -1]]),
        ((0,), 3, [[0], [1], [2]]),
        # Two frames of two codebooks, and eos at place 4, where the third frame would begin.
        ((0, 1), 5, [[0, -1], [2, 1], [4, 3]]),
        # One frame of three codebooks and eos.
        ((0, 1, 2), 4, [[0, -1, -1], [3, 1, -1], [-1, -1, 2]]),
        # Three frames of four codebooks and eos: the triangles of MusicGen's figure.
        (
            (0, 1, 2, 3),
            13,
            [[0, -1, -1, -1], [4, 1, -1, -1], [8, 5, 2, -1], [12, 9, 6, 3], [-1, -1, 10, 7], [-1, -1, -1, 11]],
        ),
        ((0, 1, 2), 1, [[0, -1, -1]]),  # a turn without units
    ],
)
def test_layouts_written_by_hand(delays, num_units, expected):
    places, num_steps = StepPattern(delays).layout(torch.tensor([num_units]))
    assert places.tolist() == [expected] and num_steps.tolist() == [len(expected)]


def test_turns_of_two_lengths_in_one_layout():
    places, num_steps = StepPattern((0, 1)).layout(torch.tensor([3, 5]))
    assert places.tolist() == [[[0, -1], [2, 1], [-1, -1]], [[0, -1], [2, 1], [4, 3]]]
    assert num_steps.tolist() == [2, 3]


def test_groups_are_given_as_soon_as_they_are_due():
    decoder = decoder_for("2:4", 2)
    sampler = Scripted([1, 2, 3, 4, 5, 6, 7, EOS])
    assert spoken(decoder, torch.randn(1, 5, 16), [1] * 5, sampler) == [[], [[1, 2, 3, 4]], [], [[5, 6, 7]], []]


def test_an_eos_ends_its_step():
    sampler = Scripted([1, 2, 3, 4, 5, EOS])
    assert spoken(decoder_for("1:4", 4), torch.randn(1, 3, 16), [3], sampler) == [[[1, 2, 3, 4], [5]]]
    assert not sampler.units


def test_a_delayed_frame_is_given_when_its_last_codebook_is_drawn():
    """Frames (0 4 8) (1 5 9) (2 6 10), one step per condition, and the rest after the last."""
    decoder = decoder_for("1:3", 3, "delay")
    sampler = Scripted([0, 1, 4, 2, 5, 8, EOS, 6, 9, 10])
    given = spoken(decoder, torch.randn(1, 4, 16), [1] * 4, sampler)
    assert given == [[], [], [[0, 4, 8]], [[1, 5, 9], [2, 6, 10]]]
    assert not sampler.units


def test_delayed_slots_are_drawn_from_their_own_codebook():
    """Three codebooks of four units; a turn ends only after a complete frame."""
    sampler = Scripted([0, 1, 4, 2, 5, 8, EOS, 6, 9, 10])
    spoken(decoder_for("1:3", 3, "delay"), torch.randn(1, 4, 16), [4], sampler)
    allowed = [{*range(0, 4), EOS}, {*range(4, 8)}, {*range(8, 12)}]
    slots = [0, 0, 1, 0, 1, 2, 0, 1, 2, 2]
    assert [set(logits.isfinite().nonzero().flatten().tolist()) for logits in sampler.seen] == [
        allowed[slot] for slot in slots
    ]


@pytest.mark.parametrize(
    ("pattern", "drawn", "units"),
    [
        ("group", [3, 1, 4, 1, 5, 9, 2, EOS], [3, 1, 4, 1, 5, 9, 2]),
        ("delay", [0, 1, 4, 2, 5, 8, EOS, 6, 9, 10], [0, 4, 8, 1, 5, 9, 2, 6, 10]),
    ],
)
def test_streamed_inputs_and_logits_are_those_of_training(pattern, drawn, units):
    decoder = decoder_for("2:3", 3, pattern)
    conditions, sampler = torch.randn(1, 5, 16), Scripted(drawn)
    seen = watch_inputs(decoder)
    assert flat(spoken(decoder, conditions, [1] * 5, sampler)) == units
    streamed = torch.cat(seen, dim=1)
    seen.clear()
    with torch.inference_mode():
        given = decoder(
            conditions, torch.tensor([5]), torch.tensor([units]), torch.tensor([len(units)]), torch.zeros(1, 512)
        )
    # The last step is drawn, but never read.
    assert_equal_but_for_rounding(streamed, seen[0][:, :-1])
    # Streaming is ordered by step, training by slot: compare the probabilities of the drawn units.
    chosen = torch.stack([logits.log_softmax(0)[token] for logits, token in zip(sampler.seen, drawn, strict=True)])
    taught = given.logits.log_softmax(-1).gather(1, given.labels.unsqueeze(1)).squeeze(1)
    assert_equal_but_for_rounding(chosen.sort().values, taught.sort().values)


def test_fewer_steps_for_the_same_speech():
    """24 units, four at a time: one forward of the LM for each four."""
    runs = {}
    for name, decoder in (
        ("mtp", decoder_for("1:8", 4)),
        ("interleaved", InterleavedSpeechDecoder("1:8", DEEP_QWEN, max_units=24)),
    ):
        if name == "interleaved":
            decoder.connect(8, 30, NUM_UNITS)
        seen = watch_inputs(decoder.eval())
        assert len(flat(spoken(decoder, torch.randn(1, 3, 16), [3], Endless()))) == 24
        runs[name] = len(seen)
    assert runs == {"mtp": 6, "interleaved": 24}


@pytest.mark.parametrize(("pattern", "max_units", "expected"), [("group", 10, 8), ("delay", 10, 8), ("delay", 4, 4)])
def test_a_turn_ends_at_max_units_in_whole_steps(pattern, max_units, expected):
    decoder = decoder_for("2:4", 4, pattern, max_units=max_units)
    for sizes in ([6], [1] * 6):
        assert len(flat(spoken(decoder, torch.randn(1, 6, 16), sizes, Endless()))) == expected


def test_a_repetition_penalty_knows_units_of_delayed_codebooks_by_their_ids():
    sampler = Sampler(temperature=0.0, repetition_penalty=1.5)
    units = flat(spoken(decoder_for("1:3", 3, "delay"), torch.randn(1, 6, 16), [6], sampler))
    assert [unit // 4 for unit in units] == [0, 1, 2] * (len(units) // 3)
    assert set(units) <= set(sampler.drawn) <= {*range(EOS + 1)}


def test_unit_dropout_blanks_while_training_alone():
    decoder = connected("mtp group", unit_dropout=0.5)
    ids, there = torch.randint(0, NUM_UNITS, (1, 4, 3)), torch.ones(1, 4, 3, dtype=torch.bool)
    assert torch.equal(decoder.embed_steps(ids, there), decoder.embed_steps(ids, there))
    decoder.train()
    assert not torch.equal(decoder.embed_steps(ids, there), decoder.embed_steps(ids, there))


def test_the_units_of_a_step_are_told_apart():
    """The order of the units in a step matters."""
    decoder, there = decoder_for("1:2", 2), torch.ones(1, 1, 2, dtype=torch.bool)
    forth, back = (decoder.embed_steps(torch.tensor([[ids]]), there) for ids in ([3, 5], [5, 3]))
    assert not torch.allclose(forth, back, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interleave": "4:6"}, "interleave '4:6' gives 6 units at a time, which is no multiple of units_per_step 4"),
        ({"units_per_step": 0}, "units_per_step must be at least 1; got 0"),
        ({"pattern": "flat"}, "pattern must be group or delay; got 'flat'"),
        ({"max_units": 3}, "max_units must be at least units_per_step, 4; got 3"),
        ({"num_units": 0}, "num_units must be at least 1; got 0"),
        ({"interleave": "4-8"}, "expected 'N:M'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message) as error:
        MtpSpeechDecoder(**options)
    assert "\n" not in str(error.value)


def test_codebooks_of_one_size_are_needed():
    decoder = MtpSpeechDecoder("2:5", 5, "delay", DEEP_QWEN)
    assert decoder.codebooks_per_frame == 5 and MtpSpeechDecoder("2:5", 5).codebooks_per_frame is None
    with pytest.raises(ValueError, match="units_per_step, 5; 12 units can't be divided so"):
        decoder.connect(8, 30, NUM_UNITS)


@pytest.mark.parametrize(("units", "named"), [([0, 4, 8, 1, 9, 5], "unit 9 .* codebook 1, which has 4..7"),
                                              ([0, 4, 8, 1, 5], r"frames of 3 units; got turns of \[5\]")])  # fmt: skip
def test_units_in_the_wrong_codebook_are_refused(units, named):
    decoder = decoder_for("2:3", 3, "delay")
    with pytest.raises(ValueError, match=named):
        decoder(
            torch.randn(1, 3, 16), torch.tensor([3]), torch.tensor([units]), torch.tensor([len(units)]),
            torch.zeros(1, 512),
        )  # fmt: skip
