"""`linear` and `qformer`: lengths, padding that changes nothing, and what each position looks at."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.adapters.linear import LinearAdapter
from lightning_s2s.components.adapters.qformer import QformerAdapter
from parts.batches import assert_batched_equals_single
from parts.tolerances import assert_equal_but_for_rounding


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def qformer(frame_rate_hz: float = 25.0, **options) -> QformerAdapter:
    adapter = QformerAdapter(**{"width": 8, "num_layers": 1, "num_heads": 2, "num_queries": 3, **options})
    adapter.connect(6, 10, frame_rate_hz)
    return adapter.eval()


@pytest.mark.parametrize(("stacked", "counts"), [(1, [11, 7, 1]), (3, [4, 3, 1]), (5, [3, 2, 1])])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_linear(stacked, counts, layer_norm):
    adapter = LinearAdapter(stacked, hidden_width=4, layer_norm=layer_norm)
    adapter.connect(6, 8)
    hidden = torch.randn(3, 13, 6)  # what stands behind the lengths is not silent
    assert assert_batched_equals_single(adapter.eval(), hidden[:, :11], torch.tensor([11, 7, 1])) == counts
    assert adapter.downsampling == stacked


def test_linear_is_an_mlp_over_stacked_frames():
    adapter = LinearAdapter(2, hidden_width=4)
    adapter.connect(3, 5)
    hidden = torch.randn(1, 3, 3)
    out, counts = adapter(hidden, torch.tensor([3]))
    first = torch.cat([hidden[0, 0], hidden[0, 1]])
    last = torch.cat([hidden[0, 2], torch.zeros(3)])
    expected = adapter.fc2(torch.nn.functional.gelu(adapter.fc1(torch.stack([first, last]))))
    assert counts.tolist() == [2]
    assert_equal_but_for_rounding(out[0], expected)


def test_linear_layer_norm():
    adapter = LinearAdapter(2, 4, layer_norm=True)
    adapter.connect(3, 50)
    out, _ = adapter(torch.randn(1, 4, 3), torch.tensor([4]))
    torch.testing.assert_close(out.mean(-1), torch.zeros(1, 2), atol=1e-5, rtol=0)


def test_qformer_gives_its_queries_for_every_window_begun():
    adapter = qformer(window_sec=0.16)  # 4 frames of 25 Hz
    assert (adapter.window_frames, adapter.downsampling) == (4, 4 / 3)
    lengths = torch.tensor([13, 12, 5, 1])
    assert assert_batched_equals_single(adapter, torch.randn(4, 13, 6), lengths) == [12, 9, 6, 3]


@pytest.mark.parametrize(("rate", "frames"), [(25.0, 8), (50.0, 17), (100.0, 33)])
def test_qformer_windows_are_seconds_of_any_encoder(rate, frames):
    adapter = qformer(rate, window_sec=1 / 3, num_queries=1)
    assert adapter.window_frames == adapter.downsampling == frames
    assert adapter(torch.randn(1, 3 * frames, 6), torch.tensor([3 * frames]))[1].tolist() == [3]


def test_a_window_is_heard_by_its_own_positions_alone():
    adapter = qformer(window_sec=0.16)
    hidden, lengths = torch.randn(1, 12, 6), torch.tensor([12])
    before, _ = adapter(hidden, lengths)
    hidden[0, 5] += 1.0
    changed = (adapter(hidden, lengths)[0] != before).any(-1)[0]
    assert changed.tolist() == [False] * 3 + [True] * 3 + [False] * 3
    swapped = hidden[:, [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]]
    assert not torch.allclose(adapter(swapped, lengths)[0][0, 3:6], adapter(hidden, lengths)[0][0, 3:6], atol=1e-6)


def test_what_stands_behind_a_clip_is_not_heard():
    adapter = qformer(window_sec=0.16)
    hidden, lengths = torch.randn(1, 10, 6), torch.tensor([6])
    before, _ = adapter(hidden, lengths)
    hidden[0, 6:] = 9.0
    after, counts = adapter(hidden, lengths)
    assert counts.tolist() == [6]
    assert_equal_but_for_rounding(after[:, :6], before[:, :6])


@pytest.mark.parametrize(
    "adapter", [ConvAdapter(inner_width=4), LinearAdapter(3, 4, layer_norm=True), QformerAdapter(0.2, 2, 8, 2, 2)]
)
def test_every_parameter_is_trained_and_a_copy_gives_the_same(adapter):
    adapter.connect(6, 8, 25.0)
    hidden, lengths = torch.randn(2, 11, 6), torch.tensor([11, 4])
    out, _ = adapter(hidden, lengths)
    out.square().sum().backward()
    assert [name for name, parameter in adapter.named_parameters() if parameter.grad is None] == []
    torch.manual_seed(1)
    again = type(adapter)(**adapter.init_args)
    again.connect(6, 8, 25.0)
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(again(hidden, lengths)[0], out)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearAdapter(0), "downsampling must be at least 1; got 0"),
        (lambda: QformerAdapter(window_sec=0.0), "window_sec must be above 0"),
        (lambda: QformerAdapter(num_queries=0), "num_queries must be at least 1; got 0"),
        (lambda: QformerAdapter(width=10, num_heads=4), r"width must be a multiple of num_heads \(4\); got 10"),
        (lambda: qformer(25.0, window_sec=0.01), "window_sec 0.01 holds no frame of the encoder's 25.0 Hz"),
        (lambda: qformer(None), "needs the encoder's frame_rate_hz"),
    ],
)
def test_what_can_not_be_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()
