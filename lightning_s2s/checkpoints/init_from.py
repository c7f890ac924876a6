"""Stage n starts from stage n - 1: weights from a model folder, a run's folder or a Lightning checkpoint."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_s2s.checkpoints import opens2s
from lightning_s2s.checkpoints.model_folder import read_attachments
from lightning_s2s.checkpoints.opens2s import attachments_of, is_opens2s_folder
from lightning_s2s.checkpoints.stored import SLOTS
from lightning_s2s.components.lora import below_lora
from lightning_s2s.components.weights import fitting_tensors, read_json, skipping_weights
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.support.plain import load_plain
from lightning_s2s.support.reading import reading

BUILT_FOR_OTHERS = ("adapter", "speech_decoder")
"""Components with shapes of their neighbours: these are compared first, so that the message names the cause."""


def read_tensors(source: str | Path) -> tuple[dict[str, Tensor], Path]:
    """The model's tensors and the file they came from.

    Args:
        source: a folder with `model.safetensors` or `model/model.safetensors`, a Lightning `.ckpt` file, or a
            published OpenS2S folder.

    Raises:
        ValueError: there is no such file, or it can't be read.
    """
    source = Path(source)
    if is_opens2s_folder(source):
        return opens2s.read_tensors(source), source / "config.json"
    candidates = [source / "model.safetensors", source / "model" / "model.safetensors"] if source.is_dir() else [source]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ValueError(f"init_from: {source}: expected a folder with model.safetensors, or a .ckpt file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path), path
        state = load_plain(path).get("state_dict")
    except SafetensorError as error:
        raise ValueError(f"init_from: {path}: not a readable safetensors file ({error})") from None
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and (isinstance(tensor, Tensor) or not name.startswith("model."))
        for name, tensor in state.items()
    ):
        raise ValueError(f"init_from: {path}: key 'state_dict' must map names to tensors")
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}, path


def load_handoff(model: nn.Module, source: str | Path) -> str:
    """Load every part of the model that the checkpoint has; a part is taken whole or refused.

    An LLM with LoRA takes the weights of one without, see `lightning_s2s.components.lora.below_lora`.

    Returns:
        One line that says which parts were loaded, and which stay as they were built; or that nothing was read, in
        `lightning_s2s.components.weights.without_weights`.

    Raises:
        ValueError: no part is there, or a tensor's name or shape differs; nothing was loaded then.
    """
    if skipping_weights():
        return f"{source}: left to the first process"
    tensors, path = read_tensors(source)
    parts = dict(model.named_children())
    check_same_components(parts, path)
    fitting: dict[str, dict[str, Tensor]] = {}
    for name in sorted(parts, key=lambda name: name in BUILT_FOR_OTHERS):
        found = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if found:
            with reading(f"init_from: {path}: {name}"):
                found = below_lora(parts[name], found)
            fitting[name] = fitting_tensors(parts[name], found, f"init_from: {path}: {name}")
    loaded = [name for name in parts if name in fitting]
    kept = [name for name in parts if name not in fitting]
    if not fitting:
        raise ValueError(f"init_from: {path}: holds none of the model's parts ({', '.join(kept)})")
    for name, found in fitting.items():
        model.get_submodule(name).load_state_dict(found)
    if isinstance(model, SpeechToSpeechModel) and fitting.keys() >= {"encoder", "adapter", "llm", "speech_decoder"}:
        folder = path.parent
        model.attachments = attachments_of(folder) if is_opens2s_folder(folder) else read_attachments(folder)
    return f"{path}: loaded {', '.join(loaded)}" + (f"; not in it: {', '.join(kept)}" if kept else "")


def check_same_components(parts: dict[str, nn.Module], path: Path) -> None:
    """Refuse a model folder whose components have other names than the model's.

    Args:
        parts: of the model, by slot.
        path: of the weights; `config.json` beside it names the components.

    Raises:
        ValueError: one has another name.
    """
    config = path.parent / "config.json"
    saved = read_json(config) if path.suffix == ".safetensors" and config.is_file() else {}
    for slot, registry in SLOTS.items():
        there = saved[slot].get("class_path") if isinstance(saved.get(slot), dict) else None
        here = registry.find_name(type(parts[slot])) if slot in parts else None  # a class path may have no name
        if None not in (there, here) and here != there:
            raise ValueError(f"init_from: {path}: its {slot} is {there}, the model's is {here}")
