"""Checkpoints that several processes write together: folders of pieces that appear whole or not at all.

The name is a link to one of two folders beside it. The next checkpoint is written into the other one, and when it is
complete the link is replaced, which a file system does at once.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

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
    """Let `path` mean `folder`, and remove what it meant before."""
    if path.is_dir() and not path.is_symlink():  # Lightning's own strategy writes a plain folder
        shutil.rmtree(path)
    link = path.with_name(f".{path.name}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(path)
    remove_folders(path, but=folder)


def remove_folders(path: Path, but: Path | None = None) -> None:
    """Remove the folders that `path` may have meant, all or all but one."""
    for folder in _folders(path):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def _folders(path: Path) -> list[Path]:
    return [path.with_name(f".{path.name}.{number}") for number in range(2)]


def read_sharded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint holds beside its tensors, and the model's tensors, joined, in this process alone.

    Nothing in it is ever run: its index may name no other classes than those of an index.

    Raises:
        ValueError: it is incomplete, broken, or holds pickled code.
    """
    try:
        content = torch.load(path / META, map_location="cpu", weights_only=True)
        reader = _Reader(path)
        prefix = "state_dict."
        tensors = {
            name.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():  # that it is a single process which reads is the point
            warnings.simplefilter("ignore")
            load({"state_dict": tensors}, storage_reader=reader, no_dist=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, AttributeError) as error:
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint of several processes ({detail})") from None
    return content, tensors


def read_whole_run(path: Path) -> dict[str, Any]:
    """A checkpoint of several processes as a single process would have written it, optimisers included.

    It is unpickled: for the runs of one's own that are resumed.
    """
    everything: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _load_state_dict(
            everything, storage_reader=FileSystemReader(path), planner=_EmptyStateDictLoadPlanner(), no_dist=True
        )
    content = torch.load(path / META, map_location="cpu", weights_only=False)
    numbers = sorted(int(name.removeprefix("optimizer_")) for name in everything if name.startswith("optimizer_"))
    content["state_dict"] = everything["state_dict"]
    content["optimizer_states"] = [with_numbers(everything[f"optimizer_{number}"]) for number in numbers]
    return content


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


class _Reader(FileSystemReader):
    """torch's reader, which unpickles the index; here with nothing but the classes of an index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _IndexUnpickler(file).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = (
            (module, name) in _INDEX_NAMES
            or (module == "torch.distributed.checkpoint.metadata" and name in _INDEX_CLASSES)
            or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        )
        if not known:
            raise pickle.UnpicklingError(f"its index holds pickled code ({module}.{name})")
        return super().find_class(module, name)


_INDEX_CLASSES = {
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
    "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
}  # fmt: skip
_INDEX_NAMES = {
    ("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "Path"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("collections", "OrderedDict"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
}  # fmt: skip
