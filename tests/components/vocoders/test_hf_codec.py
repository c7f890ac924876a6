"""The vocoder `hf_codec` on small random weights: parity, streams, batches and folders of each codec."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.vocoders.hf_codec import HfCodecVocoder
from lightning_s2s.streaming.session import respond
from parts.small_codecs import (
    DAC,
    HF_ENCODEC,
    MIMI,
    XCODEC2,
    assert_same_sound,
    noise,
    random_units,
    speaking_model,
    stream,
    tensors_in,
)
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding

CONFIGS = {"dac": DAC, "encodec": HF_ENCODEC, "mimi": MIMI, "xcodec2": XCODEC2}
EXACT = ["dac", "encodec", "mimi"]
NUM_CODEBOOKS = {"dac": 3, "encodec": 4, "mimi": 5, "xcodec2": 1}
LOUDER = {"dac": 4, "encodec": 1, "mimi": 1, "xcodec2": 5}
"""Random weights of these two say next to nothing: by how much they are multiplied."""
WINDOW = {"chunk_units": 4, "left_context_units": 6, "lookahead_units": 2}
NUM_FRAMES = 30


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, tuple[Any, Path]]:
    """transformers' own models, weight norm and all, and their folders."""
    from transformers import AutoConfig, AutoModel

    models = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        settings = {key: value for key, value in config.items() if key != "model_type"}
        model = AutoModel.from_config(AutoConfig.for_model(name, **settings)).eval()
        for key, tensor in model.state_dict().items():
            if key.endswith((".embed", ".embed_sum")):  # zero in a model that was not trained
                tensor.normal_(std=0.05 if name == "encodec" else 1.0)
            elif tensor.dim() > 1 and "alpha" not in key:
                tensor.mul_(LOUDER[name] * (40 if key == "quantizer.project_in.weight" else 1))
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        models[name] = model, folder
    return models


@pytest.fixture(scope="module")
def vocoders(published) -> dict[str, HfCodecVocoder]:
    return {
        name: HfCodecVocoder(str(folder), num_codebooks=NUM_CODEBOOKS[name], **(WINDOW if name == "xcodec2" else {}))
        for name, (_, folder) in published.items()
    }


def frames(vocoder: HfCodecVocoder, num_rows: int = 2, num_frames: int = NUM_FRAMES) -> torch.Tensor:
    return random_units(vocoder, num_rows, num_frames * vocoder.codebooks_per_frame)


def codes_of(name: str, model: Any, waveform: torch.Tensor, num_codebooks: int) -> torch.Tensor:
    """What transformers codes, (K, F)."""
    values = waveform[None, None]
    if name == "dac":
        return model.encode(values, n_quantizers=num_codebooks).audio_codes[0]
    if name == "mimi":
        return model.encode(values, num_quantizers=num_codebooks).audio_codes[0]
    if name == "encodec":
        return model.encode(values, bandwidth=3.0).audio_codes[0, 0]
    from transformers import Xcodec2FeatureExtractor

    features = Xcodec2FeatureExtractor()(waveform, sampling_rate=16_000, return_tensors="pt")
    return model.encode(**features).audio_codes[0]


