"""A whole model as a folder: config.json, model.safetensors and the tokenizer. No pickle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from lightning_s2s.checkpoints.opens2s import is_opens2s, load_opens2s
from lightning_s2s.checkpoints.stored import build_parts, describe_parts
from lightning_s2s.components.building import bounded_building
from lightning_s2s.components.registry import SLOTS
from lightning_s2s.components.weights import (
    WEIGHTS,
    Shards,
    assign_tensors,
    is_sharded,
    parameters_on_meta,
    save_weights,
)
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.support.files import write_bytes, write_text
from lightning_s2s.support.reading import read_json, reading
from lightning_s2s.support.wording import unknown_name

FORMAT, FORMAT_VERSION = "lightning_s2s", 1
ATTACHMENTS = "opens2s"
"""Sub-folder for the files of a published checkpoint that are not weights."""


def save_model(model: SpeechToSpeechModel, folder: str | Path) -> None:
    """Write the model; a folder with a config.json is always complete, since that file is written last.

    Where the model is sharded, all processes must call it, and the first one writes.
    """
    folder = Path(folder)
    save_weights(model, folder)
    if is_sharded(model) and torch.distributed.get_rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **describe_parts(model, folder)}
    for name, content in model.attachments.items():
        write_bytes(folder / ATTACHMENTS / name, content)
    write_text(folder / "config.json", json.dumps(config, indent=2, default=str) + "\n")


def load_model(folder: str | Path, trust_sources: bool = False) -> SpeechToSpeechModel:
    """Read a folder that `save_model` wrote, or a published OpenS2S folder; the weights keep their dtype.

    Args:
        folder: The folder to read.
        trust_sources: See `lightning_s2s.checkpoints.stored.build_parts`.

    Raises:
        ValueError: No such folder, not a model, an unknown component, or weights of another shape.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a model folder with config.json and model.safetensors")
    config = read_json(path, "; this is no model of Lightning S2S")
    if is_opens2s(config):
        return load_opens2s(folder, config)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path}: key 'format' must be {FORMAT!r}; this is no model of Lightning S2S (nor of OpenS2S, which has "
            "audio_encoder_config, llm_config and tts_lm_config)"
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version: got {config.get('format_version')!r}; this version reads 1")
    known = {"format", "format_version", *SLOTS}
    if unknown := sorted(config.keys() - known):
        raise ValueError(f"{path}: {unknown_name('key', unknown[0], known)}")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder / WEIGHTS}: no such file; expected the weights of SpeechToSpeechModel")
    shards = Shards(folder)
    stored = sum(map(math.prod, shards.shapes.values()))
    with reading(path, "model"), bounded_building(str(path), stored), parameters_on_meta():
        parts = build_parts(config, path, folder, trust_sources)
        if "llm" not in parts:
            raise ValueError(f"{path}: key 'llm' is missing; every model has a language model")
        model = SpeechToSpeechModel(**parts)  # type: ignore[arg-type]
    files = {name: str(file) for name, file in shards.files.items()}
    # Copied out of the mapped file: there they may be unaligned, and other kernels would round differently.
    tensors = {name: tensor.clone() for name, tensor in shards.load(shards.files).items()}
    assign_tensors(model, tensors, files, str(folder / WEIGHTS))
    model.attachments = read_attachments(folder)
    return model.eval()


def read_attachments(folder: Path) -> dict[str, bytes]:
    """The files of a published checkpoint that `save_model` kept, by path inside it."""
    home = folder / ATTACHMENTS
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}
