"""Published OpenS2S folders: shards, LoRA, export of what was made here, vocoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from lightning_s2s.checkpoints import opens2s_export
from lightning_s2s.checkpoints.init_from import load_handoff
from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.checkpoints.opens2s import component_args, own_name, published_name
from lightning_s2s.checkpoints.opens2s_export import export_opens2s
from lightning_s2s.cli import main
from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.encoders.qwen2_audio import Qwen2AudioEncoder
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.registry import REGISTRY
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.components.weights import parameters_on_meta
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.stages import SpeechGenerationPretraining
from lightning_s2s.streaming.session import respond
from lightning_s2s.support.reading import read_json
from parts.json_files import change
from parts.opens2s_folder import INDEX, change_tensors, divide, without
from parts.paths import GOLDEN_OPENS2S, OPENS2S_CHECKPOINT
from parts.small_sizes import QWEN, WHISPER
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding

QUESTION = sweep(0.7)
ENCODER = {
    "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 128,
}  # fmt: skip


def replies(model: SpeechToSpeechModel) -> tuple[list[int], list[int]]:
    reply = respond(model, QUESTION, 16_000, greedy=True)
    return reply.text_ids, reply.unit_ids


def test_names_go_both_ways():
    for name in load_file(OPENS2S_CHECKPOINT / "model.safetensors"):
        assert published_name(own_name(name, lora=False), lora=False) == name
        wrapped = name.replace("llm_model.", "llm_model.model.")
        assert published_name(own_name(wrapped, lora=True), lora=True) == wrapped


def test_weights_stay_in_the_mapped_file(published):
    """No second copy in memory: parameters lie in the pages of the file itself."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc/self/maps")
    model = load_model(published)
    mapped = []
    for line in maps.read_text().splitlines():
        if line.endswith(str(published / "model.safetensors")):
            start, _, end = line.split()[0].partition("-")
            mapped.append(range(int(start, 16), int(end, 16)))
    outside = [n for n, p in model.named_parameters() if not any(p.data_ptr() in pages for pages in mapped)]
    assert outside == []
    assert all(tensor.device.type == "cpu" for tensor in [*model.parameters(), *model.buffers()])


def test_building_without_memory_keeps_buffers_and_ties():
    with parameters_on_meta():
        decoder = InterleavedSpeechDecoder("1:2", QWEN | {"tie_word_embeddings": True}, num_units=7)
        decoder.connect(16, 10, 7)
        encoder = MelEncoder(width=16, num_layers=1, num_heads=2)
    assert all(parameter.device.type == "meta" for parameter in [*decoder.parameters(), *encoder.parameters()])
    assert all(buffer.device.type == "cpu" for buffer in [*decoder.buffers(), *encoder.buffers()])
    assert decoder.lm.lm_head.weight is decoder.lm.model.embed_tokens.weight
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"  # outside, nothing is changed


def test_shards(published, tmp_path):
    expected = replies(load_model(published))
    divide(published, 3)
    assert replies(load_model(published)) == expected
    assert main(["convert", "--to", "opens2s", str(published), str(tmp_path / "out")]) == 0
    for path in published.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert path.read_bytes() == (tmp_path / "out" / path.relative_to(published)).read_bytes()
    for path in published.glob("*.safetensors"):
        before, after = load_file(path), load_file(tmp_path / "out" / path.name)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_large_model_is_divided(published, tmp_path, monkeypatch):
    monkeypatch.setattr(opens2s_export, "SHARD_BYTES", 300_000)
    model = load_model(published)
    export_opens2s(model, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in load_file(published / "model.safetensors").values())
    assert all(sum(t.nbytes for t in load_file(tmp_path / "out" / file).values()) <= 300_000 for file in files)
    assert replies(load_model(tmp_path / "out")) == replies(model)


