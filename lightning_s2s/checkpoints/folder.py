"""A whole model as a folder: config.json, model.safetensors and the tokenizer. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s2s.checkpoints.weights import load_weights, save_weights
from lightning_s2s.registry import ADAPTERS, ENCODERS, LLMS, SPEECH_DECODERS, VOCODERS

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


def save_model(model: SpeechToSpeechModel, folder: str | Path) -> None:
    """Write the model; a folder with a config.json is always complete, since that file is written last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"format": FORMAT, "format_version": 1}
    for slot, registry in SLOTS.items():
        component = getattr(model, slot)
        if component is not None:
            config[slot] = {
                "class_path": registry.name_of(type(component)),
                "init_args": component.pretrained_args(folder),
            }
    save_weights(model, folder)
    temporary = folder / f".config.json.{os.getpid()}"
    temporary.write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
    temporary.replace(folder / "config.json")


def load_model(folder: str | Path) -> SpeechToSpeechModel:
    """Read a folder that `save_model` wrote.

    Raises:
        ValueError: no such folder, not a model of this project, an unknown component, or weights of another shape.
    """
    from lightning_s2s.model import SpeechToSpeechModel

    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a model folder with config.json and model.safetensors")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path}: key 'format' must be {FORMAT!r}; this is no model of Lightning S2S")
    parts = {}
    for slot, registry in SLOTS.items():
        if slot in config:
            part = config[slot] if isinstance(config[slot], dict) else {}
            if not isinstance(part.get("class_path"), str) or not isinstance(part.get("init_args"), dict):
                raise ValueError(f"{path}: key {slot!r} must hold class_path (a name) and init_args (a mapping)")
            init_args = dict(part["init_args"])
            if init_args.get("tokenizer") == ".":
                init_args["tokenizer"] = str(folder)
            try:
                parts[slot] = registry.get(part["class_path"])(**init_args)
            except TypeError as error:
                raise ValueError(f"{path}: {slot}.init_args: {error}") from None
    if "llm" not in parts:
        raise ValueError(f"{path}: key 'llm' is missing; every model has a language model")
    model = SpeechToSpeechModel(**parts)
    load_weights(model, folder)
    return model.eval()
