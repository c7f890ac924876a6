"""Configurations of stages that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def hearing_parts(lm: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """Small encoder, adapter and LLM, as `init_args` of a stage."""
    return {
        "encoder": {"class_path": "mel", "init_args": {"width": 16, "num_layers": 1, "num_heads": 2}},
        "adapter": {"class_path": "conv", "init_args": {"kernel_sizes": [5], "inner_width": 8}},
        "llm": {"class_path": "causal", "init_args": {"config": dict(lm), "tokenizer": str(tokenizer)}},
    }


def speaking_parts(lm: dict[str, Any], **of_decoder: Any) -> dict[str, Any]:
    """Small speech decoder and vocoder, as `init_args` of a stage."""
    decoder = {"interleave": "1:2", "config": dict(lm), "max_units": 8, **of_decoder}
    return {
        "speech_decoder": {"class_path": "interleaved", "init_args": decoder},
        "vocoder": {"class_path": "pocket", "init_args": {"encoder_width": 8, "decoder_width": 8}},
    }
