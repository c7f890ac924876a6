"""The vocoder `unit_hifigan` on small random weights: parity with transformers, durations, streams, units, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.vocoders.unit_hifigan import UnitHifiganVocoder, to_durations
from lightning_s2s.streaming.session import respond
from parts.small_codecs import assert_same_sound, noise, random_units, speaking_model, stream, tensors_in
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding

VOCODER = {
    "unit_hifi_gan_vocab_size": 20, "unit_embed_dim": 8, "lang_embed_dim": 3, "spkr_embed_dim": 2,
    "vocoder_num_langs": 4, "vocoder_num_spkrs": 5, "upsample_initial_channel": 32, "initializer_range": 0.2,
}  # fmt: skip
HUBERT = {
    "model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
KINDS = ["seamless_m4t", "seamless_m4t_v2"]
NUM_UNITS = 40


def build(kind: str = "seamless_m4t_v2", **options: Any) -> UnitHifiganVocoder:
    """Small, with durations of one to several frames."""
    torch.manual_seed(0)
    config = {"vocoder": {"model_type": kind, **VOCODER}, "hubert": HUBERT}
    vocoder = UnitHifiganVocoder(**({"config": config, "hubert_layer": 1} | options))
    with torch.no_grad():
        vocoder.vocoder.dur_predictor.proj.bias.fill_(1.0)
    return vocoder


@pytest.fixture(scope="module", params=KINDS)
def vocoder(request) -> UnitHifiganVocoder:
    return build(request.param, speaker_id=2, language_id=3)


@pytest.fixture(scope="module")
def units(vocoder) -> torch.Tensor:
    return random_units(vocoder, 3, NUM_UNITS)


def test_rates(vocoder):
    assert (vocoder.sample_rate, vocoder.samples_per_unit, vocoder.num_units) == (16_000, 320, 20)
    assert vocoder.unit_rate_hz == 50.0 and vocoder.predicts_durations
    assert not build(deduplicate=False).predicts_durations


def test_durations_by_hand():
    logarithms = torch.tensor([[0.0, -3.0, 0.9, 1.0, 1.4]])  # e**x - 1: 0, -0.95, 1.46, 1.72, 3.06
    assert to_durations(logarithms).tolist() == [[1, 1, 1, 2, 3]]


@torch.no_grad()
def test_parity_with_transformers(vocoder, units):
    ids = {"lang_id": torch.tensor([[3]])}
    ids["spkr_id" if vocoder.vocoder.config.model_type == "seamless_m4t" else "speaker_id"] = torch.tensor([[2]])
    waveform, _ = vocoder.vocoder(input_ids=units[:1], **ids)
    durations = to_durations(vocoder.vocoder.dur_predictor(vocoder.vocoder.unit_embedding(units[:1])))
    assert len(durations.unique()) > 2
    assert vocoder.synthesize(units[:1]).shape == (1, int(durations.sum()) * 320)
    assert_equal_but_for_rounding(vocoder.synthesize(units[:1]), waveform)


@pytest.mark.parametrize("empty_last", [False, True])
@pytest.mark.parametrize("size", [1, 3, 13, 40])
def test_chunks_joined_equal_one_shot(vocoder, units, size, empty_last):
    assert_same_sound(stream(vocoder, units[:1], size, empty_last), vocoder.synthesize(units[:1]))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_chunks_of_units_that_are_frames(size):
    vocoder = build(deduplicate=False)
    units = random_units(vocoder, 2, NUM_UNITS)
    expected = vocoder.synthesize(units)
    assert expected.shape == (2, NUM_UNITS * 320)
    assert_same_sound(stream(vocoder, units, size), expected)


@pytest.mark.parametrize("num_units", [1, 2, 5])
def test_short_replies(vocoder, units, num_units):
    some = units[:1, :num_units]
    assert_same_sound(stream(vocoder, some, 1), vocoder.synthesize(some))


def test_nothing_to_say(vocoder, units):
    assert vocoder.synthesize(units[:, :0]).shape == (3, 0)
    assert vocoder.stream(units[:1, :0], vocoder.start_stream(), last=True).shape == (1, 0)


def test_sound_is_21_frames_late():
    vocoder = build(deduplicate=False)
    chunks = stream(vocoder, random_units(vocoder, 1, NUM_UNITS), 1)
    assert [number for number, chunk in enumerate(chunks) if chunk.shape[1]] == list(range(20, NUM_UNITS + 1))


def test_the_state_does_not_grow(vocoder):
    state, sizes = vocoder.start_stream(), []
    for piece in random_units(vocoder, 1, 60).split(1, dim=1):
        vocoder.stream(piece, state, last=False)
        sizes.append(tensors_in(state))
    assert max(sizes[-10:]) <= max(sizes[30:50]) > 0


def test_batched_equals_single_and_shorter_rows_end_in_zeros(vocoder, units):
    together = vocoder.synthesize(units)
    lengths = []
    for row, waveform in zip(units, together, strict=True):
        alone = vocoder.synthesize(row[None])[0]
        lengths.append(len(alone))
        assert_equal_but_for_rounding(waveform[: len(alone)], alone)
        assert not waveform[len(alone) :].any()
    assert len(set(lengths)) > 1 and together.shape == (3, max(lengths))
    assert min(lengths) >= NUM_UNITS * vocoder.samples_per_unit


def test_voice_and_language_are_heard(units):
    voices = [build(speaker_id=speaker, language_id=language) for speaker, language in ((0, 0), (1, 0), (0, 1))]
    first, second, third = (voice.synthesize(units[:1]) for voice in voices)
    assert not torch.allclose(first, second) and not torch.allclose(first, third)


# --- waveform -> units -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_units_are_the_nearest_centroids(vocoder):
    from transformers import HubertConfig, HubertModel

    waveform = noise(1, 6000)
    normal = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-7).sqrt()
    reference = HubertModel(HubertConfig(**HUBERT)).eval()
    reference.load_state_dict(vocoder.hubert.encoder.state_dict(), strict=False)  # without the layers above
    hidden = reference(normal, output_hidden_states=True).hidden_states[1][0]
    expected = [int(((state - vocoder.centroids) ** 2).sum(-1).argmin()) for state in hidden]
    frames = build(deduplicate=False)
    frames.load_state_dict(vocoder.state_dict())
    units, counts = frames.tokenize(waveform, torch.tensor([6000]))
    assert counts.tolist() == [18] and units[0].tolist() == expected
    fewer, _ = vocoder.tokenize(waveform, torch.tensor([6000]))
    assert fewer[0].tolist() == [unit for i, unit in enumerate(expected) if i == 0 or unit != expected[i - 1]]
    assert 3 < fewer.shape[1] < 18


def test_a_clip_gives_the_same_units_in_any_batch(vocoder):
    waveform = noise(3, 5000)
    waveform[1, 2100:] = 0
    padded, counts = vocoder.tokenize(waveform, torch.tensor([5000, 2100, 399]))
    alone, count = vocoder.tokenize(waveform[1:2, :2100], torch.tensor([2100]))
    assert counts[1] == count[0] and counts[2] == 0
    assert torch.equal(alone[0], padded[1, : int(count[0])])


def test_without_an_ssl_model_it_speaks_but_does_not_tokenize(units):
    vocoder = build(config={"vocoder": {"model_type": "seamless_m4t_v2", **VOCODER}})
    assert vocoder.synthesize(units[:1]).shape[1] > 0
    with pytest.raises(ValueError, match="built without hubert and kmeans: .* give hubert, the SSL model, and kmeans"):
        vocoder.tokenize(noise(1, 5000), torch.tensor([5000]))


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_reply_through_a_model_folder(vocoder, tokenizer_folder, tmp_path):
    model = speaking_model(vocoder, tokenizer_folder)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    reply, same = (respond(one, sweep(0.5), 16_000, max_text_tokens=30) for one in (model, again))
    assert len(reply.unit_ids) == 40 and reply.unit_ids == same.unit_ids
    assert torch.equal(reply.waveform, same.waveform)
    assert len(reply.waveform) == vocoder.synthesize(torch.tensor([reply.unit_ids])).shape[1]
    waveform = noise(1, 5000)
    assert torch.equal(*(one.vocoder.tokenize(waveform, torch.tensor([5000]))[0] for one in (model, again)))


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """A vocoder of its own, the same inside a whole SeamlessM4T, an SSL model, and centroids."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    vocoder = build()
    home = {name: tmp_path / name for name in ("alone", "whole", "hubert")}
    vocoder.vocoder.save_pretrained(home["alone"])
    home["whole"].mkdir()
    vocoder.vocoder.config.save_pretrained(home["whole"])
    tensors = {f"vocoder.{name}": tensor for name, tensor in vocoder.vocoder.state_dict().items()}
    save_file(tensors | {"text_decoder.weight": torch.zeros(2)}, home["whole"] / "model.safetensors")
    HubertModel(HubertConfig(**HUBERT)).save_pretrained(home["hubert"])
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(home["hubert"])
    save_file({"centroids": vocoder.centroids}, tmp_path / "kmeans.safetensors")
    np.save(tmp_path / "kmeans.npy", vocoder.centroids.numpy())
    return home


