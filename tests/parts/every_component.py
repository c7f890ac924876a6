"""Every component of every registry with arguments that make it tiny."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from lightning_s2s.components import contracts as interfaces
from lightning_s2s.components.registry import REGISTRY
from parts.small_sizes import MIMI, QWEN, WHISPER

HUBERT = {
    "model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
GLM4_VOICE = {
    "flow": {
        "vocab_size": 50, "input_size": 12, "output_size": 8, "spk_embed_dim": 6, "encoder_size": 16,
        "attention_heads": 2, "linear_units": 24, "num_blocks": 1, "regulator_convolutions": 2,
        "estimator_in_channels": 32, "channels": [16, 24], "attention_head_dim": 8, "n_blocks": 1, "num_mid_blocks": 1,
        "num_heads": 2,
    },
    "hift": {
        "in_channels": 8, "base_channels": 16, "nb_harmonics": 3, "f0_channels": 8, "resblock_kernel_sizes": [3, 7, 11],
    },
}  # fmt: skip
UNIT_HIFIGAN = {
    "vocoder": {
        "model_type": "seamless_m4t_v2", "unit_hifi_gan_vocab_size": 20, "unit_embed_dim": 8, "lang_embed_dim": 3,
        "spkr_embed_dim": 2, "vocoder_num_langs": 4, "vocoder_num_spkrs": 5, "upsample_initial_channel": 32,
    },
}  # fmt: skip
SMALL = {
    ("encoder", "mel"): {"width": 16, "num_layers": 1, "num_heads": 2},
    ("encoder", "qwen2_audio"): {"checkpoint": None, "config": WHISPER, "real_frames_only": True},
    ("encoder", "s3prl"): {"upstream": "fbank"},
    ("encoder", "ssl"): {"checkpoint": None, "config": HUBERT, "layers": "weighted"},
    ("encoder", "whisper"): {"checkpoint": None, "config": WHISPER, "real_frames_only": True},
    ("adapter", "conv"): {"inner_width": 8},
    ("adapter", "linear"): {"hidden_width": 8},
    ("adapter", "qformer"): {"window_sec": 0.2, "num_queries": 2, "width": 8, "num_heads": 2},
    ("llm", "causal"): {"config": QWEN},
    ("speech_decoder", "interleaved"): {"interleave": "2:4", "config": QWEN, "max_units": 16},
    ("speech_decoder", "mtp"): {"interleave": "2:4", "units_per_step": 2, "config": QWEN, "max_units": 16},
    ("speech_decoder", "ctc"): {"upsampling": 3, "config": QWEN},
    ("vocoder", "pocket"): {"encoder_width": 8, "decoder_width": 8},
    ("vocoder", "glm4_voice"): {"config": GLM4_VOICE, "num_steps": 2, "left_context_units": 10},
    ("vocoder", "encodec"): {"bandwidth": 1.5, "config": {"n_filters": 2, "dimension": 8, "lstm": 1}},
    ("vocoder", "hf_codec"): {"config": MIMI},
    ("vocoder", "unit_hifigan"): {"config": UNIT_HIFIGAN},
}
"""(slot, name) -> arguments that make it tiny, with random weights. A slot's first stands in elsewhere."""
DEFAULTS = {slot: (slot, name) for slot, name in reversed(SMALL)}
WITHOUT_WEIGHTS = {("encoder", "s3prl")}
"""This upstream, log-mel, has nothing to train."""
PACKAGES = {"s3prl": "s3prl", "encodec": "encodec"}


def build_component(slot: str, name: str, tokenizer_folder: Path) -> interfaces.Component:
    """What a YAML makes of a name and its arguments."""
    REGISTRY.load()
    registry = next(registry for registry in REGISTRY if registry.kind == slot)
    init_args = SMALL[slot, name] | ({"tokenizer": str(tokenizer_folder)} if slot == "llm" else {})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=getattr(interfaces, registry.contract))
    return parser.instantiate(parser.parse_object({"part": {"class_path": name, "init_args": init_args}})).part
