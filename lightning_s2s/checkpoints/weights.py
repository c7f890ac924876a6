"""Weights of one component in a folder: `model.safetensors`, written under a temporary name and renamed."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


def save_weights(module: nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write the module's state dict to `folder/model.safetensors`, floating-point tensors as `dtype` when given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
    }
    path, temporary = folder / "model.safetensors", folder / f".model.safetensors.{os.getpid()}"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors leaves its files to their owner alone
    temporary.replace(path)
    return path


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Read `folder/model.safetensors` into the module, in the module's own dtype.

    Raises:
        ValueError: the file is missing or broken, or names or shapes differ from the module's; nothing is loaded then.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the weights of {type(module).__name__}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    load_tensors(module, tensors, path)


def load_tensors(module: nn.Module, tensors: dict[str, torch.Tensor], source: str | Path) -> None:
    """Copy `tensors` into the module after all names and shapes were compared.

    Raises:
        ValueError: names or shapes differ; the message names `source` and the first tensors that do.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{source}: does not fit {type(module).__name__}: missing {missing[:3] or 'none'}"
            f", unexpected {unexpected[:3] or 'none'}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, "
                f"{type(module).__name__} needs {tuple(own[name].shape)}"
            )
    module.load_state_dict(tensors)
