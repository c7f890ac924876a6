"""Ways to change a copy of the golden OpenS2S checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"


def change_tensors(folder: Path, change) -> None:
    """Rewrite model.safetensors with what `change` makes of its tensors."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(change(tensors) or tensors, folder / "model.safetensors", metadata={"format": "pt"})


def divide(folder: Path, num_shards: int) -> None:
    """model.safetensors as several files with an index, in alternation."""
    tensors = load_file(folder / "model.safetensors")
    names = [f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors" for i in range(num_shards)]
    weight_map = {name: names[i % num_shards] for i, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({n: t.clone() for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def without(name: str) -> Callable[[dict], dict]:
    """For `change_tensors`: drop one tensor."""
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}
