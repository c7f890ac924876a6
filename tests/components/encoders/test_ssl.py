"""`ssl`: parity with transformers on one clip, batches, layers, masks, folders, and what is refused."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from lightning_s2s.components.encoders.ssl import SslEncoder
from parts.batches import assert_batched_equals_single, speech
from parts.small_sizes import SSL_ENCODERS
from parts.tolerances import assert_equal_but_for_rounding

HUBERT = SSL_ENCODERS["hubert"]
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM of transformers


@pytest.fixture(params=list(SSL_ENCODERS))
def config(request):
    return SSL_ENCODERS[request.param]


def build(config, **options) -> SslEncoder:
    """The same weights every time."""
    torch.manual_seed(0)
    return SslEncoder(None, config, **options).eval()


def reference(config):
    """transformers' own model with the weights of `build`."""
    from transformers import AutoConfig, AutoModel

    settings = {key: value for key, value in config.items() if key != "model_type"}
    settings |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(config["model_type"], **settings)).eval()


def heard_by_transformers(config, waveform: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All hidden states of one clip, prepared by transformers' feature extractor, and the last one at the end."""
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

    extractor = (
        SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8)
        if config["model_type"] == "wav2vec2-bert"
        else Wav2Vec2FeatureExtractor(do_normalize=True)
    )
    inputs = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    inputs.pop("attention_mask", None)
    output = reference(config)(**inputs, output_hidden_states=True)
    return *output.hidden_states, output.last_hidden_state


@torch.inference_mode()
def test_one_clip_is_heard_as_transformers_hears_it(config):
    waveform, lengths = speech(8_000 + 240)  # an even number of mel frames
    *layers, last = heard_by_transformers(config, 0.3 + waveform[0])
    for option, expected in ((-1, last), (3, last), (0, layers[0]), (1, layers[1]), (-2, layers[2])):
        hidden, counts = build(config, layers=option)(0.3 + waveform, lengths)
        assert counts.tolist() == [25] and hidden.shape == (1, 25, 16)
        assert_equal_but_for_rounding(hidden, expected)
    encoder = build(config, layers="weighted")
    with torch.no_grad():
        encoder.layer_sum.weights.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).log())
    expected = (1 * layers[0] + 2 * layers[1] + 3 * layers[2] + 4 * layers[3]) / 10
    assert_equal_but_for_rounding(encoder(0.3 + waveform, lengths)[0], expected)


@pytest.mark.parametrize("layers", [-1, 1, "weighted"])
def test_batched_equals_single(config, layers):
    """Convolutions see 400 samples every 320; w2v-BERT two mel frames of 400 every 160."""
    encoder = build(config, layers=layers)
    counts = assert_batched_equals_single(encoder, *speech(16_000, 9_000, 720, 719))
    assert counts == ([49, 27, 1, 1] if encoder.takes_log_mel else [49, 27, 2, 1])
    assert (encoder.frame_rate_hz, encoder.width, encoder.sample_rate) == (50.0, 16, 16_000)


def test_what_lies_behind_a_clip_changes_nothing(config):
    encoder = build(config)
    waveform, lengths = speech(8_000, 5_000)
    expected, counts = encoder(waveform, lengths)
    waveform[1, 5_000:] = 7.0
    longer = torch.nn.functional.pad(waveform, (0, 3_000), value=-7.0)
    hidden, _ = encoder(longer, lengths)
    assert hidden.shape == expected.shape
    assert_equal_but_for_rounding(hidden[1, : counts[1]], expected[1, : counts[1]])


def test_normalisation_is_an_option():
    waveform, lengths = speech(8_000)
    loud, soft = (build(HUBERT, normalize=True)(gain * waveform, lengths)[0] for gain in (1.0, 0.1))
    torch.testing.assert_close(loud, soft, rtol=1e-3, atol=1e-3)
    # do_stable_layer_norm and "layer" would hide the level too; the raw convolutions of "layer" show it
    plain = build({**HUBERT, "feat_extract_norm": "layer"}, normalize=False)
    normal = build({**HUBERT, "feat_extract_norm": "layer"}, normalize=True)
    assert not torch.allclose(plain(0.5 + waveform, lengths)[0], normal(0.5 + waveform, lengths)[0], atol=1e-3)


@pytest.mark.parametrize("layers", [-1, 0, "weighted"])
def test_every_parameter_is_trained(config, layers):
    encoder = build(config, layers=layers).train()
    encoder(*speech(8_000, 5_000))[0].square().sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == []


def test_layers_above_the_one_that_is_heard_are_dropped(config):
    assert len(build(config, layers=1).encoder.encoder.layers) == 1
    assert len(build(config, layers=-1).encoder.encoder.layers) == 3


