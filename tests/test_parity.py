"""Parity with the published OpenS2S code (CASIA-LM/OpenS2S), run in float32 on tiny random weights.

`golden/opens2s_forward` has its weights and what it computed from them. The audio encoder's hidden states are those of
transformers' Qwen2AudioEncoder, which the published code uses, on its weights and mel, cut to the longest clip.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_s2s.adapters.conv import ConvAdapter
from lightning_s2s.llms.causal import build_causal_lm
from lightning_s2s.sampling import Sampler
from lightning_s2s.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.splice import gather_segments, splice_audio

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden")) / "opens2s_forward"
FILES = ("golden.safetensors", "model.safetensors", "config.json")
pytestmark = pytest.mark.skipif(
    not all((FOLDER / name).is_file() for name in FILES),
    reason=f"{FOLDER} lacks {', '.join(FILES)}; set GOLDEN_DIR to the folder that holds opens2s_forward",
)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "model.safetensors")


@pytest.fixture(scope="module")
def golden(config, weights) -> dict[str, torch.Tensor]:
    tensors = load_file(FOLDER / "golden.safetensors")
    tensors = {name: tensor if tensor.is_floating_point() else tensor.long() for name, tensor in tensors.items()}
    if "in.encoder_hidden" not in tensors:  # the whole set: encode the mel
        tensors["in.encoder_hidden"] = encode(config, weights, tensors["in.speech_values"])[:, :383]
    return tensors


def part(weights: dict[str, torch.Tensor], *names: tuple[str, str]) -> dict[str, torch.Tensor]:
    """The weights whose names start as in one of the pairs, renamed."""
    return {
        new + name.removeprefix(old): tensor
        for old, new in names
        for name, tensor in weights.items()
        if name.startswith(old)
    }


@torch.inference_mode()
def encode(config: dict, weights: dict[str, torch.Tensor], mel: torch.Tensor) -> torch.Tensor:
    from transformers import Qwen2AudioEncoderConfig
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

    encoder = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**config["audio_encoder_config"])).eval()
    encoder.load_state_dict(part(weights, ("audio_encoder_model.", "")))
    return encoder(mel).last_hidden_state


@pytest.fixture(scope="module")
def adapter(config, weights) -> ConvAdapter:
    sizes = tuple(int(size) for size in config["conv_kernel_sizes"].split(","))
    adapter = ConvAdapter(sizes, config["adapter_inner_dim"])
    adapter.connect(32, 48)
    names = ("subsampler.conv_layers.", "convs."), ("fc1.", "fc1."), ("fc2.", "fc2."), ("ln.", "norm.")
    adapter.load_state_dict(part(weights, *((f"audio_adapter.{old}", new) for old, new in names)))
    return adapter.eval()


@pytest.fixture(scope="module")
def llm(config, weights):
    llm = build_causal_lm(config["llm_config"])
    llm.load_state_dict(part(weights, ("llm_model.", "")))
    return llm.eval()


@pytest.fixture(scope="module")
def decoder(config, weights) -> InterleavedSpeechDecoder:
    decoder = InterleavedSpeechDecoder(config["interleave_strategy"], config["tts_lm_config"], max_units=60)
    decoder.connect(48, 320, 299)
    names = (
        ("tts_lm_model.model.", "lm.model."), ("tts_lm_model.spk2tts.", "speaker_projection."),
        ("tts_lm_model.spk_ln.", "speaker_norm."), ("llm2tts.", "llm_projection."), ("llm_ln.", "llm_norm."),
    )  # fmt: skip
    missing, unexpected = decoder.load_state_dict(part(weights, *names), strict=False)
    assert set(missing) == {"lm.lm_head.weight", "text_embedding.weight", "text_norm.weight", "text_norm.bias"}
    assert not unexpected  # the head is tied to the embedding; text conditions (stage 2a) were never published
    return decoder.eval()


@torch.inference_mode()
def test_adapter(adapter, golden):
    expected = golden["out.speech_features"]
    hidden = golden["in.encoder_hidden"]
    out, lengths = adapter(hidden, torch.tensor([383, 383]))
    torch.testing.assert_close(out[0, :26], expected[0, :26], **CLOSE)
    torch.testing.assert_close(out[1], expected[1], **CLOSE)
    out, lengths = adapter(hidden, torch.tensor([103, 383]))
    assert lengths.tolist() == golden["out.speech_mask"].sum(1).tolist() == [26, 96]
    # The published code lets a shorter clip's padding reach its last position.
    torch.testing.assert_close(out[0, :25], expected[0, :25], **CLOSE)
    torch.testing.assert_close(out[1], expected[1], **CLOSE)


@torch.inference_mode()
def test_splice(llm, golden):
    ids, lengths = golden["in.input_ids"], golden["in.attention_mask"].sum(1)
    spliced = splice_audio(
        ids, lengths, golden["in.labels"], golden["in.token_types"].clamp(min=0) - 1,
        llm.get_input_embeddings()(ids.clamp(min=0)), golden["out.speech_features"], golden["out.speech_mask"].sum(1),
    )  # fmt: skip
    mask = golden["out.llm_attention_mask"].bool()
    assert torch.equal(spliced.mask, mask)
    assert torch.equal(spliced.labels, golden["out.llm_labels"])
    assert torch.equal(spliced.segments, golden["out.token_types"].clamp(min=0) - 1)
    torch.testing.assert_close(spliced.inputs_embeds[mask], golden["out.llm_inputs_embeds"][mask], **CLOSE)


@torch.inference_mode()
def test_language_model(llm, golden):
    mask = golden["out.llm_attention_mask"].bool()
    hidden = llm.base_model(inputs_embeds=golden["out.llm_inputs_embeds"], attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(hidden[mask], golden["out.llm_hidden"][mask], **CLOSE)
    torch.testing.assert_close(llm.lm_head(hidden)[mask], golden["out.llm_logits"][mask], **CLOSE)


@torch.inference_mode()
def test_speech_decoder(decoder, golden):
    turns = torch.where(golden["out.token_types"] == 1, torch.tensor([[0], [1]]), -1)
    hidden, lengths = gather_segments(golden["out.llm_hidden"], turns, 2)
    assert lengths.tolist() == [12, 18]
    units, unit_lengths = golden["in.speech_units"], golden["in.speech_units_mask"].sum(1)
    layout = decoder.interleave.layout(lengths, units, unit_lengths)  # these units include their closing one
    mask = golden["out.tts_attention_mask"].bool()
    assert torch.equal(layout.mask, mask)
    assert torch.equal(layout.labels, golden["out.tts_labels"])

    speaker = golden["in.spk_embs"].squeeze(1)
    inputs = decoder.interleaved_inputs(decoder.project(hidden), units, speaker, layout.source)
    torch.testing.assert_close(inputs[mask], golden["out.tts_inputs_embeds"][mask], **CLOSE)
    logits = decoder.lm(inputs_embeds=inputs, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits[mask], golden["out.tts_logits"][mask], **CLOSE)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), layout.labels[:, 1:].flatten())
    torch.testing.assert_close(loss, golden["out.tts_loss"], **CLOSE)


@torch.inference_mode()
def test_greedy_answer(adapter, llm, decoder, golden):
    """Hear the first clip alone, write 21 tokens and speak 60 units, all greedily."""
    audio, _ = adapter(golden["in.encoder_hidden"][:1, :103], torch.tensor([103]))
    prompt, text = golden["in.prompt_ids"][0], golden["out.generated_text"][0]
    place = int((prompt == -200).nonzero())
    written = llm.get_input_embeddings()(torch.cat([prompt.clamp(min=0), text[:-1]]))
    inputs = torch.cat([written[:place], audio[0], written[place + 1 :]]).unsqueeze(0)
    # The states from the prompt's last position on: each predicts a token, and is a condition of the speech.
    hidden = llm.base_model(inputs_embeds=inputs).last_hidden_state[:, -len(text) :]
    assert llm.lm_head(hidden)[0].argmax(-1).tolist() == text.tolist()

    state = decoder.start_stream(torch.zeros(1, 512), Sampler(temperature=0.0))
    groups = list(decoder.stream(decoder.project(hidden), state, last=True))
    assert [unit for group in groups for unit in group] == golden["out.generated_units"][0].tolist()
    assert [len(group) for group in groups] == [8] * 7 + [4]
