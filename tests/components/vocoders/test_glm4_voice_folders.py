"""Sizes and folders of the vocoder `glm4_voice`: what is read, what is stored, what is refused without being run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.vocoders.glm4_voice import Glm4VoiceVocoder
from lightning_s2s.components.weights import load_weights, save_weights
from lightning_s2s.streaming.session import respond
from parts.pickled_code import PickledCode
from parts.small_glm4_voice import (
    CONFIG,
    FLOW,
    HIFT,
    TOKENIZER,
    assert_same_sound,
    build_glm4_voice,
    build_tokenizing,
    random_units,
    write_decoder,
    write_tokenizer,
)
from parts.small_sizes import QWEN

NUM_UNITS = 12


@pytest.fixture(scope="module")
def vocoder() -> Glm4VoiceVocoder:
    return build_glm4_voice()


@pytest.fixture(scope="module")
def units() -> torch.Tensor:
    return random_units(2, NUM_UNITS)


@pytest.fixture(scope="module")
def tokenizing() -> Glm4VoiceVocoder:
    return build_tokenizing()


def test_published_sizes_on_the_meta_device():
    with torch.device("meta"):
        vocoder = Glm4VoiceVocoder(config={"tokenizer": {"quantize_position": 16}})
    assert (vocoder.num_units, vocoder.sample_rate, vocoder.samples_per_unit) == (16_384, 22_050, 1764)
    assert (vocoder.unit_rate_hz, vocoder.tokenizer_sample_rate) == (12.5, 16_000)
    assert len(vocoder.tokenizer.layers) == 16 and vocoder.tokenizer.samples_per_unit == 1280
    assert vocoder.hift.frame_length == 256
    assert all(tensor.is_meta for tensor in vocoder.state_dict().values())
    assert len(list(vocoder.buffers())) == 0  # nothing that weights from a file would leave unset


def test_a_folder_without_yaml_has_the_published_sizes_or_those_of_the_option(vocoder, units, tmp_path):
    folder = write_decoder(tmp_path / "decoder", vocoder)
    again = Glm4VoiceVocoder(str(folder), config=CONFIG, num_steps=3).eval()
    assert_same_sound(again.synthesize(units), vocoder.synthesize(units))
    with torch.device("meta"), pytest.raises(ValueError, match=r"flow\.pt: does not fit|flow\.pt: .* has shape"):
        Glm4VoiceVocoder(str(folder))


YAML = """
# a comment, as in the published file
__set_seed: !apply:os.system [touch {marker}]
sample_rate: 22050
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: 12
    output_size: 8
    spk_embed_dim: 6
    vocab_size: 50
    input_frame_rate: 12.5
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        output_size: 16
        attention_heads: 2
        linear_units: 24
        num_blocks: 2
        block_size: 5
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        sampling_ratios: [1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: 32
            channels: [16, 24]
            attention_head_dim: 4
            n_blocks: 1
            num_mid_blocks: 1
            num_heads: 4
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 8
    base_channels: 16
    nb_harmonics: 3
    sampling_rate: !ref <sample_rate>
    istft_params:
        n_fft: 16
        hop_len: 4
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        cond_channels: 8
"""


def test_sizes_of_the_published_yaml_are_read_and_nothing_in_it_is_run(vocoder, tmp_path):
    folder = write_decoder(tmp_path / "decoder", vocoder)
    (folder / "config.yaml").write_text(YAML.format(marker=tmp_path / "was_run"))
    again = Glm4VoiceVocoder(str(folder), config={"hift": {"audio_limit": 0.5}})
    assert (again.flow.config.num_heads, again.flow.config.attention_head_dim) == (4, 4)
    assert (again.flow.config.block_size, again.flow.config.regulator_convolutions) == (5, 2)
    assert again.hift.config.audio_limit == 0.5  # the option wins
    assert not (tmp_path / "was_run").exists()


def test_a_model_folder_needs_nothing_else(units, tmp_path):
    options = {"config": CONFIG | {"tokenizer": TOKENIZER}, "chunk_units": 20}
    vocoder = build_glm4_voice(**options)
    arguments = json.loads(json.dumps(vocoder.pretrained_args(tmp_path)))
    assert (arguments["decoder"], arguments["tokenizer"], arguments["chunk_units"]) == (None, None, 20)
    save_weights(vocoder, tmp_path)
    again = Glm4VoiceVocoder(**arguments).eval()
    load_weights(again, tmp_path)
    assert_same_sound(again.synthesize(units), vocoder.synthesize(units))
    clip = torch.randn(1, 9000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.tokenize(clip, torch.tensor([9000]))[0], vocoder.tokenize(clip, torch.tensor([9000]))[0])


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"first_chunk_units": 12}, "first_chunk_units: got 12; a multiple of the encoder's block of 10 units"),
        ({"chunk_units": 0}, "chunk_units must be at least 1; got 0"),
        ({"left_context_units": 5}, "left_context_units: got 5; a multiple"),
        ({"overlap_units": 10}, "overlap_units: got 10; allowed: 0..9"),
        ({"overlap_units": -1}, "overlap_units must be at least 0; got -1"),
        ({"num_steps": 0}, "num_steps must be between 1 and 1,000; got 0"),
        ({"guidance": -0.5}, "guidance must be at least 0; got -0.5"),
        ({"config": {"flwo": {}}}, "config: unknown key 'flwo'; known: flow, hift, tokenizer"),
        ({"config": {"flow": {"num_head": 4}}}, "config.flow: unknown key 'num_head'; known: .*num_heads"),
        ({"config": {"flow": {"num_heads": "many"}}}, "config.flow.num_heads: got 'many'; an integer"),
        ({"config": {"hift": {"upsample_rates": 8}}}, "config.hift.upsample_rates: got 8; a list"),
        ({"config": {"flow": {"vocab_size": -1}}}, "config.flow.vocab_size: got -1; it must be positive"),
        (
            {"config": {"flow": FLOW | {"attention_heads": 3}, "hift": HIFT}},
            "encoder_size 16 .* attention_heads 3",
        ),
        ({"config": {"flow": FLOW, "hift": {}}}, "mel bands .*: flow has 8, hift 80; they must be equal"),
        ({"config": {"flow": FLOW | {"channels": [12]}, "hift": HIFT}}, "channels must be multiples of 8 .*got 12"),
        ({"config": CONFIG | {"tokenizer": TOKENIZER | {"quantize_vocab_size": 9}}}, "tokenizer has 9 .*decoder 50"),
    ],
)
def test_options_that_cannot_be(options, expected):
    with pytest.raises(ValueError, match=expected):
        Glm4VoiceVocoder(**{"config": CONFIG} | options)


@pytest.mark.parametrize("name", ["flow.pt", "hift.pt"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused_and_not_run(vocoder, tmp_path, name):
    folder, marker = write_decoder(tmp_path / "decoder", vocoder), tmp_path / "was_run"
    torch.save({"weight": torch.zeros(2), "code": PickledCode(marker)}, folder / name)
    with pytest.raises(ValueError, match=rf"{name}: holds pickled code \(posix\.mkdir\); .*no code was run"):
        Glm4VoiceVocoder(str(folder))
    (folder / name).write_bytes(pickle.dumps(PickledCode(marker)))
    with pytest.raises(ValueError, match=f"{name}: holds something else than tensors"):
        Glm4VoiceVocoder(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("flow.pt", lambda path: path.unlink(), r"flow\.pt: no such file"),
        ("hift.pt", lambda path: path.unlink(), r"hift\.pt: no such file"),
        ("flow.pt", lambda path: path.write_bytes(b""), r"flow\.pt: not a readable file of tensors"),
        ("flow.pt", lambda path: path.write_bytes(path.read_bytes()[:3000]), r"flow\.pt: not a readable file"),
        ("flow.pt", lambda path: torch.save([1, 2], path), r"flow\.pt: holds list; a mapping"),
        ("flow.pt", lambda path: torch.save({"epoch": 3}, path), r"flow\.pt: 'epoch' is int; a tensor is needed"),
        ("flow.pt", lambda path: torch.save({"a": torch.zeros(1)}, path), r"flow\.pt: does not fit .*: missing \["),
        ("config.yaml", lambda path: path.write_text("flow: ["), r"config\.yaml: .*not valid YAML"),
        ("config.yaml", lambda path: path.write_text("flow: {}"), r"config\.yaml: key 'hift' is missing"),
        (
            "config.yaml",
            lambda path: path.write_text("flow: {vocab_size: big}\nhift: {}"),
            "vocab_size: got 'big'",
        ),
        (
            "config.yaml",
            lambda path: path.write_text("flow: {vocab_size: !ref <n>}\nhift: {}"),
            "reference <n> names",
        ),
    ],
)
def test_broken_folders(vocoder, tmp_path, name, change, expected):
    folder = write_decoder(tmp_path / "decoder", vocoder)
    change(folder / name)
    with pytest.raises(ValueError, match=expected):
        Glm4VoiceVocoder(str(folder), config=CONFIG)


@pytest.mark.parametrize(
    ("file", "name", "tensor", "expected"),
    [
        (
            "flow.pt",
            "encoder_proj.bias",
            torch.zeros(3),
            r"flow\.pt: encoder_proj\.bias has shape \(3,\).*\(8,\)",
        ),
        ("flow.pt", "encoder_proj.bias", torch.full((8,), torch.nan), r"flow\.pt: encoder_proj\.bias holds NaN"),
        ("flow.pt", "extra.weight", torch.zeros(3), r"flow\.pt: does not fit .*unexpected \['extra\.weight'\]"),
        (
            "hift.pt",
            "conv_pre.weight_g",
            None,
            r"hift\.pt: conv_pre\.weight_v has no weight_g beside it",
        ),
        ("hift.pt", "conv_pre.weight_v", None, r"hift\.pt: conv_pre\.weight_g has no weight_v beside it"),
        ("hift.pt", "conv_pre.weight_g", torch.ones(2, 1, 1), r"hift\.pt: conv_pre\.weight_g has shape \(2, 1, 1\)"),
        ("hift.pt", "conv_post.bias", None, r"hift\.pt: does not fit HiftGenerator: missing \['conv_post\.bias'\]"),
    ],
)
def test_broken_tensors(vocoder, tmp_path, file, name, tensor, expected):
    folder = write_decoder(tmp_path / "decoder", vocoder)
    tensors = torch.load(folder / file, weights_only=True)
    tensors.pop(name, None)
    torch.save(tensors | ({} if tensor is None else {name: tensor}), folder / file)
    with pytest.raises(ValueError, match=expected):
        Glm4VoiceVocoder(str(folder), config=CONFIG)


def test_a_tokenizer_folder(tokenizing, tmp_path):
    folder = write_tokenizer(tmp_path / "tokenizer", tokenizing)
    clip = 0.1 * torch.randn(1, 9000, generator=torch.Generator().manual_seed(3))
    again = Glm4VoiceVocoder(tokenizer=str(folder), config={"flow": FLOW, "hift": HIFT}).eval()
    expected = tokenizing.tokenize(clip, torch.tensor([9000]))
    assert torch.equal(again.tokenize(clip, torch.tensor([9000]))[0], expected[0])


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("config.json", lambda path: path.unlink(), r"config\.json: no such file"),
        ("preprocessor_config.json", lambda path: path.unlink(), r"preprocessor_config\.json: no such file"),
        ("model.safetensors", lambda path: path.unlink(), r"tokenizer: neither model\.safetensors nor"),
        ("model.safetensors", lambda path: path.write_bytes(b"x" * 20), r"model\.safetensors: not a readable"),
        ("config.json", lambda path: path.write_text("{"), r"config\.json: not valid JSON"),
        ("config.json", lambda path: path.write_text("{}"), r"config\.json: key 'd_model' is missing"),
        ("config.json", lambda path: edit(path, pooling_type="max"), "pooling_type: got 'max'; .*needs 'avg'"),
        (
            "config.json",
            lambda path: edit(path, quantize_position=3),
            r"tokenizer: does not fit .*missing \['layers\.2",
        ),
        ("config.json", lambda path: edit(path, encoder_ffn_dim=8), r"model\.safetensors: layers\.\S+ has shape"),
        ("config.json", lambda path: edit(path, d_model=15), "d_model 15 is no multiple of encoder_attention_heads 2"),
        (
            "config.json",
            lambda path: edit(path, max_source_positions=100),
            "has 1500 positions; max_source_positions",
        ),
        (
            "config.json",
            lambda path: edit(path, num_mel_bins=80),
            r"feature_size must be .*num_mel_bins, 80",
        ),
    ],
)
def test_broken_tokenizer_folders(tokenizing, tmp_path, name, change, expected):
    folder = write_tokenizer(tmp_path / "tokenizer", tokenizing)
    change(folder / name)
    with pytest.raises(ValueError, match=expected):
        Glm4VoiceVocoder(tokenizer=str(folder), config=CONFIG)


@pytest.mark.parametrize("option", ["decoder", "tokenizer"])
def test_folders_that_are_not_there(option, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder; expected GLM-4-Voice's"):
        Glm4VoiceVocoder(**{option: str(tmp_path / "nowhere"), "config": CONFIG})


def test_a_whole_model_answers_through_it_and_comes_back_from_its_folder(tokenizer_folder, tmp_path):
    from lightning_s2s.components.adapters.conv import ConvAdapter
    from lightning_s2s.components.encoders.mel import MelEncoder
    from lightning_s2s.components.llms.causal import CausalLanguageModel
    from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
    from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel

    torch.manual_seed(0)
    model = SpeechToSpeechModel(
        CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder)),
        encoder=MelEncoder(width=16, num_layers=1, num_heads=2),
        adapter=ConvAdapter(inner_width=8),
        speech_decoder=InterleavedSpeechDecoder("2:3", QWEN, max_units=23),
        vocoder=build_glm4_voice(config=CONFIG | {"tokenizer": TOKENIZER}),
    ).eval()
    question = 0.1 * torch.randn(9600, generator=torch.Generator().manual_seed(1))
    reply = respond(model, question, 16_000, max_text_tokens=9)
    assert reply.sample_rate == 22_050 and len(reply.unit_ids) > 10
    assert len(reply.waveform) == int(len(reply.unit_ids) * 6.890625) * 256
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert torch.equal(respond(again, question, 16_000, max_text_tokens=9).waveform, reply.waveform)
    config = json.loads((tmp_path / "model" / "config.json").read_text())["vocoder"]
    assert config["class_path"] == "glm4_voice" and config["init_args"]["decoder"] is None
