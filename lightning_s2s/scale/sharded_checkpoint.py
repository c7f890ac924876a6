"""Sharded checkpoints: folders that all ranks write together, and that appear complete or not at all.

The checkpoint's name is a symbolic link to one of two folders beside it. The next checkpoint is written into the other
folder; once it is complete, the link is replaced atomically.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import load
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from lightning_s2s.scale.plain_reader import BytesPlanner, EverythingPlanner, PlainReader
from lightning_s2s.support.files import sync, sync_folder
from lightning_s2s.support.plain import load_plain, naming

CONFIGURATION_KEY = "lightning_s2s_stage"
"""Where a checkpoint holds the `class_path` and `init_args` of its stage."""
META = "meta.pt"
"""Lightning's name for the file with everything but the tensors of the model and the optimisers."""


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether `path` is a complete sharded checkpoint."""
    return (path / META).is_file()


def next_folder(path: Path) -> Path:
    """An empty folder for the next checkpoint of this name; what an interrupted run left there is removed."""
    current = path.resolve().name if path.is_symlink() else ""
    folder = next(folder for folder in _folders(path) if folder.name != current)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(folder: Path, path: Path) -> None:
    """Make `path` a link to `folder` once that is synchronised to disk, and remove the previous checkpoint."""
    if path.is_dir() and not path.is_symlink():  # Lightning's own strategy writes a plain folder
        shutil.rmtree(path)
    sync_folder(folder)
    link = _new_link(path)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(path)
    sync(path.parent)
    remove_folders(path, keep=folder)


def remove_folders(path: Path, keep: Path | None = None) -> None:
    """Remove the folders behind `path` except `keep`, and a link that a killed run left."""
    _new_link(path).unlink(missing_ok=True)
    for folder in _folders(path):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)


def _new_link(path: Path) -> Path:
    return path.with_name(f".{path.name}.link")


def _folders(path: Path) -> list[Path]:
    return [path.with_name(f".{path.name}.{number}") for number in range(2)]


def read_sharded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of `META` and the full tensors of the model, read by this process alone. No code in it is run.

    Raises:
        ValueError: The checkpoint is incomplete, broken, or holds pickled code.
    """
    content = load_plain(path / META)
    with naming(path), _ignoring_warnings():
        reader = PlainReader(path)
        prefix = "state_dict."
        tensors = {
            name.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        load({"state_dict": tensors}, storage_reader=reader, no_dist=True)
    return content, tensors


def read_consolidated(path: Path) -> dict[str, Any]:
    """A sharded checkpoint in the form in which a single process would have written it, optimisers included.

    Raises:
        ValueError: As `read_sharded`.
    """
    content = load_plain(path / META)
    everything: dict[str, Any] = {}
    with naming(path):
        with _ignoring_warnings():
            _load_state_dict(everything, storage_reader=PlainReader(path), planner=EverythingPlanner(), no_dist=True)
        numbers = sorted(int(name.removeprefix("optimizer_")) for name in everything if name.startswith("optimizer_"))
        content["state_dict"] = everything["state_dict"]
        content["optimizer_states"] = [number_parameters(everything[f"optimizer_{number}"]) for number in numbers]
    return content


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Check that a checkpoint, sharded or not, holds only plain values, and return it; without tensors if sharded.

    Raises:
        ValueError: As `read_sharded`.
    """
    if not is_sharded_checkpoint(path):
        return load_plain(path, mmap=True)
    content = load_plain(path / META)
    with naming(path), _ignoring_warnings():
        reader = PlainReader(path)
        entries = reader.read_metadata().state_dict_metadata.items()
        values: dict[str, Any] = {name: None for name, entry in entries if isinstance(entry, BytesStorageMetadata)}
        if values:
            load(values, storage_reader=reader, planner=BytesPlanner(), no_dist=True)
    return content


def _ignoring_warnings() -> warnings.catch_warnings[None]:
    """torch warns that only a single process reads, which is intended here."""
    return warnings.catch_warnings(action="ignore")


def number_parameters(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state keyed by parameter names -> keyed by numbers, as torch's optimisers have it."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def name_parameters(state: dict[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """The inverse of `number_parameters`, with the names that the optimiser's parameters have in the module."""
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    names = [known[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: value for number, value in state["state"].items()}, "param_groups": groups}