def test_a_frozen_front_end_keeps_no_gradients():
    encoder = build(HUBERT)
    names = [name for name, _ in encoder.named_parameters()]
    front = [name for name in names if name.startswith("encoder.feature_extractor.")]
    assert front  # what `freeze: [encoder.encoder.feature_extractor.*]` matches in a model
    encoder.encoder.feature_extractor.requires_grad_(False)
    seen = []
    encoder.encoder.feature_extractor.register_forward_hook(lambda _, args, output: seen.append(output.requires_grad))
    encoder.train()(*speech(8_000))[0].sum().backward()
    assert seen == [False]
    assert {name for name, parameter in encoder.named_parameters() if parameter.grad is None} == set(front)


def test_masks_are_off_by_default(config):
    silent = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    drawn = {"mask_time_prob": 0.9, "mask_feature_prob": 0.9, "layerdrop": 0.9}
    encoder = build({**config, **silent, "conformer_conv_dropout": 0.0, **drawn})
    batch = speech(16_000)
    expected = encoder(*batch)[0]
    assert_equal_but_for_rounding(encoder.train()(*batch)[0], expected)
    assert not any("masked_spec_embed" in name for name, _ in encoder.named_parameters())


def test_masks_hide_frames_of_the_clip_alone_and_repeat_with_the_seed(config):
    encoder = build(config, mask_time_prob=0.5, mask_time_length=4)
    batch = speech(16_000, 1_300)  # the second has 3 frames: too short for a span
    seen = []
    encoder.encoder.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    for mode, seed in ((False, 1), (True, 1), (True, 1), (True, 2)):
        torch.manual_seed(seed)
        encoder.train(mode)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        encoder(*batch)
    vector = encoder.encoder.masked_spec_embed.detach()
    hidden = [(frames == vector).all(-1) for frames in seen]
    assert not hidden[0].any() and torch.equal(hidden[1], hidden[2]) and not torch.equal(hidden[1], hidden[3])
    assert 4 <= int(hidden[1][0].sum()) < 49 and not hidden[1][1].any()


@pytest.mark.parametrize("layers", [2, "weighted"])
def test_what_a_folder_keeps_builds_it_again(config, layers, tmp_path):
    encoder = build(config, layers=layers, mask_time_prob=0.1)
    arguments = json.loads(json.dumps(encoder.pretrained_args(tmp_path)))
    assert arguments["checkpoint"] is None
    again = SslEncoder(**arguments).eval()
    again.load_state_dict(encoder.state_dict())
    batch = speech(8_000, 5_000)
    assert torch.equal(again(*batch)[0], encoder(*batch)[0])


def test_a_checkpoint_folder(tmp_path):
    """Weights, and what the feature extractor says of normalisation."""
    from transformers import Wav2Vec2FeatureExtractor

    reference(HUBERT).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    encoder = SslEncoder(str(tmp_path)).eval()
    assert encoder.normalize is False
    batch = speech(8_000)
    assert torch.equal(encoder(*batch)[0], build(HUBERT, normalize=False)(*batch)[0])
    again = SslEncoder(**encoder.pretrained_args(tmp_path))
    assert again.normalize is False
    Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes 8000 Hz; expected 16000"):
        SslEncoder(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint": None}, "give either checkpoint or config"),
        ({"checkpoint": "no/such"}, "no/such: neither a folder nor a hub id"),
        ({"config": {**HUBERT, "model_type": "whisper"}}, "unknown model_type 'whisper'; known: hubert, wav2vec2, "),
        ({"config": {**HUBERT, "model_type": "wavlmm"}}, "did you mean wavlm?"),
        ({"config": HUBERT, "layers": 4}, "layers must be 'weighted' or a number from -4 to 3; got 4"),
        ({"config": HUBERT, "layers": "all"}, "layers must be 'weighted' or a number from -4 to 3; got 'all'"),
        ({"config": HUBERT, "mask_time_prob": 1.1}, "mask_time_prob must be between 0 and 1; got 1.1"),
        ({"config": SSL_ENCODERS["wav2vec2-bert"], "normalize": True}, "w2v-BERT takes log-mel"),
    ],
)
def test_what_can_not_be_built(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        SslEncoder(**arguments)
    assert "\n" not in str(error.value)


def test_a_clip_that_is_too_short(config):
    encoder = build(config)
    least = 560 if encoder.takes_log_mel else 400
    assert encoder(*speech(least))[1].tolist() == [1]
    with pytest.raises(ValueError, match=f"a clip has {least - 1} samples; at least {least} are needed"):
        encoder(*speech(1_600, least - 1))


def test_batches_of_two_threads_do_not_meet():
    """Another thread encodes clips of other lengths in the middle of this one's forward."""
    encoder = build(HUBERT)
    waveform, lengths = speech(9_000, 16_000)
    other_clips = speech(4_000, 7_000)
    expected, other_expected = encoder(waveform, lengths)[0], encoder(*other_clips)[0]
    others = []

    def interrupt(*_) -> None:
        if not others:
            others.append(None)
            thread = threading.Thread(target=lambda: others.append(encoder(*other_clips)[0]))
            thread.start()
            thread.join()

    encoder.encoder.feature_extractor.conv_layers[0].conv.register_forward_hook(interrupt)
    assert_equal_but_for_rounding(encoder(waveform, lengths)[0], expected)
    assert_equal_but_for_rounding(others[1], other_expected)
