"""`ctc`: paths and distances by hand, the loss over all paths, chunk borders, turns that don't fit."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from lightning_s2s.components.ctc import collapse, edit_distances, frames_needed
from lightning_s2s.components.speech_decoders.ctc import CtcSpeechDecoder
from lightning_s2s.components.unit_logits import CtcLogits
from lightning_s2s.stages.losses import ctc_accuracy, ctc_loss
from parts.small_decoders import NUM_UNITS, Scripted, connected, flat, spoken, watch_inputs
from parts.small_sizes import DEEP_QWEN
from parts.tolerances import assert_equal_but_for_rounding

B = NUM_UNITS
"""The blank."""


@pytest.mark.parametrize(
    ("path", "previous", "units"),
    [
        ([5, 5, B, 5, 2, 2, B], B, [5, 5, 2]),
        ([B, B, B], B, []),
        ([3, 3, 3], B, [3]),
        ([3, 3, 3], 3, []),  # continues the unit of the previous chunk
        ([3, B, 3], 3, [3]),
        ([B, 3], 3, [3]),
        ([], 3, []),
    ],
)
def test_paths_collapse(path, previous, units):
    assert collapse(torch.tensor(path, dtype=torch.long), B, previous).tolist() == units


def test_frames_that_units_need():
    units = torch.tensor([[7, 7, 7, 2], [1, 2, 0, 0], [4, 4, 4, 4], [1, 0, 0, 0]])
    assert frames_needed(units, torch.tensor([4, 2, 1, 0])).tolist() == [6, 2, 1, 0]


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0), ("abc", "", 3), ("", "abcd", 4), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2),
        ("sunday", "saturday", 3), ("aaaa", "aa", 2),
    ],
)  # fmt: skip
def test_edit_distances(first, second, distance):
    """Alone, and beside a longer pair that pads both."""
    others = ("abcdefghij", "bcdefghijklm")
    for pairs in ([(first, second)], [others, (first, second)]):
        arguments = []
        for words in zip(*pairs, strict=True):
            coded = [torch.tensor([*word.encode()], dtype=torch.long) for word in words]
            lengths = torch.tensor([len(word) for word in words])
            arguments += [torch.nn.utils.rnn.pad_sequence(coded, batch_first=True), lengths]
        assert edit_distances(*arguments).tolist()[-1] == distance


def logits_of(paths: list[list[int]], num_ids: int) -> torch.Tensor:
    """(M, F, V) logits that make each path by far the most likely."""
    return 20.0 * torch.nn.functional.one_hot(torch.tensor(paths), num_ids).float()


def test_the_loss_is_that_of_all_paths_together():
    """Units 0, 1 with the blank 2, in 4 frames: sums over all 81 paths."""
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 3), [0, 1, 1]
    log_probs = logits[0].log_softmax(-1)
    paths = [
        sum(log_probs[frame, token] for frame, token in enumerate(path))
        for path in itertools.product(range(3), repeat=4)
        if collapse(torch.tensor(path), 2, 2).tolist() == labels
    ]
    expected = -torch.logsumexp(torch.stack(paths), 0) / len(labels)
    given = CtcLogits(logits, torch.tensor([labels]), torch.tensor([4]), torch.tensor([3]))
    assert_equal_but_for_rounding(ctc_loss(given), expected)


def test_a_turn_that_does_not_fit_is_left_out_of_the_loss():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, requires_grad=True)
    both = CtcLogits(logits, torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0]]), torch.tensor([4, 4]), torch.tensor([2, 3]))
    first = CtcLogits(logits[:1], both.labels[:1], both.logit_lengths[:1], both.label_lengths[:1])
    loss = ctc_loss(both)
    assert_equal_but_for_rounding(loss, ctc_loss(first))
    loss.backward()
    assert logits.grad[0].abs().sum() > 0 and logits.grad[1].abs().sum() == 0


def test_accuracy_is_one_less_the_unit_error_rate():
    """[5 2 2] for [5 2 3]: one wrong; [7] for [7 7]: one missing; frames behind the end are blank."""
    logits = logits_of([[5, 5, 2, B, 2], [7, 7, B, 1, 1]], B + 1)
    labels, lengths = torch.tensor([[5, 2, 3], [7, 7, 0]]), torch.tensor([3, 2])
    given = CtcLogits(logits, labels, torch.tensor([5, 3]), lengths)
    assert float(ctc_accuracy(given)) == pytest.approx(1 - 2 / 5)


def with_path(decoder: CtcSpeechDecoder, path: list[int], monkeypatch) -> None:
    """Make the decoder output the frames of a path, whatever it reads."""
    frames = iter(path)

    def forward_pending(states):
        (state,) = states
        size = sum(piece.shape[1] for piece in state.pending) - (state.num_spoken == 0)  # the speaker comes first
        state.pending = []
        ids = torch.tensor([[0] * (state.num_spoken == 0) + [next(frames) for _ in range(size)]])
        return [torch.nn.functional.one_hot(ids, 16).float()]

    monkeypatch.setattr(decoder, "forward_pending", forward_pending)
    with torch.no_grad():
        decoder.lm.get_output_embeddings().weight.copy_(torch.eye(B + 1, 16))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # Two conditions a chunk, two frames a condition: borders after 4 and 8 frames.
        ([5], [[[5, 5, 2], [3], [3]]]),
        ([1] * 5, [[], [[5, 5, 2]], [], [[3]], [[3]]]),
        ([3, 2], [[[5, 5, 2]], [[3], [3]]]),
    ],
)
def test_collapsed_across_the_borders_of_chunks(sizes, expected, monkeypatch):
    """5 _ 5 2 | 2 _ 3 3 | _ 3: the 2 continues across a border; at the next, a blank separates two 3s."""
    torch.manual_seed(0)
    decoder = CtcSpeechDecoder(2, 2, DEEP_QWEN)
    decoder.connect(8, 30, NUM_UNITS)
    with_path(decoder.eval(), [5, B, 5, 2, 2, B, 3, 3, B, 3], monkeypatch)
    assert spoken(decoder, torch.randn(1, 5, 16), sizes) == expected


def test_a_repeat_that_goes_on_over_a_border_is_one_unit(monkeypatch):
    torch.manual_seed(0)
    decoder = CtcSpeechDecoder(2, 1, DEEP_QWEN)
    decoder.connect(8, 30, NUM_UNITS)
    with_path(decoder.eval(), [4, 4, 4, 4, B, 4], monkeypatch)
    assert spoken(decoder, torch.randn(1, 3, 16), [1, 1, 1]) == [[[4]], [], [[4]]]


def test_no_unit_is_drawn_and_each_frame_is_read_once():
    """The sampler isn't called; three chunks are three forwards over 1 + 10, 10 and 5 frames."""
    decoder = connected("ctc")
    seen = watch_inputs(decoder)
    spoken(decoder, torch.randn(1, 5, 16), [1] * 5, Scripted([]))
    assert [inputs.shape[1] for inputs in seen] == [11, 10, 5]


