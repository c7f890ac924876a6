"""`s3prl`: upstreams without weights, upstreams from a checkpoint, folders, and checkpoints that aren't trusted."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from parts.batches import assert_batched_equals_single, speech
from parts.tolerances import assert_equal_but_for_rounding

pytest.importorskip("s3prl")

from lightning_s2s.components.encoders.s3prl import S3prlEncoder, import_s3prl, outline  # noqa: E402
from lightning_s2s.components.weights import parameters_on_meta  # noqa: E402
from lightning_s2s.support.extras import MissingPackageError  # noqa: E402

APC = {"hidden_size": 6, "num_layers": 3, "dropout": 0.0, "residual": True}


def apc_content() -> dict:
    """What s3prl saves of an APC: three GRU layers over 80 log-mel bands, here with random weights."""
    import_s3prl()
    from s3prl.upstream.apc.apc import APC as Apc

    torch.manual_seed(0)
    audio = {"feat_type": "fbank", "feat_dim": 80, "frame_length": 25, "frame_shift": 10, "cmvn": True}
    model = Apc(80, **APC)
    return {"config": {"data": {"audio": audio}, "model": {"paras": APC}}, "model": model.state_dict(), "step": 7}


@pytest.fixture
def apc(tmp_path) -> str:
    path = tmp_path / "apc.ckpt"
    torch.save(apc_content(), path)
    return str(path)


def test_fbank():
    """80 log-mel bands with deltas and double deltas at 100 Hz; nothing to learn and nothing to sum."""
    encoder = S3prlEncoder("fbank").eval()
    assert (encoder.width, encoder.frame_rate_hz, encoder.layer_sum) == (240, 100.0, None)
    assert assert_batched_equals_single(encoder, *speech(16_000, 8_001, 16_000, 4_800)) == [100, 51, 100, 30]
    assert encoder.state_dict() == {}


def test_a_padded_batch_lets_padding_change_a_clip():
    """Why clips of other lengths are encoded one after the other."""
    waveform, lengths = speech(8_000, 5_000)
    one_by_one, counts = S3prlEncoder("fbank")(waveform, lengths)
    padded, same_counts = S3prlEncoder("fbank", pad_batches=True)(waveform, lengths)
    assert counts.tolist() == same_counts.tolist() == [50, 32]
    torch.testing.assert_close(padded[1, :29], one_by_one[1, :29])  # as many frames of 25 ms as the clip holds
    assert not torch.isclose(padded[1, 29:32], one_by_one[1, 29:32]).any()


def test_layers_are_summed_as_s3prl_sums_them(apc):
    encoder = S3prlEncoder("apc_local", apc).eval()
    assert (encoder.width, encoder.frame_rate_hz) == (6, 100.0)
    featurizer = import_s3prl().Featurizer(encoder.encoder)
    with torch.no_grad():
        encoder.layer_sum.weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
        featurizer.weights.copy_(encoder.layer_sum.weights)
    waveform, lengths = speech(8_000)
    layers, layer_lengths = encoder.encoder(waveform, lengths)
    assert_equal_but_for_rounding(encoder(waveform, lengths)[0], featurizer(layers, layer_lengths)[0])
    for option, place in ((0, 0), (-1, 2)):
        hidden, _ = S3prlEncoder("apc_local", apc, layers=option)(waveform, lengths)
        assert_equal_but_for_rounding(hidden, layers[place])


def test_batched_equals_single_and_layers_are_learnt(apc):
    encoder = S3prlEncoder("apc_local", apc).eval()
    batch = speech(8_000, 6_400, 5_001)
    assert assert_batched_equals_single(encoder, *batch) == [50, 40, 32]
    encoder.train()(*batch)[0].square().sum().backward()
    assert encoder.layer_sum.weights.grad.abs().min() > 0
    assert encoder.encoder.upstream.model.rnn_layers[0].weight_ih_l0.grad.abs().sum() > 0


def test_a_folder_needs_no_checkpoint(apc, tmp_path):
    encoder = S3prlEncoder("apc_local", apc).eval()
    arguments = json.loads(json.dumps(encoder.pretrained_args(tmp_path)))
    assert arguments["checkpoint"] is None
    (tmp_path / "apc.ckpt").unlink()
    with parameters_on_meta():
        again = S3prlEncoder(**arguments)
    again.load_state_dict(encoder.state_dict(), assign=True)
    batch = speech(8_000, 5_000)
    assert torch.equal(again.eval()(*batch)[0], encoder(*batch)[0])
    assert again.pretrained_args(tmp_path) == arguments


def test_outline(tmp_path):
    path = tmp_path / "c.pt"
    tensor = torch.zeros(2, 3, dtype=torch.float16)
    content = {"a": [1, (2.5, None)], "w": {"x": tensor, "y": torch.tensor(1)}, "name": "s", "flag": True}
    torch.save(content, path)
    assert outline(str(path)) == {
        "a": [1, [2.5, None]],
        "w": {"x": {"__tensor__": ["float16", 2, 3]}, "y": {"__tensor__": ["int64"]}},
        "name": "s",
        "flag": True,
    }
    for unfit in ({1: tensor}, {"args": argparse.Namespace(a=1)}):
        torch.save(unfit, path)
        assert outline(str(path)) is None


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
def test_a_checkpoint_with_code_must_be_trusted(tmp_path):
    path = tmp_path / "apc.ckpt"
    torch.save({**apc_content(), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ValueError, match="holds more than tensors and plain values.*trust_checkpoint: true") as error:
        S3prlEncoder("apc_local", str(path))
    assert "\n" not in str(error.value)
    encoder = S3prlEncoder("apc_local", str(path), trust_checkpoint=True)
    assert encoder.width == 6
    assert encoder.pretrained_args(tmp_path)["checkpoint"] == str(path)  # the file is needed again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fbnk", "a.ckpt"), "unknown upstream 'fbnk'; did you mean fbank"),
        (("apc_local",), "upstream apc_local needs a checkpoint"),
        (("apc_local", "no/such.ckpt"), "checkpoint no/such.ckpt: no such file"),
        (
            ("fbank", "a.ckpt"),
            "upstream fbank brings its own weights, and checkpoint must be null; it is for names that end in _l",
        ),
        (("fbank", None, None, 1), "layers must be 'weighted' or a number from -1 to 0; got 1"),
    ],
)
def test_what_can_not_be_built(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        S3prlEncoder(*arguments)
    assert "\n" not in str(error.value)


def test_layers_that_can_not_be_summed(monkeypatch):
    upstream = import_s3prl().S3PRLUpstream
    monkeypatch.setattr(upstream, "num_layers", 2)
    monkeypatch.setattr(upstream, "hidden_sizes", [240, 80])
    monkeypatch.setattr(upstream, "downsample_rates", [160, 320])
    with pytest.raises(ValueError, match=r"can't be summed, having widths \[80, 240\] and downsampling \[160, 320\]"):
        S3prlEncoder("fbank")
    encoder = S3prlEncoder("fbank", layers=1)
    assert (encoder.width, encoder.frame_rate_hz) == (80, 50.0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3prl.nn", None)
    with pytest.raises(MissingPackageError, match=r"the package s3prl.nn is missing; .* 'lightning-s2s\[ssl\]'"):
        S3prlEncoder("fbank")