@pytest.mark.parametrize("kmeans", ["kmeans.npy", "kmeans.safetensors"])
@pytest.mark.parametrize("place", ["alone", "whole"])
@torch.no_grad()
def test_published_folders(folders, tmp_path, place, kmeans):
    from transformers import HubertModel

    vocoder = UnitHifiganVocoder(
        str(folders[place]), hubert=str(folders["hubert"]), kmeans=str(tmp_path / kmeans), hubert_layer=1
    )
    units = random_units(vocoder, 1, 12)
    assert torch.equal(vocoder.synthesize(units), build().synthesize(units))
    waveform = noise(1, 5000)
    hidden = HubertModel.from_pretrained(folders["hubert"])(waveform, output_hidden_states=True).hidden_states[1][0]
    expected = torch.cdist(hidden, build().centroids).argmin(-1).unique_consecutive()
    found, _ = vocoder.tokenize(waveform, torch.tensor([5000]))
    assert torch.equal(found[0], expected) and len(expected) > 3


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": None}, "give either checkpoint or config with the key vocoder"),
        ({"config": {"hubert": HUBERT}}, "give either checkpoint or config with the key vocoder"),
        ({"config": {"vocoder": VOCODER}}, "unknown model_type .None.; .*known: seamless_m4t, seamless_m4t_v2"),
        (
            {"config": {"vocoder": {"model_type": "seamless_m4t", "upsample_rates": 3}}},
            r"config\.vocoder: ",
        ),
        (
            {"config": {"vocoder": {"model_type": KINDS[0], **VOCODER}, "hubert": {}}},
            "hubert, hubert_layer 1: .*model_type",
        ),
        ({"config": {"speaker": {}}}, "config: unknown key 'speaker'; known: vocoder, hubert, normalize"),
        ({"speaker_id": 5}, r"speaker_id: got 5; the vocoder has 0\.\.4"),
        ({"language_id": -1}, "language_id must be at least 0; got -1"),
        ({"hubert_layer": 3}, "hubert_layer 3: encoder ssl: layers must be .* to 2; got 3"),
        ({"hubert": "somewhere"}, "hubert and kmeans go together"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_frames_of_another_rate():
    hubert = HUBERT | {"conv_stride": [5, 2, 2, 2, 2, 2, 4]}
    config = {"vocoder": {"model_type": "seamless_m4t_v2", **VOCODER}, "hubert": hubert}
    with pytest.raises(ValueError, match="hubert has a frame in 640 samples, the vocoder in 320; they must be equal"):
        build(config=config)


def test_several_replies_at_once_are_refused_where_durations_differ(vocoder, units):
    with pytest.raises(ValueError, match="got 3 replies; with predicted durations one is streamed at a time"):
        vocoder.stream(units, vocoder.start_stream(), last=True)


def test_a_closed_stream_and_units_outside(vocoder, units):
    state = vocoder.start_stream()
    vocoder.stream(units[:1], state, last=True)
    with pytest.raises(ValueError, match="closed by last=True"):
        vocoder.stream(units[:1], state, last=True)
    for speak in (vocoder.synthesize, lambda bad: stream(vocoder, bad, 1)):
        with pytest.raises(ValueError, match=r"units must be in 0\.\.19; got"):
            speak(torch.tensor([[3, 20]]))


def test_centroids_that_do_not_fit(folders, tmp_path):
    options = {"checkpoint": str(folders["alone"]), "hubert": str(folders["hubert"]), "config": None}
    for shape, name in (((20, 15), "narrow.npy"), ((21, 16), "many.npy"), ((20,), "flat.npy")):
        np.save(tmp_path / name, np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match=r"kmeans has shape .*; at most 20 centroids .* of width 16"):
            build(**options, kmeans=str(tmp_path / name))
    np.save(tmp_path / "code.npy", np.array([{"a": print}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"code\.npy: not a readable \.npy file of numbers"):
        build(**options, kmeans=str(tmp_path / "code.npy"))
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"two\.safetensors: holds 2 tensors; the centroids alone are needed"):
        build(**options, kmeans=str(tmp_path / "two.safetensors"))


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder; expected SeamlessM4T or its vocoder"):
        UnitHifiganVocoder(str(tmp_path / "nowhere"))
