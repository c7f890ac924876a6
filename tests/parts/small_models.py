"""Whole models and language models of a few hundred weights, and what they answer."""

from __future__ import annotations

import torch

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.pretrained import build_causal_lm
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from parts.small_sizes import QWEN
from parts.sounds import sweep
from parts.tolerances import assert_same_pocket_sound

QUESTION = sweep(0.6)
SHORT = {"max_text_tokens": 9}
LM_SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
LM_KINDS = {
    "qwen3": {"head_dim": 8},
    "llama": {},
    "gpt2": {"n_embd": 16, "n_head": 4, "n_layer": 2},
}


def build(tokenizer_folder, hears: bool = True, speaks: bool = True, **llm) -> SpeechToSpeechModel:
    torch.manual_seed(0)
    encoder = {
        "encoder": MelEncoder(width=16, num_layers=1, num_heads=2), "adapter": ConvAdapter(inner_width=8)
    } if hears else {}  # fmt: skip
    speech = {
        "speech_decoder": InterleavedSpeechDecoder("2:3", QWEN, max_units=17),
        "vocoder": PocketVocoder(levels=(4, 3), encoder_width=8, decoder_width=8),
    } if speaks else {}  # fmt: skip
    language_model = CausalLanguageModel(config=QWEN | llm, tokenizer=str(tokenizer_folder))
    return SpeechToSpeechModel(language_model, **encoder, **speech).eval()


def small_lm(model_type: str = "qwen3", **options):
    torch.manual_seed(0)
    return build_causal_lm({"model_type": model_type, **LM_SIZES, **LM_KINDS.get(model_type, {}), **options}).eval()


def assert_same_reply(reply, expected) -> None:
    """Two replies are the same but for their timing and, in the sound, for rounding."""
    assert (reply.text, reply.text_ids, reply.unit_ids) == (expected.text, expected.text_ids, expected.unit_ids)
    assert_same_pocket_sound(reply.waveform, expected.waveform)
