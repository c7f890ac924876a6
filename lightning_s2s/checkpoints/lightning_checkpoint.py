"""The model inside a checkpoint of `fit`: built from the description that the checkpoint carries, not by its stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_s2s.checkpoints.stored import check_part, unpack_parts
from lightning_s2s.components.registry import SLOTS
from lightning_s2s.components.weights import assign_tensors, without_weights
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.scale.sharded_checkpoint import CONFIGURATION_KEY, read_sharded
from lightning_s2s.support.plain import EXPECTED, load_plain
from lightning_s2s.support.reading import reading

MODEL_KEY = "lightning_s2s_model"
"""Where a checkpoint holds what `lightning_s2s.checkpoints.stored.pack_parts` says of its model."""


def load_checkpoint(path: str | Path, trust_sources: bool = False) -> SpeechToSpeechModel:
    """The model in inference mode; the weights keep their dtype.

    Args:
        path: A `.ckpt` file, or the folder of several processes.
        trust_sources: See `lightning_s2s.checkpoints.stored.build_parts`.

    Raises:
        ValueError: It is no checkpoint of a stage whose model answers, or names more than plain values and registered
            components. Nothing in it is ever run.
    """
    path = Path(path)
    content, tensors = read_weights(path)
    with reading(path, "checkpoint"):
        _check_stage(content.get(CONFIGURATION_KEY), path)
        if content.get(MODEL_KEY) is None:
            raise ValueError(f"{path}: holds no description of a model that answers (key {MODEL_KEY})")
        with without_weights():  # its own follow, so those it started from need not exist any more
            parts: dict[str, Any] = unpack_parts(content[MODEL_KEY], path, trust_sources)
            if "llm" not in parts:
                raise ValueError(f"{path}: llm: is missing; every model has a language model")
            model = SpeechToSpeechModel(**parts)
        assign_tensors(model, tensors, dict.fromkeys(tensors, str(path)), str(path))
    return model.eval()


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of a checkpoint, and the tensors of its model under the model's names.

    Args:
        path: A `.ckpt` file, or the folder of several processes.

    Raises:
        ValueError: It can't be read, or holds no tensors of a stage.
    """
    weights: Any
    if path.is_dir():
        content, weights = read_sharded(path)
    else:
        content = load_plain(path)
        weights = content.get("state_dict")
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and (isinstance(tensor, Tensor) or not name.startswith("model."))
        for name, tensor in weights.items()
    ):
        raise ValueError(f"{path}: key 'state_dict' must map names to tensors; expected {EXPECTED}")
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
    return content, own


def _check_stage(stage: Any, path: Path) -> None:
    """Refuse a checkpoint whose stage was configured with anything but registered components and plain values.

    Raises:
        ValueError: It was.
    """
    if stage is None:
        return
    if not isinstance(stage, Mapping) or not isinstance(stage.get("init_args", {}), Mapping):
        raise ValueError(f"{path}: key {CONFIGURATION_KEY} must hold class_path and init_args")
    for slot, registry in SLOTS.items():
        part = stage.get("init_args", {}).get(slot)
        if part is not None:
            check_part(registry, part, f"{path}: {slot}")
