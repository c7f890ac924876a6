"""The gate of LLaMA-Omni 2: its formula, and the pairing of every hidden state with the token that it predicts."""

from __future__ import annotations

import pytest
import torch

from lightning_s2s.checkpoints.model_folder import load_model
from lightning_s2s.checkpoints.opens2s_export import export_opens2s
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.session import respond
from parts.batches import one_dialogue
from parts.paths import OPENS2S_CHECKPOINT
from parts.small_decoders import connected, whole_model
from parts.small_sizes import DEEP_QWEN
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding


@torch.inference_mode()
def test_the_gate_mixes_state_and_token():
    decoder, plain = connected("gate"), connected("interleaved")
    plain.load_state_dict({n: t for n, t in decoder.state_dict().items() if not n.startswith("fusion_gate")})
    hidden, tokens = torch.randn(2, 3, 8), torch.tensor([[1, 2, 3], [4, 5, 6]])
    state, text = plain.project(hidden, tokens), decoder.embed_text(tokens)
    weight, bias = decoder.fusion_gate.weight, decoder.fusion_gate.bias
    gate = 1 / (1 + torch.exp(-(state @ weight[:, :16].T + text @ weight[:, 16:].T + bias)))
    assert_equal_but_for_rounding(decoder.project(hidden, tokens), text + gate * (state - text))
    for value, expected in ((100.0, state), (-100.0, text)):
        bias.fill_(value)
        assert_equal_but_for_rounding(decoder.project(hidden, tokens), expected)


@torch.inference_mode()
def test_without_fusion_tokens_change_nothing():
    decoder, hidden = connected("interleaved"), torch.randn(1, 3, 8)
    first, other = (decoder.project(hidden, torch.full((1, 3), token)) for token in (1, 2))
    assert torch.equal(first, other) and not hasattr(decoder, "fusion_gate")


def watch_project(model: SpeechToSpeechModel, monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Record hidden states, tokens and conditions of every call from now on."""
    seen, project = [], model.speech_decoder.project

    def watched(hidden, tokens):
        seen.append((hidden, tokens, project(hidden, tokens)))
        return seen[-1][-1]

    monkeypatch.setattr(model.speech_decoder, "project", watched)
    return seen


@torch.inference_mode()
def test_training_and_streaming_fuse_the_same(tokenizer_folder, monkeypatch):
    """Training on a reply's own text pairs each state with the same token as streaming did."""
    model = whole_model(tokenizer_folder, "gate")
    # A text of complete characters, closed like a spoken turn.
    tokenizer, question = model.llm.tokenizer, sweep(0.6)
    said = iter([*b"Hi", tokenizer.tts_end_id, tokenizer.turn_end_id])
    seen = watch_project(model, monkeypatch)
    reply = respond(model, question, 16_000, text_sampler=lambda _: next(said), greedy=False)
    assert reply.text_ids == [72, 105, 261, 257] and torch.cat([t for _, t, _ in seen], 1).tolist() == [reply.text_ids]
    hidden, conditions = torch.cat([h for h, _, _ in seen], 1), torch.cat([c for *_, c in seen], 1)

    seen.clear()
    dialogue = [
        {"role": "user", "content": [{"text": "", "audio": "question.wav"}]},
        {"role": "assistant", "content": [{"text": "Hi", "speech_units": [1, 2]}]},
    ]
    encoded = tokenizer.encode(dialogue)
    waveform = torch.as_tensor(question).unsqueeze(0)
    model(one_dialogue(encoded, waveform, units=[1, 2]))
    ((taught_hidden, taught_tokens, taught_conditions),) = seen
    assert taught_tokens.tolist() == [reply.text_ids]
    assert_equal_but_for_rounding(taught_hidden, hidden)
    assert_equal_but_for_rounding(taught_conditions, conditions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "sum"}, "fusion must be none or gate; got 'sum'"),
        (
            {"fusion": "gate", "text_conditions": False},
            "fusion gate reads text tokens",
        ),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        InterleavedSpeechDecoder(config=DEEP_QWEN, **options)


def test_the_published_layout_has_no_gate(tmp_path):
    model = load_model(OPENS2S_CHECKPOINT)
    model.speech_decoder.fusion = "gate"
    with pytest.raises(ValueError, match="opens2s: speech_decoder has fusion gate"):
        export_opens2s(model, tmp_path / "exported")
