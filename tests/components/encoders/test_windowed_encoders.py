"""`whisper` and `qwen2_audio`: windows of 30 s, and the option to encode only the frames with audio."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_s2s.components.encoders.qwen2_audio import Qwen2AudioEncoder
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from parts.batches import assert_batched_equals_single, speech
from parts.paths import OPENS2S_CHECKPOINT
from parts.small_sizes import QWEN2_AUDIO, WHISPER
from parts.tolerances import assert_equal_but_for_rounding

OF_A_WINDOW = 4 * 1500
"""Roundings in units of eps: a few layers that each add up the 1,500 positions of 30 s."""
FIVE_SECONDS = 80_000


@pytest.fixture(params=["whisper", "whisper 50 Hz", "qwen2_audio"])
def make(request):
    """Builds one of the encoders; the same weights every time."""

    def build(**options):
        torch.manual_seed(0)
        if request.param == "qwen2_audio":
            return Qwen2AudioEncoder(None, QWEN2_AUDIO, **options).eval()
        pooling = 1 if "50" in request.param else 2
        return WhisperEncoder(None, WHISPER, pooling=pooling, **options).eval()

    return build


@torch.inference_mode()
def test_features_keep_their_precision_in_mixed_precision(make):
    encoder = make()
    waveform, lengths = speech(FIVE_SECONDS)
    expected = encoder.log_mel(waveform, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.log_mel(waveform, lengths), expected)
        assert encoder(waveform, lengths)[0].isfinite().all()


@torch.inference_mode()
def test_published_windows(make):
    """Each window of the whole clip's log-mel goes through transformers' encoder, padding and all."""
    encoder = make()
    waveform, lengths = speech(960_000 + FIVE_SECONDS)
    hidden, counts = encoder(waveform, lengths)
    rate = encoder.frame_rate_hz
    assert counts.tolist() == [65 * rate] and hidden.shape[1] == 65 * rate
    mel = encoder.log_mel(waveform, lengths)
    assert mel.shape[-1] == 9000
    for number, frames in enumerate((30, 30, 5)):
        window = encoder.encoder(mel[..., 3000 * number : 3000 * (number + 1)]).last_hidden_state
        if window.shape[1] == 1500 and rate == 25:
            window = window.unflatten(1, (750, 2)).mean(2)
        start = int(30 * rate) * number
        end = start + int(frames * rate)
        assert_equal_but_for_rounding(hidden[0, start:end], window[0, : int(frames * rate)])


@torch.inference_mode()
def test_a_batch_of_short_and_long_clips(make):
    for options in ({}, {"real_frames_only": True}):
        encoder = make(**options)
        counts = assert_batched_equals_single(
            encoder, *speech(8_000, 480_000 + FIVE_SECONDS, 479_000, 1_601), OF_A_WINDOW
        )
        assert counts == {50: [25, 1750, 1497, 6], 25: [12, 875, 748, 3]}[encoder.frame_rate_hz]


@torch.inference_mode()
def test_real_frames_only(make):
    """The same as the encoder without its padding: convolutions end where the audio ends, attention sees no more."""
    waveform, lengths = speech(FIVE_SECONDS)
    encoder = make(real_frames_only=True)
    hidden, counts = encoder(waveform, lengths)
    inner = encoder.encoder
    x = encoder.log_mel(waveform, lengths)[..., :500]
    x = torch.nn.functional.gelu(inner.conv2(torch.nn.functional.gelu(inner.conv1(x)))).transpose(1, 2)
    x = x + inner.embed_positions.weight[:250]
    for layer in inner.layers:
        x = layer(x, None)
    if hasattr(inner, "avg_pooler"):
        expected = inner.layer_norm((x[:, 0::2] + x[:, 1::2]) / 2)
    else:
        expected = inner.layer_norm(x)
        if encoder.frame_rate_hz == 25:
            expected = (expected[:, 0::2] + expected[:, 1::2]) / 2
    assert_equal_but_for_rounding(hidden, expected)
    padded, same_counts = make()(waveform, lengths)
    assert counts.tolist() == same_counts.tolist()
    assert not torch.allclose(hidden, padded, atol=1e-4)  # stated as different


@torch.inference_mode()
def test_whole_windows_have_no_padding_to_leave_out(make):
    waveform, lengths = speech(480_000)
    assert_equal_but_for_rounding(make(real_frames_only=True)(waveform, lengths)[0], make()(waveform, lengths)[0])


@torch.inference_mode()
@pytest.mark.parametrize("real_frames_only", [False, True])
def test_a_layer_in_between(make, real_frames_only):
    """The output of that layer as it is: no norm, which belongs to the last; nothing above it is kept."""
    waveform, lengths = speech(480_000)
    whole = make()
    seen = []
    for layer in whole.encoder.layers:
        layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    last, counts = whole(waveform, lengths)
    (first_input, first_output), rate = seen[0], whole.frame_rate_hz
    assert_equal_but_for_rounding(make(layers=len(whole.encoder.layers))(waveform, lengths)[0], last)
    for layers, expected in ((0, first_input), (1, first_output)):
        if layers == len(whole.encoder.layers):
            continue
        encoder = make(layers=layers, real_frames_only=real_frames_only)
        hidden, same_counts = encoder(waveform, lengths)
        if rate == 25:
            expected = (expected[:, 0::2] + expected[:, 1::2]) / 2
        assert_equal_but_for_rounding(hidden, expected)
        assert same_counts.tolist() == counts.tolist() and len(encoder.encoder.layers) == layers
        assert not [name for name, _ in encoder.named_parameters() if name.startswith("encoder.layer_norm")]


def normalised(hidden):
    spread = hidden.var(-1, keepdim=True, correction=0) + 1e-5
    return (hidden - hidden.mean(-1, keepdim=True)) / spread.sqrt()


def in_pairs(hidden):
    return (hidden[:, 0::2] + hidden[:, 1::2]) / 2


@torch.inference_mode()
@pytest.mark.parametrize("real_frames_only", [False, True])
@pytest.mark.parametrize("layers", [[0, -1], [-1, 0]])
def test_several_layers_side_by_side(make, layers, real_frames_only):
    """The lower one first, of mean 0 and variance 1; the last as it is alone, by its own norm."""
    waveform, lengths = speech(480_000)
    whole = make()
    seen = []
    whole.encoder.layers[0].register_forward_hook(lambda _, args, output: seen.append(args[0]))
    last, counts = whole(waveform, lengths)
    if hasattr(whole.encoder, "avg_pooler"):
        first = normalised(in_pairs(seen[0]))
    else:
        first = normalised(seen[0])
        first = in_pairs(first) if whole.frame_rate_hz == 25 else first
    encoder = make(layers=layers, real_frames_only=real_frames_only)
    hidden, same_counts = encoder(waveform, lengths)
    assert same_counts.tolist() == counts.tolist() and encoder.width == 32
    assert_equal_but_for_rounding(hidden, torch.cat([first, last], -1))


@torch.inference_mode()
def test_several_layers_below_the_last():
    """What lies above is dropped, its norm too."""
    batch = speech(FIVE_SECONDS)
    encoders = [Qwen2AudioEncoder(None, QWEN2_AUDIO, layers=layers).eval() for layers in (0, 1, [0, 1])]
    for encoder in encoders[:2]:
        encoder.load_state_dict(encoders[2].state_dict(), strict=False)
    first, second, both = (encoder(*batch)[0] for encoder in encoders)
    assert_equal_but_for_rounding(both, torch.cat([normalised(first), normalised(second)], -1))
    assert len(encoders[2].encoder.layers) == 1
    assert not [name for name, _ in encoders[2].named_parameters() if name.startswith("encoder.layer_norm")]


@torch.inference_mode()
def test_several_layers_batched_and_single(make):
    for real_frames_only in (False, True):
        encoder = make(layers=[0, -1], real_frames_only=real_frames_only)
        assert_batched_equals_single(encoder, *speech(8_000, FIVE_SECONDS, 1_601), OF_A_WINDOW)


def test_a_folder_keeps_the_layer(make, tmp_path):
    encoder = make(layers=0, time_masks=1)
    again = type(encoder)(**encoder.pretrained_args(tmp_path)).eval()
    again.load_state_dict(encoder.state_dict())
    batch = speech(8_000)
    assert torch.equal(again(*batch)[0], encoder(*batch)[0])
    assert (len(again.encoder.layers), again.spec_augment.time_masks) == (0, 1)


@pytest.mark.parametrize("layers", [9, "weighted", "last", [], [0, 9], [0, 0], ["weighted"]])
def test_layers_that_are_not_there(make, layers):
    with pytest.raises(ValueError, match=r"layers(\[0\])? must be"):
        make(layers=layers)


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["audio_tower.", "model.audio_tower.", ""])
def test_the_encoder_out_of_a_larger_checkpoint(prefix, tmp_path):
    """Only the files that hold the encoder need to be there."""
    torch.manual_seed(0)
    original = Qwen2AudioEncoder(None, QWEN2_AUDIO).eval()
    tensors = {f"{prefix}{name}": t.bfloat16().clone() for name, t in original.encoder.state_dict().items()}
    config = QWEN2_AUDIO if not prefix else {"audio_config": QWEN2_AUDIO, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if prefix:
        names = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
        other = {"language_model.lm_head.weight": "model-00002-of-00002.safetensors"}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names | other}))
    save_file(tensors, tmp_path / ("model-00001-of-00002.safetensors" if prefix else "model.safetensors"))
    encoder = Qwen2AudioEncoder(str(tmp_path)).eval()
    expected = {name: tensor.bfloat16().float() for name, tensor in original.encoder.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.encoder.state_dict().items())
    assert encoder.pretrained_args(tmp_path)["config"]["d_model"] == 16


def test_the_encoder_of_an_opens2s_folder():
    encoder = Qwen2AudioEncoder(str(OPENS2S_CHECKPOINT))
    tensors = load_file(OPENS2S_CHECKPOINT / "model.safetensors")
    own = encoder.encoder.state_dict()
    assert all(
        torch.equal(own[n.split(".", 1)[1]], t) for n, t in tensors.items() if n.startswith("audio_encoder_model.")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint": None}, "give either checkpoint or config"),
        ({"checkpoint": "no/such-model-here"}, "no/such-model-here: neither a folder nor a hub id of Qwen2-Audio"),
        ({"config": {**QWEN2_AUDIO, "max_source_positions": 100}}, "max_source_positions must be 1500"),
    ],
)
def test_what_can_not_be_built(arguments, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        Qwen2AudioEncoder(**arguments)
