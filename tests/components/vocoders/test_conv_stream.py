"""Layers of a convolutional decoder chunk by chunk: what torch gives in one shot, over strides, paddings and cuts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s2s.components.vocoders.conv_stream import ConvStream, fold_weight_norms, pad_front
from parts.tolerances import assert_equal_but_for_rounding

NUM_FRAMES = 23
CUTS = ([1] * 23, [23], [2, 0, 9, 0, 0, 12], [0, 5, 18], [22, 1])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, NUM_FRAMES, generator=torch.Generator().manual_seed(0))


def run(step, x: Tensor, cut: list[int]) -> Tensor:
    """`step(state, frames, last)` over the pieces, closed on its own."""
    state = ConvStream()
    chunks = [step(state, piece, False) for piece in x.split(cut, dim=-1)]
    return torch.cat([*chunks, step(state, x[..., :0], True)], dim=-1)


@pytest.mark.parametrize("cut", CUTS, ids=len)
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (7, 3), (5, 9)])
@torch.no_grad()
def test_a_convolution_that_looks_to_both_sides(x, kernel, dilation, cut):
    for padding in (dilation * (kernel // 2), "same"):
        layer = nn.Conv1d(3, 4, kernel, dilation=dilation, padding=padding)
        streamed = run(lambda state, frames, last, layer=layer: state.conv(layer, frames, last), x, cut)
        assert_equal_but_for_rounding(streamed, layer(x))


@pytest.mark.parametrize("cut", CUTS, ids=len)
@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("num_frames", [1, 4, 6, 7, 23])
@torch.no_grad()
def test_a_causal_convolution(x, mode, num_frames, cut):
    layer, x = nn.Conv1d(3, 4, 4, dilation=2), x[..., :num_frames]
    missing = max(0, 7 - num_frames) if mode == "reflect" else 0
    expected = layer(F.pad(F.pad(x, (0, missing)), (6, 0), mode))[..., :num_frames]
    cut = cut if num_frames == NUM_FRAMES else [1] * num_frames
    streamed = run(lambda state, frames, last: state.conv(layer, frames, last, lookahead=0, mode=mode), x, cut)
    assert_equal_but_for_rounding(streamed, expected)


@pytest.mark.parametrize("cut", CUTS, ids=len)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(4, 2, 1), (10, 5, 3), (11, 5, 3), (6, 3, 2), (2, 2, 0), (8, 2, 3)]
)
@torch.no_grad()
def test_a_transposed_convolution(x, kernel, stride, padding, cut):
    layer = nn.ConvTranspose1d(3, 4, kernel, stride, padding)
    streamed = run(lambda state, frames, last: state.transposed(layer, frames, last), x, cut)
    assert_equal_but_for_rounding(streamed, layer(x))


@pytest.mark.parametrize("cut", CUTS, ids=len)
@torch.no_grad()
def test_a_causal_transposed_convolution(x, cut):
    layer = nn.ConvTranspose1d(3, 3, 4, 2, groups=3, bias=False)
    streamed = run(lambda state, frames, last: state.transposed(layer, frames, last, causal=True), x, cut)
    assert_equal_but_for_rounding(streamed, layer(x)[..., : 2 * NUM_FRAMES])


@torch.no_grad()
def test_branches_that_are_differently_late_are_added_frame_by_frame(x):
    near, far, block = nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 3, 9, padding=4), nn.Identity()

    def step(state: ConvStream, frames: Tensor, last: bool) -> Tensor:
        return state.add(block, state.conv(near, frames, last), state.conv(far, frames, last))

    assert_equal_but_for_rounding(run(step, x, [3, 3, 0, 17]), near(x) + far(x))


@torch.no_grad()
def test_sound_is_given_as_soon_as_it_is_final(x):
    layer, state = nn.Conv1d(3, 3, 5, padding=2), ConvStream()
    assert [state.conv(layer, x[..., i : i + 1], False).shape[-1] for i in range(6)] == [0, 0, 1, 1, 1, 1]


def test_nothing_at_all_gives_nothing(x):
    state, none = ConvStream(), x[..., :0]
    assert state.conv(nn.Conv1d(3, 4, 3, padding=1), none, True).shape == (2, 4, 0)
    assert state.transposed(nn.ConvTranspose1d(3, 4, 4, 2, 1), none, True).shape == (2, 4, 0)


def test_what_is_reflected():
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert pad_front(x, 2, "reflect").tolist() == [[[3, 2, 1, 2, 3]]]
    assert pad_front(x[..., :2], 3, "reflect").tolist() == [[[0, 0, 2, 1, 2]]]
    assert pad_front(x, 2, "constant").tolist() == [[[0, 0, 1, 2, 3]]]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_folded_weight_norm_computes_the_same(x):
    layers = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3)), nn.utils.weight_norm(nn.Conv1d(4, 2, 3))
    )
    before = layers(x)
    fold_weight_norms(layers)
    assert sorted(layers.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert_equal_but_for_rounding(layers(x), before)