def decoded(name: str, model: Any, codes: torch.Tensor) -> torch.Tensor:
    """What transformers makes of codes (K, F), (T,)."""
    if name == "encodec":
        return model.decode(codes[None, None], [None]).audio_values[0, 0]
    return model.decode(audio_codes=codes[None]).audio_values.reshape(-1)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_parity_with_transformers(published, vocoders, name):
    model, vocoder = published[name][0], vocoders[name]
    size, num_codebooks, spf = vocoder.codebook_size, vocoder.codebooks_per_frame, vocoder.samples_per_frame
    waveform = noise(1, 20 * spf)
    codes = codes_of(name, model, waveform[0], num_codebooks)[:, :20]
    units, counts = vocoder.tokenize(waveform, torch.tensor([20 * spf]))
    assert counts.tolist() == [20 * num_codebooks] and len(codes.unique()) > 5
    assert units[0].tolist() == [int(codes[k, f]) + size * k for f in range(20) for k in range(num_codebooks)]
    assert_equal_but_for_rounding(vocoder.synthesize(units)[0], decoded(name, model, codes))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dac", (3000, 30, 16, 3)),
        ("encodec", (24_000, 320, 1024, 32)),
        ("mimi", (2400, 96, 32, 5)),
        ("xcodec2", (16_000, 320, 64, 1)),
    ],
)
def test_rates(name, expected):
    vocoder = HfCodecVocoder(config=CONFIGS[name])
    sample_rate, samples_per_frame, codebook_size, num_codebooks = expected
    assert (vocoder.sample_rate, vocoder.samples_per_frame, vocoder.codebook_size) == expected[:3]
    assert vocoder.codebooks_per_frame == num_codebooks and vocoder.num_units == codebook_size * num_codebooks
    assert vocoder.unit_rate_hz == pytest.approx(sample_rate / samples_per_frame * num_codebooks)


@pytest.mark.parametrize(
    ("config", "samples_per_frame", "unit_rate_hz"),
    [
        ({"model_type": "mimi", "num_filters": 2, "num_hidden_layers": 1, "intermediate_size": 8}, 1920, 400.0),
        ({"model_type": "encodec", "num_filters": 2}, 320, 2400.0),
        (DAC | {"downsampling_ratios": [2, 4, 5, 8], "sampling_rate": 16_000, "n_codebooks": 12}, 320, 600.0),
        (DAC | {"downsampling_ratios": [2, 4, 8, 8], "sampling_rate": 44_100, "n_codebooks": 9}, 512, 775.1953125),
    ],
    ids=["mimi", "encodec_24khz", "dac_16khz", "dac_44khz"],
)
def test_rates_of_published_shapes(config, samples_per_frame, unit_rate_hz):
    vocoder = HfCodecVocoder(config=config)
    assert (vocoder.samples_per_frame, vocoder.unit_rate_hz) == (samples_per_frame, unit_rate_hz)


@pytest.mark.parametrize("name", CONFIGS)
def test_lengths(vocoders, name):
    vocoder = vocoders[name]
    per_frame, lost = vocoder.samples_per_frame, {"dac": 8}.get(name, 0)  # DAC's odd strides lose some samples
    assert 0 <= lost < per_frame
    for num_frames in (1, 2, 5, NUM_FRAMES):
        assert vocoder.synthesize(frames(vocoder, 1, num_frames)).shape == (1, num_frames * per_frame - lost)
    for num_samples in (1, per_frame - 1, per_frame, per_frame + 1, 7 * per_frame):
        _, counts = vocoder.tokenize(noise(1, num_samples), torch.tensor([num_samples]))
        assert counts.tolist() == [math.ceil(num_samples / per_frame) * vocoder.codebooks_per_frame], num_samples


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty_last", [False, True])
@pytest.mark.parametrize("size", [1, 4, 17, 60, 1000])
@pytest.mark.parametrize("name", EXACT)
def test_chunks_joined_equal_one_shot(vocoders, name, size, empty_last):
    vocoder = vocoders[name]
    units = frames(vocoder)
    assert_same_sound(stream(vocoder, units, size, empty_last), vocoder.synthesize(units))


@pytest.mark.parametrize("num_frames", [1, 2, 7])
@pytest.mark.parametrize("name", EXACT)
def test_short_replies(vocoders, name, num_frames):
    vocoder = vocoders[name]
    units = frames(vocoder, 1, num_frames)
    assert_same_sound(stream(vocoder, units, vocoder.codebooks_per_frame), vocoder.synthesize(units))


