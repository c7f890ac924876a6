"""Components in half precision: each alone among others, in a model of one dtype, and from its folder."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.log_mel import LogMelSpectrogram
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.session import respond
from parts.every_component import DEFAULTS, SMALL, build_component
from parts.small_models import build
from parts.sounds import sweep


def answer(model: SpeechToSpeechModel):
    reply = respond(model, sweep(0.6), 16_000, max_text_tokens=5)
    assert reply.text_ids and reply.waveform.dtype == torch.float32 and reply.waveform.isfinite().all()
    return reply


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.bfloat16, id="bfloat16"), pytest.param(torch.float16, id="float16", marks=pytest.mark.slow)],
)
def test_it_answers_in_half_precision(dtype, component, tokenizer_folder, tmp_path):
    torch.manual_seed(0)
    names = DEFAULTS | {component[0]: component}
    parts = {slot: build_component(*name, tokenizer_folder) for slot, name in names.items()}
    model = SpeechToSpeechModel(**parts).eval()
    mixed = copy.deepcopy(model)
    getattr(mixed, component[0]).to(dtype)
    assert answer(mixed).unit_ids
    half = answer(model.to(dtype))
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert {parameter.dtype for parameter in again.parameters()} <= {dtype}
    reply = answer(again)
    assert (reply.text_ids, reply.unit_ids) == (half.text_ids, half.unit_ids)


def test_mel_stays_float32_whatever_reads_it():
    waveform = torch.from_numpy(sweep(0.5))[None]
    encoder = MelEncoder(width=16, num_layers=1, num_heads=2).eval()
    lengths, mel = torch.tensor([8000]), encoder.mel(waveform)
    wide, narrow = encoder(waveform, lengths)[0], encoder.to(torch.bfloat16)(waveform, lengths)[0]
    assert narrow.dtype == torch.bfloat16 and mel.dtype == torch.float32
    assert torch.equal(encoder.mel(waveform), mel)
    assert LogMelSpectrogram().to(torch.bfloat16)(waveform).dtype == torch.float32
    assert encoder.to("meta").mel.filters.device.type == "meta"
    torch.testing.assert_close(narrow.float(), wide, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("narrow", "message"),
    [
        ("llm.model.lm_head", r"llm CausalLanguageModel: .* several dtypes, float32 \(model\.model\.embed_tokens"),
        ("speech_decoder.lm", r"speech_decoder InterleavedSpeechDecoder: .* bfloat16 \(lm\..*float32 \(speaker_proj"),
        ("encoder.layers", r"encoder MelEncoder: .*float32 \(stem.0.weight\), bfloat16 \(layers"),
        ("vocoder.encoder", r"vocoder PocketVocoder: .* several dtypes"),
    ],
)
def test_a_component_of_several_dtypes_is_refused_at_the_start(tokenizer_folder, narrow, message):
    model = build(tokenizer_folder)
    model.get_submodule(narrow).to(torch.bfloat16)
    with pytest.raises(ValueError, match=message) as error:
        StreamingEngine(model)
    assert "\n" not in str(error.value)


def test_lora_may_be_wider_than_what_it_adapts(tokenizer_folder):
    model = build(tokenizer_folder)
    lora = SMALL["llm", "causal"] | {"tokenizer": str(tokenizer_folder), "lora": {"r": 2, "target_modules": ["q_proj"]}}
    model.llm = type(model.llm)(**lora).eval()
    for name, parameter in model.llm.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    answer(model)
