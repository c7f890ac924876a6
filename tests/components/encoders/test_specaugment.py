"""SpecAugment: where masks may lie, what they hide, and that they are drawn by the seed, in training alone."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.encoders.qwen2_audio import Qwen2AudioEncoder
from lightning_s2s.components.encoders.specaugment import SpecAugment, draw_mask, draw_spans
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from parts.batches import speech
from parts.small_sizes import QWEN2_AUDIO, WHISPER
from parts.tolerances import assert_equal_but_for_rounding


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the stretches of True."""
    return [len(run) for run in "".join("1" if value else "0" for value in row.tolist()).split("0") if run]


def test_a_mask_is_one_stretch_inside_its_clip():
    lengths = torch.tensor([30, 10, 1, 0]).repeat_interleave(500)
    masks = draw_mask(lengths, 30, 12)
    assert masks.shape == (2000, 30)
    sizes = masks.sum(1)
    assert all(len(runs(row)) <= 1 for row in masks)
    assert not (masks & (torch.arange(30) >= lengths.unsqueeze(1))).any()
    assert sizes.view(4, 500).max(1).values.tolist() == [12, 10, 1, 0]
    counts = sizes[:500].bincount(minlength=13)
    assert int(counts.min()) > 500 / 13 / 2.5  # 0 to 12 about equally often
    assert masks[:500].any(0)[:29].all()


def test_spans_have_one_length_and_lie_inside_their_clip():
    lengths = torch.tensor([40] * 300 + [9] * 300 + [3] * 300)
    spans = draw_spans(lengths, 40, 0.1, 4)
    assert not (spans & (torch.arange(40) >= lengths.unsqueeze(1))).any()
    assert min(min(runs(row), default=4) for row in spans) == 4
    assert not spans[600:].any()
    assert 0.07 < float(spans[:300].float().mean()) < 0.1
    assert not draw_spans(lengths, 40, 0.0, 4).any()
    every = draw_spans(torch.tensor([6]), 8, 1.0, 1)
    assert every.tolist() == [[True] * 6 + [False] * 2]


def test_what_is_hidden_becomes_the_clips_mean_and_nothing_else_changes():
    augment = SpecAugment(time_masks=1, mel_masks=1, time_mask_frames=5, mel_mask_bands=3)
    features, lengths = torch.randn(50, 8, 20), torch.full((50,), 12)
    result = augment(features, lengths)
    changed = result != features
    means = features[..., :12].mean((1, 2))
    assert_equal_but_for_rounding(result[changed], means.view(-1, 1, 1).expand_as(features)[changed])
    assert changed.any() and not changed[..., 12:].any()
    times, bands = changed.all(1).sum(1), changed[..., :12].all(2).sum(1)
    assert int(times.max()) <= 5 and int(bands.max()) <= 3 and int(times.max()) > 0 and int(bands.max()) > 0
    assert torch.equal(augment.eval()(features, lengths), features)


@pytest.mark.parametrize("kind", ["mel", "whisper", "qwen2_audio"])
@pytest.mark.parametrize("axis", ["time_masks", "mel_masks"])
def test_encoders_mask_while_training_by_the_seed(kind, axis):
    still = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    plain = {"dropout": 0.0, "gain_db": 0.0, "mel_warp": 0.0, "time_warp": 0.0, "time_masks": 0, "mel_masks": 0}

    def build(**options):
        torch.manual_seed(0)
        if kind == "mel":
            return MelEncoder(**{"width": 16, "num_layers": 1, "num_heads": 2, **plain, **options})
        if kind == "whisper":
            return WhisperEncoder(None, WHISPER | still, **options)
        return Qwen2AudioEncoder(None, QWEN2_AUDIO | still, **options)

    batch = speech(8_000)
    encoder, off = build(**{axis: 2, "mel_mask_bands": 6}), build()
    expected = off.eval()(*batch)[0]
    assert_equal_but_for_rounding(off.train()(*batch)[0], expected)
    assert_equal_but_for_rounding(encoder.eval()(*batch)[0], expected)
    encoder.train()
    heard = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heard.append(encoder(*batch)[0])
    assert torch.equal(heard[0], heard[1])
    assert not torch.allclose(heard[0], expected, atol=1e-4) and not torch.allclose(heard[0], heard[2], atol=1e-4)
