"""Parity with the published OpenS2S code (CASIA-LM/OpenS2S): one batch through all parts, their losses, one answer.

`golden/opens2s_forward` has weights, a batch and what the published code computed from them. All sizes come from it.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lightning_s2s.checkpoints.opens2s import own_name
from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.qwen2_audio import Qwen2AudioEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.weights import load_tensors
from lightning_s2s.data.batch import DialogueBatch
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.model.splice import gather_segments, splice_audio
from lightning_s2s.stages import (
    EmpatheticInstructionTuning,
    SpeechGenerationPretraining,
    SpeechUnderstandingPretraining,
)
from parts.golden import golden_folder

FOLDER, pytestmark = golden_folder("opens2s_forward", "golden.safetensors", "model.safetensors", "config.json")
CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    tensors = load_file(FOLDER / "golden.safetensors")
    return {name: tensor if tensor.is_floating_point() else tensor.long() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def parts(config, golden, tmp_path_factory) -> dict:
    """Builds the components anew, without weights; the folder has no tokenizer, and a plain one takes its place."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tokenizer)
    vocabulary = config["tts_lm_config"]["vocab_size"]

    def build() -> dict:
        sizes = tuple(int(size) for size in config["conv_kernel_sizes"].split(","))
        return {
            "encoder": Qwen2AudioEncoder(None, config["audio_encoder_config"]),
            "adapter": ConvAdapter(sizes, config["adapter_inner_dim"], silence_padding=False),
            "llm": CausalLanguageModel(config=config["llm_config"], tokenizer=str(tokenizer)),
            "speech_decoder": InterleavedSpeechDecoder(
                config["interleave_strategy"], config["tts_lm_config"], num_units=vocabulary,
                eos_ids=[vocabulary - 1], max_units=golden["out.generated_units"].shape[1], text_conditions=False,
                eos_ends="group",
            ),
        }  # fmt: skip

    return build


def with_weights(model: SpeechToSpeechModel) -> SpeechToSpeechModel:
    tensors = load_file(FOLDER / "model.safetensors")
    load_tensors(model, {own_name(name, lora=False): tensor for name, tensor in tensors.items()}, FOLDER)
    return model


@pytest.fixture(scope="module")
def model(parts) -> SpeechToSpeechModel:
    return with_weights(SpeechToSpeechModel(**parts())).eval()


def mel_lengths(golden) -> torch.Tensor:
    return golden["in.speech_mask"].sum(1)


@pytest.fixture(scope="module")
def heard(model, golden) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoder makes of the golden mel, and how long each clip is."""
    return hear(model.encoder, golden)


def hear(encoder: Qwen2AudioEncoder, golden) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder on the golden mel in the place of a waveform's."""
    original, lengths = encoder.log_mel, mel_lengths(golden)
    encoder.log_mel = lambda waveform, _: golden["in.speech_values"]
    try:
        with torch.inference_mode():
            return encoder(torch.zeros(len(lengths), 1), lengths * 160)
    finally:
        encoder.log_mel = original


def turns(golden) -> torch.Tensor:
    """(B, L) index of the spoken turn of each position; one turn a row."""
    rows = torch.arange(len(golden["out.token_types"])).unsqueeze(1)
    return torch.where(golden["out.token_types"] == 1, rows, -1)


def test_the_golden_folder_has_what_these_tests_need(golden):
    """So that none of the comparisons below is empty."""
    assert (turns(golden) >= 0).any(1).all() and (golden["in.input_ids"] == -200).sum() == len(mel_lengths(golden))
    assert golden["out.generated_units"].shape[1] > 1 and golden["out.tts_attention_mask"].any()


@torch.inference_mode()
def test_encoder_and_adapter(model, heard, golden):
    out, lengths = model.adapter(*heard)
    mask = golden["out.speech_mask"].bool()
    assert lengths.tolist() == mask.sum(1).tolist()
    assert out.shape == golden["out.speech_features"].shape
    torch.testing.assert_close(out[mask], golden["out.speech_features"][mask], **CLOSE)


