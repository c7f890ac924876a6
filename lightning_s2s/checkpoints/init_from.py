"""Stage n starts from stage n - 1: the weights of whatever `lightning_s2s.checkpoints.sources.find_model` finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_s2s.checkpoints import opens2s
from lightning_s2s.checkpoints.lightning_checkpoint import read_weights
from lightning_s2s.checkpoints.model_folder import read_attachments
from lightning_s2s.checkpoints.sources import find_model
from lightning_s2s.components.lora import below_lora
from lightning_s2s.components.registry import SLOTS
from lightning_s2s.components.weights import WEIGHTS, Shards, fitting_tensors, skipping_weights
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.support.reading import read_json, reading

BUILT_FOR_OTHERS = ("adapter", "speech_decoder")
"""Components with shapes of their neighbours: they are compared last, so that the message names the cause."""


def load_handoff(model: nn.Module, source: str | Path) -> str:
    """Load every part of the model that the source has; a part is taken whole or refused.

    An LLM with LoRA takes the weights of one without, see `lightning_s2s.components.lora.below_lora`.

    Returns:
        One line that says which parts were loaded, and which stay as they were built; or, within
        `lightning_s2s.components.weights.without_weights`, that nothing was read.

    Raises:
        ValueError: No part is there, or a tensor's name or shape differs; nothing was loaded then.
    """
    if skipping_weights():
        return f"{source}: left to the first process"
    try:
        path = find_model(source)
        config = {} if path.suffix == ".ckpt" else read_json(path / "config.json")
        tensors, file = _read_tensors(path, config)
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from None
    parts = dict(model.named_children())
    _check_same_components(parts, config, file)
    fitting: dict[str, dict[str, Tensor]] = {}
    for name in sorted(parts, key=lambda name: name in BUILT_FOR_OTHERS):
        found = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if found:
            with reading(f"init_from: {file}: {name}"):
                found = below_lora(parts[name], found)
            fitting[name] = fitting_tensors(parts[name], found, f"init_from: {file}: {name}")
    loaded = [name for name in parts if name in fitting]
    kept = [name for name in parts if name not in fitting]
    if not fitting:
        raise ValueError(f"init_from: {file}: holds none of the model's parts ({', '.join(kept)})")
    for name, found in fitting.items():
        model.get_submodule(name).load_state_dict(found)
    if isinstance(model, SpeechToSpeechModel) and fitting.keys() >= SLOTS.keys() - {"vocoder"}:
        folder = file.parent
        model.attachments = opens2s.attachments_of(folder) if opens2s.is_opens2s(config) else read_attachments(folder)
    return f"{file}: loaded {', '.join(loaded)}" + (f"; not in it: {', '.join(kept)}" if kept else "")


def _read_tensors(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Tensor], Path]:
    """The tensors under the names of a model, and the file that messages name.

    Args:
        path: From `find_model`.
        config: The content of config.json, empty for a checkpoint.
    """
    if path.suffix == ".ckpt":
        return read_weights(path)[1], path
    if opens2s.is_opens2s(config):
        return opens2s.read_tensors(path, config), path / "config.json"
    shards = Shards(path)
    return shards.load(shards.files), path / WEIGHTS


def _check_same_components(parts: Mapping[str, nn.Module], config: Mapping[str, Any], file: Path) -> None:
    """Refuse a model folder whose components have other names than the model's.

    Args:
        parts: The model's parts, by slot.
        config: The content of config.json, which names the folder's components.
        file: The file that messages name.

    Raises:
        ValueError: A component has another name.
    """
    for slot, registry in SLOTS.items():
        there = config[slot].get("class_path") if isinstance(config.get(slot), dict) else None
        here = registry.find_name(type(parts[slot])) if slot in parts else None  # a class path may have no name
        if None not in (there, here) and here != there:
            raise ValueError(f"init_from: {file}: its {slot} is {there}, the model's is {here}")