def test_speech_ends_with_its_conditions():
    decoder = connected("ctc")
    assert decoder.eos_unit is None
    assert spoken(decoder, torch.randn(1, 0, 16), [0]) == [[]]
    whole = flat(spoken(decoder, 3 * torch.randn(1, 4, 16), [4]))
    assert len(whole) <= 4 * 5


def test_turns_that_do_not_fit_are_said_with_what_they_need():
    decoder = connected("ctc")  # upsampling 5

    def train(*units: list[int]) -> CtcLogits:
        lengths = torch.tensor([len(turn) for turn in units])
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(turn) for turn in units], batch_first=True)
        sizes = torch.full_like(lengths, 2)
        return decoder(torch.randn(len(units), 2, 16), sizes, padded, lengths, torch.zeros(len(units), 512))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train([1, 2] * 5)
        train([1] * 5)
    with pytest.warns(UserWarning, match="1 of 2 spoken turns .* upsampling 5 .* left out .* needs upsampling 6"):
        train([1] * 6, [1, 2])
    with warnings.catch_warnings():  # not repeated until a turn needs more
        warnings.simplefilter("error")
        train([1] * 6)
    with pytest.warns(UserWarning, match="2 of 2 .* needs upsampling 7"):
        given = train([1, 2] * 7, [1, 2] * 6)
    assert float(ctc_loss(given).detach()) == 0


def test_every_weight_of_the_layers_is_trained():
    """The embedding of the units gives the logits; there is no separate input embedding."""
    decoder = connected("ctc").train()
    given = decoder(
        decoder.project(torch.randn(1, 4, 8), torch.zeros(1, 4, dtype=torch.long)), torch.tensor([4]),
        torch.tensor([[1, 2, 3]]), torch.tensor([3]), torch.randn(1, 512),
    )  # fmt: skip
    ctc_loss(given).backward()
    idle = {name for name, parameter in decoder.named_parameters() if parameter.grad is None}
    assert idle == {"text_embedding.weight", "text_norm.weight", "text_norm.bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsampling": 0}, "upsampling must be between 1 and 1,000; got 0"),
        ({"chunk_conditions": 0}, "chunk_conditions must be at least 1; got 0"),
        ({"num_units": 0}, "num_units must be at least 1; got 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        CtcSpeechDecoder(**options)