@pytest.mark.parametrize(("name", "late"), [("mimi", 0), ("encodec", 6), ("dac", 15)])
def test_sound_follows_the_frames(vocoders, name, late):
    """Mimi gives a frame at once, EnCodec waits once for what it reflects, DAC looks ahead."""
    vocoder = vocoders[name]
    chunks = stream(vocoder, frames(vocoder, 1), vocoder.codebooks_per_frame)[:-1]
    begun = [number for number, chunk in enumerate(chunks) if chunk.shape[1]]
    assert begun == list(range(late, NUM_FRAMES))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_does_not_grow(vocoders, name):
    vocoder = vocoders[name]
    state, sizes = vocoder.start_stream(), []
    for piece in frames(vocoder, 1, 80).split(vocoder.codebooks_per_frame, dim=1):
        vocoder.stream(piece, state, last=False)
        sizes.append(tensors_in(state))
    assert 0 < max(sizes[-20:]) == max(sizes[30:50])


def test_mimi_streams_beyond_its_attention(vocoders):
    """Frames are two positions each; the attention reaches back seven of them."""
    vocoder = vocoders["mimi"]
    units = frames(vocoder, 1, 60)
    changed = units.clone()
    changed[:, :5] = (changed[:, :5] + 7) % 32
    assert_same_sound(stream(vocoder, units, 5), vocoder.synthesize(units))
    assert not torch.equal(vocoder.synthesize(units)[:, :960], vocoder.synthesize(changed)[:, :960])


@pytest.mark.parametrize("size", [1, 3, 4, 30])
def test_xcodec2_in_windows_is_as_long_and_the_same_however_units_are_cut(vocoders, size):
    vocoder = vocoders["xcodec2"]
    units = frames(vocoder)
    expected = torch.cat(stream(vocoder, units, 7), dim=1)
    assert expected.shape == vocoder.synthesize(units).shape == (2, NUM_FRAMES * 320)
    for empty_last in (False, True):
        assert_same_sound(stream(vocoder, units, size, empty_last), expected)


def test_xcodec2_in_one_window_is_the_one_shot_waveform(published):
    vocoder = HfCodecVocoder(str(published["xcodec2"][1]), chunk_units=NUM_FRAMES)
    units = frames(vocoder)
    assert_same_sound(stream(vocoder, units, 5), vocoder.synthesize(units))


def test_xcodec2_waits_for_chunk_and_look_ahead_and_leaves_no_seam(vocoders):
    vocoder = vocoders["xcodec2"]
    units = frames(vocoder, 1)
    chunks = stream(vocoder, units, 1)
    assert [number for number, chunk in enumerate(chunks) if chunk.shape[1]] == [5, 9, 13, 17, 21, 25, 29, 30]
    step = torch.cat(chunks, dim=1).diff().abs()[0]
    seams = [int(step[4 * 320 * number - 1] / step.max() * 100) for number in range(1, 7)]
    assert max(seams) < 100  # a sample across a seam moves no more than samples inside chunks


# --- batches, folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_batched_equals_single(vocoders, name):
    vocoder = vocoders[name]
    units = frames(vocoder)
    together = vocoder.synthesize(units)
    assert_same_sound([together[1:]], vocoder.synthesize(units[1:]))
    spf = vocoder.samples_per_frame
    waveform = noise(3, 9 * spf)
    waveform[1, 4 * spf + 5 :] = 0
    padded, counts = vocoder.tokenize(waveform, torch.tensor([9 * spf, 4 * spf + 5, 0]))
    per_frame = vocoder.codebooks_per_frame
    assert counts.tolist() == [9 * per_frame, 5 * per_frame, 0]
    alone, _ = vocoder.tokenize(waveform[1:2, : 4 * spf + 5], torch.tensor([4 * spf + 5]))
    assert torch.equal(alone[0], padded[1, : 5 * per_frame])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_reply_through_a_model_folder(vocoders, name, tokenizer_folder, tmp_path):
    vocoder = vocoders[name]
    model = speaking_model(vocoder, tokenizer_folder)
    save_model(model, tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())["vocoder"]
    assert saved["class_path"] == "hf_codec" and saved["init_args"]["checkpoint"] is None
    again = load_model(tmp_path / "model")
    waveform = noise(1, 3000)
    assert torch.equal(*(one.vocoder.tokenize(waveform, torch.tensor([3000]))[0] for one in (model, again)))
    reply, same = (respond(one, sweep(0.5), 16_000, max_text_tokens=30) for one in (model, again))
    assert len(reply.unit_ids) > 2 * vocoder.codebooks_per_frame and reply.unit_ids == same.unit_ids
    # A hub folder's tensors may lie unaligned in memory, where other kernels round in another way.
    assert_same_sound([same.waveform[None]], reply.waveform[None])
    assert len(reply.waveform) == len(vocoder.synthesize(torch.tensor([reply.unit_ids]))[0])


