"""Checkpoints that several processes write together: folders of pieces that appear whole or not at all.

The name is a link to one of two folders beside it. The next checkpoint is written into the other one, and when it is
complete the link is replaced, which a file system does at once.
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

from lightning_s2s.scale.plain_pieces import BytesPlanner, EverythingPlanner, PlainReader
from lightning_s2s.support.files import sync, sync_folder
from lightning_s2s.support.plain import load_plain, naming

CONFIGURATION_KEY = "lightning_s2s_stage"
"""Where a checkpoint holds the `class_path` and `init_args` of its stage."""
META = "meta.pt"
"""The part of a checkpoint that is no tensor of the model or of an optimiser, as Lightning names it."""


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether `path` is a complete checkpoint of this kind."""
    return (path / META).is_file()


def next_folder(path: Path) -> Path:
    """An empty folder to write the next checkpoint of this name into; whatever an interrupted run left there goes."""
    present = path.resolve().name if path.is_symlink() else ""
    folder = next(folder for folder in _folders(path) if folder.name != present)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(folder: Path, path: Path) -> None:
    """Let `path` mean `folder`, which is on the disk by then, and remove what it meant before."""
    if path.is_dir() and not path.is_symlink():  # Lightning's own strategy writes a plain folder
        shutil.rmtree(path)
    sync_folder(folder)
    link = _link(path)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(path)
    sync(path.parent)
    remove_folders(path, but=folder)


def remove_folders(path: Path, but: Path | None = None) -> None:
    """Remove the folders that `path` may have meant, all or all but one, and a link that a killed run left."""
    _link(path).unlink(missing_ok=True)
    for folder in _folders(path):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def _link(path: Path) -> Path:
    """Under which name a new link is made."""
    return path.with_name(f".{path.name}.link")


def _folders(path: Path) -> list[Path]:
    return [path.with_name(f".{path.name}.{number}") for number in range(2)]


def read_sharded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint holds beside its tensors, and the model's tensors, joined, in this process alone.

    Nothing in it is ever run.

    Raises:
        ValueError: it is incomplete, broken, or holds pickled code.
    """
    content = load_plain(path / META)
    with naming(path), _alone():
        reader = PlainReader(path)
        prefix = "state_dict."
        tensors = {
            name.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        load({"state_dict": tensors}, storage_reader=reader, no_dist=True)
    return content, tensors


def read_whole_run(path: Path) -> dict[str, Any]:
    """A checkpoint of several processes as a single process would have written it, optimisers included.

    Raises:
        ValueError: it is incomplete, broken, or holds pickled code, none of which is run.
    """
    content = load_plain(path / META)
    everything: dict[str, Any] = {}
    with naming(path):
        with _alone():
            _load_state_dict(everything, storage_reader=PlainReader(path), planner=EverythingPlanner(), no_dist=True)
        numbers = sorted(int(name.removeprefix("optimizer_")) for name in everything if name.startswith("optimizer_"))
        content["state_dict"] = everything["state_dict"]
        content["optimizer_states"] = [with_numbers(everything[f"optimizer_{number}"]) for number in numbers]
    return content


def check_checkpoint(path: Path) -> dict[str, Any]:
    """See that a checkpoint of one or several processes is plain -> what it holds, of the latter but the tensors.

    Raises:
        ValueError: as `read_whole_run`.
    """
    return _check_pieces(path) if is_sharded_checkpoint(path) else load_plain(path, mmap=True)


def _check_pieces(path: Path) -> dict[str, Any]:
    """Its index, too, and all values that are no tensors."""
    content = load_plain(path / META)
    with naming(path), _alone():
        reader = PlainReader(path)
        entries = reader.read_metadata().state_dict_metadata.items()
        values: dict[str, Any] = {name: None for name, entry in entries if isinstance(entry, BytesStorageMetadata)}
        if values:
            load(values, storage_reader=reader, planner=BytesPlanner(), no_dist=True)
    return content


def _alone() -> warnings.catch_warnings[None]:
    """That it is a single process which reads is the point, and nothing to be warned of."""
    return warnings.catch_warnings(action="ignore")


def with_numbers(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state by parameter names -> the same by numbers, as torch's optimisers have it."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def with_names(state: dict[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """An optimiser's state by numbers -> the same by the names that its parameters have in the module."""
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    names = [known[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: value for number, value in state["state"].items()}, "param_groups": groups}