def test_half_precision_stays_half_precision(published, tmp_path):
    change_tensors(published, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    model = load_model(published)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(replies(model))
    ours, out = tmp_path / "ours", tmp_path / "out"
    assert main(["convert", "--from", "opens2s", str(published), str(ours)]) == 0
    assert main(["convert", "--to", "opens2s", str(ours), str(out)]) == 0
    before, after = load_file(published / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(after[name].dtype == torch.bfloat16 and torch.equal(after[name], before[name]) for name in before)


def test_a_tied_head_is_neither_needed_nor_written(published, tmp_path):
    change(published / "config.json", tts_lm_config__tie_word_embeddings=True)
    change_tensors(published, without("tts_lm_model.lm_head.weight"))
    model = load_model(published)
    assert model.speech_decoder.lm.lm_head.weight is model.speech_decoder.lm.model.embed_tokens.weight
    export_opens2s(model, tmp_path / "out")
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert names == load_file(published / "model.safetensors").keys()
    save_model(model, tmp_path / "ours")
    assert replies(load_model(tmp_path / "ours")) == replies(model)


# --- LoRA ------------------------------------------------------------------------------------------------------------

LORA = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "peft_type": "LORA"}


@pytest.fixture
def with_lora(published) -> Path:
    """The published form of a model with LoRA: one more level in the LLM's names."""

    def wrap(tensors):
        torch.manual_seed(0)
        wrapped = {}
        for name, tensor in tensors.items():
            if not name.startswith("llm_model."):
                wrapped[name] = tensor
                continue
            name = name.replace("llm_model.", "llm_model.model.")
            if not any(target in name for target in LORA["target_modules"]):
                wrapped[name] = tensor
                continue
            stem = name.removesuffix(".weight")
            wrapped[f"{stem}.base_layer.weight"] = tensor
            wrapped[f"{stem}.lora_A.default.weight"] = torch.randn(2, tensor.shape[1]) * 0.3
            wrapped[f"{stem}.lora_B.default.weight"] = torch.randn(tensor.shape[0], 2) * 0.3
        return wrapped

    change_tensors(published, wrap)
    change(published / "config.json", lora_config=LORA)
    return published


def test_lora_is_kept(with_lora, tmp_path):
    ours, out = tmp_path / "ours", tmp_path / "out"
    assert main(["convert", "--from", "opens2s", str(with_lora), str(ours)]) == 0
    assert main(["convert", "--to", "opens2s", "--lora", "keep", str(ours), str(out)]) == 0
    assert (out / "config.json").read_bytes() == (with_lora / "config.json").read_bytes()
    before, after = load_file(with_lora / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert replies(load_model(out)) == replies(load_model(ours))


def test_lora_is_merged(with_lora, tmp_path):
    out = tmp_path / "out"
    assert main(["convert", "--to", "opens2s", str(with_lora), str(out)]) == 0
    before, after = load_file(with_lora / "model.safetensors"), load_file(out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    assert config["lora_config"] is None and config.keys() == json.loads((with_lora / "config.json").read_text()).keys()
    assert after.keys() == load_file(OPENS2S_CHECKPOINT / "model.safetensors").keys()
    for layer in range(3):
        stem = f"model.layers.{layer}.self_attn.q_proj"
        low = (
            before[f"llm_model.model.{stem}.lora_B.default.weight"]
            @ before[f"llm_model.model.{stem}.lora_A.default.weight"]
        )
        expected = before[f"llm_model.model.{stem}.base_layer.weight"] + 6 / 2 * low
        assert_equal_but_for_rounding(after[f"llm_model.{stem}.weight"], expected)
    untouched = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(after[f"llm_model.{untouched}"], before[f"llm_model.model.{untouched}"])
    assert replies(load_model(out)) == replies(load_model(with_lora))


def test_lora_over_a_published_model(published, tmp_path):
    """LoRA starts at zero over the published weights; trained, it goes back kept or merged."""
    args = component_args(published, read_json(published / "config.json"))
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    REGISTRY.load()
    registries = {registry.kind: registry for registry in REGISTRY}
    args["llm"]["init_args"]["lora"] = lora
    parts = {slot: registries[slot].get(part["class_path"])(**part["init_args"]) for slot, part in args.items()}
    model = SpeechToSpeechModel(**parts)
    load_handoff(model, published)
    assert replies(model.eval()) == replies(load_model(published))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(model, tmp_path / "ours")
    for way in ("keep", "merge"):
        out = tmp_path / way
        assert main(["convert", "--to", "opens2s", "--lora", way, str(tmp_path / "ours"), str(out)]) == 0
        config = json.loads((out / "config.json").read_text())
        assert config["lora_config"] == (lora if way == "keep" else None)
        assert replies(load_model(out)) == replies(model)
    assert replies(model) != replies(load_model(published))


# --- models that were made here --------------------------------------------------------------------------------------


@pytest.fixture(params=["qwen2_audio", "whisper"])
def made_here(request, tokenizer_folder) -> SpeechToSpeechModel:
    torch.manual_seed(0)
    whisper = request.param == "whisper"
    return SpeechToSpeechModel(
        CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder)),
        WhisperEncoder(None, WHISPER, pooling=1) if whisper else Qwen2AudioEncoder(None, ENCODER),
        ConvAdapter((3, 5), inner_width=8),
        InterleavedSpeechDecoder("2:3", QWEN, max_units=17),
        PocketVocoder(levels=(4, 3), encoder_width=8, decoder_width=8),
    ).eval()


def test_a_model_that_was_made_here_is_published_and_read_again(made_here, tmp_path, capsys):
    save_model(made_here, tmp_path / "model")
    out = tmp_path / "out"
    assert main(["convert", "--to", "opens2s", str(tmp_path / "model"), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "without speech_decoder.text_embedding, speech_decoder.text_norm, vocoder.decoder" in printed
    files = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert files >= {
        "config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "tts/tokenizer.json",
        "tts/generation_config.json", "audio/preprocessor_config.json",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["conv_kernel_sizes"] == "3,5" and config["interleave_strategy"] == "2:3"
    assert config["adapter_inner_dim"] == 8 and config["lora_config"] is None
    assert config["llm_config"]["rope_theta"] == 10_000.0 and config["llm_config"]["model_type"] == "qwen3"
    assert config["audio_encoder_config"]["model_type"] in ("qwen2_audio_encoder", "whisper")
    assert json.loads((out / "tts" / "generation_config.json").read_text())["eos_token_id"] == [12]

    again = load_model(out)
    decoder = again.speech_decoder
    assert type(again.encoder) is type(made_here.encoder) and again.encoder.width == 16
    assert again.encoder.frame_rate_hz == made_here.encoder.frame_rate_hz
    assert (decoder.unit_offset, again.num_units, decoder.eos_ids, decoder.max_units) == (0, 12, [12], 17)
    state = made_here.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    again.attach_vocoder(made_here.vocoder)
    reply = respond(again, QUESTION, 16_000, greedy=True, max_text_tokens=6)
    assert reply.text_ids == respond(made_here, QUESTION, 16_000, greedy=True, max_text_tokens=6).text_ids
    assert reply.waveform is not None


def test_files_like_those_of_a_published_folder(published, tmp_path):
    """A stage's checkpoint has lost them; `--like` brings them back."""
    model = load_model(published)
    model.attachments = {}
    save_model(model, tmp_path / "model")
    out = tmp_path / "out"
    assert main(["convert", "--to", "opens2s", "--like", str(published), str(tmp_path / "model"), str(out)]) == 0
    for name in ("config.json", "tokenizer.json", "tts/tokenizer_config.json", "audio/preprocessor_config.json"):
        assert (out / name).read_bytes() == (published / name).read_bytes()


@pytest.mark.parametrize(
    ("slot", "part", "message"),
    [
        ("encoder", MelEncoder(width=16, num_layers=1, num_heads=2), "encoder is mel; .*qwen2_audio or whisper"),
        ("speech_decoder", None, "speech_decoder is missing; .*interleaved"),
        ("encoder", WhisperEncoder(None, WHISPER, pooling=1, layers=0), "encoder hears layers 0; .*the last one alone"),
        ("encoder", Qwen2AudioEncoder(None, ENCODER, layers=[0, -1]), r"encoder hears layers \[0, -1\]"),
    ],
)
def test_what_the_layout_can_not_hold(slot, part, message, made_here, tmp_path):
    setattr(made_here, slot, part)
    with pytest.raises(ValueError, match=message):
        export_opens2s(made_here, tmp_path / "out")
    assert not any(path.name.startswith("out") or path.name.startswith(".out") for path in tmp_path.iterdir())


def test_an_export_that_fails_leaves_nothing(published, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr(opens2s_export, "write_tensors", fail)
    with pytest.raises(OSError, match="disk is full"):
        export_opens2s(load_model(published), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"published"}


def test_a_folder_that_is_taken(published, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    for direction in ("--from", "--to"):
        assert main(["convert", direction, "opens2s", str(published), str(tmp_path / "out")]) == 1
        assert "out: exists already; give a folder that is new or empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


# --- units without and with sound ------------------------------------------------------------------------------------


def test_a_vocoder_is_attached(published, tmp_path, capsys):
    question = str(GOLDEN_OPENS2S / "user.wav")
    assert main(["respond", str(published), question, "--greedy"]) == 1
    assert "this model has no vocoder; give one with --vocoder, or --no_audio" in capsys.readouterr().err
    out = tmp_path / "reply.wav"
    pocket = "{class_path: pocket, init_args: {levels: [8, 8], encoder_width: 8, decoder_width: 8}}"
    assert main(["respond", str(published), question, "--greedy", "--vocoder", pocket, "--out", str(out)]) == 0
    sizes = ["--vocoder.levels", "[8, 8]", "--vocoder.encoder_width=8", "--vocoder.decoder_width", "8"]
    other = tmp_path / "other.wav"
    assert (
        main(["respond", str(published), question, "--greedy", "--vocoder", "pocket", *sizes, "--out", str(other)]) == 0
    )
    assert soundfile.info(other).frames == soundfile.info(out).frames
    units = [u for u in json.loads((GOLDEN_OPENS2S / "expected.json").read_text())["unit_ids"] if u >= 0]
    assert soundfile.info(out).frames == len(units) * 640  # special tokens make no sound


@pytest.mark.parametrize(
    ("vocoder", "message"),
    [
        ("no_such", "unknown vocoder 'no_such'"),
        ("{class_path: pocket, init_args: {levels: [4, 3]}}", "speaks 64 units, vocoder PocketVocoder knows 12"),
        ("{class_path: pocket, init_args: {size: 3}}", "unknown option of pocket 'size'"),
        ("[pocket]", "vocoder: "),
        (str(GOLDEN_OPENS2S), "vocoder: "),
        ("{", "vocoder: "),
    ],
)
def test_a_vocoder_that_can_not_be_attached(vocoder, message, published, capsys):
    assert main(["respond", str(published), str(GOLDEN_OPENS2S / "user.wav"), "--vocoder", vocoder]) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocoder.levels", "[8, 8]"], "vocoder"),
        (["--vocoder", "pocket", "--vocoder.levels"], "--vocoder.levels: needs a value; got nothing"),
    ],
)
def test_mistakes_in_a_vocoders_options(options, message, published, capsys):
    assert main(["respond", str(published), str(GOLDEN_OPENS2S / "user.wav"), *options]) == 2
    assert message in capsys.readouterr().err


def test_text_conditions_are_asked_for(published):
    REGISTRY.load()
    args = component_args(published, read_json(published / "config.json"))
    decoder = InterleavedSpeechDecoder(**args["speech_decoder"]["init_args"])
    llm = CausalLanguageModel(**args["llm"]["init_args"])
    with pytest.raises(ValueError, match="condition: text .* needs a speech_decoder with text_conditions"):
        SpeechGenerationPretraining(llm=llm, speech_decoder=decoder, condition="text")
    with pytest.raises(ValueError, match="text_conditions false"):
        decoder.embed_text(torch.tensor([1]))