@pytest.mark.parametrize("name", ["mimi", "encodec"])
def test_new_weights_reach_the_codebooks(vocoders, name):
    """Mimi remembers its codebooks; they must not be those from before."""
    torch.manual_seed(5)
    vocoder = HfCodecVocoder(config=CONFIGS[name], num_codebooks=NUM_CODEBOOKS[name])
    units = frames(vocoder)
    before = vocoder.synthesize(units)
    vocoder.load_state_dict(vocoders[name].state_dict())
    assert torch.equal(vocoder.synthesize(units), vocoders[name].synthesize(units))
    assert not torch.equal(vocoder.synthesize(units), before)
    parent = torch.nn.Sequential(copy.deepcopy(vocoder))
    parent.load_state_dict({f"0.{key}": torch.zeros_like(value) for key, value in vocoder.state_dict().items()})
    assert not torch.equal(parent[0].synthesize(units), vocoder.synthesize(units))
    assert torch.equal(vocoder.synthesize(units), vocoders[name].synthesize(units))
    assert vocoder.double().synthesize(units).dtype == torch.float64


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either checkpoint or config"),
        ({"config": {}}, "config: unknown model_type .None.; .*known: dac, encodec, mimi, xcodec2"),
        ({"config": {"model_type": "bert"}}, "unknown model_type 'bert'"),
        ({"config": MIMI, "num_codebooks": 6}, r"num_codebooks: got 6; mimi has 1\.\.5"),
        ({"config": MIMI, "num_codebooks": 0}, "num_codebooks must be at least 1; got 0"),
        ({"config": MIMI, "chunk_units": 9}, "chunk_units has no use: mimi is streamed exactly"),
        ({"config": XCODEC2, "chunk_units": 0}, "chunk_units must be at least 1"),
        ({"config": XCODEC2, "num_codebooks": 2}, r"num_codebooks: got 2; xcodec2 has 1\.\.1"),
        ({"config": HF_ENCODEC | {"audio_channels": 2}}, "encodec with audio_channels 2 .* must be 1"),
        ({"config": HF_ENCODEC | {"use_causal_conv": False}}, "encodec with use_causal_conv False .* must be True"),
        ({"config": HF_ENCODEC | {"normalize": True}}, "encodec with normalize True .* must be False"),
        ({"config": MIMI | {"codebook_size": 31}}, "config: .*`codebook_size` must be a power of 2"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        HfCodecVocoder(**options)


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        HfCodecVocoder(str(tmp_path / "nowhere"))


def test_without_torchaudio_xcodec2_says_what_to_install(vocoders, monkeypatch):
    def without_torchaudio(*args, **options):
        raise ImportError("Xcodec2FeatureExtractor requires the torchaudio library")

    monkeypatch.setattr("transformers.Xcodec2FeatureExtractor", without_torchaudio)
    with pytest.raises(ValueError, match=r"X-Codec 2 needs torchaudio .* pip install 'lightning-s2s\[codecs\]'"):
        vocoders["xcodec2"].tokenize(noise(1, 3000), torch.tensor([3000]))
