"""A whole model as a folder: config.json, model.safetensors and the tokenizer. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_s2s.checkpoints.weights import (
    WEIGHTS,
    Shards,
    assign_tensors,
    parameters_on_meta,
    read_json,
    save_weights,
)
from lightning_s2s.files import write_bytes, write_text
from lightning_s2s.registry import ADAPTERS, ENCODERS, LLMS, SPEECH_DECODERS, VOCODERS
from lightning_s2s.sharding import is_sharded, plain_class

if TYPE_CHECKING:
    from lightning_s2s.model import SpeechToSpeechModel

SLOTS = {
    "encoder": ENCODERS,
    "adapter": ADAPTERS,
    "llm": LLMS,
    "speech_decoder": SPEECH_DECODERS,
    "vocoder": VOCODERS,
}
FORMAT = "lightning_s2s"
ATTACHMENTS = "opens2s"
"""Sub-folder for the files of a published checkpoint that are no weights."""


def save_model(model: SpeechToSpeechModel, folder: str | Path) -> None:
    """Write the model; a folder with a config.json is always complete, since that file is written last.

    Where the model is sharded, all processes must call it, and the first one writes.
    """
    folder = Path(folder)
    save_weights(model, folder)
    if is_sharded(model) and torch.distributed.get_rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"format": FORMAT, "format_version": 1}
    for slot, registry in SLOTS.items():
        component = getattr(model, slot)
        if component is not None:
            config[slot] = {
                "class_path": registry.name_of(plain_class(component)),
                "init_args": component.pretrained_args(folder),
            }
    for name, content in model.attachments.items():
        write_bytes(folder / ATTACHMENTS / name, content)
    write_text(folder / "config.json", json.dumps(config, indent=2, default=str) + "\n")


def load_model(folder: str | Path) -> SpeechToSpeechModel:
    """Read a folder that `save_model` wrote, or a published OpenS2S folder; the weights keep their dtype.

    Raises:
        ValueError: no such folder, not a model, an unknown component, or weights of another shape.
    """
    from lightning_s2s.checkpoints.opens2s import is_opens2s, load_opens2s
    from lightning_s2s.model import SpeechToSpeechModel

    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a model folder with config.json and model.safetensors")
    config = read_json(path, "; this is no model of Lightning S2S")
    if is_opens2s(config):
        return load_opens2s(folder)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path}: key 'format' must be {FORMAT!r}; this is no model of Lightning S2S (nor of OpenS2S, which has "
            "audio_encoder_config, llm_config and tts_lm_config)"
        )
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder / WEIGHTS}: no such file; expected the weights of SpeechToSpeechModel")
    shards = Shards(folder)
    with parameters_on_meta():
        parts = _build_parts(config, path)
        if "llm" not in parts:
            raise ValueError(f"{path}: key 'llm' is missing; every model has a language model")
        model = SpeechToSpeechModel(**parts)
    files = {name: str(file) for name, file in shards.files.items()}
    # Copied out of the mapped file: there they may lie unaligned, and other kernels would round in another way.
    tensors = {name: tensor.clone() for name, tensor in shards.load(shards.files).items()}
    assign_tensors(model, tensors, files, str(folder / WEIGHTS))
    model.attachments = read_attachments(folder)
    return model.eval()


def _build_parts(config: dict[str, Any], path: Path) -> dict[str, Any]:
    parts = {}
    for slot, registry in SLOTS.items():
        if slot in config:
            part = config[slot] if isinstance(config[slot], dict) else {}
            if not isinstance(part.get("class_path"), str) or not isinstance(part.get("init_args"), dict):
                raise ValueError(f"{path}: key {slot!r} must hold class_path (a name) and init_args (a mapping)")
            init_args = dict(part["init_args"])
            if slot == "llm":
                init_args.pop("gradient_checkpointing", None)  # of older folders; it is the stages' affair now
            if init_args.get("tokenizer") == ".":
                init_args["tokenizer"] = str(path.parent)
            try:
                parts[slot] = registry.get(part["class_path"])(**init_args)
            except TypeError as error:
                raise ValueError(f"{path}: {slot}.init_args: {error}") from None
    return parts


def read_attachments(folder: Path) -> dict[str, bytes]:
    """What `save_model` kept of a published checkpoint, by path inside it."""
    home = folder / ATTACHMENTS
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}