@torch.inference_mode()
def test_padding_that_is_silenced_changes_the_shorter_clips_alone(model, heard, golden, parts):
    """The default of `conv`: a clip in a batch equals the clip alone."""
    adapter = parts()["adapter"]
    adapter.silence_padding = True
    adapter.connect(model.encoder.width, model.llm.width)
    adapter.load_state_dict(model.adapter.state_dict())
    hidden, lengths = heard
    out, counts = adapter.eval()(hidden, lengths)
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        alone, _ = model.adapter(hidden[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(out[row, :count], alone[0, :count], **CLOSE)
    longest = int(lengths.argmax())
    torch.testing.assert_close(out[longest], golden["out.speech_features"][longest], **CLOSE)


@torch.inference_mode()
def test_splice(model, golden):
    ids, lengths = golden["in.input_ids"], golden["in.attention_mask"].sum(1)
    spliced = splice_audio(
        ids, lengths, golden["in.labels"], golden["in.token_types"].clamp(min=0) - 1, model.llm.embed(ids.clamp(min=0)),
        golden["out.speech_features"], golden["out.speech_mask"].sum(1),
    )  # fmt: skip
    mask = golden["out.llm_attention_mask"].bool()
    assert torch.equal(spliced.mask, mask)
    assert torch.equal(spliced.labels, golden["out.llm_labels"])
    assert torch.equal(spliced.segments, golden["out.token_types"].clamp(min=0) - 1)
    torch.testing.assert_close(spliced.inputs_embeds[mask], golden["out.llm_inputs_embeds"][mask], **CLOSE)


@torch.inference_mode()
def test_language_model(model, golden):
    mask = golden["out.llm_attention_mask"].bool()
    hidden = model.llm(golden["out.llm_inputs_embeds"], mask)
    torch.testing.assert_close(hidden[mask], golden["out.llm_hidden"][mask], **CLOSE)
    torch.testing.assert_close(model.llm.logits(hidden)[mask], golden["out.llm_logits"][mask], **CLOSE)


@torch.inference_mode()
def test_speech_decoder(model, golden):
    decoder = model.speech_decoder
    hidden, lengths = gather_segments(golden["out.llm_hidden"], turns(golden), len(golden["out.token_types"]))
    ids, id_lengths = golden["in.speech_units"], golden["in.speech_units_mask"].sum(1)
    layout = decoder.interleave.layout(lengths, ids, id_lengths)  # these ids include their closing one
    mask = golden["out.tts_attention_mask"].bool()
    assert torch.equal(layout.mask, mask)
    assert torch.equal(layout.labels, golden["out.tts_labels"])

    conditions = decoder.project(hidden, tokens=torch.zeros(hidden.shape[:2], dtype=torch.long))  # which it leaves out
    inputs = decoder.interleaved_inputs(conditions, ids, golden["in.spk_embs"].squeeze(1), layout.source)
    torch.testing.assert_close(inputs[mask], golden["out.tts_inputs_embeds"][mask], **CLOSE)
    logits = decoder.lm(inputs_embeds=inputs, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits[mask], golden["out.tts_logits"][mask], **CLOSE)


def batch_of(golden) -> DialogueBatch:
    """The golden batch as `lightning_s2s.data` gives one; the waveforms are stand-ins of the right length."""
    lengths = mel_lengths(golden) * 160
    rows = torch.arange(len(golden["in.token_types"])).unsqueeze(1)
    return DialogueBatch(
        input_ids=golden["in.input_ids"],
        input_lengths=golden["in.attention_mask"].sum(1),
        labels=golden["in.labels"],
        segments=torch.where(golden["in.token_types"] == 1, rows, -1),
        waveform=torch.zeros(len(lengths), int(lengths.max())),
        waveform_lengths=lengths,
        units=golden["in.speech_units"],
        unit_lengths=golden["in.speech_units_mask"].sum(1) - 1,
        speaker_embedding=golden["in.spk_embs"].squeeze(1),
        rows=[{}] * len(rows),
    )


@pytest.mark.parametrize(
    ("stage", "options", "losses"),
    [
        (SpeechUnderstandingPretraining, {"freeze": ["encoder.*", "llm.*", "speech_decoder.*"]}, ["llm"]),
        (SpeechGenerationPretraining, {"freeze": ["encoder.*", "adapter.*", "llm.*"]}, ["tts"]),
        (EmpatheticInstructionTuning, {"freeze": ["encoder.*"]}, ["llm", "tts"]),
    ],
)
def test_losses_of_the_stages(stage, options, losses, parts, golden, monkeypatch):
    module = stage(**parts(), **options)
    with_weights(module.model).eval()
    monkeypatch.setattr(module.model.encoder, "log_mel", lambda waveform, _: golden["in.speech_values"])
    # The golden units are random, and closed by whatever comes last.
    ids = golden["in.speech_units"], golden["in.speech_units_mask"].sum(1)
    monkeypatch.setattr(module.model.speech_decoder, "closed_ids", lambda *_: ids)
    monkeypatch.setattr(module, "log_mean", lambda *_, **__: None)
    loss = module.training_step(batch_of(golden), 0)
    expected = sum(golden[f"out.{name}_loss"] for name in losses)
    torch.testing.assert_close(loss.detach(), expected, **CLOSE)
    if len(losses) == 2:
        torch.testing.assert_close(loss.detach(), golden["out.total_loss"], **CLOSE)
    loss.backward()
    trained = {name.split(".")[0] for name, p in module.model.named_parameters() if p.grad is not None}
    assert trained == {"llm": {"adapter"}, "tts": {"speech_decoder"}}.get("".join(losses)) or trained == {
        "adapter", "llm", "speech_decoder",
    }  # fmt: skip


@torch.inference_mode()
def test_greedy_answer(model, heard, golden):
    """Hear the first clip alone, write and speak greedily, with the published limits of text and units."""
    hidden, lengths = heard
    audio, _ = model.adapter(hidden[:1, : int(lengths[0])], lengths[:1])
    prompt, text = golden["in.prompt_ids"][0], golden["out.generated_text"][0]
    place = int((prompt == -200).nonzero())
    written = model.llm.embed(torch.cat([prompt.clamp(min=0), text[:-1]]))
    inputs = torch.cat([written[:place], audio[0], written[place + 1 :]]).unsqueeze(0)
    # The states from the prompt's last position on: each predicts a token, and is a condition of the speech.
    hidden = model.llm(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool))[:, -len(text) :]
    assert model.llm.logits(hidden)[0].argmax(-1).tolist() == text.tolist()

    decoder = model.speech_decoder
    state = decoder.start_stream(torch.zeros(1, 512), Sampler(temperature=0.0))
    groups = list(decoder.stream(decoder.project(hidden, text), state, last=True))
    assert sum(groups, []) == golden["out.generated_units"][0].tolist()
    assert max(map(len, groups)) <= decoder.chunk_units
